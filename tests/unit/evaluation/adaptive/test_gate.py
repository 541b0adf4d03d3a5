"""Gates that learn in small worlds where it is known which queries need a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from evaluation.adaptive.curve import path, tokens_for
from evaluation.adaptive.effects import TraceEffects
from evaluation.adaptive.figures import AdaptiveFigures
from evaluation.adaptive.gate import adaptive_figures, chosen_threshold, gate_scores
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import Evaluation

QUERIES = 400


def world(seed: int, *, signal: bool = True, queries: int = QUERIES) -> TraceEffects:
    """Return queries of which a third need their trace, which the first feature tells or nothing.

    The trace harms few of the others.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(queries, 6)).astype(np.float32)
    needs = (features[:, 0] if signal else rng.normal(size=queries)) > 0.43
    return TraceEffects(
        features=features,
        hit_without=~needs,
        hit_with=needs | (rng.random(queries) < 0.98),
        tokens=rng.integers(20, 60, size=queries).astype(float),
        excluded={},
    )


def figures(train: TraceEffects, held_out: TraceEffects) -> AdaptiveFigures:
    return adaptive_figures(train, held_out, reasoner="eg_rl", resamples=60, seed=0)


@pytest.fixture(scope="module")
def learned() -> AdaptiveFigures:
    return figures(world(1), world(2))


def test_a_gate_finds_the_queries_that_need_a_trace(learned: AdaptiveFigures) -> None:
    saving = learned.saving
    assert saving.of_oracle.mean > 0.9
    assert saving.of_oracle.low > 0.7
    assert saving.random_of_oracle.mean < 0.2
    assert saving.oracle < saving.gate < saving.random < learned.tokens
    for point in learned.points[4:8]:
        assert point.random.high < point.gate.mean <= point.oracle.mean + 1e-9


def test_the_threshold_of_the_training_queries_holds_on_others(learned: AdaptiveFigures) -> None:
    at = learned.at_threshold
    assert at.hit_at_1.mean == pytest.approx(learned.target, abs=0.03)
    assert at.tokens.mean < 0.5 * learned.tokens
    assert at.traced == pytest.approx(at.tokens.mean / learned.tokens, abs=0.03)


def test_curves_begin_without_traces_and_end_with_all(learned: AdaptiveFigures) -> None:
    first, last = learned.points[0], learned.points[-1]
    assert (first.tokens, last.tokens) == (0, learned.tokens)
    assert first.gate == first.random == first.oracle
    assert first.gate.mean == pytest.approx(learned.never.mean)
    assert last.gate.mean == last.random.mean == pytest.approx(learned.always.mean)
    assert last.oracle.mean == pytest.approx(learned.never.mean + learned.helped)
    assert learned.always.mean == pytest.approx(last.oracle.mean - learned.harmed)


def test_figures_survive_the_disk(learned: AdaptiveFigures, tmp_path: Path) -> None:
    evaluation = Evaluation(results=(), queries=(), adaptive=learned)
    save_evaluation(evaluation, tmp_path)
    assert load_evaluation(tmp_path) == evaluation


def test_without_signal_a_gate_is_no_better_than_a_random_one() -> None:
    result = figures(world(1, signal=False), world(2, signal=False))
    assert all(abs(p.gate.mean - p.random.mean) < 0.04 for p in result.points)
    assert result.saving.gate == pytest.approx(result.saving.random, abs=0.1 * result.tokens)


def test_the_same_seed_gives_the_same_figures(learned: AdaptiveFigures) -> None:
    assert figures(world(1), world(2)) == learned


def test_traces_that_change_nothing_are_never_needed() -> None:
    useless = [replace(w, hit_with=w.hit_without) for w in (world(1), world(2))]
    result = figures(*useless)
    assert (result.saving.gate, result.saving.random, result.saving.oracle) == (0, 0, 0)
    assert result.saving.of_oracle.mean == 1
    assert (result.at_threshold.traced, result.at_threshold.tokens.mean) == (0, 0)


