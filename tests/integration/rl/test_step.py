"""The RL step over fakes: refilled and replayed, every pair and every trace in its place."""

import json
from collections import Counter

import pytest
import ray

from cluster.rl.held_out import measure_held_out
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from configs.common import RunConfig
from configs.learner import GRPOConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.errors import WeightSyncError
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.stores.facts import held_out_recipe
from data.stores.traces import TraceStore, held_out_stores
from data.types import Item, Kind, merge_pictures
from learner.objectives import TokenScores
from tests.builders import loaded_set, make_pair, write_picture
from tests.fakes import FakeEmbedder, FakeLearner, FakeRollout
from tests.simulation import decoder

pytestmark = pytest.mark.usefixtures("local_ray")
PAIRS = 4
FIRST_DULL = 5
"""Serial numbers below this have no spread in the tests of refill."""


def make_pipeline(rollout=None, *, learner=None, pairs=None, alike=False, **grpo):
    """Return a pipeline; ``alike``: all traces of a group are paid the same, long or short."""
    config = RLConfig(
        run=RunConfig(dir="unused"),
        reasoner="unused",
        # Siblings differ in length, so that all groups but dull ones have spread.
        reward=RewardConfig(
            model="unused",
            outcome_weight=0.0 if alike else 0.8,
            length_weight=0.0 if alike else 1.0,
            length_budget=1,
        ),
        pairs=PAIRS,
        siblings=2,
        grpo=GRPOConfig(**grpo),
    )
    made = pairs or tuple(make_pair(f"p{index}") for index in range(60))
    pipeline = Pipeline(
        config,
        feed=PairFeed(
            [loaded_set(name="set", pairs=made, bad_rows=())], {"set": 1.0}, batch=PAIRS, seed=0
        ),
        rollout=rollout or FakeRollout(),
        scorer=Scorer(
            config.reward,
            embedder=FakeEmbedder(),
            judge=None,
            item_tokens=0,
            max_frames=8,
            relevance=Relevance(made),
        ),
        decoder=decoder(),
        learner=learner or FakeLearner(),
        store=None,
    )
    pipeline.sync()  # as a job does before its first step
    return pipeline


def measured(pairs, pipeline, root, step=0):
    """Return held-out metrics, as the job measures them after a step, and the kept traces."""
    recipe = held_out_recipe(
        pipeline.weights_digest,
        pipeline.config.rollout,
        pipeline.config.data.media,
        templates=pipeline.config.data.templates,
        step=step,
        version=pipeline.version,
    )
    traces = TraceStore(root, recipe)
    return measure_held_out(pairs, pipeline.collector, traces=traces, made_by="a test"), traces


def test_held_out_figures_are_given_over_queries_over_sets_and_by_set(tmp_path):
    pipeline = make_pipeline()
    pairs = [make_pair(f"p{n}", source="a" if n < 3 else "b") for n in range(4)]
    found, _ = measured(pairs, pipeline, tmp_path)
    by_set = {name: found[f"eval/hit_at_1_by_set/{name}"] for name in "ab"}
    assert by_set["b"] == 1.0  # its only candidate is right
    assert found["eval/hit_at_1"] == pytest.approx((3 * by_set["a"] + 1) / 4)
    assert found["eval/hit_at_1_over_sets"] == pytest.approx((by_set["a"] + 1) / 2)


def test_held_out_traces_are_kept_by_step_and_never_sampled_again(tmp_path):
    pipeline = make_pipeline()
    pairs = [make_pair(f"p{n}") for n in range(3)]
    first, traces = measured(pairs, pipeline, tmp_path)
    assert len(pipeline.rollout.asked[-1]) == 2 * len(pairs)
    assert [trace.of.item for trace in traces.all()] == [
        item for pair in pairs for item in (pair.query, pair.target)
    ]
    again, _ = measured(pairs, pipeline, tmp_path)
    assert (again, pipeline.rollout.asked[-1]) == (first, [])
    pipeline.step()
    measured(pairs, pipeline, tmp_path, step=1)
    assert len(pipeline.rollout.asked[-1]) == 2 * len(pairs)
    stores = held_out_stores(tmp_path)
    assert list(stores) == [0, 1]
    assert stores[0].folder == traces.folder != stores[1].folder


def test_another_gold_of_a_held_out_query_that_was_not_drawn_counts_as_right(tmp_path):
    pairs = [make_pair("p0"), make_pair("p1")]
    gold = make_pair("p2", query=pairs[0].query, target=pairs[1].target)
    hits = []
    for known in (pairs, [*pairs, gold]):
        pipeline = make_pipeline()
        pipeline.scorer.relevance = Relevance(known)
        hits.append(measured(pairs, pipeline, tmp_path)[0]["eval/hit_at_1"])
    # All that query 0 can retrieve is right for it now.
    assert hits[1] >= max(hits[0], 0.5)


