"""One round's scoring: embed its traces, rank them, ask the judge, and pay.

traces -> [reward pool] -> embeddings -> ranks among the round's candidates
                                           |-> [judge pool] -> verdicts
                                           '-> rewards -> monitors
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from cluster.pictures import SharedPictures
from cluster.pools.judge import JudgePool
from cluster.pools.reward import Embedded, RewardPool
from configs.reward import BankConfig, RewardConfig
from data.embed_inputs import embed_content
from data.monitor_table import monitor_of
from data.prompts import pictures_of
from data.relevance import Relevance
from data.tcot import faults
from data.types import (
    DroppedTrajectory,
    EmbedRequest,
    Evidence,
    Judgement,
    JudgeQuestion,
    Pair,
    ScoredTrajectory,
    Side,
    Trajectory,
    TrajectoryKey,
)
from reward.bank import CandidateBank
from reward.cache import EmbeddingCache
from reward.hacking.counterfactuals import counterfactuals, score_probe
from reward.hacking.monitors import WatchedRound, watch_round
from reward.judge_question import build_question
from reward.rank_arithmetic import Compute, rank_sides
from reward.ranking import RankedTrajectory, Ranking
from reward.score import score_round

log = logging.getLogger(__name__)
Embedding = Callable[[], Embedded]
"""Waits for embeddings that were begun, and returns them."""
SHOWN_FAILURES = 3
"""Failures that a warning names."""
CACHED_ITEMS = 1 << 14
"""Embeddings without trace that are kept: 134 MB at 2,048 dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What became of a step's traces."""

    scored: list[ScoredTrajectory]
    dropped: list[DroppedTrajectory]
    metrics: dict[str, float]


