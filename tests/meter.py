"""What tests cost: CPU seconds, of all processes that a test has started too."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress

import psutil

SAMPLE_S = 1.0
"""A process that lives shorter may be missed; engines, ranks and jobs live much longer."""
FRESH_S = 0.25
"""Tests that are shorter share one reading."""
MOST_EXPENSIVE = 10


class CpuMeter:
    """Counts the CPU time of this process and its descendants, also of those that have ended.

    It looks again and again, as the system forgets a process that nobody has waited for.
    """

    def __init__(self) -> None:
        self._spent: dict[psutil.Process, float] = {}
        """CPU seconds by process."""
        self._living = {psutil.Process()}
        self._read_at = 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="cpu-meter", daemon=True).start()

    def seconds(self) -> float:
        """Return the CPU seconds so far."""
        if time.monotonic() - self._read_at > FRESH_S:
            self.read()
        with self._lock:
            return sum(self._spent.values())

    def read(self) -> None:
        """Look now at all processes."""
        with self._lock:
            self._read()

    def _watch(self) -> None:
        while True:
            time.sleep(SAMPLE_S)
            self.read()

    def _read(self) -> None:
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        for one in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                children[one.ppid()].append(one)
        # A process whose parent has died gets another parent; it is still in `_living`.
        waiting, living = list(self._living), set()
        while waiting:
            one = waiting.pop()
            if one in living:
                continue
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                self._spent[one] = times.user + times.system
                living.add(one)
                waiting += children[one.pid]
        self._living = living
        self._read_at = time.monotonic()


def cost_lines(tests: Mapping[str, float], total_s: float) -> list[str]:
    """Return the table of CPU seconds by test: by folder, and of the most expensive."""
    folders: Counter[str] = Counter()
    for test, seconds in tests.items():
        folders[test.split("::")[0].rpartition("/")[0]] += seconds
    folders["collecting, starting, stopping"] = total_s - sum(tests.values())
    expensive = sorted(tests.items(), key=lambda one: -one[1])[:MOST_EXPENSIVE]
    return [
        "core-minutes by folder (CPU time of all processes)",
        *(f"{seconds / 60:7.2f}  {folder}" for folder, seconds in sorted(folders.items())),
        f"{total_s / 60:7.2f}  in all",
        f"the {len(expensive)} most expensive tests; the first to use an engine pays for its start",
        *(f"{seconds / 60:7.2f}  {test}" for test, seconds in expensive),
    ]
