"""All rows of a set read once, to know its pairs: in several processes where there are many."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType

import numpy as np

from configs.common import DataSetConfig
from data.content_numbers import text_number
from data.errors import DataError, RowError
from data.rows.picture_paths import KnownFiles, PictureFiles
from data.rows.row_formats import KNOWN_FIELDS, RowReader, TrueBoxes
from data.rows.rows import FileRow, Rows
from data.rows.trace_files import TraceFiles
from data.sets.index import PairTable, PictureTable, Texts
from data.types import Pair

CHUNK = 2_000
"""Rows that are read at once."""
IN_ONE_PROCESS = 20_000
"""Sets of no more rows are read in the process itself: others take a second to start."""
START_TIMEOUT_S = 600.0
"""Longest wait of a process for the others to be started."""
MOST_PROCESSES = 16
LISTED_UNKNOWN = 3
"""Rows that are remembered of each field that the format does not know."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside, and why."""

    where: str
    reason: str
    index: int
    """Number of the row in its set's files, from 0."""
    field: str = ""
    """The field that is to blame, as the reason names it; empty: none is named."""
    again: bool = False
    """Whether a row before says the same."""
    deadly: bool = False
    """Whether reading it ends the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What reading rows told. P pairs, M names of media."""

    pairs: PairTable
    said: np.ndarray
    """uint64 [P]: equal for pairs that say the same, whatever their ids and places are."""
    pictures: PictureTable
    counts: dict[str, int] = field(default_factory=dict)
    """Pages of PDFs and frames of video files, by path."""
    bad_rows: list[BadRow] = field(default_factory=list)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    """Rows by the field in them that the format does not know."""
    first_unknown: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of the first rows with each of these fields, from 0."""
    boxes: list[TrueBoxes] = field(default_factory=list)
    """Some true boxes of the set."""
    names: np.ndarray
    """uint64 [M]: the number of each name of a medium that rows give."""
    usable: np.ndarray
    """bool [M]: whether that medium can be used, as far as is known before decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReader:
    """Reads pairs from the rows of a set."""

    rows: Rows
    config: DataSetConfig
    """Its `path` and `root` are on disk."""
    written_path: str
    """The path as the settings have it, for messages."""
    max_frames: int
    max_file_bytes: int
    links_to: Path | None = None
    """Where links under the root may lead."""
    as_video: bool = True
    """Whether a model sees a video as one, not as separate pictures."""
    traces: TraceFiles = field(default_factory=TraceFiles)
    """Traces that files beside the rows have."""

    def as_written(self, text: str) -> str:
        """Return a message that names the set's files as the settings do."""
        return text.replace(self.config.path, self.written_path)

    def place(self, index: int) -> str:
        """Return file and row for messages, rows counted from 1."""
        return self.as_written(self.rows.place(index))

    def files(self, known: KnownFiles | None = None) -> PictureFiles:
        """Return the picture files under the set's root."""
        return PictureFiles(
            Path(self.config.root),
            follow_links=self.config.follow_links,
            max_file_bytes=self.max_file_bytes,
            links_to=self.links_to,
            known=known,
        )

    def row_reader(
        self, row: FileRow, where: str, index: int, files: PictureFiles, boxes: list[TrueBoxes]
    ) -> RowReader:
        """Return what reads a row of the files; true boxes are added to ``boxes``."""
        row = self.traces.added_to(row)
        return RowReader(
            row, where, self.config, index, files, self.max_frames, boxes, self.as_video
        )

    def pairs(
        self, row: FileRow, index: int, files: PictureFiles, boxes: list[TrueBoxes]
    ) -> tuple[Pair, ...]:
        """Return the pairs of a row of the files.

        Raises:
            DataError: the row cannot be used.
        """
        return self.row_reader(row, self.place(index), index, files, boxes).pairs()