class Scorer:
    """Scores the traces of one step after another; owns the bank and the cache.

    ``compute`` does the arithmetic of the rounds. ``relevance`` knows the pairs of all data sets.
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        embedder: RewardPool,
        judge: JudgePool | None,
        max_frames: int,
        relevance: Relevance,
        item_tokens: int,
        second: RewardPool | None = None,
        compute: Compute = rank_sides,
    ) -> None:
        self.config = config
        self.relevance = relevance
        self._compute = compute
        self.embedder = embedder
        self.judge = judge
        self.second = second
        self.max_frames = max_frames
        self.item_tokens = item_tokens
        self.bank = CandidateBank(config.bank)
        self.cache = EmbeddingCache(CACHED_ITEMS)

    def begin(
        self,
        trajectories: Sequence[Trajectory],
        pairs: Mapping[int, Pair],
        pictures: SharedPictures,
    ) -> Embedding:
        """Begin to embed some of a step's traces; `score` waits for them."""
        return self.embedder.begin(
            [
                self.request(trace.key, pairs[trace.key.group.serial], trace.text)
                for trace in trajectories
            ],
            pictures,
            more=True,
        )

    def score(
        self,
        trajectories: Sequence[Trajectory],
        pairs: Mapping[int, Pair],
        pictures: SharedPictures,
        embedded: Sequence[Embedding],
    ) -> Scores:
        """Return the rewards of a step's traces, joined by key; what fails is dropped.

        ``pairs`` holds the step's pairs by group serial, ``embedded`` is what `begin` returned for
        all of the traces.
        """
        metrics = _repairs(trajectories, pairs, self.max_frames)
        vectors: dict[str, np.ndarray] = {}
        for batch, failed in (embedding() for embedding in embedded):
            vectors |= batch
            _warn("not embedded", failed)
        plain = None
        if self.config.gain_weight > 0 or self.config.false_negative_similarity < 1:
            plain, hits = self._embed_plain(pairs, pictures)
            metrics["reward/cache_hits"] = float(hits)
        ranking = Ranking(
            trajectories,
            vectors,
            pairs,
            self.bank,
            reward=self.config,
            plain=plain,
            relevance=self.relevance,
        )
        # Nobody but the judge reads other pairs' traces.
        closest = self.config.judge.negatives if self.judge else 0
        ranks = ranking.rank(closest=closest, compute=self._compute)
        ranked = ranks.ranked
        judged: dict[str, Judgement] = {}
        if self.judge is not None:
            questions = self._questions(ranked, trajectories, pairs)
            judged, failed = self.judge.judge(list(questions.values()))
            failed |= {
                str(trace.trajectory.key): "no other pair's trace to show beside its own"
                for trace in ranked
                if str(trace.trajectory.key) not in questions
            }
            _warn("not judged", failed)
            metrics["judge/failed"] = float(len(failed))
        scored, lost = score_round(
            ranked, judged, pairs, reward=self.config, max_frames=self.max_frames
        )
        metrics |= self._watch(scored, ranking, vectors, pairs, pictures, plain)
        for side, own in ranks.candidates.items():
            self.bank.add(side, own)
        if ranked:
            metrics["candidates/size"] = _mean([trace.candidates_size for trace in ranked])
            metrics["mask/false_negatives"] = _mean([trace.false_negatives for trace in ranked])
        if judged:
            metrics["judge/right"] = _mean([judgement.share for judgement in judged.values()])
        return Scores(scored=scored, dropped=ranks.dropped + lost, metrics=metrics)

    def request(self, key: TrajectoryKey, pair: Pair, trace: str) -> EmbedRequest:
        """Return what the frozen Embedder reads of a trace of one side of a pair."""
        return EmbedRequest(
            key=str(key),
            content=embed_content(
                pair.item(key.group.side),
                trace,
                max_frames=self.max_frames,
                item_tokens=self.item_tokens,
                evidence=Evidence(self.config.evidence),
            ),
        )

    def _embed_plain(
        self, pairs: Mapping[int, Pair], pictures: SharedPictures
    ) -> tuple[dict[tuple[int, Side], np.ndarray], int]:
        """Return the items' embeddings without trace, and how many were in the cache."""
        contents = {
            (serial, side): embed_content(
                pair.item(side), None, max_frames=self.max_frames, item_tokens=self.item_tokens
            )
            for serial, pair in pairs.items()
            for side in Side
        }
        embeddings = {content: self.cache.get(content) for content in contents.values()}
        missing = [content for content, vector in embeddings.items() if vector is None]
        requests = [
            EmbedRequest(key=f"plain/{index}", content=content)
            for index, content in enumerate(missing)
        ]
        vectors, failed = self.embedder.embed(requests, pictures)
        _warn("not embedded", failed)
        for request in requests:
            if request.key in vectors:
                embeddings[request.content] = vectors[request.key]
                self.cache.put(request.content, vectors[request.key])
        plain = {end: embeddings[content] for end, content in contents.items()}
        return (
            {end: vector for end, vector in plain.items() if vector is not None},
            len(embeddings) - len(missing),
        )

    def _watch(
        self,
        scored: Sequence[ScoredTrajectory],
        ranking: Ranking,
        vectors: Mapping[str, np.ndarray],
        pairs: Mapping[int, Pair],
        pictures: SharedPictures,
        plain: Mapping[tuple[int, Side], np.ndarray] | None,
    ) -> dict[str, float]:
        """Return the `hack/` metrics of a step's rewards, and log what rings.

        A sample is scored again with its evidence removed and with another item's trace; the
        judge, who reads only texts, is left out of that.
        """
        traces = [trace.trajectory for trace in scored]
        unjudged = replace(self.config, process_weight=0.0)
        if len(traces) < ranking.size:
            ranking = Ranking(
                traces,
                vectors,
                pairs,
                self.bank,
                reward=unjudged,
                plain=plain,
                relevance=self.relevance,
            )

        def score(
            changed: Mapping[str, np.ndarray], only: Collection[str]
        ) -> list[ScoredTrajectory]:
            # Only the traces asked for may have changed, and only on one side: what they are
            # ranked among, the other side, is as it was.
            new_vectors = {key: changed[key] for key in only if key in changed}
            ranks = ranking.rank(new_vectors, only=only, closest=0)
            return score_round(
                ranks.ranked, {}, pairs, reward=unjudged, max_frames=self.max_frames
            )[0]

        planned = counterfactuals(
            scored,
            pairs,
            max_frames=self.max_frames,
            item_tokens=self.item_tokens,
            evidence=Evidence(self.config.evidence),
            relevance=ranking.relevance,
        )
        embedded, failed = self.embedder.embed(
            [counterfactual.request for counterfactual in planned], pictures
        )
        _warn("not embedded", failed)
        second: dict[str, float] = {}
        if self.second is not None:
            requests = [
                self.request(trace.key, pairs[trace.key.group.serial], trace.text)
                for trace in traces
            ]
            other, failed = self.second.embed(requests, pictures)
            _warn("not embedded by the second Embedder", failed)
            alone = replace(unjudged, gain_weight=0.0)
            ranking = Ranking(
                traces,
                other,
                pairs,
                CandidateBank(BankConfig()),
                reward=alone,
                plain=plain,
                relevance=self.relevance,
            )
            ranks = ranking.rank(closest=0, compute=self._compute)
            paid, _ = score_round(ranks.ranked, {}, pairs, reward=alone, max_frames=self.max_frames)
            second = {str(trace.trajectory.key): trace.parts.total for trace in paid}
        metrics, alarms = watch_round(
            WatchedRound(
                scored=scored,
                pairs=pairs,
                vectors=vectors,
                items={} if plain is None else _by_group(traces, plain),
                probe=score_probe(planned, vectors, embedded, score=score),
                second=second,
                relevance=ranking.relevance,
            )
        )
        for alarm in alarms:
            heading = monitor_of(alarm.name).heading
            log.warning("%s: %s", heading, alarm, extra={"same": alarm.name})
        return metrics

    def _questions(
        self,
        ranked: Sequence[RankedTrajectory],
        trajectories: Sequence[Trajectory],
        pairs: Mapping[int, Pair],
    ) -> dict[str, JudgeQuestion]:
        """Return what the judge is asked, by trace key, where there is something to choose."""
        traces = {str(trace.key): trace for trace in trajectories}
        asked = (build_question(trace, traces, pairs, self.config.judge) for trace in ranked)
        return {question.key: question for question in asked if question is not None}


def _repairs(
    trajectories: Sequence[Trajectory], pairs: Mapping[int, Pair], max_frames: int
) -> dict[str, float]:
    """Return `repair/<name>`: what the parser mended, dropped or refused in the step's traces."""
    counts: Counter[str] = Counter()
    for trace in trajectories:
        item = pairs[trace.key.group.serial].item(trace.key.group.side)
        shown = len(pictures_of(item, max_frames))
        counts.update(faults(trace.text, kind=item.kind, num_frames=shown))
    # Trackers take no colon in a name.
    return {f"repair/{name.replace(':', '')}": float(count) for name, count in counts.items()}


def _by_group(
    traces: Sequence[Trajectory], plain: Mapping[tuple[int, Side], np.ndarray]
) -> dict[str, np.ndarray]:
    groups = {
        trace.key.group
        for trace in traces
        if (trace.key.group.serial, trace.key.group.side) in plain
    }
    return {str(group): plain[group.serial, group.side] for group in groups}


def _warn(what: str, failed: Mapping[str, str]) -> None:
    if failed:
        first = "; ".join(f"{key}: {why}" for key, why in islice(failed.items(), SHOWN_FAILURES))
        log.warning("%s: %d, the first: %s", what, len(failed), first, extra={"same": what})


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
