"""The galleries of the report, card by card: a query, what each Reasoner wrote, what it retrieved;
a held-out item, and what the policy wrote about it after more and more steps.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from random import Random
from typing import TypeVar

from configs.common import MediaConfig
from data.types import Cues, Item, Kind, Side
from evaluation.evidence import parse_trace
from evaluation.report import drawing
from evaluation.report.plots import COLOURS
from evaluation.runner import QueryResult
from evaluation.summary import HeldOutItem
from evaluation.variants import PUBLISHED

BEFORE, AFTER = "warm_start", "eg_rl"
REASONERS = {PUBLISHED: "Published", BEFORE: "Warm start", AFTER: "EG-RL"}
"""The Reasoners that are compared, with their names for readers, in order."""
_PICTURE, _STRIP = 352, 528
"""Pixels of a picture and of a strip of frames; shown at half that width, sharp on any screen."""
_THUMBNAIL = 128
MOST_STEPS = 8
"""Measurements of RL that are shown side by side."""
T = TypeVar("T")
_TAGS = re.compile(r"(</?(?:thinking|rethink|answer)>)")


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
class StepView:
    """What the policy wrote about an item after a step."""

    step: int
    picture: str
    """As `TraceView.picture`."""
    parts: tuple[tuple[bool, str], ...]
    keywords: tuple[str, ...]
    valid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeCard:
    """One held-out item over the steps of RL."""

    task: str
    kind: str
    text: str
    steps: tuple[StepView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One query of the gallery."""

    task: str
    kind: str
    text: str
    target: Thumb
    traces: tuple[TraceView, ...]


def choose_queries(
    queries: Sequence[QueryResult], count: int, seed: int
) -> list[tuple[QueryResult, ...]]:
    """Return at most ``count`` queries with their results before and after EG-RL.

    Where only one Reasoner was measured, these are its results alone. Queries are drawn at random
    within each data set and dealt in turn from all of them, whatever came of them.
    """
    by_query: dict[tuple[str, str, str], dict[str, QueryResult]] = {}
    there = [name for name in REASONERS if any(query.variant == name for query in queries)]
    for query in queries:
        if query.variant in REASONERS:
            key = (query.source, query.pair_id, query.query.key())
            by_query.setdefault(key, {})[query.variant] = query
    decks: dict[str, list[tuple[QueryResult, ...]]] = {}
    for (source, _, _), results in by_query.items():
        if len(results) == len(there):
            decks.setdefault(source, []).append(tuple(results[name] for name in there))
    return _dealt(decks, count, seed)


def _dealt(decks: Mapping[str, list[T]], count: int, seed: int) -> list[T]:
    """Return at most ``count`` cards, shuffled within each deck and dealt in turn from all."""
    rng = Random(seed)
    for deck in decks.values():
        rng.shuffle(deck)
    dealt = chain.from_iterable(zip_longest(*decks.values()))
    return [card for card in dealt if card is not None][:count]


def over_time(
    items: Sequence[HeldOutItem], queries: Sequence[QueryResult], *, count: int, seed: int
) -> list[TimeCard]:
    """Return cards of at most ``count`` items with pictures, drawn as `choose_queries` draws.

    Of many measurements `MOST_STEPS` are shown, the first and the last among them; only items that
    have a trace at each of these are drawn. ``queries`` tell the true evidence where they know it.
    """
    steps = sorted({step for item in items for step in item.traces})
    if len(steps) > MOST_STEPS:
        last = len(steps) - 1
        steps = [steps[round(place * last / (MOST_STEPS - 1))] for place in range(MOST_STEPS)]
    decks: dict[str, list[HeldOutItem]] = {}
    for item in items:
        if item.shown and item.traces.keys() >= set(steps):
            decks.setdefault(item.of.task, []).append(item)
    truths = {query.query.key(): query.truth for query in queries}
    return [_time_card(item, steps, truths) for item in _dealt(decks, count, seed)]


