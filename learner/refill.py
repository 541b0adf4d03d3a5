"""What fills up a step that groups without spread left short: more pairs, or recent groups.

Pure decisions; who samples, scores and trains is not known here.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import DataError
from data.types import GroupKey, TrainSample

MIN_PAIRS = 2
"""A rank in a list of one is no reward."""


def more_pairs(*, wanted: int, found: int, asked: int, pairs: int, rounds_left: int) -> int:
    """Return how many more pairs to sample, so that a step gets ``wanted`` groups with spread.

    Dynamic sampling (DAPO, Yu et al., 2025, section 3.2) with a bound on its rounds: as many pairs
    as are missing at the yield so far (``found`` groups of ``asked`` pairs), at most the ``pairs``
    of a whole step; 0 when the step is full or no rounds are left.

    Raises:
        DataError: nothing was asked for before, so there is no yield to go by.
    """
    if asked < 1 or found < 0:
        raise DataError(f"expected the groups of at least one pair, found {found} of {asked}")
    missing = wanted - found
    if missing <= 0 or rounds_left <= 0:
        return 0
    if not found:
        return pairs
    return min(pairs, max(MIN_PAIRS, math.ceil(missing * asked / found)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGroup:
    """A group that was trained on and may be again."""

    key: GroupKey
    version: int
    """The oldest one that sampled a token of it."""
    samples: tuple[TrainSample, ...]


class InformativeBuffer:
    """Recent groups whose advantages are not all zero, to fill up a step that is short.

    The idea of the selective sample buffer (Skywork R1V2, 2025). A group comes out at most once,
    newest first. Its stored behaviour log-probabilities are all that corrects for its age: they
    also stand in for the learner's own of that version where those were not stored.
    """

    def __init__(self, *, groups: int, versions: int) -> None:
        if groups < 0 or versions < 0:
            raise DataError(f"expected limits of at least 0, found {groups=}, {versions=}")
        self.groups = groups
        """Kept at most; 0 keeps none."""
        self.versions = versions
        """Age at most, in versions."""
        self._kept: list[KeptGroup] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: GroupKey, samples: Sequence[TrainSample], *, version: int) -> None:
        """Keep a group, in place of the oldest ones where it is full.

        A group whose advantages are all zero is left out: it teaches nothing.

        Raises:
            DataError: a sample has no behaviour log-probabilities to weigh it by.
        """
        for sample in samples:
            if sample.logprobs is None:
                raise DataError(f"{sample.key}: expected behaviour log-probabilities, found none")
        if any(sample.advantage for sample in samples):
            aged = tuple(
                dataclasses.replace(sample, old_logprobs=sample.logprobs)
                if sample.old_logprobs is None
                else sample
                for sample in samples
            )
            self._kept.append(KeptGroup(key=key, version=version, samples=aged))
            self._kept.sort(key=lambda group: group.version)  # stable: equals stay in order
            self._kept = self._kept[max(0, len(self._kept) - self.groups) :]

    def draw(self, count: int, *, version: int) -> list[KeptGroup]:
        """Take out up to ``count`` groups, newest first, for a step that trains ``version``.

        Those that are too old by then are dropped.
        """
        self._kept = [g for g in self._kept if version - g.version <= self.versions]
        start = max(0, len(self._kept) - max(0, count))
        drawn, self._kept = self._kept[start:], self._kept[:start]
        return drawn[::-1]
