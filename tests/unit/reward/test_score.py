"""Rewards: the formula and both published variants by hand, joins by key, what is dropped."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from configs.load import load
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.relevance import Relevance
from data.types import Item, Judgement, Kind, Side
from reward.bank import CandidateBank
from reward.judge_question import build_question
from reward.ranking import Ranking
from reward.score import format_reward, length_penalty, score_round
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


def score(trajectories, vectors, pairs=PAIRS, *, reward=REWARD, judged=(), **more):
    """Rank and score a round without a bank; return what is scored and all that is dropped."""
    bank = CandidateBank(reward.bank)
    known = Relevance(pairs.values())
    ranking = Ranking(trajectories, vectors, pairs, bank, reward=reward, relevance=known, **more)
    found = ranking.rank()
    scored, lost = score_round(found.ranked, dict(judged), pairs, reward=reward, max_frames=8)
    return scored, found.dropped + lost


def by_key(scored):
    assert len({str(one.trajectory.key) for one in scored}) == len(scored)
    return {str(one.trajectory.key): one for one in scored}


def expected(serial, side, sibling):
    """Return (accuracy, margin) by Embed-RL, equation 3, from angles alone."""
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
    scored, dropped = score(trajectories, angles(trajectories, DEGREES))
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
    straight, _ = score(trajectories, vectors, pairs)
    for _ in range(20):
        shuffled = [trajectories[i] for i in rng.permutation(len(trajectories))]
        keys = [str(one.key) for one in trajectories]
        mixed = {keys[i]: vectors[keys[i]] for i in rng.permutation(len(keys))}
        scored, _ = score(shuffled, mixed, pairs)
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
    scored, _ = score(trajectories, vectors, pairs)
    assert {one.parts.rank for one in scored} == {count}
    assert {one.parts.accuracy for one in scored} == {0.0}


@pytest.mark.parametrize("how", ["label", "content", "query", "item without trace"])
def test_candidates_that_are_right_as_well_are_no_negatives(how):
    serials = (0, 1, 2)
    trajectories = round_of(serials=serials)
    pairs = {serial: make_pair(f"p{serial}") for serial in serials}
    reward, plain = REWARD, None
    degrees = {**DEGREES, (2, Side.QUERY): (0, 5), (2, Side.TARGET): (62, 63)}
    if how == "label":
        pairs |= {serial: make_pair(f"p{serial}", label="cat") for serial in (0, 1)}
    elif how == "content":
        pairs |= {serial: make_pair(f"p{serial}", target=Item(text="cat")) for serial in (0, 1)}
    elif how == "query":
        pairs[1] = make_pair("p1", query=pairs[0].query)
    else:
        reward = replace(REWARD, false_negative_similarity=math.cos(math.radians(0.5)))
        plain = {(s, side): unit(40 * s if s > 1 else 0.4 * s)[0] for s in serials for side in Side}
    vectors = angles(trajectories, degrees)
    scored, dropped = score(trajectories, vectors, pairs, reward=reward, plain=plain)
    assert dropped == []
    without = [one for one in trajectories if one.key.group.serial != 1]
    alone, _ = score(without, vectors, pairs, reward=reward, plain=plain)
    for key, one in by_key(alone).items():
        if one.trajectory.key.group.serial == 0:
            assert by_key(scored)[key].parts == one.parts


def test_a_trace_that_comes_close_to_a_rival_does_not_remove_it():
    """A policy makes these embeddings itself: pair 1's target traces copy those of pair 0."""
    trajectories = round_of()
    reward = replace(REWARD, false_negative_similarity=0.98)
    degrees = {**DEGREES, (1, Side.TARGET): DEGREES[0, Side.TARGET]}
    vectors = angles(trajectories, degrees)
    plain = {(s, side): unit(90 * s)[0] for s in (0, 1) for side in Side}
    scored, dropped = score(trajectories, vectors, reward=reward, plain=plain)
    assert dropped == []
    straight, _ = score(trajectories, vectors)
    assert by_key(scored) == by_key(straight)
    assert by_key(scored)["g=0/p=p0/query/0"].parts.accuracy == 0.5


