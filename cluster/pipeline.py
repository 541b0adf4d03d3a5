"""The EG-RL loop. One step: sample traces, embed and rank them, train, publish and pull weights.

    pairs -> [rollout pool] -> trajectories -> [scorer] -> rewards -> advantages
      ^                                                                      |
      +--- version v+1 <- [object store] <- weights <- [learner group] <-----+

What travels: trajectories and rewards by key; pictures once a step through the object store;
weights as buckets through the object store, named by a version.
"""

import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.checkpoints import LEARNER_FOLDER
from cluster.learner_group import LearnerGroup
from cluster.pools import RolloutPool
from cluster.rounds import SampledRound, join_rounds, pairs_wanted
from cluster.scoring import Scorer
from cluster.trajectory_rows import trajectory_rows
from configs.schema import RLConfig
from data.datasets import PairFeed
from data.errors import EmbedRLError, WeightSyncError
from data.media import load_pictures
from data.prompts import reasoner_content, uris_shown
from data.types import (
    Content,
    DroppedTrajectory,
    GenerationRequest,
    GroupKey,
    Pair,
    Pictures,
    ScoredTrajectory,
    Side,
    TrainSample,
    Trajectory,
    TrajectoryKey,
)
from evaluation.metrics import hit_at_1
from learner.advantages import step_advantages
from learner.policy import TokenScores, shaped_rewards
from learner.replay import KeptGroup, ReplayBuffer

log = logging.getLogger(__name__)
SHOWN_REASONS = 3
"""Failures spelled out in one line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did, for the run folder, the tracker and the console."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    """One per trajectory, dropped ones included."""
    broken: tuple[str, ...] = ()
    """Trajectories of a step that was skipped, its loss or gradient being NaN or infinite."""


class PhaseClock:
    """Seconds per phase of one step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.phases: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as that phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """Return `time/<phase>_s`, `time/other_s` and their sum `time/step_s`."""
        total = time.perf_counter() - self.started
        named = {f"time/{name}_s": seconds for name, seconds in self.phases.items()}
        return {
            **named,
            "time/other_s": total - sum(self.phases.values()),
            "time/step_s": total,
        }


