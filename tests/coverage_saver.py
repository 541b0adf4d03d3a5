"""Keeps what a process has covered so far: actors are killed, and write nothing at their end.

A plugin of coverage, which loads it in every process that it measures.
"""

import threading
import time
from typing import Any

import coverage

SAVE_S = 1.0
"""What a killed process may lose."""


def coverage_init(registry: Any, options: Any) -> None:
    """Save once a second, from now to the end of the process."""
    threading.Thread(target=_save, name="coverage-saver", daemon=True).start()


def _save() -> None:
    while True:
        time.sleep(SAVE_S)
        if (measured := coverage.Coverage.current()) is not None:
            measured.save()
