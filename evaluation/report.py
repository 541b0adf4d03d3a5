"""The report: one HTML file with table, curves, tasks and a gallery of traces.

Everything is inside the file: style, plots, pictures. Texts from data and models are escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from random import Random

from jinja2 import Environment, PackageLoader, StrictUndefined

from configs.schema import MediaConfig
from data.types import Item, Kind
from evaluation import gallery
from evaluation.evidence import parse_trace
from evaluation.metrics import MEASURES, Estimate
from evaluation.plots import COLOURS, GREY, plot_curves, plot_evidence, plot_tasks
from evaluation.runner import NO_COT, OVERALL, TEXT_SUFFIX, QueryResult, VariantResult
from evaluation.summary import Runs

BEFORE, AFTER = "warm_start", "eg_rl"
REASONERS = {BEFORE: "Warm start", AFTER: "EG-RL"}
DEMO_JOB = "demo_data"
"""The job whose teacher is biased on purpose; the report says so where it ran."""
_PICTURE, _STRIP = 352, 528
"""Pixels of a picture and of a strip of frames; shown at half that width, sharp on any screen."""
_THUMBNAIL = 128
_TAGS = re.compile(r"(</?(?:thinking|rethink|answer)>)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the headline table."""

    title: str
    colour: str
    best: bool
    result: VariantResult
    metrics: tuple[Estimate | None, ...]
    excluded: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """One retrieved candidate: a picture, a text, or both."""

    uri: str
    text: str
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceView:
    """What one Reasoner wrote for a query, and what came of it."""

    title: str
    colour: str
    picture: str
    """Data URI of the query's pictures with the evidence drawn in; empty for a text."""
    parts: tuple[tuple[bool, str], ...]
    """(is a tag, text) in order."""
    keywords: tuple[str, ...]
    query: QueryResult
    thumbs: tuple[Thumb, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One query of the gallery."""

    task: str
    kind: str
    text: str
    target: Thumb
    traces: tuple[TraceView, ...]


def title_of(variant: str) -> str:
    """Return a variant's name as readers see it."""
    if variant == NO_COT:
        return "No T-CoT"
    reasoner = variant.removesuffix(TEXT_SUFFIX)
    what = "text only" if variant.endswith(TEXT_SUFFIX) else "text + evidence"
    return f"{REASONERS.get(reasoner, reasoner)}, {what}"


def build_report(runs: Runs, *, title: str, cards: int, seed: int) -> str:
    """Return the HTML of the report.

    Args:
        runs: what to show.
        title: heading of the page.
        cards: queries in the gallery at most.
        seed: draws them.
    """
    environment = Environment(
        loader=PackageLoader("evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    overall = runs.overall()
    variants = {name: title_of(name) for name in overall}
    tasks = _by_task(runs.evaluation.results)
    kinds = _by_kind(runs.evaluation.queries)
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=headline(overall),
        metrics=("hit@1", "hit@5", "nDCG@5"),
        before=overall.get(BEFORE),
        after=overall.get(AFTER),
        no_cot=overall.get(NO_COT),
        steps=runs.steps(),
        stages=runs.stages,
        seconds=sum(stage.seconds for stage in runs.stages),
        biased_teacher=any(stage.job == DEMO_JOB for stage in runs.stages),
        curves=plot_curves(runs.records) if runs.records else "",
        tasks=plot_tasks(tasks, variants) if tasks else "",
        evidence=plot_evidence(kinds, REASONERS) if kinds else "",
        cards=[build_card(pair) for pair in choose(runs.evaluation.queries, cards, seed)],
        trace_colour=gallery.TRACE_COLOUR,
    )


def headline(overall: Mapping[str, VariantResult]) -> list[Row]:
    """Return the lines of the table, the best hit@1 marked."""
    means = [found.metrics["hit_at_1"].mean for found in overall.values() if found.metrics]
    rows = []
    for name, result in overall.items():
        metrics = tuple(result.metrics.get(metric) for metric in MEASURES)
        excluded = [f"{count} x {reason}" for reason, count in result.excluded.items()]
        if result.candidates_excluded:
            excluded.append(f"{result.candidates_excluded} candidates")
        rows.append(
            Row(
                title=title_of(name),
                colour=COLOURS.get(name, GREY),
                best=bool(result.metrics) and result.metrics["hit_at_1"].mean == max(means),
                result=result,
                metrics=metrics,
                excluded="; ".join(excluded),
            )
        )
    return rows


def choose(queries: Sequence[QueryResult], count: int, seed: int) -> list[tuple[QueryResult, ...]]:
    """Return at most ``count`` queries with their results before and after, in that order.

    They are drawn at random within each data set and dealt in turn from all of them, whatever
    came of them.
    """
    found: dict[tuple[str, str, str], dict[str, QueryResult]] = {}
    for query in queries:
        if query.variant in REASONERS:
            key = (query.source, query.pair_id, query.query.key())
            found.setdefault(key, {})[query.variant] = query
    decks: dict[str, list[tuple[QueryResult, ...]]] = {}
    for (source, _, _), results in found.items():
        if results.keys() == REASONERS.keys():
            decks.setdefault(source, []).append(tuple(results[name] for name in REASONERS))
    rng = Random(seed)
    for deck in decks.values():
        rng.shuffle(deck)
    dealt = chain.from_iterable(zip_longest(*decks.values()))
    return [pair for pair in dealt if pair is not None][:count]


def build_card(results: Sequence[QueryResult]) -> Card:
    """Return one query of the gallery with what each Reasoner made of it."""
    first = results[0]
    return Card(
        task=first.source,
        kind=first.query.kind,
        text=first.query.text,
        target=_thumb(first.target, right=True),
        traces=tuple(_trace_view(result) for result in results),
    )


def _trace_view(query: QueryResult) -> TraceView:
    trace = parse_trace(query.trace, kind=query.query.kind, num_frames=len(query.shown))
    return TraceView(
        title=REASONERS[query.variant],
        colour=COLOURS[query.variant],
        picture=_evidence_picture(query),
        parts=tuple(
            (bool(_TAGS.fullmatch(part)), part) for part in _TAGS.split(query.trace) if part
        ),
        keywords=trace.cues.keywords if trace else (),
        query=query,
        thumbs=tuple(_thumb(found.item, right=found.right) for found in query.retrieved),
    )


def _evidence_picture(query: QueryResult) -> str:
    """Return the query's pictures with evidence and truth drawn in, "" for a text."""
    if not query.shown:
        return ""
    trace = parse_trace(query.trace, kind=query.query.kind, num_frames=len(query.shown))
    limits = MediaConfig()
    loaded = [gallery.load_image(uri, limits) for uri in query.shown]
    side = _PICTURE // 2
    images = [
        image or gallery.placeholder("not found", width=side, height=side) for image in loaded
    ]
    if query.query.kind is Kind.VIDEO:
        drawn = gallery.draw_strip(
            images,
            key_frames=trace.cues.key_frames if trace else (),
            truth=query.truth.key_frames,
            width=_STRIP,
        )
    else:
        drawn = gallery.draw_boxes(
            images[0],
            boxes=trace.cues.boxes if trace and loaded[0] else (),
            truth=query.truth.boxes if loaded[0] else (),
            width=_PICTURE,
            height=_PICTURE,
        )
    return gallery.data_uri(drawn)


def _thumb(item: Item, *, right: bool) -> Thumb:
    if not item.uris:
        return Thumb(uri="", text=item.text, right=right)
    limits = MediaConfig()
    images = [
        gallery.load_image(uri, limits)
        or gallery.placeholder("not found", width=_THUMBNAIL, height=_THUMBNAIL)
        for uri in item.uris
    ]
    uri = gallery.data_uri(gallery.thumbnail(images, side=_THUMBNAIL))
    return Thumb(uri=uri, text=item.text, right=right)


def _by_task(results: Sequence[VariantResult]) -> dict[str, dict[str, Estimate]]:
    """Return hit@1 as {data set: {variant: estimate}}, those without a ranked query left out."""
    tasks: dict[str, dict[str, Estimate]] = {}
    for result in results:
        if result.source != OVERALL and result.metrics:
            tasks.setdefault(result.source, {})[result.variant] = result.metrics["hit_at_1"]
    return tasks


def _by_kind(
    queries: Sequence[QueryResult],
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return hit@1 as {kind of query: {reasoner: (text only, text + evidence)}}."""
    hits: dict[str, dict[str, list[float]]] = {}
    for query in queries:
        if query.metrics is not None:
            of_kind = hits.setdefault(query.query.kind, {})
            of_kind.setdefault(query.variant, []).append(query.metrics["hit_at_1"])
    means = {
        kind: {variant: sum(found) / len(found) for variant, found in variants.items()}
        for kind, variants in hits.items()
    }
    return {
        kind: {
            name: (found[name + TEXT_SUFFIX], found[name])
            for name in REASONERS
            if name in found and name + TEXT_SUFFIX in found
        }
        for kind, found in means.items()
    }