def scan_rows(
    reader: PairReader,
    in_use: Sequence[int],
    done: Callable[[int], object],
    *,
    deadly: bool = False,
) -> Scan:
    """Read rows of the files; ``done`` is called with the number of rows that were read since.

    ``deadly``: each of them may end the process that reads it.
    """
    size = 1 if deadly else CHUNK
    spans = [(first, min(first + size, len(in_use))) for first in range(0, len(in_use), size)]
    chunks = [in_use[first:end] for first, end in spans]
    few = len(in_use) <= IN_ONE_PROCESS and not deadly
    if few or not reader.rows.can_be_sent:
        parts = []
        for chunk in chunks:
            parts.append(_scan_chunk(reader, chunk))
            done(len(chunk))
    else:
        parts = list(_in_processes(reader, chunks, done))
    return _join(parts or [_scan_chunk(reader, [])])


def _scan_chunk(reader: PairReader, numbers: Sequence[int]) -> Scan:
    files = reader.files()
    bad: list[BadRow] = []
    unknown: Counter[str] = Counter()
    first_unknown: dict[str, list[int]] = {}
    boxes: list[TrueBoxes] = []
    pairs: list[Pair] = []
    places: list[int] = []
    for number, row in zip(numbers, reader.rows.at(numbers).read(), strict=True):
        try:
            if isinstance(row, RowError):
                raise row
            known = KNOWN_FIELDS[reader.config.format]
            names = row.keys() - known - {reader.config.hardest_by}
            unknown.update(names)
            for name in names:
                if unknown[name] <= LISTED_UNKNOWN:
                    first_unknown.setdefault(name, []).append(number)
            of_row = reader.pairs(row, number, files, boxes)
        except DataError as error:
            name = error.field if isinstance(error, RowError) else ""
            bad.append(BadRow(reader.place(number), reader.as_written(str(error)), number, name))
            continue
        pairs += of_row
        places += range(len(of_row))
    names = files.names()
    return Scan(
        pairs=PairTable.of(pairs, places),
        said=np.array([_said(pair) for pair in pairs], dtype=np.uint64),
        pictures=_pictures(pairs, files),
        counts=dict(files.counts()),
        bad_rows=bad,
        unknown_fields=unknown,
        first_unknown=first_unknown,
        boxes=boxes,
        names=np.fromiter(map(text_number, names), np.uint64, len(names)),
        usable=np.fromiter(names.values(), bool, len(names)),
    )


def _said(pair: Pair) -> int:
    said = repr(replace(pair, pair_id="", row=0)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "little")


def _pictures(pairs: Sequence[Pair], files: PictureFiles) -> PictureTable:
    """Return the pictures of some pairs."""
    shown: dict[str, bool] = {}
    for pair in pairs:
        for item in (pair.query, pair.target):
            shown.update(dict.fromkeys(item.uris, True))
        for item in (*pair.hard_negatives, *pair.candidates):
            for uri in item.uris:
                shown.setdefault(uri, False)
    return picture_table(shown, files)


def picture_table(shown: Mapping[str, bool], files: PictureFiles) -> PictureTable:
    """Return a table of pictures, with whether a query or a target shows each."""
    looked_at = [files.file(uri) for uri in shown]
    return PictureTable(
        uris=Texts(list(shown)),
        numbers=_numbers(shown),
        files=_numbers([path for path, _ in looked_at]),
        reals=_numbers([file.real for _, file in looked_at]),
        sizes=np.array([file.size for _, file in looked_at], dtype=np.int64),
        shown=np.array(list(shown.values()), dtype=bool),
        times=np.array([files.time(uri) for uri in shown], dtype=np.float64),
    )


def _numbers(texts: Collection[str]) -> np.ndarray:
    return np.fromiter(map(text_number, texts), np.uint64, len(texts))


