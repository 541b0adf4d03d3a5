"""Steps collected ahead of the learner, over engines that only sleep."""

import json
import threading
import time

import pytest

from cluster.rl.logprob_parity import check_parity
from configs.learner import ParityConfig
from data.errors import ClusterError, ParityError
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
TRACES = PAIRS * 2 * SIBLINGS


@pytest.fixture
def make_pipeline():
    made = []

    def make(**settings):
        made.append(simulated_pipeline(steps=STEPS, **settings))
        if isinstance(settings.get("learner"), WaitingLearner):
            settings["learner"].watch(made[-1].collector)
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


class WaitingLearner(SlowLearner):
    """Holds each step's training until the traces of the ``ahead`` next ones are scored."""

    def __init__(self, ahead, *, work=lambda: None):
        super().__init__()
        self.ahead, self.work = ahead, work
        self.begun = self.steps_scored = 0
        self._change = threading.Condition()

    def watch(self, collector):
        """Count the steps that it scores."""
        score = collector._score

        def counted(*args):
            found = score(*args)
            self._note(scored=1)
            return found

        collector._score = counted

    def wait_for(self, condition):
        with self._change:
            assert self._change.wait_for(condition, PATIENCE_S), "nothing goes on beside training"

    def wait_until_scored(self, step):
        self.wait_for(lambda: self.steps_scored >= min(step, STEPS))

    def train_policy(self, samples, pictures):
        self._note(begun=1)
        self.wait_until_scored(self.begun + self.ahead)
        self.work()
        return super().train_policy(samples, pictures)

    def _note(self, *, begun=0, scored=0):
        with self._change:
            self.begun += begun
            self.steps_scored += scored
            self._change.notify_all()


