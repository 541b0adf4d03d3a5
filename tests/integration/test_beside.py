"""The process beside the driver: it stays for the next work, and does again what it died of."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.beside import Beside
from tests.workers import dies_once

pytestmark = pytest.mark.usefixtures("local_ray")
IDLE_S = 4.0
"""Ray ends a task's process after a second without work, where actors outnumber the CPUs."""


@pytest.fixture
def beside() -> Iterator[Beside]:
    beside = Beside()
    yield beside
    beside.close()


def test_it_stays_for_the_next_work(beside: Beside) -> None:
    first = ray.get(beside.start(os.getpid), timeout=60)
    assert first != os.getpid()
    time.sleep(IDLE_S)
    assert ray.get(beside.start(os.getpid), timeout=60) == first


def test_work_that_it_died_of_is_done_again(beside: Beside, tmp_path: Path) -> None:
    first = ray.get(beside.start(os.getpid), timeout=60)
    refs = [beside.start(dies_once, tmp_path / "died"), beside.start(os.getpid)]
    again, after = ray.get(refs, timeout=60)
    assert again == after != first
