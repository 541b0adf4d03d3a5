"""Steps collected ahead of the learner, over engines that only sleep."""

import json
import time

import pytest

from data.errors import ClusterError, WeightSyncError
from learner.objectives import TokenScores
from tests.fakes import FakeLearner, FakeRollout
from tests.patience import PATIENCE_S
from tests.simulation import (
    PAIRS,
    SIBLINGS,
    SlowLearner,
    SlowRollout,
    simulated_pipeline,
)

pytestmark = pytest.mark.usefixtures("local_ray")
STEPS = 12


@pytest.fixture
def make_pipeline():
    made = []

    def make(**settings):
        made.append(simulated_pipeline(steps=STEPS, **settings))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


class WaitingLearner(SlowLearner):
    """Holds each step's training until the traces of the next one are scored."""

    def __init__(self):
        super().__init__()
        self.steps_scored = 0

    def watch(self, scorer):
        """Count the steps that it scores."""
        score = scorer.score

        def counted(*args):
            found = score(*args)
            self.steps_scored += 1
            return found

        scorer.score = counted

    def train_policy(self, samples, pictures):
        deadline = time.monotonic() + PATIENCE_S
        while self.steps_scored < min(len(self.trained) + 2, STEPS):
            assert time.monotonic() < deadline, "nothing is sampled and scored beside training"
            time.sleep(0.01)
        return super().train_policy(samples, pictures)


def trained_keys(pipeline):
    return [[(s.key, s.advantage) for s in step] for step in pipeline.learner.trained]


@pytest.mark.parametrize("refill", [0, 3])
def test_steps_collected_ahead_train_on_the_same_traces(make_pipeline, refill):
    def dull(group):
        return group.serial % 3 == 0

    straight = make_pipeline(max_staleness=0, rollout=FakeRollout(dull), refill=refill)
    ahead = make_pipeline(max_staleness=2, rollout=FakeRollout(dull), refill=refill)
    for _ in range(STEPS):
        straight.step()
        ahead.step()
    assert trained_keys(ahead) == trained_keys(straight)
    assert ahead.state() == straight.state()


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_staleness_stays_within_its_bound_and_is_used(make_pipeline, max_staleness):
    pipeline = make_pipeline(max_staleness=max_staleness, learner=SlowLearner(0.2))
    found = [pipeline.step().metrics["staleness/max"] for _ in range(STEPS)]
    assert max(found) == max_staleness
    # No step is collected that nobody takes.
    asked = [call for call in pipeline.rollout.asked if call[0].key.sibling < SIBLINGS]
    assert len(asked) == STEPS


def test_a_step_ahead_is_scored_beside_training_and_brings_the_log_probabilities_of_its_time(
    make_pipeline,
):
    learner = WaitingLearner()
    pipeline = make_pipeline(max_staleness=1, learner=learner)
    learner.watch(pipeline.collector.scorer)
    stale = [pipeline.step().metrics["staleness/max"] for _ in range(STEPS)]
    assert stale == [0, *[1] * (STEPS - 1)]
    first, *later = pipeline.learner.trained
    assert all(sample.old_logprobs is None for sample in first)
    assert all((s.old_logprobs == s.logprobs).all() for step in later for s in step)


def test_engines_that_are_off_show_though_all_traces_are_stale(make_pipeline):
    learner = FakeLearner()
    pipeline = make_pipeline(max_staleness=1, learner=learner)
    pipeline.check_parity(pipeline.step())
    own = learner.score_policy
    learner.score_policy = lambda samples, pictures: {
        key: TokenScores(scores.own + 0.01, None) for key, scores in own(samples, pictures).items()
    }
    with pytest.raises(WeightSyncError, match=r"differ by 0\.01"):
        pipeline.check_parity(pipeline.step())


def test_a_trace_that_is_too_old_is_dropped_with_the_reason(make_pipeline):
    rollout = FakeRollout()
    pipeline = make_pipeline(max_staleness=1, rollout=rollout)
    rollout.pull_weights = lambda version: []  # the engines keep version 1
    results = [pipeline.step() for _ in range(3)]
    assert [one.metrics["dropped/total"] for one in results] == [0, 0, 16]
    assert results[2].metrics["dropped/stale"] == 16
    reason = "stale: expected weights of version 2 or newer, found 1"
    assert {row["dropped"] for row in results[2].rows} == {reason}
    assert pipeline.learner.trained[2] == []


