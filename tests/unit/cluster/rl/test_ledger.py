"""Issued = trained + dropped: every trace ends once, and the totals go on after a resume."""

import json
from dataclasses import dataclass, field

import pytest

from cluster.rl.ledger import Ledger
from data.errors import ClusterError
from data.types import DroppedTrajectory, GroupKey, Side, TrajectoryKey
from tests.builders import make_pair, make_trajectory


@dataclass
class Scored:
    """As much of a scored trace as the ledger reads."""

    trajectory: object


@dataclass
class Step:
    """As much of a step as the ledger reads."""

    pairs: dict
    scored: list
    dropped: list = field(default_factory=list)


def make_step(*, lost=()):
    """Return a pair's step with 2 siblings a side, of which the ``lost`` are dropped."""
    pair = make_pair("p0")
    keys = [TrajectoryKey(GroupKey(0, "p0", side), one) for side in Side for one in (0, 1)]
    scored = [
        Scored(make_trajectory(0, key.group.side, key.sibling)) for key in keys if key not in lost
    ]
    return Step({0: pair}, scored, [DroppedTrajectory(key, "stale", "old") for key in lost]), keys


def test_what_taught_was_trained_and_the_rest_dropped_by_reason() -> None:
    _, keys = make_step()
    step, _ = make_step(lost=keys[:1])
    ledger = Ledger(siblings=2)
    assert ledger.close(step, {keys[2], keys[3]}, broken=False) == {"stale": 1, "no_spread": 1}
    ledger.check(issued=4)
    assert ledger.close(make_step()[0], set(keys), broken=True) == {"broken_step": 4}
    ledger.check(issued=8)
    resumed = Ledger(siblings=2)
    resumed.restore(json.loads(json.dumps(ledger.state())))
    resumed.check(issued=8)
    assert resumed.trained == 2


def test_a_trace_without_an_end_or_with_two_is_refused() -> None:
    step, keys = make_step()
    missing = Step(step.pairs, step.scored[1:])
    with pytest.raises(ClusterError, match="1 without an end"):
        Ledger(siblings=2).close(missing, set(), broken=False)
    twice = Step(step.pairs, step.scored, [DroppedTrajectory(keys[0], "stale", "old")])
    with pytest.raises(ClusterError, match="1 with another"):
        Ledger(siblings=2).close(twice, set(), broken=False)


def test_totals_that_do_not_add_up_are_refused() -> None:
    step, keys = make_step()
    ledger = Ledger(siblings=2)
    ledger.close(step, set(keys), broken=False)
    with pytest.raises(ClusterError, match="expected 5 traces issued so far"):
        ledger.check(issued=5)
