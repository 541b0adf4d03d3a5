"""MLflow: quiet, one run however often its job is resumed, and the end that it had."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run_folder import RunFolder
from cluster.tracking import Tracker
from configs.schema import DemoDataConfig, RunConfig
from data.errors import LearnerLost, StopRequested

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import logging
from pathlib import Path
from cluster.tracking import open_store
logging.basicConfig(format="%(name)s: %(message)s")
assert open_store(Path("runs/job")).search_experiments()
print(logging.getLogger("mlflow.store.db.utils").getEffectiveLevel() >= logging.WARNING)
"""
NOISE = re.compile(r"(?<![\w.])(mlflow|alembic|cluster|configs|data)\.\w")
"""In what a logger of MLflow, of its migrations or of ours prints."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of all runs here, beside which they share a store: it takes seconds."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    folder.mkdir()
    return folder


def track(runs, name):
    config = DemoDataConfig(run=RunConfig(dir=str(runs / name)))
    return Tracker(config, job="rl", folder=RunFolder(config, job="rl").path)


def status(tracker):
    return tracker.client.get_run(tracker.run_id).info.status


def points(tracker, name="reward/total"):
    history = tracker.client.get_metric_history(tracker.run_id, name)
    return [(one.step, one.value) for one in history]


def test_its_first_use_of_a_store_prints_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert [line for line in done.stderr.splitlines() if NOISE.search(line)] == []


def test_the_store_lies_beside_the_runs_though_a_link_leads_a_run_elsewhere(runs, tmp_path):
    (runs / "elsewhere").symlink_to(tmp_path)
    with track(runs, "elsewhere/job") as tracker:
        tracker.log(1, {"reward/total": 0.5})
    assert (tmp_path / "job/mlflow_run_id").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["job"]
    assert points(tracker) == [(1, 0.5)]


def test_a_resumed_job_goes_on_in_the_same_run_and_writes_each_step_once(runs):
    first = track(runs, "resumed")
    for step in (1, 2, 3):
        first.log(step, {"reward/total": step / 4})
    with pytest.raises(StopRequested), first:
        raise StopRequested("after step 3")
    assert status(first) == "KILLED"
    second = track(runs, "resumed")
    assert second.run_id == first.run_id
    assert status(second) == "RUNNING"
    with second:
        second.log(3, {"reward/total": 0.75, "eval/hit_at_1": 0.5})  # done again
        second.log(4, {"reward/total": 1.0})
        second.flush()
        second.log(4, {"reward/total": 1.0})  # once more, the learner having been lost
        second.log(5, {"reward/total": math.nan})
    assert status(second) == "FINISHED"
    assert points(second)[:4] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert [step for step, _ in points(second)[4:]] == [5]
    assert points(second, "eval/hit_at_1") == [(3, 0.5)]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (StopRequested("after step 1"), "KILLED"),
        (LearnerLost("rank 1 died"), "FAILED"),
        (ZeroDivisionError("a defect"), "FAILED"),
        (KeyboardInterrupt(), "FAILED"),
    ],
)
def test_a_run_ends_as_its_job_does_with_all_that_was_kept(runs, error, ending):
    tracker = track(runs, type(error).__name__)
    tracker._flushed = math.inf  # as if no time had passed
    tracker.log(0, {"reward/total": 0.25})
    assert points(tracker) == []
    with pytest.raises(type(error)), tracker:
        raise error
    assert status(tracker) == ending
    assert points(tracker) == [(0, 0.25)]


def test_steps_share_a_write_that_comes_when_it_is_due(runs):
    with track(runs, "due") as tracker:
        tracker._flushed = math.inf  # as if no time had passed
        tracker.log(1, {"reward/total": 0.25})
        assert points(tracker) == []
        tracker._flushed = -math.inf
        tracker.log(2, {"reward/total": 0.5})
        assert points(tracker) == [(1, 0.25), (2, 0.5)]
