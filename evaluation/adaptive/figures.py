"""What is known of a gate that decides which queries get a trace."""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.metrics import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """hit@1 for the same tokens, by the way to choose which queries are traced."""

    tokens: float
    """Mean generated tokens a query."""
    gate: Estimate
    random: Estimate
    """Its expectation."""
    oracle: Estimate
    """It stops where no further trace turns a miss into a hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """The fewest mean tokens a query with which each way meets `AdaptiveFigures.target`."""

    gate: float
    random: float
    oracle: float
    of_oracle: Estimate | None
    """What the gate saves of always tracing's tokens, as a share of what the oracle saves; None
    where the oracle saves nothing."""
    random_of_oracle: Estimate | None
    """The same of the random gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtThreshold:
    """What the gate does at the threshold that was chosen on the training queries."""

    traced: float
    """Share of the held-out queries."""
    tokens: Estimate
    """A query."""
    hit_at_1: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveFigures:
    """What a gate that decides which queries get a trace saves; all queries weigh the same."""

    reasoner: str
    """Whose traces."""
    train_queries: int
    queries: int
    """Held-out ones."""
    excluded: Mapping[str, int]
    """Held-out queries of which nothing can be said, by reason."""
    helped: float
    """Share of the held-out queries that the trace turns from a miss into a hit."""
    harmed: float
    """Share that it turns from a hit into a miss."""
    never: Estimate
    """hit@1 without traces of queries; the candidates have theirs."""
    always: Estimate
    target: float
    """Lower end of the interval of `always`."""
    tokens: float
    """Mean generated tokens of a query's trace."""
    points: tuple[CurvePoint, ...]
    saving: Saving
    at_threshold: AtThreshold
