"""Tables of rows by key that grow only: each write is a parquet file of its own, committed whole.

A part has its name only once the disk holds all of it, so that a kill loses no more than the part
that is being written. Several processes may write into one folder: none changes another's part.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from data.durable import sync
from data.errors import DataError
from data.stores.keys import KEY, pack_keys

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
FACTS = "facts.json"
PART, UNFINISHED = ".parquet", ".unfinished"
ABANDONED_S = 86_400
"""A part that is unfinished for longer was left by a process that was killed."""
KEY_COLUMN, FAILED = "key", "failed"
"""Columns of every part; where `failed` is null, the row holds what its key stands for."""
WALL_MS = "wall_ms"
"""Column for wall-clock milliseconds of a block of requests, over the number of its requests."""
_FACTS_IN_PART, _WIDTH_IN_PART = b"facts", b"width"


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is read."""

    path: Path
    width: int
    """What its writer noted as the width of its rows; 0: none."""


class KeyedParts:
    """The parts in a folder, and which of their rows stands for which key.

    Keys and places of rows are in memory, 25 bytes a row; everything else stays on disk. Of equal
    keys a row that did not fail counts, then the one written last.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        columns: "pa.Schema",
        *,
        newer: Collection[str] = (),
    ) -> None:
        """``newer`` names columns that older parts lack: they are null there."""
        import pyarrow as pa

        text = json.dumps(facts, sort_keys=True, indent=1)
        self.folder = root / blake2b(text.encode(), digest_size=8).hexdigest()
        """Its name follows from the facts."""
        self.set_aside: dict[str, str] = {}
        """Why parts are not read, by their names."""
        self.parts: list[Part] = []
        key = pa.field(KEY_COLUMN, pa.string(), nullable=False)
        self.schema = pa.schema([key, pa.field(FAILED, pa.string()), *columns])
        self._older_schema = pa.schema([field for field in self.schema if field.name not in newer])
        self._facts, self._ready = text, False
        # Keys, whether they failed, places. The first entry has each key once, in order; the others
        # are of parts that were opened since.
        self._rows = [(np.empty(0, KEY), np.empty(0, bool), np.empty(0, np.int64))]

    def write(self, columns: Mapping[str, Any], *, group_rows: int, width: int = 0) -> None:
        """Commit rows as a part; the next `look` takes them in.

        Args:
            columns: the values of each column, as a list or array; one that is absent is null.
                Half a surrogate pair, which no file can hold, becomes a question mark.
            group_rows: rows that are read at a time later.
            width: noted in the part.

        Raises:
            DataError: a key is none, or the part cannot be written; nothing of it is there then.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = len(columns[KEY_COLUMN])
        if not rows:
            return
        pack_keys(columns[KEY_COLUMN])  # refuses what could not be read back
        values = [columns.get(field.name, pa.nulls(rows, field.type)) for field in self.schema]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(_spelled(column), field.type)
            for column, field in zip(values, self.schema, strict=True)
        ]
        notes = {_FACTS_IN_PART: self._facts.encode(), _WIDTH_IN_PART: str(width).encode()}
        table = pa.table(arrays, schema=self.schema.with_metadata(notes))
        # The time puts parts in order; the rest keeps apart what two processes write at once.
        path = self.folder / f"{time.time_ns():020d}-{uuid4().hex[:8]}{PART}"
        unfinished = path.with_suffix(UNFINISHED)
        try:
            if not self._ready:
                self._make_folder()
            pq.write_table(
                table,
                unfinished,
                row_group_size=group_rows,
                compression="zstd" if not width else "none",  # float32 hardly gets smaller
                use_dictionary=False,
                write_page_checksum=True,
            )
            sync(unfinished)
            os.replace(unfinished, path)
            sync(self.folder)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise DataError(
                f"{path}: {rows} rows cannot be written there ({error}); make room, or name "
                "another folder"
            ) from error

    def look(self) -> None:
        """Take in the parts that were committed since, by this process or another.

        Raises:
            DataError: the folder cannot be read.
        """
        import pyarrow as pa

        seen = self.set_aside.keys() | {part.path.name for part in self.parts}
        try:
            names = sorted({name for name in os.listdir(self.folder) if name.endswith(PART)} - seen)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(
                f"{self.folder}: expected a folder that can be read ({error}); correct the path, "
                "or its rights"
            ) from error
        for name in names:
            try:
                part, part_keys, part_failed = self._open(self.folder / name)
            except (DataError, OSError, pa.ArrowException) as error:
                self.set_aside[name] = str(error)
                log.warning(
                    "%s is not read, and what it holds is made again: %s", self.folder / name, error
                )
                continue
            places = (len(self.parts) << 32) + np.arange(len(part_keys))
            self._rows.append((part_keys, part_failed, places))
            self.parts.append(part)

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """Return where the rows of keys are, int64 [N]; -1: there is none, or it failed."""
        places, failed = self._find(keys)
        return np.where(failed, -1, places)

    def all_places(self) -> np.ndarray:
        """Return where the rows of all keys are, int64 [R], those that failed left out."""
        _, failed, places = self._sorted()
        return places[~failed]

    def failures(self, keys: Sequence[str]) -> dict[str, str]:
        """Return why keys failed, of those that did and have no row."""
        places, failed = self._find(keys)
        wanted = np.flatnonzero(failed)
        reasons: dict[str, str] = {}
        for numbers, table in self.read(places[wanted], [FAILED]):
            for number, reason in zip(wanted[numbers], table[FAILED].to_pylist(), strict=True):
                reasons[keys[number]] = reason
        return reasons

    def read(
        self, places: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, "pa.Table"]]:
        """Yield the rows at places, int64 [N], as many at a time as their writers said.

        With each table come the numbers of its rows among ``places``.

        Raises:
            DataError: a part cannot be read any more.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        order = np.argsort(places, kind="stable")
        part_of = places[order] >> 32
        starts = np.searchsorted(part_of, np.arange(len(self.parts) + 1))
        for part, (start, end) in zip(self.parts, pairwise(starts), strict=True):
            if start == end:
                continue
            numbers = order[start:end]
            rows = places[numbers] & 0xFFFFFFFF
            try:
                with pq.ParquetFile(part.path, page_checksum_verification=True) as file:
                    facts = file.metadata
                    counts = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
                    ends = np.cumsum(counts)
                    cuts = np.searchsorted(rows, [0, *ends])
                    for group, (low, high) in enumerate(pairwise(cuts)):
                        if low < high:
                            first = ends[group] - counts[group]
                            table = file.read_row_group(group, [*columns], use_threads=False)
                            for name in columns:
                                if name not in table.column_names:
                                    nulls = pa.nulls(len(table), self.schema.field(name).type)
                                    table = table.append_column(name, nulls)
                            yield numbers[low:high], table.take(rows[low:high] - first)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{part.path}: expected the part that was opened before, found one that "
                    f"cannot be read ({error}); delete it, and what it holds is made again"
                ) from error

    def means(self, keys: Sequence[str], columns: Sequence[str]) -> dict[str, float | None]:
        """Return the mean of each column over the rows of keys, None where no value is known.

        Nulls are left out, and so are keys without a row.

        Raises:
            DataError: a part cannot be read any more.
        """
        places = self.places(keys)
        values: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        for _, table in self.read(places[places >= 0], columns):
            for name in columns:
                values[name].append(table[name].drop_null().to_numpy())
        return {
            name: float(np.concatenate(parts).mean()) if any(map(len, parts)) else None
            for name, parts in values.items()
        }

    def _make_folder(self) -> None:
        """Make the folder, with the facts for people who look into it; clear what kills left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for older in self.folder.glob(f"*{UNFINISHED}"):
            with suppress(OSError):  # another process may have cleared it
                if older.stat().st_mtime < time.time() - ABANDONED_S:
                    older.unlink()
        if not (self.folder / FACTS).exists():
            unfinished = self.folder / f"{uuid4().hex[:8]}{UNFINISHED}"
            unfinished.write_text(self._facts + "\n", encoding="utf-8")
            sync(unfinished)
            os.replace(unfinished, self.folder / FACTS)
        sync(self.folder.parent)
        self._ready = True

    def _open(self, path: Path) -> tuple[Part, np.ndarray, np.ndarray]:
        """Return a part, its keys, KEY [R], and which of its rows failed, bool [R]."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            notes = schema.metadata or {}
            same_columns = schema in (self.schema, self._older_schema)
            if notes.get(_FACTS_IN_PART) != self._facts.encode() or not same_columns:
                raise DataError(
                    f"expected a part with the facts of {FACTS}, found a table of another model, "
                    "of other settings or of other columns"
                )
            table = file.read([KEY_COLUMN, FAILED], use_threads=False)
        failed = table[FAILED].is_valid().to_numpy()
        part = Part(path, int(notes[_WIDTH_IN_PART]))
        return part, pack_keys(table[KEY_COLUMN].to_pylist()), failed

    def _sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each key once, in order, whether it failed, and the place of the row that counts.

        They are put in order when they are asked for: many parts may be written before that.
        """
        if len(self._rows) > 1:
            keys, failed, places = map(np.concatenate, zip(*self._rows, strict=True))
            order = np.lexsort((-places, failed, keys))
            keys = keys[order]
            first = np.ones(len(keys), dtype=bool)
            first[1:] = keys[1:] != keys[:-1]
            kept = order[first]
            self._rows = [(keys[first], failed[kept], places[kept])]
        return self._rows[0]

    def _find(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each key's row, -1 for none, and whether it failed; both [N]."""
        known, failed, places = self._sorted()
        packed = pack_keys(keys)
        if not len(known):
            return np.full(len(keys), -1), np.zeros(len(keys), dtype=bool)
        place = np.searchsorted(known, packed).clip(max=len(known) - 1)
        met = known[place] == packed
        return np.where(met, places[place], -1), met & failed[place]


def _spelled(value: Any) -> Any:
    """Return a text, or a list with texts in it, as a file can hold it."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return [_spelled(part) for part in value] if isinstance(value, list | tuple) else value
