"""The loop of `rl` over stand-ins: a run whose steps train nothing ends, and saves none of them."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.jobs.rl import train_loop
from cluster.picture_retry import PAUSES_S
from cluster.pictures import SharedPictures
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from cluster.run.empty_steps import MAX_EMPTY_STEPS
from cluster.run.recovery import Restarts
from cluster.run.run_folder import RunFolder
from configs.common import RunConfig
from configs.learner import GRPOConfig, ParityConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.errors import NothingToTrainOn, ParityError
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import Item, Kind
from tests.builders import loaded_set, make_pair
from tests.fakes import FakeEmbedder, FakeLearner, FakeRollout
from tests.patience import PATIENCE_S

PAIRS, STEPS = 4, 12


class FakeDecoder:
    """Fails for all files at the tries of these numbers."""

    def __init__(self, failing=()):
        self.failing = failing
        self.tries = 0

    def share(self, uris, limits, *, frames=frozenset()):
        self.tries += 1
        gone = self.tries - 1 in self.failing
        return SharedPictures((), {}), dict.fromkeys(uris if gone else (), "stale file handle")


class Silent(FakeEmbedder):
    """Gives no usable vector, as one whose numbers are NaN."""

    def embed(self, requests, pictures):
        return {}, dict.fromkeys((one.key for one in requests), "the vector holds NaN or infinity")


def picture_pairs(count):
    def item(index):
        return Item(text="q", kind=Kind.IMAGE, uris=(f"/d/{index}.png",))

    return tuple(
        make_pair(f"p{index}", query=item(index), target=item(1000 + index))
        for index in range(count)
    )


NO_KL = GRPOConfig(kl="none")
"""A KL would train groups without spread, too."""
TEXTS = tuple(make_pair(f"p{index}") for index in range(60))


def make_pipeline(
    folder,
    *,
    pairs=TEXTS,
    rollout=None,
    learner=None,
    decoder=None,
    embedder=None,
    steps=STEPS,
    grpo=NO_KL,
    **settings,
):
    config = RLConfig(
        run=RunConfig(dir=str(folder)),
        reasoner="unused",
        reward=RewardConfig(model="unused", length_weight=1.0, length_budget=1),
        pairs=PAIRS,
        siblings=2,
        steps=steps,
        grpo=grpo,
        **settings,
    )
    loaded = loaded_set(name="set", pairs=pairs, bad_rows=())
    return Pipeline(
        config,
        feed=PairFeed([loaded], {"set": 1.0}, batch=PAIRS, seed=0),
        rollout=rollout or FakeRollout(),
        scorer=Scorer(
            config.reward,
            embedder=embedder or FakeEmbedder(),
            judge=None,
            item_tokens=0,
            max_frames=8,
            relevance=Relevance(pairs),
        ),
        decoder=decoder or FakeDecoder(),
        learner=learner or FakeLearner(),
        store=None,
    )


def run(tmp_path, *, every=1, **settings):
    """Run the loop; note the checkpoints that it left, and the pauses that it made."""
    pipeline = make_pipeline(tmp_path / "run", checkpoint_every=every, **settings)
    run.pauses = []
    pipeline.collector.wait = run.pauses.append
    folder = RunFolder(pipeline.config, job="rl")
    try:
        train_loop(
            pipeline.config,
            pipeline,
            folder,
            held_out=[],
            restarts=Restarts(),
            scaler=SimpleNamespace(step=dict),
            request=SimpleNamespace(made=False),
        )
    finally:
        pipeline.close()
        run.saved = sorted(one.name for one in (folder.path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rollout": FakeRollout(lambda group: True)}, f"no_spread {MAX_EMPTY_STEPS * 4 * PAIRS}"),
        ({"embedder": Silent()}, f"embedding_failed {MAX_EMPTY_STEPS * 4 * PAIRS}"),
        ({"pairs": TEXTS[:1]}, f"no_negative {MAX_EMPTY_STEPS * 4}"),
    ],
)
def test_a_run_without_anything_to_train_on_ends_and_saves_nothing(tmp_path, settings, reason):
    with pytest.raises(
        NothingToTrainOn, match=f"{MAX_EMPTY_STEPS} steps in a row trained nothing.*{reason}"
    ):
        run(tmp_path, **settings)
    assert run.saved == []


def test_steps_before_those_that_train_nothing_stay_saved(tmp_path):
    with pytest.raises(NothingToTrainOn):
        run(tmp_path, rollout=FakeRollout(lambda group: group.serial >= 3 * PAIRS))
    assert run.saved == ["step-000002", "step-000003"]


def test_a_step_that_trains_replayed_groups_alone_is_not_empty(tmp_path):
    grpo = GRPOConfig(kl="none", replay_groups=2 * PAIRS)
    with pytest.raises(NothingToTrainOn):
        run(tmp_path, rollout=FakeRollout(lambda group: group.serial >= PAIRS), grpo=grpo)
    assert run.saved == ["step-000001", "step-000002"]


def test_a_checkpoint_that_is_due_at_an_empty_step_follows_at_the_next_that_trains(tmp_path):
    dull = range(PAIRS, 3 * PAIRS)  # the groups of steps 2 and 3
    run(tmp_path, rollout=FakeRollout(lambda group: group.serial in dull), every=3, steps=6)
    assert run.saved == ["step-000004", "step-000006"]


def test_pictures_that_are_gone_for_a_while_cost_no_step(tmp_path):
    run(tmp_path, pairs=picture_pairs(60), decoder=FakeDecoder(range(2, 6)))
    assert run.pauses == list(PAUSES_S[:4])
    assert run.saved[-1] == f"step-{STEPS:06d}"


def test_pictures_that_stay_away_end_the_run_before_their_step_is_saved(tmp_path):
    with pytest.raises(NothingToTrainOn, match="8 of 8 pictures could not be read"):
        run(tmp_path, pairs=picture_pairs(60), decoder=FakeDecoder(range(2, 1000)))
    assert run.pauses == list(PAUSES_S)
    assert run.saved == ["step-000001", "step-000002"]


class Disagreeing(FakeLearner):
    """Measures other log-probabilities than the engines', from its third step on."""

    def train_policy(self, samples, pictures):
        report = super().train_policy(samples, pictures)
        mean = 0.9 if len(self.trained) > 2 else 0.01
        return replace(report, metrics={**report.metrics, "parity/mean": mean})


