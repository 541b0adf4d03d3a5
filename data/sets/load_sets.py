"""Data sets on disk to pairs: which rows are set aside, and when a set is refused.

All rows are read once to know the pairs (`data.sets.scan`); what is known is kept on disk for large
sets (`data.sets.index_files`). A pair is made from its row when it is drawn.
"""

import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from configs.common import DataConfig, DataSetConfig, MediaConfig
from data.containers.addresses import file_of
from data.content_numbers import text_number
from data.errors import DataError, NotUnpacked, RowError
from data.relevance import Relevance
from data.sets.archives import unpack_archives, waiting_archives
from data.sets.beir_rows import BeirRows
from data.sets.fingerprints import set_files
from data.sets.index import PairTable, PictureTable, Texts
from data.sets.index_files import KEPT_FROM, SetIndex, index_folder, load_index, save_index
from data.sets.locations import linked_folder, local_set
from data.sets.picture_copies import COMPARED_BYTES, find_copies
from data.sets.picture_paths import KnownFiles
from data.sets.row_files import read_rows
from data.sets.row_formats import (
    JSON_FIELDS,
    KNOWN_FIELDS,
    SAMPLED_BOXES,
    UNITS,
    TrueBoxes,
    corpus_item,
    format_told,
)
from data.sets.rows import Rows
from data.sets.scan import BadRow, PairReader, Scan, picture_table, scan_rows
from data.sets.subsets import rows_in_use
from data.sets.trace_files import read_traces
from data.types import Item, Kind, Pair

log = logging.getLogger(__name__)