def test_an_item_that_could_not_be_embedded_without_trace_is_known_by_its_content_alone():
    trajectories = round_of()
    plain = {(s, side): unit(90 * s)[0] for s in (0, 1) for side in Side}
    del plain[0, Side.QUERY]
    reward = replace(REWARD, false_negative_similarity=0.98)
    scored, dropped = score(trajectories, angles(trajectories, DEGREES), reward=reward, plain=plain)
    assert dropped == []
    assert {one.parts.gain for one in scored} == {0.0}  # it is not asked for


def test_a_round_whose_pairs_all_share_one_target_pays_nothing():
    trajectories = round_of()
    pairs = {serial: make_pair(f"p{serial}", label="cat") for serial in (0, 1)}
    scored, dropped = score(trajectories, angles(trajectories, DEGREES), pairs)
    assert scored == []
    assert {str(one.key) for one in dropped} == {str(one.key) for one in trajectories}
    assert {one.reason for one in dropped} == {"no_negative"}


def test_a_third_pair_with_another_label_stays_a_negative():
    trajectories = round_of(serials=(0, 1, 2))
    pairs = {s: make_pair(f"p{s}", label="cat" if s < 2 else "dog") for s in range(3)}
    degrees = {**DEGREES, (2, Side.QUERY): (0, 5), (2, Side.TARGET): (2, 3)}
    scored, _ = score(trajectories, angles(trajectories, degrees), pairs)
    assert by_key(scored)["g=0/p=p0/query/0"].parts.accuracy == 0.0


def test_the_same_pair_met_twice_in_a_round_is_no_negative_of_itself():
    trajectories = round_of()
    twice = {0: make_pair("p0"), 1: make_pair("p0")}
    _, dropped = score(trajectories, angles(trajectories, DEGREES), twice)
    assert {one.reason for one in dropped} == {"no_negative"}


@pytest.mark.parametrize("broken", ["missing", "nan", "inf", "width"])
def test_a_trace_without_a_usable_embedding_is_dropped_and_counts_for_nobody(broken):
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    lost = "g=0/p=p0/target/1"
    if broken == "missing":
        del vectors[lost]
    elif broken == "width":
        vectors[lost] = np.ones(3)
    else:
        vectors[lost] = np.array([float(broken), 0.0])
    scored, dropped = score(trajectories, vectors)
    assert [(str(one.key), one.reason) for one in dropped] == [(lost, "embedding_failed")]
    assert len(scored) == 7
    rest = [one for one in trajectories if str(one.key) != lost]
    again, _ = score(rest, angles(rest, DEGREES))
    assert by_key(again) == by_key(scored)


def test_a_trace_whose_other_side_is_lost_has_no_positive():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    for sibling in (0, 1):
        del vectors[f"g=1/p=p1/target/{sibling}"]
    scored, dropped = score(trajectories, vectors)
    reasons = {str(one.key): one.reason for one in dropped}
    assert reasons == {
        "g=1/p=p1/target/0": "embedding_failed",
        "g=1/p=p1/target/1": "embedding_failed",
        "g=1/p=p1/query/0": "no_positive",
        "g=1/p=p1/query/1": "no_positive",
        "g=0/p=p0/query/0": "no_negative",
        "g=0/p=p0/query/1": "no_negative",
    }
    assert set(by_key(scored)) == {"g=0/p=p0/target/0", "g=0/p=p0/target/1"}


def test_an_empty_round_gives_nothing():
    assert score([], {}, {}) == ([], [])


def test_a_gate_pays_the_outcome_to_valid_traces_only():
    trajectories = round_of()
    trajectories[0] = replace(trajectories[0], text="no trace")
    vectors = angles(trajectories, DEGREES)
    key = str(trajectories[0].key)

    def total(gate):
        reward = RewardConfig(model="m", gate_by_format=gate)
        scored, _ = score(trajectories, vectors, reward=reward)
        return by_key(scored)[key].parts.total

    assert total(True) == 0.0
    assert total(False) != 0.0


