"""One whole step of each published objective, against its formula in plain loops.

The program's side: a shipped file with the presets on the command line, the pipeline with its
scoring over engines that are fakes, and the learner's own split, divisors and loss, on two ranks
one after the other. The publication's side shares no code with it: from embeddings, verdicts and
log-probabilities to the loss in loops over Python's floats, and its gradient by differences.
"""

import math
import statistics
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from configs.load import load
from configs.schema import RLConfig
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import GroupKey, Judgement, Kind, Side, StepReport, Trajectory, TrajectoryKey
from learner.micro_batches import RowCost, plan_micro_batches
from learner.objectives import PolicyObjective, TokenScores
from learner.rank.accumulate import accumulate
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens
from tests.builders import TRACES, loaded_set, make_pair
from tests.fakes import FakeEmbedder, FakeLearner, FakeRollout
from tests.integration.conftest import ROOT
from tests.simulation import decoder
from tests.unit.learner.rank.objective import BANNED, VOCABULARY, WIDTH, PlainEngine, TwoLayers

pytestmark = pytest.mark.usefixtures("local_ray")
FILES = ("configs/rl.yaml", "configs/demo/rl.yaml")
OBJECTIVES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp")
REWARDS = ("paper", "code")
MAX_TOKENS, PAIRS, SIBLINGS, RANKS = 12, 3, 3, 2
SIZE = (
    *(f"pairs={PAIRS}", f"siblings={SIBLINGS}", f"rollout.sampling.max_tokens={MAX_TOKENS}"),
    "reward.judge.model=judge",
)
NOISE = {"rloo": 0.0, "gspo": 1e-3, "cispo": 2.0}
"""How far the engine's log-probabilities are from the learner's, so that clips touch some tokens;
RLOO is published on-policy."""


@dataclass(frozen=True)
class Trace:
    """What the publications' formulas read of a trace."""

    key: TrajectoryKey
    inputs: list[list[float]]
    ids: list[int]
    behaviour: list[float]
    vector: list[float]
    valid: bool
    right: bool
    """Whether the judge finds its other side."""


def is_dull(group: GroupKey) -> bool:
    """Return whether all traces of the group are paid alike."""
    return group.serial % 3 == 1 and group.side is Side.QUERY


def random_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_trace(key: TrajectoryKey, model: TwoLayers, noise: float) -> Trace:
    """Return the trace that the engines give for a key: the same for both sides of this test."""
    rng, dull = random_of(str(key)), is_dull(key.group)
    # A dull group has a trace at the token limit.
    length = MAX_TOKENS if dull and key.sibling == 0 else int(rng.integers(1, MAX_TOKENS))
    inputs = rng.normal(size=(length, WIDTH)).tolist()
    ids = rng.integers(1, VOCABULARY, length).tolist()
    now = logprobs(flat(model), inputs, ids)
    paid = random_of(str(key.group)) if dull else rng
    vector = random_of(key.group.pair_id).normal(size=8) + paid.normal(size=8)
    return Trace(
        key=key,
        inputs=inputs,
        ids=ids,
        behaviour=[n + noise * float(rng.normal()) for n in now],
        vector=(vector / np.linalg.norm(vector)).astype(np.float32).tolist(),
        valid=bool(paid.integers(4)),
        right=bool(paid.integers(2)),
    )


class Traces(dict[str, Trace]):
    """By key as text, each made when it is first asked for."""

    def __init__(self, model: TwoLayers, noise: float) -> None:
        self.model, self.noise = model, noise

    def of(self, key: TrajectoryKey) -> Trace:
        return self.setdefault(str(key), make_trace(key, self.model, self.noise))


class Engines(FakeRollout):
    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self.traces = traces

    def _trace(self, key: TrajectoryKey) -> Trajectory:
        one = self.traces.of(key)
        return Trajectory(
            key=key,
            prompt_ids=np.array([1, 2]),
            response_ids=np.array(one.ids),
            logprobs=np.array(one.behaviour),
            text=TRACES[Kind.TEXT] if one.valid else "no trace",
            finish="stop",
            min_version=self.version,
            max_version=self.version,
        )


class Embedder(FakeEmbedder):
    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self.traces = traces

    def embed(self, requests, pictures):
        vectors, failed = super().embed(requests, pictures)
        known = {key: one for key, one in self.traces.items() if key in vectors}
        return vectors | {key: np.float32(one.vector) for key, one in known.items()}, failed


