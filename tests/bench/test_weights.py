"""Weights to two engines on one node: all of them, and what changed, against plain copies."""

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.weights.store import WeightStore
from tests.bench.parts.weight_actors import CHANGED, Engine, Sender
from tests.bench.record import REPEATS, record

ROOT = Path(__file__).resolve().parents[2]
ENGINES = 2
STORE_BYTES = 6 << 30
TOUCHED_BYTES = 5 << 30
"""Of the store, before anything is measured: memory costs several times as much the first time that
it is written to, and a run's versions soon use the same again."""
WARM_UP = 3
TIMEOUT_S = 300.0


class Cluster:
    """A sender, engines, and a store for each way of sending."""

    def __init__(self) -> None:
        self.sender: Any = Sender.remote()
        self.engines = [Engine.remote() for _ in range(ENGINES)]
        store = ray.remote(num_cpus=0)(WeightStore)
        self.stores = {delta: store.remote() for delta in (False, True)}
        self.version = dict.fromkeys(self.stores, 0)
        self.phases: dict[bool, dict[str, list[float]]] = {
            delta: defaultdict(list) for delta in self.stores
        }

    def touch_store(self) -> None:
        """Write to the store's memory once."""
        self._get([self.sender.touch_store.remote(TOUCHED_BYTES)])

    def change(self) -> None:
        """Let the sender's weights change."""
        self._get([self.sender.change.remote()])

    def sync(self, delta: bool) -> float:
        """Publish and pull one version; return the seconds until both engines have compared it."""
        self.version[delta] += 1
        version, store = self.version[delta], self.stores[delta]
        self._get([store.announce.remote(version)])
        began = time.perf_counter()
        put = self.sender.publish.remote(version, store, delta)
        pulls = [engine.pull.remote(version, store, delta) for engine in self.engines]
        (sent, phases), *arrived = self._get([put, *pulls])
        seconds = time.perf_counter() - began
        found = self.phases[delta]
        found["total"].append(seconds)
        found["megabytes put"].append(sent / 1e6)
        for phase, value in phases.items():
            found[f"sender {phase}"].append(value)
        for phase in arrived[0][1]:
            found[f"engine {phase}"].append(max(one[phase] for _, one in arrived))
        return seconds

    def copy(self) -> float:
        """Return the seconds of one copy into shared memory, then one per engine in parallel."""
        (into_shared,) = self._get([self.sender.copy.remote()])
        return into_shared + max(self._get([engine.copy.remote() for engine in self.engines]))

    def put_plain(self) -> float:
        """Return the seconds of `ray.put` of a dict of torch tensors, its last pages used again."""
        return self._get([self.sender.put_plain.remote()])[0]

    def forget(self) -> None:
        """Drop what was measured."""
        for found in self.phases.values():
            found.clear()

    def _get(self, refs: list[Any]) -> list[Any]:
        return ray.get(refs, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, Any]]:
    """Return the seconds of each way, measured in turn, and the phases of both syncs."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        runtime_env={"env_vars": variables},
    )
    try:
        cluster = Cluster()
        cluster.touch_store()
        ways = {
            "full": lambda: cluster.sync(False),
            "delta": lambda: cluster.sync(True),
            "memcpy": cluster.copy,
            "put": cluster.put_plain,
        }
        found: dict[str, list[float]] = defaultdict(list)
        for turn in range(WARM_UP + REPEATS):
            cluster.change()
            if turn == WARM_UP:
                cluster.forget()
                found.clear()
            names = list(ways)
            for name in names if turn % 2 else reversed(names):
                found[name].append(ways[name]())
        yield {**found, "phases": cluster.phases}
    finally:
        ray.shutdown()


def show(title: str, phases: dict[str, list[float]]) -> None:
    print(f"\n{title}, medians:")
    for phase, values in phases.items():
        print(f"  {phase:20}{np.median(values):10.4g}")


@pytest.mark.timeout(900)
def test_a_full_sync_against_plain_copies(measured: dict[str, Any]) -> None:
    show("full sync of 1 GB to 2 engines", measured["phases"][False])
    record("full weight sync, 1 GB: memcpy", measured["full"], measured["memcpy"], target=2.0)
    record("full weight sync, 1 GB: ray.put", measured["full"], measured["put"], target=0.25)


@pytest.mark.timeout(900)
def test_a_delta_sync_against_a_full_one(measured: dict[str, Any]) -> None:
    full, delta = measured["phases"][False], measured["phases"][True]
    show(f"delta sync, {CHANGED:.0%} of the elements changed", delta)
    record("delta weight sync, 2 % changed", measured["delta"], measured["full"], target=0.4)
    bytes_ = [phases["megabytes put"] for phases in (delta, full)]
    record("delta weight sync, bytes", *bytes_, target=0.06, unit="MB")