class WorkClock:
    """Its seconds pass only while somebody works, which no two may do at a time."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds):
        self.now += seconds


class RolloutBeside(FakeRollout):
    """Works for a step, once the learner is at the one before it."""

    def __init__(self, learner, work):
        super().__init__()
        self.learner, self.work = learner, work
        self.steps = 0

    def generate(self, requests, pictures, *, urgent=False):
        if requests[0].max_tokens is None:  # no probe
            self.steps += 1
            self.learner.wait_for(lambda: self.learner.begun >= self.steps - 1)
            self.work()
        return super().generate(requests, pictures)


class CountingRollout(FakeRollout):
    """Counts the steps whose traces it has given."""

    def __init__(self):
        super().__init__()
        self.steps_sampled = 0
        self._change = threading.Condition()

    def generate(self, requests, pictures, *, urgent=False):
        done = super().generate(requests, pictures)
        if requests[0].max_tokens is None:  # no probe
            with self._change:
                self.steps_sampled += 1
                self._change.notify_all()
        return done

    def wait_until_sampled(self, step):
        with self._change:
            assert self._change.wait_for(lambda: self.steps_sampled >= step, PATIENCE_S)


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
    learner = WaitingLearner(max_staleness)
    pipeline = make_pipeline(max_staleness=max_staleness, learner=learner)
    found = [pipeline.step().metrics["staleness/max"] for _ in range(STEPS)]
    assert found == [min(step, max_staleness) for step in range(STEPS)]
    pipeline.close()
    # No step is collected that nobody takes.
    asked = [call for call in pipeline.rollout.asked if call[0].key.sibling < SIBLINGS]
    assert len(asked) == STEPS


def test_a_step_ahead_is_scored_beside_training_and_brings_the_log_probabilities_of_its_time(
    make_pipeline,
):
    pipeline = make_pipeline(max_staleness=1, learner=WaitingLearner(1))
    stale = [pipeline.step().metrics["staleness/max"] for _ in range(STEPS)]
    assert stale == [0, *[1] * (STEPS - 1)]
    first, *later = pipeline.learner.trained
    assert all(sample.old_logprobs is None for sample in first)
    assert all((s.old_logprobs == s.logprobs).all() for step in later for s in step)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_with_tis_the_learner_scores_traces_of_older_weights_when_they_come_in(
    make_pipeline, max_staleness
):
    learner, rollout = FakeLearner(), CountingRollout()
    own, train = learner.score_policy, learner.train_policy
    learner.score_policy = lambda samples, pictures: {
        key: TokenScores(scores.own + 0.25, None) for key, scores in own(samples, pictures).items()
    }

    def train_beside_sampling(samples, pictures):
        # Scoring waits for the learner, so sampling alone can be ahead: by older weights.
        rollout.wait_until_sampled(len(learner.trained) + 1 + max_staleness)
        return train(samples, pictures)

    learner.train_policy = train_beside_sampling
    pipeline = make_pipeline(
        max_staleness=max_staleness, learner=learner, rollout=rollout, tis_cap=2.0
    )
    stale = [pipeline.step().metrics["staleness/max"] for _ in range(3)]
    for lag, samples in zip(stale, learner.trained, strict=True):
        for one in samples:
            if lag:
                assert (one.old_logprobs == one.logprobs + 0.25).all()
            else:
                assert one.old_logprobs is None
    assert stale == [0, max_staleness, max_staleness]


def test_engines_that_are_off_show_though_all_traces_are_stale(make_pipeline):
    learner = FakeLearner()
    pipeline = make_pipeline(max_staleness=1, learner=learner)
    limits = ParityConfig(mean=1e-3, p999=1e-2)
    check_parity(pipeline.step().metrics, broken=False, limits=limits)
    own = learner.score_policy
    learner.score_policy = lambda samples, pictures: {
        key: TokenScores(scores.own + 0.01, None) for key, scores in own(samples, pictures).items()
    }
    with pytest.raises(ParityError, match=r"differ by 0\.01 on average"):
        check_parity(pipeline.step().metrics, broken=False, limits=limits)


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
    pipeline = make_pipeline(max_staleness=2, learner=WaitingLearner(2))
    metrics = [pipeline.step().metrics for _ in range(STEPS)]
    assert {one["traces/issued"] for one in metrics} == {TRACES}
    assert [one["traces/in_flight"] for one in metrics] == [*[2 * TRACES] * 10, TRACES, 0]


def test_a_trace_without_an_end_stops_the_run(make_pipeline):
    rollout = FakeRollout()
    generate = rollout.generate
    rollout.generate = lambda requests, pictures, **more: (
        generate(requests, pictures, **more)[0][1:],
        [],
    )
    with pytest.raises(ClusterError, match=r"found 1 without an end \['g=0/p=p\d+/query/0'\]"):
        make_pipeline(max_staleness=0, rollout=rollout).step()


@pytest.mark.parametrize(("max_staleness", "scored"), [(0, STEPS), (2, 2 * STEPS)])
def test_the_learner_gets_one_call_at_a_time(make_pipeline, max_staleness, scored):
    learner = SlowLearner()
    settings = {"learner": learner, "kl": "k1", "kl_in": "reward"}
    pipeline = make_pipeline(max_staleness=max_staleness, **settings)
    learner.lock = pipeline._learning
    for _ in range(STEPS):
        pipeline.step()
    assert learner.scored == scored  # the steps' traces, and the probes where steps overlap


def test_the_ledger_of_a_run_closes_and_goes_on_where_it_was(make_pipeline, tmp_path):
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
    ended = resumed.ledger.trained + resumed.ledger.dropped.total()
    assert ended == 3 * TRACES


def test_with_drop_engines_run_a_step_further_and_what_is_too_old_is_dropped(make_pipeline):
    learner = WaitingLearner(2)
    pipeline = make_pipeline(max_staleness=1, stale="drop", learner=learner)
    metrics = [pipeline.step().metrics for _ in range(STEPS)]
    assert [one["traces/in_flight"] for one in metrics] == [*[2 * TRACES] * 10, TRACES, 0]
    # The first weights sampled three steps, all others the step after the next.
    assert [one.get("dropped/stale", 0) for one in metrics] == [0, 0, *[TRACES] * 10]
    assert [one["staleness/max"] for one in metrics] == [0, 1, *[0] * 10]
    assert [len(samples) for samples in learner.trained] == [TRACES, TRACES, *[0] * 10]


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_what_ends_the_collection_ends_the_step(make_pipeline, max_staleness):
    pipeline = make_pipeline(max_staleness=max_staleness, rollout=SlowRollout(fails_at=3))
    for _ in range(2):
        pipeline.step()
    with pytest.raises(ClusterError, match="the rollout pool is gone"):
        pipeline.step()


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_phases_add_up_and_overlap_is_what_ran_beside(make_pipeline, monkeypatch, max_staleness):
    clock = WorkClock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    learner = WaitingLearner(max_staleness, work=lambda: clock.work(2.0))
    rollout = RolloutBeside(learner, work=lambda: clock.work(1.0))
    pipeline = make_pipeline(max_staleness=max_staleness, rollout=rollout, learner=learner)
    admit = pipeline.collector._buffer.admit

    def admit_and_pause(step):
        admit(step)
        learner.wait_until_scored(learner.begun + 1)

    pipeline.collector._buffer.admit = admit_and_pause
    found = []
    for _ in range(STEPS):
        metrics = pipeline.step().metrics
        times = {name: value for name, value in metrics.items() if name.startswith("time/")}
        names = ("rollout", "train", "overlap", "step")
        found.append(tuple(times.pop(f"time/{name}_s") for name in names))
        assert set(times.values()) == {0.0}
    if max_staleness:
        # The learner is at a step while the next one is sampled; nothing follows the last one.
        assert found == [(1, 3, 0, 4), *[(1, 3, 1, 3)] * 10, (1, 2, 1, 2)]
    else:
        assert found == [(1, 2, 0, 3)] * STEPS
