"""A round's candidates: the same for every trace, with the bank's, whatever the order."""

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import BankConfig, RewardConfig
from data.types import Side
from reward.bank import CandidateBank
from reward.round import rank_round
from tests.builders import make_pair, make_trajectory

REWARD = RewardConfig(model="m", bank=BankConfig(recent=2, hard=3, capacity=6))


def step(start, *, count=4, seed=0):
    """Return the trajectories, pairs and vectors of a step."""
    rng = np.random.default_rng([seed, start])
    pairs = {serial: make_pair(f"p{serial}") for serial in range(start, start + count)}
    traces = [
        make_trajectory(serial, side, one) for serial in pairs for side in Side for one in (0, 1)
    ]
    vectors = {}
    for one in traces:
        vector = rng.normal(size=4)
        vectors[str(one.key)] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return traces, pairs, vectors


def remember(bank, found):
    for side, own in found.candidates.items():
        bank.add(side, own)


def run(steps, *, shuffle=None, reward=REWARD):
    """Rank steps one after another with one bank; return the last one's results by key."""
    bank = CandidateBank(reward.bank)
    for traces, pairs, vectors in steps:
        if shuffle is not None:
            traces = [traces[i] for i in shuffle.permutation(len(traces))]
            names = [str(one.key) for one in traces]
            vectors = {names[i]: vectors[names[i]] for i in shuffle.permutation(len(names))}
        found = rank_round(traces, vectors, pairs, bank, reward=reward)
        remember(bank, found)
        assert found.dropped == []
    return {str(one.trajectory.key): one for one in found.ranked}


STEPS = [step(start) for start in (0, 4, 8, 12)]


def test_every_trace_of_a_side_meets_the_same_candidates():
    found = run(STEPS)
    assert len(found) == 16
    for side in Side:
        some = [one for one in found.values() if one.trajectory.key.group.side is side]
        assert len({one.candidates_id for one in some}) == 1
        # Four pairs of two traces, two recent ones, three mined ones.
        assert {one.candidates_size for one in some} == {4 * 2 + 2 + 3}
    assert len({one.candidates_id for one in found.values()}) == 2


def test_neither_ranks_nor_the_bank_depend_on_arrival_order():
    before = run(STEPS)
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert run(STEPS, shuffle=rng) == before


def test_another_set_of_candidates_has_another_id():
    ids = {
        one.candidates_id for found in (run(STEPS[:1]), run(STEPS[:2])) for one in found.values()
    }
    assert len(ids) == 4


def test_the_bank_makes_the_task_harder_and_its_candidates_are_never_positive():
    without = run([STEPS[-1]], reward=replace(REWARD, bank=BankConfig()))
    within = run(STEPS)
    for key, one in within.items():
        assert one.rank >= without[key].rank
        assert one.positives == without[key].positives
        assert one.accuracy <= without[key].accuracy


def test_the_judge_is_shown_the_steps_own_traces_only():
    within = run(STEPS)
    for one in within.values():
        assert {int(name.split("/")[0][2:]) for name in one.negatives} <= {12, 13, 14, 15}
        assert len(one.negatives) == 3


def test_an_item_remembered_from_an_earlier_step_is_no_negative_of_itself():
    traces, pairs, vectors = STEPS[0]
    again = {serial + 4: replace(pair) for serial, pair in pairs.items()}
    later = [
        replace(
            one, key=replace(one.key, group=replace(one.key.group, serial=one.key.group.serial + 4))
        )
        for one in traces
    ]
    moved = {str(b.key): vectors[str(a.key)] for a, b in zip(traces, later, strict=True)}
    reward = replace(REWARD, bank=BankConfig(recent=4))
    found = run([STEPS[0], (later, again, moved)], reward=reward)
    assert {one.false_negatives for one in found.values()} == {1}
    assert {one.candidates_size for one in found.values()} == {12}


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_restart_between_steps_changes_no_reward(odd, tmp_path):
    bank = CandidateBank(REWARD.bank)
    for index, (traces, pairs, vectors) in enumerate(STEPS):
        found = rank_round(traces, vectors, pairs, bank, reward=REWARD)
        remember(bank, found)
        if index == odd:
            bank.save(tmp_path / "bank.npz")
            bank = CandidateBank(REWARD.bank)
            bank.load(tmp_path / "bank.npz")
    assert {str(one.trajectory.key): one for one in found.ranked} == run(STEPS)