def test_where_all_queries_need_their_trace_nothing_can_be_saved() -> None:
    nothing, everything = np.zeros(QUERIES, bool), np.ones(QUERIES, bool)
    needed = [replace(w, hit_without=nothing, hit_with=everything) for w in (world(1), world(2))]
    result = figures(*needed)
    assert result.saving.of_oracle is None
    assert result.saving.gate == result.saving.oracle == pytest.approx(result.tokens)
    assert result.at_threshold.traced == 1
    assert result.at_threshold.hit_at_1.mean == 1


@pytest.mark.parametrize("helped", [0, 1, QUERIES - 1, QUERIES])
def test_of_one_class_nothing_is_learned_and_all_queries_are_alike(helped: int) -> None:
    helps = np.arange(QUERIES) < helped
    train = replace(world(1), hit_without=~helps, hit_with=np.ones(QUERIES, bool))
    of_train, scores = gate_scores(train, world(2), seed=0)
    assert set(of_train) == set(scores) == {helped / QUERIES}
    result = figures(train, world(2))
    assert all(p.gate.mean == pytest.approx(p.random.mean) for p in result.points)
    assert result.at_threshold.traced in (0, 1)


def test_two_helped_queries_are_enough_to_learn_from() -> None:
    helps = np.arange(QUERIES) < 2
    train = replace(world(1), hit_without=~helps, hit_with=np.ones(QUERIES, bool))
    _, scores = gate_scores(train, world(2), seed=0)
    assert len(set(scores)) > 1


def test_no_query_is_refused_with_what_excluded_them() -> None:
    nothing = replace(world(1, queries=0), excluded={"trace failed": 3})
    with pytest.raises(DataError, match="found none; 3 excluded: trace failed; leave"):
        figures(nothing, world(2))
    with pytest.raises(DataError, match="expected held-out queries"):
        figures(world(1), nothing)


def by_hand() -> TraceEffects:
    """Return a query that is helped, one that is harmed, and two that stay as they are."""
    return TraceEffects(
        features=np.zeros((4, 1), np.float32),
        hit_without=np.array([False, True, True, False]),
        hit_with=np.array([True, False, True, False]),
        tokens=np.array([8.0, 4.0, 4.0, 16.0]),
        excluded={},
    )


def test_a_path_follows_the_order_and_leaves_out_what_is_never_traced() -> None:
    tokens, hits = path(np.array([1, 0, 0, -1]), by_hand(), np.ones(4))
    assert tokens.tolist() == [0, 2, 4]
    assert hits.tolist() == [0.5, 0.25, 0.5]
    # The first query twice in place of the second.
    tokens, hits = path(np.array([1, 0, 0, -1]), by_hand(), np.array([2.0, 0, 1, 1]))
    assert tokens.tolist() == [0, 1, 5]
    assert hits.tolist() == [0.25, 0.25, 0.75]


def test_the_tokens_for_a_target_lie_between_two_places() -> None:
    tokens, hits = np.array([0.0, 2, 4, 8]), np.array([0.5, 0.25, 0.75, 0.7])
    assert tokens_for(tokens, hits, 0.5 + 1e-12) == 0
    assert tokens_for(tokens, hits, 0.625) == pytest.approx(3.5)
    assert tokens_for(tokens, hits, 0.75) == 4


def test_a_threshold_traces_whole_levels() -> None:
    effects = replace(by_hand(), hit_with=np.array([True, True, True, True]))
    settings = {"resamples": 20, "seed": 0}
    assert chosen_threshold(effects, np.array([0.9, 0.1, 0.5, 0.5]), **settings) == 0.5
    assert chosen_threshold(effects, np.array([0.9, 0.1, 0.5, 0.8]), **settings) == 0.8
    assert chosen_threshold(by_hand(), np.ones(4), **settings) == np.inf
