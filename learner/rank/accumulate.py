"""Adds up the gradients of many micro-batches, and takes a step's optimiser updates, one or more.

All objectives on response tokens share it. It does not choose the mean: the caller's ``scale`` is
ranks / `learner.loss_divisor.loss_total`, for supervised steps ranks / tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from data.types import TrainSample
from learner.micro_batches import MiniBatch

Term = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
"""A micro-batch's summed loss, sums of its metrics, and largest values of others."""


class Backward(Protocol):
    """Takes a loss and adds its gradients; `learner.rank.deepspeed_engine.TrainEngine` is one."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``; ``last`` marks the update's last one."""


Outcome = TypeVar("Outcome", covariant=True)


class Optimiser(Backward, Protocol[Outcome]):
    """A `Backward` that also applies the gradients, as `TrainEngine` of `deepspeed_engine` does."""

    def step(self, *, last: bool) -> Outcome:
        """Apply them and begin anew; ``last`` marks the last update of a step."""


@dataclass(slots=True)
class Tally:
    """What one rank's micro-batches gave."""

    sums: Counter[str] = field(default_factory=Counter)
    """`loss` and the objective's own."""
    largest: dict[str, float] = field(default_factory=dict)
    """Infinite where a value was NaN."""
    broken: list[str] = field(default_factory=list)
    """Keys of the samples in micro-batches whose loss was not finite."""


def accumulate(
    engine: Backward,
    micro_batches: Sequence[Sequence[TrainSample]],
    term: Callable[[Sequence[TrainSample]], Term],
    *,
    scale: float,
) -> Tally:
    """Add up ``scale`` times the gradients of all micro-batches, and what ``term`` measured.

    A loss that is NaN or infinite makes the whole gradient NaN, so that the optimiser skips the
    step on every rank, even where that loss has a finite gradient.
    """
    tally = Tally()
    for index, samples in enumerate(micro_batches):
        loss, sums, largest = term(samples)
        values = [loss.detach(), *sums.values(), *largest.values()]
        # One transfer from the device per micro-batch.
        total, *rest = torch.stack([value.double() for value in values]).tolist()
        finite = math.isfinite(total)
        engine.backward(
            loss * (scale if finite else math.nan), last=index == len(micro_batches) - 1
        )
        if not finite:
            tally.broken += [sample.key for sample in samples]
        tally.sums["loss"] += total
        for name, value in zip(sums, rest[: len(sums)], strict=True):
            tally.sums[name] += value
        for name, value in zip(largest, rest[len(sums) :], strict=True):
            # NaN is larger than nothing and smaller than nothing: it would come and go.
            value = math.inf if math.isnan(value) else value
            tally.largest[name] = max(value, tally.largest.get(name, value))
    return tally


def take_updates(
    engine: Optimiser[Outcome],
    mini_batches: Sequence[MiniBatch],
    term: Callable[[Sequence[TrainSample]], Term],
    *,
    scales: Sequence[float],
) -> list[tuple[Tally, Outcome]]:
    """Take one optimiser update for each mini-batch, in order; return what each of them did.

    ``scales`` are those of the mini-batches' gradients. All ranks call this with as many.
    """
    done = []
    for index, (mini, scale) in enumerate(zip(mini_batches, scales, strict=True)):
        tally = accumulate(engine, mini.micro_batches, term, scale=scale)
        done.append((tally, engine.step(last=index == len(mini_batches) - 1)))
    return done
