"""The process that ranks a round's traces beside the driver."""

from collections.abc import Mapping

from cluster.side_process import SideProcess
from data.types import Side
from reward.rank_arithmetic import RankInput, RankResult, rank_sides

RANKING_TIMEOUT_S = 1800.0
"""Longest wait for one round."""


class Ranker:
    """Does a round's arithmetic in a process beside the driver."""

    def __init__(self) -> None:
        self._process = SideProcess("the process that ranks")

    def rank_sides(
        self, sides: Mapping[Side, RankInput], *, temperature: float
    ) -> dict[Side, RankResult]:
        """Return `reward.rank_arithmetic.rank_sides`.

        Raises:
            ActorLost: the process died each time that it ranked these sides.
            ClusterError: it did not end in time.
        """
        _, results = self._process.run(
            _rank_sides, sides, temperature, what="ranking a round", timeout_s=RANKING_TIMEOUT_S
        )
        return results

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _rank_sides(sides: Mapping[Side, RankInput], temperature: float) -> dict[Side, RankResult]:
    return rank_sides(sides, temperature=temperature)
