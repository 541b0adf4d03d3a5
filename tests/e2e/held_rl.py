"""The job `rl`, held after the steps that HOLD_AFTER names (`3` or `3,5`) until it is let go.

A test that watches for a step and then interferes is late by as many steps as the run has done
meanwhile. So the driver stops there by itself: a step's metrics are written, its checkpoint is not
yet. It makes the file `held` in its run folder and waits until the test has removed it, or until
SIGTERM, of which the job has then taken note as ever.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.jobs import rl
from cluster.jobs.command import run_job
from cluster.run.run_folder import RunFolder
from configs.schema import RLConfig

HELD_FILE = "held"


def hold(held: Path) -> None:
    """Make a file and wait until it is gone."""
    take_note = signal.getsignal(signal.SIGTERM)

    def let_go(number: int, frame: FrameType | None) -> None:
        take_note(number, frame)
        held.unlink(missing_ok=True)

    signal.signal(signal.SIGTERM, let_go)
    held.touch()
    while held.exists():
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, take_note)


def held_after(steps: set[int], record: Callable[..., None]) -> Callable[..., None]:
    """Return what records a step's metrics and then, after these steps, holds."""

    def recorded(folder: RunFolder, step: int, *rest: Any) -> None:
        record(folder, step, *rest)
        if step in steps:
            hold(folder.path / HELD_FILE)

    return recorded


if __name__ == "__main__":
    rl.record = held_after({int(step) for step in os.environ["HOLD_AFTER"].split(",")}, rl.record)
    sys.exit(run_job(RLConfig, rl.main, roles=rl.roles))
