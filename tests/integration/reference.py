"""Slow, plain transformers versions of what the engines compute, one sequence at a time."""

import numpy as np
import torch
from torch import nn

from data.model.chat import ChatEncoder, EncodedPrompt
from data.types import GenerationRequest, GroupKey, Side, TrajectoryKey


def request(
    content: tuple, *, pair_id: str = "p", sibling: int = 0, seed: int = 0, greedy: bool = False
) -> GenerationRequest:
    """Return a request with a key made of its arguments."""
    key = TrajectoryKey(GroupKey(1, pair_id, Side.QUERY), sibling)
    return GenerationRequest(key=key, content=content, seed=seed, greedy=greedy)


def model_inputs(encoder: ChatEncoder, prompt: EncodedPrompt, response: list[int]) -> dict:
    """Return the inputs of one unpadded sequence."""
    ids = torch.tensor([prompt.expanded + response])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    videos = (ids == encoder.video_token_id).long()
    inputs["mm_token_type_ids"] = (ids == encoder.image_token_id).long() + 2 * videos
    if prompt.images:
        inputs |= encoder.pixels(prompt.images)
    if prompt.clips:
        inputs |= encoder.clip_pixels(prompt.clips)
    return inputs


@torch.no_grad()
def logprobs(
    model: nn.Module, encoder: ChatEncoder, prompt: EncodedPrompt, response: np.ndarray
) -> np.ndarray:
    """Return the log-probabilities of a response, banned tokens left out of the sum."""
    ids = [int(token) for token in response]
    logits = model(**model_inputs(encoder, prompt, ids)).logits[0].float()
    logits[:, encoder.banned_ids()] = -torch.inf
    rows = logits.log_softmax(-1)[len(prompt.expanded) - 1 : -1]
    return rows.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()


@torch.no_grad()
def embedding(model: nn.Module, encoder: ChatEncoder, prompt: EncodedPrompt) -> np.ndarray:
    """Return the unit vector at the last token."""
    hidden = model.model(**model_inputs(encoder, prompt, [])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden.float(), dim=-1).numpy()