class Judge:
    def __init__(self, traces: Traces) -> None:
        self.traces = traces

    def judge(self, questions):
        verdicts = {one.key: float(self.traces[one.key].right) for one in questions}
        return {
            key: Judgement(share=share, shown=(), answer="") for key, share in verdicts.items()
        }, {}


class TwoRanks(FakeLearner):
    """Computes a step's gradient as the ranks of a learner group do."""

    def __init__(self, config: RLConfig, traces: Traces, reference: TwoLayers) -> None:
        super().__init__()
        self.traces, self.model, self.reference = traces, traces.model, reference
        self.objective = PolicyObjective(
            reference="",
            grpo=config.grpo,
            max_tokens=config.rollout.sampling.max_tokens,
            temperature=config.rollout.sampling.temperature,
        )
        self.loss, self.micro_batches = 0.0, 0

    def score_policy(self, samples, pictures):
        return {
            one.key: TokenScores(
                *(
                    np.array(logprobs(flat(model), self.traces[one.key].inputs, one.response_ids))
                    for model in (self.model, self.reference)
                )
            )
            for one in samples
        }

    def train_policy(self, samples, pictures):
        tokens = sum(len(one.response_ids) for one in samples)
        total = self.objective.total(tokens=tokens, traces=len(samples))
        some = [one for one in samples if self.objective.learns_from(one.advantage)]
        costs = [RowCost(tokens=2 + len(one.response_ids), pictures={}) for one in some]
        for share in plan_micro_batches(costs, ranks=RANKS, budget_tokens=30):
            micro_batches = [[some[index] for index in micro] for micro in share]
            tally = accumulate(PlainEngine(), micro_batches, self.term, scale=RANKS / total)
            self.loss += tally.sums["loss"] / total
            self.micro_batches += len(micro_batches)
        return StepReport(metrics={}, seconds=0.0)

    def term(self, samples):
        inputs = [self.traces[one.key].inputs for one in samples]
        inputs_TW = torch.tensor([row for rows in inputs for row in rows], dtype=torch.float64)
        inputs_TW = inputs_TW.reshape(-1, WIDTH)
        ids_T = torch.tensor([int(i) for one in samples for i in one.response_ids])
        given = (inputs_TW, ids_T.long())
        settings = {"banned": BANNED, "temperature": self.objective.temperature}
        reference_T = None
        if self.objective.reference_in_loss:
            with torch.no_grad():
                reference_T = self.reference(*given, **settings)[0]
        now_T, entropy_T, _ = self.model(*given, **settings, entropy_gradient=False)
        grpo = self.objective.grpo
        tokens = policy_tokens(samples, now_T, entropy_T, reference_T, loss_mean=grpo.loss_mean)
        return policy_loss(tokens, grpo)


def flat(model: TwoLayers) -> list[float]:
    """Return the model's parameters, in their order."""
    return [value for param in model.parameters() for value in param.detach().flatten().tolist()]


def logprobs(params: list[float], inputs: list[list[float]], ids: list[int]) -> list[float]:
    """Return what the two layers with these parameters give to the tokens."""
    ways, shifts = params[: WIDTH * WIDTH], params[WIDTH * WIDTH : WIDTH * (WIDTH + 1)]
    words = params[WIDTH * (WIDTH + 1) :]
    found = []
    for row, chosen in zip(inputs, ids, strict=True):
        hidden = [
            math.tanh(sum(ways[WIDTH * i + j] * row[j] for j in range(WIDTH)) + shifts[i])
            for i in range(WIDTH)
        ]
        logits = [
            sum(words[WIDTH * word + j] * hidden[j] for j in range(WIDTH))
            for word in range(1, VOCABULARY)  # token 0 is banned
        ]
        found.append(logits[chosen - 1] - math.log(sum(math.exp(one) for one in logits)))
    return found


def paid(traces: list[Trace], reward: str) -> dict[TrajectoryKey, float]:
    """Return the rewards of one round: Embed-RL, equations 3 and 4, or its published code."""
    found = {}
    for one in traces:
        others = [other for other in traces if other.key.group.side is not one.key.group.side]
        cosine = {
            id(other): sum(a * b for a, b in zip(one.vector, other.vector, strict=True))
            for other in others
        }
        own = [o for o in others if o.key.group.serial == one.key.group.serial]
        rest = [o for o in others if o.key.group.serial != one.key.group.serial]
        top = sorted(others, key=lambda o: -cosine[id(o)])[: len(own)]
        share = sum(any(o is other for other in top) for o in own) / len(own)
        weights = [math.exp(cosine[id(o)] / 0.5) for o in rest]
        against = sum(w * cosine[id(o)] for w, o in zip(weights, rest, strict=True)) / sum(weights)
        margin = sum(cosine[id(o)] for o in own) / len(own) - against
        if reward == "paper":
            total = 0.05 * one.valid + 0.2 * (share == 1) * margin + 0.8 * one.right
        else:
            total = 0.05 * one.valid + 0.8 * 0.5 * share * margin + 0.2 * one.right * margin
        found[one.key] = total
    return found


