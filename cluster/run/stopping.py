"""SIGTERM (`ray job stop`, a spot instance that goes away) and SIGINT (Ctrl-C): exit code 3.

    imports -------> run_job --------> training loop --------> its end
    ends at once     ends, cleaned up  ends after the step     ends, cleaned up

A second signal ends the process at once. This module imports nothing that takes time: the package
`cluster.jobs` sets the first handlers with it, before anything else of a job is imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from data.errors import StopRequested

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_CODE = 3
EXIT_TIMEOUT_S = 30.0
"""A process that has its exit code ends within this time, whatever its threads still wait for."""
AGAIN_S = 0.01
"""From a signal that could not raise to the next try."""
STEP_NOTICE = (
    "the job stops when the step under way has ended and its checkpoint is written; a second "
    "signal ends it at once, without a checkpoint"
)
_jobs: list[int] = []
"""This process's id, where it is a job's own."""


class Interrupted(KeyboardInterrupt):
    """A job was asked to stop outside of its training loop; no `except Exception` keeps it."""


def take_over() -> None:
    """Let signals end this process, which is a job's and has not begun, with exit code 3."""
    _jobs.append(os.getpid())
    _handle(_end)


def leave_in_time(code: int) -> None:
    """Let a job's process end with that code though threads of it hang."""
    if os.getpid() in _jobs:
        sys.stdout.flush()
        timer = threading.Timer(EXIT_TIMEOUT_S, os._exit, [code])
        timer.daemon = True
        timer.start()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first signal raises `Interrupted` in the main thread, the second ends all.

    Raises:
        Interrupted: a signal came and then any error, which a library may have made of it.
    """
    made: list[Interrupted] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number in SIGNALS:
            _handle(_end)
            _say(f"{_name(number)}: the job ends; a second signal ends it at once")
            made.append(
                Interrupted(
                    f"stopped on request ({_name(number)}); the same command goes on from what was "
                    "saved"
                )
            )
        if not _in_logging(frame):
            raise made[0]
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    before = _handle(interrupt)
    try:
        yield
    except BaseException:
        if made:
            raise made[0] from None
        raise
    finally:
        if made:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _restore(before)


class StopRequest:
    """Inside, a signal ends no process but is noted, for a training loop to act on.

    Enter it in the main thread. ``notice`` says what follows from a signal.
    """

    def __init__(self, notice: str = STEP_NOTICE) -> None:
        self.made = False
        self._notice = notice

    def __enter__(self) -> "StopRequest":
        self._before = _handle(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)

    def obey(self, step: int, steps: int) -> None:
        """Act on a request that was made, when the step's checkpoint has been written.

        Raises:
            StopRequested: there are steps left.
        """
        if step < steps:
            raise StopRequested(
                f"stopped on request after step {step} of {steps}, with a checkpoint; the same "
                "command goes on from it"
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            _end(number, frame)
        self.made = True
        _say(f"{_name(number)}: {self._notice}")


def _in_logging(frame: FrameType | None) -> bool:
    """Return whether a signal met a function of `logging`.

    It takes its lock where an exception would leave it taken, so that every thread that logs waits
    for ever; and Python calls it when it forks, where an exception is lost.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") == "logging":
            return True
        frame = frame.f_back
    return False


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _say(f"{_name(number)}: ended at once\nexit code {EXIT_CODE}")
    os._exit(EXIT_CODE)


def _say(text: str) -> None:
    os.write(2, f"\n{text}\n".encode())  # what the signal interrupted may be printing


def _name(number: int) -> str:
    return signal.Signals(number).name


def _handle(handler: Callable[[int, FrameType | None], None] | None) -> dict[int, Any]:
    """Set a handler of the signals, where one is given; return those before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if handler is not None:
        _restore(dict.fromkeys(SIGNALS, handler))
    return before


def _restore(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:  # set by no Python code
                signal.signal(number, handler)
