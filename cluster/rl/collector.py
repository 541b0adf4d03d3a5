"""What a step trains on, collected ahead of it: pairs drawn, traces sampled, embedded, and paid.

    pairs -> [feed thread] -> requests -> [sampling thread] -> traces -> [scoring thread] -> take()
             one round ahead              one admitted step     |        one round at a time
                                          at a time             +-> [embedding thread]
                                                                    each trace once it is finished

Sampling for step n begins only when the engines hold version n - `max_staleness` or newer, so no
token of step n comes from an older version. At most `max_staleness` + 1 steps are under way. With 0
nothing overlaps but the decoding of pictures: the loop is synchronous. With `stale=drop` one more
step is admitted, and `take`'s caller drops what is too old.
"""

import itertools
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.picture_retry import read_patiently
from cluster.pictures import Decoder, SharedPictures
from cluster.pools.rollout import RolloutPool
from cluster.rl.phase_clock import PhaseClock
from cluster.rl.rounds import SampledRound, count_spread, join_rounds, pairs_wanted
from cluster.rl.scoring import Embedding, Scorer
from cluster.rl.staleness import REMIND_S, StepBuffer, newest_admitted
from configs.schema import RLConfig
from data.media.frames import frames_only
from data.prompts import pictures_of, reasoner_content
from data.sets.feed import PairFeed
from data.types import (
    Content,
    DroppedTrajectory,
    GenerationRequest,
    GroupKey,
    Pair,
    ScoredTrajectory,
    Side,
    Trajectory,
    TrajectoryKey,
)
from learner.objectives import TokenScores
from reward.bank import CandidateBank

log = logging.getLogger(__name__)
BANK_FILE = "bank.npz"
CLOSE_S = 30.0
"""Longest wait for what is under way when nothing more is collected."""

