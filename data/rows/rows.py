"""Rows of a set's files, read when they are asked for."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

from data.errors import DataError, RowError, RowsChanged

FileRow = dict[str, Any]


class Rows(Sequence[FileRow]):
    """Some or all rows of a set's files, in the files' order. Rows of the files count from 0."""

    can_be_sent = True
    """Whether another process can open the same rows."""
    _indices: Sequence[int]
    """Which rows of the files."""

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def kept(self) -> Sequence[int]:
        """The rows that a set may use, by their indices."""
        return range(len(self))

    @overload
    def __getitem__(self, index: int) -> FileRow: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "FileRow | Self":
        """Return a row.

        Raises:
            RowError: it cannot be read.
        """
        if isinstance(index, slice):
            return self.at(range(len(self))[index])
        return self._row(self._indices[index])

    def read(self) -> Iterator[FileRow | RowError]:
        """Yield each row, or why it cannot be read."""
        for index in range(len(self)):
            try:
                yield self[index]
            except RowError as error:
                yield error

    def at(self, indices: Sequence[int]) -> Self:
        """Return the rows at these indices, unread."""
        part = object.__new__(type(self))
        # Indices of a whole set stay a range: a list of a million would need memory.
        known = self._indices
        from_first_on = isinstance(known, range) and (known.start, known.step) == (0, 1)
        chosen = indices if from_first_on else [known[index] for index in indices]
        part.__dict__ = self.__dict__ | {"_indices": chosen}
        return part

    def place(self, index: int) -> str:
        """Return file and row for messages, rows counted from 1."""
        return self._place(self._indices[index])

    @abstractmethod
    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the files by name, and the rows of all up to the end of each."""

    @abstractmethod
    def _row(self, number: int) -> FileRow:
        """Return a row of the files."""

    @abstractmethod
    def _place(self, number: int) -> str:
        """Return file and row for messages."""


def file_state(file: Path | int) -> tuple[int, int]:
    """Return what tells that a file was changed: its time and its size.

    Raises:
        OSError: it is not there.
    """
    state = os.stat(file)
    return state.st_mtime_ns, state.st_size


def check_state(path: Path | str, file: Path | int, state: tuple[int, int]) -> None:
    """Refuse a file that is not as it was when ``state`` was taken; ``path`` is its name.

    Raises:
        RowsChanged: it is another one, or was changed.
        DataError: it is not there, or cannot be looked at.
    """
    try:
        found_state = file_state(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); see that the file is there") from error
    if found_state != state:
        raise changed(path)


def changed(path: Path | str) -> RowsChanged:
    """Return the refusal of a file that was changed while a job reads its rows."""
    return RowsChanged(
        f"{path}: expected the file as it was when the job opened it, found that it has changed "
        "since; its rows may be others now: start the job again"
    )
