"""The size a pool shall have."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.pools.pool import PoolStats
from cluster.pools.pool_scaler import desired_size
from configs.common import PoolConfig

POLICY = PoolConfig(min_actors=2, max_actors=8)


def size_after(size: int, *, busy: float, waiting: float = 0.0, policy: PoolConfig = POLICY) -> int:
    stats = PoolStats(actors=float(size), busy=busy, waiting=waiting)
    return desired_size(stats, size, policy)


def test_a_pool_grows_by_what_would_have_held_the_waiting_work() -> None:
    assert size_after(4, busy=4, waiting=3) == 6
    assert size_after(3, busy=3, waiting=100) == 6  # at most twice as many
    assert size_after(6, busy=6, waiting=100) == 8  # at most max_actors
    assert size_after(4, busy=4, waiting=0.9) == 4


def test_a_pool_that_idles_shrinks_to_what_was_busy() -> None:
    assert size_after(8, busy=2.5) == 4
    assert size_after(8, busy=0.0) == 2  # at least min_actors
    assert size_after(8, busy=5) == 8


@given(st.integers(1, 64), st.floats(0, 1), st.floats(0, 500), st.integers(1, 9), st.integers(0, 9))
def test_sizes_stay_within_their_bounds(size, busy, waiting, least, more) -> None:
    policy = PoolConfig(min_actors=least, max_actors=least + more)
    found = size_after(size, busy=busy * size, waiting=waiting, policy=policy)
    assert least <= found <= least + more
