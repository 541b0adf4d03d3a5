"""A scoring round: the traces of one sampling, each ranked among one declared set of candidates.

A query trace is ranked among the target traces of the round and those that the bank adds, a target
trace among the query traces. All traces of a side are ranked among the same candidates, so ranks do
not depend on the order in which embeddings arrive or on how many actors computed them.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from configs.reward import RewardConfig
from data.relevance import Relevance
from data.types import DroppedTrajectory, Pair, Side, Trajectory
from reward.bank import Candidate, CandidateBank
from reward.rank_arithmetic import Compute, RankInput, RankResult, rank_sides

OTHER = {Side.QUERY: Side.TARGET, Side.TARGET: Side.QUERY}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedTrajectory:
    """A trace with its rank among the round's candidates."""

    trajectory: Trajectory
    accuracy: float
    margin: float
    rank: int
    gain: float
    """Margin minus the margin of the item embedded without a trace; 0 where that is not used."""
    positives: tuple[str, ...]
    """Keys of the other side's traces of the same pair, by key."""
    negatives: tuple[str, ...]
    """Of the step's pairs that are wrong for it the keys of their closest traces, closest first."""
    retrieved: tuple[str, ...]
    """Keys of the nearest candidates, best first."""
    candidates_id: str
    candidates_size: int
    false_negatives: int
    """Candidates left out because they are right as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRound:
    """What became of a step's traces, and what later rounds may rank against."""

    ranked: list[RankedTrajectory]
    dropped: list[DroppedTrajectory]
    candidates: Mapping[Side, list[Candidate]]
    """The step's own, for the bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """The usable traces of one side, which are also candidates for the other side.

    Shapes: N traces, M candidates (the N first, then the bank's), G groups of traces, D dimensions.
    """

    traces: list[Trajectory]
    """By key; a group's stand together."""
    keys: list[str]
    """Of the candidates, [M]."""
    vectors_MD: np.ndarray
    serials: np.ndarray
    """Of the groups, [G], in the order of the traces."""
    starts: np.ndarray
    """The first trace of each group, [G]."""
    contents: list[str]
    """What tells the candidates' items apart, [M]."""
    plain: Mapping[str, np.ndarray]
    """Embeddings of the candidates' items without trace by content, where they are known."""
    declared: str
    """Hash of the candidates' keys."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Traces of one side that can be ranked."""

    traces: list[Trajectory]
    rows: RankInput


class Ranking:
    """A round's traces and their candidates: prepared once, ranked as often as a caller asks.

    ``vectors`` holds unit embeddings [D] by trajectory key (as text), ``pairs`` the step's pairs by
    group serial, ``plain`` the embeddings of items without a trace (None: neither a gain is asked
    for nor a ``false_negative_similarity``). The candidates are the step's traces of the other side
    and those that the bank adds. ``relevance`` knows the pairs of the whole data sets, the step's
    among them.

    What cannot be ranked is dropped with a reason: `embedding_failed` (missing, not finite, or of
    another width than most), `no_positive` (nothing of the other side is left) and `no_negative`
    (every candidate is right for it, as where all pairs of a step share one target: what is left
    of the reward would be the bare similarity, which pays for making all embeddings alike).
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        vectors: Mapping[str, np.ndarray],
        pairs: Mapping[int, Pair],
        bank: CandidateBank,
        *,
        reward: RewardConfig,
        relevance: Relevance,
        plain: Mapping[tuple[int, Side], np.ndarray] | None = None,
    ) -> None:
        self._pairs = pairs
        self._reward = reward
        self._plain = plain or {}
        self.relevance = relevance
        self._gains = plain is not None and reward.gain_weight > 0
        needed = plain if self._gains else None
        self._usable, self._dropped = _usable(trajectories, vectors, needed)
        self._candidates = {side: self._of_side(side, vectors) for side in Side}
        self._sides = {side: self._met(side, bank) for side, own in self._candidates.items() if own}

    @property
    def size(self) -> int:
        """How many traces of the step can be ranked."""
        return len(self._usable)

    def rank(
        self,
        changed: Mapping[str, np.ndarray] | None = None,
        *,
        only: Collection[str] | None = None,
        closest: int | None = None,
        compute: Compute = rank_sides,
    ) -> RankedRound:
        """Rank the traces in both directions, with ``only`` just those of these keys.

        ``changed`` embeddings stand in for those of some of these traces as they are ranked, not
        as what others are ranked among. Of ``closest`` other pairs at most (None: of all) the
        closest trace is named. ``compute`` does the arithmetic.
        """
        asked: dict[Side, _Asked] = {}
        dropped = list(self._dropped)
        for side, other in OTHER.items():
            if side not in self._sides:
                continue
            own = self._sides[side]
            indices = [
                index for index in range(len(own.traces)) if only is None or own.keys[index] in only
            ]
            met = set(self._sides[other].serials.tolist()) if other in self._sides else set()
            lonely = [own.traces[i] for i in indices if own.traces[i].key.group.serial not in met]
            dropped += [DroppedTrajectory(trace.key, "no_positive") for trace in lonely]
            indices = [i for i in indices if own.traces[i].key.group.serial in met]
            rows_ND = own.vectors_MD[indices]
            if changed:
                indices, rows_ND, lost = self._change(own, indices, rows_ND, changed)
                dropped += lost
            if indices:
                asked[side], lost = self._ask(
                    side, indices, rows_ND, closest, changed=bool(changed)
                )
                dropped += lost
        results = compute(
            {side: request.rows for side, request in asked.items()},
            temperature=self._reward.temperature,
        )
        ranked = [
            trace for side in asked for trace in self._ranked(side, asked[side], results[side])
        ]
        return RankedRound(ranked=ranked, dropped=dropped, candidates=self._candidates)

    def _of_side(self, side: Side, vectors: Mapping[str, np.ndarray]) -> list[Candidate]:
        @cache
        def content(serial: int) -> str:
            return self._pairs[serial].key(side)

        similar = self._reward.false_negative_similarity < 1
        return [
            Candidate(
                key=name,
                content=content(trace.key.group.serial),
                vector=vectors[name],
                plain=self._plain.get((trace.key.group.serial, side)) if similar else None,
            )
            for name, trace in self._usable
            if trace.key.group.side is side
        ]

    def _met(self, side: Side, bank: CandidateBank) -> _Side:
        own = self._candidates[side]
        traces = [trace for _, trace in self._usable if trace.key.group.side is side]
        own_ND = np.stack([candidate.vector for candidate in own])
        drawn = bank.draw(side, own_ND)
        met = [*own, *drawn]
        keys = [candidate.key for candidate in met]
        serials = np.array([trace.key.group.serial for trace in traces])
        starts = np.flatnonzero(np.diff(serials, prepend=serials[0] - 1))
        return _Side(
            traces=traces,
            keys=keys,
            vectors_MD=np.concatenate([own_ND, *(candidate.vector[None] for candidate in drawn)]),
            serials=serials[starts],
            starts=starts,
            contents=[candidate.content for candidate in met],
            plain={
                candidate.content: candidate.plain
                for candidate in met
                if candidate.plain is not None
            },
            declared=hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16],
        )

    def _change(
        self,
        own: _Side,
        indices: list[int],
        rows_ND: np.ndarray,
        changed: Mapping[str, np.ndarray],
    ) -> tuple[list[int], np.ndarray, list[DroppedTrajectory]]:
        """Return indices of traces with usable embeddings after the change, and the embeddings."""
        kept, dropped = [], []
        for row, index in enumerate(indices):
            vector = changed.get(own.keys[index])
            if vector is not None:
                problem = _fault([vector], rows_ND.shape[1:])
                if problem:
                    key = own.traces[index].key
                    dropped.append(DroppedTrajectory(key, "embedding_failed", problem))
                    continue
                rows_ND[row] = vector
            kept.append(row)
        return [indices[row] for row in kept], rows_ND[kept], dropped

    def _ask(
        self,
        side: Side,
        indices: list[int],
        rows_ND: np.ndarray,
        closest: int | None,
        *,
        changed: bool,
    ) -> tuple[_Asked, list[DroppedTrajectory]]:
        """Return what must be computed of some of one side's traces, and what cannot be."""
        own, met = self._sides[side], self._sides[OTHER[side]]
        traces = [own.traces[index] for index in indices]
        # All rows of a group have the same positives and the same false negatives.
        serials, group_N = np.unique(
            [trace.key.group.serial for trace in traces], return_inverse=True
        )
        positive_GM, valid_GM = self._masks(serials.tolist(), OTHER[side])
        has_negative_G = (valid_GM & ~positive_GM).any(axis=1)
        kept_N = np.flatnonzero(has_negative_G[group_N])
        dropped = [
            DroppedTrajectory(
                traces[i].key, "no_negative", "every candidate of the round is right for it"
            )
            for i in np.flatnonzero(~has_negative_G[group_N])
        ]
        plain_GD = None
        if self._gains:
            plain_GD = np.stack([self._plain[serial, side] for serial in serials.tolist()])
        rows = RankInput(
            vectors_ND=rows_ND[kept_N],
            trace_indices=None if changed else np.array(indices)[kept_N],
            group_N=group_N[kept_N],
            candidates_MD=met.vectors_MD,
            starts=met.starts,
            own=len(met.traces),
            positive_GM=positive_GM,
            valid_GM=valid_GM,
            plain_GD=plain_GD,
            closest=closest,
        )
        return _Asked([traces[i] for i in kept_N], rows), dropped

    def _ranked(self, side: Side, asked: _Asked, found: RankResult) -> list[RankedTrajectory]:
        """Return the traces with their numbers, and candidates by name."""
        met, rows = self._sides[OTHER[side]], asked.rows
        positives = [tuple(met.keys[j] for j in np.flatnonzero(g)) for g in rows.positive_GM]
        twins_G = (~rows.valid_GM).sum(axis=1).tolist()
        return [
            RankedTrajectory(
                trajectory=trace,
                accuracy=accuracy,
                margin=margin,
                rank=rank,
                gain=gain,
                positives=positives[group],
                negatives=tuple(met.keys[j] for j in rivals),
                retrieved=tuple(met.keys[j] for j in nearest),
                candidates_id=met.declared,
                candidates_size=len(met.keys),
                false_negatives=twins_G[group],
            )
            for trace, group, accuracy, margin, rank, gain, nearest, rivals in zip(
                asked.traces,
                rows.group_N.tolist(),
                found.accuracy.tolist(),
                found.margin.tolist(),
                found.rank.tolist(),
                found.gain.tolist(),
                found.nearest,
                found.rivals,
                strict=True,
            )
        ]

    def _masks(self, serials: list[int], side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Return which candidates of that side are positives and which count, boolean [G, M].

        Those do not count that are right without being positives, or whose item without trace is
        closer than ``false_negative_similarity`` to the gold item.
        """
        met = self._sides[side]
        counts = np.diff(met.starts, append=len(met.traces))
        column_serials = np.repeat(met.serials, counts)
        gold = np.zeros((len(serials), len(met.keys)), dtype=bool)
        gold[:, : len(met.traces)] = column_serials == np.array(serials)[:, None]
        own = [self._pairs[serial].key(OTHER[side]) for serial in serials]
        if side is Side.TARGET:
            right = self.relevance.right(own, met.contents)
        else:
            right = self.relevance.right(met.contents, own).T
        return gold, gold | ~(right | self._alike(serials, side))

    def _alike(self, serials: list[int], side: Side) -> np.ndarray:
        """Return which candidates' items are too close to the gold items, boolean [G, M].

        By their embeddings without trace: a trace that moves its own embedding changes nothing.
        """
        limit, met = self._reward.false_negative_similarity, self._sides[side]
        alike = np.zeros((len(serials), len(met.keys)), dtype=bool)
        golds = {
            row: self._plain[serial, side]
            for row, serial in enumerate(serials)
            if (serial, side) in self._plain
        }
        if limit == 1 or not golds or not met.plain:
            return alike
        golds_GD, items_ID = (
            np.stack(list(vectors.values())).astype(np.float64) for vectors in (golds, met.plain)
        )
        close_GI = golds_GD @ items_ID.T > limit
        item_index = {content: index for index, content in enumerate(met.plain)}
        columns = [column for column, content in enumerate(met.contents) if content in item_index]
        alike[np.ix_(list(golds), columns)] = close_GI[
            :, [item_index[met.contents[column]] for column in columns]
        ]
        return alike


def _usable(
    trajectories: Sequence[Trajectory],
    vectors: Mapping[str, np.ndarray],
    plain: Mapping[tuple[int, Side], np.ndarray] | None,
) -> tuple[list[tuple[str, Trajectory]], list[DroppedTrajectory]]:
    """Return the traces that can be ranked, by key, and those that cannot."""
    widths = Counter(vector.shape for vector in vectors.values())
    width = max(widths, key=lambda shape: (widths[shape], shape), default=())
    named = sorted(((str(trace.key), trace) for trace in trajectories), key=lambda entry: entry[0])
    usable, dropped = [], []
    for name, trace in named:
        used = [vectors.get(name)]
        if plain is not None:
            used.append(plain.get((trace.key.group.serial, trace.key.group.side)))
        problem = _fault(used, width)
        if problem:
            dropped.append(DroppedTrajectory(trace.key, "embedding_failed", problem))
        else:
            usable.append((name, trace))
    return usable, dropped


def _fault(used: Sequence[np.ndarray | None], width: tuple[int, ...]) -> str:
    """Return why embeddings cannot be used that should be of that shape; empty: they can."""
    if any(vector is None for vector in used):
        return "no embedding"
    if any(vector.shape != width for vector in used):
        shapes = [vector.shape for vector in used]
        return f"expected embeddings of the round's shape {width}, found {shapes}"
    # One NaN or infinity makes the product one; looking at each number takes several times as long.
    if not all(math.isfinite(vector @ vector) for vector in used):
        return "the embedding is not finite"
    return ""