@pytest.mark.parametrize("process_pays", ["one", "margin"])
def test_a_gate_never_pays_a_malformed_trace_more_than_a_valid_one(process_pays):
    trajectories = round_of()
    vectors, bank = angles(trajectories, DEGREES), CandidateBank(REWARD.bank)
    known = Relevance(PAIRS.values())
    ranking = Ranking(trajectories, vectors, PAIRS, bank, reward=REWARD, relevance=known)
    one, *_ = ranking.rank().ranked
    reward = replace(
        REWARD,
        gate_by_format=True,
        gain_weight=1.0,
        process_weight=0.2,
        process_pays=process_pays,
    )
    judged = {str(one.trajectory.key): Judgement(share=0.5, shown=(), answer="")}

    def parts(text, **found):
        ranked = replace(one, trajectory=replace(one.trajectory, text=text), **found)
        scored, _ = score_round([ranked], judged, PAIRS, reward=reward, max_frames=8)
        return scored[0].parts

    for accuracy, margin, gain in product((0.0, 0.5, 1.0), (-0.4, 0.0, 0.3), (-0.2, 0.0, 0.1)):
        found = {"accuracy": accuracy, "margin": margin, "gain": gain}
        valid, malformed = parts(one.trajectory.text, **found), parts("no trace", **found)
        assert (valid.format, malformed.format) == (1.0, 0.0)
        assert malformed.total <= valid.total - reward.format_weight + 1e-12
        assert malformed.outcome == min(0.0, valid.outcome)
        assert malformed.gain == min(0.0, valid.gain)
        assert malformed.process == min(0.0, valid.process)


# Angles for the published variants; cosines of 10, 20, ... degrees make them easy to check.
PLAIN_DEGREES = {
    (0, Side.QUERY): (0, 20),
    (0, Side.TARGET): (10, 30),
    (1, Side.QUERY): (90, 60),
    (1, Side.TARGET): (80, 70),
}
# query/0 at 0: positives cos 10, cos 30; negatives cos 80, cos 70: Acc 1, and
# m = 0.92542 - (1.41524 * 0.17365 + 1.98187 * 0.34202) / 3.39711 = 0.65354.
# target/1 at 30: positives cos 30, cos 10; negatives cos 60, cos 30, which ties with the farther
# positive: Acc 1/2, and m = 0.92542 - (2.71828 * 0.5 + 5.65223 * 0.86603) / 8.37051 = 0.17826.
BY_HAND = [
    (
        "code",
        True,
        0.05 + 0.8 * 0.5 * 0.65354 + 0.2 * 0.65354,
        0.05 + 0.2 * 0.17826 + 0.2 * 0.17826,
    ),
    ("code", False, 0.05 + 0.8 * 0.5 * 0.65354, 0.05 + 0.8 * 0.5 * 0.5 * 0.17826),
    ("paper", True, 0.05 + 0.2 * 0.65354 + 0.8, 0.05 + 0.8),
    ("paper", False, 0.05 + 0.2 * 0.65354, 0.05),
]


def published(preset, folder):
    file = folder / "rl.yaml"
    file.write_text(
        f"run: {{dir: r}}\nreasoner: m\ndata: {{train: [{{name: a, path: a, root: r}}]}}\n"
        "rollout: {engine: {dtype: float32}}\n"
        f"learner: {{bf16: false}}\nreward: {{preset: {preset}, model: m, judge: {{model: j}}}}\n"
    )
    return load(RLConfig, file).reward


@pytest.mark.parametrize(("preset", "right", "query", "target"), BY_HAND)
def test_the_published_variants_by_hand(preset, right, query, target, tmp_path):
    reward = published(preset, tmp_path)
    trajectories = round_of()
    judged = {
        str(one.key): Judgement(share=float(right), shown=(), answer="1") for one in trajectories
    }
    scored, dropped = score(
        trajectories, angles(trajectories, PLAIN_DEGREES), reward=reward, judged=judged
    )
    assert dropped == []
    found = {key: one.parts.total for key, one in by_key(scored).items()}
    assert found["g=0/p=p0/query/0"] == pytest.approx(query, abs=1e-5)
    assert found["g=0/p=p0/target/1"] == pytest.approx(target, abs=1e-5)


