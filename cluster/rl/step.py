"""The EG-RL loop. One step: take scored traces, train, publish and pull weights.

    pairs -> [rollout pool] -> trajectories -> [scorer] -> rewards -> advantages
      ^                                                                      |
      +--- version v+1 <- [object store] <- weights <- [learner group] <-----+

What travels: trajectories and rewards by key; pictures once a step through the object store;
weights as buckets through the object store, named by a version. The collector does the upper line
up to the rewards. The collector may work on later steps while the lower line trains this step.
A step is named by the policy version that it trains, so step and version are one number.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder, SharedPictures
from cluster.pools.rollout import RolloutPool
from cluster.rl.collector import BANK_FILE, Collector
from cluster.rl.ledger import Ledger
from cluster.rl.logprob_parity import probe_gaps, worst_gaps
from cluster.rl.metrics import (
    group_metrics,
    reward_metrics,
    rollout_metrics,
    spread_metrics,
    staleness_metrics,
)
from cluster.rl.phase_clock import PhaseClock
from cluster.rl.rounds import round_advantages
from cluster.rl.samples import make_room, remember, replayed_groups, train_sample, train_samples
from cluster.rl.scoring import Scorer
from cluster.rl.staleness import drop_stale
from cluster.run.checkpoints import LEARNER_FOLDER
from cluster.run.trajectory_rows import trajectory_rows
from cluster.weights.sync import WeightSync
from configs.schema import RLConfig
from data.sets.feed import PairFeed
from data.types import Content, ScoredTrajectory, TrainSample, TrajectoryKey
from learner.objectives import TokenScores
from learner.replay import ReplayBuffer


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
        config, version = self.config, self.version
        collected = self.collector.take(version)
        step = drop_stale(collected.traces, version=version, max_staleness=config.max_staleness)
        advantages, penalties = round_advantages(step, config)
        taught = {key.group for key, value in advantages.items() if value}
        with clock.phase("data"):
            replayed, pictures = replayed_groups(
                self.replay,
                2 * config.pairs - len(taught),
                step.pictures,
                version=version,
                decoder=self.collector.decoder,
                media=config.data.media,
            )
        advantages = make_room(advantages, taught, len(replayed))
        with self._learning, clock.phase("train"):
            samples = train_samples(step, advantages, version=version, grpo=config.grpo)
            again = [sample for group in replayed for sample in group.samples]
            trained = self.learner.train_policy([*samples, *again], pictures)
        if not trained.broken:
            remember(self.replay, step, samples)
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
            if config.max_staleness:
                probed = probe_gaps(step, self.version, config, self.rollout, self._score)
                synced |= worst_gaps(trained.metrics, probed)
        metrics = {
            **trained.metrics,
            **penalties,
            **synced,
            **step.metrics,
            **reward_metrics(step.scored),
            **rollout_metrics(step.trajectories, collected.seconds["rollout"]),
            **staleness_metrics(version, [trace.trajectory for trace in step.scored], replayed),
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
            templates=config.data.templates,
        )
        times = clock.metrics(collected.seconds, waited=collected.waited)
        return StepResult(
            metrics={**metrics, **times},
            rows=rows,
            broken=trained.broken,
            examples={trace.reason: trace.detail for trace in step.dropped if trace.detail},
        )

    def sync(self) -> dict[str, float]:
        """Bring the learner's weights to every engine as the current version; see `WeightSync`.

        Raises:
            WeightSyncError: an engine holds other weights than the learner sent.
        """
        return self._weights.sync(self.version)

    @property
    def weights_digest(self) -> str:
        """What tells the weights of the current version from others, see `Published.digest`."""
        return self._weights.digest

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

    def _score_tokens(
        self,
        scored: Sequence[ScoredTrajectory],
        contents: Mapping[TrajectoryKey, Content],
        pictures: SharedPictures,
    ) -> Mapping[str, TokenScores]:
        """Return log-probabilities that learner and reference give to traces, by key as text."""
        grpo, version = self.config.grpo, self.version
        traces = [trace.trajectory for trace in scored]
        samples = [
            train_sample(trace, contents[trace.key], advantage=0.0, version=version, grpo=grpo)
            for trace in traces
        ]
        return self._score(samples, pictures)

    def _score(
        self, samples: Sequence[TrainSample], pictures: SharedPictures
    ) -> Mapping[str, TokenScores]:
        """Return what learner and reference give to samples; wait until the learner is free."""
        with self._learning:
            return self.learner.score_policy(samples, pictures)
