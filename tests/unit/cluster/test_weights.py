import pytest

from cluster.weights import WeightStore
from data.errors import WeightSyncError
from data.types import ParamSpec

MANIFEST = (ParamSpec("w", "float32", (2,), 7),)


def test_keeps_the_newest_two_versions() -> None:
    store = WeightStore()
    assert store.latest() is None
    for version in (1, 2, 5):
        store.publish(version, MANIFEST, [f"ref-{version}"])
    assert store.latest() == 5
    assert store.get(5) == (MANIFEST, ["ref-5"])
    assert store.get(2) == (MANIFEST, ["ref-2"])
    with pytest.raises(WeightSyncError, match=r"version 1 is not .* holds \[2, 5\]"):
        store.get(1)


@pytest.mark.parametrize("version", [3, 2])
def test_refuses_a_version_that_does_not_increase(version: int) -> None:
    store = WeightStore()
    store.publish(3, MANIFEST, [])
    with pytest.raises(WeightSyncError, match=f"expected a version above 3, found {version}"):
        store.publish(version, MANIFEST, [])


def test_a_cleared_store_takes_older_versions_again() -> None:
    store = WeightStore()
    store.publish(3, MANIFEST, [])
    store.clear()
    store.publish(2, MANIFEST, [])
    assert store.latest() == 2


def test_an_empty_store_says_so() -> None:
    with pytest.raises(WeightSyncError, match="holds nothing"):
        WeightStore().get(0)
