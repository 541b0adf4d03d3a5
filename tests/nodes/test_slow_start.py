"""A Ray that is held up while it starts is started anew; needs a process without a Ray."""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.session import session
from tests.patience import PATIENCE_S

HELD_UP = """
import os, sys, time
# The first agent that Ray starts does nothing but wait; others find the file.
if any(part.endswith("dashboard/agent.py") for part in sys.orig_argv):
    try:
        with open({folder!r} + "/held", "x") as held:
            held.write(str(os.getpid()))
    except FileExistsError:
        pass
    else:
        while not os.path.exists({folder!r} + "/let_go"):
            time.sleep(0.05)
        os._exit(1)
"""
"""A `sitecustomize`, which Python runs at the start of every process."""


def test_a_ray_that_comes_up_too_slowly_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HELD_UP.format(folder=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    caplog.set_level(logging.WARNING)
    try:
        with session((), namespace="slow"):
            assert "started anew" in caplog.text
            assert len(started("gcs_server")) == 1  # the first node's is gone
    finally:
        (tmp_path / "let_go").touch()
    wait_for_end(int((tmp_path / "held").read_text()))


def started(program: str) -> list[psutil.Process]:
    """Return the living processes of a program that this one has started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(part.endswith(program) for part in one.cmdline()):
                found.append(one)
    return found


def wait_for_end(pid: int) -> None:
    """Wait until a process is gone, even if nobody has asked for its exit code."""
    deadline = time.monotonic() + PATIENCE_S
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} is still there"
            time.sleep(0.1)
