"""Cheap actors for tests of pools; in a module of their own, where Ray finds them."""

import os
import signal
import threading

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
