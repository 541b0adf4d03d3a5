"""Random ragged traces by a two-layer model, and RL from reward to loss in plain loops."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from configs.learner import GRPOConfig
from data.types import GroupKey, Side, TrainSample, TrajectoryKey
from learner.advantages import shaped_rewards, step_advantages
from learner.objectives import PolicyObjective, TokenScores
from learner.rank.accumulate import Tally, Term, accumulate
from learner.rank.logprobs import OutputLayer
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens

VOCABULARY, WIDTH, MAX_TOKENS, TEMPERATURE = 7, 3, 12, 0.8
BANNED = torch.tensor([0])
SIDES = (Side.QUERY, Side.TARGET, Side.QUERY, Side.TARGET)
"""Of the groups; the second one's rewards are all equal."""

Scored = tuple[list[float], list[float]]
"""Log-probabilities and entropies of one trace's tokens."""


class TwoLayers(nn.Module):
    """Hidden states and a head, both trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        linear = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
        self.head = OutputLayer(linear, chunk_logits=4 * VOCABULARY)

    def forward(self, inputs: Tensor, targets: Tensor, **settings: object) -> tuple[Tensor, ...]:
        hidden = torch.tanh(self.body(inputs))
        return self.head(hidden, targets, **settings)


class PlainEngine:
    """Gradients by plain autograd."""

    def __init__(self) -> None:
        self.ended = False

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        self.ended = last


@dataclass(frozen=True)
class Trace:
    """One sampled trace, before it has an advantage."""

    key: TrajectoryKey
    inputs: Tensor
    ids: np.ndarray
    reward: float
    behaviour: np.ndarray
    old: np.ndarray | None


class Example:
    """The batch, the model in training and the reference."""

    def __init__(self, config: GRPOConfig, *, noise: float, seed: int = 0) -> None:
        self.config = config
        self.model, self.reference = TwoLayers(seed), TwoLayers(seed)
        with torch.no_grad():
            for param in self.reference.parameters():
                param.add_(0.3 * torch.randn_like(param))
        self.traces = self._draw(np.random.default_rng(seed), noise)
        self.initial = self.numbers(self.reference)
        self.objective = PolicyObjective(
            reference="", grpo=config, max_tokens=MAX_TOKENS, temperature=TEMPERATURE
        )
        self.samples = self._samples()
        self.wanted = slow_advantages(self.traces, self.numbers(self.model), self.initial, config)

    def _draw(self, rng: np.random.Generator, noise: float) -> list[Trace]:
        traces: list[Trace] = []
        for serial, side in enumerate(SIDES):
            group = GroupKey(serial, f"p{serial}", side)
            for sibling in range(int(rng.integers(2, 5))):
                length = int(rng.integers(1, MAX_TOKENS + 1))
                inputs = torch.from_numpy(rng.normal(size=(length, WIDTH)))
                ids = rng.integers(1, VOCABULARY, length)
                now = np.array(self.numbers_of(self.model, inputs, ids)[0])
                behaviour = now + noise * rng.normal(size=length)
                old = behaviour + noise * rng.normal(size=length) if sibling % 2 else None
                reward = 0.5 if serial == 1 else float(rng.normal())
                key = TrajectoryKey(group, sibling)
                traces.append(Trace(key, inputs, ids, reward, behaviour, old))
        return traces

    def _samples(self) -> list[TrainSample]:
        """Return what the pipeline would train on."""
        scores = {
            str(one.key): TokenScores(np.array(now[0]), np.array(initial[0]))
            for one, now, initial in zip(
                self.traces, self.numbers(self.model), self.initial, strict=True
            )
        }
        paid = {one.key: one.reward for one in self.traces}
        shaped, _ = shaped_rewards(
            paid,
            {one.key: len(one.ids) for one in self.traces},
            scores,
            grpo=self.config,
            max_tokens=MAX_TOKENS,
        )
        advantages = step_advantages(shaped, self.config, paid=paid)
        query, target = self.config.query_weight, self.config.target_weight
        return [
            TrainSample(
                key=str(one.key),
                content=(),
                prompt_ids=np.array([1]),
                response_ids=one.ids,
                advantage=advantages[one.key],
                weight=query if one.key.group.side is Side.QUERY else target,
                logprobs=one.behaviour,
                old_logprobs=one.old,
            )
            for one in self.traces
            if one.key in advantages
        ]

    def score(self, model: TwoLayers, inputs: Tensor, ids: np.ndarray) -> tuple[Tensor, ...]:
        return model(
            inputs,
            torch.from_numpy(ids),
            banned=BANNED,
            temperature=TEMPERATURE,
            entropy_gradient=self.config.entropy_coef > 0,
        )

    def total(self) -> float:
        tokens = sum(len(one.response_ids) for one in self.samples)
        return self.objective.total(tokens=tokens, traces=len(self.samples))

    def term(self, samples: list[TrainSample]) -> Term:
        """Return a micro-batch's loss, as a learner's rank computes it."""
        by_key = {str(one.key): one for one in self.traces}
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
        tallies = [
            accumulate(
                PlainEngine(),
                [self.samples[part] for part in micro],
                self.term,
                scale=len(cuts) / self.total(),
            )
            for micro in cuts
        ]
        gradients = [param.grad / len(cuts) for param in self.model.parameters()]
        return sum(one.sums["loss"] for one in tallies) / self.total(), gradients, tallies

    def numbers(self, model: TwoLayers) -> list[Scored]:
        """Return what a model gives to every trace."""
        return [self.numbers_of(model, one.inputs, one.ids) for one in self.traces]

    @torch.no_grad()
    def numbers_of(self, model: TwoLayers, inputs: Tensor, ids: np.ndarray) -> Scored:
        """Return log-probabilities and entropies of one trace, without chunks."""
        logits = torch.tanh(model.body(inputs)) @ model.head.weight.T / TEMPERATURE
        logits[:, BANNED] = -1e9
        rows = torch.log_softmax(logits, -1)
        picked = rows[torch.arange(len(rows)), torch.from_numpy(ids)]
        return picked.tolist(), (-(rows.exp() * rows).sum(-1)).tolist()

    def slow(self, frozen: list[Scored] | None = None) -> float:
        """Return the loss in plain loops; what carries no gradient is taken from ``frozen``."""
        now = self.numbers(self.model)
        frozen = now if frozen is None else frozen
        loss, tokens = 0.0, 0
        for index, one in enumerate(self.traces):
            if one.key not in self.wanted:
                continue
            query = one.key.group.side is Side.QUERY
            weight = self.config.query_weight if query else self.config.target_weight
            loss += weight * slow_trace(
                one,
                self.wanted[one.key],
                now[index],
                (frozen[index][0], self.initial[index][0]),
                self.config,
            )
            tokens += len(one.ids)
        count = len(self.wanted)
        return (
            loss
            / {
                "token": tokens,
                "sequence": count,
                "sequence_constant": count * MAX_TOKENS,
            }[self.config.loss_mean]
        )

    def finite_differences(self, step: float = 1e-6) -> list[Tensor]:
        """Return the gradient of the slow loss, one parameter at a time.

        What the objective treats as a constant (advantages, the old policy of a fresh trace, the
        weights of CISPO, the bands) stays at its value before the step: the objective's gradient
        is that of this surrogate, not of the loss as a function of the parameters alone.
        """
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


def slow_advantages(
    traces: list[Trace], own: list[Scored], initial: list[Scored], config: GRPOConfig
) -> dict[TrajectoryKey, float]:
    """Return the advantages of the traces that are in the loss, from their raw rewards."""
    paid: dict[GroupKey, list[float]] = {}
    for one in traces:
        paid.setdefault(one.key.group, []).append(one.reward)
    groups: dict[GroupKey, dict[TrajectoryKey, float]] = {}
    for one, now, reference in zip(traces, own, initial, strict=True):
        # DAPO, equation 11: groups that were all paid alike are sampled again.
        alike = max(paid[one.key.group]) - min(paid[one.key.group]) < config.min_spread
        if config.refill > 0 and alike:
            continue
        reward = one.reward
        # DAPO, equation 13: 0 until the last part, then down to -1 at the limit.
        part = config.overlong_share * MAX_TOKENS
        if config.overlong_penalty > 0 and len(one.ids) > MAX_TOKENS - part:
            reward -= config.overlong_penalty * (len(one.ids) - (MAX_TOKENS - part)) / part
        if config.kl != "none" and config.kl_in == "reward":
            pairs = zip(now[0], reference[0], strict=True)
            reward -= config.kl_coef * sum(slow_kl(n, r, config.kl) for n, r in pairs)
        groups.setdefault(one.key.group, {})[one.key] = reward
    values = slow_centred_and_scaled(
        [list(group.values()) for group in groups.values()], config.advantage, config.std_floor
    )
    return {
        key: value if max(group.values()) - min(group.values()) >= config.min_spread else 0.0
        for group, some in zip(groups.values(), values, strict=True)
        for key, value in zip(group, some, strict=True)
    }


def slow_centred_and_scaled(
    groups: list[list[float]], kind: str, std_floor: float
) -> list[list[float]]:
    """Return the advantages as the publications write them, one reward at a time."""
    centred = [[r - statistics.fmean(group) for r in group] for group in groups]
    whole = [value for group in centred for value in group]
    found = []
    for group, away in zip(groups, centred, strict=True):
        if kind == "group_norm":
            found.append([a / max(statistics.stdev(group), std_floor) for a in away])
        elif kind == "batch_norm":
            found.append([a / max(statistics.stdev(whole), std_floor) for a in away])
        elif kind == "mean_only":
            found.append(away)
        else:
            total = sum(group)
            found.append([r - (total - r) / (len(group) - 1) for r in group])
    return found


def slow_kl(now: float, reference: float, kind: str) -> float:
    """Return one token's estimate of the KL to the reference."""
    away = reference - now
    return {"k1": -away, "k2": away * away / 2, "k3": math.exp(away) - away - 1}[kind]