BAR_AFTER_S = 3.0
"""Sets that take longer to read show a progress bar."""
TELLING_ROWS = 20
"""First rows that show which format a file has, where none of its rows can be used."""
LISTED = 20
"""Rows set aside whose reasons are logged one by one."""
TELLING_BOXES = 16
"""Boxes from which on it is more than chance that all of them look like pixels."""
TELLING_SIZE = 640
"""Pictures of more pixels a side hold most boxes in thousandths, too."""
LARGE = 4 << 20
"""Bytes of a set's files from which on an index of it may be kept."""
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
    other_format: str = ""
    """The format that the rows plainly have instead of the set's; then none of them can be used."""

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a row, and the row's number in it from 1."""
        number = bisect_right(self.file_ends, index)
        first = self.file_ends[number - 1] if number else 0
        return self.files[number], index - first + 1

    def shown_uris(self) -> Iterator[str]:
        """Yield the pictures that queries and targets show, each once or more often."""
        yield from self.uris.take(np.flatnonzero(self.shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenedSet:
    config: DataSetConfig
    reader: PairReader
    index: SetIndex
    distractors: Mapping[int, Item] = field(default_factory=dict)


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
    opened: list[_OpenedSet | DataError] = []
    for config in configs:
        try:
            opened.append(_open_set(config, media, offline=offline, unpack=unpack))
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
        sets = [entry for n in numbers if isinstance(entry := opened[n], _OpenedSet)]
        for number, data_set in zip(numbers, _with_copies(sets), strict=True):
            loaded[number] = data_set
    return [entry for entry in loaded if entry is not None]


def _open_set(
    config: DataSetConfig, media: MediaConfig, *, offline: bool, unpack: bool
) -> _OpenedSet:
    """Return what is known of a set: from the cache, else from its rows."""
    local = local_set(config, offline=offline)
    if not Path(local.root).is_dir():
        raise DataError(
            f"data set '{config.name}': root folder {local.root} not found; set its `root`"
        )
    if unpack:
        unpack_archives(local)
    elif waiting := waiting_archives(local):
        raise NotUnpacked(f"data set '{config.name}': {len(waiting)} archives are not unpacked yet")

    traces = read_traces(local.traces)

    def reader_of(rows: Rows) -> PairReader:
        return PairReader(
            rows=rows,
            config=local,
            written_path=config.path,
            max_frames=media.max_frames,
            max_file_bytes=media.max_file_bytes,
            links_to=linked_folder(config),
            as_video=media.video == "video",
            traces=traces,
        )

    try:
        return _open_local_set(local, media, reader_of)
    except DataError as error:
        raise DataError(str(error).replace(local.path, config.path)) from error


def _open_local_set(
    config: DataSetConfig, media: MediaConfig, reader_of: Callable[[Rows], PairReader]
) -> _OpenedSet:
    path, json_fields = Path(config.path), JSON_FIELDS[config.format]
    folder = None
    if config.format != "beir" and _bytes(config) >= LARGE:
        folder = index_folder(config, media)
        if kept := load_index(folder):
            index, spans = kept
            reader = reader_of(read_rows(path, json_fields=json_fields, spans=spans))
            if not _any_usable(reader, index.bad_rows):
                return _OpenedSet(config=config, reader=reader, index=index)
    if config.format == "beir":
        reader = reader_of(rows := BeirRows(path, json_fields))
        index = _read_set(reader)
        return _with_distractors(_OpenedSet(config=config, reader=reader, index=index), rows)
    reader = reader_of(read_rows(path, json_fields=json_fields))
    index = _read_set(reader)
    if folder and index.read >= KEPT_FROM:
        save_index(folder, index, reader.rows)
    return _OpenedSet(config=config, reader=reader, index=index)


def _with_distractors(opened: _OpenedSet, rows: BeirRows) -> _OpenedSet:
    """Read the rest of a set's corpus, too."""
    reader, index = opened.reader, opened.index
    files = reader.files()
    numbers, entries = rows.rest_of_corpus(index.pairs.rows.tolist())
    distractors: dict[int, Item] = {}
    bad = []
    with _bar(len(numbers), f"reading the corpus of {opened.config.name}") as advance:
        for number, entry in zip(numbers, entries.read(), strict=True):
            place, where = len(rows) + number, reader.shown(rows.corpus.place(number))
            try:
                if isinstance(entry, RowError):
                    raise entry
                distractors[place] = corpus_item(reader.row_reader(entry, where, place, files, []))
            except DataError as error:
                bad.append(BadRow(where, str(error), place, getattr(error, "field", "")))
            advance(1)
    names, uris = files.names(), (uri for item in distractors.values() for uri in item.uris)
    table = picture_table(dict.fromkeys(uris, False), files)
    index = replace(
        index,
        pictures=PictureTable.join([index.pictures, table]),
        counts={**index.counts, **files.counts()},
        bad_rows=(*index.bad_rows, *bad),
        media_named=index.media_named + len(names),
        media_usable=index.media_usable + sum(names.values()),
        rows=index.file_ends[-1],
        read=index.read + len(numbers),
    )
    return replace(opened, index=index, distractors=distractors)


def _bytes(config: DataSetConfig) -> int:
    """Return the size of a set's files; one that is not there is told of where it is read."""
    return sum(file.stat().st_size for file in set_files(config) if file.is_file())


def _any_usable(reader: PairReader, bad_rows: Sequence[BadRow]) -> bool:
    """Return whether a row that was set aside can be used now, as where its picture has come."""
    again = scan_rows(reader, [row.index for row in bad_rows if not row.again], lambda _: None)
    return len(again.pairs) > 0


def _read_set(reader: PairReader) -> SetIndex:
    """Read all rows that a set uses."""
    config, rows = reader.config, reader.rows
    in_use, unranked, told = rows_in_use(rows, config, reader.shown)
    with _bar(len(in_use), f"reading {config.name}") as advance:
        scan = scan_rows(reader, in_use, advance)
    pairs, repeated, warnings = _with_unique_ids(scan, reader)
    if hint := _hint_at_units(config.name, scan.boxes[:SAMPLED_BOXES]):
        warnings.append(hint)
    names, ends = rows.file_ends()
    return SetIndex(
        pairs=pairs,
        pictures=scan.pictures,
        counts=scan.counts,
        bad_rows=tuple(sorted([*scan.bad_rows, *repeated], key=lambda row: row.index)),
        unranked=tuple(
            BadRow(reader.place(index), reader.shown(reason), index, config.hardest_by)
            for index, reason in unranked.items()
        ),
        unknown_fields=dict(scan.unknown_fields),
        media_named=len(scan.names),
        media_usable=int(scan.usable.sum()),
        rows=len(rows),
        read=len(in_use),
        files=tuple(map(reader.shown, names)),
        file_ends=ends,
        other_format="" if len(pairs) else _other_format(rows.at(in_use[:TELLING_ROWS]), config),
        warnings=(*told, *warnings),
    )


def _other_format(rows: Rows, config: DataSetConfig) -> str:
    """Return the format that all of some rows plainly have, empty where it is the set's own."""
    told = {"" if isinstance(row, RowError) else format_told(row) for row in rows.read()}
    return told.pop() if len(told) == 1 and config.format not in told else ""


def _with_unique_ids(scan: Scan, reader: PairReader) -> tuple[PairTable, list[BadRow], list[str]]:
    """Keep ids unique in a set: of rows that share one, only equal ones are left out.

    Return the pairs, the row's number behind ids that earlier ones have; the rows that are left
    out; and what to say of it.
    """
    table = scan.pairs
    numbers = np.fromiter(map(text_number, table.ids), np.uint64, len(table))
    if len(np.unique(numbers)) == len(numbers):
        return table, [], []
    ids = list(table.ids)
    taken: set[int] = set()
    said: dict[int, set[int]] = {}
    kept, repeated, renamed = [], dict[int, str](), []
    fresh_rows = set()
    for place, (number, says) in enumerate(zip(numbers.tolist(), scan.said.tolist(), strict=True)):
        row = int(table.rows[place])
        before = said.setdefault(number, set())
        if says in before:
            repeated.setdefault(row, ids[place])
            continue
        before.add(says)
        fresh_rows.add(row)
        kept.append(place)
        if number in taken:
            while text_number(ids[place]) in taken:
                ids[place] = f"{ids[place]}-{row}"
            renamed.append(ids[place])
            said.setdefault(text_number(ids[place]), {says})
        taken.add(text_number(ids[place]))
    bad = [
        BadRow(
            where := reader.place(row),
            f"{where}, field 'id': duplicate: a row before says the same under id '{name[:80]}'; "
            "remove one",
            row,
            "id",
            again=True,
        )
        for row, name in repeated.items()
        if row not in fresh_rows
    ]
    warnings = []
    if renamed:
        warnings.append(
            f"data set '{reader.config.name}': {len(renamed)} rows share their id with a row that "
            "says something else; their row number was put behind it, as in "
            f"'{renamed[0][:80]}'"
        )
    return replace(table, ids=Texts(ids)).take(np.array(kept, dtype=np.int64)), bad, warnings


def _with_copies(opened: Sequence[_OpenedSet]) -> Iterator[LoadedSet]:
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
            files=index.files,
            file_ends=index.file_ends,
            media_named=index.media_named,
            media_usable=index.media_usable,
            copies=len(own),
            distractors=_renamed(entry.distractors, index.pictures.uris, pictures.uris, moved),
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
            f"{name[:80]!a} in {count} of {data_set.read} rows" + _nearest(name, known)
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


def _nearest(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name[:80], sorted(known), n=1)
    return f" (near '{near[0]}')" if near else ""


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield what counts rows; a progress bar shows once they take longer than `BAR_AFTER_S`."""
    began, done, task = time.monotonic(), 0, None
    # Names of data sets are no markup.
    words = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    bar = Progress(words, BarColumn(), MofNCompleteColumn(), console=console, transient=True)

    def advance(rows: int) -> None:
        nonlocal done, task
        done += rows
        if task is None and time.monotonic() - began > BAR_AFTER_S:
            bar.start()
            task = bar.add_task(what, total=total)
        if task is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()


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


def _hint_at_units(name: str, boxes: list[TrueBoxes]) -> str:
    """Return a warning where all boxes of a set look as if they were not in thousandths."""
    numbers = [number for box, _ in boxes for number in box]
    unit = ""
    if numbers and max(numbers) <= 1:
        unit = "shares of the picture from 0 to 1"
    elif numbers and _within_pictures(boxes):
        unit = "pixels"
    if not unit:
        return ""
    return (
        f"data set '{name}': its first {len(numbers) // 4} true boxes look like {unit}; "
        f"{UNITS[Kind.IMAGE]}"
    )


def _within_pictures(boxes: list[TrueBoxes]) -> bool:
    """Return whether many boxes all lie within the sizes of their small pictures."""
    seen = 0
    for numbers, uri in boxes:
        if file_of(uri) != uri:
            continue  # a page has no size in pixels
        try:
            # Headers of the formats that data sets are made of: nothing is decoded.
            with Image.open(uri, formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
        except Exception:  # whatever a decoder raises: this is only a hint
            continue
        if max(width, height) > TELLING_SIZE:
            continue
        if max(numbers[::2]) > width or max(numbers[1::2]) > height:
            return False
        seen += len(numbers) // 4
        if seen >= TELLING_BOXES:
            return True
    return False
