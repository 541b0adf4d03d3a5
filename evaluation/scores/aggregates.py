"""Means over sets, as the benchmarks define them: every set weighs the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.errors import DataError

ALL = "all"
"""The mean over all sets."""
ABILITIES = "abilities"
"""UVRB's mean of the means of its six abilities."""
UVRB_ABILITIES = ("TXT", "CMP", "VIS", "CG", "FG", "LC")
"""Queries of text, composed, visual; coarse, fine-grained, long context. A set may be in two."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A plain mean of sets' scores, in their unit."""

    score: float
    sets: tuple[str, ...]


def aggregate(
    scores: Mapping[str, float], groups: Mapping[str, Sequence[str]]
) -> dict[str, Aggregate]:
    """Return the mean of all sets and that of each group, in the order in which they appear.

    ABILITIES is among them where all of UVRB_ABILITIES are.

    Args:
        scores: main score of each set.
        groups: of each of these sets, as in `EvaluationSet.groups`.

    Raises:
        DataError: there is no set.
    """
    if not scores:
        raise DataError("expected the score of at least one set, found none; nothing to average")
    members: dict[str, list[str]] = {ALL: list(scores)}
    for name in scores:
        for group in groups[name]:
            members.setdefault(group, []).append(name)
    means = {
        group: Aggregate(sum(scores[name] for name in names) / len(names), tuple(names))
        for group, names in members.items()
    }
    if all(ability in means for ability in UVRB_ABILITIES):
        abilities = [means[ability].score for ability in UVRB_ABILITIES]
        means[ABILITIES] = Aggregate(sum(abilities) / len(abilities), tuple(scores))
    return means