def test_a_run_whose_engines_compute_something_else_ends_with_a_checkpoint(tmp_path):
    learner = Disagreeing()
    for step in (3, 4):
        with pytest.raises(ParityError, match=f"differ by 0.9 .* goes on after step {step}"):
            run(tmp_path, learner=learner, every=9)
        assert run.saved[-1] == f"step-{step:06d}"
    run(tmp_path, learner=learner, every=9, parity=ParityConfig(mean=1.0))
    assert run.saved[-1] == f"step-{STEPS:06d}"
    assert len(learner.trained) == STEPS


class Hung(FakeRollout):
    """Gives nothing from the second step on, until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def stream(self, requests, pictures):
        if self.asked:
            self.let_go.wait(PATIENCE_S)
        yield from super().stream(requests, pictures)


def test_what_hangs_in_the_collection_is_not_waited_for(tmp_path, caplog):
    rollout = Hung()
    grpo = GRPOConfig(kl_in="reward")
    pipeline = make_pipeline(tmp_path, rollout=rollout, max_staleness=1, grpo=grpo)
    pipeline.sync()
    pipeline.step()
    late = []
    pipeline.learner.score_policy = lambda samples, pictures: late.append(samples)
    pipeline.collector.close_s = 0.1
    pipeline.close()
    assert not rollout.let_go.is_set()
    assert "what was being collected did not end within 0.1 s" in caplog.text
    rollout.let_go.set()
    pipeline.close()
    assert late == []  # the learner may be another's by now