def test_a_resumed_run_collects_again_what_was_ahead(make_pipeline, tmp_path):
    straight = make_pipeline(max_staleness=0)
    for _ in range(5):
        straight.step()
    stopped = make_pipeline(max_staleness=2)
    for _ in range(3):
        stopped.step()
    state = json.loads(json.dumps(stopped.state()))
    stopped.save(tmp_path)
    resumed = make_pipeline(max_staleness=2)
    resumed.load(tmp_path, state)
    resumed.sync()
    for _ in range(2):
        resumed.step()
    assert trained_keys(resumed) == trained_keys(straight)[3:]
    assert resumed.state() == straight.state()


def test_traces_under_way_are_those_of_steps_ahead(make_pipeline):
    pipeline = make_pipeline(max_staleness=2, learner=SlowLearner(0.2))
    metrics = [pipeline.step().metrics for _ in range(STEPS)]
    issued = PAIRS * 2 * SIBLINGS
    assert {one["traces/issued"] for one in metrics} == {issued}
    assert 0 < max(one["traces/in_flight"] for one in metrics) <= 2 * issued
    assert metrics[-1]["traces/in_flight"] == 0


def test_a_trace_without_an_end_stops_the_run(make_pipeline):
    rollout = FakeRollout()
    generate = rollout.generate
    rollout.generate = lambda requests, pictures, **more: (
        generate(requests, pictures, **more)[0][1:],
        [],
    )
    with pytest.raises(ClusterError, match=r"found 1 without an end \['g=0/p=p\d+/query/0'\]"):
        make_pipeline(max_staleness=0, rollout=rollout).step()


def test_the_learner_gets_one_call_at_a_time(make_pipeline):
    learner = SlowLearner(0.02)
    pipeline = make_pipeline(max_staleness=2, learner=learner, kl="k1", kl_in="reward")
    for _ in range(STEPS):
        pipeline.step()
    assert learner.scored == 2 * STEPS  # the steps' traces and the probes


def test_the_accounts_of_a_run_close_and_go_on_where_they_were(make_pipeline, tmp_path):
    def dull(group):
        return group.serial % 3 == 0

    stopped = make_pipeline(max_staleness=1, rollout=FakeRollout(dull))
    stopped.step()
    metrics = stopped.step().metrics
    assert metrics["traces/issued"] == metrics["traces/trained"] + metrics["dropped/total"]
    assert metrics["dropped/total"] == metrics["dropped/no_spread"] > 0
    state = json.loads(json.dumps(stopped.state()))
    stopped.save(tmp_path)
    resumed = make_pipeline(max_staleness=1, rollout=FakeRollout(dull))
    resumed.load(tmp_path, state)
    resumed.sync()
    resumed.step()
    ended = resumed.accounts.trained + resumed.accounts.dropped.total()
    assert ended == 3 * PAIRS * 2 * SIBLINGS


def test_with_drop_engines_run_a_step_further_and_what_is_too_old_is_dropped(make_pipeline):
    pipeline = make_pipeline(max_staleness=1, stale="drop", learner=SlowLearner(0.2))
    metrics = [pipeline.step().metrics for _ in range(STEPS)]
    assert max(one["traces/in_flight"] for one in metrics) > PAIRS * 2 * SIBLINGS
    assert max(one.get("dropped/stale", 0) for one in metrics) > 0
    assert max(one["staleness/max"] for one in metrics) == 1


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_what_ends_the_collection_ends_the_step(make_pipeline, max_staleness):
    pipeline = make_pipeline(max_staleness=max_staleness, rollout=SlowRollout(fails_at=3))
    for _ in range(2):
        pipeline.step()
    with pytest.raises(ClusterError, match="the rollout pool is gone"):
        pipeline.step()


def test_phases_add_up_and_overlap_is_what_ran_beside(make_pipeline):
    for max_staleness in (0, 1):
        pipeline = make_pipeline(
            max_staleness=max_staleness, rollout=SlowRollout(0.2), learner=SlowLearner(0.2)
        )
        overlap = 0.0
        for _ in range(6):
            metrics = pipeline.step().metrics
            times = {name: value for name, value in metrics.items() if name.startswith("time/")}
            whole, beside = times.pop("time/step_s"), times.pop("time/overlap_s")
            assert sum(times.values()) - beside == pytest.approx(whole)
            assert times["time/other_s"] >= 0
            overlap += beside
        assert (overlap > 0.1) == (max_staleness > 0)
