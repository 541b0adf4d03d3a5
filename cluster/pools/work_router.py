"""Which actor gets which work: chunks of like cost, least load, work of lost actors. No Ray here.

A chunk goes `waiting -> sent -> done`; what an actor held when it was lost goes back to waiting.
When an actor dies, each chunk that it held is a suspect, though most are innocent. A chunk that has
seen two deaths is sent to an actor that holds nothing else, and is halved after each further death,
until the request that kills actors is found.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CHUNKS_IN_FLIGHT = 2
"""Chunks an actor holds at most, each as large as an engine's batch or smaller: while one is
answered the engine still has the other."""
DEATHS_ALONE = 2
"""Work that an actor has died of so often is sent alone, and given up if one dies of it then."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Requests that one actor gets together, such as siblings, which share their prompt."""

    requests: tuple[Any, ...]
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Units of like cost that travel to an actor in one call."""

    units: tuple[Unit, ...]
    submission: Any
    """Whom the answer is for."""
    failed_on: str | None = None
    """The actor on which these requests failed before; None: they are new."""
    deaths: int = 0
    """Actors that were lost while they held it."""
    solo: int = 0
    """Of these the ones that held nothing else."""
    lost: int = 0
    """Answers that were lost on their way."""
    urgent: bool = False
    """Small, and awaited: it goes first, also to an actor that has enough to do."""
    cost: float = field(init=False)
    """Sum over its units."""
    items: int = field(init=False)
    """Requests of all units."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", sum(unit.cost for unit in self.units))
        object.__setattr__(self, "items", sum(len(unit.requests) for unit in self.units))

    @property
    def alone(self) -> bool:
        """Whether an actor that has it may hold nothing else."""
        return self.deaths >= DEATHS_ALONE

    @property
    def requests(self) -> tuple[Any, ...]:
        """The requests of all units."""
        return tuple(request for unit in self.units for request in unit.requests)


def plan_chunks(
    units: Sequence[Unit],
    submission: Any,
    *,
    actors: int,
    max_items: int,
    failed_on: str | None = None,
    urgent: bool = False,
) -> list[Chunk]:
    """Return chunks of neighbours in cost, costly ones first: a share for each actor, or more.

    Chunks hold at most ``max_items`` requests, or one unit; chunks of less than half of that come
    back sooner, but every call costs the driver. A single actor has nothing to balance.
    """
    ordered = sorted(units, key=lambda unit: -unit.cost)
    halves = 2 * sum(len(unit.requests) for unit in units) // max_items
    parts = max(actors, min(halves, CHUNKS_IN_FLIGHT * actors)) if actors > 1 else 1
    share = sum(unit.cost for unit in ordered) / parts
    groups: list[list[Unit]] = []
    members: list[Unit] = []
    items, cost = 0, 0.0
    for unit in ordered:
        if members and items + len(unit.requests) > max_items:
            groups.append(members)
            members, items, cost = [], 0, 0.0
        members.append(unit)
        items += len(unit.requests)
        cost += unit.cost
        if items >= max_items or cost >= share:
            groups.append(members)
            members, items, cost = [], 0, 0.0
    if members:
        groups.append(members)
    return [Chunk(tuple(group), submission, failed_on, urgent=urgent) for group in groups]


class Router:
    """Decides what goes where for one pool; actors may come and go."""

    def __init__(self) -> None:
        self.waiting: list[Chunk] = []
        self._sent: dict[str, list[Chunk]] = {}
        """By actor, of those that hold something."""

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Take work."""
        urgent = [chunk for chunk in chunks if chunk.urgent]
        self.waiting = [*urgent, *self.waiting, *(chunk for chunk in chunks if not chunk.urgent)]

    def next(self, actors: Collection[str]) -> tuple[str, Chunk] | None:
        """Return an actor and the chunk to send to it now; None: wait for an answer first.

        Chunks go in their order, each to the actor with the least cost in flight. Requests that
        failed go to another actor than before, unless only that actor is left.
        """
        if not self.waiting:
            return None
        shared = [name for name in actors if not any(chunk.alone for chunk in self.held_by(name))]
        room = [name for name in shared if len(self.held_by(name)) < CHUNKS_IN_FLIGHT]
        for chunk in self.waiting:
            if not room and not chunk.urgent:
                return None
            free = [
                name
                for name in (shared if chunk.urgent else room)
                if (name != chunk.failed_on or len(actors) == 1)
                and not (chunk.alone and self.held_by(name))
            ]
            if free:
                name = min(free, key=self._load)
                self.waiting.remove(chunk)
                self._sent.setdefault(name, []).append(chunk)
                return name, chunk
        return None

    def held_by(self, actor: str) -> Sequence[Chunk]:
        """Return what an actor has not answered."""
        return self._sent.get(actor, ())

    def done(self, actor: str, chunk: Chunk) -> None:
        """Take note that an actor no longer holds a chunk."""
        self._sent[actor].remove(chunk)
        if not self._sent[actor]:
            del self._sent[actor]

    @property
    def busy(self) -> int:
        """How many actors hold something."""
        return len(self._sent)

    def lose(self, actor: str) -> list[Chunk]:
        """Let the others have what an actor held; return what is given up, having killed it."""
        chunks = self._sent.pop(actor, [])
        back, given_up = [], []
        for chunk in chunks:
            single = len(chunks) == 1
            again = replace(chunk, deaths=chunk.deaths + 1, solo=chunk.solo + single)
            if not again.alone:
                back.append(again)
            elif len(chunk.units) > 1:
                half = len(chunk.units) // 2
                halves = (chunk.units[:half], chunk.units[half:])
                back += [replace(again, units=units) for units in halves]
            elif single and (chunk.alone or chunk.solo):
                given_up.append(again)
            else:
                back.append(again)
        self.add(back)
        return given_up

    def forget(self, submission: Any) -> None:
        """Drop the queued chunks of a submission whose caller no longer waits."""
        self.waiting = [chunk for chunk in self.waiting if chunk.submission is not submission]

    def _load(self, name: str) -> float:
        return sum(chunk.cost for chunk in self.held_by(name))
