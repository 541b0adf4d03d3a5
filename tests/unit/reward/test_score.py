"""A scoring round: the spec's formula by hand in both directions, joins by key, what is dropped."""

import math
from dataclasses import replace

import numpy as np
import pytest

from configs.schema import RewardConfig
from data.types import Item, Kind, Side
from reward.score import format_reward, score_round
from tests.builders import TRACES, make_pair, make_trajectory

REWARD = RewardConfig(model="m")
PAIRS = {0: make_pair("p0"), 1: make_pair("p1")}


def unit(*angle_degrees):
    return [np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in angle_degrees]


def round_of(siblings=2, serials=(0, 1)):
    return [
        make_trajectory(serial, side, sibling)
        for serial in serials
        for side in Side
        for sibling in range(siblings)
    ]


def angles(trajectories, degrees):
    """Return vectors by key: ``degrees[serial, side]`` holds one angle per sibling."""
    return {
        str(one.key): unit(degrees[one.key.group.serial, one.key.group.side][one.key.sibling])[0]
        for one in trajectories
    }


DEGREES = {
    (0, Side.QUERY): (0, 30),
    (0, Side.TARGET): (10, 80),
    (1, Side.QUERY): (90, 40),
    (1, Side.TARGET): (70, 100),
}


def by_key(scored):
    assert len({str(one.trajectory.key) for one in scored}) == len(scored)
    return {str(one.trajectory.key): one for one in scored}


def expected(serial, side, sibling):
    """Return (accuracy, margin) by the spec, section 1.3, from angles alone."""
    own = DEGREES[serial, side][sibling]
    other = Side.TARGET if side is Side.QUERY else Side.QUERY

    def cosines(group):
        return [math.cos(math.radians(own - angle)) for angle in DEGREES[group, other]]

    positives, negatives = cosines(serial), cosines(1 - serial)
    top = sorted(positives + negatives, reverse=True)[: len(positives)]
    accuracy = sum(score in top for score in positives) / len(positives)
    weights = [math.exp(score / REWARD.temperature) for score in negatives]
    negative = sum(w * s for w, s in zip(weights, negatives, strict=True)) / sum(weights)
    return accuracy, sum(positives) / len(positives) - negative


def test_a_round_of_two_pairs_two_sides_and_two_traces_by_hand():
    trajectories = round_of()
    scored, dropped = score_round(
        trajectories, angles(trajectories, DEGREES), PAIRS, reward=REWARD, max_frames=8
    )
    assert dropped == []
    assert set(by_key(scored)) == {str(one.key) for one in trajectories}
    for one in scored:
        key = one.trajectory.key
        accuracy, margin = expected(key.group.serial, key.group.side, key.sibling)
        assert one.parts.accuracy == accuracy
        assert one.parts.margin == pytest.approx(margin, abs=1e-8)
        assert one.parts.outcome == pytest.approx(0.5 * accuracy * margin, abs=1e-8)
        assert one.parts.format == 1.0
        assert one.parts.total == pytest.approx(0.05 + 0.8 * 0.5 * accuracy * margin, abs=1e-8)
    query = by_key(scored)["g=0/p=p0/query/1"]
    # From 30 degrees: 10 (own), 70, 80 (own), 100: the second own target is third.
    assert (query.parts.accuracy, query.parts.rank) == (0.5, 1)
    assert query.retrieved == ("g=0/p=p0/target/0", "g=1/p=p1/target/0", "g=0/p=p0/target/1")


