"""Which of many pictures and texts are nearly equal: only those in one bucket are compared."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.media.perceptual_hash import COARSE_BYTES, MOST_COARSE, similarity

LEAST_JACCARD = 0.8
"""Share of shingles that two texts have in common, of those that either has."""
SHINGLE = 5
"""Characters."""
TEXT_CHARS = 10_000
"""Of longer texts only the beginnings are compared."""
COMMON_SHARE, COMMON_TEXTS = 0.1, 20
"""Shingles that more than this share of a set's texts have, and more than this many texts, are not
used to find near texts."""
FIRST, BEFORE = 8, 64
"""Each content is compared with the first 8 of its bucket and with the 64 right before it."""
ENOUGH = 16
"""A content for which so many earlier near ones are found is compared with no more."""

LEAST_EQUAL = 0.6
"""Texts with a smaller share of equal MinHashes are not compared. A Jaccard of .8 has .8 +- .06."""

_BANDS, _BAND_ROWS = 12, 4
"""MinHash: texts with a Jaccard of 0.8 share a bucket with probability 1 - (1 - .8^4)^12 = .998."""
_CHUNK = 1024
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)

NearPairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Numbers of the earlier and the later contents, int64, and their similarity, float; each [P]."""


def near_pictures(frames: np.ndarray, hashes: np.ndarray) -> NearPairs:
    """Return which pictures, or videos, look alike.

    Args:
        frames: int64 [N, F]: which picture each frame is; equal numbers are equal pixels.
        hashes: uint8 [pictures, HASH_BYTES]; all zeros for a picture that has no hash.

    Every frame must look alike; the similarity is that of the frames that are least alike. A
    frame without a hash is like an equal one only.
    """
    has_hash = hashes.any(axis=1)
    which = has_hash[frames].argmax(axis=1)
    chosen = frames[np.arange(len(frames)), which]
    numbers = np.flatnonzero(has_hash[chosen])
    coarse = np.ascontiguousarray(hashes[chosen[numbers], :COARSE_BYTES])
    codes = coarse.view(np.uint64)[:, 0]

    def alike(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        result = np.zeros(len(earlier))
        close = np.flatnonzero(np.bitwise_count(codes[earlier] ^ codes[later]) <= MOST_COARSE)
        firsts, seconds = frames[numbers[earlier[close]]], frames[numbers[later[close]]]
        result[close] = 1.0
        for first, second in zip(firsts.T, seconds.T, strict=True):
            hashed = has_hash[first] & has_hash[second]
            of_frame = np.where(hashed, similarity(hashes[first], hashes[second]), 0.0)
            result[close] = np.minimum(result[close], np.where(first == second, 1.0, of_frame))
        return result

    earlier, later, values = _search(_picture_keys(coarse), len(numbers), alike)
    return numbers[earlier], numbers[later], values


def near_texts(texts: Sequence[str], sets: Iterable[np.ndarray]) -> NearPairs:
    """Return which texts are nearly equal: small edits, other case or blanks, the same numbers.

    ``sets``: the numbers of each set's texts, int64. The similarity is the Jaccard of the texts'
    shingles, with or without the common ones, whichever is less.
    """
    plain = [" ".join(text[:TEXT_CHARS].lower().split()) for text in texts]
    every = _shingles_of(plain)
    rare = every.without(every.common(sets))
    numbers = np.flatnonzero(np.diff(rare.begins))
    min_hashes = rare.min_hashes()

    def alike(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        result = np.zeros(len(earlier))
        equal = (min_hashes[:, earlier] == min_hashes[:, later]).mean(axis=0)
        for place in np.flatnonzero(equal >= LEAST_EQUAL).tolist():
            first, second = numbers[earlier[place]], numbers[later[place]]
            jaccard = min(rare.jaccard(first, second), every.jaccard(first, second))
            if jaccard >= LEAST_JACCARD and _digits(plain[first]) == _digits(plain[second]):
                result[place] = jaccard
        return result

    earlier, later, values = _search(_text_keys(min_hashes), len(numbers), alike)
    return numbers[earlier], numbers[later], values


@dataclass(frozen=True, slots=True)
class _Shingles:
    """The different shingles of texts, as hashes."""

    hashes: np.ndarray
    """uint32 [S], ascending in each text."""
    begins: np.ndarray
    """Where each text's begin, and their end: int64 [N + 1]."""

    def common(self, sets: Iterable[np.ndarray]) -> np.ndarray:
        """Return the shingles that are in many texts of a set."""
        common = [np.zeros(0, np.uint32)]
        for numbers in sets:
            own = [self._of(number) for number in numbers.tolist()]
            values, counts = np.unique(np.concatenate(own or common), return_counts=True)
            common.append(values[counts > max(COMMON_TEXTS, COMMON_SHARE * len(numbers))])
        return np.unique(np.concatenate(common))

    def without(self, common: np.ndarray) -> "_Shingles":
        """Return the shingles but for the common ones."""
        keep = ~np.isin(self.hashes, common)
        return _Shingles(self.hashes[keep], np.concatenate([[0], keep.cumsum()])[self.begins])

    def min_hashes(self) -> np.ndarray:
        """Return the MinHashes of the texts that have shingles, uint32 [hashes, texts]."""
        begins = self.begins[:-1][np.diff(self.begins) > 0]
        factors = np.random.default_rng(0).integers(1, 1 << 62, _BANDS * _BAND_ROWS, np.uint64)
        result = np.zeros((len(factors), len(begins)), np.uint32)
        for row, factor in zip(result, factors | np.uint64(1), strict=True):
            if len(begins):
                orders = ((self.hashes * factor) >> np.uint64(32)).astype(np.uint32)
                row[:] = np.minimum.reduceat(orders, begins)
        return result

    def jaccard(self, first: int, second: int) -> float:
        """Return the share of shingles that two texts have in common, of those of either."""
        own, other = self._of(first), self._of(second)
        both = len(np.intersect1d(own, other, assume_unique=True))
        return both / max(1, len(own) + len(other) - both)

    def _of(self, number: int) -> np.ndarray:
        return self.hashes[self.begins[number] : self.begins[number + 1]]


def _shingles_of(texts: Sequence[str]) -> _Shingles:
    chunks = [_hashed(texts[at : at + _CHUNK]) for at in range(0, len(texts), _CHUNK)]
    counts = np.concatenate([np.zeros(1, np.int64), *(counts for _, counts in chunks)])
    hashes = np.concatenate([np.zeros(0, np.uint32), *(hashes for hashes, _ in chunks)])
    return _Shingles(hashes, counts.cumsum())


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts' different shingles, ascending in each text, and how many each has."""
    # A shorter text is a shingle; an empty one has none.
    padded = [text.ljust(SHINGLE, "\0") if text else "" for text in texts]
    joined = "".join(padded).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in padded])
    whole = owner[: 1 - SHINGLE] == owner[SHINGLE - 1 :]
    hashes = np.zeros(len(whole), np.uint64)
    for place in range(SHINGLE):
        hashes = hashes * _PRIME + codes[place : place + len(whole)]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _MIX >> np.uint64(32)
    different = np.unique((owner[: len(whole)] << np.uint64(32) | hashes)[whole])
    counts = np.bincount((different >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return different.astype(np.uint32), counts


def _digits(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _picture_keys(coarse: np.ndarray) -> Iterator[np.ndarray]:
    """Yield buckets of hashes, uint8 [N, 8], such that alike ones share at least one.

    Of four words of 16 bits, one differs in at most one bit where all differ in at most
    `MOST_COARSE` = 7; so the words without that bit are equal.
    """
    words = np.ascontiguousarray(coarse).view(np.uint16)
    for word in words.T:
        for bit in range(16):
            yield word & np.uint16(~(1 << bit) & 0xFFFF)


def _text_keys(min_hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield buckets of texts by each band of their MinHashes."""
    for band in min_hashes.reshape(_BANDS, _BAND_ROWS, -1):
        keys = np.zeros(band.shape[1], np.uint64)
        for row in band:
            keys = (keys ^ row) * _MIX
            keys ^= keys >> np.uint64(29)
        yield keys


def _search(
    buckets: Iterable[np.ndarray],
    count: int,
    alike: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> NearPairs:
    """Return which of ``count`` contents that share a bucket are alike.

    Each of ``buckets`` has a key for each content. ``alike`` returns the similarity of the earlier
    and the later contents with these numbers, 0 where they are not alike.
    """
    codes, values = np.zeros(0, np.int64), np.zeros(0)
    for keys in buckets:
        partners = np.bincount(codes % max(1, count), minlength=count)
        new_codes, new_values = [codes], [values]
        for earlier, later in _in_buckets(keys):
            few = partners[later] < ENOUGH
            earlier, later = earlier[few], later[few]
            code = earlier * count + later
            fresh = np.append(codes, -1)[np.searchsorted(codes, code)] != code
            earlier, later, code = earlier[fresh], later[fresh], code[fresh]
            similarities = alike(earlier, later)
            near = similarities > 0
            partners[later[near]] += 1
            new_codes.append(code[near])
            new_values.append(similarities[near])
        codes, first = np.unique(np.concatenate(new_codes), return_index=True)
        values = np.concatenate(new_values)[first]
    return codes // max(1, count), codes % max(1, count), values


def _in_buckets(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers of the earlier and the later of contents whose keys are equal.

    No later content is there twice in what is yielded at once.
    """
    order = np.argsort(keys, kind="stable")
    is_first = np.concatenate([[True], np.diff(keys[order]) != 0])[: len(keys)]
    begins = np.flatnonzero(is_first)
    place = np.arange(len(keys)) - np.repeat(begins, np.diff(np.append(begins, len(keys))))
    for first in range(FIRST):
        later = np.flatnonzero(place > first)
        yield order[later - place[later] + first], order[later]
    later = np.flatnonzero(place > FIRST)
    for back in range(1, BEFORE + 1):
        later = later[place[later] >= FIRST + back]
        yield order[later - back], order[later]
