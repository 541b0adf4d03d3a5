"""A random ragged batch of traces by a two-layer model, and the RL objective in plain loops."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import GRPOConfig
from data.types import TrainSample
from learner.advantages import group_advantages
from learner.logprobs import token_logprobs
from learner.losses import policy_loss
from learner.policy import PolicyObjective, policy_tokens
from learner.steps import Tally, Term, accumulate

VOCABULARY, WIDTH, MAX_TOKENS, TEMPERATURE = 7, 3, 12, 0.8
BANNED = torch.tensor([0])
GROUPS = (("query", 3), ("target", 4), ("query", 2))
"""Side and siblings of each group."""


class TwoLayers(nn.Module):
    """Hidden states and a head, both trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)

    def forward(self, inputs: Tensor, targets: Tensor, **settings: object) -> tuple[Tensor, ...]:
        hidden = torch.tanh(self.body(inputs))
        return token_logprobs(hidden, targets, self.head, vocabulary=VOCABULARY, **settings)


class PlainEngine:
    """Gradients by plain autograd."""

    def __init__(self) -> None:
        self.ended = False

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        self.ended = last


@dataclass(frozen=True)
class Trace:
    """One trace with all that the objective reads, as the pipeline would hand it over."""

    sample: TrainSample
    inputs: Tensor
    reward: float
    side: str
    group: int


class Example:
    """The batch, the model in training and the reference."""

    def __init__(self, config: GRPOConfig, *, noise: float, seed: int = 0) -> None:
        self.config = config
        self.model, self.reference = TwoLayers(seed), TwoLayers(seed)
        with torch.no_grad():
            for param in self.reference.parameters():
                param.add_(0.3 * torch.randn_like(param))
        self.traces = self._traces(np.random.default_rng(seed), noise)
        self.initial = self.numbers(self.reference)
        self.objective = PolicyObjective(
            reference="", grpo=config, max_tokens=MAX_TOKENS, temperature=TEMPERATURE
        )

    def _traces(self, rng: np.random.Generator, noise: float) -> list[Trace]:
        traces: list[Trace] = []
        for group, (side, siblings) in enumerate(GROUPS):
            rewards = rng.normal(size=siblings)
            [advantages] = group_advantages([rewards], kind="group_norm", std_floor=0.05)
            for index in range(siblings):
                length = int(rng.integers(1, MAX_TOKENS + 1))
                inputs = torch.from_numpy(rng.normal(size=(length, WIDTH)))
                ids = rng.integers(1, VOCABULARY, length)
                with torch.no_grad():
                    now = self.score(self.model, inputs, ids)[0].numpy()
                logprobs = now + noise * rng.normal(size=length)
                old = logprobs + noise * rng.normal(size=length) if index % 2 else None
                sample = TrainSample(
                    key=f"{group}/{index}",
                    content=(),
                    prompt_ids=np.array([1]),
                    response_ids=ids,
                    advantage=float(advantages[index]),
                    weight=self.config.query_weight
                    if side == "query"
                    else self.config.target_weight,
                    logprobs=logprobs,
                    old_logprobs=old,
                )
                traces.append(Trace(sample, inputs, float(rewards[index]), side, group))
        return traces

    def all_of_this_version(self) -> None:
        """Drop the stored log-probabilities of old versions."""
        self.traces = [
            replace(one, sample=replace(one.sample, old_logprobs=None)) for one in self.traces
        ]

    def score(self, model: TwoLayers, inputs: Tensor, ids: np.ndarray) -> tuple[Tensor, ...]:
        return model(
            inputs,
            torch.from_numpy(ids),
            banned=BANNED,
            temperature=TEMPERATURE,
            entropy_gradient=self.config.entropy_coef > 0,
            chunk_logits=4 * VOCABULARY,
        )

    def total(self) -> float:
        tokens = sum(len(one.sample.response_ids) for one in self.traces)
        return self.objective.total(tokens=tokens, traces=len(self.traces))

    def term(self, samples: list[TrainSample]) -> Term:
        """Return a micro-batch's loss, as a learner's rank computes it."""
        by_key = {one.sample.key: one for one in self.traces}
        inputs = torch.cat([torch.zeros(0, WIDTH, dtype=torch.float64)]
                           + [by_key[one.key].inputs for one in samples])  # fmt: skip
        ids = np.concatenate([np.zeros(0, np.int64), *(one.response_ids for one in samples)])
        reference_T = None
        if self.objective.reference_in_loss:
            with torch.no_grad():
                reference_T = self.score(self.reference, inputs, ids)[0]
        now_T, entropy_T, _ = self.score(self.model, inputs, ids)
        tokens = policy_tokens(
            samples, now_T, entropy_T, reference_T, loss_mean=self.config.loss_mean
        )
        return policy_loss(tokens, self.config)

    def fast(self, cuts: list[list[slice]]) -> tuple[float, list[Tensor], list[Tally]]:
        """Return loss, gradient and tallies by ranks with these micro-batches, [rank][micro]."""
        self.model.zero_grad()
        samples = [one.sample for one in self.traces]
        tallies = [
            accumulate(
                PlainEngine(),
                [samples[part] for part in micro],
                self.term,
                scale=len(cuts) / self.total(),
            )
            for micro in cuts
        ]
        gradients = [param.grad / len(cuts) for param in self.model.parameters()]
        return sum(one.sums["loss"] for one in tallies) / self.total(), gradients, tallies

    def numbers(self, model: TwoLayers) -> list[tuple[list[float], list[float]]]:
        """Return log-probabilities and entropies of every trace, without chunks."""
        lengths = [len(one.sample.response_ids) for one in self.traces]
        ids = torch.cat([torch.from_numpy(one.sample.response_ids) for one in self.traces])
        with torch.no_grad():
            hidden = torch.tanh(model.body(torch.cat([one.inputs for one in self.traces])))
            logits = model.head(hidden) / TEMPERATURE
            logits[:, BANNED] = -1e9
            rows = torch.log_softmax(logits, -1)
            picked = rows[torch.arange(len(rows)), ids].split(lengths)
            entropies = (-(rows.exp() * rows).sum(-1)).split(lengths)
        return [(p.tolist(), e.tolist()) for p, e in zip(picked, entropies, strict=True)]

    def slow(self, frozen: list[tuple[list[float], list[float]]] | None = None) -> float:
        """Return the loss in plain loops; what carries no gradient is taken from ``frozen``."""
        now, reference = self.numbers(self.model), self.initial
        frozen = now if frozen is None else frozen
        loss = 0.0
        for index, one in enumerate(self.traces):
            loss += one.sample.weight * slow_trace(
                one.sample, now[index], frozen[index][0], reference[index][0], self.config
            )
        count = len(self.traces)
        tokens = sum(len(one.sample.response_ids) for one in self.traces)
        return (
            loss
            / {
                "token": tokens,
                "sequence": count,
                "sequence_constant": count * MAX_TOKENS,
            }[self.config.loss_mean]
        )

    def finite_differences(self, step: float = 1e-6) -> list[Tensor]:
        """Return the gradient of the slow loss, one parameter at a time."""
        frozen = self.numbers(self.model)
        gradients = []
        for param in self.model.parameters():
            gradient = torch.zeros_like(param)
            flat, out = param.data.view(-1), gradient.view(-1)
            for index in range(flat.numel()):
                ends = []
                for sign in (1, -1):
                    flat[index] += sign * step
                    ends.append(self.slow(frozen))
                    flat[index] -= sign * step
                out[index] = (ends[0] - ends[1]) / (2 * step)
            gradients.append(gradient)
        return gradients


