"""The process beside the driver: it stays for the next work, and does again what it died of."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.side_process import SideProcess
from tests.patience import PATIENCE_S
from tests.workers import Worker, dies_once

pytestmark = pytest.mark.usefixtures("local_ray")
IDLE_S = 4.0
"""Ray ends a task's process after a second without work, where actors hold all CPUs."""


@pytest.fixture
def processes() -> Iterator[list[SideProcess]]:
    processes = [SideProcess(f"process {index}") for index in range(2)]
    yield processes
    for one in processes:
        one.close()


@pytest.fixture
def no_cpu_is_free() -> Iterator[None]:
    free = ray.available_resources()["CPU"]
    holder = ray.remote(Worker).options(num_cpus=free).remote("holder")
    ray.get(holder.ready.remote(), timeout=PATIENCE_S)
    yield
    ray.kill(holder)


def numbers(processes: list[SideProcess]) -> list[int]:
    return [one.run(os.getpid, what="counting", timeout_s=PATIENCE_S)[1] for one in processes]


@pytest.mark.usefixtures("no_cpu_is_free")
def test_they_stay_for_the_next_work(processes: list[SideProcess]) -> None:
    first = numbers(processes)
    assert len({os.getpid(), *first}) == 3
    time.sleep(IDLE_S)
    assert numbers(processes) == first


def test_work_that_one_died_of_is_done_again(processes: list[SideProcess], tmp_path: Path) -> None:
    before = numbers(processes)
    _, again = processes[0].run(dies_once, tmp_path / "died", what="dying", timeout_s=PATIENCE_S)
    assert again == numbers(processes)[0] != before[0]
    assert numbers(processes)[1:] == before[1:]
