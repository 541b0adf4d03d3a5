"""Rows that sets can leave out: they nearly repeat held-out rows, or earlier rows of their set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, product
from typing import Any, NamedTuple

import numpy as np

from data.checks.near_contents import NearPairs, near_pictures, near_texts
from data.checks.set_figures import CheckedSet, Medium
from data.media.perceptual_hash import HASH_BYTES
from data.prompts import pictures_of
from data.sets.load_sets import LoadedSet
from data.types import Kind, Pair, Side

EXAMPLES = 5
"""Rows that are listed as examples."""
PARTNERS = 8
"""Contents that are nearly equal to another, at most; the nearest ones."""
TRIED = 10_000
"""Combinations of nearly equal parts in which an earlier row is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """A part of a row that equals, or nearly equals, a part of another row, which stays."""

    checked: CheckedSet
    pair: int
    """Number of the pair in the set; and of the row in the set's files, both from 0."""
    row: int
    side: Side
    what: Kind
    """`TEXT`, or the kind of item whose pictures are alike."""
    of_checked: CheckedSet
    of_pair: int
    of_row: int
    of_side: Side
    similarity: float
    """1 for equal ones; else the share of equal bits of the hash, or of common shingles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearReport:
    """What nearly repeats what in data sets."""

    duplicates: list[NearDuplicate]
    """Rows that sets can leave out, by set and row; an entry for each part of a row."""
    contents: list[dict[str, int]]
    """How many `pictures` and `texts` nearly equal an earlier one of their set, for each set."""


class _Part(NamedTuple):
    """A text, or the pictures of an item."""

    content: int
    what: Kind
    pair: int
    row: int
    side: Side
    empty: bool
    telling: bool
    """Whether a training row with this part is named for it alone: pictures, and the text of a text
    query."""


_Row = tuple[_Part, ...]
_Partners = dict[int, list[tuple[int, float]]]
"""What is nearly equal to a content, the nearest first, with the similarity."""


def near_duplicates(
    sets: Sequence[CheckedSet], media: Mapping[str, Medium], max_frames: int
) -> NearReport:
    """Return which rows sets can leave out, with what they have in common with rows that stay.

    A training row is named where pictures of its query or target look like some of a held-out row,
    or where its query is a text that nearly equals a held-out query. Any other row is named where
    all of it, query and target, pictures and texts, nearly equals an earlier row of its set: one
    picture with five captions in five rows is no near duplicate. Of a video the first, the middle
    and the last frame shown are compared. Rows with broken media are not compared.
    """
    contents = _Contents(media, max_frames)
    # Held-out ones first: where very many contents are alike, each is compared with the first.
    order = sorted(range(len(sets)), key=lambda number: not sets[number].held_out)
    rows = {number: contents.rows(sets[number].loaded) for number in order}
    near = contents.near_pairs([_own(rows[number]) for number in order])
    held_out = {
        part.content: (sets[number], part)
        for number in reversed(order)
        for part in _parts(reversed(rows[number]))
        if sets[number].held_out and part.telling
    }
    leaked = _partners(near, None, np.array(list(held_out), np.int64))
    duplicates: list[NearDuplicate] = []
    counts = []
    for number, checked in enumerate(sets):
        own = _own(rows[number])
        counts.append(contents.count(near, own))
        inside = _partners(near, own, own)
        earlier: dict[tuple[int, ...], _Row] = {}
        for row in rows[number]:
            matches = [] if checked.held_out else _leaks(row, held_out, leaked)
            if not matches:
                matches = [
                    (part, checked, of_part, value)
                    for part, of_part, value in _repeats(row, earlier, inside)
                ]
            duplicates += [
                NearDuplicate(
                    checked=checked,
                    pair=part.pair,
                    row=part.row,
                    side=part.side,
                    what=part.what,
                    of_checked=of_checked,
                    of_pair=of_part.pair,
                    of_row=of_part.row,
                    of_side=of_part.side,
                    similarity=value,
                )
                for part, of_checked, of_part, value in matches
            ]
    return NearReport(duplicates=duplicates, contents=counts)


def near_row(near: NearDuplicate) -> dict[str, Any]:
    """Return a near duplicate as a row of `near_duplicates.parquet`; rows count from 1."""
    loaded, of_loaded = near.checked.loaded, near.of_checked.loaded
    (file, row), (of_file, of_row) = loaded.place(near.row), of_loaded.place(near.of_row)
    return {
        "data_set": loaded.name,
        "file": file,
        "row": row,
        "side": str(near.side),
        "what": str(near.what),
        "similarity": round(near.similarity, 4),
        "of_data_set": of_loaded.name,
        "of_file": of_file,
        "of_row": of_row,
        "of_side": str(near.of_side),
    }


def near_by_set(
    near: Iterable[NearDuplicate],
) -> list[tuple[CheckedSet, CheckedSet, list[NearDuplicate]]]:
    """Return the near duplicates by their set and the other's, the first one of each row."""
    groups: dict[tuple[int, int], tuple[CheckedSet, CheckedSet, dict[int, NearDuplicate]]] = {}
    for entry in near:
        key = (id(entry.checked), id(entry.of_checked))
        _, _, by_row = groups.setdefault(key, (entry.checked, entry.of_checked, {}))
        by_row.setdefault(entry.row, entry)
    return [(checked, other, list(by_row.values())) for checked, other, by_row in groups.values()]