def _join(parts: Sequence[Scan]) -> Scan:
    numbers = np.concatenate([part.names for part in parts])
    names, first = np.unique(numbers, return_index=True)
    return Scan(
        pairs=PairTable.join([part.pairs for part in parts]),
        said=np.concatenate([part.said for part in parts]),
        pictures=PictureTable.join([part.pictures for part in parts]),
        counts={path: count for part in parts for path, count in part.counts.items()},
        bad_rows=[row for part in parts for row in part.bad_rows],
        unknown_fields=sum((part.unknown_fields for part in parts), Counter()),
        first_unknown=_first_of(part.first_unknown for part in parts),
        boxes=[box for part in parts for box in part.boxes],
        names=names,
        usable=np.concatenate([part.usable for part in parts])[first],
    )


def _first_of(parts: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    first: dict[str, list[int]] = {}
    for part in parts:
        for name, numbers in part.items():
            first[name] = [*first.get(name, []), *numbers][:LISTED_UNKNOWN]
    return first


def _in_processes(
    reader: PairReader, chunks: Sequence[Sequence[int]], done: Callable[[int], object]
) -> Iterator[Scan]:
    """Yield what reading the chunks told, in their order.

    A row that ends its process, as broken videos and PDFs may, is set aside.
    """
    parts: dict[int, Scan] = {}
    waiting = list(range(len(chunks)))
    while waiting:
        count = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(waiting))
        with _pool(reader, count) as pool:
            # No row is read before all processes are started: one that dies while another is being
            # started would leave that one, and this job, waiting for ever.
            tasks = {pool.submit(_scan_in_process, chunks[number]): number for number in waiting}
            for task in as_completed(tasks):
                with suppress(BrokenProcessPool):
                    parts[tasks[task]] = task.result()
                    done(len(chunks[tasks[task]]))
        # Chunks are begun in their order: one of the first that are missing has ended its process.
        missing = [number for number in waiting if number not in parts]
        for number in missing[:count]:
            parts[number] = _join(list(_one_by_one(reader, chunks[number])))
            done(len(chunks[number]))
        waiting = missing[count:]
    for number in range(len(chunks)):
        yield parts.pop(number)


def _one_by_one(reader: PairReader, numbers: Sequence[int]) -> Iterator[Scan]:
    """Read rows in a process of their own, half by half where this ends.

    Raises:
        DataError: no process can be started.
    """
    try:
        with _pool(reader, 1) as pool:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"data set '{reader.config.name}': the processes that read its rows end before "
                    "they read one; free memory, and see that more processes may be started"
                ) from error
            yield pool.submit(_scan_in_process, numbers).result()
    except BrokenProcessPool:
        if len(numbers) > 1:
            yield from _one_by_one(reader, numbers[: len(numbers) // 2])
            yield from _one_by_one(reader, numbers[len(numbers) // 2 :])
            return
        where = reader.place(numbers[0])
        reason = f"{where}: a file that it names ends the process that reads it; replace the file"
        bad = [BadRow(where, reason, numbers[0], deadly=True)]
        yield replace(_scan_chunk(reader, []), bad_rows=bad)


@contextmanager
def _pool(reader: PairReader, processes: int) -> Iterator[ProcessPoolExecutor]:
    # Not forked: pyarrow and the decoders have threads.
    context = get_context("spawn")
    started = context.Barrier(processes)
    pool = ProcessPoolExecutor(processes, context, _remember, (reader, started))
    # They would run the job's own module first, which loads Ray and takes a second.
    job = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield pool
    finally:
        sys.modules["__main__"] = job
        # Who stops a job does not wait until all rows are read.
        pool.shutdown(cancel_futures=True)


_reader: list[PairReader] = []
"""What this process reads, if it was started for that."""


def _remember(reader: PairReader, started: Barrier) -> None:
    _reader[:] = [reader]
    # Ctrl-C reaches every process of a terminal; the job's own ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    started.wait(START_TIMEOUT_S)


def _end_with_parent() -> None:
    """End this process once the one that started it was killed: nobody else would."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _scan_in_process(numbers: Sequence[int]) -> Scan:
    return _scan_chunk(_reader[0], numbers)
