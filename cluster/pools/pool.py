"""A pool: equal actors that share work, come and go, and are replaced when they are lost.

    submit() -> [waiting] -> actor -> answers of the submission
                    ^          |
                    +- its work, when it dies, hangs or is broken; another actor takes its place

One thread per pool sends work and takes answers. A thread of its own starts each actor, and another
stops it, so that work never waits for a start or a stop. A pool strives for the size that `resize`
names. Ray's autoscaler sees an actor that has no place yet as a pending placement group.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup

from cluster.faults import Fault, cause_of, fault_of
from cluster.placement import Role, actor_options, place
from cluster.pools.submission import Answer, GivenUp, Submission
from cluster.pools.work_router import Chunk, Router, Unit, plan_chunks
from data.errors import ClusterError, EmbedRLError

log = logging.getLogger(__name__)
FAILED_STARTS = 3
"""Starts that may fail in a row in a pool that has no actor left."""
RESTART_DELAYS_S = (1.0, 5.0, 20.0, 60.0)
"""Before a start that failed is tried again; the last one for all further ones."""
MOST_LOSSES = 5
"""Actors, beside as many as a pool has, that may be lost without an answer in between."""
READY_REMIND_S = 60.0
LOST_ANSWERS = 3
"""Times that the answer to a chunk may be lost on its way."""
SIGN_TIMEOUT_S = 30.0
"""Longest wait for the sign of life of an actor that is overdue."""
ENGINE_STOP_TIMEOUT_S = 30.0
"""Longest wait for an engine to stop by itself."""
SHARING = threading.Lock()
"""Held while an actor loads on a part of a GPU: an engine that measures how much memory its model
leaves would count what another one takes meanwhile as its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Means over a span of time."""

    actors: float
    busy: float
    """Actors that had work."""
    waiting: float
    """Chunks that no actor had room for."""


class Pool(ABC):
    """Equal actors, each in a placement group of its own, so that single ones can come and go.

    An actor that has work but has answered nothing for ``timeout_s`` counts as hung, unless its
    pool asks for signs of life and it gives a sign that is younger. A start may take
    ``start_timeout_s``.

    Args:
        max_items: requests that a call holds at most.
        create: makes an actor of a name and of Ray's options.
        reserved: places for the first actors; the pool finds all further ones itself.
    """

    def __init__(
        self,
        role: Role,
        *,
        timeout_s: float,
        start_timeout_s: float,
        max_items: int,
        create: Callable[[str, dict[str, Any]], Any],
        reserved: Sequence[PlacementGroup] = (),
    ) -> None:
        self.role = role
        self._max_items = max_items
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.counts: Counter[str] = Counter()
        self._create = create
        self._reserved = list(reserved)
        self._change = threading.Condition(threading.RLock())
        """Guards all below."""
        self._router = Router()
        self._wanted = role.actors
        self._numbers = 0
        self._starting: dict[str, threading.Thread] = {}
        """The threads that start actors, by the names of those."""
        self._loading: dict[str, Any] = {}
        """Actors that exist and do not serve yet."""
        self._serving: dict[str, Any] = {}
        self._draining: dict[str, Any] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._heard: dict[str, float] = {}
        """When an actor last answered, gave a sign of life, or got work while it had none."""
        self._asked: dict[str, float] = {}
        """Until when actors that are overdue may give a sign of life."""
        self._submissions: set[Submission] = set()
        self._defect: Exception | None = None
        self._losses = 0
        """Actors lost since the last answer."""
        self._failed_starts = 0
        self._start_error: Exception | None = None
        self._settled = False
        """Whether all actors were there once; before that few failed starts are tried again."""
        self._second_starts = role.actors
        """How many failed starts are still tried again before that: one for each actor."""
        self._empty_since = time.monotonic()
        self._measured = time.monotonic()
        self._look_at = time.monotonic()
        """When an actor may be overdue, or an empty pool given up, at the earliest."""
        self._sums: Counter[str] = Counter()
        self._closing = threading.Event()
        self._events: queue.SimpleQueue[tuple[str, Chunk | None, Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        """Of actors by name: the answer to a chunk, or a sign of life. None: there is work."""
        self._dispatcher = threading.Thread(
            target=self._dispatch, name=f"{role.name}-dispatch", daemon=True
        )
        self._dispatcher.start()
        with self._change:
            self._balance()

    @property
    def actors(self) -> dict[str, Any]:
        """The actors that take calls, by name."""
        with self._change:
            return dict(self._serving)

    @property
    def size(self) -> int:
        """How many actors the pool strives for."""
        return self._wanted

    def submit(
        self,
        units: Sequence[Unit],
        shared: Sequence[Any],
        *,
        failed_on: str | None = None,
        more: bool = False,
        urgent: bool = False,
    ) -> Submission:
        """Have the units' requests answered.

        With ``more`` of their kind to follow at once, they need not be shared out among all actors.
        ``urgent`` ones, of which there must be few, go before all that waits here.
        """
        submission = Submission(shared)
        if not units:
            return submission
        submission.units = submission.due = len(units)
        with self._change:
            if self._defect is not None:
                raise self._defect
            if not self._submissions and not self._serving:
                self._empty_since = time.monotonic()  # before, nobody waited
            self._submissions.add(submission)
            self._measure()
            self._router.add(
                plan_chunks(
                    units,
                    submission,
                    actors=1 if more else max(1, len(self._serving)),
                    max_items=self._max_items,
                    failed_on=failed_on,
                    urgent=urgent,
                )
            )
        self._events.put(None)
        return submission

    def resize(self, count: int) -> None:
        """Strive for that many actors; returns at once.

        New ones take calls when they are ready; the youngest leave once their calls are done.
        """
        with self._change:
            if count != self._wanted:
                log.info("%s: from %d to %d actors", self.role.name, self._wanted, count)
                if count > self._wanted:
                    log.info("%s: each says when it is ready, or what it waits for", self.role.name)
            self._wanted = count
            self._balance()

    def ready(self) -> None:
        """Wait until all actors can take calls.

        Raises:
            ClusterError: an actor has found no place, died, or did not load in time.
            EmbedRLError: an actor refused what it should load.
        """

        def over() -> bool:
            failed = self._start_error is not None and not self._settled
            return failed or self._closing.is_set() or len(self._serving) >= self._wanted

        with self._change:
            # Without a limit: starts have time limits of their own.
            while not self._change.wait_for(over, READY_REMIND_S):
                missing = ", ".join(self._starting)
                log.info("%s: still waiting for %s", self.role.name, missing)
            if len(self._serving) < self._wanted:
                raise self._start_error or ClusterError(f"{self.role.name}: the pool was closed")
            self._settled = True

    def stats(self) -> PoolStats:
        """Return the means since the last time this was asked."""
        with self._change:
            self._measure()
            sums, self._sums = self._sums, Counter()
        seconds = max(sums["seconds"], 1e-9)
        return PoolStats(
            actors=sums["actors"] / seconds,
            busy=sums["busy"] / seconds,
            waiting=sums["waiting"] / seconds,
        )

    def counters(self) -> dict[str, float]:
        """Return `pool/<role>/...`: its size, and what happened since the last time.

        `lost` counts actors, `retried`, `failed` and `poisoned` count requests, `in_flight_max` is
        the most requests that one actor held at a time.
        """
        with self._change:
            counts, self.counts = self.counts, Counter()
            metrics = {
                name: float(counts[name])
                for name in ("lost", "retried", "failed", "poisoned", "in_flight_max")
            }
            metrics["actors"] = float(len(self._serving))
        return {f"pool/{self.role.name}/{name}": value for name, value in metrics.items()}

    def lose(self, name: str, reason: str) -> None:
        """Use that actor no more: other actors take its work, and a new actor its place."""
        with self._change:
            actor = self._serving.pop(name, None) or self._draining.pop(name, None)
            if actor is None:
                return
            self._measure()
            log.warning("%s: lost: %s; others take its work, a new one its place", name, reason)
            retried = sum(chunk.items for chunk in self._router.held_by(name))
            self.counts["lost"] += 1
            self.counts["retried"] += retried
            for chunk in self._router.lose(name):
                self.counts["poisoned"] += chunk.items
                self.counts["retried"] -= chunk.items
                why = f"killed {chunk.deaths} actors, alone with the last: {reason}"
                self._answer(chunk, GivenUp(why), name)
            self._losses += 1
            if self._losses > MOST_LOSSES + self._wanted:
                self._fail(
                    ClusterError(
                        f"{self.role.name}: {self._losses} actors were lost since the last answer, "
                        f"the last, {name}: {reason}; see the actors' logs"
                    )
                )
            waiting = {chunk.submission for chunk in self._router.waiting}
            for submission in waiting - self._submissions:
                self._router.forget(submission)
            if not self._serving:
                self._empty_since = time.monotonic()
                self._failed_starts = 0
            self._remove(name, actor)
            self._balance()
        self._events.put(None)

    def touch(self) -> None:
        """Take note that all actors were heard of just now."""
        with self._change:
            self._heard.update(dict.fromkeys(self._heard, time.monotonic()))

    def close(self) -> None:
        """Stop the actors and give their bundles back; a dead or stuck actor hinders nothing."""
        with self._change:
            self._closing.set()
            starters = list(self._starting.values())
            for name in list(self._starting):
                del self._starting[name]
                self._abandon(name)
            actors = self._serving | self._draining
            self._serving, self._draining = {}, {}
            self._defect = ClusterError(f"{self.role.name}: the pool was closed")
            self._fail(self._defect)
            self._change.notify_all()
        self._events.put(None)
        self._dispatcher.join()
        if actors:
            log.info(
                "%s: waiting up to %g s for its engines", self.role.name, ENGINE_STOP_TIMEOUT_S
            )
        deadline = time.monotonic() + ENGINE_STOP_TIMEOUT_S
        self._stop(actors)
        for starter in starters:
            starter.join(max(0.0, deadline - time.monotonic()))

    @abstractmethod
    def load(self, name: str, actor: Any) -> None:
        """Wait until an actor has loaded what it serves; raise if it is not fit to serve."""

    @abstractmethod
    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Send a chunk to an actor and return the reference of its answer."""

    def sign_of_life(self, actor: Any) -> Any | None:
        """Ask an overdue actor for how many seconds it has not advanced; return the reference.

        None: its answers are the only signs.
        """
        return None

    def admit(self, name: str, actor: Any) -> None:
        """Let an actor that has loaded take calls."""
        with self._change:
            if name not in self._starting:
                raise ClusterError("it is not wanted any more")
            del self._starting[name]
            del self._loading[name]
            self._measure()
            self._serving[name] = actor
            self._failed_starts = 0
            log.info("%s is ready: %d of %d actors", name, len(self._serving), self._wanted)
            if self._settled:  # before, `ready` must see every failure
                self._start_error = None
            self._change.notify_all()
        self._events.put(None)

    def _balance(self) -> None:
        """Begin to start what is missing, and to drain what is too much."""
        if self._closing.is_set():
            return
        present = len(self._serving) + len(self._starting)
        for number in range(self._numbers, self._numbers + self._wanted - present):
            self._numbers += 1
            name = f"{self.role.name}-{number}"
            starter = threading.Thread(
                target=self._start, args=(name, number), name=name, daemon=True
            )
            self._starting[name] = starter
            starter.start()
        for _ in range(present - self._wanted):
            if self._starting:
                self._abandon(self._starting.popitem()[0])
                continue
            self._measure()
            name, actor = self._serving.popitem()
            self._draining[name] = actor
            self._retire_drained()
        self._change.notify_all()

    def _start(self, name: str, number: int) -> None:
        """Find an actor a place, have it load, and let it serve; run by a thread of its own."""
        actor = None
        try:
            group = self._groups[name] = self._place(name)
            with SHARING if 0 < self.role.gpus < 1 else nullcontext():
                actor = self._create(name, actor_options(self.role, group, number, bundle=0))
                with self._change:
                    self._loading[name] = actor
                    if name not in self._starting:
                        self._abandon(name)
                self.load(name, actor)
            self.admit(name, actor)
        except Exception as error:  # whatever it is, the thread that waits for the pool must see it
            self._abandon(name)
            self._remove(name, actor)
            self._start_failed(name, error)

    def _place(self, name: str) -> PlacementGroup:
        with self._change:
            if self._reserved:
                return self._reserved.pop()
        return place(
            replace(self.role, name=name, actors=1),
            wanted=lambda: name in self._starting,
            patient=self._settled,
        )

    def _abandon(self, name: str) -> None:
        """Kill an actor that does not serve yet: whoever waits for it to load is told."""
        with self._change:
            actor = self._loading.pop(name, None)
        if actor is not None:
            ray.kill(actor)

    def _start_failed(self, name: str, error: Exception) -> None:
        cause = cause_of(error)
        if isinstance(error, RayError) and not isinstance(cause, EmbedRLError):
            late = f"it did not load within start_timeout_s={self.start_timeout_s:g}; raise that"
            why = late if isinstance(error, GetTimeoutError) else repr(cause)
            cause = ClusterError(f"{name} did not start: {why}; see its log")
        with self._change:
            if name not in self._starting or self._closing.is_set():
                return  # it was not wanted any more
            self._failed_starts += 1
            delay = RESTART_DELAYS_S[min(self._failed_starts, len(RESTART_DELAYS_S)) - 1]
            if self._settled:
                self._start_error = cause
            elif self._second_starts and fault_of(error) is not Fault.FATAL:
                self._second_starts -= 1
            else:
                self._start_error = cause
                del self._starting[name]
            self._change.notify_all()
            if name not in self._starting:
                return
        log.warning("%s: tried again in %g s: %s", name, delay, cause)
        self._events.put(None)
        self._closing.wait(delay)
        with self._change:
            self._starting.pop(name, None)
            self._balance()

    def _dispatch(self) -> None:
        """Send work and take answers until the pool is closed."""
        try:
            while not self._closing.is_set():
                try:
                    event = self._events.get(timeout=max(0.0, self._look_at - time.monotonic()))
                except queue.Empty:
                    event = None
                with self._change:
                    if event is not None:
                        self._take(*event)
                    # Answers that lie there are heard before anyone counts as hung.
                    if time.monotonic() >= self._look_at and self._events.empty():
                        self._lose_hung()
                    self._send()
                    self._give_up()
        except Exception as error:  # whatever it is, the threads that wait must see it
            log.exception("%s: the pool's dispatcher failed", self.role.name)
            with self._change:
                self._defect = error
                self._fail(error)

    def _take(self, name: str, chunk: Chunk | None, answer: Future[Any]) -> None:
        if chunk is None:
            return self._take_sign(name, answer)
        if chunk not in self._router.held_by(name):
            return  # lost, and its work is elsewhere
        self._measure()
        self._heard[name] = time.monotonic()
        error = answer.exception()
        if error is None:
            self._losses = 0
            self._router.done(name, chunk)
            self._answer(chunk, answer.result(), name)
        elif fault_of(error) is Fault.REPLACE:
            self.lose(name, repr(cause_of(error)))
        elif fault_of(error) is Fault.RETRY and chunk.lost < LOST_ANSWERS:
            self._router.done(name, chunk)
            self.counts["retried"] += chunk.items
            self._router.add([replace(chunk, lost=chunk.lost + 1)])
        else:
            self._router.done(name, chunk)
            self._router.forget(chunk.submission)
            self._submissions.discard(chunk.submission)
            chunk.submission.put(cause_of(error))
        self._retire_drained()

    def _take_sign(self, name: str, sign: Future[float]) -> None:
        if self._asked.pop(name, None) is None:
            return  # lost meanwhile
        silent_s = self.timeout_s if sign.exception() is not None else sign.result()
        if silent_s < self.timeout_s:
            self._heard[name] = max(self._heard[name], time.monotonic() - silent_s)
        elif time.monotonic() >= self._heard[name] + self.timeout_s:
            self._lose_silent(name)

    def _send(self) -> None:
        while (order := self._router.next(self._serving)) is not None:
            name, chunk = order
            self._measure()
            actor_chunks = self._router.held_by(name)
            if len(actor_chunks) == 1:
                self._heard[name] = time.monotonic()
            items = sum(actor_chunk.items for actor_chunk in actor_chunks)
            self.counts["in_flight_max"] = max(self.counts["in_flight_max"], items)
            future = self.call(self._serving[name], chunk).future()
            future.add_done_callback(partial(self._hear, name, chunk))

    def _hear(self, name: str, chunk: Chunk | None, answer: Future[Any]) -> None:
        self._events.put((name, chunk, answer))

    def _answer(self, chunk: Chunk, value: Any, actor: str) -> None:
        submission = chunk.submission
        submission.put(Answer(chunk, value, actor))
        submission.due -= len(chunk.units)
        if not submission.due:
            self._submissions.discard(submission)

    def _lose_hung(self) -> None:
        """Lose who is overdue, and note when to look again: till then nobody else can be."""
        now = time.monotonic()
        due = {
            name: self._heard[name] + self.timeout_s
            for name in (*self._serving, *self._draining)
            if self._router.held_by(name)
        }
        for name in [name for name, when in due.items() if now >= when]:
            if name not in self._asked and (sign := self._ask(name)) is not None:
                self._asked[name] = now + SIGN_TIMEOUT_S
                sign.future().add_done_callback(partial(self._hear, name, None))
            due[name] = self._asked.get(name, now)
            if now >= due[name]:
                del due[name]
                self._lose_silent(name)
        # What is sent from now on is due later than that.
        self._look_at = min([now + self.timeout_s, *due.values()])
        given_up = self._empty_since + self.start_timeout_s
        if not self._serving and given_up > now:
            self._look_at = min(self._look_at, given_up)

    def _ask(self, name: str) -> Any | None:
        return self.sign_of_life(self._serving.get(name) or self._draining[name])

    def _lose_silent(self, name: str) -> None:
        self.lose(name, f"no answer within timeout_s={self.timeout_s:g}")

    def _give_up(self) -> None:
        """Fail what waits where the pool has no actor and will not get one in time."""
        if self._serving or not self._submissions:
            return
        waited = time.monotonic() - self._empty_since
        if self._failed_starts >= FAILED_STARTS or waited >= self.start_timeout_s:
            starts = f"; not ready yet: {', '.join(self._starting)}" if self._starting else ""
            if self._start_error is not None:
                starts += f"; {self._failed_starts} failed starts, the last: {self._start_error}"
            self._fail(
                ClusterError(
                    f"{self.role.name}: no actor is left and none came up in {waited:.0f} s{starts}"
                    "; see the actors' logs, then start the job again: it resumes"
                )
            )

    def _fail(self, error: Exception) -> None:
        for submission in self._submissions:
            self._router.forget(submission)
            submission.put(error)
        self._submissions.clear()

    def _retire_drained(self) -> None:
        for name in [name for name in self._draining if not self._router.held_by(name)]:
            leaving = {name: self._draining.pop(name)}
            threading.Thread(target=self._stop, args=(leaving,), daemon=True).start()

    def _stop(self, actors: Mapping[str, Any]) -> None:
        if refs := [actor.close.remote() for actor in actors.values()]:
            ray.wait(refs, num_returns=len(refs), timeout=ENGINE_STOP_TIMEOUT_S)
        for name, actor in actors.items():
            self._remove(name, actor)

    def _remove(self, name: str, actor: Any | None) -> None:
        if actor is not None:
            ray.kill(actor)
        group = self._groups.pop(name, None)
        if group is not None:
            ray.util.remove_placement_group(group)
        self._heard.pop(name, None)
        self._asked.pop(name, None)

    def _measure(self) -> None:
        """Add the time since the last change to the sums behind `stats`."""
        now = time.monotonic()
        seconds, self._measured = now - self._measured, now
        leaving = sum(bool(self._router.held_by(name)) for name in self._draining)
        self._sums.update(
            seconds=seconds,
            actors=seconds * len(self._serving),
            busy=seconds * (self._router.busy - leaving),
            waiting=seconds * len(self._router.waiting),
        )