ScoreTokens = Callable[
    [Sequence[ScoredTrajectory], Mapping[TrajectoryKey, Content], SharedPictures],
    Mapping[str, TokenScores],
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedStep:
    """One step's traces with their rewards, and where the collection stands after it."""

    traces: SampledRound
    """All rounds as one."""
    refilled: Sequence[int]
    """Groups with spread in their rewards, one count for each round after the first."""
    state: Mapping[str, Any]
    """Of the feed, for a checkpoint."""
    bank: CandidateBank
    seconds: Mapping[str, float]
    """By phase; those of a step that was collected ahead ran beside the training."""
    waited: float
    """Seconds for which the caller of `take` had nothing to do."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A round that is not sampled yet."""

    pairs: Mapping[int, Pair]
    requests: Sequence[GenerationRequest]
    pictures: SharedPictures
    dropped: Sequence[DroppedTrajectory]
    state: Mapping[str, Any]
    """Of the feed after it."""


@dataclass(frozen=True, slots=True)
class _Traces:
    """A round that is not scored yet."""

    drawn: _Drawn
    trajectories: Sequence[Trajectory]
    dropped: Sequence[DroppedTrajectory]
    embedded: Sequence[Future[Embedding]]
    """The traces' embeddings, which may still be under way."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A step whose rounds are being scored."""

    rounds: Sequence[Future[tuple[SampledRound, CandidateBank]]]
    state: Mapping[str, Any]
    clock: PhaseClock


class Collector:
    """Draws pairs in order and collects one step after another; owns feed and scorer.

    ``score_tokens`` returns what learner and reference give to traces, by key as text; it is
    called from the scoring thread.
    """

    def __init__(
        self,
        config: RLConfig,
        *,
        feed: PairFeed,
        rollout: RolloutPool,
        scorer: Scorer,
        decoder: Decoder,
        score_tokens: ScoreTokens,
    ) -> None:
        self.config = config
        self.feed = feed
        self.rollout = rollout
        self.scorer = scorer
        self.decoder = decoder
        self.serial = 0
        """Number of the next pair to draw; groups are identified by it."""
        self.issued = 0
        """Pairs whose traces were asked for."""
        self._score_tokens = score_tokens
        self._feeding = ThreadPoolExecutor(1, "feed")
        self._embedding = ThreadPoolExecutor(1, "embedding")
        self._scoring = ThreadPoolExecutor(1, "scoring")
        self._ahead: Future[_Drawn] | None = None
        """The next round where its size is known already."""
        self._thread: threading.Thread | None = None
        self._buffer: StepBuffer[_Sampled] = StepBuffer()
        self.wait: Callable[[float], object] = self._buffer.pause
        """Between tries to read pictures."""
        self.close_s = CLOSE_S

    def state(self) -> dict[str, Any]:
        """Return where the next step begins."""
        return {"serial": self.serial, "feed": self.feed.state()}

    def restore(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a step's `state`, and from its bank in ``folder``; before the first `take`."""
        self.serial = self.issued = state["serial"]
        self.feed.restore(state["feed"])
        self.scorer.bank.load(folder / BANK_FILE)

    def take(self, step: int) -> CollectedStep:
        """Return what a step trains on, and admit the steps that may follow it.

        Steps are taken in order, each when the engines hold the weights of that version.

        Raises:
            Exception: what ended the collection.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._collect, args=(step,), name="sampling", daemon=True
            )
            self._thread.start()
        began = time.perf_counter()
        self._buffer.admit(newest_admitted(step, self.config))
        sampled = self._buffer.take(f"step {step}")
        while wait(sampled.rounds, timeout=REMIND_S).not_done:
            log.warning("step %d: still waiting for its traces to be scored", step)
        done = [future.result() for future in sampled.rounds]
        rounds = [scored for scored, _ in done]
        waited = time.perf_counter() - began
        return CollectedStep(
            traces=join_rounds(rounds),
            refilled=[count_spread(scored, self.config) for scored in rounds[1:]],
            state=sampled.state,
            bank=done[-1][1],
            seconds=sampled.clock.phases,
            waited=waited,
        )

    def close(self) -> None:
        """Stop every thread after its current work; wait `close_s` seconds for them at most."""
        self._buffer.close()
        closing = threading.Thread(target=self._join, name="closing", daemon=True)
        closing.start()
        closing.join(self.close_s)
        if closing.is_alive():
            log.warning(
                "what was being collected did not end within %g s; it ends with its pools",
                self.close_s,
            )

    def content(self, pair: Pair, side: Side) -> Content:
        """Return what the Reasoner reads of one side of a pair."""
        return reasoner_content(
            pair,
            side,
            templates=self.config.data.templates,
            max_frames=self.config.data.media.max_frames,
            item_tokens=self.config.data.item_tokens,
        )

    def share_pictures_of(
        self, pairs: Iterable[Pair], *, patiently: bool = False
    ) -> tuple[SharedPictures, Mapping[str, str]]:
        """Share the pictures that the pairs show; return also the reason for each that failed.

        ``patiently``: where most fail, wait for them to come back.

        Raises:
            NothingToTrainOn: they did not.
        """
        media = self.config.data.media
        items = (pair.item(side) for pair in pairs for side in Side)
        shown = [picture for item in items for picture in pictures_of(item, media.max_frames)]
        uris = {picture.uri for picture in shown}
        share = partial(self.decoder.share, limits=media, frames=frames_only(shown))
        return read_patiently(uris, share, self.wait) if patiently else share(uris)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        for executor in (self._feeding, self._embedding, self._scoring):
            executor.shutdown(cancel_futures=True)

    def _collect(self, first: int) -> None:
        """Run the sampling thread."""
        try:
            for step in itertools.count(first):
                if not self._buffer.wait_until_admitted(step):
                    return
                self._buffer.put(self._sample_step(step))
        except BaseException as error:  # whatever it is, the thread that takes must see it
            self._buffer.fail(error)

    def _sample_step(self, step: int) -> _Sampled:
        """Sample a step's rounds, each handed on to be scored; refills wait for the scores."""
        clock = PhaseClock()
        asked: list[int] = []
        spread: list[int] = []
        rounds = []
        refill = self.config.grpo.refill
        while count := pairs_wanted(asked, spread, pairs=self.config.pairs, refill=refill):
            drawn = self._draw(count, clock)
            traces = self._sample(drawn, clock)
            rounds.append(self._scoring.submit(self._score, traces, step, clock))
            if not refill or self._buffer.closed:  # then nobody takes the step
                break
            scored, _ = rounds[-1].result()
            asked.append(len(scored.pairs))
            spread.append(count_spread(scored, self.config))
        return _Sampled(rounds, drawn.state, clock)

    def _draw(self, count: int, clock: PhaseClock) -> _Drawn:
        """Return the next round, and have the one after it drawn while this one is sampled."""
        with clock.phase("data"):
            coming = self._ahead or self._feeding.submit(self._prepare, count)
            drawn = coming.result()
            self.issued = drawn.state["serial"]
        # The size of a refill is known when the round before it is scored.
        if not self.config.grpo.refill:
            self._ahead = self._feeding.submit(self._prepare, count)
        return drawn

    def _prepare(self, count: int) -> _Drawn:
        """Draw pairs and have their pictures decoded."""
        pairs = self._next_pairs(count)
        state = self.state()
        pictures, requests, undecoded = self._with_pictures(pairs, self._requests(pairs))
        return _Drawn(pairs, requests, pictures, undecoded, state)

    def _sample(self, drawn: _Drawn, clock: PhaseClock) -> _Traces:
        """Sample a round's traces; what is done is embedded at once."""
        trajectories: list[Trajectory] = []
        dropped = list(drawn.dropped)
        embedded = []
        with clock.phase("rollout"):
            for traces, lost in self.rollout.stream(drawn.requests, drawn.pictures):
                trajectories += traces
                dropped += lost
                begin = self._embedding.submit(
                    self.scorer.begin, traces, drawn.pairs, drawn.pictures
                )
                embedded.append(begin)
        place = {request.key: index for index, request in enumerate(drawn.requests)}
        trajectories.sort(key=lambda trace: place[trace.key])
        return _Traces(drawn, trajectories, dropped, embedded)

    def _score(
        self, traces: _Traces, step: int, clock: PhaseClock
    ) -> tuple[SampledRound, CandidateBank]:
        """Score a step's traces in a round of their own; return also the bank as it is after."""
        drawn = traces.drawn
        contents = {request.key: request.content for request in drawn.requests}
        with clock.phase("reward"):
            scores = self.scorer.score(
                traces.trajectories,
                drawn.pairs,
                drawn.pictures,
                [begun.result() for begun in traces.embedded],
            )
            bank = self.scorer.bank.copy()
        tokens: Mapping[str, TokenScores] = {}
        # Once closed, the learner is another's: its ranks must not get calls from here in between.
        if not self._buffer.closed and (asked := self._to_score(scores.scored, step)):
            with clock.phase("train"):
                tokens = self._score_tokens(asked, contents, drawn.pictures)
        sampled = SampledRound(
            pairs=drawn.pairs,
            contents=contents,
            pictures=drawn.pictures,
            trajectories=traces.trajectories,
            scored=scores.scored,
            dropped=[*traces.dropped, *scores.dropped],
            tokens=tokens,
            metrics=scores.metrics,
        )
        return sampled, bank

    def _to_score(self, scored: Sequence[ScoredTrajectory], step: int) -> list[ScoredTrajectory]:
        """Return the traces that need what the learner's own model gives to them.

        With `tis_cap`, those that were sampled by older weights than the step trains: no later
        pass can tell the engine's rounding from what the learner has learnt since. A trace that
        may be replayed will be such a trace.
        """
        grpo = self.config.grpo
        if grpo.kl != "none" and grpo.kl_in == "reward":
            return list(scored)
        if not grpo.tis_cap:
            return []
        return [
            trace for trace in scored if grpo.replay_groups or trace.trajectory.min_version < step
        ]

    def _next_pairs(self, count: int) -> dict[int, Pair]:
        """Return the next pairs by the serial numbers that identify their groups."""
        pairs = self.feed.next(count)
        numbered = {self.serial + index: pair for index, pair in enumerate(pairs)}
        self.serial += len(pairs)
        return numbered

    def _requests(self, pairs: Mapping[int, Pair]) -> list[GenerationRequest]:
        requests = []
        for serial, pair in pairs.items():
            for side in Side:
                content = self.content(pair, side)
                group = GroupKey(serial, pair.pair_id, side)  # the same object: it travels once
                for sibling in range(self.config.siblings):
                    key = TrajectoryKey(group, sibling)
                    seed = zlib.crc32(f"{self.config.run.seed}/{key}".encode())
                    requests.append(GenerationRequest(key=key, content=content, seed=seed))
        return requests

    def _with_pictures(
        self, pairs: Mapping[int, Pair], requests: list[GenerationRequest]
    ) -> tuple[SharedPictures, list[GenerationRequest], list[DroppedTrajectory]]:
        """Have the round's pictures decoded once, into the object store."""
        pictures, failed = self.share_pictures_of(pairs.values(), patiently=True)
        kept, dropped = [], []
        for request in requests:
            group = request.key.group
            item = pairs[group.serial].item(group.side)
            bad = [failed[uri] for uri in item.uris if uri in failed]
            if bad:
                dropped.append(DroppedTrajectory(request.key, "bad_picture", bad[0]))
            else:
                kept.append(request)
        return pictures, kept, dropped