def slow_trace(
    trace: Trace,
    advantage: float,
    scored: Scored,
    constants: tuple[list[float], list[float]],
    config: GRPOConfig,
) -> float:
    """Return the loss of one trace, summed over its tokens with their weights.

    ``constants`` are the log-probabilities by the model in training, held fixed, and by the
    reference.
    """
    now, entropy = scored
    frozen, reference = constants
    behaviour = list(trace.behaviour)
    old = frozen if trace.old is None else list(trace.old)
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
            gain = weight * advantage * now[t]
        else:
            ratio = whole if config.ratio == "sequence" else math.exp(now[t] - anchor[t])
            clipped = min(max(ratio, low), high)
            gain = min(ratio * advantage, clipped * advantage)
            if config.dual_clip > 0 and advantage < 0:  # Ye et al., 2020, equation 5
                gain = max(gain, config.dual_clip * advantage)
        if config.tis_cap > 0:
            gain *= min(math.exp(old[t] - behaviour[t]), config.tis_cap)
        cost = -gain - config.entropy_coef * entropy[t]
        if config.kl != "none" and config.kl_in == "loss":
            cost += config.kl_coef * slow_kl(now[t], reference[t], config.kl)
        loss += cost / length if config.loss_mean == "sequence" else cost
    return loss
