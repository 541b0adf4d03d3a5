"""FAISS indexes of encoded vectors: built once, kept beside their parts.

| kind | what is kept | what a query is compared with |
|---|---|---|
| `flat` | all vectors | all of them |
| `ivf` | all vectors, in lists around trained centres | those in the lists that are probed |
| `hnsw` | all vectors, in a graph of neighbours | those on its way through the graph |
| `binary` | the sign of each number: 1/32 of the bytes | all bits, then the vectors of the best |

`ivf` has 4 * sqrt(N) lists, but no more than one for 39 vectors (FAISS's own limits), and probes a
sixteenth of them, at least 8. Shapes: Q queries, N vectors, D dimensions, K = min(k, N).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from math import sqrt
from typing import Any
from uuid import uuid4

import numpy as np

from data.durable import sync
from data.errors import ConfigError, DataError
from data.stores.encoded import EncodedParts

FORM = 1
"""Goes up when `_empty` builds something else from the same vectors."""
LEAST_OF_LIST, TRAINED_OF_LIST = 39, 64
"""Vectors of a list that FAISS wants at least, and that its centre is trained on at most."""
PROBED, LEAST_PROBES = 16, 8
LINKS, WIDTH_OF_SEARCH = 32, 64
"""Neighbours of a vector in the graph; vectors that a search through it keeps in mind."""
DIGEST_BYTES = 32


def check_faiss(kind: str) -> None:
    """Refuse an index where FAISS is not installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("faiss") is None:
        raise ConfigError(
            f"index: '{kind}' needs FAISS, found no package faiss; pip install -c constraints.txt "
            "-e '.[faiss]', or set index=exact"
        )
    # It tells at each start which variants of the processor's code it tries.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)


def lists_of(count: int) -> int:
    """Return into how many lists `ivf` puts so many vectors."""
    return max(1, min(round(4 * sqrt(count)), count // LEAST_OF_LIST))


def probes_of(lists: int) -> int:
    """Return how many of its lists `ivf` looks through where no number is set."""
    return min(lists, max(LEAST_PROBES, lists // PROBED))


class VectorIndex:
    """An index of the vectors in encoded parts, `index-<kind>.faiss` in their folder.

    The last bytes of the file say which parts it was built of; FAISS does not read them.
    """

    def __init__(
        self, parts: EncodedParts, kind: str, *, probes: int = 0, rescore: int = 4
    ) -> None:
        """Open the index, if there is one of these parts.

        Args:
            parts: the encoded items.
            kind: see the table of this file.
            probes: lists that `ivf` looks through; 0: as `probes_of` says.
            rescore: of `binary`: k times so many are ordered by their vectors.

        Raises:
            ConfigError: FAISS is not installed.
        """
        check_faiss(kind)
        self.path = parts.folder / f"index-{kind}.faiss"
        self._parts, self._kind, self._probes, self._rescore = parts, kind, probes, rescore
        text = f"{FORM} {kind} {parts.fingerprint}"
        self._digest = blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
        self._index = self._read()

    @property
    def is_built(self) -> bool:
        """Whether the index can be searched; if not, `build` makes it."""
        return self._index is not None

    def build(self) -> Iterator[int]:
        """Build the index and write it, the whole file at once; yield the number of vectors as
        they are taken in.

        Raises:
            DataError: a part cannot be read, or the file cannot be written.
        """
        index = self._empty()
        for block in self._parts.vectors():
            index.add(_bits(block) if self._kind == "binary" else block)
            yield len(block)
        self._write(index)
        self._index = index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest vectors that the index finds, int64 [Q, K], best first, and how
        similar they are, float32 [Q, K]. Among equals the lower index comes first.

        The index -1 stands for none, after all others: fewer than K are in the lists of `ivf`.

        Args:
            queries: float32 [Q, D] of length 1.
            k: how many.

        Raises:
            DataError: the queries have other dimensions than the vectors, or a part cannot be read.
        """
        width = self._parts.dimensions
        if queries.ndim != 2 or queries.shape[1] != width:
            raise DataError(
                f"{self.path}: expected queries of {width} dimensions as the vectors have, found "
                f"{list(queries.shape)}; embed the query with the Embedder of the items"
            )
        k = min(k, len(self._parts))
        if self._kind == "binary":
            indices, similarities = self._rescored(queries, k)
        else:
            if self._kind == "ivf":
                self._index.nprobe = self._probes or probes_of(self._index.nlist)
            if self._kind == "hnsw":
                self._index.hnsw.efSearch = max(WIDTH_OF_SEARCH, 2 * k)
            similarities, indices = self._index.search(queries, k)
        order = np.lexsort((indices, -similarities))[:, :k]
        return np.take_along_axis(indices, order, 1), np.take_along_axis(similarities, order, 1)

    def _rescored(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best by their bits with the similarities of their vectors, more than ``k``."""
        most = min(k * self._rescore, len(self._parts))
        _, indices = self._index.search(_bits(queries), most)
        read = np.unique(indices)
        vectors, places = self._parts.rows(read), np.searchsorted(read, indices)
        similarities = [vectors[p] @ query for p, query in zip(places, queries, strict=True)]
        return indices, np.stack(similarities)

    def _empty(self) -> Any:
        """Return an index without vectors, trained where it needs it."""
        import faiss

        count, width = len(self._parts), self._parts.dimensions
        if self._kind == "binary":
            return faiss.IndexBinaryFlat(8 * _bits(np.empty((1, width))).shape[1])
        lists = lists_of(count)
        form = {"flat": "Flat", "ivf": f"IVF{lists},Flat", "hnsw": f"HNSW{LINKS},Flat"}
        index = faiss.index_factory(width, form[self._kind], faiss.METRIC_INNER_PRODUCT)
        if self._kind == "ivf":
            trained_on = min(count, TRAINED_OF_LIST * lists)
            spread = np.linspace(0, count - 1, trained_on).astype(np.int64)
            index.train(self._parts.rows(spread))
        return index

    def _read(self) -> Any | None:
        import faiss

        try:
            with self.path.open("rb") as file:
                file.seek(-DIGEST_BYTES, os.SEEK_END)
                if file.read() != self._digest:
                    return None
            if self._kind == "binary":
                return faiss.read_index_binary(str(self.path))
            # From a memory map: a query reads only what it is compared with.
            lists, others = faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC
            return faiss.read_index(str(self.path), lists if self._kind == "ivf" else others)
        except (OSError, RuntimeError):
            return None  # there is none, or it is damaged: it is built again

    def _write(self, index: Any) -> None:
        import faiss

        write = faiss.write_index_binary if self._kind == "binary" else faiss.write_index
        unfinished = self.path.with_suffix(f".{uuid4().hex[:8]}.part")
        try:
            write(index, str(unfinished))
            with unfinished.open("ab") as file:
                file.write(self._digest)
            sync(unfinished)
            os.replace(unfinished, self.path)
            sync(self.path.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise DataError(
                f"{self.path}: the index cannot be written there ({error}); make room, correct the "
                "rights, or set index=exact"
            ) from error


def _bits(vectors: np.ndarray) -> np.ndarray:
    """Return which numbers are above 0, eight to a byte, uint8 [N, ceil(D / 8)]."""
    return np.packbits(vectors > 0, axis=1)
