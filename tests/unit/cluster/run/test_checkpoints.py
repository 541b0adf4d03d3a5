"""Checkpoints are complete or absent; the newest and the best are kept."""

import errno
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.run.checkpoints import KEPT, LEARNER_FOLDER, SCORE, Checkpoints
from cluster.run.run_folder import RunFolder
from configs.common import RunConfig
from configs.errors import ConfigError
from configs.schema import DemoDataConfig
from data.errors import CheckpointError, DamagedCheckpoint


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


def cut_state(path):
    (path / "loop.json").write_text("{")


def cut_file(path):
    (path / "weights").write_text("")


def lose_file(path):
    (path / "weights").unlink()


def lose_state(path):
    (path / "loop.json").unlink()


@pytest.mark.parametrize("damage", [cut_state, cut_file, lose_file, lose_state])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(folder, damage, caplog):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        folder.log_metrics(step, {})
        save(checkpoints, step)
    damage(checkpoints.path / "step-000002")
    assert checkpoints.resume(9).step == 1
    assert "step-000002: damaged: " in caplog.text
    assert "step-000002.damaged, the newest left is step-000001" in caplog.text
    assert [json.loads(one)["step"] for one in folder.metrics_path.open()] == [1]
    save(checkpoints, 2)
    assert kept(checkpoints) == [1, 2]


def test_a_damaged_checkpoint_that_is_the_only_one_is_refused_and_stays(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    cut_file(checkpoints.path / "step-000001")
    with pytest.raises(CheckpointError, match="weights: expected 1 bytes, found 0; there is no"):
        checkpoints.newest()
    assert kept(checkpoints) == [1]


def test_a_checkpoint_whose_reading_fails_is_set_aside(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    save(checkpoints, 2)
    with pytest.raises(DamagedCheckpoint), checkpoints.reading(checkpoints.newest()):
        raise DamagedCheckpoint("a checksum is wrong")
    assert checkpoints.newest().step == 1


def test_an_unreadable_old_checkpoint_does_not_stop_a_save(folder):
    checkpoints = Checkpoints(folder)
    for step in range(1, KEPT + 1):
        save(checkpoints, step, 0.5)
    cut_state(checkpoints.path / "step-000001")
    save(checkpoints, KEPT + 1, 0.25)
    assert kept(checkpoints) == [2, 3]


def test_an_old_checkpoint_that_cannot_be_deleted_stops_no_later_save(folder, monkeypatch, caplog):
    def refuse(path, **_):
        raise PermissionError(f"{path} is of another user")

    checkpoints = Checkpoints(folder)
    monkeypatch.setattr("cluster.run.checkpoints.shutil.rmtree", refuse)
    for step in range(1, KEPT + 3):
        save(checkpoints, step)
    assert checkpoints.resume(9).step == KEPT + 2
    assert "step-000001.part: could not be deleted: " in caplog.text


def test_a_full_disk_ends_the_save_with_the_reason_and_the_last_good_checkpoint(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)

    def fill(path):
        (path / "weights").symlink_to("/dev/full")
        (path / "weights").write_text("w")

    reason = (
        rf"of step 2 could not be .*Errno {errno.ENOSPC}\].*good one is .*/step-000001\. Make room"
    )
    with pytest.raises(CheckpointError, match=reason):
        checkpoints.save(2, fill, state={}, metrics={})
    assert kept(checkpoints) == [1]


def test_what_a_killed_job_left_is_cleared_away_at_the_next_start(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    (checkpoints.path / "step-000002.part" / LEARNER_FOLDER).mkdir(parents=True)
    universal = checkpoints.path / "step-000001" / f"{LEARNER_FOLDER}.universal"
    universal.mkdir()
    checkpoints.resume(9)
    assert kept(checkpoints) == [1]
    assert not universal.exists()


def test_changed_data_and_models_are_refused_with_what_changed(folder):
    checkpoints = Checkpoints(folder)
    before = {"data.train": {"rows in use": "12 rows, a"}, "model": {"config.json": "2 bytes, c"}}
    checkpoints.check_inputs(before)
    save(checkpoints, 1)
    Checkpoints(folder).check_inputs(before)
    now = {**before, "data.train": {"rows in use": "11 rows, b"}}
    with pytest.raises(ConfigError, match="rows in use: there 12 rows, a, now 11 rows, b"):
        Checkpoints(folder).check_inputs(now)


def save_as_an_older_release(checkpoints, step):
    save(checkpoints, step)
    path = checkpoints.path / f"step-{step:06d}/loop.json"
    facts = json.loads(path.read_text())
    old = {key: facts[key] for key in ("step", "score", "seconds", "state")}
    path.write_text(json.dumps(old))


def test_a_checkpoint_of_a_newer_release_is_refused_and_stays(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = checkpoints.path / "step-000002/loop.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"future": 1}))
    with pytest.raises(CheckpointError, match=r"newer release .*future.*: go on with that release"):
        checkpoints.resume(9)
    assert kept(checkpoints) == [1, 2]


def test_a_run_begun_with_another_arithmetic_is_refused(folder):
    checkpoints = Checkpoints(folder)
    save_as_an_older_release(checkpoints, 1)
    with pytest.raises(ConfigError, match=r"another arithmetic \(the masks\): finish it with"):
        checkpoints.check_inputs({}, arithmetic="the masks")


def test_a_checkpoint_of_an_older_release_is_taken_and_that_is_said(folder, caplog):
    checkpoints = Checkpoints(folder)
    save_as_an_older_release(checkpoints, 1)
    with caplog.at_level(logging.WARNING):
        checkpoints.check_inputs({"model": {"config.json": "2 bytes, c"}})
    assert len(caplog.messages) == 1
    assert "did not note data and models" in caplog.text
    assert checkpoints.resume(9).step == 1
    save(checkpoints, 2)
    assert checkpoints.newest().inputs == {"model": {"config.json": "2 bytes, c"}}


def test_resuming_takes_the_folder_back_to_the_checkpoint(folder):
    checkpoints = Checkpoints(folder)
    for step in range(1, 5):
        folder.log_metrics(step, {})
        folder.write_trajectories(step, [{"key": "k"}])
        if step == 2:
            folder.started -= 100
            save(checkpoints, step)
    again = RunFolder(DemoDataConfig(run=RunConfig(dir=str(folder.path))), job="demo_data")
    assert Checkpoints(again).resume(9).step == 2
    lines = again.metrics_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert len(list((folder.path / "trajectories").iterdir())) == 2
    assert again.seconds >= 100


def test_without_a_checkpoint_the_folder_goes_back_to_its_start(folder):
    folder.log_metrics(0, {})
    assert Checkpoints(folder).resume(9) is None
    assert folder.metrics_path.read_text() == ""
