"""What Ray runs in tests; in a module of their own, where it finds them."""

import os
import signal
import threading
from pathlib import Path

from data.errors import DataError, EngineLost


class Worker:
    """Answers each request with its own name and the request; does what requests tell."""

    def __init__(self, name, refuses=False):
        self.name = name
        self.refuses = refuses
        self.held = threading.Event()

    def ready(self):
        if self.refuses:
            raise DataError(f"{self.name} has no model")
        return os.getpid()

    def work(self, requests):
        for request in requests:
            if request == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if request == "hang":
                self.held.wait()
            if request == "lose the engine":
                raise EngineLost("the engine died")
            if request == "refuse":
                raise DataError("no such picture")
            if request == "break":
                raise ZeroDivisionError("a defect")
        return [(self.name, request) for request in requests]

    def close(self):
        pass


class CrashesAt(int):
    """A limit of file sizes: who compares it with a file of just that size dies; it counts."""

    def __new__(cls, size: int, log: Path) -> "CrashesAt":
        limit = super().__new__(cls, size)
        limit.log = log
        return limit

    def __getnewargs__(self) -> tuple[int, Path]:
        return int(self), self.log

    def __lt__(self, size: int) -> bool:
        if size == int(self):
            with self.log.open("a") as file:
                file.write("x")
            os._exit(1)
        return False
