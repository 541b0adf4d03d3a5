"""Several optimiser updates a step, against plain loops in float64.

Each update has its part of the traces and its own divisor; all ratios are against what the model
gave before the first one.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.learner import GRPOConfig
from configs.presets import PRESETS
from data.types import TrainSample
from learner.micro_batches import MiniBatch, cut_evenly
from learner.objectives import PolicyObjective
from learner.rank.accumulate import take_updates
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens, start_logprobs
from tests.unit.learner.rank.objective import VOCABULARY, WIDTH, TwoLayers

TRACES, MAX_TOKENS, TEMPERATURE, BANNED = 9, 6, 0.8, 0
LR = 2.0
"""Of plain gradient descent: high, so that the first update moves ratios out of the clip."""
EMBED_RL = GRPOConfig(preset="embed_rl", **PRESETS["grpo"]["embed_rl"])
CONFIGS = {
    "embed_rl": EMBED_RL,
    "mean over traces": GRPOConfig(updates_per_step=2, loss_mean="sequence", dual_clip=1.5),
    "mean by the limit, three": GRPOConfig(updates_per_step=3, loss_mean="sequence_constant"),
    "truncated importance sampling": GRPOConfig(updates_per_step=2, tis_cap=1.2, clip_high=0.3),
    "one update": GRPOConfig(),
}


class Descent:
    """Plain gradient descent as an engine; each update answers with its gradient."""

    def __init__(self, model: TwoLayers) -> None:
        self.model = model
        self.lasts: list[bool] = []

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, *, last: bool) -> list[Tensor]:
        self.lasts.append(last)
        gradients = [param.grad.clone() for param in self.model.parameters()]
        descend(self.model, gradients)
        self.model.zero_grad()
        return gradients


@torch.no_grad()
def descend(model: TwoLayers, gradients: list[Tensor]) -> None:
    for param, gradient in zip(model.parameters(), gradients, strict=True):
        param -= LR * gradient


class Step:
    """A step's traces, the model before it and the reference."""

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.model, self.reference = TwoLayers(0), TwoLayers(1)
        rng = np.random.default_rng(0)
        self.inputs: dict[str, Tensor] = {}
        self.samples: list[TrainSample] = []
        for index in range(TRACES):
            key, length = f"t{index}", int(rng.integers(1, MAX_TOKENS + 1))
            ids = rng.integers(1, VOCABULARY, length)
            self.inputs[key] = torch.from_numpy(rng.normal(size=(length, WIDTH)))
            now = np.array(self.plain(self.model, key, ids))
            # Sampled by an engine that rounds otherwise, where that is corrected; else by the
            # model itself. Every third trace is of an older version then.
            behaviour = now + (0.3 * rng.normal(size=length) if config.tis_cap else 0.0)
            old = behaviour + 0.2 if config.tis_cap and index % 3 == 0 else None
            self.samples.append(
                TrainSample(
                    key=key,
                    content=(),
                    prompt_ids=np.array([1]),
                    response_ids=ids,
                    advantage=float(rng.normal()),
                    logprobs=behaviour,
                    old_logprobs=old,
                )
            )

    @torch.no_grad()
    def plain(self, model: TwoLayers, key: str, ids: np.ndarray) -> list[float]:
        """Return a trace's log-probabilities, token by token in plain loops."""
        weight, bias = model.body.weight.tolist(), model.body.bias.tolist()
        words = model.head.weight.tolist()
        found = []
        for x, wanted in zip(self.inputs[key].tolist(), ids, strict=True):
            hidden = [
                math.tanh(b + sum(w * v for w, v in zip(row, x, strict=True)))
                for row, b in zip(weight, bias, strict=True)
            ]
            logits = [
                sum(w * h for w, h in zip(row, hidden, strict=True)) / TEMPERATURE for row in words
            ]
            total = math.log(sum(math.exp(v) for i, v in enumerate(logits) if i != BANNED))
            found.append(logits[wanted] - total)
        return found

    def slow(self, model: TwoLayers, part: list[TrainSample], start: dict) -> float:
        """Return the loss of one update; ``start`` are the log-probabilities before the first."""
        c, loss = self.config, 0.0
        for one in part:
            now = self.plain(model, one.key, one.response_ids)
            initial = self.plain(self.reference, one.key, one.response_ids)
            old = start[one.key] if one.old_logprobs is None else list(one.old_logprobs)
            for n, o, b, i in zip(now, old, one.logprobs, initial, strict=True):
                a, ratio = one.advantage, math.exp(n - (o if c.tis_cap else b))
                gain = min(ratio * a, min(max(ratio, 1 - c.clip_low), 1 + c.clip_high) * a)
                if a < 0 and c.dual_clip:
                    gain = max(gain, c.dual_clip * a)
                if c.tis_cap:
                    gain *= min(math.exp(o - b), c.tis_cap)
                k3 = math.exp(i - n) - (i - n) - 1
                share = len(now) if c.loss_mean == "sequence" else 1
                loss += (c.kl_coef * k3 - gain) / share
        return (
            loss
            / {
                "token": sum(len(one.response_ids) for one in part),
                "sequence": len(part),
                "sequence_constant": len(part) * MAX_TOKENS,
            }[c.loss_mean]
        )

    def slow_gradient(self, model: TwoLayers, part: list[TrainSample], start: dict) -> list[Tensor]:
        gradients = []
        for param in model.parameters():
            gradient = torch.zeros_like(param)
            flat, out = param.data.view(-1), gradient.view(-1)
            for index in range(flat.numel()):
                ends = []
                for sign in (1, -1):
                    flat[index] += sign * 1e-6
                    ends.append(self.slow(model, part, start))
                    flat[index] -= sign * 1e-6
                out[index] = (ends[0] - ends[1]) / 2e-6
            gradients.append(gradient)
        return gradients

    def slow_updates(self, parts: list[list[TrainSample]]) -> tuple[list[list[Tensor]], TwoLayers]:
        """Return the gradient of each update, and the model after the last."""
        model = copy.deepcopy(self.model)
        start = {one.key: self.plain(model, one.key, one.response_ids) for one in self.samples}
        gradients = []
        for part in parts:
            gradients.append(self.slow_gradient(model, part, start))
            descend(model, gradients[-1])
        return gradients, model

    def updates(self) -> tuple[list, Descent]:
        """Take the step as a learner's rank does."""
        c, engine = self.config, Descent(self.model)
        objective = PolicyObjective(reference="", grpo=c, max_tokens=MAX_TOKENS)
        parts = cut_evenly(self.samples, c.updates_per_step)
        mini_batches = [
            MiniBatch(
                micro_batches=[part[:1], [], part[1:]],
                total_tokens=sum(len(one.response_ids) for one in part),
                total_traces=len(part),
            )
            for part in parts
        ]
        totals = [
            objective.total(tokens=one.total_tokens, traces=one.total_traces)
            for one in mini_batches
        ]

        def score(model: TwoLayers, samples: list[TrainSample]) -> tuple[Tensor, ...]:
            inputs = [torch.zeros(0, WIDTH).double(), *(self.inputs[one.key] for one in samples)]
            ids = np.concatenate([np.zeros(0, np.int64), *(one.response_ids for one in samples)])
            settings = {"banned": torch.tensor([BANNED]), "temperature": TEMPERATURE}
            return model(torch.cat(inputs), torch.from_numpy(ids), **settings)

        def own(samples: list[TrainSample]) -> Tensor:
            with torch.no_grad():
                return score(self.model, samples)[0]

        def term(samples: list[TrainSample]) -> tuple:
            with torch.no_grad():
                reference_T = score(self.reference, samples)[0]
            now_T, entropy_T, _ = score(self.model, samples)
            tokens = policy_tokens(
                samples, now_T, entropy_T, reference_T, loss_mean=c.loss_mean, start=start
            )
            return policy_loss(tokens, c)

        start = start_logprobs(mini_batches, own)
        done = take_updates(engine, mini_batches, term, scales=[1 / total for total in totals])
        return done, engine


