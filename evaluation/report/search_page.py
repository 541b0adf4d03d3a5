"""A page of search results: the query, and the nearest items with pictures, boxes and traces."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.common import MediaConfig
from data.stores.encoded import EncodedItem
from data.types import Cues
from evaluation.report.drawing import TRACE_COLOUR
from evaluation.report.gallery import evidence_picture, trace_parts
from evaluation.report.html import render

TEXT_CHARS, KEYWORDS_SHOWN = 2000, 50
"""Items may hold texts of any length; a page shows their beginnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemCard:
    """An item as the page shows it."""

    item_id: str
    heading: str
    similarity: str
    """Empty: it is the query."""
    file: str
    kind: str
    text: str
    picture: str
    """Data URI of its picture with the boxes of its trace, or of its frames; empty for a text."""
    alt: str
    """What the picture shows, for who cannot see it."""
    parts: tuple[tuple[bool, str], ...]
    """Of its trace: (is a tag, text) in order."""
    keywords: tuple[str, ...]


def build_search_page(
    query: EncodedItem,
    hits: Sequence[tuple[float, EncodedItem]],
    *,
    title: str,
    count: int,
    limits: MediaConfig,
) -> str:
    """Return the HTML of the page, which needs no other file.

    Args:
        query: what was sought.
        hits: similarity and item, best first.
        title: heading of the page.
        count: items that were searched.
        limits: of the pictures; one that can no longer be read becomes a grey tile.
    """
    return render(
        "search.html.j2",
        title=title,
        query=_card(query, heading="", similarity="", limits=limits),
        hits=[
            _card(item, heading=f"{rank}", similarity=f"{similarity:.4f}", limits=limits)
            for rank, (similarity, item) in enumerate(hits, start=1)
        ],
        count=count,
        trace_colour=TRACE_COLOUR,
    )


def _card(item: EncodedItem, *, heading: str, similarity: str, limits: MediaConfig) -> ItemCard:
    return ItemCard(
        item_id=item.item_id,
        heading=f"{heading}. {item.item_id}" if heading else "",
        similarity=similarity,
        file=item.file,
        kind=item.kind,
        text=item.text[:TEXT_CHARS],
        picture=evidence_picture(item.uris, item.kind, cues=item.cues, truth=Cues(), limits=limits),
        alt=_alt(item),
        parts=trace_parts(item.trace),
        keywords=item.cues.keywords[:KEYWORDS_SHOWN],
    )


def _alt(item: EncodedItem) -> str:
    """Return what the picture of an item shows: its name, and what the trace points at in it."""
    marked = f"; boxes framed: {len(item.cues.boxes)}" if item.cues.boxes else ""
    if item.cues.key_frames:
        numbers = ", ".join(str(frame + 1) for frame in item.cues.key_frames)
        marked = f"; key frames: {numbers} of {len(item.uris)}"
    return f"{item.kind} {item.file}{marked}"
