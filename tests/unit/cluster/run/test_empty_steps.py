"""Steps that train nothing end a run, with the reasons counted."""

import pytest

from cluster.run.empty_steps import MAX_EMPTY_STEPS, EmptyStreak
from data.errors import NothingToTrainOn

DULL = {"dropped/no_spread": 12.0, "dropped/bad_picture": 4.0, "dropped/total": 16.0}


def test_empty_steps_in_a_row_end_the_run_with_their_reasons_and_what_to_do():
    streak = EmptyStreak(trained=False)
    streak.record(16.0, {}, {}, last=False)
    for _ in range(MAX_EMPTY_STEPS - 1):
        streak.record(0.0, DULL, {"bad_picture": "/d/1.png: gone"}, last=False)
    with pytest.raises(NothingToTrainOn) as caught:
        streak.record(0.0, DULL, {"bad_picture": "/d/2.png: gone"}, last=False)
    text = str(caught.value)
    assert f"{MAX_EMPTY_STEPS} steps in a row trained nothing" in text
    counts = f"no_spread {12 * MAX_EMPTY_STEPS}, bad_picture {4 * MAX_EMPTY_STEPS}"
    assert f"{counts} (e.g. /d/1.png: gone)." in text
    assert "paid alike" in text


def test_a_step_that_trains_begins_the_count_anew():
    streak = EmptyStreak(trained=False)
    for _ in range(3):
        for _ in range(MAX_EMPTY_STEPS - 1):
            streak.record(0.0, DULL, {}, last=False)
        streak.record(1.0, {}, {}, last=False)
    assert streak.steps == 0


def test_a_run_that_trained_nothing_at_all_does_not_end_well():
    with pytest.raises(NothingToTrainOn, match="1 steps in a row"):
        EmptyStreak(trained=False).record(0.0, DULL, {}, last=True)
    EmptyStreak(trained=True).record(0.0, DULL, {}, last=True)
