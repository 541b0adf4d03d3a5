"""What a pool forks does not outlive a parent that is killed."""

import subprocess
import sys
import time

import psutil

from tests.patience import PATIENCE_S

PARENT = """
import os, signal
import learner.rank.ends_with_parent

child = os.fork()
if not child:
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid: int) -> bool:
    """Whether it has not ended; one that has may still wait for somebody to notice."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_forked_process_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)
