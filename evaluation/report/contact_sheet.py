"""A page of pairs as they are in the data sets: both sides, with the true evidence drawn in.

After them come near duplicates side by side, so that a person can judge them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.common import MediaConfig
from data.prompts import pictures_of
from data.types import Cues, Kind, Pair, Side
from evaluation.report.gallery import evidence_picture
from evaluation.report.html import render

PAIRS_SHOWN = 16
"""Pairs of each set, spread evenly over its rows."""
TEXT_CHARS, ID_CHARS, KEYWORDS_SHOWN = 2000, 200, 50
"""Data may hold texts of any length; a page shows their beginnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetItem:
    """One side of a pair as the page shows it."""

    side: Side
    kind: Kind
    text: str
    picture: str
    """Data URI of its pictures with the true evidence drawn in; empty for a text."""
    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NearItems:
    """Two items of which one nearly repeats the other."""

    caption: str
    items: tuple[tuple[Pair, Side], tuple[Pair, Side]]


def build_sheet(
    sets: Iterable[tuple[str, Sequence[Pair]]],
    near: Iterable[tuple[str, Sequence[NearItems]]] = (),
    *,
    title: str,
    limits: MediaConfig,
) -> str:
    """Return the HTML of the page.

    Args:
        sets: the heading of each set, and the pairs to draw from.
        near: headings, and the near duplicates to show under each.
        title: heading of the page.
        limits: of the pictures.
    """
    rows = [
        (
            name,
            [
                (pair.pair_id[:ID_CHARS], [_sheet_item(pair, side, limits) for side in Side])
                for pair in _spread_evenly(pairs)
            ],
        )
        for name, pairs in sets
        if pairs
    ]
    near_rows = [
        (
            heading,
            [
                (entry.caption, [_sheet_item(pair, side, limits) for pair, side in entry.items])
                for entry in entries
            ],
        )
        for heading, entries in near
    ]
    return render("contact_sheet.html.j2", title=title, sets=rows, near=near_rows)


def _spread_evenly(pairs: Sequence[Pair]) -> list[Pair]:
    count = min(PAIRS_SHOWN, len(pairs))
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _sheet_item(pair: Pair, side: Side, limits: MediaConfig) -> SheetItem:
    item, truth = pair.item(side), pair.evidence(side)
    shown = [picture.uri for picture in pictures_of(item, limits.max_frames)]
    return SheetItem(
        side=side,
        kind=item.kind,
        text=item.instructed_text()[:TEXT_CHARS],
        picture=evidence_picture(shown, item.kind, cues=Cues(), truth=truth, limits=limits),
        keywords=tuple(word[:ID_CHARS] for word in truth.keywords[:KEYWORDS_SHOWN]),
    )
