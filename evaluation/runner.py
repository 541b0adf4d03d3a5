"""Reason, embed, rank: every variant of one evaluation over the same queries.

Pure: the engines come in as functions. Joins are by content: what a model would
read twice is asked for once. What fails is left out with a reason, and counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from data.prompts import item_content, pictures_of
from data.stores.keys import content_key
from data.stores.traces import NamedSubject, Subject
from data.types import Content, Cues, Item, Kind
from evaluation.adaptive.figures import AdaptiveFigures
from evaluation.costs import Costs, Speed, TraceFigures, cost_figures, share
from evaluation.evidence import on_target, parse_trace
from evaluation.metrics import MEASURES, Estimate, estimate
from evaluation.ranking import rank_queries
from evaluation.scores.comparisons import Comparison, comparisons
from evaluation.scores.set_result import SetResult, score_set
from evaluation.sets import (
    End,
    EvaluationQuery,
    EvaluationSet,
    candidate_end,
    candidate_ends,
    ends_of,
    query_end,
    shown_target,
)
from evaluation.variants import (
    OTHER_TRACE,
    SAMPLES,
    Traces,
    Variant,
    compared_variants,
    other_traces,
    variants_of,
)
from evaluation.vectors import Embed, Rival, Vectors, embed_rival, embed_variants

Reason = Callable[[list[tuple[Subject, Content]]], Mapping[str, str]]
"""Greedy traces by `Subject.key`, of one Reasoner; one that is absent from the answer has failed.
"""
Sample = Callable[[list[tuple[Subject, Content]]], Sequence[Mapping[str, str]]]
"""Several sampled traces of each subject, of one Reasoner: those of a seed together, as `Reason`
gives them."""
Ranked = tuple[EvaluationSet, EvaluationQuery, "QueryResult"]

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
    controls: tuple[str, ...] = ()
    """Of OTHER_TRACE and SAMPLES those that are measured beside the variants of each Reasoner."""


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
    set_results: Mapping[str, Sequence[SetResult]] = field(default_factory=dict)
    """Every metric of the sets in which a query was ranked, by variant; not in the files."""
    dimensions: int = 0
    """Of our Embedder's vectors; 0: none was embedded, or read from the files."""
    reasoning: tuple[TraceFigures, ...] = ()
    """What each Reasoner's traces are like."""
    speed: Speed = field(default_factory=Speed)
    differences: tuple[Comparison, ...] = ()
    """Which variants differ, see `compared_variants`."""
    adaptive: AdaptiveFigures | None = None
    """What a gate that decides which queries get a trace saves; None: not measured."""

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
    samplers: Mapping[str, Sample] = MappingProxyType({}),
    rivals: Mapping[str, Rival] = MappingProxyType({}),
    costs: Costs | None = None,
) -> Evaluation:
    """Return the metrics of every variant on the same queries.

    Each Reasoner is called once, in order, before anything is embedded, so that one set of
    engines can serve all of them.

    Args:
        sets: what is ranked.
        reasoners: greedy traces, by the Reasoner's name.
        embed: the Embedder.
        settings: which variants, and what models read.
        samplers: sampled traces of the same Reasoners; asked only for the control SAMPLES, of
            whose traces the vectors' mean is ranked.
        rivals: other Embedders, by name, each called once, after ours.
        costs: who knows what traces and vectors cost; what nobody knows is None in the result.
    """
    ends: dict[End, str] = {}
    for data_set in sets:
        for end in ends_of(data_set):
            ends.setdefault(end, data_set.name)
    variants = variants_of(reasoners, settings.controls, rivals)
    keys, subjects = subjects_of(ends if reasoners else {}, settings)
    traces = {name: _by_end(keys, reason(list(subjects))) for name, reason in reasoners.items()}
    samples = {
        v.reasoner: [_by_end(keys, answers) for answers in samplers[v.reasoner](list(subjects))]
        for v in variants
        if v.control == SAMPLES
    }
    ours = [v for v in variants if not v.rival]
    said = [(v, _traces_of(v, traces, samples, sets, ends)) for v in ours]
    embedded, content_keys = embed_variants(
        list(ends),
        said,
        embed,
        max_frames=settings.max_frames,
        item_tokens=settings.item_tokens,
    )
    of_rivals = [
        embed_rival(
            list(ends), rival, max_frames=settings.max_frames, item_tokens=settings.item_tokens
        )
        for rival in rivals.values()
    ]
    reasoning, speed = cost_figures(
        traces,
        costs,
        trace_keys=[subject.key for subject, _ in subjects],
        content_keys=content_keys,
        max_frames=settings.max_frames,
    )
    results: list[VariantResult] = []
    queries: list[QueryResult] = []
    set_results: dict[str, list[SetResult]] = {}
    # Of several traces none is shown.
    shown = [of_variant[0] if len(of_variant) == 1 else None for _, of_variant in said]
    shown += [None] * len(of_rivals)
    for variant, own, vectors in zip(variants, shown, [*embedded, *of_rivals], strict=True):
        ranked: list[Ranked] = []
        for data_set in sets:
            of_set, set_result = _rank(data_set, variant, own, vectors, settings)
            ranked += of_set
            if set_result is not None:
                set_results.setdefault(variant.name, []).append(set_result)
        queries += [result for _, _, result in ranked]
        results += _results(variant.name, sets, ranked, vectors, settings)
    return Evaluation(
        results=tuple(results),
        queries=tuple(queries),
        set_results=set_results,
        dimensions=max((len(v) for vectors in embedded for v in vectors.found.values()), default=0),
        reasoning=reasoning,
        speed=speed,
        differences=comparisons(
            compared_variants(variants),
            set_results,
            resamples=settings.resamples,
            seed=settings.seed,
        ),
    )


