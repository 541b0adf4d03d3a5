"""The benchmarks' alternation, bench.json and table.

pytest-benchmark times one callable per test and compares over runs; what a row needs, two calls in
turn within one run and a target for them, would be ours on top of it all the same.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

RESULTS = Path(__file__).resolve().parents[2] / "runs" / "bench" / "bench.json"
REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of bench.json; numbers are medians."""

    name: str
    ours: float
    against: float
    ratio: float
    """ours / against"""
    target: float
    """Largest value that is good enough."""
    target_of: Literal["ours", "ratio"]
    met: bool
    unit: str
    ours_spread: float
    """Interquartile range."""
    against_spread: float
    repeats: int


_rows: list[Row] = []


def alternate(
    ours: Callable[[], object],
    against: Callable[[], object],
    *,
    prepare: Callable[[], object] = lambda: None,
    repeats: int = REPEATS,
) -> tuple[list[float], list[float]]:
    """Return the seconds of both calls, measured in turn; the one that begins changes.

    Before each turn ``prepare`` is called, untimed. A first turn of both is not counted.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        prepare()
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (ours, against)[side]()
            seconds[side].append(time.perf_counter() - start)
    return seconds[0][1:], seconds[1][1:]


def record(
    name: str,
    ours: Sequence[float],
    against: Sequence[float],
    *,
    target: float,
    target_of: Literal["ours", "ratio"] = "ratio",
    unit: str = "s",
    least: int = REPEATS,
) -> Row:
    """Add a row and return it; a missed target is written down, no failure.

    ``least``: measurements of each side; fewer than `REPEATS` only where one takes minutes.

    Raises:
        ValueError: too few measurements, or some that are no positive numbers.
    """
    if min(len(ours), len(against)) < least or len(ours) != len(against):
        raise ValueError(
            f"{name}: expected {least} or more measurements of both sides, found {len(ours)} "
            f"and {len(against)}"
        )
    if not all(math.isfinite(value) and value > 0 for value in (*ours, *against)):
        raise ValueError(f"{name}: expected positive numbers, found {[*ours]} and {[*against]}")
    middle, other = float(np.median(ours)), float(np.median(against))
    row = Row(
        name=name,
        ours=middle,
        against=other,
        ratio=middle / other,
        target=target,
        target_of=target_of,
        met=(middle if target_of == "ours" else middle / other) <= target,
        unit=unit,
        ours_spread=_spread(ours),
        against_spread=_spread(against),
        repeats=len(ours),
    )
    _rows.append(row)
    return row


def write_results() -> None:
    """Write the session's rows, and no others, to runs/bench/bench.json."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(row) for row in _rows], indent=2) + "\n")


def table() -> list[str]:
    """Return the session's rows as lines of a table."""
    lines = [f"{'':44}{'ours (IQR)':>28}{'against (IQR)':>28}{'ratio':>9}  target"]
    for row in _rows:
        ours = f"{row.ours:.4g} ({row.ours_spread:.2g}) {row.unit}"
        against = f"{row.against:.4g} ({row.against_spread:.2g}) {row.unit}"
        target = f"{row.target_of} <= {row.target:g}: {'met' if row.met else 'NOT MET'}"
        lines.append(f"{row.name:44}{ours:>28}{against:>28}{row.ratio:>9.3g}  {target}")
    return lines


def _spread(values: Sequence[float]) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
