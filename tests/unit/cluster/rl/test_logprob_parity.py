"""The limits of parity: rounding to bf16 keeps them, wrong weights do not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.rl.logprob_parity import check_parity, worst_gaps
from configs.learner import ParityConfig
from data.errors import ParityError
from learner.gaps import BINS, BINS_PER_OCTAVE, MAX, MEAN, P999, SMALLEST, gap_figures, gap_sums

RECORDED = json.loads((Path(__file__).parent / "gaps_smollm2.json").read_text())
"""Gaps of SmolLM2-135M in bf16, by what the learner's weights were (`tests/gpu/record_gaps.py`)."""
STEPS, TOKENS, PROBE = 100, 5000, 64
SEEN_DRIFT = 1e-4
"""Learning rate times steps from which older weights are seen."""


def passes(gaps: np.ndarray) -> bool:
    measured = gap_figures(gap_sums(gaps), float(gaps.max()))
    try:
        check_parity({**measured, "version": 1.0}, broken=False, limits=ParityConfig())
    except ParityError:
        return False
    return True


def drawn(recorded: dict[str, Any], rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Return the gaps of a step, drawn from recorded ones by bin."""
    counts = np.zeros(BINS)
    counts[recorded["first_bin"] :][: len(recorded["counts"])] = recorded["counts"]
    bins = rng.choice(BINS, tokens, p=counts / counts.sum())
    return SMALLEST * 2.0 ** ((bins + rng.random(tokens)) / BINS_PER_OCTAVE)


def passed(case: str, tokens: int = TOKENS) -> int:
    rng = np.random.default_rng(0)
    return sum(passes(drawn(RECORDED[case], rng, tokens)) for _ in range(STEPS))


def of_kind(kind: str) -> list[str]:
    return [name for name, case in RECORDED.items() if case["kind"] == kind]


@pytest.mark.parametrize("tokens", [PROBE, TOKENS])
@pytest.mark.parametrize("case", of_kind("rounding"))
def test_every_step_of_recorded_rounding_passes(case: str, tokens: int) -> None:
    assert passed(case, tokens) == STEPS


@pytest.mark.parametrize("case", of_kind("fault"))
def test_no_step_of_recorded_wrong_weights_passes(case: str) -> None:
    assert passed(case) == 0


@pytest.mark.parametrize("case", of_kind("drift"))
def test_older_weights_are_refused_once_they_differ_by_more_than_rounding(case: str) -> None:
    assert passed(case) == (0 if float(case.split()[-1]) >= SEEN_DRIFT else STEPS)


def test_a_few_tokens_in_ten_thousand_may_be_far_off_and_one_in_a_hundred_may_not() -> None:
    gaps = np.random.default_rng(2).exponential(0.01, 250_000)
    gaps[:25] = 6.0
    assert passes(gaps)
    gaps[:2500] = 1.5  # as where the traces of one picture are off
    assert gaps.mean() < ParityConfig().mean
    assert not passes(gaps)


def test_weights_that_are_off_everywhere_are_refused_without_a_tail() -> None:
    assert not passes(np.full(64, 0.3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gap_that_is_no_number_is_refused(value: float) -> None:
    assert not passes(np.array([0.0] * 99 + [value]))


def test_the_worst_of_several_measurements_counts() -> None:
    first, second = {MEAN: 0.1, MAX: 2.0, "other": 9.0}, {MEAN: 0.3, MAX: 1.0}
    assert worst_gaps(first, {}, second) == {MEAN: 0.3, MAX: 2.0}
    assert worst_gaps({}, {}) == {}


def test_a_broken_step_says_nothing_of_the_engines() -> None:
    metrics = {MEAN: np.inf, P999: np.inf, "version": 1.0}
    check_parity(metrics, broken=True, limits=ParityConfig())