def slow_trace(
    sample: TrainSample,
    scored: tuple[list[float], list[float]],
    frozen: list[float],
    reference: list[float],
    config: GRPOConfig,
) -> float:
    """Return the loss of one trace, summed over its tokens with their weights."""
    now, entropy = scored
    behaviour = list(sample.logprobs)
    old = frozen if sample.old_logprobs is None else list(sample.old_logprobs)
    anchor = old if config.tis_cap > 0 else behaviour
    length = len(now)
    if config.sequence_band > 0:
        drift = sum(f - b for f, b in zip(frozen, behaviour, strict=True)) / length
        if not 1 / config.sequence_band <= math.exp(drift) <= config.sequence_band:
            return 0.0
    low, high = 1 - config.clip_low, 1 + config.clip_high
    whole = math.exp(sum(n - a for n, a in zip(now, anchor, strict=True)) / length)
    loss = 0.0
    for t in range(length):
        if config.ratio == "clipped_weight":
            weight = min(max(math.exp(frozen[t] - anchor[t]), low), high)
            gain = weight * sample.advantage * now[t]
        else:
            ratio = whole if config.ratio == "sequence" else math.exp(now[t] - anchor[t])
            clipped = min(max(ratio, low), high)
            gain = min(ratio * sample.advantage, clipped * sample.advantage)
        if config.tis_cap > 0:
            gain *= min(math.exp(old[t] - behaviour[t]), config.tis_cap)
        cost = -gain - config.entropy_coef * entropy[t]
        if config.kl != "none" and config.kl_in == "loss":
            away = reference[t] - now[t]
            cost += (
                config.kl_coef
                * {
                    "k1": -away,
                    "k2": away * away / 2,
                    "k3": math.exp(away) - away - 1,
                }[config.kl]
            )
        loss += cost / length if config.loss_mean == "sequence" else cost
    return loss
