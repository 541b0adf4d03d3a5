"""A set's rows read once, or what was learned of them before: ids, figures, warnings."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from configs.common import DataSetConfig, MediaConfig
from data.containers.addresses import file_of
from data.content_numbers import text_number
from data.errors import DataError, NotUnpacked, RowError
from data.rows.archives import unpack_archives, waiting_archives
from data.rows.beir_rows import BeirFigures, BeirRows
from data.rows.locations import linked_folder, local_set
from data.rows.row_files import read_rows
from data.rows.row_formats import (
    JSON_FIELDS,
    SAMPLED_BOXES,
    UNITS,
    TrueBoxes,
    corpus_item,
    format_told,
)
from data.rows.rows import Rows
from data.rows.trace_files import read_traces
from data.sets.fingerprints import set_files
from data.sets.index import PairTable, PictureTable, Texts
from data.sets.index_files import KEPT_FROM, SetIndex, index_folder, load_index, save_index
from data.sets.scan import BadRow, PairReader, Scan, picture_table, scan_rows
from data.sets.subsets import rows_in_use
from data.types import Item, Kind

BAR_AFTER_S = 3.0
"""Sets that take longer to read show a progress bar."""
TELLING_ROWS = 20
"""First rows that show which format a file has, where none of its rows can be used."""
TELLING_BOXES = 16
"""Boxes from which on it is more than chance that all of them look like pixels."""
TELLING_SIZE = 640
"""Pictures of more pixels a side hold most boxes in thousandths, too."""
LARGE = 4 << 20
"""Bytes of a set's files from which on an index of it may be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSet:
    """A set whose rows were read, or whose index was kept."""

    config: DataSetConfig
    reader: PairReader
    index: SetIndex
    distractors: Mapping[int, Item] = field(default_factory=dict)
    beir: BeirFigures | None = None


def open_set(
    config: DataSetConfig, media: MediaConfig, *, offline: bool, unpack: bool
) -> OpenedSet:
    """Return what is known of a set: from the cache, else from its rows.

    Raises:
        DataError: root, rows, traces or an archive cannot be used.
        NotFetched: files are in no cache, and ``offline`` forbids to fetch them.
        NotUnpacked: archives wait, and not ``unpack``.
    """
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
) -> OpenedSet:
    path, json_fields = Path(config.path), JSON_FIELDS[config.format]
    folder = None
    if config.format != "beir" and _bytes(config) >= LARGE:
        folder = index_folder(config, media)
        if kept := load_index(folder):
            index, spans = kept
            reader = reader_of(read_rows(path, json_fields=json_fields, spans=spans))
            if not any_usable(reader, index.bad_rows):
                _check_unchanged(config, media, folder)
                return OpenedSet(config=config, reader=reader, index=index)
    if config.format == "beir":
        reader = reader_of(rows := BeirRows(path, json_fields))
        index = _read_set(reader)
        opened = OpenedSet(config=config, reader=reader, index=index, beir=rows.figures())
        return _with_distractors(opened, rows)
    reader = reader_of(read_rows(path, json_fields=json_fields))
    index = _read_set(reader)
    if folder:
        _check_unchanged(config, media, folder)
    if folder and index.read >= KEPT_FROM:
        save_index(folder, index, reader.rows)
    return OpenedSet(config=config, reader=reader, index=index)


def _check_unchanged(config: DataSetConfig, media: MediaConfig, folder: Path) -> None:
    """Refuse a set if a file that decides its pairs has changed since ``folder`` was computed.

    Raises:
        DataError: a file of rows, `traces`, `leave_out` or `hardest_by` is another one now.
    """
    if index_folder(config, media) != folder:
        raise DataError(
            f"data set '{config.name}': expected its files of path, traces, leave_out and "
            "hardest_by as they were when the job opened them, found that one has changed; start "
            "the job again once nothing writes to them"
        )


def _with_distractors(opened: OpenedSet, rows: BeirRows) -> OpenedSet:
    """Read the rest of a set's corpus, too."""
    reader, index = opened.reader, opened.index
    files = reader.files()
    numbers, entries = rows.rest_of_corpus(index.pairs.rows.tolist())
    distractors: dict[int, Item] = {}
    bad = []
    with _bar(len(numbers), f"reading the corpus of {opened.config.name}") as advance:
        for number, entry in zip(numbers, entries.read(), strict=True):
            place, where = len(rows) + number, reader.as_written(rows.corpus.place(number))
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


def any_usable(reader: PairReader, bad_rows: Sequence[BadRow]) -> bool:
    """Return whether a row that was set aside can be used now, as where its picture has come."""
    for deadly in (False, True):
        numbers = [row.index for row in bad_rows if not row.again and row.deadly is deadly]
        if numbers and len(scan_rows(reader, numbers, lambda _: None, deadly=deadly).pairs):
            return True
    return False


def _read_set(reader: PairReader) -> SetIndex:
    """Read all rows that a set uses."""
    config, rows = reader.config, reader.rows
    in_use, unranked, told = rows_in_use(rows, config, reader.as_written)
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
            BadRow(reader.place(index), reader.as_written(reason), index, config.hardest_by)
            for index, reason in unranked.items()
        ),
        unknown_fields=dict(scan.unknown_fields),
        first_unknown=scan.first_unknown,
        media_named=len(scan.names),
        media_usable=int(scan.usable.sum()),
        rows=len(rows),
        read=len(in_use),
        files=tuple(map(reader.as_written, names)),
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
