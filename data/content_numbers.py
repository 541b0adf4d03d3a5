"""Numbers that stand for contents: equal contents have equal numbers, in every process.

They are 64 bits wide: among ten million contents, two different ones have the same number with
a chance of 3 in a million. The number of an item follows from that of its text and from those of
its pictures in order, so that it can be made anew when another file stands for one of these.

Shapes: C contents, N pictures of all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15
"""Odd, with its bits well mixed."""
_MASK = (1 << 64) - 1


def text_number(text: str) -> int:
    """Return the number of a text, from 1 on."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


@dataclass(frozen=True, slots=True)
class ContentParts:
    """What the number of a content follows from."""

    text: int
    pictures: tuple[int, ...]

    def number(self) -> int:
        """Return the content's number."""
        number = self.text
        for picture in self.pictures:
            number = (number * _FACTOR + picture) & _MASK
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The parts of many contents."""

    texts: np.ndarray
    """uint64 [C]"""
    counts: np.ndarray
    """int64 [C]: pictures of each."""
    pictures: np.ndarray
    """uint64 [N]"""

    @classmethod
    def of(cls, parts: Sequence[ContentParts]) -> "Contents":
        """Return the parts of some contents."""
        pictures = [picture for part in parts for picture in part.pictures]
        return cls(
            texts=np.array([part.text for part in parts], dtype=np.uint64),
            counts=np.array([len(part.pictures) for part in parts], dtype=np.int64),
            pictures=np.array(pictures, dtype=np.uint64),
        )

    @classmethod
    def join(cls, parts: Iterable["Contents"]) -> "Contents":
        """Return the contents of all parts."""
        parts = list(parts)
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("texts", "counts", "pictures")
            }
        )

    def take(self, places: np.ndarray) -> "Contents":
        """Return the contents at some ascending places."""
        kept = np.zeros(len(self.texts), dtype=bool)
        kept[places] = True
        return Contents(
            texts=self.texts[places],
            counts=self.counts[places],
            pictures=self.pictures[np.repeat(kept, self.counts)],
        )

    def numbers(self) -> np.ndarray:
        """Return the contents' numbers, uint64 [C]."""
        numbers = self.texts.copy()
        first = np.cumsum(self.counts) - self.counts
        for place in range(int(self.counts.max(initial=0))):
            longer = self.counts > place
            picture = self.pictures[first[longer] + place]
            numbers[longer] = numbers[longer] * np.uint64(_FACTOR) + picture
        return numbers

    def with_pictures(self, old: np.ndarray, new: np.ndarray) -> "Contents":
        """Return the contents with other numbers for some pictures, both uint64 [X]."""
        if not len(old):
            return self
        order = np.argsort(old)
        place = np.searchsorted(old[order], self.pictures).clip(max=len(old) - 1)
        met = old[order][place] == self.pictures
        pictures = np.where(met, new[order][place], self.pictures)
        return Contents(texts=self.texts, counts=self.counts, pictures=pictures)


def content_parts(key: str) -> ContentParts:
    """Return the parts of a content by its key, see `Pair.key`."""
    content, _, instruction = key.partition("\x1e")
    kind, *rest = content.split("\x1f")
    text = "\x1f".join((kind, *rest[:1])) + "\x1e" + instruction
    return ContentParts(text_number(text), tuple(map(text_number, rest[1:])))


@lru_cache(1 << 16)
def content_number(key: str) -> int:
    """Return the number of a content by its key, see `Pair.key`."""
    return content_parts(key).number()


def content_numbers(keys: Sequence[str]) -> np.ndarray:
    """Return the numbers of contents, uint64 [C]."""
    return np.fromiter(map(content_number, keys), np.uint64, len(keys))
