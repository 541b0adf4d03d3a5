"""Content to what a model reads: token ids and pictures, through the model's own chat template.

One encoder serves rollout, reward, contrastive and supervised training and evaluation, so that
all of them give a model identical token ids and pixels.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import MediaConfig
from data.errors import ConfigError, DataError
from data.media import fit
from data.types import Content, Picture, Pictures

EMB_TOKEN = "<emb>"
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in the two forms that engines take."""

    ids: list[int]
    """One picture token per picture, as vLLM wants it (it expands them itself)."""
    expanded: list[int]
    """As many picture tokens as the vision tower emits, as transformers wants it."""
    images: list[Image.Image]


class ChatEncoder:
    """Turns content into prompts for one model.

    Args:
        processor: the model folder's own Hugging Face processor.
        limits: pixel limits; they must lie inside what the processor leaves unresized.
    """

    def __init__(self, processor: Any, limits: MediaConfig) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.limits = limits
        image_processor = processor.image_processor
        self.merge = int(image_processor.merge_size)
        self.factor = int(image_processor.patch_size) * self.merge
        self.image_token = processor.image_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        added = self.tokenizer.added_tokens_decoder.values()
        special = {EMB_TOKEN, *VISION_TOKENS, *(str(token) for token in added if token.special)}
        self._special = re.compile("|".join(map(re.escape, sorted(special))))
        _check_limits(limits, image_processor.size)

    def encode(self, content: Content, pictures: Pictures, *, tail: str = "") -> EncodedPrompt:
        """Return the prompt of one user turn, open for the assistant, plus ``tail``.

        Raises:
            DataError: a picture was not loaded, or the chat template does not show each once.
        """
        text = self.text(content) + tail
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        images = [
            fit(part, pictures, self.limits, factor=self.factor)
            for part in content
            if isinstance(part, Picture)
        ]
        return EncodedPrompt(ids=ids, expanded=self.expand(ids, images), images=images)

    def embed(self, content: Content, pictures: Pictures) -> EncodedPrompt:
        """Return the prompt whose last token is `<emb>`: the Embedder pools there.

        Raises:
            ConfigError: the model has no such token.
            DataError: as `encode`.
        """
        if EMB_TOKEN not in self.tokenizer.get_vocab():
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no {EMB_TOKEN} token, so this "
                "is no Embedder; use a folder that the job `embedder` exported"
            )
        return self.encode(content, pictures, tail=EMB_TOKEN)

    def text(self, content: Content) -> str:
        """Return the chat-rendered prompt, open for the assistant's answer."""
        parts = [
            {"type": "image"}
            if isinstance(part, Picture)
            else {"type": "text", "text": self._plain(part)}
            for part in content
        ]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )

    def response_ids(self, text: str) -> list[int]:
        """Return the tokens of an assistant turn, closed by the end-of-turn token."""
        ids = self.tokenizer.encode(self._plain(text), add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def _plain(self, text: str) -> str:
        """Return text without spelled-out special tokens: data must not pose as pictures or turns.

        A blank stands in, so that what is left and right of it cannot join to another one.
        """
        return self._special.sub(" ", text)

    def expand(self, ids: list[int], images: list[Image.Image]) -> list[int]:
        """Return ``ids`` with each picture token repeated once per merged vision patch.

        Raises:
            DataError: not one picture token per picture.
        """
        if ids.count(self.image_token_id) != len(images):
            raise DataError(
                f"expected {len(images)} {self.image_token} in the prompt, found "
                f"{ids.count(self.image_token_id)}: the model's chat template must show each "
                "picture once"
            )
        counts = iter([(i.height // self.factor) * (i.width // self.factor) for i in images])
        expanded: list[int] = []
        for token in ids:
            expanded.extend([token] * next(counts) if token == self.image_token_id else [token])
        return expanded

    def pixels(self, images: list[Image.Image]) -> dict[str, Any]:
        """Return ``pixel_values`` [patches, channels] and ``image_grid_thw`` [images, 3]."""
        batch = self.processor.image_processor(
            images=[np.asarray(image) for image in images], return_tensors="pt", do_resize=False
        )
        return {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}

    def banned_ids(self) -> list[int]:
        """Return tokens that must never be sampled: pictures, padding, turn starts, `<emb>`."""
        words = [*VISION_TOKENS, EMB_TOKEN, "<|im_start|>", "<|endoftext|>"]
        vocabulary = self.tokenizer.get_vocab()
        eos = self.tokenizer.eos_token_id
        return sorted({vocabulary[word] for word in words if word in vocabulary} - {eos})


def _check_limits(limits: MediaConfig, size: Any) -> None:
    """Refuse limits that the model's processor would resize again behind our back."""
    least, most = int(size["shortest_edge"]), int(size["longest_edge"])
    wrong = [
        f"data.media.{name}={getattr(limits, name)}"
        for name in vars(limits)
        if name.endswith("_pixels")
        and name != "max_decode_pixels"
        and not least <= getattr(limits, name) <= most
    ]
    if wrong:
        raise ConfigError(
            f"pixel limits must lie in the model processor's own range [{least}, {most}]; "
            f"found {', '.join(wrong)}: change them, or the model's preprocessor_config.json"
        )
