"""A Ray that is held up while it starts is started anew; needs a process without a Ray."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
import ray

from cluster.session import session
from tests.patience import PATIENCE_S

HELD_UP_S = 25.0
"""Longer than Ray waits for its agent."""


def agents() -> list[psutil.Process]:
    """Return the agents of the nodes that this process has started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(part.endswith("dashboard/agent.py") for part in one.cmdline()):
                found.append(one)
    return found


def hold_up_agent() -> None:
    """Stop the first agent that this process starts for a while."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := agents()):
        assert time.monotonic() < deadline, "no agent was started"
        time.sleep(0.01)
    found[0].suspend()
    time.sleep(HELD_UP_S)
    with suppress(psutil.NoSuchProcess):  # Ray has given it up
        found[0].resume()


def test_a_ray_that_comes_up_too_slowly_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ThreadPoolExecutor(1) as thread:
        held_up = thread.submit(hold_up_agent)
        caplog.set_level(logging.WARNING)
        with session((), namespace="slow"):
            assert ray.is_initialized()
    held_up.result()
    assert "started anew" in caplog.text
