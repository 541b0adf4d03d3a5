"""Which targets are right for which queries: one rule for training, reward and evaluation.

A target is right for a query if some row pairs them, or pairs equals of them. Equal queries have
the same content and instruction. Equal targets have the same content or the same label; a label
belongs to its data set. Nothing else follows: with the known pairs (X, a), (X, b) and (Y, b), the
target a is not right for Y.

Shapes: Q queries, T targets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.content_numbers import content_number, content_numbers, text_number
from data.types import Pair, Side


class Relevance:
    """The known pairs of a job's data sets, to be asked what is right.

    It takes at most 32 bytes a pair.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        flat = (number for pair in pairs for number in pair_numbers(pair))
        self._learn(np.fromiter(flat, np.uint64).reshape(-1, 3))

    @classmethod
    def by_numbers(cls, numbers: np.ndarray) -> "Relevance":
        """Return what is right by the `pair_numbers` of some pairs, uint64 [P, 3]."""
        relevance = object.__new__(cls)
        relevance._learn(numbers)
        return relevance

    def _learn(self, numbers: np.ndarray) -> None:
        query_P, target_P, label_P = numbers.T
        self._golds = _Table.of(query_P, target_P)
        labelled = label_P != 0
        self._labels = _Table.of(target_P[labelled], label_P[labelled])

    def right(self, queries: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """Return which targets are right for which queries, boolean [Q, T].

        Both are given by `Pair.key`. For a query that is in no known pair none is.
        """
        if not queries or not targets:
            return np.zeros((len(queries), len(targets)), dtype=bool)
        query_Q, back_Q = np.unique(content_numbers(queries), return_inverse=True)
        target_T, back_T = np.unique(content_numbers(targets), return_inverse=True)
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
        queries = [pair.key(Side.QUERY) for pair in pairs]
        return self.right(queries, [pair.target.key() for pair in pairs])

    def twins(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return which pairs are right for each other, one way or the other, symmetric [Q, Q]."""
        right = self.right_among(pairs)
        return right | right.T

    def _with_labels(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the names by which targets are known, and the place of the target of each."""
        owner, label = self._labels.find(targets)
        places = np.arange(len(targets))
        return np.concatenate([places, owner]), np.concatenate([targets, label])


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


def pair_numbers(pair: Pair) -> tuple[int, int, int]:
    """Return the numbers of a pair's query, target and label; 0: it has no label."""
    query, target = content_number(pair.key(Side.QUERY)), content_number(pair.target.key())
    return query, target, label_number(pair)


def label_number(pair: Pair) -> int:
    """Return the number of a pair's label, 0 where it has none."""
    return text_number(f"{pair.source}\x1e{pair.label}") if pair.label else 0
