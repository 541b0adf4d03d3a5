"""Which vectors of an Embedder are refused."""

import numpy as np

from cluster.pools.reward import vector_fault


def test_vectors_of_another_width_or_without_numbers_are_faults() -> None:
    assert vector_fault(np.ones(3), 3) is None
    assert "width 3, found shape (2,)" in vector_fault(np.ones(2), 3)
    assert "NaN" in vector_fault(np.array([1, np.nan, 0]), 3)
    assert "infinity" in vector_fault(np.array([1, np.inf, 0]), 3)
