"""Checkpoints are complete or absent; the newest and the best are kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.checkpoints import KEPT, SCORE, Checkpoints
from cluster.run_folder import RunFolder
from configs.schema import DemoDataConfig, RunConfig
from data.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    return RunFolder(DemoDataConfig(run=RunConfig(dir=str(tmp_path / "run"))), job="demo_data")


def save(checkpoints, step, score=None):
    checkpoints.save(
        step,
        lambda path: (path / "weights").write_text(str(step)),
        state={"serial": 10 * step},
        metrics={} if score is None else {SCORE: score},
    )


def kept(checkpoints):
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.path.iterdir())


def test_the_newest_comes_back_with_its_files_and_its_state(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 5, 0.25)
    save(checkpoints, 10)
    newest = checkpoints.newest()
    assert (newest.step, newest.score, newest.state) == (10, None, {"serial": 100})
    assert (newest.path / "weights").read_text() == "10"


def test_a_run_without_checkpoints_has_no_newest(folder):
    assert Checkpoints(folder).newest() is None


def test_the_best_stays_and_of_equally_good_ones_the_newer(folder):
    checkpoints = Checkpoints(folder)
    for step, score in enumerate([0.5, 0.75, 0.75, None, 0.25, 0.5, None], start=1):
        save(checkpoints, step, score)
    assert kept(checkpoints) == [3, 6, 7]


@given(st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8))
def test_the_newest_and_the_best_are_always_there(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(
        RunFolder(DemoDataConfig(run=RunConfig(dir=str(path))), job="demo_data")
    )
    for step, score in enumerate(scores):
        save(checkpoints, step, score)
    expected = set(range(len(scores))[-KEPT:])
    measured = [(score, step) for step, score in enumerate(scores) if score is not None]
    expected |= {max(measured)[1]} if measured else set()
    assert set(kept(checkpoints)) == expected


def test_what_was_cut_off_is_no_checkpoint_and_is_cleared_away(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)

    def die(path):
        (path / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, die, state={}, metrics={})
    assert checkpoints.newest().step == 1
    save(checkpoints, 2)
    assert kept(checkpoints) == [1, 2]
    assert not (checkpoints.newest().path / "half").exists()


def test_an_unreadable_checkpoint_is_named_and_not_skipped(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.newest().path / "loop.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step-000002: unreadable .* delete this folder"):
        checkpoints.newest()


def test_resuming_takes_the_folder_back_to_the_checkpoint(folder):
    checkpoints = Checkpoints(folder)
    for step in range(1, 5):
        folder.log_metrics(step, {})
        folder.write_trajectories(step, [{"key": "k"}])
        if step == 2:
            folder.started -= 100
            save(checkpoints, step)
    again = RunFolder(DemoDataConfig(run=RunConfig(dir=str(folder.path))), job="demo_data")
    assert Checkpoints(again).resume().step == 2
    lines = again.metrics_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert len(list((folder.path / "trajectories").iterdir())) == 2
    assert again.seconds >= 100


def test_without_a_checkpoint_the_folder_goes_back_to_its_start(folder):
    folder.log_metrics(0, {})
    assert Checkpoints(folder).resume() is None
    assert folder.metrics_path.read_text() == ""