def subjects_of(
    ends: Mapping[End, str], settings: Settings
) -> tuple[dict[End, str], list[tuple[Subject, Content]]]:
    """Return the key of what Reasoners read of each end, and what they are asked, equal contents
    once.

    ``ends`` has their data sets.
    """
    keys: dict[End, str] = {}
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
    return keys, list(requests.values())


def named_subjects(data_set: EvaluationSet, settings: Settings) -> list[NamedSubject]:
    """Return the queries and candidates of a set that published files of traces can name."""
    ends = ends_of(data_set)
    keys, asked = subjects_of(dict.fromkeys(ends, data_set.name), settings)
    subjects = {subject.key: subject for subject, _ in asked}
    named = [(query_end(data_set, query), query.named) for query in data_set.queries]
    named += [
        (candidate_end(item), data_set.named.get(key)) for key, item in data_set.candidates.items()
    ]
    return [
        NamedSubject(of=subjects[keys[end]], kind=name[0], name=name[1])
        for end, name in named
        if name and end in keys  # candidates that no query is ranked over are in no end
    ]


def _by_end(keys: Mapping[End, str], answers: Mapping[str, str]) -> dict[End, str | None]:
    """Return the trace of each end, None where none came back."""
    return {end: answers.get(key) for end, key in keys.items()}


def _traces_of(
    variant: Variant,
    traces: Mapping[str, Traces],
    samples: Mapping[str, Sequence[Traces]],
    sets: Sequence[EvaluationSet],
    ends: Mapping[End, str],
) -> Sequence[Traces | None]:
    """Return the traces that a variant reads; more than one: the vectors' mean is ranked."""
    if variant.control == SAMPLES:
        return samples[variant.reasoner]
    if variant.control == OTHER_TRACE:
        return [other_traces(sets, ends, traces[variant.reasoner])]
    return [traces.get(variant.reasoner)]


