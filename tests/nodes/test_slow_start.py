"""A Ray that is held up while it starts is started anew; needs a process without a Ray."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from cluster.session import session
from tests.patience import PATIENCE_S


def started(program: str) -> list[psutil.Process]:
    """Return the living processes of a program that this one has started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(part.endswith(program) for part in one.cmdline()):
                found.append(one)
    return found


def hold_up_agent(until: threading.Event) -> None:
    """Stop the first agent that this process starts."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := started("dashboard/agent.py")):
        assert time.monotonic() < deadline, "no agent was started"
        time.sleep(0.01)
    found[0].suspend()
    until.wait(PATIENCE_S)
    with suppress(psutil.NoSuchProcess):  # Ray has given it up
        found[0].resume()


def test_a_ray_that_comes_up_too_slowly_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    caplog.set_level(logging.WARNING)
    up = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        held_up = thread.submit(hold_up_agent, up)
        try:
            with session((), namespace="slow"):
                assert "started anew" in caplog.text
                assert len(started("gcs_server")) == 1  # the first node's is gone
        finally:
            up.set()
    held_up.result()
