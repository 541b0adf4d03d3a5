"""A stage of supervised or contrastive training, over steps that are given."""

import json
import os
import signal
from itertools import count

import pytest

from cluster.run.checkpoints import LEARNER_FOLDER, Checkpoints
from cluster.run.empty_steps import MAX_EMPTY_STEPS
from cluster.run.recovery import MAX_RESTARTS
from cluster.run.run_folder import BROKEN_FILE, RunFolder
from cluster.run.stage_loop import export_best, train_stage
from configs.common import EvalConfig, RunConfig, StopConfig
from configs.schema import DemoDataConfig
from data.errors import (
    CheckpointError,
    ClusterError,
    DamagedCheckpoint,
    DivergedError,
    LearnerLost,
    NothingToTrainOn,
    StopRequested,
)
from data.types import StepReport


class Learner:
    """Learns by heart the batches that it is given, and is lost where the test says so."""

    def __init__(self, lost_at=(), reports=None):
        self.known: list[int] = []
        self.running = True
        self.lost_at = list(lost_at)
        self.reports = reports
        self.taken = 0

    def train(self, batch):
        if self.lost_at and batch == self.lost_at[0]:
            del self.lost_at[0]
            self.running = False
            raise LearnerLost("learner rank 1 died")
        self.known.append(batch)
        self.taken += 1
        return self.reports[self.taken - 1] if self.reports else GOOD

    def restart(self):
        self.known = []
        self.running = True

    def save(self, folder):
        self.saved_after = logged(folder.parents[2], "step")
        folder.write_text(json.dumps(self.known))

    def load(self, folder):
        self.known = json.loads(folder.read_text())
        return len(self.known)

    def export(self, folder):
        folder.write_text(json.dumps(self.known))


GOOD = StepReport(metrics={}, seconds=0.0)
EMPTY = StepReport(metrics={"train/tokens": 0.0}, seconds=0.0)
BROKEN = StepReport(metrics={}, seconds=0.0, broken=("a", "b"))


def run_folder(folder):
    return RunFolder(DemoDataConfig(run=RunConfig(dir=str(folder))), job="demo_data")


def train(learner, folder, steps, measured=0.0, **stop):
    """Train on the batches 0, 1, 2, ... with a checkpoint every second step."""
    return train_stage(
        learner,
        batches=lambda state: ((n, {"next": n + 1}) for n in count(state["next"] if state else 0)),
        train=learner.train,
        measure=lambda: {"eval/score": measured},
        steps=steps,
        checkpoint_every=2,
        evaluation=EvalConfig(every=1),
        stop=StopConfig(metric="eval/score", **stop),
        folder=run_folder(folder),
    )


def run_stage(folder, reports, measured=0.0, **stop):
    """Train over the reports given; return the facts and the steps taken."""
    learner = Learner(reports=reports)
    facts = train(learner, folder, len(reports), measured, **stop)
    return facts, learner.taken


def logged(folder, key):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[key] for line in lines]


def test_metrics_are_written_before_the_checkpoint_after_which_nobody_repeats_them(tmp_path):
    learner = Learner()
    train(learner, tmp_path, 4)
    assert learner.saved_after == [1, 2, 3, 4]


def test_a_stage_ends_on_what_it_must_reach_but_not_before_its_least_steps(tmp_path):
    facts, taken = run_stage(tmp_path, [GOOD] * 9, measured=0.8, at_least=0.7, min_steps=3)
    assert (taken, facts["reached"], facts["steps"]) == (3, 1.0, 3.0)


def test_a_stage_that_does_not_reach_it_says_so(tmp_path, caplog):
    facts, taken = run_stage(tmp_path, [GOOD] * 4, measured=0.6, at_least=0.7)
    assert (taken, facts["reached"]) == (4, 0.0)
    assert "eval/score is 0.6 after 4 steps, below stop.at_least=0.7" in caplog.text


def test_three_broken_steps_in_a_row_end_the_stage_and_name_the_samples(tmp_path):
    with pytest.raises(DivergedError, match="3 steps in a row"):
        run_stage(tmp_path, [GOOD, BROKEN, BROKEN, BROKEN, GOOD])
    assert (tmp_path / BROKEN_FILE).read_text() == "a\nb\n"


def test_two_broken_steps_do_not(tmp_path):
    _, taken = run_stage(tmp_path, [BROKEN, BROKEN, GOOD, BROKEN, BROKEN, GOOD])
    assert taken == 6


@pytest.mark.parametrize("lost_at", [[0], [4], [5, 5, 5], [1, 3, 4, 5]])
def test_a_stage_that_loses_its_learner_ends_as_if_it_had_not(tmp_path, lost_at):
    learner = Learner(lost_at)
    facts = train(learner, tmp_path, steps=7)
    assert learner.known == list(range(7))
    assert json.loads((tmp_path / "export").read_text()) == list(range(7))
    assert facts["steps"] == 7.0
    assert logged(tmp_path, "step") == list(range(1, 8))
    assert logged(tmp_path, "learner/restarts")[-1] == len(lost_at)


