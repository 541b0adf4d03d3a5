"""Data sets on disk to pairs: which rows are set aside, and when a set is refused.

All rows are read once to know the pairs (`data.sets.scan`); what is known is kept on disk for large
sets (`data.sets.index_files`). A pair is made from its row when it is drawn.
"""

import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal, overload

import numpy as np

from configs.common import DataConfig, DataSetConfig, MediaConfig
from data.errors import DataError, RowsChanged
from data.relevance import Relevance
from data.rows.beir_rows import BeirFigures
from data.rows.picture_paths import KnownFiles
from data.rows.row_formats import (
    KNOWN_FIELDS,
)
from data.sets.index import PairTable, Texts
from data.sets.open_sets import OpenedSet, open_set
from data.sets.picture_copies import COMPARED_BYTES, find_copies
from data.sets.scan import BadRow, PairReader
from data.types import Item, Kind, Pair

log = logging.getLogger(__name__)

LISTED = 20
"""Rows set aside whose reasons are logged one by one."""
BLOCK = 1_000
"""Pairs that are made together where all are asked for."""
PAUSES_S = (1.0, 5.0, 20.0, 60.0)
"""Before each further try to read a row that could be read before: a file server may be away."""


class DrawnPairs(Sequence[Pair]):
    """The pairs of a set; each is made from its row when it is asked for."""

    def __init__(self, reader: PairReader, table: PairTable, known: KnownFiles) -> None:
        self._reader, self._table, self._files = reader, table, reader.files(known)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """Return a pair.

        Raises:
            DataError: its row could be read before, and cannot be any more.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        return self._made([place])[0]

    def __iter__(self) -> Iterator[Pair]:
        for first in range(0, len(self), BLOCK):
            yield from self._made(range(first, min(first + BLOCK, len(self))))

    def _made(self, places: Sequence[int]) -> list[Pair]:
        for pause in PAUSES_S:
            try:
                return self._read(places)
            except RowsChanged:
                raise
            except DataError as error:
                log.warning("%s; read again in %g s", error, pause)
                time.sleep(pause)
        return self._read(places)

    def _read(self, places: Sequence[int]) -> list[Pair]:
        table = self._table
        numbers = table.rows[places].tolist()
        rows = dict(zip(numbers, numbers, strict=True))
        made = {}
        for number, row in zip(rows, self._reader.rows.at(list(rows)).read(), strict=True):
            if isinstance(row, DataError):
                raise row
            made[number] = self._reader.pairs(row, number, self._files, [])
        return [
            replace(made[number][table.places[place]], pair_id=table.ids[place])
            for place, number in zip(places, numbers, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """A data set's usable pairs and what was set aside."""

    name: str
    pairs: Sequence[Pair]
    table: PairTable
    """The same pairs by columns."""
    uris: Texts
    """The pictures that its rows name."""
    shown: np.ndarray
    """bool, one for each of `uris`: whether a query or a target shows it."""
    bad_rows: tuple[BadRow, ...] = ()
    rows: int = 0
    """Rows of the file, those that the set does not use as well."""
    read: int = 0
    """Rows that were read of them."""
    unranked: tuple[BadRow, ...] = ()
    """Rows of the file that were set aside before, as the set's `hardest_by` cannot rank them."""
    unknown_fields: Mapping[str, int] = field(default_factory=dict)
    """Rows by the field in them that the format does not know."""
    first_unknown: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The numbers of the first rows with each of these fields, from 0."""
    files: tuple[str, ...] = ()
    file_ends: tuple[int, ...] = ()
    """Rows of its files up to the end of each."""
    media_named: int = 0
    """Names of media in its rows, each counted once."""
    media_usable: int = 0
    """Those of them that can be used, as far as is known before decoding."""
    copies: int = 0
    """Files and cells with the same bytes as an earlier one, which count as that one."""
    distractors: Mapping[int, Item] = field(default_factory=dict)
    """Further candidates for its queries in an evaluation, right for none of them: the rest of its
    corpus, by the row's number in the set's files."""
    beir: BeirFigures | None = None
    """Of a `beir` set: how large it is."""
    other_format: str = ""
    """The format that the rows plainly have instead of the set's; then none of them can be used."""

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a row, and the row's number in it from 1."""
        number = bisect_right(self.file_ends, index)
        first = self.file_ends[number - 1] if number else 0
        return self.files[number], index - first + 1

    def shows(self, kinds: Iterable[Kind]) -> bool:
        """Return whether an item of one of these kinds is in a pair or among the distractors."""
        kinds = set(kinds)
        return self.table.shows(kinds) or any(
            item.kind in kinds for item in self.distractors.values()
        )

    @property
    def as_video(self) -> bool:
        """Whether a pair shows a video as one, not as separate pictures."""
        return self.table.as_video

    def shown_uris(self) -> Iterator[str]:
        """Yield the pictures that queries and targets show, each once or more often."""
        yield from self.uris.take(np.flatnonzero(self.shown))