class Pipeline:
    """Runs steps over pools that exist; owns the policy version and the order of pairs."""

    def __init__(
        self,
        config: RLConfig,
        *,
        feed: PairFeed,
        rollout: RolloutPool,
        scorer: Scorer,
        learner: LearnerGroup,
        store: Any,
    ) -> None:
        self.config = config
        self.feed = feed
        self.rollout = rollout
        self.scorer = scorer
        self.learner = learner
        self.store = store
        self.version = 1
        self.serial = 0
        self.max_frames = config.data.media.max_frames
        self.replay = ReplayBuffer(groups=config.grpo.replay_groups, age=config.grpo.replay_age)

    def step(self) -> StepResult:
        """Train on one step's pairs; both sides are reasoned about, n traces each."""
        clock = PhaseClock()
        version = self.version
        rounds: list[SampledRound] = []
        found: list[int] = []
        while pairs := self._pairs_wanted(rounds, found):
            rounds.append(self._sample(pairs, clock))
            found.append(self._count_spread(rounds[-1]))
        with clock.phase("data"):
            step = join_rounds(rounds)
            replayed, pictures = self._replay(step.pictures, sum(found))
        with clock.phase("train"):
            rewards, penalties = self._shaped_rewards(step)
            advantages, skipped = step_advantages(rewards, self.config.grpo)
            samples = self._samples(step.scored, advantages, step.contents)
            again = [sample for group in replayed for sample in group.samples]
            trained = self.learner.train_policy([*samples, *again], pictures)
        if not trained.broken:
            self._remember(step.scored, samples)
        self.version += 1
        with clock.phase("sync"):
            synced = self.sync()
        reasons = Counter(one.reason for one in step.dropped)
        metrics = {
            **trained.metrics,
            **penalties,
            **synced,
            **step.metrics,
            **_reward_metrics(step.scored),
            **_rollout_metrics(step.trajectories, clock.phases["rollout"]),
            **_staleness(version, step.trajectories, replayed),
            **_group_metrics(step.scored),
            "group/skipped": float(skipped),
            "group/refill_rounds": float(len(rounds) - 1),
            "group/refilled": float(sum(found[1:])),
            "group/replayed": float(len(replayed)),
            "version": float(version),
            **{f"dropped/{reason}": float(count) for reason, count in reasons.items()},
            "dropped/total": float(len(step.dropped)),
        }
        rows = trajectory_rows(
            step.trajectories,
            step.scored,
            step.dropped,
            pairs=step.pairs,
            contents=step.contents,
            advantages=advantages,
            templates=self.config.data.templates,
        )
        return StepResult(metrics={**metrics, **clock.metrics()}, rows=rows, broken=trained.broken)

    def _sample(self, count: int, clock: PhaseClock) -> SampledRound:
        """Draw pairs, sample their traces, and score these in a round of their own."""
        with clock.phase("data"):
            pairs = self._next_pairs(count)
            requests = self._requests(pairs)
            pictures, requests, undecoded = self._with_pictures(pairs, requests)
            contents = {request.key: request.content for request in requests}
        with clock.phase("rollout"):
            trajectories, unsampled = self.rollout.generate(requests, pictures)
        with clock.phase("reward"):
            scores = self.scorer.score(trajectories, pairs, pictures)
        with clock.phase("train"):
            tokens = self._score_tokens(scores.scored, contents, pictures)
        return SampledRound(
            pairs=pairs,
            contents=contents,
            pictures=pictures,
            trajectories=trajectories,
            scored=scores.scored,
            dropped=[*undecoded, *unsampled, *scores.dropped],
            tokens=tokens,
            metrics=scores.metrics,
        )

    def sync(self) -> dict[str, float]:
        """Publish the learner's weights as the current version and have every engine load them.

        Raises:
            WeightSyncError: an engine holds something else than what was sent.
        """
        self.learner.publish(self.version, self.store)
        try:
            reports = self.rollout.pull_weights(self.version)
        except EmbedRLError:
            self.learner.check()  # the buckets vanish with the rank that put them
            raise
        wrong = {report.mismatched for report in reports if report.mismatched}
        if wrong:
            raise WeightSyncError(
                f"version {self.version}: engines hold other bits than the learner sent for "
                f"{sorted(set().union(*wrong))[:5]}; the run stops, its last checkpoint is good"
            )
        return {
            "sync/checksum_ok": 1.0,
            "sync/tensors": float(sum(report.tensors for report in reports)),
            "sync/bytes": float(sum(report.bytes for report in reports)),
        }

    def held_out(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Return hit@1 of greedy traces on held-out pairs, candidates reasoned about as well."""
        ends = {(pair.item(side).key(), side): pair for pair in pairs for side in Side}
        keys = {
            end: TrajectoryKey(GroupKey(index, pair.pair_id, end[1]), 0)
            for index, (end, pair) in enumerate(ends.items())
        }
        requests = [
            GenerationRequest(
                key=keys[end], content=self._content(pair, end[1]), seed=0, greedy=True
            )
            for end, pair in ends.items()
        ]
        decoded, failed = self._decoded(pairs)
        for reason in failed.values():
            log.warning("held-out picture left out: %s", reason)
        pictures = ray.put(decoded)
        trajectories, lost = self.rollout.generate(requests, pictures)
        texts = {one.key: one.text for one in trajectories}
        inputs = [
            self.scorer.request(key, ends[end], texts[key])
            for end, key in keys.items()
            if key in texts
        ]
        vectors, unembedded = self.scorer.embedder.embed(inputs, pictures)
        found: dict[Side, dict[str, np.ndarray]] = {side: {} for side in Side}
        for (content, side), key in keys.items():
            if str(key) in vectors:
                found[side][content] = vectors[str(key)]
        kept = [
            pair for pair in pairs if all(pair.item(side).key() in found[side] for side in Side)
        ]
        if len(kept) < len(pairs):
            reasons = [f"{one.key}: {one.reason}: {one.detail}" for one in lost]
            reasons += [f"{key}: not embedded: {reason}" for key, reason in unembedded.items()]
            log.warning(
                "held-out: %d of %d pairs left out (%d traces, %d embeddings failed): %s",
                len(pairs) - len(kept),
                len(pairs),
                len(lost),
                len(unembedded),
                "; ".join(reasons[:SHOWN_REASONS]),
            )
        return {"eval/hit_at_1": hit_at_1(kept, found[Side.QUERY], found[Side.TARGET])}

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know besides what `save` writes."""
        return {
            "version": self.version,
            "serial": self.serial,
            "feed": self.feed.state(),
            "replay": self.replay.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state; the next `sync` gives the engines the weights."""
        self.version = state["version"]
        self.serial = state["serial"]
        self.feed.restore(state["feed"])
        self.replay.restore(state["replay"])

    def save(self, folder: Path) -> None:
        """Write the learner's checkpoint and the scorer's memory."""
        self.learner.save(folder / LEARNER_FOLDER)
        self.scorer.save(folder)

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Go on from what `save` wrote, and from the state that belongs to it."""
        self.learner.load(folder / LEARNER_FOLDER)
        self.scorer.restore(folder)
        self.restore(state)

    def _pairs_wanted(self, rounds: Sequence[SampledRound], found: Sequence[int]) -> int:
        asked = [len(one.pairs) for one in rounds]
        return pairs_wanted(asked, found, pairs=self.config.pairs, refill=self.config.grpo.refill)

    def _count_spread(self, sampled: SampledRound) -> int:
        """Return how many groups of a round have something to learn from."""
        rewards, _ = self._shaped_rewards(sampled)
        advantages, _ = step_advantages(rewards, self.config.grpo)
        return len({key.group for key in advantages})

    def _next_pairs(self, count: int) -> dict[int, Pair]:
        """Return the next pairs by the serial numbers that identify their groups."""
        pairs = self.feed.next(count)
        numbered = {self.serial + index: pair for index, pair in enumerate(pairs)}
        self.serial += len(pairs)
        return numbered

    def _content(self, pair: Pair, side: Side) -> Content:
        return reasoner_content(
            pair, side, templates=self.config.data.templates, max_frames=self.max_frames
        )

    def _requests(self, pairs: Mapping[int, Pair]) -> list[GenerationRequest]:
        requests = []
        for serial, pair in pairs.items():
            for side in Side:
                content = self._content(pair, side)
                for sibling in range(self.config.siblings):
                    key = TrajectoryKey(GroupKey(serial, pair.pair_id, side), sibling)
                    seed = zlib.crc32(f"{self.config.run.seed}/{key}".encode())
                    requests.append(GenerationRequest(key=key, content=content, seed=seed))
        return requests

    def _with_pictures(
        self, pairs: Mapping[int, Pair], requests: list[GenerationRequest]
    ) -> tuple[Any, list[GenerationRequest], list[DroppedTrajectory]]:
        """Decode the step's pictures once and put them into the object store."""
        decoded, failed = self._decoded(pairs.values())
        kept, dropped = [], []
        for request in requests:
            group = request.key.group
            item = pairs[group.serial].item(group.side)
            bad = [failed[uri] for uri in item.uris if uri in failed]
            if bad:
                dropped.append(DroppedTrajectory(request.key, "bad_picture", bad[0]))
            else:
                kept.append(request)
        return ray.put(decoded), kept, dropped

    def _decoded(self, pairs: Iterable[Pair]) -> tuple[Pictures, dict[str, str]]:
        """Return the pictures that the pairs show, and the reason for each that failed."""
        items = (pair.item(side) for pair in pairs for side in Side)
        return load_pictures(uris_shown(items, self.max_frames), self.config.data.media)

    def _score_tokens(
        self,
        scored: Sequence[ScoredTrajectory],
        contents: Mapping[TrajectoryKey, Content],
        pictures: Any,
    ) -> Mapping[str, TokenScores]:
        """Return what learner and reference give to the traces, where the KL is in the reward."""
        grpo = self.config.grpo
        if grpo.kl == "none" or grpo.kl_in != "reward" or not scored:
            return {}
        unpaid = dict.fromkeys((one.trajectory.key for one in scored), 0.0)
        return self.learner.score_policy(self._samples(scored, unpaid, contents), pictures)

    def _shaped_rewards(
        self, sampled: SampledRound
    ) -> tuple[dict[TrajectoryKey, float], dict[str, float]]:
        """Return the rewards less the penalties for length and KL, and the penalties' metrics."""
        traces = [one.trajectory for one in sampled.scored]
        return shaped_rewards(
            {one.trajectory.key: one.parts.total for one in sampled.scored},
            {one.key: len(one.response_ids) for one in traces},
            sampled.tokens,
            grpo=self.config.grpo,
            max_tokens=self.config.rollout.sampling.max_tokens,
        )

    def _replay(self, pictures: Any, found: int) -> tuple[list[KeptGroup], Any]:
        """Return recent groups for a step that is short, and its pictures with theirs."""
        drawn = self.replay.draw(2 * self.config.pairs - found, version=self.version)
        uris = {uri for group in drawn for uri in group.uris()}
        if not uris:
            return drawn, pictures
        decoded, failed = load_pictures(uris, self.config.data.media)
        for reason in failed.values():
            log.warning("not replayed: %s", reason)
        kept = [group for group in drawn if not group.uris() & failed.keys()]
        return kept, ray.put({**decoded, **ray.get(pictures)})

    def _remember(self, scored: Sequence[ScoredTrajectory], samples: Sequence[TrainSample]) -> None:
        """Keep the step's own groups for later steps."""
        traces = {str(one.trajectory.key): one.trajectory for one in scored}
        groups: dict[GroupKey, list[TrainSample]] = {}
        for sample in samples:
            groups.setdefault(traces[sample.key].key.group, []).append(sample)
        for some in groups.values():
            oldest = min(traces[sample.key].min_version for sample in some)
            self.replay.add(some, version=oldest)

    def _samples(
        self,
        scored: Sequence[ScoredTrajectory],
        advantages: Mapping[TrajectoryKey, float],
        contents: Mapping[TrajectoryKey, Content],
    ) -> list[TrainSample]:
        grpo = self.config.grpo
        weights = {Side.QUERY: grpo.query_weight, Side.TARGET: grpo.target_weight}
        return [
            TrainSample(
                key=str(one.trajectory.key),
                content=contents[one.trajectory.key],
                prompt_ids=one.trajectory.prompt_ids,
                response_ids=one.trajectory.response_ids,
                advantage=advantages[one.trajectory.key],
                weight=weights[one.trajectory.key.group.side],
                logprobs=one.trajectory.logprobs,
            )
            for one in scored
            if one.trajectory.key in advantages
        ]

    def check_parity(self, result: StepResult) -> None:
        """Refuse a step whose traces the engines did not sample from the learner's weights.

        Apart from `step`, so that what the step did is on disk before the run stops.

        Raises:
            WeightSyncError: their log-probabilities of the same tokens differ too much.
        """
        gap = result.metrics.get("sync/logprob_max_abs_diff", 0.0)
        # A broken step says nothing about the engines: the learner's own values are not finite.
        if not result.broken and not gap <= self.config.logprob_tolerance:
            raise WeightSyncError(
                f"version {result.metrics['version']:.0f}: engine and learner log-probabilities of "
                f"the same tokens differ by {gap:.3g}, more than logprob_tolerance="
                f"{self.config.logprob_tolerance:g}; the engine did not sample from the learner's "
                "weights"
            )


def _mean(scored: Sequence[ScoredTrajectory], read: Callable[[ScoredTrajectory], float]) -> float:
    return float(np.mean([read(one) for one in scored]))


def _reward_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Return the means over the step's scored traces; nothing where there are none."""
    if not scored:
        return {}
    metrics = {
        "reward/total": _mean(scored, lambda one: one.parts.total),
        "reward/format": _mean(scored, lambda one: one.parts.format),
        "reward/outcome": _mean(scored, lambda one: one.parts.outcome),
        "reward/process": _mean(scored, lambda one: one.parts.process),
        "reward/gain": _mean(scored, lambda one: one.parts.gain),
        "reward/length": _mean(scored, lambda one: one.parts.length),
        "rank/accuracy": _mean(scored, lambda one: one.parts.accuracy),
        "rank/margin": _mean(scored, lambda one: one.parts.margin),
        "rank/gold_mean": _mean(scored, lambda one: float(one.parts.rank)),
    }
    for side in Side:
        some = [one for one in scored if one.trajectory.key.group.side is side]
        if some:
            metrics[f"reward/{side}"] = _mean(some, lambda one: one.parts.total)
    return metrics


def _group_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Return how many groups were scored, and of how many only one trace was left."""
    sizes = Counter(one.trajectory.key.group for one in scored)
    single = sum(size == 1 for size in sizes.values())
    return {"group/count": float(len(sizes)), "group/single": float(single)}


def _staleness(
    version: int, trajectories: Sequence[Trajectory], replayed: Sequence[KeptGroup]
) -> dict[str, float]:
    """Return how many versions the oldest sample lags behind the one that it trains."""
    versions = [one.min_version for one in trajectories] + [group.version for group in replayed]
    return {"staleness/max": float(version - min(versions, default=version))}


def _rollout_metrics(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    tokens = [len(one.response_ids) for one in trajectories]
    if not tokens:
        return {}
    return {
        "rollout/tokens_per_s": sum(tokens) / seconds,
        "rollout/tokens_mean": float(np.mean(tokens)),
        "rollout/cut_share": float(np.mean([one.finish == "length" for one in trajectories])),
    }
