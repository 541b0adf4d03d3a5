"""What the benchmarks write down, and when they refuse to."""

import pytest

from tests.bench.record import alternate, record


def test_both_sides_are_measured_in_turn_after_a_turn_that_does_not_count() -> None:
    calls: list[str] = []
    ours, against = alternate(
        lambda: calls.append("ours"),
        lambda: calls.append("against"),
        prepare=lambda: calls.append("prepare"),
        repeats=2,
    )
    assert "".join(name[0] for name in calls) == "pao" + "poa" + "pao"
    assert len(ours) == len(against) == 2


def test_a_row_holds_medians_their_ratio_and_the_spread() -> None:
    row = record("by hand", [1, 2, 3, 4, 50], [2, 2, 2, 2, 2], target=1.5)
    assert (row.ours, row.against, row.ratio, row.met) == (3, 2, 1.5, True)
    assert (row.ours_spread, row.against_spread, row.repeats) == (2, 0, 5)


@pytest.mark.parametrize(("target_of", "met"), [("ours", True), ("ratio", False)])
def test_a_missed_target_is_written_down(target_of, met) -> None:
    assert (
        record("missed", [3] * 5, [1] * 5, target=3 if met else 2, target_of=target_of).met is met
    )


@pytest.mark.parametrize("bad", [[1.0] * 4, [1.0] * 6, [1.0] * 4 + [float("nan")], [0.0] * 5])
def test_what_was_not_measured_fails(bad) -> None:
    with pytest.raises(ValueError, match="not measured: expected"):
        record("not measured", bad, [1.0] * 5, target=1.0)
