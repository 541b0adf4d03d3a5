"""A scoring round: all traces of a step, each ranked among one declared set of candidates.

A query trace is ranked among the target traces of the step and those that the bank adds, a target
trace among the query traces. All traces of a side meet the same candidates, so ranks do not depend
on the order in which embeddings arrive or on how many actors computed them.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from configs.schema import RewardConfig
from data.types import DroppedTrajectory, Pair, Side, Trajectory
from reward.bank import Candidate, CandidateBank
from reward.contrast import SIMILARITY_DECIMALS, rank_in_order

TOP_RETRIEVED = 3
PRODUCT_BLOCK, ROW_BLOCK = 1024, 256
"""Traces whose similarities are made at a time, as products of few rows are slow, and of these the
ones ranked at a time, as their similarities stay in a core's cache."""
SHARED_PRODUCT = 1 << 25
"""Similarities that are made at once, as both directions need them: 268 MB, for a moment twice."""
OTHER = {Side.QUERY: Side.TARGET, Side.TARGET: Side.QUERY}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedTrajectory:
    """A trace with its place among the round's candidates."""

    trajectory: Trajectory
    accuracy: float
    margin: float
    rank: int
    gain: float
    """Margin minus the margin of the item embedded without a trace; 0 where that is not used."""
    positives: tuple[str, ...]
    """Keys of the other side's traces of the same pair, by key."""
    negatives: tuple[str, ...]
    """Of other pairs of the step the keys of their closest traces, closest pair first."""
    retrieved: tuple[str, ...]
    """Keys of the nearest candidates, best first."""
    candidates_id: str
    candidates_size: int
    false_negatives: int
    """Candidates left out because they are right as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What became of a step's traces, and what later rounds may rank against."""

    ranked: list[RankedTrajectory]
    dropped: list[DroppedTrajectory]
    candidates: Mapping[Side, list[Candidate]]
    """The step's own, for the bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """The usable traces of one side, and as what the other side's traces meet them.

    Shapes: N traces, M candidates (the N first, then the bank's), G groups of traces, D dimensions.
    """

    traces: list[Trajectory]
    """By key; a group's stand together."""
    keys: list[str]
    """Of the candidates, [M]."""
    vectors_MD: np.ndarray
    """float64."""
    serials: np.ndarray
    """Of the groups, [G], in the order of the traces."""
    starts: np.ndarray
    """The first trace of each group, [G]."""
    contents: np.ndarray
    """Numbers that stand for the candidates' contents, [M]."""
    targets: np.ndarray
    """Numbers that stand for the candidates' targets, [M]."""
    declared: str
    """Hash of the candidates' keys."""


class Ranking:
    """A step's traces before its candidates: made ready once, ranked as often as is asked.

    ``vectors`` holds unit embeddings [D] by trajectory key (as text), ``pairs`` the step's pairs by
    group serial, ``plain`` the embeddings of items without a trace (None: no gain is asked for).
    The candidates are the step's traces of the other side and those that the bank adds.

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
        plain: Mapping[tuple[int, Side], np.ndarray] | None = None,
    ) -> None:
        self._pairs = pairs
        self._reward = reward
        self._plain = plain
        self._usable, self._dropped = _usable(trajectories, vectors, plain)
        self._numbers: dict[str, int] = {}
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
    ) -> Round:
        """Rank the traces in both directions, with ``only`` just those of these keys.

        ``changed`` embeddings stand in for those of some of these traces as they are ranked, not
        as what others are ranked among. Of ``closest`` other pairs at most (None: of all) the
        closest trace is named.
        """
        ranked: list[RankedTrajectory] = []
        dropped = list(self._dropped)
        product = None if changed else self._shared()
        for side, other in OTHER.items():
            if side not in self._sides:
                continue
            own = self._sides[side]
            places = [
                place for place in range(len(own.traces)) if only is None or own.keys[place] in only
            ]
            met = set(self._sides[other].serials.tolist()) if other in self._sides else set()
            lonely = [own.traces[i] for i in places if own.traces[i].key.group.serial not in met]
            dropped += [DroppedTrajectory(one.key, "no_positive") for one in lonely]
            places = [i for i in places if own.traces[i].key.group.serial in met]
            rows_ND = own.vectors_MD[places]
            if changed:
                places, rows_ND, lost = self._change(own, places, rows_ND, changed)
                dropped += lost
            if places:
                known = product if side is Side.QUERY or product is None else product.T
                some, lost = self._rank_side(
                    side, places, rows_ND, None if known is None else known[places], closest
                )
                ranked += some
                dropped += lost
        return Round(ranked=ranked, dropped=dropped, candidates=self._candidates)

    def _of_side(self, side: Side, vectors: Mapping[str, np.ndarray]) -> list[Candidate]:
        @cache
        def facts(serial: int) -> tuple[str, str]:
            return self._pairs[serial].item(side).key(), self._pairs[serial].target_key()

        return [
            Candidate(key=name, content=content, target=target, vector=vectors[name])
            for name, one in self._usable
            if one.key.group.side is side
            for content, target in [facts(one.key.group.serial)]
        ]

    def _met(self, side: Side, bank: CandidateBank) -> _Side:
        own = self._candidates[side]
        traces = [one for _, one in self._usable if one.key.group.side is side]
        own_ND = np.stack([one.vector for one in own])
        drawn = bank.draw(side, own_ND)
        met = [*own, *drawn]
        keys = [one.key for one in met]
        serials = np.array([one.key.group.serial for one in traces])
        starts = np.flatnonzero(np.diff(serials, prepend=serials[0] - 1))
        return _Side(
            traces=traces,
            keys=keys,
            vectors_MD=np.concatenate(
                [own_ND, *(one.vector[None] for one in drawn)], dtype=np.float64
            ),
            serials=serials[starts],
            starts=starts,
            contents=np.array([self._number(one.content) for one in met]),
            targets=np.array([self._number(one.target) for one in met]),
            declared=hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16],
        )

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def _change(
        self,
        own: _Side,
        places: list[int],
        rows_ND: np.ndarray,
        changed: Mapping[str, np.ndarray],
    ) -> tuple[list[int], np.ndarray, list[DroppedTrajectory]]:
        """Return the places whose embeddings can be used after the change, and these."""
        kept, dropped = [], []
        for row, place in enumerate(places):
            vector = changed.get(own.keys[place])
            if vector is not None:
                problem = _fault([vector], rows_ND.shape[1:])
                if problem:
                    key = own.traces[place].key
                    dropped.append(DroppedTrajectory(key, "embedding_failed", problem))
                    continue
                rows_ND[row] = vector
            kept.append(row)
        return [places[row] for row in kept], rows_ND[kept], dropped

    def _rank_side(
        self,
        side: Side,
        places: list[int],
        rows_ND: np.ndarray,
        product: np.ndarray | None,
        closest: int | None,
    ) -> tuple[list[RankedTrajectory], list[DroppedTrajectory]]:
        """Rank some of one side's traces, whose embeddings are given.

        ``product``: their similarities with the step's own candidates, where they are known.
        """
        own, met = self._sides[side], self._sides[OTHER[side]]
        traces = [own.traces[place] for place in places]
        # All rows of a group have the same positives and the same false negatives.
        serials, group_N = np.unique([one.key.group.serial for one in traces], return_inverse=True)
        gold_GM, valid_GM = self._masks(serials.tolist(), OTHER[side])
        has_negative_G = (valid_GM & ~gold_GM).any(axis=1)
        golds = [tuple(met.keys[j] for j in np.flatnonzero(gold)) for gold in gold_GM]
        twins_G = (~valid_GM).sum(axis=1)
        dropped = [
            DroppedTrajectory(
                traces[i].key, "no_negative", "every candidate of the round is right for it"
            )
            for i in np.flatnonzero(~has_negative_G[group_N])
        ]
        kept_N = np.flatnonzero(has_negative_G[group_N])
        ranked = []
        for some, similarity in _blocks(rows_ND, kept_N, met, product):
            group = group_N[some]
            positive, valid = gold_GM[group], valid_GM[group]
            found = rank_in_order(
                similarity, positive, temperature=self._reward.temperature, valid=valid
            )
            gain = np.zeros(len(some))
            if self._plain is not None:
                # Siblings have one item: its margin is found once.
                _, first, back = np.unique(group, return_index=True, return_inverse=True)
                bare = [self._plain[traces[i].key.group.serial, side] for i in some[first]]
                margin = self._margin(np.stack(bare), met, positive[first], valid[first])
                gain = found.margin - margin[back]
            rivals = _rivals(similarity, valid & ~positive, met, closest)
            nearest = _nearest(similarity)
            numbers = zip(
                found.accuracy.tolist(),
                found.margin.tolist(),
                found.rank.tolist(),
                gain.tolist(),
                strict=True,
            )
            for i, g, near, close, (accuracy, margin, rank, more) in zip(
                some.tolist(), group.tolist(), nearest, rivals, numbers, strict=True
            ):
                ranked.append(
                    RankedTrajectory(
                        trajectory=traces[i],
                        accuracy=accuracy,
                        margin=margin,
                        rank=rank,
                        gain=more,
                        positives=golds[g],
                        negatives=tuple(met.keys[j] for j in close),
                        retrieved=tuple(met.keys[j] for j in near),
                        candidates_id=met.declared,
                        candidates_size=len(met.keys),
                        false_negatives=int(twins_G[g]),
                    )
                )
        return ranked, dropped

    def _shared(self) -> np.ndarray | None:
        """Return the similarities of the queries' traces with the targets'.

        Both directions need them. None: there are none, or too many to hold at once.
        """
        if len(self._sides) < len(Side):
            return None
        query, target = (self._sides[side] for side in (Side.QUERY, Side.TARGET))
        if len(query.traces) * len(target.traces) > SHARED_PRODUCT:
            return None
        rows = query.vectors_MD[: len(query.traces)]
        return _similarities(rows, target.vectors_MD[: len(target.traces)])

    def _margin(
        self, rows_ND: np.ndarray, met: _Side, positive: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        return rank_in_order(
            _similarities(rows_ND.astype(np.float64), met.vectors_MD),
            positive,
            temperature=self._reward.temperature,
            valid=valid,
        ).margin

    def _masks(self, serials: list[int], side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Return which candidates of that side are positives and which count, boolean [G, M].

        Those do not count that are right without being positives: of the same content as the gold
        item, with an interchangeable target, or with an embedding closer than
        ``false_negative_similarity`` to one of the gold candidates.
        """
        met = self._sides[side]
        counts = np.diff(met.starts, append=len(met.traces))
        column_serials = np.repeat(met.serials, counts)
        gold = np.zeros((len(serials), len(met.keys)), dtype=bool)
        gold[:, : len(met.traces)] = column_serials == np.array(serials)[:, None]
        pairs = [self._pairs[serial] for serial in serials]
        contents = np.array([self._number(pair.item(side).key()) for pair in pairs])
        targets = np.array([self._number(pair.target_key()) for pair in pairs])
        same = (met.contents == contents[:, None]) | (met.targets == targets[:, None])
        if self._reward.false_negative_similarity < 1:
            for twins, positive in zip(same, gold, strict=True):
                closeness = (met.vectors_MD @ met.vectors_MD[positive].T).max(axis=1)
                twins |= closeness > self._reward.false_negative_similarity
        return gold, gold | ~same


def _usable(
    trajectories: Sequence[Trajectory],
    vectors: Mapping[str, np.ndarray],
    plain: Mapping[tuple[int, Side], np.ndarray] | None,
) -> tuple[list[tuple[str, Trajectory]], list[DroppedTrajectory]]:
    """Return the traces that can be ranked, by key, and those that cannot."""
    widths = Counter(vector.shape for vector in vectors.values())
    width = max(widths, key=lambda shape: (widths[shape], shape), default=())
    named = sorted(((str(one.key), one) for one in trajectories), key=lambda entry: entry[0])
    usable, dropped = [], []
    for name, one in named:
        used = [vectors.get(name)]
        if plain is not None:
            used.append(plain.get((one.key.group.serial, one.key.group.side)))
        problem = _fault(used, width)
        if problem:
            dropped.append(DroppedTrajectory(one.key, "embedding_failed", problem))
        else:
            usable.append((name, one))
    return usable, dropped


def _fault(used: Sequence[np.ndarray | None], width: tuple[int, ...]) -> str:
    """Return why embeddings cannot be used that should be of that shape; empty: they can."""
    if any(vector is None for vector in used):
        return "no embedding"
    if any(vector.shape != width for vector in used):
        found = [vector.shape for vector in used]
        return f"expected embeddings of the round's shape {width}, found {found}"
    if not all(np.isfinite(vector).all() for vector in used):
        return "the embedding is not finite"
    return ""


def _blocks(
    rows_ND: np.ndarray, kept: np.ndarray, met: _Side, product: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the kept rows' places and similarities, ROW_BLOCK of them at a time.

    ``product`` holds the rows' similarities with the step's own candidates where they are known.
    """
    known = 0 if product is None else product.shape[1]
    for first in range(0, len(kept), PRODUCT_BLOCK):
        places = kept[first : first + PRODUCT_BLOCK]
        similarity = _similarities(rows_ND[places], met.vectors_MD[known:])
        if product is not None:
            similarity = np.concatenate([product[places], similarity], axis=1)
        for begin in range(0, len(places), ROW_BLOCK):
            some = slice(begin, begin + ROW_BLOCK)
            yield places[some], similarity[some]


def _similarities(rows_ND: np.ndarray, columns_MD: np.ndarray) -> np.ndarray:
    product = rows_ND @ columns_MD.T
    return product.round(SIMILARITY_DECIMALS, out=product)


def _nearest(similarity_NM: np.ndarray) -> list[list[int]]:
    """Return by row the nearest candidates, best first; of equal ones the first is nearer."""
    left = similarity_NM.copy()
    rows = np.arange(len(left))
    found = []
    for _ in range(min(TOP_RETRIEVED, left.shape[1])):
        found.append(left.argmax(axis=1))
        left[rows, found[-1]] = -np.inf
    return np.stack(found, axis=1).tolist()


def _rivals(
    similarity_NM: np.ndarray, rival_NM: np.ndarray, met: _Side, closest: int | None
) -> Iterator[list[int]]:
    """Yield by row the closest trace of each of the closest other pairs, closest first.

    Of equal ones the first is closer. Rivals are the candidates marked in ``rival_NM``; the bank's
    are none.
    """
    if closest == 0:
        yield from ([] for _ in similarity_NM)
        return
    step = slice(0, len(met.traces))
    close = np.where(rival_NM[:, step], similarity_NM[:, step], -np.inf)
    best = np.maximum.reduceat(close, met.starts, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :closest]
    ends = [*met.starts[1:].tolist(), len(met.traces)]
    for row, pairs, bests in zip(close, order, best, strict=True):
        yield [
            met.starts[pair] + int(row[met.starts[pair] : ends[pair]].argmax())
            for pair in pairs
            if bests[pair] > -np.inf
        ]
