"""Learning-rate schedules."""

import pytest

from configs.learner import OptimizerConfig
from learner.rank.deepspeed_engine import lr_at


def test_warm_up_rises_to_the_rate():
    config = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [lr_at(step, steps=10, config=config) for step in range(6)] == [
        0.25, 0.5, 0.75, 1.0, 1.0, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_ends_at_a_tenth_and_stays_there(schedule):
    config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule=schedule)
    rates = [lr_at(step, steps=12, config=config) for step in range(2, 20)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10:] == pytest.approx([0.1] * 8)
    assert rates == sorted(rates, reverse=True)