def _rank(
    data_set: EvaluationSet,
    variant: Variant,
    traces: Traces | None,
    vectors: Vectors,
    settings: Settings,
) -> tuple[list[Ranked], SetResult | None]:
    """Return each query of a set with its result, in their order, and the metrics of the set."""
    ends = {query.query_id: query_end(data_set, query) for query in data_set.queries}
    orders = rank_queries(
        data_set,
        {name: vectors.found[end] for name, end in ends.items() if end in vectors.found},
        {
            key: vectors.found[end]
            for key, item in data_set.candidates.items()
            if (end := candidate_end(item)) in vectors.found
        },
    )
    set_result = None
    metrics: dict[str, dict[str, float]] = {}
    if orders:
        set_result = score_set(
            data_set,
            wrong_first={name: order.wrong_first for name, order in orders.items()},
            benchmark_order={name: order.benchmark_order for name, order in orders.items()},
        )
        for place, name in enumerate(set_result.query_ids):
            metrics[name] = {
                measure: float(set_result.values[metric][place])
                for measure, metric in MEASURES.items()
            }
    ranked: list[Ranked] = []
    for query in data_set.queries:
        name, end = query.query_id, ends[query.query_id]
        shown = tuple(p.uri for p in pictures_of(query.item, settings.max_frames))
        trace = "" if traces is None else traces.get(end) or ""
        parsed = parse_trace(trace, kind=query.item.kind, num_frames=len(shown))
        order = orders.get(name)
        result = QueryResult(
            variant=variant.name,
            source=data_set.name,
            pair_id=name,
            query=query.item,
            target=shown_target(data_set, query),
            shown=shown,
            truth=query.truth,
            trace=trace,
            valid=None if traces is None else parsed is not None and parsed.valid,
            on_target=(
                None if traces is None else on_target(parsed, query.truth, num_frames=len(shown))
            ),
            retrieved=tuple(
                Retrieved(item=data_set.candidates[key], right=key in query.right)
                for key in (order.wrong_first[:RETRIEVED_PER_QUERY] if order else ())
            ),
            rank=order.rank if order else None,
            candidates=order.candidates if order else 0,
            chance=order.right / order.candidates if order else None,
            metrics=metrics.get(name),
            excluded="" if order else _why_not_ranked(data_set, query, end, vectors),
        )
        ranked.append((data_set, query, result))
    return ranked, set_result


def _why_not_ranked(
    data_set: EvaluationSet, query: EvaluationQuery, end: End, vectors: Vectors
) -> str:
    if end in vectors.failed:
        return f"query: {vectors.failed[end]}"
    target = candidate_end(shown_target(data_set, query))
    why = vectors.failed.get(target, "not among the row's candidates")
    return f"target: {why}"


def _results(
    variant: str,
    sets: Sequence[EvaluationSet],
    ranked: Sequence[Ranked],
    vectors: Vectors,
    settings: Settings,
) -> list[VariantResult]:
    """Return the results of a variant: over all data sets, of each, and of each kind of task."""
    results = []
    for source in (OVERALL, *(data_set.name for data_set in sets)):
        rows = [row for row in ranked if source in (OVERALL, row[0].name)]
        results.append(_sum_up(variant, source, rows, vectors, settings))
    for kind in dict.fromkeys(task_kind(r.query, r.target) for _, _, r in ranked):
        rows = [row for row in ranked if task_kind(row[2].query, row[2].target) is kind]
        result = _sum_up(variant, OVERALL, rows, vectors, settings)
        results.append(replace(result, kind=kind))
    return results


def _sum_up(
    variant: str, source: str, ranked: Sequence[Ranked], vectors: Vectors, settings: Settings
) -> VariantResult:
    rows = [result for _, _, result in ranked]
    by_set: dict[str, list[Ranked]] = {}
    for row in ranked:
        by_set.setdefault(row[0].name, []).append(row)
    candidates = {
        end
        for of_set in by_set.values()
        for end in candidate_ends(of_set[0][0], (query for _, query, _ in of_set))
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
        valid=share(row.valid for row in rows),
        on_target=share(row.on_target for row in rows),
        chance=share(row.chance for row in rows),
    )
