"""Which Embedder gets which requests: cost, buckets of like cost, least load, retries. No Ray here.

A content goes `waiting -> sent -> vector or reason`. An item that fails goes back to waiting once;
what an actor held when it was lost goes back each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import MediaConfig
from data.errors import ClusterError
from data.media import crop_pixels, limits_of
from data.types import Content, EmbedRequest, Picture

CHUNKS_IN_FLIGHT = 4
"""Chunks an actor holds at most: while one is answered the engine still has the others."""
CHARS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 32 * 32
"""Qwen3-VL: patches of 16 x 16 pixels, 2 x 2 of them merged into a token."""


def content_cost(
    content: Content, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that content.

    ``sizes`` holds (height, width) of the decoded files by uri; a picture that is not among them
    counts as the smallest.
    """
    return sum(
        len(part) / CHARS_PER_TOKEN if isinstance(part, str) else picture_cost(part, sizes, limits)
        for part in content
    )


def picture_cost(
    picture: Picture, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that picture; ``sizes`` as above."""
    left, top, right, bottom = crop_pixels(picture.box, *sizes.get(picture.uri, (0, 0)))
    least, most = limits_of(picture, limits)
    return min(max((right - left) * (bottom - top), least), most) / PIXELS_PER_TOKEN


def vector_fault(vector: np.ndarray, width: int) -> str | None:
    """Return what is wrong with an embedding that should be finite and [width], None if nothing."""
    if vector.shape != (width,):
        return f"expected a vector of width {width}, found shape {vector.shape}"
    if not np.isfinite(vector).all():
        return "the vector holds NaN or infinity"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Requests of like cost that travel to an actor in one call."""

    requests: tuple[EmbedRequest, ...]
    cost: float
    failed_on: str | None = None
    """The actor on which each of these items failed before; None: they are new."""


class Router:
    """Decides for one call of a pool what goes where, and keeps what came back.

    Args:
        requests: their keys are unique; equal contents are sent once.
        costs: of each content.
        actors: names of the actors to use.
        max_items: requests in a chunk at most.
        width: D of every vector.
    """

    def __init__(
        self,
        requests: Sequence[EmbedRequest],
        costs: Mapping[Content, float],
        *,
        actors: Sequence[str],
        max_items: int,
        width: int,
    ) -> None:
        self.retried = 0
        """Items that were sent again."""
        self.in_flight_max = 0
        """Most items that one actor held at a time."""
        self._keys: dict[str, str] = {}
        """By each request's key, that of the first request of its content: the one that is sent."""
        self._costs: dict[str, float] = {}
        """The rest is by the key that is sent: a content's hash costs as much as reading it."""
        self._width = width
        self._sent: dict[str, list[Chunk]] = {name: [] for name in actors}
        self._lost: dict[str, str] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self._reasons: dict[str, str] = {}
        self._waiting = self._buckets(requests, costs, max_items)

    def next(self) -> tuple[str, Chunk] | None:
        """Return an actor and the chunk to send to it now; None: wait for an answer first.

        Costly chunks go first, each to the actor with the least cost in flight. Items that failed
        go to another actor than before, unless only that one is left.
        """
        for chunk in self._waiting:
            free = [
                name
                for name, sent in self._sent.items()
                if len(sent) < CHUNKS_IN_FLIGHT
                and (name != chunk.failed_on or len(self._sent) == 1)
            ]
            if free:
                name = min(free, key=lambda one: sum(sent.cost for sent in self._sent[one]))
                self._waiting.remove(chunk)
                self._sent[name].append(chunk)
                held = sum(len(sent.requests) for sent in self._sent[name])
                self.in_flight_max = max(self.in_flight_max, held)
                return name, chunk
        return None

    def receive(
        self,
        actor: str,
        chunk: Chunk,
        vectors: Mapping[str, np.ndarray],
        failed: Mapping[str, str],
    ) -> None:
        """Take an actor's answer: vectors and reasons by key."""
        self._sent[actor].remove(chunk)
        again = []
        for request in chunk.requests:
            if request.key in vectors:
                reason = vector_fault(vectors[request.key], self._width)
            else:
                reason = failed.get(request.key, f"{actor} gave neither a vector nor a reason")
            if reason is None:
                self._vectors[request.key] = vectors[request.key]
            elif chunk.failed_on is None:
                again.append(request)
            else:
                self._reasons[request.key] = reason
        if again:
            self.retried += len(again)
            self._waiting.append(self._chunk(again, failed_on=actor))

    def lose(self, actor: str, reason: str) -> None:
        """Use that actor no more; what it holds goes to the others.

        Raises:
            ClusterError: it was the last one.
        """
        self._lost[actor] = reason
        held = self._sent.pop(actor)
        if not self._sent:
            total = len(self._costs)
            done = len(self._vectors) + len(self._reasons)
            why = "; ".join(f"{name}: {cause}" for name, cause in self._lost.items())
            raise ClusterError(
                f"embedding: {total - done} of {total} contents are not embedded and no actor is "
                f"left ({why}); see the actors' logs, then start the job again: it resumes"
            )
        self.retried += sum(len(chunk.requests) for chunk in held)
        self._waiting += held

    def results(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return vectors and reasons by key, in the order of the requests."""
        return (
            {key: self._vectors[sent] for key, sent in self._keys.items() if sent in self._vectors},
            {key: self._reasons[sent] for key, sent in self._keys.items() if sent in self._reasons},
        )

    def _buckets(
        self, requests: Sequence[EmbedRequest], costs: Mapping[Content, float], max_items: int
    ) -> list[Chunk]:
        """Return chunks of neighbours in cost, costly ones first, enough to keep every actor busy.

        A single actor has nothing to balance: few requests are one call.
        """
        first: dict[Content, EmbedRequest] = {}
        for request in requests:
            self._keys[request.key] = first.setdefault(request.content, request).key
        self._costs = {one.key: costs[content] for content, one in first.items()}
        ordered = sorted(first.values(), key=lambda one: -self._costs[one.key])
        parts = len(self._sent) * CHUNKS_IN_FLIGHT if len(self._sent) > 1 else 1
        share = sum(self._costs[one.key] for one in ordered) / parts
        chunks: list[Chunk] = []
        some: list[EmbedRequest] = []
        cost = 0.0
        for request in ordered:
            some.append(request)
            cost += self._costs[request.key]
            if len(some) == max_items or cost >= share:
                chunks.append(self._chunk(some))
                some, cost = [], 0.0
        return [*chunks, self._chunk(some)] if some else chunks

    def _chunk(self, requests: list[EmbedRequest], failed_on: str | None = None) -> Chunk:
        cost = sum(self._costs[one.key] for one in requests)
        return Chunk(tuple(requests), cost, failed_on)