@pytest.mark.parametrize(("preset", "ordered"), [("code", True), ("paper", False)])
def test_the_published_variants_show_all_positives_and_the_closest_other_pairs(
    preset, ordered, tmp_path
):
    serials = range(6)
    trajectories = round_of(serials=serials)
    pairs = {serial: make_pair(f"p{serial}") for serial in serials}
    degrees = {
        (serial, side): (20 * serial, 20 * serial + 3) for serial in serials for side in Side
    }
    reward = published(preset, tmp_path)
    bank = CandidateBank(reward.bank)
    vectors = angles(trajectories, degrees)
    known = Relevance(pairs.values())
    ranking = Ranking(trajectories, vectors, pairs, bank, reward=reward, relevance=known)
    ranked = ranking.rank().ranked
    traces = {str(one.key): one for one in trajectories}
    questions = {
        str(one.trajectory.key): build_question(one, traces, pairs, reward.judge) for one in ranked
    }
    shown = questions["g=0/p=p0/query/0"].shown
    first = ("g=0/p=p0/target/0", "g=0/p=p0/target/1")
    rest = tuple(f"g={serial}/p=p{serial}/target/0" for serial in (1, 2, 3, 4))
    assert set(shown) == {*first, *rest}
    in_order = [
        all(number in question.right for number in (1, 2)) for question in questions.values()
    ]
    assert all(in_order) is ordered
    assert not ordered or shown == (*first, *rest)


def test_a_trace_that_the_judge_could_not_judge_is_dropped():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    reward = replace(REWARD, process_weight=0.2)
    judged = {str(one.key): Judgement(share=0.25, shown=(), answer="") for one in trajectories[1:]}
    scored, dropped = score(trajectories, vectors, reward=reward, judged=judged)
    assert [(one.key, one.reason) for one in dropped] == [(trajectories[0].key, "judge_failed")]
    plain, _ = score(trajectories, vectors)
    for key, one in by_key(scored).items():
        assert one.parts.process == 0.25
        assert one.parts.total == pytest.approx(by_key(plain)[key].parts.total + 0.2 * 0.25)


def test_the_gain_is_what_the_trace_adds_to_the_margin():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    # The plain embedding of each item is that of its first trace, which then gains nothing.
    plain = {
        (one.key.group.serial, one.key.group.side): vectors[str(one.key)]
        for one in trajectories
        if one.key.sibling == 0
    }
    reward = replace(REWARD, gain_weight=0.3)
    scored, dropped = score(trajectories, vectors, reward=reward, plain=plain)
    assert dropped == []
    parts = {key: one.parts for key, one in by_key(scored).items()}
    for key, part in parts.items():
        first = parts[key[:-1] + "0"]
        assert part.gain == pytest.approx(part.margin - first.margin)
        assert part.total == pytest.approx(0.05 + 0.8 * part.outcome + 0.3 * part.gain)


def test_a_trace_whose_item_has_no_plain_embedding_is_dropped():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    plain = {(serial, side): unit(5)[0] for serial in (0, 1) for side in Side}
    del plain[0, Side.QUERY]
    _, dropped = score(trajectories, vectors, reward=replace(REWARD, gain_weight=1.0), plain=plain)
    failed = {str(one.key) for one in dropped if one.reason == "embedding_failed"}
    assert failed == {"g=0/p=p0/query/0", "g=0/p=p0/query/1"}


@pytest.mark.parametrize(
    ("tokens", "budget", "penalty"), [(5, 10, 0.0), (10, 10, 0.0), (15, 10, -0.5), (15, 0, 0.0)]
)
def test_tokens_over_the_budget_cost_linearly(tokens, budget, penalty):
    assert length_penalty(tokens, budget=budget) == penalty


def test_long_traces_earn_less():
    trajectories = round_of()
    vectors = angles(trajectories, DEGREES)
    scored, _ = score(trajectories, vectors)
    # The builder's traces have two tokens.
    reward = replace(REWARD, length_weight=0.5, length_budget=1)
    paid, _ = score(trajectories, vectors, reward=reward)
    for before, after in zip(scored, paid, strict=True):
        assert after.parts.length == -1.0
        assert after.parts.total == pytest.approx(before.parts.total - 0.5)


@pytest.mark.parametrize("kind", Kind)
def test_the_format_reward_is_one_for_strictly_valid_traces_only(kind):
    item = Item(text="", kind=kind, uris=() if kind is Kind.TEXT else ("/1", "/2", "/3"))
    assert format_reward(TRACES[kind], item, max_frames=8) == 1.0
    assert format_reward("Sure! " + TRACES[kind], item, max_frames=8) == 0.0
    assert format_reward("", item, max_frames=8) == 0.0


def test_frames_beyond_those_shown_are_not_valid():
    item = Item(text="", kind=Kind.VIDEO, uris=("/1", "/2", "/3"))
    assert format_reward(TRACES[Kind.VIDEO], item, max_frames=2) == 0.0