def _time_card(item: HeldOutItem, steps: Sequence[int], truths: Mapping[str, Cues]) -> TimeCard:
    of = item.of
    truth = truths.get(of.item.key(), Cues()) if of.side is Side.QUERY else Cues()
    views = []
    for step in steps:
        trace = parse_trace(item.traces[step], kind=of.item.kind, num_frames=len(item.shown))
        cues = trace.cues if trace else Cues()
        view = StepView(
            step=step,
            picture=evidence_picture(
                item.shown, of.item.kind, cues=cues, truth=truth, limits=MediaConfig()
            ),
            parts=trace_parts(item.traces[step]),
            keywords=cues.keywords,
            valid=trace is not None and trace.valid,
        )
        views.append(view)
    return TimeCard(
        task=of.task, kind=of.item.kind, text=of.item.instructed_text(), steps=tuple(views)
    )


def build_card(results: Sequence[QueryResult]) -> Card:
    """Return one query of the gallery with what each Reasoner made of it."""
    first = results[0]
    return Card(
        task=first.source,
        kind=first.query.kind,
        text=first.query.instructed_text(),
        target=_thumb(first.target, right=True),
        traces=tuple(_trace_view(result) for result in results),
    )


def _trace_view(query: QueryResult) -> TraceView:
    trace = parse_trace(query.trace, kind=query.query.kind, num_frames=len(query.shown))
    return TraceView(
        title=REASONERS[query.variant],
        colour=COLOURS[query.variant],
        picture=evidence_picture(
            query.shown,
            query.query.kind,
            cues=trace.cues if trace else Cues(),
            truth=query.truth,
            limits=MediaConfig(),
        ),
        parts=trace_parts(query.trace),
        keywords=trace.cues.keywords if trace else (),
        query=query,
        thumbs=tuple(
            _thumb(candidate.item, right=candidate.right) for candidate in query.retrieved
        ),
    )


def trace_parts(trace: str) -> tuple[tuple[bool, str], ...]:
    """Return a trace cut at its tags: (is a tag, text) in order."""
    return tuple((bool(_TAGS.fullmatch(part)), part) for part in _TAGS.split(trace) if part)


def evidence_picture(
    shown: Sequence[str], kind: Kind, *, cues: Cues, truth: Cues, limits: MediaConfig
) -> str:
    """Return a data URI of an item's pictures with evidence and truth drawn in, "" for a text.

    Args:
        shown: uris of the picture, or of the frames that are shown.
        kind: of the item.
        cues: what a trace points at, drawn solid.
        truth: what it should point at, drawn dashed.
        limits: of the pictures.
    """
    if not shown:
        return ""
    loaded = [drawing.load_image(uri, limits) for uri in shown]
    side = _PICTURE // 2
    images = [
        image or drawing.placeholder("not found", width=side, height=side) for image in loaded
    ]
    if kind is Kind.VIDEO:
        drawn = drawing.draw_strip(
            images, key_frames=cues.key_frames, truth=truth.key_frames, width=_STRIP
        )
    else:
        drawn = drawing.draw_boxes(
            images[0],
            boxes=cues.boxes if loaded[0] else (),
            truth=truth.boxes if loaded[0] else (),
            width=_PICTURE,
            height=_PICTURE,
        )
    return drawing.data_uri(drawn)


def _thumb(item: Item, *, right: bool) -> Thumb:
    if not item.uris:
        return Thumb(uri="", text=item.instructed_text(), right=right)
    limits = MediaConfig()
    images = [
        drawing.load_image(uri, limits)
        or drawing.placeholder("not found", width=_THUMBNAIL, height=_THUMBNAIL)
        for uri in item.uris
    ]
    uri = drawing.data_uri(drawing.thumbnail(images, side=_THUMBNAIL))
    return Thumb(uri=uri, text=item.instructed_text(), right=right)
