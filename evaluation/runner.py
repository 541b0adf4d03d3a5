"""Reason, embed, rank: every variant of one evaluation over the same pairs.

Pure: the engines come in as two kinds of functions. Joins are by content: what a model would
read twice is asked for once. What fails is left out with a reason, and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from data.embed_inputs import embed_content
from data.prompts import item_content, pictures_of
from data.relevance import Relevance
from data.sets.hardness import PLAIN
from data.stores.keys import content_key
from data.types import Content, Cues, EmbedRequest, Evidence, Item, Kind, Pair, Side
from evaluation.evidence import on_target, parse_trace
from evaluation.metrics import (
    MEASURES,
    CandidatePool,
    Estimate,
    QueryRanking,
    estimate,
    means_something,
    measure_rankings,
    pools_of,
    rank_candidates,
    unit_rows,
)

Reason = Callable[[list[tuple[str, Content]]], Mapping[str, str]]
"""Greedy traces by key, of one Reasoner; a key that is absent from the answer has failed."""
Embed = Callable[[list[EmbedRequest]], Mapping[str, np.ndarray]]
"""Vectors [D] by key, of the one frozen Embedder; a key that is absent has failed."""

Grades = dict[tuple[str, str], dict[str, int]]
"""Grades that are not 1: by data set and key of the query, then by key of the target."""

NO_COT = PLAIN
TEXT_SUFFIX = "_text"
OVERALL = ""
"""Stands for all data sets together where a result names its data set."""
ALL_KINDS = ""
"""Stands for tasks of all kinds where a result names a kind."""
RETRIEVED_PER_QUERY = 3
"""Retrieved candidates kept per query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    templates: str
    max_frames: int
    resamples: int
    seed: int
    item_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to embed items, queries and candidates alike."""

    name: str
    reasoner: str = ""
    """Whose traces are used; empty: none."""
    evidence: Evidence = Evidence.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    item: Item
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What one query of one variant led to."""

    variant: str
    source: str
    pair_id: str
    query: Item
    target: Item
    shown: tuple[str, ...]
    """Pictures that the Reasoner saw, in order; frame numbers count these."""
    truth: Cues
    """The true evidence on the query side; empty where unknown."""
    trace: str = ""
    valid: bool | None = None
    """Whether the trace is strictly valid; None without a trace."""
    on_target: bool | None = None
    """Whether its evidence meets the truth; None where that is unknown."""
    retrieved: tuple[Retrieved, ...] = ()
    """The nearest candidates, best first."""
    rank: int | None = None
    """1-based rank of the best right candidate; None where excluded."""
    candidates: int = 0
    """Size of the pool it was ranked over."""
    chance: float | None = None
    """Share of that pool that is right: hit@1 of candidates in any order; None where excluded."""
    metrics: Mapping[str, float] | None = None
    """Per-query metrics; None where excluded."""
    excluded: str = ""
    """Why the query could not be ranked; empty: it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """Metrics of one variant on one data set, or on all of them."""

    variant: str
    source: str
    """Data set; OVERALL = all together, every query weighing the same."""
    queries: int
    """Queries that were ranked."""
    excluded: Mapping[str, int]
    """How many were not, by reason."""
    candidates_excluded: int
    """Candidates that could not be embedded and left the pool."""
    metrics: Mapping[str, Estimate]
    """Empty where no query could be ranked."""
    valid: float | None
    """Share of query-side traces that are strictly valid; failed ones count as not valid."""
    on_target: float | None
    """Share whose evidence meets the truth, among queries whose truth is known."""
    kind: str = ALL_KINDS
    """Kind of task that it is limited to, over all data sets."""
    chance: float | None = None
    """hit@1 of candidates in any order; None where no query could be ranked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    results: tuple[VariantResult, ...]
    queries: tuple[QueryResult, ...]

    def overall(self) -> dict[str, VariantResult]:
        """Return the result over all data sets, by variant, in the order of the table."""
        return self.of_kind(ALL_KINDS)

    def by_set(self) -> dict[str, dict[str, VariantResult]]:
        """Return the results by data set and variant, both in the order of the run."""
        sets: dict[str, dict[str, VariantResult]] = {}
        for result in self.results:
            if result.source != OVERALL:
                sets.setdefault(result.source, {})[result.variant] = result
        return sets

    def over_sets(self) -> dict[str, dict[str, float]]:
        """Return by variant the mean of each metric over the data sets that have it, all alike."""
        means: dict[str, dict[str, float]] = {}
        for variant in self.overall():
            ranked = [results[variant].metrics for results in self.by_set().values()]
            ranked = [metrics for metrics in ranked if metrics]
            means[variant] = {
                name: float(np.mean([metrics[name].mean for metrics in ranked]))
                for name in (MEASURES if ranked else ())
            }
        return means

    def of_kind(self, kind: str) -> dict[str, VariantResult]:
        """Return the result over the tasks of one kind in all data sets, by variant."""
        return {
            result.variant: result
            for result in self.results
            if result.source == OVERALL and result.kind == kind
        }


