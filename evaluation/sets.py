"""What an evaluation ranks: queries, their candidates, and which of these are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.types import Cues, Item


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuery:
    """One query; candidates are named by their keys in its set."""

    query_id: str
    """Unique within its set."""
    item: Item
    right: Mapping[str, int]
    """Key of each right candidate -> its grade, from 1 on; nDCG weighs by it."""
    candidates: tuple[str, ...] = ()
    """Its own candidates in the benchmark's order, the right ones included; empty: all of its
    set's."""
    truth: Cues = field(default_factory=Cues)
    """The true evidence where the set knows it, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """A set of queries that are ranked over the same candidates, or each over its own."""

    name: str
    queries: Sequence[EvaluationQuery]
    candidates: Mapping[str, Item]
    """Every candidate by its key, in the benchmark's order."""
    metric: str = "hit@1"
    """The set's main metric, as the benchmark defines it: `hit@1`, `ndcg_linear@5`, ..."""
    groups: tuple[str, ...] = ()
    """The aggregates that it belongs to, the widest first: `image`, `image/vqa`."""
