"""Vectors on disk by what the Embedder reads, so that nothing is embedded twice.

Shapes: N keys, D dimensions.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from data.errors import DataError
from data.stores.parts import FAILED, KEY_COLUMN, WALL_MS, KeyedParts

VECTOR = "vector"
GROUP_BYTES = 16 << 20
"""Of the vectors that are read at a time."""


class VectorStore:
    """The vectors of one Embedder with one recipe, in a folder of their own under ``root``.

    ``facts`` are what the vectors follow from beside their contents, see `embedder_facts`: other
    facts have another folder. Any number of processes may add at the same time.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], *, memory_bytes: int) -> None:
        """``memory_bytes``: `rows` keeps no more of them in memory, and the others in a file."""
        import pyarrow as pa

        columns = pa.schema([(VECTOR, pa.list_(pa.float32())), (WALL_MS, pa.float32())])
        self._parts = KeyedParts(root, facts, columns, newer=(WALL_MS,))
        self._memory_bytes = memory_bytes

    @property
    def folder(self) -> Path:
        """Where the vectors are."""
        return self._parts.folder

    @property
    def set_aside(self) -> Mapping[str, str]:
        """Why files in the folder are not read, by their names."""
        return self._parts.set_aside

    def add(
        self, keys: Sequence[str], vectors: np.ndarray, *, wall_ms: float | None = None
    ) -> None:
        """Commit vectors [N, D] as one part, in float32: after a kill all are there, or none.

        ``wall_ms`` are the wall-clock milliseconds of the block over the number of its contents.

        Raises:
            DataError: a vector is not finite or zero, has another size than those in the store,
                or the part cannot be written.
        """
        import pyarrow as pa

        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(keys):
            raise DataError(
                f"expected a vector for each key, found {len(keys)} keys and vectors of shape "
                f"{list(rows.shape)}"
            )
        useless = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
        if len(useless):
            raise DataError(
                f"{keys[useless[0]]}: expected a finite vector that is not zero, found another, "
                f"like {len(useless)} of {len(keys)}; record them with `add_failed`"
            )
        width = rows.shape[1]
        self._parts.look()
        if self._width() not in (0, width):
            raise DataError(
                f"{self.folder}: expected vectors of {self._width()} dimensions as in the parts "
                f"there, found {width}; name what changed in the facts of the store"
            )
        if not len(keys):
            return
        ends = pa.array(np.arange(0, rows.size + 1, width), pa.int32())
        self._parts.write(
            {
                KEY_COLUMN: list(keys),
                VECTOR: pa.ListArray.from_arrays(ends, pa.array(rows.ravel())),
                WALL_MS: [wall_ms] * len(keys),
            },
            group_rows=max(1, GROUP_BYTES // (4 * width)),
            width=width,
        )

    def add_failed(self, reasons: Mapping[str, str]) -> None:
        """Commit why contents have no vector, by their keys; `missing` names them again.

        Raises:
            DataError: it cannot be written.
        """
        self._parts.write(
            {KEY_COLUMN: list(reasons), FAILED: list(reasons.values())},
            group_rows=max(1, len(reasons)),
        )

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return the keys without a vector, failed ones too, each once and in order.

        Looks at the folder first, so that what other processes have added since is not missing.
        """
        self._parts.look()
        absent = np.flatnonzero(self._parts.places(keys) < 0)
        return list(dict.fromkeys(keys[number] for number in absent))

    def failures(self, keys: Sequence[str]) -> dict[str, str]:
        """Return why keys without a vector failed when they were tried last."""
        self._parts.look()
        return self._parts.failures(keys)

    def wall_ms(self, keys: Sequence[str]) -> float | None:
        """Return the mean wall-clock milliseconds of a content among keys; None: of none is it
        known. Keys without a vector are left out.

        Raises:
            DataError: a part cannot be read.
        """
        self._parts.look()
        return self._parts.means(list(dict.fromkeys(keys)), [WALL_MS])[WALL_MS]

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """Return the vectors of keys, float32 [N, D]; above ``memory_bytes`` mapped from a file.

        Parts are read a few MB at a time, each once. The file has no name and ends with the array.

        Raises:
            DataError: keys have no vector, a part cannot be read, or there is no room for the file.
        """
        self._parts.look()
        places = self._parts.places(keys)
        if not len(keys) or (places < 0).any():
            raise DataError(
                f"{self.folder}: expected 1 or more keys, all with a vector, found {len(keys)} "
                f"keys, {int((places < 0).sum())} of them without; embed what `missing` names, or "
                "leave it out"
            )
        rows = self._room(len(keys), self._width())
        for numbers, table in self._parts.read(places, [VECTOR]):
            values = table[VECTOR].combine_chunks().flatten().to_numpy()
            rows[numbers] = values.reshape(len(numbers), -1)
        return rows

    def _width(self) -> int:
        """Return the dimensions of the vectors in the store, 0 where there is none.

        Raises:
            DataError: two parts have different ones.
        """
        parts = {part.width: part.path for part in self._parts.parts if part.width}
        if len(parts) > 1:
            raise DataError(
                f"expected vectors of one size, found {' and '.join(map(str, parts))} dimensions "
                f"in {' and '.join(map(str, parts.values()))}; delete what is wrong, and name what "
                "changed in the facts of the store"
            )
        return next(iter(parts), 0)

    def _room(self, count: int, width: int) -> np.ndarray:
        size = 4 * count * width
        if size <= self._memory_bytes:
            return np.empty((count, width), dtype=np.float32)
        try:
            with TemporaryFile(dir=self.folder) as file:
                # At once: a mapped file that finds no room later would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype=np.float32, mode="r+", shape=(count, width))
        except OSError as error:
            raise DataError(
                f"{self.folder}: expected room for {size >> 20} MiB of vectors in a file, found "
                f"none ({error}); make room, or let more of them be in memory"
            ) from error
