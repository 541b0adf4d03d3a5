"""Monitors of a recorded run: courses, limits in words, alarms by step."""

import pytest

from data.errors import DataError
from data.monitor_table import MONITORS
from evaluation.report.monitor_rows import monitor_rows

RECORDS = [
    {"step": 0, "eval/hit_at_1": 0.5},
    {"step": 1, "hack/copied_own/query": 0.1, "hack/mean_cosine/query": 0.3},
    {"step": 2, "hack/copied_own/query": 0.6, "alarm/copied_own/query": 1.0},
    {"step": 3, "hack/copied_own/query": 0.7, "alarm/copied_own/query": 1.0},
    {"step": 4, "hack/trace_worth": 0.5},
    {"step": 5, "hack/copied_own/query": 0.5, "alarm/copied_own/query": 1.0},
]


def test_a_row_has_first_and_last_value_and_the_steps_of_its_alarms() -> None:
    row = monitor_rows(RECORDS)[0]
    assert (row.name, row.first, row.last, row.measured) == ("copied_own/query", 0.1, 0.5, 4)
    assert row.monitor is MONITORS["copied_own"]
    assert row.alarms == (2, 3, 5)
    assert row.steps == "2-3, 5"
    assert row.sparkline.startswith("data:image/svg+xml;base64,")


def test_limits_are_told_with_their_direction() -> None:
    limits = {row.name: row.limit for row in monitor_rows(RECORDS)}
    assert limits == {
        "copied_own/query": "below 0.5",
        "mean_cosine/query": "",
        "trace_worth": "above 0.1",
    }


def test_a_run_without_monitors_has_no_rows() -> None:
    assert monitor_rows(RECORDS[:1]) == []
    assert monitor_rows([]) == []


def test_a_metric_of_another_version_is_named() -> None:
    with pytest.raises(DataError, match="found 'astrology'"):
        monitor_rows([{"step": 1, "hack/astrology": 1.0}])