def load_set(
    config: DataSetConfig,
    *,
    max_frames: int = MediaConfig.max_frames,
    max_file_bytes: int = MediaConfig.max_file_bytes,
    video: Literal["video", "frames"] = MediaConfig.video,
    offline: bool = True,
) -> LoadedSet:
    """Read one data set; bad rows are set aside with a reason, a bad file is refused.

    Traces must be right for ``max_frames`` shown frames of a video. ``video`` as in MediaConfig.
    ``offline``: nothing is fetched. Archives are unpacked first.

    Raises:
        DataError: the file is missing, `hardest_by` can rank no row, an archive cannot be unpacked,
            or a file of `traces` cannot be read.
    """
    media = MediaConfig(max_frames=max_frames, max_file_bytes=max_file_bytes, video=video)
    [loaded] = load_each([config], media=media, offline=offline)
    if isinstance(loaded, DataError):
        raise loaded
    return loaded


def load_each(
    configs: Sequence[DataSetConfig], *, media: MediaConfig, offline: bool, unpack: bool = True
) -> list[LoadedSet | DataError]:
    """Read data sets; return each, or why its file is refused.

    Equal pictures of sets with the same root are the same picture. ``offline``: nothing is fetched;
    without ``unpack`` a set whose archives are not unpacked yet is a `NotUnpacked`.
    """
    opened: list[OpenedSet | DataError] = []
    for config in configs:
        try:
            opened.append(open_set(config, media, offline=offline, unpack=unpack))
        except DataError as error:
            opened.append(error)
    loaded: list[LoadedSet | DataError | None] = [
        entry if isinstance(entry, DataError) else None for entry in opened
    ]
    roots: dict[tuple[str, bool], list[int]] = {}
    for number, config in enumerate(configs):
        if loaded[number] is None:
            roots.setdefault((config.root, config.follow_links), []).append(number)
    for numbers in roots.values():
        sets = [entry for n in numbers if isinstance(entry := opened[n], OpenedSet)]
        for number, data_set in zip(numbers, _with_copies(sets), strict=True):
            loaded[number] = data_set
    return [entry for entry in loaded if entry is not None]


def _with_copies(opened: Sequence[OpenedSet]) -> Iterator[LoadedSet]:
    """Yield sets of one root with their pairs: of equal pictures the first stands for all."""
    copies = find_copies([entry.index.pictures for entry in opened])
    for entry, own, uncompared in zip(opened, copies.copies, copies.uncompared, strict=True):
        index, name = entry.index, entry.config.name
        for warning in index.warnings:
            log.warning("%s", warning)
        _tell_of_copies(name, own, uncompared)
        pictures = index.pictures.renamed(copies.first)
        moved = pictures.numbers != index.pictures.numbers
        table = index.pairs.with_pictures(index.pictures.numbers[moved], pictures.numbers[moved])
        known = KnownFiles(copies.first, index.counts, pictures.frame_times())
        yield LoadedSet(
            name=name,
            pairs=DrawnPairs(entry.reader, table, known),
            table=table,
            uris=pictures.uris,
            shown=pictures.shown,
            bad_rows=index.bad_rows,
            rows=index.rows,
            read=index.read,
            unranked=index.unranked,
            unknown_fields={} if entry.config.extra_fields == "ignore" else index.unknown_fields,
            first_unknown=index.first_unknown,
            files=index.files,
            file_ends=index.file_ends,
            media_named=index.media_named,
            media_usable=index.media_usable,
            copies=len(own),
            distractors=_renamed(entry.distractors, index.pictures.uris, pictures.uris, moved),
            beir=entry.beir,
            other_format=index.other_format,
        )


def _renamed(
    items: Mapping[int, Item], old: Texts, new: Texts, moved: np.ndarray
) -> dict[int, Item]:
    """Return items with the pictures that stand for others; ``moved``: which those are."""
    places = np.flatnonzero(moved) if items else np.zeros(0, dtype=np.int64)
    first = dict(zip(old.take(places), new.take(places), strict=True))
    return {
        row: replace(item, uris=tuple(first.get(uri, uri) for uri in item.uris))
        for row, item in items.items()
    }


def load_sets(configs: list[DataSetConfig], *, limits: DataConfig) -> list[LoadedSet]:
    """Read several data sets; rows that are set aside are logged with their reasons.

    Raises:
        DataError: a file is unreadable, a set is empty, or more than ``limits.max_bad_rows`` of
            its rows are bad or have a field that nobody knows; the message lists the first.
    """
    loaded: list[LoadedSet] = []
    problems: list[str] = []
    for config, data_set in zip(
        configs, load_each(configs, media=limits.media, offline=limits.offline), strict=True
    ):
        if isinstance(data_set, DataError):
            problems.append(str(data_set))
            continue
        log_bad_rows(data_set)
        problems += set_problems(data_set, config, max_bad_rows=limits.max_bad_rows)
        loaded.append(data_set)
    problems += repeated_names(configs)
    if problems:
        raise DataError("\n".join(problems))
    return loaded


