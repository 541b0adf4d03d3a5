"""Steps are collected once they are admitted, and taken in order."""

import threading

import pytest

from cluster.rl.staleness import StepBuffer
from data.errors import ClusterError
from tests.patience import PATIENCE_S


def test_a_step_waits_until_it_is_admitted() -> None:
    buffer: StepBuffer[int] = StepBuffer()
    began: list[int] = []
    all_begun = threading.Event()

    def collect() -> None:
        for step in range(1, 10):
            if not buffer.wait_until_admitted(step):
                return
            began.append(step)
            buffer.put(step)
            if step == 3:
                all_begun.set()

    thread = threading.Thread(target=collect)
    thread.start()
    buffer.admit(3)
    assert all_begun.wait(PATIENCE_S)
    assert [buffer.take("step") for _ in range(3)] == [1, 2, 3]
    buffer.admit(2)  # takes no admission back
    buffer.close()
    thread.join(PATIENCE_S)
    assert began == [1, 2, 3]


def test_what_ends_the_collection_reaches_who_takes_after_what_was_done() -> None:
    buffer: StepBuffer[int] = StepBuffer()
    buffer.put(1)
    buffer.fail(ClusterError("the pool is gone"))
    assert buffer.take("step 1") == 1
    with pytest.raises(ClusterError, match="the pool is gone"):
        buffer.take("step 2")