@dataclass(frozen=True, slots=True)
class _End:
    """One item to reason about and embed; equal ends share trace and vector."""

    item: Item
    side: Side
    seeks_video: bool = False


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What became of each end in one variant: exactly one of the two mappings holds it."""

    found: Mapping[_End, np.ndarray]
    failed: Mapping[_End, str]


def variants_of(reasoners: Iterable[str]) -> list[Variant]:
    """Return the variants in the order of the table: no trace, then text and evidence of each."""
    variants = [Variant(name=NO_COT)]
    for name in reasoners:
        text = Variant(name=name + TEXT_SUFFIX, reasoner=name, evidence=Evidence.TEXT)
        variants += [text, Variant(name=name, reasoner=name, evidence=Evidence.FULL)]
    return variants


def task_kind(query: Item, target: Item) -> Kind:
    """Return the kind of a task: video, page or image where either side is one, in this order."""
    for kind in (Kind.VIDEO, Kind.PAGE, Kind.IMAGE):
        if kind in (query.kind, target.kind):
            return kind
    return Kind.TEXT


def evaluate(
    pairs: Sequence[Pair],
    *,
    reasoners: Mapping[str, Reason],
    embed: Embed,
    settings: Settings,
    distractors: Mapping[str, Iterable[Item]] = MappingProxyType({}),
) -> Evaluation:
    """Return the metrics of every variant on the same pairs.

    Each Reasoner is called once, in order, before anything is embedded, so that one set of
    engines can serve all of them. A query is ranked over its row's own candidates where it has
    some, else over the unique targets of its data set and the set's ``distractors``. Pairs with the
    same `query_id` are one query.
    """
    relevance = Relevance(pairs)
    pools = pools_of(pairs, relevance, distractors)
    grades = _grades_of(pairs)
    pairs = _queries_of(pairs)
    right = [_right_of(pair, pools, relevance) for pair in pairs]
    ends = _ends_of(pairs, pools)
    traces = {name: _reason(ends, reason, settings) for name, reason in reasoners.items()}
    cache: dict[str, np.ndarray | None] = {}
    results: list[VariantResult] = []
    queries: list[QueryResult] = []
    for variant in variants_of(reasoners):
        said = traces.get(variant.reasoner)
        vectors = _embed(ends, said, variant, embed=embed, settings=settings, cache=cache)
        query_results = _rank(pairs, pools, right, grades, variant, said, vectors, settings)
        queries.extend(query_results)
        for source in (OVERALL, *pools):
            rows = [query for query in query_results if source in (OVERALL, query.source)]
            kept = [pair for pair in pairs if source in (OVERALL, pair.source)]
            failed = sum(end in vectors.failed for end in _candidates_of(kept, pools))
            results.append(_sum_up(variant.name, source, rows, failed, settings))
        for kind in dict.fromkeys(task_kind(pair.query, pair.target) for pair in pairs):
            rows = [
                query for query in query_results if task_kind(query.query, query.target) is kind
            ]
            kept = [pair for pair in pairs if task_kind(pair.query, pair.target) is kind]
            failed = sum(end in vectors.failed for end in _candidates_of(kept, pools))
            result = _sum_up(variant.name, OVERALL, rows, failed, settings)
            results.append(replace(result, kind=kind))
    return Evaluation(results=tuple(results), queries=tuple(queries))


def _queries_of(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the first pair of each query."""
    first: dict[tuple[str, str | int], Pair] = {}
    for number, pair in enumerate(pairs):
        first.setdefault((pair.source, pair.query_id or number), pair)
    return list(first.values())


