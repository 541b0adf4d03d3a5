"""A page of pairs as they are in the data sets: both sides, with the true evidence drawn in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.common import MediaConfig
from data.prompts import pictures_of
from data.types import Cues, Kind, Pair, Side
from evaluation.report.gallery import evidence_picture
from evaluation.report.html import render

PAIRS_SHOWN = 16
"""Pairs of each set, spread evenly over its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetItem:
    """One side of a pair as the page shows it."""

    side: Side
    kind: Kind
    text: str
    picture: str
    """Data URI of its pictures with the true evidence drawn in; empty for a text."""
    keywords: tuple[str, ...]


def build_sheet(sets: Mapping[str, Sequence[Pair]], *, title: str, limits: MediaConfig) -> str:
    """Return the HTML of the page.

    Args:
        sets: the pairs to draw from, by the heading of their set.
        title: heading of the page.
        limits: of the pictures.
    """
    rows = {
        name: [(pair.pair_id, [_sheet_item(pair, side, limits) for side in Side]) for pair in pairs]
        for name, every in sets.items()
        if (pairs := _spread_evenly(every))
    }
    return render("contact_sheet.html.j2", title=title, sets=rows)


def _spread_evenly(pairs: Sequence[Pair]) -> list[Pair]:
    count = min(PAIRS_SHOWN, len(pairs))
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _sheet_item(pair: Pair, side: Side, limits: MediaConfig) -> SheetItem:
    item, truth = pair.item(side), pair.evidence(side)
    shown = [picture.uri for picture in pictures_of(item, limits.max_frames)]
    return SheetItem(
        side=side,
        kind=item.kind,
        text=item.text,
        picture=evidence_picture(shown, item.kind, cues=Cues(), truth=truth, limits=limits),
        keywords=truth.keywords,
    )
