"""The ways to embed items that an evaluation compares, and the traces that each of them reads."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b

from data.sets.hardness import PLAIN
from data.types import Evidence
from evaluation.sets import End, EvaluationSet, candidate_end, query_end

NO_COT = PLAIN
TEXT_SUFFIX = "_text"
PUBLISHED = "published"
"""Stands for the Reasoner that wrote published files of traces."""
OTHER_TRACE, SAMPLES = "other_trace", "samples"
"""Controls, as `EvaluateConfig.controls` names them."""
CONTROL_SUFFIXES = {OTHER_TRACE: "_other", SAMPLES: "_samples"}
RIVAL_SUFFIX = "_rival"
"""Ends the names of variants that another Embedder embeds."""
DRAWN = 8
"""Other traces of which the one with the nearest length is taken."""
LOOKED_AT = 1024
"""Items at most among which they are looked for: in a set of few labels most items are equal."""

Traces = Mapping[End, str | None]
"""The trace of each end, None where it failed; what is absent has none to be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to embed items, queries and candidates alike."""

    name: str
    reasoner: str = ""
    """Whose traces are used; empty: none."""
    evidence: Evidence = Evidence.NONE
    control: str = ""
    """OTHER_TRACE: the trace of another item. SAMPLES: the mean of the vectors of several sampled
    traces. Empty: the item's own greedy trace."""
    rival: bool = False
    """Whether another Embedder than ours embeds the items, which have no trace."""


def variants_of(
    reasoners: Iterable[str], controls: Sequence[str] = (), rivals: Iterable[str] = ()
) -> list[Variant]:
    """Return the variants in the order of the table: no trace, then text and evidence of each
    Reasoner, then the controls of each, then the rivals."""
    names = list(reasoners)
    variants = [Variant(name=NO_COT)]
    for name in names:
        text = Variant(name=name + TEXT_SUFFIX, reasoner=name, evidence=Evidence.TEXT)
        variants += [text, Variant(name=name, reasoner=name, evidence=Evidence.FULL)]
    variants += [
        Variant(
            name=name + CONTROL_SUFFIXES[control],
            reasoner=name,
            evidence=Evidence.FULL,
            control=control,
        )
        for name in names
        for control in controls
    ]
    variants += [Variant(name=name + RIVAL_SUFFIX, rival=True) for name in rivals]
    return variants


def compared_variants(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """Return which variants are compared on the same queries, the one expected to be better first.

    Each Reasoner with those before it, each with no trace, its evidence with its text alone, its
    traces with those of other items, and the mean of its samples with its greedy traces. Each
    Reasoner, and no trace, with each rival.
    """
    names = [v.name for v in variants if v.name == v.reasoner]
    pairs = [(name, other) for place, name in enumerate(names) for other in names[:place]]
    pairs += [(name, NO_COT) for name in names]
    pairs += [(name, name + TEXT_SUFFIX) for name in names]
    pairs += [(v.reasoner, v.name) for v in variants if v.control == OTHER_TRACE]
    pairs += [(v.name, v.reasoner) for v in variants if v.control == SAMPLES]
    pairs += [(name, v.name) for name in (*names, NO_COT) for v in variants if v.rival]
    return pairs


def other_traces(
    sets: Sequence[EvaluationSet], ends: Mapping[End, str], traces: Traces
) -> dict[End, str | None]:
    """Return for each end the trace of another item: of the same data set, side and kind.

    It is the one of nearest length in characters among DRAWN that are drawn by the items' contents,
    whatever the order of the items. It is never of an item with equal content, nor of one that is
    known to be equal: two queries with a right candidate in common, or two candidates that are
    right for one query, as those of one label are. Of two candidates each gets the trace of the
    other, so that a set of two can score below chance.

    The Embedder reads it with the end's own pictures: a box cuts the same place out of the end's
    own picture, and a key frame is the end's own frame of that number, where the end shows that
    many. So the evidence is of as much and as little use as a box drawn at random.

    An end whose own trace failed keeps its failure, so that both variants rank the same queries. An
    end to which no other trace can be given is absent.

    Args:
        sets: what is ranked; it says which items are known to be equal.
        ends: the data set of each.
        traces: of one Reasoner, of each of ``ends``.
    """
    counterparts = _counterparts(sets)
    rings: dict[tuple[str, str, str], list[End]] = {}
    others: dict[End, str | None] = {}
    for end, source in ends.items():
        trace = traces[end]
        if trace is None or not trace.strip():
            others[end] = trace
        else:
            rings.setdefault((source, end.side, end.item.kind), []).append(end)
    for ring in rings.values():
        # In an order that follows from contents alone, the next ones are as good as drawn.
        ring.sort(key=_place)
        for place, end in enumerate(ring):
            drawn: list[End] = []
            for step in range(1, min(len(ring), LOOKED_AT + 1)):
                other = ring[(place + step) % len(ring)]
                if _differ(end, other, counterparts):
                    drawn.append(other)
                    if len(drawn) == DRAWN:
                        break
            if drawn:
                length = len(traces[end])
                nearest = min(drawn, key=lambda other: abs(len(traces[other]) - length))
                others[end] = traces[nearest]
    return others


def _place(end: End) -> bytes:
    content = repr((end.item.key(), end.item.instruction, end.seeks_video))
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _differ(end: End, other: End, counterparts: Mapping[End, Set[tuple[str, str]]]) -> bool:
    own = counterparts.get(end, frozenset())
    return end.item.key() != other.item.key() and own.isdisjoint(counterparts.get(other, ()))


def _counterparts(sets: Sequence[EvaluationSet]) -> dict[End, set[tuple[str, str]]]:
    """Return for each end what is right for it: (data set, key of a candidate or id of a query)."""
    counterparts: dict[End, set[tuple[str, str]]] = {}
    for data_set in sets:
        for query in data_set.queries:
            own = counterparts.setdefault(query_end(data_set, query), set())
            for key in query.right:
                own.add((data_set.name, key))
                candidate = candidate_end(data_set.candidates[key])
                counterparts.setdefault(candidate, set()).add((data_set.name, query.query_id))
    return counterparts