def _grades_of(pairs: Sequence[Pair]) -> Grades:
    grades: Grades = {}
    for pair in pairs:
        if pair.grade != 1:
            of_target = grades.setdefault((pair.source, pair.key(Side.QUERY)), {})
            key = pair.target.key()
            of_target[key] = max(pair.grade, of_target.get(key, 1))
    return grades


def _query(pair: Pair) -> _End:
    seeks_video = pair.query.kind is Kind.TEXT and pair.target.kind is Kind.VIDEO
    return _End(pair.query, Side.QUERY, seeks_video)


def _candidate(item: Item) -> _End:
    return _End(item, Side.TARGET)


def _ends_of(pairs: Sequence[Pair], pools: Mapping[str, CandidatePool]) -> list[_End]:
    """Return every query and candidate once."""
    return list(dict.fromkeys([*map(_query, pairs), *_candidates_of(pairs, pools)]))


def _candidates_of(pairs: Sequence[Pair], pools: Mapping[str, CandidatePool]) -> list[_End]:
    """Return every candidate that one of the pairs is ranked over, once."""
    shared = dict.fromkeys(pair.source for pair in pairs if not pair.candidates)
    items = [item for source in shared for item in pools[source].items]
    items += [item for pair in pairs for item in pair.candidates]
    return list(dict.fromkeys(map(_candidate, items)))


def _reason(ends: Sequence[_End], reason: Reason, settings: Settings) -> dict[_End, str | None]:
    """Return the trace of each end, None where none came back."""
    keys: dict[_End, str] = {}
    requests: dict[str, Content] = {}
    for end in ends:
        content = item_content(
            end.item,
            end.side,
            templates=settings.templates,
            max_frames=settings.max_frames,
            item_tokens=settings.item_tokens,
            seeks_video=end.seeks_video,
        )
        keys[end] = content_key(content)
        requests[keys[end]] = content
    answers = reason(list(requests.items()))
    return {end: answers.get(keys[end]) for end in ends}


def _embed(
    ends: Sequence[_End],
    traces: Mapping[_End, str | None] | None,
    variant: Variant,
    *,
    embed: Embed,
    settings: Settings,
    cache: dict[str, np.ndarray | None],
) -> _Vectors:
    """Return the vector of each end; ``cache`` holds, by content, what earlier variants embedded.

    An end without a trace has failed in a variant that uses traces: embedding it bare would
    replace the trace by nothing.
    """
    failed: dict[_End, str] = {}
    keys: dict[_End, str] = {}
    requests: dict[str, Content] = {}
    for end in ends:
        trace = None if traces is None else traces[end]
        if traces is not None and (trace is None or not trace.strip()):
            failed[end] = "trace failed" if trace is None else "empty trace"
            continue
        content = embed_content(
            end.item,
            trace,
            max_frames=settings.max_frames,
            item_tokens=settings.item_tokens,
            evidence=variant.evidence,
        )
        keys[end] = content_key(content)
        requests[keys[end]] = content
    missing = [
        EmbedRequest(key=key, content=content)
        for key, content in requests.items()
        if key not in cache
    ]
    answers = embed(missing) if missing else {}
    cache.update((request.key, answers.get(request.key)) for request in missing)
    vectors: dict[_End, np.ndarray] = {}
    for end, key in keys.items():
        vector = cache[key]
        if vector is None:
            failed[end] = "no embedding"
        elif not means_something(vector):
            failed[end] = "embedding not finite or zero"
        else:
            vectors[end] = vector
    return _Vectors(vectors, failed)


