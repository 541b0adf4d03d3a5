"""The blocked rank of many traces against a bank, beside the bare product of the two."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from reward.contrast import rank_embeddings
from tests.bench.record import alternate, record

ROWS, COLUMNS, DIMENSIONS, SIBLINGS = 8_192, 65_536, 256, 8
BLOCK = 2_048
CLOSENESS = 0.5
"""How much embeddings of one pair share, beside noise of 1: about a third of the traces rank."""


def product(rows: np.ndarray, columns: np.ndarray) -> None:
    """Multiply block by block into one buffer: 64 MB instead of 2 GB."""
    block = np.empty((len(rows), BLOCK), dtype=np.float32)
    for start in range(0, len(columns), BLOCK):
        np.matmul(rows, columns[start : start + BLOCK].T, out=block)


def with_peak(call: Callable[[], object], peaks: list[float]) -> Callable[[], None]:
    """Return the call, noting the most bytes that it holds at a time on top of its inputs."""

    def run() -> None:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call()
        peaks.append(float(tracemalloc.get_traced_memory()[1] - before))

    return run


@pytest.mark.timeout(1800)
def test_rank_of_embeddings_against_a_bank() -> None:
    column_keys = np.arange(COLUMNS) // SIBLINGS
    row_keys = column_keys[:ROWS]
    rng = np.random.default_rng(0)
    centres = CLOSENESS * rng.standard_normal((COLUMNS // SIBLINGS, DIMENSIONS), dtype=np.float32)
    rows, columns = (centres[keys] for keys in (row_keys, column_keys))
    for vectors in (rows, columns):
        vectors += rng.standard_normal(vectors.shape, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def rank() -> object:
        return rank_embeddings(rows, columns, row_keys, column_keys, temperature=0.5)

    def bare() -> object:
        return product(rows, columns)

    name = f"rank {ROWS}x{COLUMNS}x{DIMENSIONS} / product"
    record(name, *alternate(rank, bare), target=1.5)
    # In turns of its own: tracing costs microseconds per array, and more of them on our side.
    our_peaks: list[float] = []
    other_peaks: list[float] = []
    tracemalloc.start()
    alternate(with_peak(rank, our_peaks), with_peak(bare, other_peaks))
    tracemalloc.stop()
    record(
        f"{name}, extra memory",
        our_peaks[1:],
        other_peaks[1:],
        target=1e9,
        target_of="ours",
        unit="bytes",
    )
