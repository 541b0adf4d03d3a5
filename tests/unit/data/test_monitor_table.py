"""The table of monitors: which way they ring, and what they say."""

import math

import pytest

from data.errors import DataError
from data.monitor_table import MONITORS, Monitor, monitor_of


def test_a_monitor_rings_at_its_limit_and_beyond_on_its_own_side() -> None:
    above = Monitor(measures="x", limit=0.5)
    below = Monitor(measures="x", limit=0.5, rings_below=True)
    assert [above.rings(value) for value in (0.4, 0.5, 0.6)] == [False, True, True]
    assert [below.rings(value) for value in (0.4, 0.5, 0.6)] == [True, True, False]
    assert not Monitor(measures="x").rings(1e9)


def test_whatever_can_ring_says_what_it_means_and_what_to_do() -> None:
    for name, monitor in MONITORS.items():
        assert monitor.measures, name
        assert bool(monitor.meaning and monitor.advice) is math.isfinite(monitor.limit), name


def test_a_monitor_is_found_with_and_without_its_side() -> None:
    assert monitor_of("copied_own/query") is monitor_of("copied_own") is MONITORS["copied_own"]
    with pytest.raises(DataError, match="expected a monitor among"):
        monitor_of("nothing")


@pytest.mark.parametrize("name", ["all_wrong", "saturated", "trace_worth", "distance"])
def test_what_rings_where_nothing_is_learnt_is_not_headed_as_cheating(name):
    assert "hacking" not in MONITORS[name].heading
    assert "hacking" in MONITORS["copied_other"].heading
