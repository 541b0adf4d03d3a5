"""What Ray runs in tests; in a module of their own, where it finds them."""

import os
import resource
import signal
import threading
from pathlib import Path

import ray

from cluster.learner_rank import LearnerRank
from data.errors import DataError, EngineLost, WeightSyncError
from data.types import DroppedTrajectory, Pictures, merge_pictures
from rollout.weights.report import SyncReport


class Worker:
    """Answers each request with its own name and the request; does what requests tell."""

    def __init__(self, name, refuses=False, dies=False):
        self.name = name
        self.refuses = refuses
        self.dies = dies
        self.held = threading.Event()
        self.silent_s = 0.0

    def seconds_since_step(self):
        return self.silent_s

    def let_go(self):
        self.held.set()

    def ready(self):
        if self.dies:
            os._exit(1)
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


class Reasoner:
    """Stands in for `rollout.actor.RolloutActor`: takes versions or not, and dies of a prompt."""

    def __init__(self, name: str, store: dict[str, int], **_: object) -> None:
        self.name = name
        self.left = store.get(name, 0)
        """Pulls that it will refuse; in the place of a store, how many those of each name do."""
        self.version = 0

    async def ready(self) -> None:
        pass

    async def pull_weights(self, version: int) -> SyncReport:
        if self.left:
            self.left -= 1
            raise WeightSyncError(f"{self.name} refuses version {version}")
        self.version = version
        return SyncReport(version=version, tensors=1, mismatched=(), bytes=1, seconds=0.0)

    async def generate(self, requests: list, *pictures: object) -> list:
        if any(one.content == ("deadly",) for one in requests):
            os._exit(1)
        return [DroppedTrajectory(one.key, "sampled", self.name) for one in requests]

    async def close(self) -> None:
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


class ReadableAt(int):
    """A limit of file sizes that no file exceeds; on other nodes all files are gone."""

    def __new__(cls, node: str) -> "ReadableAt":
        limit = super().__new__(cls, 1 << 30)
        limit.node = node
        return limit

    def __getnewargs__(self) -> tuple[str]:
        return (self.node,)

    def __lt__(self, size: int) -> bool:
        if ray.get_runtime_context().get_node_id() != self.node:
            raise FileNotFoundError
        return False


def dies_once(mark: Path) -> int:
    """Return the process's number, except at the first call, which ends it."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def node_of() -> str:
    """Return the node of the process that is asked."""
    return ray.get_runtime_context().get_node_id()


def gathered(*parts: Pictures) -> Pictures:
    """Return a call's pictures."""
    return merge_pictures(parts)


def limit_files(rank: LearnerRank, size: int) -> None:
    """Let the system refuse to write files of more bytes to a learner rank."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def die_in_backward(rank: LearnerRank) -> None:
    """Let a rank kill itself with SIGKILL when its next backward pass has its first gradient."""
    for parameter in rank._worker._engine.net.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
