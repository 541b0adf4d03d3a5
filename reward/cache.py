"""Embeddings of items without a trace, remembered across steps."""

from collections import OrderedDict

import numpy as np

from data.types import Content


class EmbeddingCache:
    """The most recently used embeddings of one frozen Embedder.

    The content is the Embedder's whole prompt, suffix and frames included, so it stands for the
    prompt's version too; another Embedder or prompt needs a cache of its own.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[Content, np.ndarray] = OrderedDict()

    def get(self, content: Content) -> np.ndarray | None:
        """Return the embedding [D], or None where it must be computed."""
        if content not in self._vectors:
            return None
        self._vectors.move_to_end(content)
        return self._vectors[content]

    def put(self, content: Content, vector: np.ndarray) -> None:
        """Remember an embedding; beyond the capacity the least recently used one is forgotten."""
        self._vectors[content] = vector.copy()  # it may be a view that holds a whole answer
        self._vectors.move_to_end(content)
        if len(self._vectors) > self._capacity:
            self._vectors.popitem(last=False)
