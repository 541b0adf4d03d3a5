"""A round's candidates: the same for every trace, with the bank's, whatever the order."""

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import BankConfig, RewardConfig
from data.types import Side
from reward.bank import CandidateBank
from reward.round import Ranking
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
        vectors[str(one.key)] = unit(rng.normal(size=4))
    return traces, pairs, vectors


def unit(vector):
    return (vector / np.linalg.norm(vector)).astype(np.float32)


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
        found = Ranking(traces, vectors, pairs, bank, reward=reward).rank()
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
        found = Ranking(traces, vectors, pairs, bank, reward=REWARD).rank()
        remember(bank, found)
        if index == odd:
            bank.save(tmp_path / "bank.npz")
            bank = CandidateBank(REWARD.bank)
            bank.load(tmp_path / "bank.npz")
    assert {str(one.trajectory.key): one for one in found.ranked} == run(STEPS)


def test_changed_embeddings_rank_as_in_a_round_of_their_own():
    traces, pairs, vectors = STEPS[0]
    bank = CandidateBank(BankConfig())
    ranking = Ranking(traces, vectors, pairs, bank, reward=REWARD)
    before = {str(one.trajectory.key): one for one in ranking.rank().ranked}
    some = [name for name in vectors if "/query/" in name][:3]
    rng = np.random.default_rng(5)
    changed = {name: unit(rng.normal(size=4)) for name in some}
    found = ranking.rank(changed, only=changed).ranked
    afresh = Ranking(traces, {**vectors, **changed}, pairs, bank, reward=REWARD).rank(only=changed)
    assert found == afresh.ranked
    assert {str(one.trajectory.key) for one in found} == set(some)
    assert {str(one.trajectory.key): one for one in ranking.rank().ranked} == before


def test_a_changed_embedding_that_cannot_be_used_drops_its_trace_alone():
    traces, pairs, vectors = STEPS[0]
    ranking = Ranking(traces, vectors, pairs, CandidateBank(BankConfig()), reward=REWARD)
    changed = {name: vectors[name] for name in list(vectors)[:3]}
    broken = list(changed)[1]
    for odd in (np.full(4, np.nan, dtype=np.float32), np.ones(3, dtype=np.float32)):
        found = ranking.rank(changed | {broken: odd}, only=changed)
        [dropped] = found.dropped
        assert (str(dropped.key), dropped.reason) == (broken, "embedding_failed")
        assert {str(one.trajectory.key) for one in found.ranked} == changed.keys() - {broken}


@pytest.mark.parametrize("closest", [0, 1, 2, None])
def test_as_many_other_pairs_are_named_as_are_asked_for(closest):
    traces, pairs, vectors = STEPS[0]
    ranking = Ranking(traces, vectors, pairs, CandidateBank(BankConfig()), reward=REWARD)
    every = {str(one.trajectory.key): one.negatives for one in ranking.rank().ranked}
    for one in ranking.rank(closest=closest).ranked:
        assert one.negatives == every[str(one.trajectory.key)][:closest]
        key = vectors[str(one.trajectory.key)].astype(np.float64)
        closeness = [float(key @ vectors[name]) for name in one.negatives]
        assert closeness == sorted(closeness, reverse=True)