def test_where_nothing_held_out_is_left_that_is_logged_and_the_metric_left_out(tmp_path, caplog):
    pipeline = make_pipeline()
    pairs = [make_pair("p0"), make_pair("p1")]
    keys = {f"g={n}/p=p{n // 2}/{side}/0" for n, side in enumerate(["query", "target"] * 2)}
    pipeline.scorer.embedder.fails = keys
    assert measured(pairs, pipeline, tmp_path)[0] == {}
    assert "2 of 2 pairs left out (0 traces, 4 embeddings failed)" in caplog.text
    assert "eval/hit_at_1: no held-out pair is left to be measured" in caplog.text


def dull_start(group):
    return group.serial < FIRST_DULL


def test_a_full_step_is_one_round():
    pipeline = make_pipeline(refill=3)
    metrics = pipeline.step().metrics
    assert (metrics["group/count"], metrics["group/no_spread"]) == (2 * PAIRS, 0)
    assert (metrics["group/refill_rounds"], metrics["group/refilled"]) == (0, 0)
    assert len(pipeline.rollout.asked) == 1


def test_a_version_that_an_engine_does_not_take_is_published_once_more():
    pipeline = make_pipeline(FakeRollout(failing_pulls=1))
    assert pipeline.learner.announced == [(1, False), (1, True)]
    assert pipeline.rollout.version == 1


def test_a_version_that_an_engine_does_not_take_again_ends_the_run():
    with pytest.raises(WeightSyncError, match="version 1: told to fail"):
        make_pipeline(FakeRollout(failing_pulls=2))


def test_without_refill_a_short_step_stays_short():
    pipeline = make_pipeline(FakeRollout(dull_start))
    metrics = pipeline.step().metrics
    [samples] = pipeline.learner.trained
    # They are in the mean and have their KL; nothing was learnt from them.
    assert [sample.advantage for sample in samples] == [0.0] * 4 * PAIRS
    assert (metrics["group/no_spread"], metrics["group/refill_rounds"]) == (2 * PAIRS, 0)
    assert (metrics["traces/trained"], metrics["dropped/no_spread"]) == (0, 4 * PAIRS)