def known_right(sets: Sequence[LoadedSet]) -> Relevance:
    """Return which targets are right for which queries by all pairs of the sets."""
    return Relevance.by_numbers(np.concatenate([data_set.table.numbers() for data_set in sets]))


def repeated_names(configs: list[DataSetConfig]) -> list[str]:
    """Return what is wrong with the sets' names: they identify the sets."""
    names = Counter(config.name for config in configs)
    return [f"data set name '{n}' is used {k} times" for n, k in names.items() if k > 1]


def log_bad_rows(data_set: LoadedSet) -> None:
    """Log why rows were set aside, and how many; `set_problems` tells of rows of another format."""
    if data_set.other_format:
        return
    for bad_rows, rows in ((data_set.unranked, data_set.rows), (data_set.bad_rows, data_set.read)):
        for bad in bad_rows[:LISTED]:
            log.warning("row set aside: %s", bad.reason)
        if bad_rows:
            log.warning(
                "data set '%s': %d of %d rows set aside%s",
                data_set.name,
                len(bad_rows),
                rows,
                f", the first {LISTED} listed" if len(bad_rows) > LISTED else "",
            )


def set_problems(data_set: LoadedSet, config: DataSetConfig, *, max_bad_rows: float) -> list[str]:
    """Return why a set cannot be used; its unknown fields are logged where it can."""
    if not data_set.read:
        return [f"data set '{data_set.name}': {config.path} holds no row"]
    if data_set.other_format:
        return [
            f"data set '{data_set.name}', format: expected rows of {config.format} in "
            f"{config.path}, found rows that look like {data_set.other_format}; set the set's "
            "format to that"
        ]
    problems = []
    for bad_rows, rows in ((data_set.unranked, data_set.rows), (data_set.bad_rows, data_set.read)):
        if not bad_rows or (data_set.pairs and len(bad_rows) <= max_bad_rows * rows):
            continue
        reasons = [bad.reason for bad in bad_rows[:5]]
        if more := len(bad_rows) - len(reasons):
            reasons.append(f"and {more} more")
        shown = "\n    ".join(reasons)
        limit = (
            f"more than data.max_bad_rows={max_bad_rows}; mend the file or raise the limit"
            if data_set.pairs
            else "so none is left; mend the file"
        )
        problems.append(
            f"data set '{data_set.name}': {len(bad_rows)} of {rows} rows are bad, {limit}:\n"
            f"    {shown}"
        )
    if data_set.unknown_fields:
        known = KNOWN_FIELDS[config.format]
        most = sorted(data_set.unknown_fields.items(), key=lambda entry: (-entry[1], entry[0]))
        named = "; ".join(
            f"{name[:80]!a} in {count} of {data_set.read} rows{_nearest(name, known)}, "
            f"{_places(data_set, name)}"
            for name, count in most[:5]
        )
        more = f"; and {len(most) - 5} others" if len(most) > 5 else ""
        text = f"data set '{data_set.name}': fields that format '{config.format}' does not know: "
        if most[0][1] > max_bad_rows * data_set.read:
            problems.append(
                f"{text}{named}{more}; rename them, or set the set's extra_fields: ignore where "
                "they are there on purpose"
            )
        else:
            log.warning("%s%s%s; they are ignored", text, named, more)
    return problems


def no_traces(split: str, names: Iterable[str]) -> str:
    """Return why supervised training has nothing to learn from the sets of ``data.<split>``."""
    return (
        f"data.{split}: expected rows with a written trace (query_cot or pos_cot; caption in "
        f"caption sets), found none in: {', '.join(names) or 'none'}; have a teacher write them, "
        "or make them with cluster.jobs.rule_traces"
    )


def _places(data_set: LoadedSet, name: str) -> str:
    """Return where the first rows with a field are that nobody knows."""
    rows_by_file: dict[str, list[str]] = {}
    for file, row in map(data_set.place, data_set.first_unknown[name]):
        rows_by_file.setdefault(file, []).append(str(row))
    return "first in " + ", ".join(
        f"{file} row{'s' * (len(rows) > 1)} {', '.join(rows)}"
        for file, rows in rows_by_file.items()
    )


def _nearest(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name[:80], sorted(known), n=1)
    return f" (near '{near[0]}')" if near else ""


def _tell_of_copies(name: str, copies: Mapping[str, str], uncompared: int) -> None:
    """Log how many picture files are copies of others."""
    if copies:
        copy, first = next(iter(copies.items()))
        log.warning(
            "data set '%s': %d picture files have the same bytes as an earlier one (%s is %s); "
            "each counts as that one",
            name,
            len(copies),
            copy,
            first,
        )
    if uncompared:
        log.warning(
            "data set '%s': %d picture files were not compared with others of their size, as %d "
            "MiB were read already; copies among them count as different pictures",
            name,
            uncompared,
            COMPARED_BYTES >> 20,
        )
