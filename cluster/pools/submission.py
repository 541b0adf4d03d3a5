"""A submission: work handed to a pool, and the answers that come back."""

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.pools.work_router import Chunk


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Stands in for an answer: the chunk killed several actors, the last of which held only it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an actor made of a chunk."""

    chunk: Chunk
    value: Any
    """What the call returned, or `GivenUp`."""
    actor: str


class Submission:
    """Work handed to a pool; iterate once for its `Answer`s, in any order.

    Raises:
        ClusterError: the pool cannot do it any more.
        EmbedRLError: an actor refused it.
    """

    def __init__(self, shared: Sequence[Any]) -> None:
        self.shared = shared
        """What every call gets beside its requests."""
        self.units = 0
        """Units whose answers nobody has taken yet."""
        self.due = 0
        """Units that the pool still has to answer."""
        self._answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def put(self, answer: Answer | Exception) -> None:
        """Give an answer, or say why there will be none."""
        self._answers.put(answer)

    def __iter__(self) -> Iterator[Answer]:
        for answers in self.arrivals():
            yield from answers

    def arrivals(self, linger_s: float = 0.0) -> Iterator[list[Answer]]:
        """Yield what arrives within ``linger_s`` of an answer, together with that."""
        while self.units:
            done = [self._next()]
            if self.units and linger_s:
                time.sleep(linger_s)
            while self.units and not self._answers.empty():
                done.append(self._next())
            yield done

    def _next(self) -> Answer:
        answer = self._answers.get()  # the pool answers or fails in bounded time
        if isinstance(answer, Exception):
            self.units = 0
            raise answer
        self.units -= len(answer.chunk.units)
        return answer