def test_groups_without_spread_are_replaced_by_further_pairs():
    pipeline = make_pipeline(FakeRollout(dull_start), refill=3)
    metrics = pipeline.step().metrics
    # Serials 0-3 and 4 are dull: 0, then 6, then at that yield 2 more groups of 8.
    assert [len(asked) // 4 for asked in pipeline.rollout.asked] == [4, 4, 3]
    assert metrics["group/refill_rounds"] == 2
    assert metrics["group/refilled"] == 12
    assert metrics["group/no_spread"] == 2 * FIRST_DULL
    assert metrics["group/count"] == 22
    trained = Counter(sample.key.rpartition("/")[0] for sample in pipeline.learner.trained[0])
    assert len(trained) == 12
    assert set(trained.values()) == {2}


def test_refill_ends_at_its_bound():
    pipeline = make_pipeline(FakeRollout(lambda group: True), refill=2)
    metrics = pipeline.step().metrics
    assert len(pipeline.rollout.asked) == 3
    assert (metrics["group/refilled"], metrics["group/no_spread"]) == (0, 3 * 2 * PAIRS)


def test_every_drawn_pair_is_in_the_rows_once_and_every_trace_has_its_end():
    pipeline = make_pipeline(FakeRollout(dull_start), refill=3)
    result = pipeline.step()
    keys = [row["key"] for row in result.rows]
    asked = [str(one.key) for call in pipeline.rollout.asked for one in call]
    assert sorted(keys) == sorted(asked)
    assert len(set(keys)) == len(keys)
    trained = {sample.key: sample.advantage for sample in pipeline.learner.trained[0]}
    assert {row["key"] for row in result.rows if row["advantage"] is not None} == set(trained)
    assert len({row["pair"] for row in result.rows}) == pipeline.collector.serial == 11


def test_every_round_ranks_among_its_own_candidates():
    pipeline = make_pipeline(FakeRollout(dull_start), refill=3)
    rows = pipeline.step().rows
    rounds = [{str(one.key) for one in call} for call in pipeline.rollout.asked]
    declared = []
    for keys in rounds:
        some = [row for row in rows if row["key"] in keys]
        assert {row["candidates/size"] for row in some} == {len(keys) // 2}
        assert all(set(row["retrieved"]) <= keys for row in some)
        declared.append({row["candidates/id"] for row in some})
    assert not declared[0] & declared[1] | declared[1] & declared[2]


def test_a_resumed_refill_neither_repeats_nor_skips_pairs(tmp_path):
    grpo = {"refill": 3, "replay_groups": 8}
    straight = make_pipeline(FakeRollout(lambda group: group.serial % 3 > 0), **grpo)
    stopped = make_pipeline(FakeRollout(lambda group: group.serial % 3 > 0), **grpo)
    expected = [straight.step() for _ in range(4)]
    for _ in range(2):
        stopped.step()
    state = json.loads(json.dumps(stopped.state()))
    stopped.save(tmp_path)
    resumed = make_pipeline(FakeRollout(lambda group: group.serial % 3 > 0), **grpo)
    resumed.load(tmp_path, state)
    resumed.sync()
    for step in (2, 3):
        assert resumed.step().rows == expected[step].rows
        trained, wanted = resumed.learner.trained[step - 2], straight.learner.trained[step]
        assert [(s.key, s.advantage) for s in trained] == [(s.key, s.advantage) for s in wanted]
    assert resumed.state() == straight.state()


def test_a_short_step_is_filled_up_with_recent_groups():
    # The second step has 2 groups with spread of its own.
    pipeline = make_pipeline(FakeRollout(lambda group: 4 <= group.serial < 7), replay_groups=4)
    pipeline.step()
    metrics = pipeline.step().metrics
    assert (metrics["group/no_spread"], metrics["group/replayed"]) == (6, 4)
    assert metrics["staleness/max"] == 1
    first, second = pipeline.learner.trained
    again = [sample for sample in second if sample.old_logprobs is not None]
    assert len(again) == 8
    # Each replayed group takes the place of one without spread: the step is as large as ever.
    assert len(second) == 4 * PAIRS
    assert sum(sample.advantage != 0 for sample in second) == 12
    assert {sample.key for sample in again} < {sample.key for sample in first}
    assert all((sample.old_logprobs == sample.logprobs).all() for sample in again)


def test_a_round_whose_traces_differ_in_length_alone_is_refilled():
    """Penalties come after the question whether a group was paid alike."""
    pipeline = make_pipeline(FakeRollout(), refill=1, overlong_penalty=1.0, alike=True)
    metrics = pipeline.step().metrics
    assert (metrics["group/refill_rounds"], metrics["group/refilled"]) == (1, 0)
    assert metrics["group/no_spread"] == metrics["group/count"] == 2 * 2 * PAIRS
    assert pipeline.learner.trained == [[]]


def test_with_tis_a_replayed_trace_brings_what_the_learner_gave_it_when_it_came_in():
    learner = FakeLearner()
    learner.score_policy = lambda samples, pictures: {
        one.key: TokenScores(one.logprobs + 0.25, None) for one in samples
    }
    pipeline = make_pipeline(
        FakeRollout(lambda group: group.serial >= PAIRS),
        learner=learner,
        replay_groups=8,
        tis_cap=2.0,
    )
    pipeline.step()
    pipeline.step()
    first, again = learner.trained
    assert all(sample.old_logprobs is None for sample in first)
    assert len(again) == 4 * PAIRS
    assert all((sample.old_logprobs == sample.logprobs + 0.25).all() for sample in again)


def test_a_replayed_group_is_not_replayed_again():
    pipeline = make_pipeline(FakeRollout(lambda group: group.serial >= 4), replay_groups=8)
    counts = [pipeline.step().metrics for _ in range(3)]
    assert [metrics["group/replayed"] for metrics in counts] == [0, 8, 0]
    assert [metrics["staleness/max"] for metrics in counts] == [0, 1, 0]


def test_what_broke_a_step_is_not_replayed():
    pipeline = make_pipeline(learner=FakeLearner(breaks=True), replay_groups=8)
    assert pipeline.step().broken
    assert pipeline.state()["replay"] == []


def test_the_learner_gets_the_pictures_of_all_rounds_and_of_replayed_groups(tmp_path):
    paths = [str(write_picture(tmp_path / f"{index}.png")) for index in range(60)]
    pairs = tuple(
        make_pair(f"p{index}", query=Item(text="q", kind=Kind.IMAGE, uris=(path,)))
        for index, path in enumerate(paths)
    )
    pipeline = make_pipeline(
        FakeRollout(lambda group: group.serial >= 4), pairs=pairs, refill=1, replay_groups=8
    )
    pipeline.step()
    pipeline.step()
    for samples, pictures in zip(pipeline.learner.trained, pipeline.learner.pictures, strict=True):
        shown = {part.uri for s in samples for part in s.content if not isinstance(part, str)}
        assert len(shown) == PAIRS
        assert shown <= merge_pictures(ray.get(list(pictures.refs))).keys() == pictures.sizes.keys()
    assert "pixels" not in json.dumps(pipeline.state())


def test_a_group_whose_picture_is_gone_is_not_replayed(tmp_path, caplog):
    paths = [write_picture(tmp_path / f"{index}.png") for index in range(60)]
    pairs = tuple(
        make_pair(f"p{index}", query=Item(text="q", kind=Kind.IMAGE, uris=(str(path),)))
        for index, path in enumerate(paths)
    )
    pipeline = make_pipeline(
        FakeRollout(lambda group: group.serial >= 4), pairs=pairs, replay_groups=8
    )
    pipeline.step()
    lost = next(p.uri for s in pipeline.learner.trained[0] for p in s.content[:1] if p != "q")
    (tmp_path / lost.rpartition("/")[2]).unlink()
    assert pipeline.step().metrics["group/replayed"] == 7
    assert "not replayed" in caplog.text