def test_a_stage_gives_up_where_restarts_do_not_help(tmp_path):
    learner = Learner([5] * 9)
    with pytest.raises(ClusterError, match="without a step beyond step 5: learner rank 1 died"):
        train(learner, tmp_path, steps=7)
    assert len(learner.lost_at) == 9 - MAX_RESTARTS - 1


def test_a_stage_that_was_killed_goes_on_from_its_checkpoint(tmp_path):
    with pytest.raises(ClusterError):
        train(Learner([5] * 9), tmp_path, steps=7)
    learner = Learner()
    train(learner, tmp_path, steps=7)
    assert learner.taken == 3
    assert learner.known == list(range(7))
    assert logged(tmp_path, "step") == list(range(1, 8))


class Unreadable(Learner):
    """Finds that the first checkpoint that it is given is not what was written."""

    refused = False

    def load(self, folder):
        if not self.refused:
            self.refused = True
            self.running = False
            raise DamagedCheckpoint(f"{folder}: damaged")
        return super().load(folder)


def test_a_stage_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(tmp_path):
    with pytest.raises(ClusterError):
        train(Learner([5] * 9), tmp_path, steps=7)
    learner = Unreadable()
    train(learner, tmp_path, steps=7)
    assert learner.taken == 5  # from step 2 on, and not from step 4
    assert learner.known == list(range(7))
    assert logged(tmp_path, "step") == list(range(1, 8))


class Full(Learner):
    """Finds the disk full at its second checkpoint."""

    saves = 0

    def save(self, folder):
        self.saves += 1
        if self.saves == 2:
            raise CheckpointError("no space")
        super().save(folder)


def test_a_full_disk_ends_the_stage_at_once_and_is_no_lost_learner(tmp_path):
    learner = Full()
    with pytest.raises(CheckpointError, match=r"no space; the last good one is .*/step-000002"):
        train(learner, tmp_path, steps=7)
    assert learner.saves == 2
    assert learner.taken == 4
    assert logged(tmp_path, "step") == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [7, 3])
def test_a_stage_goes_on_with_other_steps(tmp_path, steps):
    with pytest.raises(ClusterError):
        train(Learner([5] * 9), tmp_path, steps=6)
    learner = Learner()
    facts = train(learner, tmp_path, steps)
    assert facts["steps"] == len(learner.known) == max(steps, 4)


def test_a_stage_that_had_reached_its_end_only_exports(tmp_path):
    train(Learner(), tmp_path, steps=6, measured=0.8, at_least=0.7, min_steps=4)
    (tmp_path / "export").unlink()
    learner = Learner()
    facts = train(learner, tmp_path, steps=6, measured=0.8, at_least=0.7, min_steps=4)
    assert (learner.taken, facts["steps"], facts["reached"]) == (0, 4.0, 1.0)
    assert json.loads((tmp_path / "export").read_text()) == [0, 1, 2, 3]


def test_a_stage_whose_steps_have_no_samples_ends_and_saves_none_of_them(tmp_path):
    reports = [GOOD, GOOD, *[EMPTY] * MAX_EMPTY_STEPS]
    with pytest.raises(NothingToTrainOn, match=f"{MAX_EMPTY_STEPS} steps in a row trained nothing"):
        train(Learner(reports=reports), tmp_path, 12)
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


class Stopped(Learner):
    """Gets SIGTERM in the third step."""

    def train(self, batch):
        if batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train(batch)


def test_sigterm_ends_the_stage_after_its_step_and_the_next_start_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopRequested, match="after step 3 of 8, with a checkpoint"):
        train(Stopped(), tmp_path, 8)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "export").exists()
    learner = Learner()
    facts = train(learner, tmp_path, 8)
    assert facts["steps"] == 8
    assert learner.taken == 5
    assert learner.known == list(range(8))


def test_a_request_in_the_last_step_changes_nothing(tmp_path):
    assert train(Stopped(), tmp_path, 3)["steps"] == 3
    assert (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("scores", "exported"),
    [([0.2, 0.8, 0.5], 2), ([0.2, 0.8, 0.8], 3), ([0.2, 0.8, None], 2), ([None, None, None], 3)],
)
def test_exported_is_the_best_held_out_step_and_the_last_where_none_was_measured(
    tmp_path, scores, exported
):
    folder, learner = run_folder(tmp_path), Learner()
    for step, score in enumerate(scores, start=1):
        learner.train(step)
        folder.log_metrics(step, {})
        Checkpoints(folder).save(
            step,
            lambda path: learner.save(path / LEARNER_FOLDER),
            state={},
            metrics={} if score is None else {"eval/hit_at_1": score},
        )
    assert export_best(learner, folder, done=3) == exported
    assert json.loads((tmp_path / "export").read_text()) == list(range(1, exported + 1))
