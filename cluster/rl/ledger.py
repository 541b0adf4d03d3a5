"""What became of every trace of a run: issued = trained + dropped, by reason, + in flight."""

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from cluster.rl.rounds import SampledRound
from cluster.run.trajectory_rows import BROKEN, NO_SPREAD
from data.errors import ClusterError
from data.types import GroupKey, Side, TrajectoryKey


class Ledger:
    """Totals since the run began; they survive in checkpoints.

    Args:
        siblings: traces issued per prompt.
    """

    def __init__(self, *, siblings: int) -> None:
        self.siblings = siblings
        self.trained = 0
        self.dropped: Counter[str] = Counter()

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes; it is kept as JSON."""
        return {"trained": self.trained, "dropped": dict(self.dropped)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.trained, self.dropped = state["trained"], Counter(state["dropped"])

    def settle(
        self,
        step: SampledRound,
        taught: Set[TrajectoryKey],
        *,
        broken: bool,
        drawn: int,
        issued: int,
    ) -> dict[str, float]:
        """Enter what became of a step's traces; return it as metrics. See `close`.

        ``drawn`` pairs were drawn up to the step, ``issued`` so far, those of later steps included.

        Raises:
            ClusterError: issued = trained + dropped does not hold for the steps up to this one;
                what was issued since is in flight.
        """
        per_pair = len(Side) * self.siblings
        trained = self.trained
        dropped = self.close(step, taught, broken=broken)
        self.check(issued=drawn * per_pair)
        return {
            "traces/issued": float(len(step.pairs) * per_pair),
            "traces/trained": float(self.trained - trained),
            "traces/in_flight": float((issued - drawn) * per_pair),
            **{f"dropped/{reason}": float(count) for reason, count in dropped.items()},
            "dropped/total": float(dropped.total()),
        }

    def close(
        self, step: SampledRound, taught: Set[TrajectoryKey], *, broken: bool
    ) -> Counter[str]:
        """Enter a step's traces, and return how many were dropped, by reason.

        ``taught`` are the traces of groups with spread; ``broken``: their step was skipped.

        Raises:
            ClusterError: a trace has no end, or two.
        """
        issued = Counter(
            TrajectoryKey(group, sibling)
            for serial, pair in step.pairs.items()
            for side in Side
            for group in [GroupKey(serial, pair.pair_id, side)]
            for sibling in range(self.siblings)
        )
        ended = Counter(trace.trajectory.key for trace in step.scored)
        ended.update(trace.key for trace in step.dropped)
        if issued != ended:
            lost, odd = sorted(map(str, issued - ended)), sorted(map(str, ended - issued))
            raise ClusterError(
                f"expected each of {issued.total()} traces to be scored or dropped once, found "
                f"{len(lost)} without an end {lost[:3]} and {len(odd)} with another {odd[:3]}; "
                "this is a defect of the program, please report it"
            )
        dropped = Counter(trace.reason for trace in step.dropped)
        dropped[NO_SPREAD] += len(step.scored) - len(taught)
        dropped[BROKEN if broken else "trained"] += len(taught)
        self.trained += dropped.pop("trained", 0)
        dropped = +dropped  # without zeros
        self.dropped.update(dropped)
        return dropped

    def check(self, *, issued: int) -> None:
        """Compare with how many traces were issued up to the last step that was closed.

        Raises:
            ClusterError: traces were lost or counted twice.
        """
        ended = self.trained + self.dropped.total()
        if issued != ended:
            raise ClusterError(
                f"expected {issued} traces issued so far to be trained or dropped, found "
                f"{self.trained} trained and {dict(self.dropped)} dropped, {ended} in all; this is "
                "a defect of the program, please report it"
            )
