"""The paired bootstrap: pairing, sets as strata, a p-value that agrees with the normal one."""

import math

import numpy as np
import pytest

from data.errors import DataError
from evaluation.metrics import estimate
from evaluation.scores.paired import compare


def by_query(values) -> dict[str, float]:
    return {f"q{number}": float(value) for number, value in enumerate(values)}


def compared(first, second, *, resamples=2000):
    return compare({"s": by_query(first)}, {"s": by_query(second)}, resamples=resamples, seed=1)


def test_equal_systems_do_not_differ() -> None:
    difference = compared([1, 0, 1], [1, 0, 1])
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.p_value == 1
    assert (difference.queries, difference.left_out) == (3, 0)


def test_a_gain_on_every_query_is_certain() -> None:
    difference = compared([0.5] * 20, [0.25] * 20, resamples=999)
    assert (difference.mean, difference.low, difference.high) == (0.25, 0.25, 0.25)
    assert difference.p_value == 2 / 1000  # the least that 999 samples can say


def test_what_both_find_hard_is_no_noise() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(200)
    first = hard + 0.01 + rng.normal(0, 0.02, 200)
    difference = compared(first, hard)
    assert difference.low > 0
    assert difference.p_value < 0.01
    unpaired = estimate(first, resamples=500, seed=0), estimate(hard, resamples=500, seed=0)
    assert unpaired[0].low < unpaired[1].high  # the intervals of each alone overlap


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, -1.5])
def test_interval_and_p_agree_with_the_normal_ones(shift) -> None:
    sample = np.random.default_rng(3).normal(size=400)
    sample = (sample - sample.mean()) / sample.std()
    error = 1 / math.sqrt(400)
    difference = compared(sample + shift * error, np.zeros(400), resamples=4000)
    assert difference.mean == pytest.approx(shift * error)
    assert difference.low == pytest.approx((shift - 1.96) * error, abs=0.1 * error)
    assert difference.high == pytest.approx((shift + 1.96) * error, abs=0.1 * error)
    assert difference.p_value == pytest.approx(math.erfc(abs(shift) / math.sqrt(2)), abs=0.04)


def test_the_other_way_round_is_the_negative() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.integers(0, 2, (2, 50))
    there, back = compared(first, second), compared(second, first)
    assert back.mean == -there.mean
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p_value == there.p_value


def test_sets_weigh_the_same_and_are_not_resampled() -> None:
    first = {"large": by_query([1] * 90), "small": by_query([0] * 10)}
    second = {"large": by_query([0] * 90), "small": by_query([0] * 10)}
    difference = compare(first, second, resamples=100, seed=0)
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert difference.queries == 100


def test_queries_are_paired_by_their_key_and_the_others_counted() -> None:
    first = {"s": {"a": 1.0, "b": 0.0, "only": 1.0}}
    second = {"s": {"other": 0.0, "b": 0.0, "a": 1.0}}
    difference = compare(first, second, resamples=50, seed=0)
    assert (difference.mean, difference.queries, difference.left_out) == (0, 2, 2)


def test_results_of_sets_are_compared_by_their_main_metric(make_result) -> None:
    first, second = make_result("s", "abc", "abc"), make_result("s", "bac", "abc")
    difference = compare(
        {first.name: first.by_query()}, {second.name: second.by_query()}, resamples=50, seed=0
    )
    assert difference.mean == 0.5


def test_other_sets_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 and 2 sets; only one has \['b'\]"):
        compare({"a": {"q": 1.0}}, {"a": {"q": 1.0}, "b": {}}, resamples=9, seed=0)
    with pytest.raises(DataError, match="0 and 0 sets"):
        compare({}, {}, resamples=9, seed=0)


def test_a_set_without_a_shared_query_is_refused() -> None:
    with pytest.raises(DataError, match="set a: no query has a value from both, of 1 and 1"):
        compare({"a": {"q": 1.0}}, {"a": {"x": 1.0}}, resamples=9, seed=0)
