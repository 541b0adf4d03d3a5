import asyncio

import pytest

from cluster.weights.store import WeightStore
from data.errors import WeightSyncError
from data.weights.types import Bucket, ParamSpec

LAYOUT = (ParamSpec("v", "float32", (2,)), ParamSpec("w", "float32", (2,)))
MANIFEST = {"v": 6, "w": 7}
SOON, LONG = 0.0, 60.0


async def put(store: WeightStore, version: int, *, base: int | None = None) -> None:
    await store.announce(version)
    await store.open(version, LAYOUT, base=base)
    await store.add(version, [Bucket({"w": 7}, (f"ref-{version}",))])
    await store.complete(version, MANIFEST)


def filled(*versions: tuple[int, int | None]) -> WeightStore:
    """Return a store with versions, each with its base."""

    async def fill() -> WeightStore:
        store = WeightStore()
        for version, base in versions:
            await put(store, version, base=base)
        return store

    return asyncio.run(fill())


def test_keeps_the_newest_two_snapshots() -> None:
    store = filled((1, None), (2, None), (5, None))
    assert asyncio.run(store.latest()) == 5
    assert asyncio.run(store.path(5, None, SOON)) == (LAYOUT, (5,), False)
    assert asyncio.run(store.bucket(2, 0, SOON)).parcels == ("ref-2",)
    assert asyncio.run(store.bucket(2, 1, SOON)) is None
    assert asyncio.run(store.manifest(2, 0.0)) == MANIFEST
    with pytest.raises(WeightSyncError, match=r"version 1 is not .* holds \[2, 5\]"):
        asyncio.run(store.path(1, None, SOON))


def test_the_oldest_snapshot_is_freed_when_the_next_is_opened() -> None:
    async def held() -> list[list[int]]:
        store = WeightStore()
        await put(store, 1)
        await put(store, 2)
        await store.announce(3)
        announced = await store.bases()
        await store.open(3, LAYOUT)
        return [announced, await store.bases()]

    assert asyncio.run(held()) == [[1, 2], [2]]


@pytest.mark.parametrize("version", [3, 2])
def test_refuses_a_version_that_does_not_increase(version: int) -> None:
    store = filled((3, None))
    with pytest.raises(WeightSyncError, match=f"expected a version above 3, found {version}"):
        asyncio.run(store.announce(version))


def test_the_newest_version_can_be_put_once_more_in_place_of_all() -> None:
    async def again() -> list[int]:
        store = WeightStore()
        await put(store, 1)
        await put(store, 2)
        await store.announce(2, again=True)
        await store.open(2, LAYOUT)
        await store.complete(2, MANIFEST)
        return await store.bases()

    assert asyncio.run(again()) == [2]


def test_a_cleared_store_takes_older_versions_again() -> None:
    async def latest() -> int | None:
        store = WeightStore()
        await put(store, 3)
        await store.clear()
        await put(store, 2)
        return await store.latest()

    assert asyncio.run(latest()) == 2


def test_an_empty_store_says_so() -> None:
    assert asyncio.run(WeightStore().latest()) is None
    with pytest.raises(WeightSyncError, match="holds nothing"):
        asyncio.run(WeightStore().path(0, None, SOON))


def test_changes_are_a_path_from_what_is_held_or_from_the_snapshot() -> None:
    store = filled((1, None), (2, 1), (3, 2))
    assert asyncio.run(store.path(3, 2, SOON))[1:] == ((3,), True)
    assert asyncio.run(store.path(3, 1, SOON))[1:] == ((2, 3), True)
    assert asyncio.run(store.path(3, None, SOON))[1:] == ((1, 2, 3), False)
    assert asyncio.run(store.path(3, 0, SOON))[1:] == ((1, 2, 3), False)
    assert asyncio.run(store.path(3, 3, SOON))[1:] == ((), False)


def test_a_snapshot_stays_while_versions_need_it() -> None:
    store = filled((1, None), (2, 1), (3, None), (4, 3), (5, 4))
    assert asyncio.run(store.bases()) == [1, 2, 3, 4, 5]
    asyncio.run(put(store, 6))
    assert asyncio.run(store.bases()) == [3, 4, 5, 6]


def test_who_waits_gets_buckets_as_they_come() -> None:
    async def follow() -> list[str]:
        store = WeightStore()
        await store.announce(1)
        found: list[str] = []

        async def pull() -> None:
            await store.path(1, None, LONG)
            while (bucket := await store.bucket(1, len(found), LONG)) is not None:
                found.append(bucket.parcels[0])

        pulling = asyncio.create_task(pull())
        await asyncio.sleep(0)
        await store.open(1, LAYOUT)
        for index in range(3):
            await store.add(1, [Bucket({"w": 7}, (f"ref-{index}",))])
            while len(found) <= index:
                await asyncio.sleep(0)
        await store.complete(1, MANIFEST)
        await pulling
        return found

    assert asyncio.run(follow()) == ["ref-0", "ref-1", "ref-2"]


def test_a_failure_ends_the_wait_with_its_reason() -> None:
    async def wait() -> None:
        store = WeightStore()
        await put(store, 1)
        await store.announce(2)
        waiting = asyncio.create_task(store.path(2, None, LONG))
        await asyncio.sleep(0)
        await store.fail(2, "rank 1 died")
        assert await store.latest() == 1
        await waiting

    with pytest.raises(WeightSyncError, match=r"version 2 was not published .* rank 1 died"):
        asyncio.run(wait())


def test_a_wait_ends_in_time_and_says_what_is_missing() -> None:
    async def wait() -> None:
        store = WeightStore()
        await store.announce(1)
        with pytest.raises(WeightSyncError, match="its tensors; the learner has not begun"):
            await store.path(1, None, SOON)
        await store.open(1, LAYOUT)
        await store.add(1, [Bucket({"w": 7}, ("ref",))])
        await store.bucket(1, 1, SOON)

    with pytest.raises(WeightSyncError, match="bucket 1; 1 buckets with 1 of 2 tensors are there"):
        asyncio.run(wait())