def test_results_are_joined_by_key_and_not_by_position():
    trajectories = round_of(siblings=4, serials=(0, 1, 2))
    pairs = {serial: make_pair(f"p{serial}") for serial in range(3)}
    rng = np.random.default_rng(0)
    vectors = {str(one.key): rng.normal(size=8) for one in trajectories}
    vectors = {key: vector / np.linalg.norm(vector) for key, vector in vectors.items()}
    # Equal traces must stay tied wherever they stand.
    vectors["g=1/p=p1/target/0"] = vectors["g=0/p=p0/target/0"]
    straight, _ = score_round(trajectories, vectors, pairs, reward=REWARD, max_frames=8)
    for _ in range(20):
        shuffled = [trajectories[i] for i in rng.permutation(len(trajectories))]
        keys = [str(one.key) for one in trajectories]
        mixed = {keys[i]: vectors[keys[i]] for i in rng.permutation(len(keys))}
        scored, _ = score_round(shuffled, mixed, pairs, reward=REWARD, max_frames=8)
        for key, one in by_key(scored).items():
            before = by_key(straight)[key].parts
            assert (one.parts.accuracy, one.parts.rank) == (before.accuracy, before.rank)
            assert one.parts.total == pytest.approx(before.total, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_equal_embeddings_tie_against_the_trace_wherever_they_stand(seed):
    """A matrix product's last bits differ from place to place; ranks must not follow them."""
    count = 13
    trajectories = round_of(siblings=1, serials=range(count))
    pairs = {serial: make_pair(f"p{serial}") for serial in range(count)}
    rng = np.random.default_rng(seed)
    vector = {side: rng.normal(size=1000).astype(np.float32) / 32 for side in Side}
    vectors = {str(one.key): vector[one.key.group.side] for one in trajectories}
    scored, _ = score_round(trajectories, vectors, pairs, reward=REWARD, max_frames=8)
    assert {one.parts.rank for one in scored} == {count}
    assert {one.parts.accuracy for one in scored} == {0.0}


@pytest.mark.parametrize("how", ["label", "content"])
def test_pairs_with_interchangeable_targets_are_no_negatives(how):
    trajectories = round_of()
    if how == "label":
        pairs = {serial: make_pair(f"p{serial}", label="cat") for serial in (0, 1)}
    else:
        pairs = {serial: make_pair(f"p{serial}", target=Item(text="cat")) for serial in (0, 1)}
    vectors = angles(trajectories, DEGREES)
    scored, dropped = score_round(trajectories, vectors, pairs, reward=REWARD, max_frames=8)
    assert dropped == []
    for one in scored:
        key = one.trajectory.key
        alone = [t for t in trajectories if t.key.group.serial == key.group.serial]
        lonely, _ = score_round(alone, vectors, pairs, reward=REWARD, max_frames=8)
        assert one.parts == by_key(lonely)[str(key)].parts
        assert one.parts.accuracy == 1.0


def test_a_third_pair_with_another_label_stays_a_negative():
    trajectories = round_of(serials=(0, 1, 2))
    pairs = {s: make_pair(f"p{s}", label="cat" if s < 2 else "dog") for s in range(3)}
    degrees = {**DEGREES, (2, Side.QUERY): (0, 5), (2, Side.TARGET): (2, 3)}
    scored, _ = score_round(
        trajectories, angles(trajectories, degrees), pairs, reward=REWARD, max_frames=8
    )
    assert by_key(scored)["g=0/p=p0/query/0"].parts.accuracy == 0.0


def test_the_same_pair_met_twice_in_a_round_is_no_negative_of_itself():
    trajectories = round_of()
    scored, _ = score_round(
        trajectories,
        angles(trajectories, DEGREES),
        {0: make_pair("p0"), 1: make_pair("p0")},
        reward=REWARD,
        max_frames=8,
    )
    assert {one.parts.accuracy for one in scored} == {1.0}


@pytest.mark.parametrize("broken", ["missing", "nan", "inf"])
def test_a_trace_without_a_usable_embedding_is_dropped_and_counts_for_nobody(broken):
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    lost = "g=0/p=p0/target/1"
    if broken == "missing":
        del vectors[lost]
    else:
        vectors[lost] = np.array([float(broken), 0.0])
    scored, dropped = score_round(trajectories, vectors, PAIRS, reward=REWARD, max_frames=8)
    assert [(str(one.key), one.reason) for one in dropped] == [(lost, "embedding_failed")]
    assert len(scored) == 7
    rest = [one for one in trajectories if str(one.key) != lost]
    again, _ = score_round(rest, angles(rest, DEGREES), PAIRS, reward=REWARD, max_frames=8)
    assert by_key(again) == by_key(scored)


def test_a_trace_whose_other_side_is_lost_has_no_positive():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    for sibling in (0, 1):
        del vectors[f"g=1/p=p1/target/{sibling}"]
    scored, dropped = score_round(trajectories, vectors, PAIRS, reward=REWARD, max_frames=8)
    reasons = {str(one.key): one.reason for one in dropped}
    assert reasons == {
        "g=1/p=p1/target/0": "embedding_failed",
        "g=1/p=p1/target/1": "embedding_failed",
        "g=1/p=p1/query/0": "no_positive",
        "g=1/p=p1/query/1": "no_positive",
    }
    assert {one.trajectory.key.group.serial for one in scored} == {0}


def test_an_empty_round_gives_nothing():
    assert score_round([], {}, {}, reward=REWARD, max_frames=8) == ([], [])


def test_a_gate_pays_the_outcome_to_valid_traces_only():
    trajectories = round_of()
    trajectories[0] = replace(trajectories[0], text="no trace")
    vectors = angles(trajectories, DEGREES)
    key = str(trajectories[0].key)

    def total(gate):
        reward = RewardConfig(model="m", gate_by_format=gate)
        scored, _ = score_round(trajectories, vectors, PAIRS, reward=reward, max_frames=8)
        return by_key(scored)[key].parts.total

    assert total(True) == 0.0
    assert total(False) != 0.0


@pytest.mark.parametrize("kind", Kind)
def test_the_format_reward_is_one_for_strictly_valid_traces_only(kind):
    item = Item(text="", kind=kind, uris=() if kind is Kind.TEXT else ("/1", "/2", "/3"))
    assert format_reward(TRACES[kind], item, max_frames=8) == 1.0
    assert format_reward("Sure! " + TRACES[kind], item, max_frames=8) == 0.0
    assert format_reward("", item, max_frames=8) == 0.0


def test_frames_beyond_those_shown_are_not_valid():
    item = Item(text="", kind=Kind.VIDEO, uris=("/1", "/2", "/3"))
    assert format_reward(TRACES[Kind.VIDEO], item, max_frames=2) == 0.0
