"""One gradient from many micro-batches, and which samples broke it."""

import numpy as np
import torch

from data.types import TrainSample
from learner.rank.accumulate import accumulate
from tests.unit.learner.rank.objective import PlainEngine


def samples(*keys: str) -> list[TrainSample]:
    return [
        TrainSample(
            key=key, content=(), prompt_ids=np.array([1]), response_ids=np.array([2]), advantage=1.0
        )
        for key in keys
    ]


def test_losses_and_sums_are_added_and_the_largest_is_kept():
    weight = torch.tensor(2.0, requires_grad=True)
    losses = {"a": 1.0, "b": 3.0, "c": 5.0}

    def term(some):
        total = torch.tensor(sum(losses[one.key] for one in some))
        return weight * total, {"count": torch.tensor(len(some))}, {"top": -total}

    engine = PlainEngine()
    tally = accumulate(engine, [samples("a"), samples("b", "c"), []], term, scale=0.5)
    assert weight.grad.item() == 0.5 * 9
    assert tally.sums == {"loss": 18.0, "count": 3.0}
    assert tally.largest == {"top": 0.0}
    assert tally.broken == []
    assert engine.ended


def test_largest_values_may_all_be_negative():
    weight = torch.tensor(1.0, requires_grad=True)
    tally = accumulate(
        PlainEngine(),
        [samples("a"), samples("b")],
        lambda some: (weight * 1.0, {}, {"top": torch.tensor(-1.0 - len(some[0].key))}),
        scale=1.0,
    )
    assert tally.largest == {"top": -2.0}


def test_an_infinite_loss_names_its_samples_and_breaks_a_finite_gradient():
    weight = torch.tensor(2.0, requires_grad=True)

    def term(some):
        away = torch.tensor(torch.inf if some[0].key == "b" else 0.0)
        return weight + away, {}, {}

    tally = accumulate(
        PlainEngine(), [samples("a"), samples("b", "c"), samples("d")], term, scale=1.0
    )
    assert tally.broken == ["b", "c"]
    assert weight.grad.isnan()


def test_a_nan_loss_names_its_samples():
    weight = torch.tensor(2.0, requires_grad=True)
    tally = accumulate(
        PlainEngine(), [samples("a")], lambda _: (weight * torch.nan, {}, {}), scale=1.0
    )
    assert tally.broken == ["a"]
    assert np.isnan(tally.sums["loss"])


def test_a_largest_value_that_is_no_number_stays_visible():
    weight = torch.tensor(1.0, requires_grad=True)
    tops = iter([torch.tensor(float("nan")), torch.tensor(1.0)])
    tally = accumulate(
        PlainEngine(),
        [samples("a"), samples("b")],
        lambda some: (weight * 1.0, {}, {"gap": next(tops)}),
        scale=1.0,
    )
    assert tally.largest == {"gap": float("inf")}
