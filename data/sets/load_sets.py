"""Data sets on disk to pairs: which rows are set aside, and when a set is refused.

`data.sets.row_formats` reads a row of each format.
"""

import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from configs.common import DataConfig, DataSetConfig, MediaConfig
from data.containers.addresses import file_of
from data.errors import DataError, RowError
from data.sets.picture_paths import COMPARED_BYTES, PictureFiles
from data.sets.row_files import FileRow, file_ends, read_rows, row_place, rows_at
from data.sets.row_formats import JSON_FIELDS, KNOWN_FIELDS, UNITS, RowReader, TrueBoxes
from data.sets.subsets import rows_in_use
from data.types import Kind, Pair

log = logging.getLogger(__name__)

BAR_AFTER_S = 3.0
"""Sets that take longer to read show a progress bar."""
LISTED = 20
"""Rows set aside whose reasons are logged one by one."""
TELLING_BOXES = 16
"""Boxes from which on it is more than chance that all of them look like pixels."""
TELLING_SIZE = 640
"""Pictures of more pixels a side hold most boxes in thousandths, too."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside, and why."""

    where: str
    reason: str
    index: int
    """Number of the row in its set's files, from 0."""
    field: str = ""
    """The field that is to blame, as the reason names it; empty: none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """A data set's usable pairs and what was set aside."""

    name: str
    pairs: tuple[Pair, ...]
    bad_rows: tuple[BadRow, ...]
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

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a row, and the row's number in it from 1."""
        number = bisect_right(self.file_ends, index)
        first = self.file_ends[number - 1] if number else 0
        return self.files[number], index - first + 1


def load_set(
    config: DataSetConfig,
    *,
    max_frames: int = MediaConfig.max_frames,
    video: str = MediaConfig.video,
    files: PictureFiles | None = None,
) -> LoadedSet:
    """Read one data set; bad rows are set aside with a reason, a bad file is refused.

    Traces must be right for ``max_frames`` shown frames of a video. ``video`` as in MediaConfig.
    ``files`` are those under the set's root, where another set knows them already.

    Raises:
        DataError: the file is missing or holds no rows, or `hardest_by` can rank no row.
    """
    rows = read_rows(Path(config.path), json_fields=JSON_FIELDS[config.format])
    in_use, unranked = rows_in_use(rows, config)
    used_rows = rows_at(rows, in_use)
    files = files or files_of(config)
    copies, uncompared = len(files.copies), files.uncompared
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    unknown: Counter[str] = Counter()
    boxes: list[TrueBoxes] = []
    ids = _Ids()
    with_bar = _with_bar(used_rows, f"reading {config.name}")
    for index, row in zip(in_use, with_bar, strict=True):
        where = row_place(rows, config.path, index)
        unknown.update(row.keys() - KNOWN_FIELDS[config.format] - {config.hardest_by})
        reader = RowReader(
            row, where, config, index, files, max_frames, boxes, as_video=video == "video"
        )
        try:
            pairs += ids.unique(reader.pairs(), where)
        except DataError as error:
            field_name = error.field if isinstance(error, RowError) else ""
            bad.append(BadRow(where, str(error), index, field_name))
    names, ends = file_ends(rows, config.path)
    ids.tell(config.name)
    _hint_at_units(config.name, boxes)
    _tell_of_copies(config.name, files, copies, uncompared)
    return LoadedSet(
        name=config.name,
        pairs=tuple(pairs),
        bad_rows=tuple(bad),
        rows=len(rows),
        read=len(used_rows),
        unranked=tuple(
            BadRow(row_place(rows, config.path, index), reason, index, config.hardest_by)
            for index, reason in unranked.items()
        ),
        unknown_fields={} if config.extra_fields == "ignore" else dict(unknown),
        files=names,
        file_ends=ends,
    )


