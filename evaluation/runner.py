"""Reason, embed, rank: every variant of one evaluation over the same queries.

Pure: the engines come in as two kinds of functions. Joins are by content: what a model would
read twice is asked for once. What fails is left out with a reason, and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data.embed_inputs import embed_content
from data.prompts import item_content, pictures_of
from data.sets.hardness import PLAIN
from data.stores.keys import content_key
from data.stores.traces import Subject
from data.types import Content, Cues, EmbedRequest, Evidence, Item, Kind, Side
from evaluation.evidence import on_target, parse_trace
from evaluation.metrics import MEASURES, Estimate, estimate, means_something
from evaluation.ranking import rank_queries
from evaluation.scores.set_result import SetResult, score_set
from evaluation.sets import EvaluationQuery, EvaluationSet

Reason = Callable[[list[tuple[Subject, Content]]], Mapping[str, str]]
"""Greedy traces by `Subject.key`, of one Reasoner; one that is absent from the answer has failed.
"""
Embed = Callable[[list[EmbedRequest]], Mapping[str, np.ndarray]]
"""Vectors [D] by key, of the one frozen Embedder; a key that is absent has failed."""

Ranked = tuple[EvaluationSet, EvaluationQuery, "QueryResult"]

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
    scores: Mapping[str, Sequence[SetResult]] = field(default_factory=dict)
    """Every metric of the sets in which a query was ranked, by variant; not in the files."""
    dimensions: int = 0
    """Of the vectors; 0: none was embedded, or read from the files."""

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
class _Asked:
    """What the Embedder reads of each end in one variant; the others have failed."""

    contents: Mapping[_End, Content]
    failed: Mapping[_End, str]


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
    sets: Sequence[EvaluationSet],
    *,
    reasoners: Mapping[str, Reason],
    embed: Embed,
    settings: Settings,
) -> Evaluation:
    """Return the metrics of every variant on the same queries.

    Each Reasoner is called once, in order, before anything is embedded, so that one set of
    engines can serve all of them.
    """
    ends: dict[_End, str] = {}
    for data_set in sets:
        for end in _ends_of(data_set):
            ends.setdefault(end, data_set.name)
    traces = {name: _reason(ends, reason, settings) for name, reason in reasoners.items()}
    variants = variants_of(reasoners)
    asked = [_ask(list(ends), traces.get(v.reasoner), v, settings) for v in variants]
    results: list[VariantResult] = []
    queries: list[QueryResult] = []
    scores: dict[str, list[SetResult]] = {}
    embedded = _embed(list(ends), asked, embed)
    for variant, vectors in zip(variants, embedded, strict=True):
        said = traces.get(variant.reasoner)
        ranked: list[Ranked] = []
        for data_set in sets:
            of_set, score = _rank(data_set, variant, said, vectors, settings)
            ranked += of_set
            if score is not None:
                scores.setdefault(variant.name, []).append(score)
        queries += [result for _, _, result in ranked]
        for source in (OVERALL, *(data_set.name for data_set in sets)):
            rows = [row for row in ranked if source in (OVERALL, row[0].name)]
            results.append(_sum_up(variant.name, source, rows, vectors, settings))
        for kind in dict.fromkeys(task_kind(r.query, r.target) for _, _, r in ranked):
            rows = [row for row in ranked if task_kind(row[2].query, row[2].target) is kind]
            result = _sum_up(variant.name, OVERALL, rows, vectors, settings)
            results.append(replace(result, kind=kind))
    return Evaluation(
        results=tuple(results),
        queries=tuple(queries),
        scores=scores,
        dimensions=max((len(v) for vectors in embedded for v in vectors.found.values()), default=0),
    )


def _query(data_set: EvaluationSet, query: EvaluationQuery) -> _End:
    seeks_video = query.item.kind is Kind.TEXT and _target(data_set, query).kind is Kind.VIDEO
    return _End(query.item, Side.QUERY, seeks_video)


def _target(data_set: EvaluationSet, query: EvaluationQuery) -> Item:
    return data_set.candidates[next(iter(query.right))]


def _candidate(item: Item) -> _End:
    return _End(item, Side.TARGET)


def _ends_of(data_set: EvaluationSet) -> list[_End]:
    """Return every query, and every candidate that a query is ranked over."""
    queries = [_query(data_set, query) for query in data_set.queries]
    return [*queries, *_candidates_of(data_set, data_set.queries)]


def _candidates_of(data_set: EvaluationSet, queries: Iterable[EvaluationQuery]) -> list[_End]:
    """Return every candidate that one of the queries is ranked over, once."""
    lists = dict.fromkeys(query.candidates for query in queries)  # most queries share one
    keys = dict.fromkeys(key for own in lists for key in own or data_set.candidates)
    return [_candidate(data_set.candidates[key]) for key in keys]


def _reason(ends: Mapping[_End, str], reason: Reason, settings: Settings) -> dict[_End, str | None]:
    """Return the trace of each end, None where none came back. ``ends`` has their data sets."""
    keys: dict[_End, str] = {}
    requests: dict[str, tuple[Subject, Content]] = {}
    for end, source in ends.items():
        content = item_content(
            end.item,
            end.side,
            templates=settings.templates,
            max_frames=settings.max_frames,
            item_tokens=settings.item_tokens,
            seeks_video=end.seeks_video,
        )
        key = keys[end] = content_key(content)
        subject = Subject(key=key, item=end.item, side=end.side, task=source)
        requests.setdefault(key, (subject, content))
    answers = reason(list(requests.values()))
    return {end: answers.get(keys[end]) for end in ends}


def _ask(
    ends: Sequence[_End],
    traces: Mapping[_End, str | None] | None,
    variant: Variant,
    settings: Settings,
) -> _Asked:
    """Return what the Embedder reads of each end.

    An end without a trace has failed in a variant that uses traces: embedding it bare would
    replace the trace by nothing.
    """
    contents: dict[_End, Content] = {}
    failed: dict[_End, str] = {}
    for end in ends:
        trace = None if traces is None else traces[end]
        if traces is not None and (trace is None or not trace.strip()):
            failed[end] = "trace failed" if trace is None else "empty trace"
            continue
        contents[end] = embed_content(
            end.item,
            trace,
            max_frames=settings.max_frames,
            item_tokens=settings.item_tokens,
            evidence=variant.evidence,
        )
    return _Asked(contents, failed)


def _embed(ends: Sequence[_End], asked: Sequence[_Asked], embed: Embed) -> list[_Vectors]:
    """Return the vector of each end, for each of ``asked``.

    Equal contents are embedded once. All contents of an item follow each other, so that its
    pictures need not be kept for long.
    """
    keys = [
        {end: content_key(content) for end, content in of_variant.contents.items()}
        for of_variant in asked
    ]
    requests: dict[str, Content] = {}
    for end in ends:
        for of_variant, named in zip(asked, keys, strict=True):
            if end in named:
                requests[named[end]] = of_variant.contents[end]
    answers = embed([EmbedRequest(key=key, content=c) for key, c in requests.items()])
    return [
        _vectors(named, of_variant.failed, answers)
        for of_variant, named in zip(asked, keys, strict=True)
    ]


def _vectors(
    keys: Mapping[_End, str], failed: Mapping[_End, str], answers: Mapping[str, np.ndarray]
) -> _Vectors:
    vectors: dict[_End, np.ndarray] = {}
    reasons = dict(failed)
    for end, key in keys.items():
        vector = answers.get(key)
        if vector is None:
            reasons[end] = "no embedding"
        elif not means_something(vector):
            reasons[end] = "embedding not finite or zero"
        else:
            vectors[end] = vector
    return _Vectors(vectors, reasons)


def _rank(
    data_set: EvaluationSet,
    variant: Variant,
    traces: Mapping[_End, str | None] | None,
    vectors: _Vectors,
    settings: Settings,
) -> tuple[list[Ranked], SetResult | None]:
    """Return each query of a set with its result, in their order, and the metrics of the set."""
    ends = {query.query_id: _query(data_set, query) for query in data_set.queries}
    orders = rank_queries(
        data_set,
        {name: vectors.found[end] for name, end in ends.items() if end in vectors.found},
        {
            key: vectors.found[end]
            for key, item in data_set.candidates.items()
            if (end := _candidate(item)) in vectors.found
        },
    )
    scores = None
    metrics: dict[str, dict[str, float]] = {}
    if orders:
        scores = score_set(
            data_set,
            against={name: order.against for name, order in orders.items()},
            benchmark_order={name: order.benchmark_order for name, order in orders.items()},
        )
        for place, name in enumerate(scores.query_ids):
            metrics[name] = {
                measure: float(scores.values[metric][place]) for measure, metric in MEASURES.items()
            }
    ranked: list[Ranked] = []
    for query in data_set.queries:
        name, end = query.query_id, ends[query.query_id]
        shown = tuple(p.uri for p in pictures_of(query.item, settings.max_frames))
        trace = "" if traces is None else traces[end] or ""
        parsed = parse_trace(trace, kind=query.item.kind, num_frames=len(shown))
        order = orders.get(name)
        result = QueryResult(
            variant=variant.name,
            source=data_set.name,
            pair_id=name,
            query=query.item,
            target=_target(data_set, query),
            shown=shown,
            truth=query.truth,
            trace=trace,
            valid=None if traces is None else parsed is not None and parsed.valid,
            on_target=(
                None if traces is None else on_target(parsed, query.truth, num_frames=len(shown))
            ),
            retrieved=tuple(
                Retrieved(item=data_set.candidates[key], right=key in query.right)
                for key in (order.against[:RETRIEVED_PER_QUERY] if order else ())
            ),
            rank=order.rank if order else None,
            candidates=order.candidates if order else 0,
            chance=order.right / order.candidates if order else None,
            metrics=metrics.get(name),
            excluded="" if order else _why_not_ranked(data_set, query, end, vectors),
        )
        ranked.append((data_set, query, result))
    return ranked, scores


def _why_not_ranked(
    data_set: EvaluationSet, query: EvaluationQuery, end: _End, vectors: _Vectors
) -> str:
    if end in vectors.failed:
        return f"query: {vectors.failed[end]}"
    target = _candidate(_target(data_set, query))
    why = vectors.failed.get(target, "not among the row's candidates")
    return f"target: {why}"


def _sum_up(
    variant: str, source: str, ranked: Sequence[Ranked], vectors: _Vectors, settings: Settings
) -> VariantResult:
    rows = [result for _, _, result in ranked]
    by_set: dict[str, list[Ranked]] = {}
    for row in ranked:
        by_set.setdefault(row[0].name, []).append(row)
    candidates = {
        end
        for of_set in by_set.values()
        for end in _candidates_of(of_set[0][0], (query for _, query, _ in of_set))
    }
    measured = [row.metrics for row in rows if row.metrics is not None]
    metrics = {}
    if measured:
        metrics = {
            name: estimate(
                [row[name] for row in measured], resamples=settings.resamples, seed=settings.seed
            )
            for name in MEASURES
        }
    return VariantResult(
        variant=variant,
        source=source,
        queries=len(measured),
        excluded=dict(Counter(row.excluded for row in rows if row.excluded)),
        candidates_excluded=sum(end in vectors.failed for end in candidates),
        metrics=metrics,
        valid=_share(row.valid for row in rows),
        on_target=_share(row.on_target for row in rows),
        chance=_share(row.chance for row in rows),
    )


def _share(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
