"""Picture files that count as one: several links to a file, and files of the same bytes.

The first of them stands for all, in the order in which the sets name them. F files in all sets; a
file counts as often as pictures in it are named.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.containers.addresses import parse_address
from data.containers.cells import read_cell
from data.errors import DataError
from data.sets.index import PictureTable

COMPARED_BYTES = 256 << 20
"""Files of one size are compared until so much was read; the later ones count as different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What is known of the files of several sets, S of them."""

    first: Mapping[str, str]
    """The file that stands for another, by the other's path."""
    copies: tuple[Mapping[str, str], ...]
    """Of each set, those that have the same bytes as an earlier one; each in one set only."""
    uncompared: tuple[int, ...]
    """Files of each set that may be copies: the budget was used up."""


def find_copies(sets: Sequence[PictureTable]) -> Copies:
    """Compare the files of sets with each other; only files of equal size are read."""
    owner_F = np.repeat(np.arange(len(sets)), [len(table.files) for table in sets])
    start_S = np.searchsorted(owner_F, np.arange(len(sets)))
    files_F, reals_F, sizes_F = (
        np.concatenate([getattr(table, name) for table in sets] or [[]])
        for name in ("files", "reals", "sizes")
    )

    def path(index: int) -> str:
        return sets[owner_F[index]].file(int(index - start_S[owner_F[index]]))

    first: dict[str, str] = {}
    copies: list[dict[str, str]] = [{} for _ in sets]
    fresh = _firsts(files_F)
    own = fresh[_firsts(reals_F[fresh])]
    todo = own[_with_a_repeated_value(sizes_F[own])]
    later = np.ones(len(todo), dtype=bool)
    later[_firsts(sizes_F[todo])] = False
    # The first file of a size is read when the second one comes.
    unread = {int(sizes_F[index]): index for index in todo[~later].tolist()}
    by_bytes: dict[bytes, int] = {}
    compared, done = 0, len(todo)
    for place in np.flatnonzero(later).tolist():
        index = int(todo[place])
        size = int(sizes_F[index])
        if compared + size > COMPARED_BYTES:
            done = place
            break
        if (other := unread.pop(size, None)) is not None:
            compared += size
            if digest := _digest(path(other), size):
                by_bytes.setdefault(digest, other)
        compared += size
        digest = _digest(path(index), size)
        its_first = by_bytes.setdefault(digest, index) if digest else index
        if its_first != index:
            first[path(index)] = copies[owner_F[index]][path(index)] = path(its_first)
    links = np.setdiff1d(fresh, own).tolist()
    owner_of_real = dict(zip(reals_F[own].tolist(), own.tolist(), strict=True)) if links else {}
    for index in links:
        other_path = path(owner_of_real[int(reals_F[index])])
        first[path(index)] = first.get(other_path, other_path)
    late = owner_F[todo[done:][later[done:]]]
    return Copies(
        first=first,
        copies=tuple(copies),
        uncompared=tuple(np.bincount(late, minlength=len(sets)).tolist()),
    )


def _firsts(values: np.ndarray) -> np.ndarray:
    """Return where each value stands first, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


def _with_a_repeated_value(values: np.ndarray) -> np.ndarray:
    _, back, count = np.unique(values, return_inverse=True, return_counts=True)
    return count[back] > 1


def _digest(path: str, size: int) -> bytes:
    """Return the hash of a file or cell; empty: it cannot be read, as whoever decodes it tells."""
    try:
        if parse_address(path).row is not None:
            return hashlib.sha256(read_cell(path, max_bytes=size)).digest()
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, DataError):
        return b""
