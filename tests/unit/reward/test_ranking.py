"""A round's candidates: the same for every trace, with the bank's, whatever the order."""

from dataclasses import replace

import numpy as np
import pytest

from configs.reward import BankConfig, RewardConfig
from data.relevance import Relevance
from data.types import Item, Side
from reward.bank import Candidate, CandidateBank
from reward.rank_arithmetic import rank_sides
from reward.ranking import OTHER, Ranking
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


def ranking_of(traces, vectors, pairs, bank, *, reward=REWARD, known=None, **more):
    """Return a step's ranking; what is right is known from ``known``, else the step's pairs."""
    relevance = Relevance(known or pairs.values())
    return Ranking(traces, vectors, pairs, bank, reward=reward, relevance=relevance, **more)


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
        found = ranking_of(traces, vectors, pairs, bank, reward=reward).rank()
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
        found = ranking_of(traces, vectors, pairs, bank).rank()
        remember(bank, found)
        if index == odd:
            bank.save(tmp_path / "bank.npz")
            bank = CandidateBank(REWARD.bank)
            bank.load(tmp_path / "bank.npz")
    assert {str(one.trajectory.key): one for one in found.ranked} == run(STEPS)


def test_changed_embeddings_rank_as_in_a_round_of_their_own():
    traces, pairs, vectors = STEPS[0]
    bank = CandidateBank(BankConfig())
    ranking = ranking_of(traces, vectors, pairs, bank)
    before = {str(one.trajectory.key): one for one in ranking.rank().ranked}
    some = [name for name in vectors if "/query/" in name][:3]
    rng = np.random.default_rng(5)
    changed = {name: unit(rng.normal(size=4)) for name in some}
    found = ranking.rank(changed, only=changed).ranked
    afresh = ranking_of(traces, {**vectors, **changed}, pairs, bank).rank(only=changed)
    assert found == afresh.ranked
    assert {str(one.trajectory.key) for one in found} == set(some)
    assert {str(one.trajectory.key): one for one in ranking.rank().ranked} == before


def test_a_changed_embedding_that_cannot_be_used_drops_its_trace_alone():
    traces, pairs, vectors = STEPS[0]
    ranking = ranking_of(traces, vectors, pairs, CandidateBank(BankConfig()))
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
    ranking = ranking_of(traces, vectors, pairs, CandidateBank(BankConfig()))
    every = {str(one.trajectory.key): one.negatives for one in ranking.rank().ranked}
    for one in ranking.rank(closest=closest).ranked:
        assert one.negatives == every[str(one.trajectory.key)][:closest]
        key = vectors[str(one.trajectory.key)].astype(np.float64)
        closeness = [float(key @ vectors[name]) for name in one.negatives]
        assert closeness == sorted(closeness, reverse=True)


X, Y, Z = (Item(text=text) for text in ("find X", "find Y", "find Z"))
DOG, PUPPY, CAT = (Item(text=text) for text in ("a dog", "a puppy", "a cat"))
# X shows two right targets, of which Y shows one.
SET = [
    make_pair("p0", query=X, target=DOG),
    make_pair("p1", query=X, target=PUPPY),
    make_pair("p2", query=Y, target=PUPPY),
    make_pair("p3", query=Z, target=CAT),
]


def left_out(pairs, *, bank=(), known=None, reward=REWARD):
    """Return by (serial, side) the serials whose candidates do not count for these traces."""
    pairs = {serial: SET[serial] for serial in pairs}
    traces = [make_trajectory(serial, side) for serial in pairs for side in Side]
    rng = np.random.default_rng(1)
    vectors = {str(one.key): unit(rng.normal(size=4)) for one in traces}
    kept = CandidateBank(BankConfig(recent=9))
    for serial in bank:
        for side in Side:
            content = SET[serial].item(side).key()
            key = str(make_trajectory(serial, side).key)
            vector = unit(rng.normal(size=4))
            kept.add(side, [Candidate(key=key, content=content, vector=vector)])
    known = [SET[serial] for serial in known or pairs]
    met = {}

    def compute(sides, *, temperature):
        for side, rows in sides.items():
            own = sorted(str(one.key) for one in traces if one.key.group.side is OTHER[side])
            drawn = [one.key for one in kept.draw(OTHER[side], np.zeros((1, 4)))]
            names = [int(key.split("/")[0][2:]) for key in own + drawn]
            serials = sorted(pairs)
            for group, valid in enumerate(rows.valid_GM):
                met[serials[group], side] = {
                    n for n, ok in zip(names, valid, strict=True) if not ok
                }
        return rank_sides(sides, temperature=temperature)

    ranking = ranking_of(traces, vectors, pairs, kept, reward=reward, known=known)
    found = ranking.rank(compute=compute)
    assert found.dropped == []
    for one in found.ranked:
        group = one.trajectory.key.group
        assert one.false_negatives == len(met[group.serial, group.side])
        shown = {int(name.split("/")[0][2:]) for name in one.negatives}
        assert not shown & met[group.serial, group.side]
    return met


def test_the_other_golds_of_a_query_are_no_negatives_in_either_direction():
    found = left_out([0, 1, 3])
    assert found[0, Side.QUERY] == found[0, Side.TARGET] == {1}
    assert found[1, Side.QUERY] == found[1, Side.TARGET] == {0}
    assert found[3, Side.QUERY] == found[3, Side.TARGET] == set()


def test_what_is_right_by_a_pair_outside_the_step_is_no_negative_and_nothing_further_follows():
    apart = left_out([0, 2, 3], known=[0, 2, 3])
    assert not any(apart.values())
    found = left_out([0, 2, 3], known=[0, 1, 2, 3])
    # X seeks the puppy too: pair 2's target is right for query 0, and so is query 0 for it.
    assert found[0, Side.QUERY] == {2}
    assert found[2, Side.TARGET] == {0}
    # Y does not seek the dog.
    assert found[2, Side.QUERY] == found[0, Side.TARGET] == set()


def test_a_remembered_candidate_that_is_right_as_well_is_no_negative():
    found = left_out([0, 3], bank=[1, 2], known=[0, 1, 2, 3])
    assert found[0, Side.QUERY] == {2}  # the puppy, which is remembered once
    assert found[0, Side.TARGET] == {1}  # the query X once more, whose other target is the dog
    assert found[3, Side.QUERY] == found[3, Side.TARGET] == set()


def test_remembered_items_that_are_alike_without_trace_are_no_negatives():
    reward = replace(REWARD, false_negative_similarity=0.9)
    traces, pairs, vectors = step(0, count=2)
    near, far = unit(np.array([1, 0.1, 0, 0])), unit(np.array([0, 0, 1, 0]))
    plain = {(serial, side): unit(np.eye(4)[serial]) for serial in (0, 1) for side in Side}
    bank = CandidateBank(BankConfig(recent=3))
    for name, items in (("near", near), ("far", far), ("unknown", None)):
        one = Candidate(key=name, content=name, vector=vectors[str(traces[0].key)], plain=items)
        bank.add(Side.TARGET, [one])
    ranked = ranking_of(traces, vectors, pairs, bank, reward=reward, plain=plain).rank().ranked
    found = {str(one.trajectory.key.group): one.false_negatives for one in ranked}
    assert found == {
        "g=0/p=p0/query": 1,
        "g=0/p=p0/target": 0,
        "g=1/p=p1/query": 0,
        "g=1/p=p1/target": 0,
    }
