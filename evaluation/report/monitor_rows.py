"""The monitors of the reward of a recorded run: each with its course, its limit and its alarms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.monitor_table import ALARM_PREFIX, METRIC_PREFIX, Monitor, monitor_of
from evaluation.report.plots import plot_sparkline


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRow:
    """One monitor over the steps of a run."""

    name: str
    monitor: Monitor
    sparkline: str
    """SVG data URI."""
    first: float
    last: float
    measured: int
    """Steps that had something to measure."""
    limit: str
    """In words; empty: none."""
    alarms: tuple[int, ...]
    """Steps at which it rang."""
    steps: str
    """The same in words."""


def monitor_rows(records: Sequence[Mapping[str, float]]) -> list[MonitorRow]:
    """Return a row per `hack/` metric of the records, by name; none where none was recorded.

    Raises:
        DataError: a metric belongs to no monitor.
    """
    names = sorted({key for record in records for key in record if key.startswith(METRIC_PREFIX)})
    rows = []
    for key in names:
        name = key.removeprefix(METRIC_PREFIX)
        monitor = monitor_of(name)
        points = [(record["step"], record[key]) for record in records if key in record]
        alarms = tuple(int(r["step"]) for r in records if r.get(f"{ALARM_PREFIX}{name}"))
        rows.append(
            MonitorRow(
                name=name,
                monitor=monitor,
                sparkline=plot_sparkline(points, limit=monitor.limit, alarms=alarms),
                first=points[0][1],
                last=points[-1][1],
                measured=len(points),
                limit=_limit_of(monitor),
                alarms=alarms,
                steps=_listed(alarms),
            )
        )
    return rows


def _limit_of(monitor: Monitor) -> str:
    if not math.isfinite(monitor.limit):
        return ""
    return f"{'above' if monitor.rings_below else 'below'} {monitor.limit:.2g}"


def _listed(steps: Sequence[int]) -> str:
    """Return steps as `3, 7-9, 12`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
