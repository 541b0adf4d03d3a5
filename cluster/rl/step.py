"""The EG-RL loop. One step: take scored traces, train, publish and pull weights.

    pairs -> [rollout pool] -> trajectories -> [scorer] -> rewards -> advantages
      ^                                                                      |
      +--- version v+1 <- [object store] <- weights <- [learner group] <-----+

What travels: trajectories and rewards by key; pictures once a step through the object store;
weights as buckets through the object store, named by a version. The upper line is the collector's,
who may be some steps ahead of the lower one.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder, SharedPictures, share_pictures
from cluster.pools.rollout import RolloutPool
from cluster.rl.collector import BANK_FILE, Collector
from cluster.rl.ledger import Ledger
from cluster.rl.metrics import (
    group_metrics,
    reward_metrics,
    rollout_metrics,
    spread_metrics,
    staleness_metrics,
)
from cluster.rl.phase_clock import PhaseClock
from cluster.rl.rounds import SampledRound, round_advantages
from cluster.rl.scoring import Scorer
from cluster.run.checkpoints import LEARNER_FOLDER
from cluster.run.trajectory_rows import trajectory_rows
from cluster.weights.sync import WeightSync
from configs.schema import RLConfig
from data.errors import WeightSyncError
from data.media import frames_only
from data.sets.feed import PairFeed
from data.types import (
    Content,
    DroppedTrajectory,
    GenerationRequest,
    GroupKey,
    Pair,
    ScoredTrajectory,
    Side,
    TrainSample,
    Trajectory,
    TrajectoryKey,
)
from evaluation.metrics import held_out_metrics
from learner.objectives import TokenScores
from learner.replay import KeptGroup, ReplayBuffer

log = logging.getLogger(__name__)
PARITY = "sync/logprob_max_abs_diff"
PROBES, PROBE_TOKENS = 8, 8
"""Traces that show after a sync what the engines sample from; their length."""
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
    examples: Mapping[str, str] = field(default_factory=dict)
    """Why in detail one trace was dropped, by the reasons that have details."""


class Pipeline:
    """Runs steps over pools that exist; owns the policy version and what was collected for it.

    Close it when it is no longer used: it may be collecting.
    """

    def __init__(
        self,
        config: RLConfig,
        *,
        feed: PairFeed,
        rollout: RolloutPool,
        scorer: Scorer,
        decoder: Decoder,
        learner: LearnerGroup,
        store: Any,
    ) -> None:
        self.config = config
        self.rollout = rollout
        self.scorer = scorer
        self.learner = learner
        self.version = 1
        self.ledger = Ledger(siblings=config.siblings)
        self.replay = ReplayBuffer(groups=config.grpo.replay_groups, age=config.grpo.replay_age)
        self._learning = threading.Lock()
        """Held by the thread that uses the learner: its ranks must get all calls in one order."""
        self._weights = WeightSync(learner, rollout, store, learning=self._learning)
        self.collector = Collector(
            config,
            feed=feed,
            rollout=rollout,
            scorer=scorer,
            decoder=decoder,
            score_tokens=self._score_tokens,
        )
        self._collected = self.collector.state()
        self._bank = scorer.bank.copy()

    def step(self) -> StepResult:
        """Train on one step's pairs; both sides are reasoned about, n traces each."""
        clock = PhaseClock()
        version = self.version
        collected = self.collector.take(version)
        step = self._within_bound(collected.traces)
        advantages, penalties = round_advantages(step, self.config)
        taught = {key.group for key, value in advantages.items() if value}
        with clock.phase("data"):
            replayed, pictures = self._replay(step.pictures, len(taught))
        # Each replayed group takes the place of one that teaches nothing.
        replaced = [key.group for key in advantages if key.group not in taught]
        replaced = list(dict.fromkeys(replaced))[: len(replayed)]
        advantages = {k: value for k, value in advantages.items() if k.group not in replaced}
        with self._learning, clock.phase("train"):
            samples = self._samples(step, advantages)
            again = [sample for group in replayed for sample in group.samples]
            trained = self.learner.train_policy([*samples, *again], pictures)
        if not trained.broken:
            self._remember(step, samples)
        learnt = {key for key in advantages if key.group in taught}
        ended = self.ledger.settle(
            step,
            learnt,
            broken=bool(trained.broken),
            drawn=collected.state["serial"],
            issued=self.collector.issued,
        )
        self._collected, self._bank = collected.state, collected.bank
        self.version += 1
        with clock.phase("sync"):
            synced = self.sync()
            if self.config.max_staleness:
                gaps = [trained.metrics.get(PARITY), self._probe(step)]
                if known := [gap for gap in gaps if gap is not None]:
                    synced[PARITY] = float(np.max(known))  # NaN where one is
        metrics = {
            **trained.metrics,
            **penalties,
            **synced,
            **step.metrics,
            **reward_metrics(step.scored),
            **rollout_metrics(step.trajectories, collected.seconds["rollout"]),
            **staleness_metrics(version, [one.trajectory for one in step.scored], replayed),
            **group_metrics(step.scored),
            **ended,
            **spread_metrics(
                step.scored, taught=len(taught), refilled=collected.refilled, replayed=replayed
            ),
            "version": float(version),
        }
        rows = trajectory_rows(
            step.trajectories,
            step.scored,
            step.dropped,
            pairs=step.pairs,
            contents=step.contents,
            advantages=advantages,
            taught=learnt,
            broken=bool(trained.broken),
            templates=self.config.data.templates,
        )
        times = clock.metrics(collected.seconds, waited=collected.waited)
        return StepResult(
            metrics={**metrics, **times},
            rows=rows,
            broken=trained.broken,
            examples={one.reason: one.detail for one in step.dropped if one.detail},
        )

    def sync(self) -> dict[str, float]:
        """Bring the learner's weights to every engine as the current version; see `WeightSync`.

        Raises:
            WeightSyncError: an engine holds something else than what was sent.
        """
        return self._weights.sync(self.version)

    def held_out(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Return hit@1 of greedy traces on held-out pairs, candidates reasoned about as well.

        See `held_out_metrics`: pairs that failed are left out, and the metric where none is left.
        """
        ends = {(pair.item(side).key(), side): pair for pair in pairs for side in Side}
        keys = {
            end: TrajectoryKey(GroupKey(index, pair.pair_id, end[1]), 0)
            for index, (end, pair) in enumerate(ends.items())
        }
        requests = [
            GenerationRequest(
                key=keys[end], content=self.collector.content(pair, end[1]), seed=0, greedy=True
            )
            for end, pair in ends.items()
        ]
        pictures, failed = self.collector.share_pictures_of(pairs)
        for reason in failed.values():
            log.warning("held-out picture left out: %s", reason)
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
        return held_out_metrics(
            "eval/hit_at_1",
            kept,
            found[Side.QUERY],
            found[Side.TARGET],
            relevance=self.scorer.relevance,
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know besides what `save` writes.

        What was collected ahead is left out: a resumed run collects it again.
        """
        return {
            "version": self.version,
            **self._collected,
            "replay": self.replay.state(),
            "accounts": self.ledger.state(),
        }

    def save(self, folder: Path) -> None:
        """Write the learner's checkpoint and the candidate bank."""
        with self._learning:
            self.learner.save(folder / LEARNER_FOLDER)
        self._bank.save(folder / BANK_FILE)

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Go on from what `save` wrote and the state that belongs to it; before the first step.

        The next `sync` gives the engines the weights.
        """
        self.learner.load(folder / LEARNER_FOLDER)
        self.version = state["version"]
        self.replay.restore(state["replay"])
        self.ledger.restore(state["accounts"])
        self.collector.restore(state, folder)
        self._collected, self._bank = self.collector.state(), self.scorer.bank.copy()

    def close(self) -> None:
        """Stop collecting."""
        self.collector.close()

    def _probe(self, step: SampledRound) -> float | None:
        """Return the largest gap between engines' and learner's log-probabilities of new tokens.

        None where there were none. Few tokens of few traces, ahead of the next step's that wait:
        that every engine holds the learner's weights, their checksums have shown. Without staleness
        a step's own traces show the gap for nothing.
        """
        contents = {key.group: content for key, content in step.contents.items()}
        requests = [
            GenerationRequest(
                key=TrajectoryKey(group, self.config.siblings),
                content=content,
                seed=self.version,
                max_tokens=PROBE_TOKENS,
            )
            for group, content in contents.items()
        ][:PROBES]
        traces, dropped = self.rollout.generate(requests, step.pictures, urgent=True)
        for one in dropped:
            log.warning("parity of version %d: %s: %s", self.version, one.key, one.detail)
        samples = [
            self._sample(trace, contents[trace.key.group], advantage=0.0) for trace in traces
        ]
        if not samples:
            return None
        with self._learning:
            scores = self.learner.score_policy(samples, step.pictures)
        gaps = [np.abs(scores[one.key].own - one.logprobs).max() for one in samples]
        return float(np.max(gaps))

    def _within_bound(self, step: SampledRound) -> SampledRound:
        """Return a step without the traces that began under weights that are too old."""
        oldest = self.version - self.config.max_staleness
        late = [one.trajectory for one in step.scored if one.trajectory.min_version < oldest]
        if not late:
            return step
        bound = f"expected weights of version {oldest} or newer, found"
        dropped = [DroppedTrajectory(t.key, "stale", f"{bound} {t.min_version}") for t in late]
        keys = {trace.key for trace in late}
        scored = [one for one in step.scored if one.trajectory.key not in keys]
        return replace(step, scored=scored, dropped=[*step.dropped, *dropped])

    def _score_tokens(
        self,
        scored: Sequence[ScoredTrajectory],
        contents: Mapping[TrajectoryKey, Content],
        pictures: SharedPictures,
    ) -> Mapping[str, TokenScores]:
        """Return what learner and reference give to the traces; waits while the learner trains."""
        traces = [one.trajectory for one in scored]
        samples = [self._sample(trace, contents[trace.key], advantage=0.0) for trace in traces]
        with self._learning:
            return self.learner.score_policy(samples, pictures)

    def _replay(
        self, pictures: SharedPictures, found: int
    ) -> tuple[list[KeptGroup], SharedPictures]:
        """Return recent groups for a step that is short, and its pictures with theirs."""
        drawn = self.replay.draw(2 * self.config.pairs - found, version=self.version)
        uris = {uri for group in drawn for uri in group.uris()}
        if not uris:
            return drawn, pictures
        frames = frames_only(picture for group in drawn for picture in group.pictures())
        media = self.config.data.media
        decoded, failed = self.collector.decoder.share(uris, media, frames=frames)
        for reason in failed.values():
            log.warning("not replayed: %s", reason)
        kept = [group for group in drawn if not group.uris() & failed.keys()]
        return kept, share_pictures({**ray.get(decoded.ref), **ray.get(pictures.ref)})

    def _remember(self, step: SampledRound, samples: Sequence[TrainSample]) -> None:
        """Keep the step's own groups for later steps."""
        traces = {str(one.trajectory.key): one.trajectory for one in step.scored}
        groups: dict[GroupKey, list[TrainSample]] = {}
        for sample in samples:
            if sample.key in step.tokens:
                sample = replace(sample, old_logprobs=step.tokens[sample.key].own)
            groups.setdefault(traces[sample.key].key.group, []).append(sample)
        for some in groups.values():
            oldest = min(traces[sample.key].min_version for sample in some)
            self.replay.add(some, version=oldest)

    def _samples(
        self, step: SampledRound, advantages: Mapping[TrajectoryKey, float]
    ) -> list[TrainSample]:
        return [
            self._sample(
                trace,
                step.contents[trace.key],
                advantage=advantages[trace.key],
                scores=step.tokens.get(str(trace.key)),
            )
            for trace in (one.trajectory for one in step.scored)
            if trace.key in advantages
        ]

    def _sample(
        self,
        trace: Trajectory,
        content: Content,
        *,
        advantage: float,
        scores: TokenScores | None = None,
    ) -> TrainSample:
        grpo = self.config.grpo
        old = trace.logprobs if scores is None else scores.own
        query = trace.key.group.side is Side.QUERY
        return TrainSample(
            key=str(trace.key),
            content=content,
            prompt_ids=trace.prompt_ids,
            response_ids=trace.response_ids,
            advantage=advantage,
            weight=grpo.query_weight if query else grpo.target_weight,
            logprobs=trace.logprobs,
            # The learner no longer has the weights under which an older trace was sampled.
            old_logprobs=None if trace.min_version == self.version else old,
        )

    def check_parity(self, result: StepResult) -> None:
        """Refuse a step whose traces the engines did not sample from the learner's weights.

        Apart from `step`, so that what the step did is on disk before the run stops.

        Raises:
            WeightSyncError: their log-probabilities of the same tokens differ too much.
        """
        gap = result.metrics.get(PARITY, 0.0)
        # A broken step says nothing about the engines: the learner's own values are not finite.
        if not result.broken and not gap <= self.config.logprob_tolerance:
            raise WeightSyncError(
                f"version {result.metrics['version']:.0f}: engine and learner log-probabilities of "
                f"the same tokens differ by {gap:.3g}, more than logprob_tolerance="
                f"{self.config.logprob_tolerance:g}; the engine did not sample from the learner's "
                "weights"
            )
