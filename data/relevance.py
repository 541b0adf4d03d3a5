"""Which targets are right for which queries: one rule for training, reward and evaluation.

A target is right for a query where the two are a known pair, or where equals of them are. Equal
queries have the same content. Equal targets have the same content or the same label; a label
belongs to its data set. Files of equal bytes are the same picture. Nothing else follows: with the
known pairs (X, a), (X, b) and (Y, b), the target a is not right for Y.

Shapes: Q queries, T targets.
"""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.types import Item, Pair

log = logging.getLogger(__name__)
MOST_FILES = 50_000
"""Picture files among which copies are looked for: that takes seconds, among millions hours."""
READERS = 8
"""Files that are looked at side by side; they may lie on a slow disk."""


class Relevance:
    """The known pairs of a job's data sets, to be asked what is right.

    It takes at most 32 bytes a pair. ``copies`` names for a picture file the one of the same bytes
    that stands for it, as `find_copies` returns it.
    """

    def __init__(self, pairs: Iterable[Pair], copies: Mapping[str, str] | None = None) -> None:
        self._copies = copies or {}
        flat = (number for pair in pairs for number in self._numbers_of(pair))
        query_P, target_P, label_P = np.fromiter(flat, np.int64).reshape(-1, 3).T
        self._golds = _Table.of(query_P, target_P)
        labelled = label_P != 0
        self._labels = _Table.of(target_P[labelled], label_P[labelled])

    def key(self, item: Item) -> str:
        """Return the identity of an item's content; copies of a picture are one."""
        if any(uri in self._copies for uri in item.uris):
            names = (self._copies.get(uri, uri) for uri in item.uris)
            item = Item(text=item.text, kind=item.kind, uris=tuple(names))
        return item.key()

    def right(self, queries: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """Return which targets are right for which queries, boolean [Q, T].

        Both are given by `key`. For a query that is in no known pair none is.
        """
        if not queries or not targets:
            return np.zeros((len(queries), len(targets)), dtype=bool)
        query_Q, back_Q = np.unique(_numbers(queries), return_inverse=True)
        target_T, back_T = np.unique(_numbers(targets), return_inverse=True)
        # A target is known by its content and its labels; a query seeks those of all its golds.
        row, gold = self._golds.find(query_Q)
        place, sought = self._with_labels(gold)
        row = row[place]
        column, known = self._with_labels(target_T)
        names, code = np.unique(known, return_inverse=True)
        place = np.searchsorted(names, sought).clip(max=len(names) - 1)
        met = names[place] == sought
        seeks_QN = np.zeros((len(query_Q), len(names)), dtype=bool)
        seeks_QN[row[met], place[met]] = True
        order = np.argsort(column, kind="stable")
        first_T = np.searchsorted(column[order], np.arange(len(target_T)))
        right_QT = np.logical_or.reduceat(seeks_QN[:, code[order]], first_T, axis=1)
        return right_QT[np.ix_(back_Q, back_T)]

    def right_among(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return whose targets are right for whose queries among some pairs, boolean [Q, T]."""
        queries = [self.key(pair.query) for pair in pairs]
        return self.right(queries, [self.key(pair.target) for pair in pairs])

    def twins(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return which pairs are right for each other, one way or the other, symmetric [Q, Q]."""
        right = self.right_among(pairs)
        return right | right.T

    def _numbers_of(self, pair: Pair) -> tuple[int, int, int]:
        """Return numbers that stand for query, target and label; 0: it has none."""
        label = hash((pair.source, pair.label)) if pair.label else 0
        return hash(self.key(pair.query)), hash(self.key(pair.target)), label

    def _with_labels(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the names by which targets are known, and the place of the target of each."""
        owner, label = self._labels.find(targets)
        places = np.arange(len(targets))
        return np.concatenate([places, owner]), np.concatenate([targets, label])


def relevance_of(pairs: Sequence[Pair]) -> Relevance:
    """Return what is right by the pairs of a job's data sets; copies of pictures are warned of."""
    items = (
        item
        for one in pairs
        for item in (one.query, one.target, *one.candidates, *one.hard_negatives)
    )
    uris = {uri for item in items for uri in item.uris}
    if len(uris) > MOST_FILES:
        log.warning(
            "%d picture files, of which copies are not looked for (at most %d files are read): a "
            "copy under another name counts as another picture",
            len(uris),
            MOST_FILES,
        )
        return Relevance(pairs)
    copies = find_copies(uris)
    if copies:
        copy, original = next(iter(copies.items()))
        log.warning(
            "%d of %d picture files hold the same bytes as another one, first %s and %s; each "
            "counts as that picture: what is right for one is right for the other",
            len(copies),
            len(uris),
            copy,
            original,
        )
    return Relevance(pairs, copies)


def find_copies(uris: Iterable[str]) -> dict[str, str]:
    """Return the first by name of all files of the same bytes, by the names of the others.

    Only files of equal size are read. What cannot be read is left out: decoding it says why.
    """
    names = sorted(set(uris))
    with ThreadPoolExecutor(READERS) as pool:
        by_size: dict[int, list[str]] = defaultdict(list)
        for name, size in zip(names, pool.map(_size, names), strict=True):
            if size:
                by_size[size].append(name)
        alike = [name for some in by_size.values() if len(some) > 1 for name in some]
        first: dict[bytes, str] = {}
        copies = {}
        for name, digest in zip(alike, pool.map(_digest, alike), strict=True):
            if digest and first.setdefault(digest, name) != name:
                copies[name] = first[digest]
    return copies


@dataclass(frozen=True, slots=True)
class _Table:
    """Values by key, a key as often as it has values; sorted, no entry twice."""

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray) -> "_Table":
        order = np.lexsort((values, keys))
        keys, values = keys[order], values[order]
        fresh = np.ones(len(keys), dtype=bool)
        fresh[1:] = (np.diff(keys) != 0) | (np.diff(values) != 0)
        return cls(keys[fresh], values[fresh])

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of the wanted keys, and for each the place of its key among them."""
        first = np.searchsorted(self.keys, wanted, side="left")
        count = np.searchsorted(self.keys, wanted, side="right") - first
        owner = np.repeat(np.arange(len(wanted)), count)
        place = np.arange(len(owner)) + np.repeat(first - np.cumsum(count) + count, count)
        return owner, self.values[place]


def _numbers(texts: Sequence[str]) -> np.ndarray:
    # Python's own hash: a text keeps it, and numbers are compared within one process only.
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError:
        return 0


def _digest(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return b""