def worth(
    name: str, rewards: dict[TrajectoryKey, float], lengths: dict[TrajectoryKey, int]
) -> dict[TrajectoryKey, float]:
    """Return the advantages as the publication has them."""
    groups: dict[GroupKey, list[TrajectoryKey]] = {}
    for key in rewards:
        groups.setdefault(key.group, []).append(key)
    if name == "dapo":
        # Equation 11: no group whose answers are all worth the same; they are sampled again.
        alike = {
            group
            for group, keys in groups.items()
            if max(rewards[k] for k in keys) - min(rewards[k] for k in keys) < 1e-9
        }
        rewards = {k: reward for k, reward in rewards.items() if k.group not in alike}
        groups = {group: keys for group, keys in groups.items() if group not in alike}
        # Equation 13, with the last fifth of the limit as the interval.
        start = 0.8 * MAX_TOKENS
        for key, length in lengths.items():
            if key in rewards and length > start:
                rewards[key] -= (length - start) / (MAX_TOKENS - start)
    centred = {
        key: rewards[key] - statistics.fmean(rewards[k] for k in keys)
        for keys in groups.values()
        for key in keys
    }
    if name == "dr_grpo":
        return centred
    if name == "rloo":  # less the mean of the others
        return {
            key: rewards[key] - sum(rewards[k] for k in keys if k != key) / (len(keys) - 1)
            for keys in groups.values()
            for key in keys
        }
    if name == "reinforce_pp":  # over the whole batch
        spread = statistics.stdev(centred.values())
        return {key: value / spread for key, value in centred.items()}
    found = {}
    for keys in groups.values():
        spread = statistics.stdev(rewards[k] for k in keys)
        found |= {key: centred[key] / spread if spread else 0.0 for key in keys}
    return found


class Published:
    """The loss as a function of the parameters."""

    def __init__(self, name: str, traces: list[Trace], reference: TwoLayers, kl_coef: float):
        self.name, self.traces, self.kl_coef = name, traces, kl_coef
        self.initial = [logprobs(flat(reference), one.inputs, one.ids) for one in traces]
        self.advantages: dict[TrajectoryKey, float] = {}
        self.clipped = 0

    def give(self, rounds: list[list[Trace]], params: list[float], reward: str) -> None:
        """Have the traces paid; what is a constant in the loss stays as it is at ``params``."""
        self.now = [logprobs(params, one.inputs, one.ids) for one in self.traces]
        rewards = {key: value for some in rounds for key, value in paid(some, reward).items()}
        if self.name == "rloo":  # the KL of the whole trace is in the reward
            for one, now, initial in zip(self.traces, self.now, self.initial, strict=True):
                away = [n - i for n, i in zip(now, initial, strict=True)]
                rewards[one.key] -= self.kl_coef * sum(away)
        lengths = {one.key: len(one.ids) for one in self.traces}
        self.advantages = worth(self.name, rewards, lengths)

    def loss(self, params: list[float]) -> float:
        kept = [i for i, one in enumerate(self.traces) if one.key in self.advantages]
        gains = [self.trace(i, logprobs(params, *self.read(i))) for i in kept]
        if self.name in ("dapo", "cispo", "reinforce_pp"):  # the mean over all tokens
            return -sum(gains) / sum(len(self.traces[i].ids) for i in kept)
        return -sum(gains) / len(kept)

    def read(self, index: int) -> tuple[list[list[float]], list[int]]:
        return self.traces[index].inputs, self.traces[index].ids

    def trace(self, index: int, now: list[float]) -> float:
        """Return the gain of one trace."""
        one, initial, frozen = self.traces[index], self.initial[index], self.now[index]
        a, length = self.advantages[one.key], len(one.ids)
        ratios = [math.exp(n - b) for n, b in zip(now, one.behaviour, strict=True)]
        if self.name == "grpo":  # DeepSeekMath, equations 3 and 4
            k3 = [math.exp(i - n) - (i - n) - 1 for n, i in zip(now, initial, strict=True)]
            gains = [self.clip(r, a, 0.2, 0.2) - 0.04 * k for r, k in zip(ratios, k3, strict=True)]
            return sum(gains) / length
        if self.name == "dr_grpo":  # no 1 / length: its code has a constant there
            return sum(self.clip(r, a, 0.2, 0.2) for r in ratios) / MAX_TOKENS
        if self.name == "dapo":  # equation 8
            return sum(self.clip(r, a, 0.2, 0.28) for r in ratios)
        if self.name == "gspo":  # equations 5 and 7
            return self.clip(math.prod(ratios) ** (1 / length), a, 3e-4, 4e-4)
        if self.name == "cispo":  # equations 4 and 5: the weight is a constant
            weights = [math.exp(f - b) for f, b in zip(frozen, one.behaviour, strict=True)]
            self.clipped += sum(w > 5.0 for w in weights)
            return sum(min(w, 5.0) * a * n for w, n in zip(weights, now, strict=True))
        if self.name == "rloo":  # likelihood of the whole trace; the constant is one of the run
            return a * sum(now) / MAX_TOKENS
        k2 = [(n - i) ** 2 / 2 for n, i in zip(now, initial, strict=True)]
        gains = [self.clip(r, a, 0.2, 0.2) for r in ratios]
        return sum(g - self.kl_coef * k for g, k in zip(gains, k2, strict=True))

    def clip(self, ratio: float, advantage: float, low: float, high: float) -> float:
        bounded = min(max(ratio, 1 - low), 1 + high) * advantage
        self.clipped += bounded < ratio * advantage
        return min(ratio * advantage, bounded)

    def gradient(self, params: list[float], step: float = 1e-6) -> list[float]:
        found = []
        for index, value in enumerate(params):
            ends = []
            for sign in (1, -1):
                params[index] = value + sign * step
                ends.append(self.loss(params))
            params[index] = value
            found.append((ends[0] - ends[1]) / (2 * step))
        return found