@pytest.mark.parametrize("name", CONFIGS)
def test_every_update_follows_plain_loops_over_its_own_part(name):
    step = Step(CONFIGS[name])
    count = step.config.updates_per_step
    wanted, model = step.slow_updates(cut_evenly(step.samples, count))
    done, engine = step.updates()
    assert len(done) == len(wanted) == count
    for (_, gradients), expected in zip(done, wanted, strict=True):
        torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-7)
        assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    after = [param.detach() for param in step.model.parameters()]
    torch.testing.assert_close(after, list(model.parameters()), rtol=0, atol=1e-6)
    assert engine.lasts == [*[False] * (count - 1), True]


def test_ratios_move_in_the_second_update_and_not_in_the_first():
    done, _ = Step(EMBED_RL).updates()
    first, second = (tally for tally, _ in done)
    assert first.largest["off_policy_ratio_max"] == 1.0 < second.largest["off_policy_ratio_max"]
    assert first.sums["clip_fraction"] == 0 < second.sums["clip_fraction"]
    # What engine and learner must agree on is measured before any update.
    assert first.largest["logprob_gap"] < 1e-12 > second.largest["logprob_gap"]


@pytest.mark.parametrize(
    ("rows", "parts", "sizes"), [(8, 2, [4, 4]), (7, 3, [2, 2, 3]), (1, 2, [1])]
)
def test_rows_are_cut_in_their_order_into_even_parts_of_which_none_is_empty(rows, parts, sizes):
    cut = cut_evenly(list(range(rows)), parts)
    assert [len(part) for part in cut] == sizes
    assert [row for part in cut for row in part] == list(range(rows))