def describe_near(near: Iterable[NearDuplicate]) -> list[dict[str, Any]]:
    """Return how many rows of which set nearly repeat rows of which set, with the first ones."""
    return [
        {
            "data_set": checked.loaded.name,
            "held_out": checked.held_out,
            "of_data_set": other.loaded.name,
            "of_held_out": other.held_out,
            "rows": len(entries),
            "examples": [near_row(entry) for entry in entries[:EXAMPLES]],
        }
        for checked, other, entries in near_by_set(near)
    ]


class _Contents:
    """Numbers all pictures and texts; equal ones have one number."""

    def __init__(self, media: Mapping[str, Medium], max_frames: int) -> None:
        self._media, self._max_frames = media, max_frames
        self._numbers: dict[str | tuple[str, ...], int] = {}
        self._hashes: dict[str, str] = {}
        """Perceptual hashes by digest."""

    def rows(self, loaded: LoadedSet) -> list[_Row]:
        """Return the parts of each row whose media can be decoded."""
        rows = []
        for _, group in groupby(enumerate(loaded.pairs), lambda entry: entry[1].row):
            pairs = list(group)
            uris = [uri for _, pair in pairs for side in Side for uri in self._uris(pair, side)]
            if not any(self._media[uri].reason for uri in uris):
                rows.append(
                    tuple(part for place, pair in pairs for part in self._pair(place, pair))
                )
        return rows

    def near_pairs(self, sets: Sequence[np.ndarray]) -> NearPairs:
        """Return which contents are nearly equal; ``sets`` has the numbers of each set's."""
        hashes = np.zeros((len(self._hashes), HASH_BYTES), np.uint8)
        for row, text in zip(hashes, self._hashes.values(), strict=True):
            row[: len(text) // 2] = np.frombuffer(bytes.fromhex(text), np.uint8)
        places = {digest: place for place, digest in enumerate(self._hashes)}
        result = []
        for frames in (1, 3):
            chosen = {
                key: number
                for key, number in self._numbers.items()
                if isinstance(key, tuple) and len(key) == frames
            }
            keys = [[places[digest] for digest in key] for key in chosen]
            table = np.array(keys, np.int64).reshape(-1, frames)
            result.append((np.array(list(chosen.values()), np.int64), near_pictures(table, hashes)))
        texts = {key: number for key, number in self._numbers.items() if isinstance(key, str)}
        numbers = np.array(list(texts.values()), np.int64)
        own = [np.flatnonzero(np.isin(numbers, of_set)) for of_set in sets]
        result.append((numbers, near_texts(list(texts), own)))
        earlier, later, values = (
            np.concatenate(parts)
            for parts in zip(
                *((of[first], of[second], value) for of, (first, second, value) in result),
                strict=True,
            )
        )
        return earlier, later, values

    def count(self, near: NearPairs, own: np.ndarray) -> dict[str, int]:
        """Return how many of a set's contents nearly equal an earlier one of the set."""
        of_set = np.isin(near[0], own) & np.isin(near[1], own)
        is_text = np.array([isinstance(key, str) for key in self._numbers], bool)
        texts = is_text[np.unique(near[1][of_set])]
        return {"pictures": int((~texts).sum()), "texts": int(texts.sum())}

    def _pair(self, place: int, pair: Pair) -> Iterator[_Part]:
        for side in Side:
            item, uris = pair.item(side), self._uris(pair, side)
            digests = [self._media[uri].digest for uri in uris]
            for uri, digest in zip(uris, digests, strict=True):
                self._hashes[digest] = self._media[uri].perceptual_hash
            if len(digests) > 1:
                # The middle first: beginnings and ends of clips are often black.
                digests = [digests[len(digests) // 2], digests[0], digests[-1]]
            number = self._number(tuple(digests))
            yield _Part(number, item.kind, place, pair.row, side, not digests, bool(digests))
            # The same text with another instruction is another query, but the same target.
            text = item.instructed_text() if side is Side.QUERY else item.text
            if side is Side.TARGET and not text and not uris:
                text = pair.query_trace  # what a caption says of its picture
            telling = item.kind is Kind.TEXT and side is Side.QUERY
            number, telling = self._number(text), telling and bool(text)
            yield _Part(number, Kind.TEXT, place, pair.row, side, not text, telling)

    def _uris(self, pair: Pair, side: Side) -> list[str]:
        return [picture.uri for picture in pictures_of(pair.item(side), self._max_frames)]

    def _number(self, key: str | tuple[str, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _parts(rows: Iterable[_Row]) -> Iterator[_Part]:
    return (part for row in rows for part in row)


def _own(rows: Sequence[_Row]) -> np.ndarray:
    """Return the numbers of the contents of rows, int64."""
    return np.unique(np.fromiter((part.content for part in _parts(rows)), np.int64))


def _partners(near: NearPairs, of: np.ndarray | None, among: np.ndarray) -> _Partners:
    """Return what is nearly equal ``among`` these contents, for those of ``of`` or for all."""
    first, second = (np.concatenate(ends) for ends in ((near[0], near[1]), (near[1], near[0])))
    values = np.tile(near[2], 2)
    keep = np.isin(second, among)
    if of is not None:
        keep &= np.isin(first, of)
    result: _Partners = {}
    for number in np.flatnonzero(keep)[np.argsort(-values[keep], kind="stable")]:
        partners = result.setdefault(int(first[number]), [])
        if len(partners) < PARTNERS:
            partners.append((int(second[number]), float(values[number])))
    return result


def _leaks(
    row: _Row, held_out: Mapping[int, tuple[CheckedSet, _Part]], partners: _Partners
) -> list[tuple[_Part, CheckedSet, _Part, float]]:
    """Return the parts of a row that held-out rows have too, each with the nearest of theirs."""
    matches = {}
    for part in row:
        nearest = [(part.content, 1.0)] if part.content in held_out else []
        nearest = nearest or partners.get(part.content, [])
        if part.telling and nearest:
            content, value = nearest[0]
            matches[part.content, part.side] = (part, *held_out[content], value)
    return list(matches.values())


def _repeats(
    row: _Row, earlier: dict[tuple[int, ...], _Row], partners: _Partners
) -> list[tuple[_Part, _Part, float]]:
    """Return the parts of a row with those of an earlier one that it nearly repeats as a whole.

    A row that repeats none joins the earlier ones.
    """
    contents = tuple(part.content for part in row)
    choices = [((content, 1.0), *partners.get(content, ())) for content in contents]
    for combination in islice(product(*choices), TRIED):
        other = earlier.get(tuple(content for content, _ in combination))
        if other is not None:
            return [
                (part, of_part, value)
                for part, of_part, (_, value) in zip(row, other, combination, strict=True)
                if not part.empty
            ]
    earlier[contents] = row
    return []
