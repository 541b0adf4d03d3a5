"""Gaps between log-probabilities of SmolLM2-135M in bf16, of healthy and of wrong weights.

    python -m tests.gpu.record_gaps [--tokens 50000] [--device cuda]

The engine's side samples token by token with cached keys and values, 24 traces together; the
learner's side reads whole traces, alone or padded together. With equal weights their gaps are
rounding. The learner's weights then change, as by optimiser steps or by a fault, on fewer tokens.
The gaps by bin are what `tests/unit/cluster/rl/test_logprob_parity.py` draws its steps from.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from configs.learner import LearnerConfig
from data.types import TrainSample
from learner.gaps import gap_figures, gap_sums
from learner.rank.batching import collate, train_row
from learner.rank.models import load_model, model_tokens
from tests.models.conftest import write_smollm2

OUTPUT = Path(__file__).parents[1] / "unit/cluster/rl/gaps_smollm2.json"
TOGETHER, LENGTH = 24, 48
"""Traces that are sampled at a time, and the tokens of each."""
LEARNT = 6
"""Traces of the gradient."""
FEWER = 6
"""One in so many tokens is read again for changed weights."""
DRIFTS = (1e-6, 1e-5, 1e-4, 1e-3)
"""Optimiser steps times learning rate: how far each float32 weight moves at most."""
TOPICS = ("rivers", "glass", "bread", "clocks", "whales", "maps", "salt", "steel", "bees", "rain")
TASKS = (
    "Explain {} to a child.",
    "Write a story about {}.",
    "List ten facts about {}.",
    "Argue against {}.",
)


class Model:
    """The model with its output layer apart: logits in float32 and in bf16 of the same states."""

    def __init__(self, net: nn.Module, tokens: object, banned: list[int]) -> None:
        self.net = net.eval()
        self.tokens = tokens
        self.banned = banned

    def both(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of all words, of float32 and of rounded logits, [T, V]."""
        weight_VD = self.net.get_output_embeddings().weight
        exact_TV = hidden_TD.float() @ weight_VD.float().T
        rounded_TV = nn.functional.linear(hidden_TD, weight_VD).float()
        for logits_TV in (exact_TV, rounded_TV):
            logits_TV[:, self.banned] = -1e9
        return exact_TV.log_softmax(-1), rounded_TV.log_softmax(-1)

    @torch.no_grad()
    def read(self, samples: list[TrainSample], *, together: int) -> np.ndarray:
        """Return both log-probabilities of all tokens as the learner reads traces, [2, T]."""
        parts = []
        for start in range(0, len(samples), together):
            rows = [train_row(one) for one in samples[start : start + together]]
            batch = collate(rows, {}, self.tokens).to(self.net.device)
            hidden = self.net.base_model(**batch.inputs, use_cache=False).last_hidden_state
            picked = self.both(hidden[batch.rows_T, batch.columns_T])
            index = batch.targets_T[:, None]
            parts.append(torch.stack([one.gather(1, index)[:, 0] for one in picked]).cpu())
        return torch.cat(parts, 1).numpy()

    @torch.no_grad()
    def sample(self, prompts: list[list[int]], seed: int) -> tuple[list[TrainSample], np.ndarray]:
        """Return a trace for each prompt, and both log-probabilities of its tokens, [2, N, L]."""
        device = self.net.device
        dice = torch.Generator(device).manual_seed(seed)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=device)
        mask = torch.tensor(
            [[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=device
        )
        cache, drawn, given = None, [], []
        for _ in range(LENGTH):
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            made = self.net.base_model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            cache = made.past_key_values
            both = self.both(made.last_hidden_state[:, -1])
            ids = torch.multinomial(both[0].exp(), 1, generator=dice)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            drawn.append(ids[:, 0])
            given.append(torch.stack([one.gather(1, ids)[:, 0] for one in both]))
        response = torch.stack(drawn, 1).cpu().numpy()
        samples = [
            TrainSample(
                key=f"{seed}/{index}",
                content=(),
                prompt_ids=np.array(prompt),
                response_ids=response[index],
                advantage=0.0,
            )
            for index, prompt in enumerate(prompts)
        ]
        return samples, torch.stack(given, -1).cpu().numpy()

    def step_direction(self, samples: list[TrainSample], seed: int) -> list[Tensor]:
        """Return by how much AdamW's first step at learning rate 1 changes each weight.

        Of a policy gradient with random advantages. Later steps change a weight by less.
        """
        dice = torch.Generator().manual_seed(seed)
        advantages = torch.randn(len(samples), generator=dice)
        for one, advantage in zip(samples, advantages.tolist(), strict=True):
            batch = collate([train_row(one)], {}, self.tokens).to(self.net.device)
            hidden = self.net.base_model(**batch.inputs, use_cache=False).last_hidden_state
            exact_TV, _ = self.both(hidden[batch.rows_T, batch.columns_T])
            chosen = exact_TV.gather(1, batch.targets_T[:, None])
            (-advantage * chosen.mean()).backward()
        directions = [-param.grad.float().sign() for param in self.net.parameters()]
        self.net.zero_grad()
        return directions


def faults(net: nn.Module) -> dict[str, Callable[[], None]]:
    """Return what may go wrong between learner and engine, by name: each breaks a model."""
    layers = net.base_model.layers
    middle = layers[len(layers) // 2]
    width = net.config.hidden_size // net.config.num_attention_heads

    def no_layer() -> None:
        for last in (middle.self_attn.o_proj, middle.mlp.down_proj):
            last.weight.zero_()

    def neighbours_matrix() -> None:
        middle.mlp.up_proj.weight.copy_(layers[len(layers) // 2 + 1].mlp.up_proj.weight)

    def rolled_heads() -> None:
        middle.self_attn.v_proj.weight.copy_(middle.self_attn.v_proj.weight.roll(width, 0))

    return {
        "a layer is missing": no_layer,
        "a matrix is the next layer's": neighbours_matrix,
        "heads of one layer are shifted": rolled_heads,
        "one matrix is zero": lambda: middle.mlp.gate_proj.weight.zero_(),
        "one norm has its initial value": lambda: middle.input_layernorm.weight.fill_(1.0),
        "the positions turn otherwise": lambda: net.base_model.rotary_emb.inv_freq.mul_(1.1),
    }


def record(kind: str, gaps: np.ndarray) -> dict[str, object]:
    sums = gap_sums(gaps)
    bins = np.flatnonzero(sums[:-1])
    return {
        "kind": kind,
        **{name: round(value, 6) for name, value in gap_figures(sums, float(gaps.max())).items()},
        "first_bin": int(bins[0]),
        "counts": sums[bins[0] : bins[-1] + 1].astype(int).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=TOGETHER * LENGTH)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    began = time.perf_counter()
    cases: dict[str, dict[str, object]] = {}

    def say(name: str, kind: str, gaps: np.ndarray) -> None:
        cases[name] = record(kind, gaps)
        figures = {key: value for key, value in cases[name].items() if key.startswith("parity/")}
        print(
            f"{time.perf_counter() - began:6.0f} s  {name}: {gaps.size} tokens {figures}",
            flush=True,
        )
        lines = (
            f"{json.dumps(name)}: {json.dumps(case)}"
            for name, case in cases.items()
            if case["kind"] != "change"
        )
        asked.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    with tempfile.TemporaryDirectory() as folder:
        write_smollm2(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        net = load_model(folder, LearnerConfig(bf16=True)).to(asked.device)
    model = Model(net, model_tokens(net, tokenizer), tokenizer.all_special_ids)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task.format(topic)}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for task in TASKS
        for topic in TOPICS
    ]
    samples, given = [], []
    for seed in range(-(-asked.tokens // (TOGETHER * LENGTH))):
        chosen = [prompts[(seed * TOGETHER + i) % len(prompts)] for i in range(TOGETHER)]
        traces, logprobs = model.sample(chosen, seed)
        samples += traces
        given.append(logprobs.reshape(2, -1))
    theirs = np.concatenate(given, 1)
    alone = model.read(samples, together=1)
    say("alone", "rounding", np.abs(alone[0] - theirs[0]))
    say("alone, bf16 logits", "rounding", np.abs(alone[1] - theirs[1]))
    fewer = samples[::FEWER]
    places = np.arange(theirs.shape[1]).reshape(-1, LENGTH)[::FEWER].ravel()
    padded = model.read(fewer, together=8)
    say("padded together", "rounding", np.abs(padded[0] - theirs[0, places]))

    def changed(name: str, kind: str) -> None:
        exact = model.read(fewer, together=1)[0]
        say(name, kind, np.abs(exact - theirs[0, places]))
        say(f"{name}; the change alone", "change", np.abs(exact - alone[0, places]))

    directions = model.step_direction(samples[:: len(samples) // LEARNT][:LEARNT], 0)
    state = copy.deepcopy(net.state_dict())
    for size in DRIFTS:
        with torch.no_grad():
            for param, direction in zip(net.parameters(), directions, strict=True):
                param.copy_(param.float() + size * direction)
        changed(f"weights moved by {size:g}", "drift")
        net.load_state_dict(state)
    turns = net.base_model.rotary_emb.inv_freq.clone()
    for name, spoil in faults(net).items():
        with torch.no_grad():
            spoil()
        changed(name, "fault")
        net.load_state_dict(state)
        net.base_model.rotary_emb.inv_freq.copy_(turns)


if __name__ == "__main__":
    main()
