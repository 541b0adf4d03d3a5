"""Mean, quantile and largest of the gaps of log-probabilities, over all ranks' tokens."""

import numpy as np
import pytest

from learner.gaps import MAX, MEAN, P999, gap_figures, gap_sums


def figures(gaps: np.ndarray) -> dict[str, float]:
    return gap_figures(gap_sums(gaps), float(np.max(gaps, initial=0.0)))


def test_mean_and_largest_are_exact_and_the_quantile_is_within_a_bin() -> None:
    gaps = np.random.default_rng(0).lognormal(-4, 2, 20_000)
    measured = figures(gaps)
    assert measured[MEAN] == pytest.approx(gaps.mean())
    assert measured[MAX] == gaps.max()
    exact = np.sort(gaps)[-21]  # 20 of 20,000 are larger
    assert exact <= measured[P999] < 1.1 * exact


def test_sums_of_ranks_give_the_figures_of_all_tokens() -> None:
    gaps = np.random.default_rng(1).exponential(0.01, 999)
    sums = sum(gap_sums(part) for part in (gaps[:100], gaps[:0], gaps[100:]))
    assert gap_figures(sums, float(gaps.max())) == pytest.approx(figures(gaps))


@pytest.mark.parametrize("tokens", [0, 9])
def test_equal_log_probabilities_and_no_tokens_have_no_gap(tokens: int) -> None:
    assert figures(np.zeros(tokens)) == {MEAN: 0.0, P999: 0.0, MAX: 0.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gap_that_is_no_number_makes_the_mean_infinite(value: float) -> None:
    assert gap_figures(gap_sums(np.array([0.0, value])), np.inf)[MEAN] == np.inf


def test_four_tokens_far_off_in_a_small_sample_are_no_tail() -> None:
    gaps = np.full(60, 0.01)
    gaps[:4] = 0.6
    assert figures(gaps)[P999] < 0.02
    gaps[4] = 0.6
    assert figures(gaps)[P999] == pytest.approx(0.6)


def test_the_smallest_and_the_largest_gaps_fall_into_the_outer_bins() -> None:
    measured = figures(np.concatenate([np.full(900, 1e-30), np.full(100, 1e9)]))
    assert measured == {MEAN: pytest.approx(1e8), P999: 1e9, MAX: 1e9}
