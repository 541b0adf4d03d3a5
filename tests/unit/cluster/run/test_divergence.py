"""Three broken steps in a row end the run."""

import pickle
from dataclasses import replace

import pytest

from cluster.run.divergence import BrokenStreak
from cluster.run.run_folder import RunFolder
from configs.common import RunConfig
from configs.schema import WarmStartConfig
from data.errors import DivergedError


def test_three_broken_steps_in_a_row_stop_the_run_and_list_their_trajectories(tmp_path):
    streak = BrokenStreak(tmp_path / "broken.txt")
    streak.record(["a", "b"])
    streak.record(["c"])
    assert not streak.path.exists()
    with pytest.raises(DivergedError, match=r"3 steps in a row .* the 3 trajectories .*broken.txt"):
        streak.record(["b"])
    assert streak.path.read_text().splitlines() == ["a", "b", "c"]


def test_a_good_step_ends_a_streak(tmp_path):
    streak = BrokenStreak(tmp_path / "broken.txt")
    for broken in (["a"], ["b"], [], ["c"], ["d"], []):
        streak.record(broken)
    assert not streak.path.exists()


def test_the_advice_is_what_a_run_that_goes_on_takes(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m")
    RunFolder(config, job="warm_start").log_metrics(1, {})
    with pytest.raises(DivergedError, match=r"a lower learner\.optimizer\.lr"):
        BrokenStreak(tmp_path / "broken.txt", limit=1).record(["a"])
    optimizer = replace(config.learner.optimizer, lr=config.learner.optimizer.lr / 2)
    RunFolder(
        replace(config, learner=replace(config.learner, optimizer=optimizer)), job="warm_start"
    )


def test_the_error_survives_pickling(tmp_path):
    streak = BrokenStreak(tmp_path / "broken.txt", limit=1)
    with pytest.raises(DivergedError) as caught:
        streak.record(["a"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
