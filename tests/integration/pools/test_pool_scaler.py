"""A pool of real engines that grows and shrinks under load."""

import threading
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import ray

from cluster.jobs import scale
from cluster.pools.pool_scaler import PoolScaler, PoolTargets
from data.errors import ClusterError
from data.types import GenerationRequest, GroupKey, Side, TrajectoryKey
from tests.patience import PATIENCE_S
from tests.shared_pictures import share_pictures

GROUPS, SIBLINGS = 6, 2


def engine_cores():
    """Return the processes of the Reasoners' engines."""

    def named(process, name):
        return process is not None and name in " ".join(process.cmdline())

    found = set()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends just now
            if named(one, "EngineCore") and named(one.parent(), "RolloutActor"):
                found.add(one)
    return found


class Load:
    """Samples batch after batch in a thread of its own."""

    def __init__(self, pool, content, pictures):
        self.asked, self.traces, self.batches = [], [], 0
        self._stop = threading.Event()
        self._pool, self._content, self._pictures = pool, content, share_pictures(pictures)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def next_batch(self):
        """Wait until a batch that begins now is done."""
        goal = self.batches + 2
        while self.batches < goal:
            assert self._thread.is_alive()
            self._stop.wait(0.01)

    def _run(self):
        while not self._stop.is_set():
            keys = [
                TrajectoryKey(GroupKey(self.batches, f"p{group}", Side.QUERY), sibling)
                for group in range(GROUPS)
                for sibling in range(SIBLINGS)
            ]
            self.asked += keys
            done, dropped = self._pool.generate(
                [
                    GenerationRequest(key=key, content=self._content, seed=key.sibling)
                    for key in keys
                ],
                self._pictures,
            )
            assert not dropped
            self.traces += done
            self.batches += 1
            self._stop.wait(0.3)  # engines that start need a core too


@pytest.mark.extended
def test_a_pool_that_grows_loses_an_engine_and_shrinks_under_load_loses_and_repeats_nothing(
    rollout_pool, publish, tiny_model, contents, pictures
):
    pool = rollout_pool
    others = engine_cores()
    version = publish(tiny_model)
    pool.pull_weights(version)
    targets = ray.remote(PoolTargets).options(num_cpus=0).remote(("reasoner",))
    scaler = PoolScaler({"reasoner": pool}, {}, targets)
    retried = []

    def resize(count):
        ray.get(targets.ask.remote({"reasoner": count}))
        deadline = time.monotonic() + PATIENCE_S
        while (metrics := scaler.step())["pool/reasoner/actors"] != count:
            retried.append(metrics["pool/reasoner/retried"])
            assert time.monotonic() < deadline
            time.sleep(0.1)
        retried.append(metrics["pool/reasoner/retried"])

    try:
        with Load(pool, contents["image"], pictures) as load:
            load.next_batch()
            resize(2)
            load.next_batch()
            (engine_cores() - others).pop().kill()
            load.next_batch()
            resize(1)
            load.next_batch()
    finally:
        pool.resize(1)
    # Those that were drained, or not needed any more, end too.
    deadline = time.monotonic() + PATIENCE_S
    while engine_cores() - others:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert sum(retried) > 0
    assert Counter(trace.key for trace in load.traces) == Counter(load.asked)
    # The new engines took the newest weights before their first trace.
    assert {(trace.min_version, trace.max_version) for trace in load.traces} == {(version, version)}


def test_unknown_pools_and_pools_without_actors_are_refused(local_ray):
    targets = ray.remote(PoolTargets).options(num_cpus=0).remote(("rollout", "reward"))
    for counts in ({"judge": 2}, {"reward": 0}):
        with pytest.raises(ClusterError, match="for rollout, reward, found"):
            ray.get(targets.ask.remote(counts))
    assert ray.get(targets.take.remote()) == {}


def test_sizes_that_are_refused_leave_the_ray_of_this_process(local_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert scale.main([str(tmp_path), "rollout=2"]) == 2
    assert ray.is_initialized()
