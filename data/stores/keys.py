"""Keys of contents: equal contents have equal keys, in every process and on every day."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.containers.addresses import file_of
from data.errors import DataError
from data.types import Content, ItemText, pictures_in

KEY_BYTES = 16
KEY = np.dtype(f"S{KEY_BYTES}")
"""A key in memory; equal ones are equal, and they have an order."""

REMEMBERED = 1 << 18
"""Files at most whose size and time are remembered, some 60 MB."""

_DIGITS = np.full(256, 255, dtype=np.uint8)
_DIGITS[list(b"0123456789abcdef")] = range(16)


def content_key(content: Content) -> str:
    """Return the identity of what a model reads, 32 hexadecimal digits.

    It follows from the texts, which of them is the instruction, how many tokens of an item's text
    are read, the order of all parts, and from each picture's address, crop and kind, with size and
    time of its file: a file that changed is another content.
    """
    parts = [
        (type(part).__name__, str(part), part.own, part.most)
        if isinstance(part, ItemText)
        else (type(part).__name__, str(part) if isinstance(part, str) else part)
        for part in content
    ]
    files = [_state_of(picture.uri) for picture in pictures_in(content)]
    text = repr((parts, files)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[: 2 * KEY_BYTES]


@contextmanager
def files_remembered() -> Iterator[None]:
    """Look at each picture's file once while this lasts, for the keys of all threads.

    For the run of one job, which makes the key of a picture many times: a file that changes
    meanwhile keeps its keys, one that changed between two jobs has others.
    """
    global _state_of
    before, _state_of = _state_of, lru_cache(REMEMBERED)(_state)
    try:
        yield
    finally:
        _state_of = before


def _state(uri: str) -> tuple[int, int]:
    try:
        state = Path(file_of(uri)).stat()
    except (OSError, ValueError):
        return 0, 0
    return state.st_size, state.st_mtime_ns


_state_of = _state
"""What `content_key` asks for size and time of a picture's file."""


def pack_keys(keys: Sequence[str]) -> np.ndarray:
    """Return keys as numbers of one size, KEY [N].

    Raises:
        DataError: one is no key.
    """
    text = "".join(keys).encode("ascii", "replace")
    if any(len(key) != 2 * KEY_BYTES for key in keys):
        wrong = next(key for key in keys if len(key) != 2 * KEY_BYTES)
        raise DataError(f"expected keys as `content_key` makes them, found {wrong[:80]!r}")
    digits = _DIGITS[np.frombuffer(text, dtype=np.uint8)].reshape(-1, 2)
    if (digits == 255).any():
        wrong = keys[int(np.argmax((digits == 255).any(axis=1))) // KEY_BYTES]
        raise DataError(f"expected keys as `content_key` makes them, found {wrong!r}")
    return (digits[:, 0] << 4 | digits[:, 1]).view(KEY)