def pipeline_of(config: RLConfig, learner: TwoRanks, traces: Traces) -> Pipeline:
    pairs = tuple(make_pair(f"p{index}") for index in range(60))
    loaded = loaded_set(name="set", pairs=pairs, bad_rows=())
    scorer = Scorer(
        config.reward,
        embedder=Embedder(traces),
        judge=Judge(traces),
        item_tokens=0,
        max_frames=8,
        relevance=Relevance(pairs),
    )
    pipeline = Pipeline(
        config,
        feed=PairFeed([loaded], {"set": 1.0}, batch=PAIRS, seed=0),
        rollout=Engines(traces),
        scorer=scorer,
        decoder=decoder(),
        learner=learner,
        store=None,
    )
    pipeline.sync()
    return pipeline


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("file", FILES)
def test_a_step_of_a_preset_is_the_published_one(file, objective):
    # Each reward with each file and each objective, in half of the combinations.
    reward = REWARDS[(FILES.index(file) + OBJECTIVES.index(objective)) % 2]
    presets = (f"grpo.preset={objective}", f"reward.preset={reward}")
    config = load(RLConfig, ROOT / file, [*presets, *SIZE])
    model, reference = TwoLayers(0), TwoLayers(1)
    params = flat(model)
    traces = Traces(model, NOISE.get(objective, 0.3))
    learner = TwoRanks(config, traces, reference)
    pipeline = pipeline_of(config, learner, traces)
    metrics = pipeline.step().metrics
    pipeline.close()
    asked = pipeline.rollout.asked
    rounds = [[traces.of(request.key) for request in requests] for requests in asked]
    published = Published(
        objective, [one for some in rounds for one in some], reference, config.grpo.kl_coef
    )
    published.give(rounds, params, reward)

    assert learner.loss == pytest.approx(published.loss(params), rel=1e-6, abs=1e-8)
    gradients = [param.grad.flatten() / RANKS for param in model.parameters()]
    expected = torch.tensor(published.gradient(params), dtype=torch.float64)
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=1e-5, atol=1e-7)

    # It was the case that was meant.
    assert expected.abs().max() > 1e-4
    assert bool(published.clipped) == (objective != "rloo")
    assert learner.micro_batches >= 2 * RANKS
    assert any(is_dull(one.key.group) for one in published.traces)
    assert bool(metrics["group/refilled"]) == (objective == "dapo") == (len(rounds) > 1)
    assert metrics["group/no_spread"] == (
        0
        if objective == "rloo"
        else len({one.key.group for one in published.traces if is_dull(one.key.group)})
    )
