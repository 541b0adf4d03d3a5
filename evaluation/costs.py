"""What traces are like and what they cost, by Reasoner, and how fast the Embedder reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data.prompts import pictures_of
from data.stores.traces import TraceCost
from evaluation.evidence import parse_trace
from evaluation.sets import End
from evaluation.variants import Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Who knows what was written down when traces and vectors were made; both take their keys."""

    traces: Mapping[str, Callable[[Sequence[str]], TraceCost]]
    """By Reasoner, of its greedy traces."""
    contents_per_second: Callable[[Sequence[str]], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFigures:
    """What one Reasoner's greedy traces of all queries and candidates are like."""

    reasoner: str
    items: int
    """Queries and candidates, equal ones once."""
    coverage: float | None
    """Share of the items with a trace that is not blank; None where there is no item."""
    invalid: float | None
    """Share of these traces that are not strictly valid; None where there is none."""
    tokens: float | None
    """Generated tokens of a trace, the mean; None where nobody counted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast the engines were: figures of a machine, which no two runs have alike."""

    wall_ms: Mapping[str, float | None] = field(default_factory=dict)
    """By Reasoner: wall-clock milliseconds of its engines for a greedy trace, the time of a block
    over its traces; None where nobody measured it."""
    contents_per_second: float | None = None
    """Contents that the Embedder's engines read in a second, pictures already decoded."""


def cost_figures(
    traces: Mapping[str, Traces],
    costs: Costs | None,
    *,
    trace_keys: Sequence[str],
    content_keys: Sequence[str],
    max_frames: int,
) -> tuple[tuple[TraceFigures, ...], Speed]:
    """Return what each Reasoner's traces are like, and how fast the engines were.

    Args:
        traces: greedy ones of every end, by Reasoner.
        costs: who knows what they cost; None: nobody.
        trace_keys: of what the Reasoners read.
        content_keys: of what the Embedder read.
        max_frames: frames of a video that were shown.
    """
    if costs is None:
        known, per_second = {}, None
    else:
        known = {name: cost(trace_keys) for name, cost in costs.traces.items()}
        per_second = costs.contents_per_second(content_keys)
    reasoning = tuple(
        _trace_figures(name, of_reasoner, known.get(name, TraceCost()), max_frames)
        for name, of_reasoner in traces.items()
    )
    wall_ms = {name: cost.wall_ms for name, cost in known.items()}
    return reasoning, Speed(wall_ms=wall_ms, contents_per_second=per_second)


def share(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known, None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _trace_figures(reasoner: str, traces: Traces, cost: TraceCost, max_frames: int) -> TraceFigures:
    written = {end: trace for end, trace in traces.items() if trace is not None and trace.strip()}
    return TraceFigures(
        reasoner=reasoner,
        items=len(traces),
        coverage=share(end in written for end in traces),
        invalid=share(not _valid(end, trace, max_frames) for end, trace in written.items()),
        tokens=cost.tokens,
    )


def _valid(end: End, trace: str, max_frames: int) -> bool:
    shown = pictures_of(end.item, max_frames)
    parsed = parse_trace(trace, kind=end.item.kind, num_frames=len(shown))
    return parsed is not None and parsed.valid
