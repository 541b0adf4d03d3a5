"""Which rows make an optimiser update, and which rank computes which of them together.

Loads without torch: the driver imports it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.types import TrainSample, Visual

T = TypeVar("T")
MAX_PADDING = 0.05
"""Share of a step's tokens; more micro-batches are made before more is padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCost:
    """What planning must know of a row."""

    tokens: int
    pictures: Mapping[Visual, int]
    """Its distinct pictures and videos, and how many tokens the vision tower makes of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """What one rank computes of one optimiser update of a policy step."""

    micro_batches: Sequence[Sequence[TrainSample]]
    """As many as every other rank has."""
    total_tokens: int
    """Response tokens of the update, on all ranks."""
    total_traces: int
    """Traces of the update, on all ranks."""


def cut_evenly(rows: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Return the rows in ``parts`` runs whose lengths differ by one at most; none is empty."""
    parts = min(parts, len(rows))
    return [
        rows[len(rows) * part // parts : len(rows) * (part + 1) // parts] for part in range(parts)
    ]


def plan_micro_batches(
    rows: Sequence[RowCost], *, ranks: int, budget_tokens: int
) -> list[list[list[int]]]:
    """Return row indices by [rank][micro-batch]: every rank has equally many micro-batches.

    A micro-batch costs its rows times its longest row, plus the tokens of its distinct pictures,
    and stays within ``budget_tokens``; a dearer row goes alone. Rows of similar length share a
    micro-batch. There are as few as leave at most MAX_PADDING of the tokens to padding, and the
    dearest is as cheap as their number allows. Some may be empty. The plan depends on the costs
    and the order of the rows only.
    """
    order = sorted(range(len(rows)), key=lambda index: (-rows[index].tokens, index))
    # Numbers stand for pictures: a plan cuts its rows a dozen times, and hashing a `Picture` each
    # time costs more than all else.
    numbers: dict[Visual, int] = {}
    ordered = [
        (
            rows[index].tokens,
            [
                (numbers.setdefault(picture, len(numbers)), cost)
                for picture, cost in rows[index].pictures.items()
            ],
        )
        for index in order
    ]
    rounds = -(-len(_cut(ordered, budget_tokens)) // ranks)
    while True:
        chunks = _cut(ordered, _least_limit(ordered, budget_tokens, most=rounds * ranks))
        padded, tokens = sum(c.padded for c in chunks), sum(c.tokens for c in chunks)
        if padded - tokens <= MAX_PADDING * padded:
            break
        rounds += 1
    chunks += [_Chunk(start=len(rows)) for _ in range(rounds * ranks - len(chunks))]
    chunks.sort(key=lambda chunk: (-chunk.cost, chunk.start))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for turn in range(rounds):
        # Within a round costs are alike, so ranks wait little for each other; the rank with the
        # least work so far takes the dearest.
        idle = sorted(range(ranks), key=lambda rank: (load[rank], rank))
        for rank, chunk in zip(idle, chunks[turn * ranks : (turn + 1) * ranks], strict=True):
            plan[rank].append(order[chunk.start : chunk.start + chunk.rows])
            load[rank] += chunk.cost
    return plan


_Costs = tuple[int, list[tuple[int, int]]]
"""Tokens of a row, and number and cost of each of its pictures."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive rows that would share a micro-batch; the first is the longest."""

    start: int
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    """Tokens with padding."""
    cost: int = 0
    """Those, and the pictures'."""


def _cut(ordered: Sequence[_Costs], limit: int) -> list[_Chunk]:
    """Return consecutive runs of at most that cost; a dearer row is a run of its own."""
    chunks: list[_Chunk] = []
    start = longest = vision = tokens = 0
    seen: set[int] = set()
    for index, (length, pictures) in enumerate(ordered):
        fresh = 0
        for picture, cost in pictures:
            if picture not in seen:
                fresh += cost
        rows = index - start
        if not rows or (rows + 1) * longest + vision + fresh > limit:
            if rows:
                padded = rows * longest
                chunks.append(_Chunk(start, rows, tokens, padded, padded + vision))
            start, longest, tokens = index, length, 0
            vision, fresh, seen = 0, sum(cost for _, cost in pictures), set()
        vision += fresh
        for picture, _ in pictures:
            seen.add(picture)
        tokens += length
    if ordered:
        rows = len(ordered) - start
        chunks.append(_Chunk(start, rows, tokens, rows * longest, rows * longest + vision))
    return chunks


def _least_limit(ordered: Sequence[_Costs], budget: int, *, most: int) -> int:
    """Return the least cost limit within the budget that needs at most ``most`` runs."""
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut(ordered, middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return high