def load_sets(configs: list[DataSetConfig], *, limits: DataConfig) -> list[LoadedSet]:
    """Read several data sets; rows that are set aside are logged with their reasons.

    Raises:
        DataError: a file is unreadable, a set is empty, or more than ``limits.max_bad_rows`` of
            its rows are bad or have a field that nobody knows; the message lists the first.
    """
    loaded: list[LoadedSet] = []
    problems: list[str] = []
    roots: dict[tuple[str, bool], PictureFiles] = {}
    for config in configs:
        key = (config.root, config.follow_links)
        try:
            roots[key] = roots.get(key) or files_of(
                config, max_file_bytes=limits.media.max_file_bytes
            )
            data_set = load_set(
                config,
                max_frames=limits.media.max_frames,
                video=limits.media.video,
                files=roots[key],
            )
        except DataError as error:
            problems.append(str(error))
            continue
        log_bad_rows(data_set)
        problems += set_problems(data_set, config, max_bad_rows=limits.max_bad_rows)
        loaded.append(data_set)
    problems += repeated_names(configs)
    if problems:
        raise DataError("\n".join(problems))
    return loaded


def files_of(
    config: DataSetConfig, *, max_file_bytes: int = MediaConfig.max_file_bytes
) -> PictureFiles:
    """Return the picture files under a set's root; larger PDFs and videos are not opened.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data set '{config.name}': root folder {root} not found; set its `root`")
    return PictureFiles(root, follow_links=config.follow_links, max_file_bytes=max_file_bytes)


def repeated_names(configs: list[DataSetConfig]) -> list[str]:
    """Return what is wrong with the sets' names: they identify the sets."""
    names = Counter(config.name for config in configs)
    return [f"data set name '{n}' is used {k} times" for n, k in names.items() if k > 1]


def log_bad_rows(one: LoadedSet) -> None:
    """Log why rows were set aside, and how many."""
    for bad_rows, rows in ((one.unranked, one.rows), (one.bad_rows, one.read)):
        for bad in bad_rows[:LISTED]:
            log.warning("row set aside: %s", bad.reason)
        if bad_rows:
            log.warning(
                "data set '%s': %d of %d rows set aside%s",
                one.name,
                len(bad_rows),
                rows,
                f", the first {LISTED} listed" if len(bad_rows) > LISTED else "",
            )


def set_problems(one: LoadedSet, config: DataSetConfig, *, max_bad_rows: float) -> list[str]:
    """Return why a set cannot be used; its unknown fields are logged where it can."""
    if not one.read:
        return [f"data set '{one.name}': {config.path} holds no row"]
    problems = []
    for bad_rows, rows in ((one.unranked, one.rows), (one.bad_rows, one.read)):
        if not bad_rows or (one.pairs and len(bad_rows) <= max_bad_rows * rows):
            continue
        reasons = [bad.reason for bad in bad_rows[:5]]
        if more := len(bad_rows) - len(reasons):
            reasons.append(f"and {more} more")
        shown = "\n    ".join(reasons)
        limit = (
            f"more than data.max_bad_rows={max_bad_rows}; mend the file or raise the limit"
            if one.pairs
            else "so none is left; mend the file"
        )
        problems.append(
            f"data set '{one.name}': {len(bad_rows)} of {rows} rows are bad, {limit}:\n    {shown}"
        )
    if one.unknown_fields:
        known = KNOWN_FIELDS[config.format]
        most = sorted(one.unknown_fields.items(), key=lambda entry: (-entry[1], entry[0]))
        named = "; ".join(
            f"{name[:80]!a} in {count} of {one.read} rows" + _nearest(name, known)
            for name, count in most[:5]
        )
        more = f"; and {len(most) - 5} others" if len(most) > 5 else ""
        text = f"data set '{one.name}': fields that format '{config.format}' does not know: "
        if most[0][1] > max_bad_rows * one.read:
            problems.append(
                f"{text}{named}{more}; rename them, or set the set's extra_fields: ignore where "
                "they are there on purpose"
            )
        else:
            log.warning("%s%s%s; they are ignored", text, named, more)
    return problems