def _rank(
    pairs: Sequence[Pair],
    pools: Mapping[str, CandidatePool],
    right: Sequence[frozenset[int]],
    grades: Grades,
    variant: Variant,
    traces: Mapping[_End, str | None] | None,
    vectors: _Vectors,
    settings: Settings,
) -> list[QueryResult]:
    """Return the result of each pair's query, in the order of the pairs."""
    matrices = {source: _Matrix.of(pool.items, vectors) for source, pool in pools.items()}
    rankings: dict[str, QueryRanking] = {}
    reasons: dict[str, str] = {}
    used: dict[str, _Matrix] = {}
    for number, pair in enumerate(pairs):
        serial = str(number)
        matrix = matrices[pair.source]
        if pair.candidates:
            matrix = _Matrix.of(_own_candidates(pair), vectors)
        row_of = matrix.row_of
        relevant = frozenset(row_of[index] for index in right[number] if index in row_of)
        end = _query(pair)
        if end in vectors.failed:
            reasons[serial] = f"query: {vectors.failed[end]}"
        elif not relevant:
            why = vectors.failed.get(_candidate(pair.target), "not among the row's candidates")
            reasons[serial] = f"target: {why}"
        else:
            similarity = matrix.rows @ unit_rows([vectors.found[end]])[0]
            of_target = grades.get((pair.source, pair.key(Side.QUERY)), {})
            keys = {row: matrix.items[row].key() for row in relevant} if of_target else {}
            rankings[serial] = replace(
                rank_candidates(similarity, relevant),
                grades={row: of_target[key] for row, key in keys.items() if key in of_target},
            )
            used[serial] = matrix
    values = measure_rankings(rankings)
    results = []
    for number, pair in enumerate(pairs):
        serial = str(number)
        shown = tuple(p.uri for p in pictures_of(pair.query, settings.max_frames))
        trace = "" if traces is None else traces[_query(pair)] or ""
        parsed = parse_trace(trace, kind=pair.query.kind, num_frames=len(shown))
        ranking = rankings.get(serial)
        results.append(
            QueryResult(
                variant=variant.name,
                source=pair.source,
                pair_id=pair.pair_id,
                query=pair.query,
                target=pair.target,
                shown=shown,
                truth=pair.query_evidence,
                trace=trace,
                valid=None if traces is None else parsed is not None and parsed.valid,
                on_target=(
                    None
                    if traces is None
                    else on_target(parsed, pair.query_evidence, num_frames=len(shown))
                ),
                retrieved=_retrieved(ranking, used[serial].items) if ranking else (),
                rank=ranking.rank if ranking else None,
                candidates=len(used[serial].items) if ranking else 0,
                chance=len(ranking.relevant) / len(used[serial].items) if ranking else None,
                metrics={name: values[name][serial] for name in MEASURES} if ranking else None,
                excluded=reasons.get(serial, ""),
            )
        )
    return results


def _own_candidates(pair: Pair) -> tuple[Item, ...]:
    """Return the row's own candidates, each once; empty: it has none."""
    return tuple({item.key(): item for item in pair.candidates}.values())


def _right_of(
    pair: Pair, pools: Mapping[str, CandidatePool], relevance: Relevance
) -> frozenset[int]:
    """Return which of its own candidates, or of its pool's items, are right for a pair's query."""
    if not pair.candidates:
        return pools[pair.source].relevant[pair.key(Side.QUERY)]
    keys = [item.key() for item in _own_candidates(pair)]
    [right] = relevance.right([pair.key(Side.QUERY)], keys)
    return frozenset(np.flatnonzero(right).tolist())


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Candidates that were embedded, with their unit rows [N, D]."""

    items: tuple[Item, ...]
    row_of: Mapping[int, int]
    """Row of each of these candidates, by its index among all that were to be embedded."""
    rows: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], vectors: _Vectors) -> "_Matrix":
        kept = [index for index, item in enumerate(items) if _candidate(item) in vectors.found]
        kept_vectors = [vectors.found[_candidate(items[index])] for index in kept]
        return cls(
            items=tuple(items[index] for index in kept),
            row_of={index: row for row, index in enumerate(kept)},
            rows=unit_rows(kept_vectors) if kept_vectors else np.empty((0, 0)),
        )


def _retrieved(ranking: QueryRanking, items: Sequence[Item]) -> tuple[Retrieved, ...]:
    return tuple(
        Retrieved(item=items[index], right=index in ranking.relevant)
        for index in ranking.top[:RETRIEVED_PER_QUERY]
    )


def _sum_up(
    variant: str,
    source: str,
    rows: Sequence[QueryResult],
    candidates_excluded: int,
    settings: Settings,
) -> VariantResult:
    ranked = [row.metrics for row in rows if row.metrics is not None]
    metrics = {}
    if ranked:
        metrics = {
            name: estimate(
                [row[name] for row in ranked], resamples=settings.resamples, seed=settings.seed
            )
            for name in MEASURES
        }
    return VariantResult(
        variant=variant,
        source=source,
        queries=len(ranked),
        excluded=dict(Counter(row.excluded for row in rows if row.excluded)),
        candidates_excluded=candidates_excluded,
        metrics=metrics,
        valid=_share(row.valid for row in rows),
        on_target=_share(row.on_target for row in rows),
        chance=_share(row.chance for row in rows),
    )


def _share(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
