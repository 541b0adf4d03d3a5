"""Jobs as the processes that a user starts: run, watched, and named when they hang."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

from tests.chaos.running import family, named
from tests.patience import PATIENCE_S

JOB_S = 900.0
"""Longest wait for what a job does, within pytest's own limit; one that failed is seen at once."""
STACKS_S = 60.0
"""Longest wait for the stacks of a job that hangs."""
SHOWN_CHARACTERS = 20_000
"""Of a failed job's output."""
REPOSITORY = Path(__file__).parents[2]
BLIND = frozenset(("embedder", "encode", "evaluate", "rl", "warm_start"))
"""Jobs that leave the decoding to processes beside the driver; see `tests.e2e.blind_driver`."""
DRIVERS = (" -m cluster.jobs.", " -m tests.e2e.")
"""What is in the command of a job's driver."""


def job_env(home: Path, **env: str) -> dict[str, str]:
    """Return the environment of a job that keeps everything under ``home``."""
    # With faulthandler a job that is aborted prints where each of its threads is.
    own = {"EMBED_RL_ROOT": str(home), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, **own, **env}


def job_command(job: str, config: str, *settings: str) -> list[str]:
    """Return the command of a job on a config of the demo; drivers of `BLIND` decode nothing."""
    command = ["tests.e2e.blind_driver", job] if job in BLIND else [f"cluster.jobs.{job}"]
    return [sys.executable, "-m", *command, f"configs/demo/{config}.yaml", *settings]


def run(*command: str, home: Path, exit_code: int = 0, **env: str) -> str:
    """Run one command in the repository, expect its exit code, and return what it printed.

    Raises:
        AssertionError: with the end of what it printed; of a command that hangs also with the
            stacks of its threads.
    """
    with Job(*command, folder=home, env=job_env(home, **env)) as job:
        return job.finish(exit_code)


class Job:
    """A command that runs beside the test; it is killed with all its processes at the end.

    Args:
        folder: its output goes to a file there.
        host: the process that has started the drivers, where the command only submits them.
    """

    def __init__(
        self,
        *command: str,
        folder: Path,
        env: Mapping[str, str],
        host: subprocess.Popen | None = None,
    ) -> None:
        self._command = command
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False) as log:
            self._log = Path(log.name)
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        self._host = host or self.process

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def printed(self) -> str:
        """Return what it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_until(self, there: Callable[[], bool], what: str) -> None:
        """Wait for something that it does.

        Raises:
            AssertionError: it ended before, or did not do it in time.
        """
        deadline = time.monotonic() + JOB_S
        while True:
            exit_code = self.process.poll()
            if there():
                return
            if exit_code is not None:
                self._fail(f"exit code {exit_code} before {what}")
            if time.monotonic() >= deadline:
                self._abort()
                self._fail(f"waited {JOB_S:.0f} s for {what}")
            time.sleep(0.1)

    def finish(self, exit_code: int = 0) -> str:
        """Wait for its end, expect its exit code, and return what it printed."""
        self.wait_until(lambda: self.process.poll() is not None, "its end")
        if self.process.returncode != exit_code:
            self._fail(f"exit code {self.process.returncode}, expected {exit_code}")
        return self.printed()

    def kill(self) -> None:
        """Kill it and all that it has started, at once, as when a machine goes away."""
        started = family(self.process.pid) if self.process.poll() is None else []
        self.process.kill()
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(PATIENCE_S)

    def _abort(self) -> None:
        """Have its drivers print the stacks of their threads, and itself where it does not end."""
        drivers = [psutil.Process(self._host.pid), *family(self._host.pid)]
        drivers = [one for one in drivers if any(named(one, driver) for driver in DRIVERS)]
        for some in (drivers, [psutil.Process(self.process.pid)]):
            for one in some:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STACKS_S if some else 0)

    def _fail(self, why: str) -> NoReturn:
        shown = self.printed()[-SHOWN_CHARACTERS:]
        raise AssertionError(f"{' '.join(self._command)}\n{why}\n{shown}")