def _nearest(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name[:80], sorted(known), n=1)
    return f" (near '{near[0]}')" if near else ""


def _with_bar(rows: Sequence[FileRow], what: str) -> Iterator[FileRow]:
    """Yield the rows; a progress bar shows once they take longer than `BAR_AFTER_S`."""
    began, bar = time.monotonic(), None
    with ExitStack() as stack:
        for index, row in enumerate(rows):
            yield row
            if bar is None and time.monotonic() - began > BAR_AFTER_S:
                bar = stack.enter_context(_bar())
                task = bar.add_task(what, total=len(rows))
            if bar is not None:
                bar.update(task, completed=index + 1)


def _bar() -> Progress:
    # Names of data sets are no markup.
    words = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    return Progress(words, BarColumn(), MofNCompleteColumn(), console=console, transient=True)


class _Ids:
    """Keeps ids unique in a set: of rows that share one, only equal ones are left out."""

    def __init__(self) -> None:
        self._first: dict[str, Pair] = {}
        self._said: dict[str, set[Pair]] = {}
        """What the pairs of an id say, where there are several."""
        self._renamed: list[str] = []

    def unique(self, pairs: tuple[Pair, ...], where: str) -> list[Pair]:
        """Return a row's pairs, the row's number behind ids that other pairs of the set have.

        Raises:
            DataError: rows before say all of it under the same id.
        """
        fresh = [pair for pair in pairs if self._is_fresh(pair)]
        if not fresh:
            raise RowError(
                f"{where}, field 'id': duplicate: a row before says the same under id "
                f"'{pairs[0].pair_id[:80]}'; remove one",
                "id",
            )
        kept = []
        for pair in fresh:
            unique = pair
            while unique.pair_id in self._first:
                unique = replace(unique, pair_id=f"{unique.pair_id}-{pair.row}")
            if unique is not pair:
                self._renamed.append(unique.pair_id)
            self._first[unique.pair_id] = unique
            kept.append(unique)
        return kept

    def _is_fresh(self, pair: Pair) -> bool:
        first = self._first.get(pair.pair_id)
        if first is None:
            return True
        said = self._said.setdefault(pair.pair_id, {_said(first)})
        before = len(said)
        said.add(_said(pair))
        return len(said) > before

    def tell(self, name: str) -> None:
        """Log once how many rows got another id."""
        if self._renamed:
            log.warning(
                "data set '%s': %d rows share their id with a row that says something else; their "
                "row number was put behind it, as in '%s'",
                name,
                len(self._renamed),
                self._renamed[0][:80],
            )


def _said(pair: Pair) -> Pair:
    """Return what a pair says, whatever its id and its place are."""
    return replace(pair, pair_id="", row=0)


def _tell_of_copies(name: str, files: PictureFiles, copies: int, uncompared: int) -> None:
    """Log how many picture files are copies of others, beyond those that were known before."""
    new = list(files.copies.items())[copies:]
    if new:
        copy, first = new[0]
        log.warning(
            "data set '%s': %d picture files have the same bytes as an earlier one (%s is %s); "
            "each counts as that one",
            name,
            len(new),
            copy,
            first,
        )
    if more := files.uncompared - uncompared:
        log.warning(
            "data set '%s': %d picture files were not compared with others of their size, as %d "
            "MiB were read already; copies among them count as different pictures",
            name,
            more,
            COMPARED_BYTES >> 20,
        )


def _hint_at_units(name: str, boxes: list[TrueBoxes]) -> None:
    """Warn where all boxes of a set look as if they were in another unit than thousandths."""
    numbers = [number for box, _ in boxes for number in box]
    unit = ""
    if numbers and max(numbers) <= 1:
        unit = "shares of the picture from 0 to 1"
    elif numbers and _within_pictures(boxes):
        unit = "pixels"
    if unit:
        log.warning(
            "data set '%s': its first %d true boxes look like %s; %s",
            name,
            len(numbers) // 4,
            unit,
            UNITS[Kind.IMAGE],
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
