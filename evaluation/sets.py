"""What an evaluation ranks: queries, their candidates, and which of these are right."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from data.errors import DataError
from data.relevance import Relevance
from data.types import Cues, Item, Kind, Pair, Side
from evaluation.metrics import pools_of

PublishedName = tuple[str, str]
"""Kind and value of what names an item in files of traces, see `data.rows.trace_files`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuery:
    """One query; candidates are named by their keys in its set."""

    query_id: str
    """Unique within its set."""
    item: Item
    right: Mapping[str, int]
    """Key of each right candidate -> its grade, from 1 on; nDCG weighs by it. The first is the
    target that reports show."""
    candidates: tuple[str, ...] = ()
    """Its own candidates in the benchmark's order, the right ones included; empty: all of its
    set's."""
    truth: Cues = field(default_factory=Cues)
    """The true evidence where the set knows it, else empty."""
    named: PublishedName | None = None
    """What names it in published files of traces; None: nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """A set of queries that are ranked over the same candidates, or each over its own."""

    name: str
    queries: Sequence[EvaluationQuery]
    candidates: Mapping[str, Item]
    """Every candidate by its key, in the benchmark's order."""
    metric: str = "hit@1"
    """The set's main metric, as the benchmark defines it: `hit@1`, `ndcg_linear@5`, ..."""
    suite: str = ""
    """The benchmark that it belongs to; empty: none."""
    groups: tuple[str, ...] = ()
    """The aggregates that it belongs to, the widest first: `image`, `image/vqa`."""
    named: Mapping[str, PublishedName] = field(default_factory=dict)
    """What names candidates in published files of traces, by their keys."""

    def shows(self, kinds: Iterable[Kind]) -> bool:
        """Return whether a query or candidate is of one of these kinds."""
        kinds = set(kinds)
        return any(item.kind in kinds for item in self._items())

    @property
    def as_video(self) -> bool:
        """Whether it shows a video as one, not as separate pictures."""
        return any(item.times for item in self._items())

    def _items(self) -> Iterator[Item]:
        yield from (query.item for query in self.queries)
        yield from self.candidates.values()


@dataclass(frozen=True, slots=True)
class End:
    """One item to reason about and embed; equal ends share trace and vector."""

    item: Item
    side: Side
    seeks_video: bool = False


def shown_target(data_set: EvaluationSet, query: EvaluationQuery) -> Item:
    """Return the right candidate that reports show."""
    return data_set.candidates[next(iter(query.right))]


def query_end(data_set: EvaluationSet, query: EvaluationQuery) -> End:
    """Return what is reasoned about and embedded of a query."""
    target = shown_target(data_set, query)
    seeks_video = query.item.kind is Kind.TEXT and target.kind is Kind.VIDEO
    return End(query.item, Side.QUERY, seeks_video)


def candidate_end(item: Item) -> End:
    """Return what is reasoned about and embedded of a candidate."""
    return End(item, Side.TARGET)


def ends_of(data_set: EvaluationSet) -> list[End]:
    """Return every query, and every candidate that a query is ranked over."""
    queries = [query_end(data_set, query) for query in data_set.queries]
    return [*queries, *candidate_ends(data_set, data_set.queries)]


def candidate_ends(data_set: EvaluationSet, queries: Iterable[EvaluationQuery]) -> list[End]:
    """Return every candidate that one of the queries is ranked over, once."""
    lists = dict.fromkeys(query.candidates for query in queries)  # most queries share one
    keys = dict.fromkeys(key for own in lists for key in own or data_set.candidates)
    return [candidate_end(data_set.candidates[key]) for key in keys]


def sets_of_pairs(
    pairs: Sequence[Pair], distractors: Mapping[str, Iterable[Item]] = MappingProxyType({})
) -> list[EvaluationSet]:
    """Return the sets of pairs of data sets, by `Pair.source`.

    A query is ranked over its row's own candidates where it has some, else over the unique targets
    of its data set and the set's ``distractors``. What is right for it is the rule of
    `data.relevance`. Pairs of one data set with the same `query_id` are one query.
    """
    relevance = Relevance(pairs)
    pools = pools_of(pairs, relevance, distractors)
    by_source: dict[str, list[Pair]] = {source: [] for source in pools}
    for pair in pairs:
        by_source[pair.source].append(pair)
    sets = []
    for source, own in by_source.items():
        candidates = {item.key(): item for item in pools[source].items}
        shared = tuple(candidates)
        for pair in own:
            candidates |= {item.key(): item for item in pair.candidates}
        whole = len(candidates) == len(shared) and not any(pair.candidates for pair in own)
        grades: dict[str, dict[str, int]] = {}
        for pair in own:
            of_query = grades.setdefault(pair.key(Side.QUERY), {})
            target = pair.target.key()
            of_query[target] = max(pair.grade, of_query.get(target, 1))
        queries = []
        names = Counter(pair.pair_id for pair in own)
        if len(names) < len(own):
            raise DataError(
                f"set {source}: expected pairs with ids of their own, found "
                f"{names.most_common(1)[0][1]} pairs '{names.most_common(1)[0][0]}'; rename them"
            )
        for pair in _first_of_query(own):
            key = pair.key(Side.QUERY)
            if pair.candidates:
                ranked = tuple({item.key(): None for item in pair.candidates})
                [is_right] = relevance.right([key], ranked)
                right = [ranked[place] for place in np.flatnonzero(is_right)]
            else:
                ranked = () if whole else shared
                right = [shared[place] for place in sorted(pools[source].relevant[key])]
            target = pair.target.key()
            others = [name for name in right if name != target]
            named = [target, *others] if target in right or not right else others
            queries.append(
                EvaluationQuery(
                    query_id=pair.pair_id,
                    item=pair.query,
                    right={name: grades[key].get(name, 1) for name in named},
                    candidates=ranked,
                    truth=pair.query_evidence,
                )
            )
        sets.append(EvaluationSet(name=source, queries=queries, candidates=candidates))
    return sets


def _first_of_query(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the first pair of each query."""
    first: dict[str | int, Pair] = {}
    for number, pair in enumerate(pairs):
        first.setdefault(pair.query_id or number, pair)
    return list(first.values())
