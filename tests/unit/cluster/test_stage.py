"""A stage of supervised or contrastive training, over steps that are given."""

from itertools import repeat

import pytest

from cluster.run_folder import BROKEN_FILE, RunFolder
from cluster.stage import train_stage
from configs.schema import DemoDataConfig, EvalConfig, RunConfig, StopConfig
from data.errors import DivergedError
from data.types import StepReport


class Sink:
    """Takes metrics like a tracker, and keeps none."""

    def log(self, step, metrics):
        pass


def run_stage(folder, reports, measured=0.0, **stop):
    """Train over the reports given; return the facts and the steps taken."""
    taken = []

    def train(batch):
        taken.append(batch)
        return reports[len(taken) - 1]

    config = DemoDataConfig(run=RunConfig(dir=str(folder)))
    facts = train_stage(
        "stage",
        batches=repeat("batch"),
        train=train,
        measure=lambda: {"eval/score": measured},
        steps=len(reports),
        evaluation=EvalConfig(every=1),
        stop=StopConfig(metric="eval/score", **stop),
        folder=RunFolder(config, job="demo_data"),
        tracker=Sink(),
    )
    return facts, len(taken)


GOOD = StepReport(metrics={}, seconds=0.0)
BROKEN = StepReport(metrics={}, seconds=0.0, broken=("a", "b"))


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
