"""Each monitor rings for a policy that cheats its way, and for an honest policy none rings."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.monitor_table import MONITORS, monitor_of
from data.relevance import Relevance
from data.tcot import render
from data.types import (
    Box,
    Cues,
    Item,
    Kind,
    Side,
    TCoT,
)
from reward.hacking import monitors
from reward.hacking.counterfactuals import Change, Probe
from reward.hacking.monitors import (
    MIN_COUNT,
    WatchedRound,
    effective_rank,
    prose_of,
    spearman,
    watch_round,
    words_of,
)
from tests.builders import TRACES, make_pair, make_scored, make_trajectory

PAIRS, SIBLINGS, SIZE = 12, 8, 32
KEYWORDS = ("dog",)
ANIMALS = ["ape", "bat", "cat", "dog", "elk", "fox", "gnu", "hen", "jay", "kea", "lynx", "moth"]
PLACES = [
    "attic",
    "barn",
    "cave",
    "desert",
    "forest",
    "garden",
    "harbour",
    "island",
    "jungle",
    "kitchen",
    "lake",
    "meadow",
]


def query_text(n):
    return f"find the picture in which some {ANIMALS[n]} sleeps near the {PLACES[n]} at noon"


def target_text(n):
    return f"one tired {ANIMALS[n]} has closed both of its eyes under the {PLACES[n]} before lunch"


PAIR_OF = {
    n: make_pair(f"p{n}", query=Item(text=query_text(n)), target=Item(text=target_text(n)))
    for n in range(PAIRS)
}


def trace(thinking, rethink="it fits", answer="an animal", keywords=KEYWORDS):
    cues = Cues(keywords=keywords)
    return render(
        TCoT(thinking=thinking, rethink=rethink, answer=answer, cues=cues), kind=Kind.TEXT
    )


def honest_text(n, side):
    words = f"a sleeping {ANIMALS[n]}"
    return trace(words, f"it is the {ANIMALS[n]} that counts, not the {PLACES[n]}", words)


def unit(vector):
    return vector / np.linalg.norm(vector)


def honest_round(seed=0):
    """Return a round as a policy that learns leaves it: spread rewards, some right, some wrong."""
    rng = np.random.default_rng(seed)
    scored, vectors, items = [], {}, {}
    for n in range(PAIRS):
        content = rng.normal(size=SIZE)
        for side in Side:
            for sibling in range(SIBLINGS):
                one = make_trajectory(n, side, sibling, text=honest_text(n, side))
                one = replace(one, response_ids=np.zeros(int(rng.integers(20, 60)), dtype=int))
                accuracy = float(rng.integers(0, 5)) / 4
                outcome = accuracy * float(rng.uniform(0.1, 0.5))
                scored.append(
                    make_scored(one, outcome=outcome, accuracy=accuracy, total=0.05 + outcome)
                )
                vectors[str(one.key)] = unit(content + 0.5 * rng.normal(size=SIZE))
            items[str(one.key.group)] = unit(content + 2 + rng.normal(size=SIZE))
    rewards = {str(one.trajectory.key): one.parts.total for one in scored}
    probe = Probe(
        as_is=rewards,
        changed={
            Change.WITHOUT_EVIDENCE: {key: 0.8 * reward for key, reward in rewards.items()},
            Change.OTHER_TRACE: {key: 0.4 * reward for key, reward in rewards.items()},
        },
    )
    second = {key: reward + float(rng.normal(scale=0.05)) for key, reward in rewards.items()}
    return WatchedRound(
        scored=scored,
        pairs=PAIR_OF,
        vectors=vectors,
        relevance=Relevance(PAIR_OF.values()),
        items=items,
        probe=probe,
        second=second,
    )


HONEST = honest_round()


def each(change):
    """Return the honest round with every scored trace changed."""
    return replace(HONEST, scored=[change(one) for one in HONEST.scored])


def saying(text_of):
    """Return the honest round with other texts: ``text_of`` takes the pair's number and side."""

    def change(one):
        group = one.trajectory.key.group
        text = text_of(group.serial, group.side)
        return replace(one, trajectory=replace(one.trajectory, text=text))

    return each(change)


def paid(parts_of):
    return each(lambda one: replace(one, parts=parts_of(one)))


def rung(round):
    metrics, alarms = watch_round(round)
    names = {alarm.name for alarm in alarms}
    assert {key.removeprefix("alarm/") for key in metrics if key.startswith("alarm/")} == names
    assert all(metrics[f"hack/{alarm.name}"] == alarm.value for alarm in alarms)
    assert all(math.isfinite(value) for value in metrics.values())
    return names


def value(round, name):
    return watch_round(round)[0][f"hack/{name}"]


@pytest.mark.parametrize("seed", range(10))
def test_an_honest_policy_rings_nowhere_and_every_monitor_has_looked(seed):
    metrics, alarms = watch_round(honest_round(seed))
    assert alarms == ()
    looked = {name.removeprefix("hack/").partition("/")[0] for name in metrics}
    assert looked == set(MONITORS)


def test_a_policy_that_recites_its_item_rings():
    def recite(n, side):
        text = PAIR_OF[n].item(side).text
        return trace(text, text, text)

    assert rung(saying(recite)) == {"copied_own/query", "copied_own/target"}
    assert value(saying(recite), "copied_own/query") == 1.0


def test_a_policy_whose_whole_output_is_its_items_text_rings():
    assert "copied_own/target" in rung(saying(lambda n, side: PAIR_OF[n].item(side).text.upper()))


def test_restating_the_item_in_one_part_and_quoting_it_in_the_cue_is_no_reciting():
    def restate(n, side):
        text = PAIR_OF[n].item(side).text
        prose = f"{ANIMALS[n]} and {PLACES[n]} are what decides here and nothing else that is said"
        return trace(prose, prose, text, keywords=(text,))

    assert rung(saying(restate)) == set()
    assert 0.2 < value(saying(restate), "copied_own/query") < 0.45


def test_a_policy_that_knows_the_gold_text_rings_on_the_query_side_alone():
    def leak(n, side):
        text = target_text(n) if side is Side.QUERY else "a dog"
        return trace("as expected", answer=text)

    assert rung(saying(leak)) == {"copied_other/query"}
    assert value(saying(leak), "copied_other/query") == 1.0


def test_a_leak_through_the_keywords_rings():
    def leak(n, side):
        text = query_text(n) if side is Side.TARGET else "a dog"
        return trace("as expected", keywords=(text,))

    assert rung(saying(leak)) == {"copied_other/target"}


@pytest.mark.parametrize("read", [monitors.READ_GROUPS, 1])
def test_the_tasks_instruction_in_every_query_is_no_leak(read, monkeypatch):
    # However few traces are read, what all items say counts.
    monkeypatch.setattr(monitors, "READ_GROUPS", read)
    instruction = "represent the given picture with the following question about it please"
    pairs = {
        n: replace(pair, query=Item(text=f"{instruction} {pair.query.text}"))
        for n, pair in PAIR_OF.items()
    }
    round = replace(saying(lambda n, side: trace(instruction)), pairs=pairs)
    assert value(round, "copied_other/target") == 0.0


def test_what_stands_in_both_items_is_no_leak():
    pairs = {n: replace(pair, target=pair.query) for n, pair in PAIR_OF.items()}
    metrics, _ = watch_round(replace(saying(lambda n, side: query_text(n)), pairs=pairs))
    assert "hack/copied_other/query" not in metrics


def test_naming_a_short_text_is_neither_reciting_nor_leaking():
    """The demo's items: a label of three words is what a right trace says."""
    pairs = {
        n: make_pair(f"p{n}", query=Item(text="what is this?"), target=Item(text=f"a red {animal}"))
        for n, animal in enumerate(ANIMALS)
    }
    round = replace(
        saying(lambda n, side: trace(f"a red {ANIMALS[n]}", answer=f"a red {ANIMALS[n]}")),
        pairs=pairs,
    )
    metrics, alarms = watch_round(round)
    assert alarms == ()
    assert not [name for name in metrics if "copied" in name]


def test_a_policy_paid_by_length_rings():
    def parts_of(one):
        return replace(one.parts, total=0.01 * len(one.trajectory.response_ids))

    round = paid(parts_of)
    assert value(round, "reward_by_length") == pytest.approx(1.0)
    assert "reward_by_length" in rung(replace(round, second={}))


def test_broken_traces_that_are_short_and_unpaid_say_nothing_about_length():
    def break_some(one):
        if one.trajectory.key.sibling % 2:
            return replace(
                one,
                trajectory=replace(one.trajectory, response_ids=np.zeros(3, dtype=int)),
                parts=replace(one.parts, format=0.0, outcome=0.0, total=0.0),
            )
        return replace(one, trajectory=replace(one.trajectory, response_ids=np.zeros(20)))

    assert "hack/reward_by_length" not in watch_round(each(break_some))[0]


@pytest.mark.parametrize(
    ("change", "name"),
    [(Change.WITHOUT_EVIDENCE, "evidence_worth"), (Change.OTHER_TRACE, "trace_worth")],
)
@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_a_policy_whose_evidence_or_trace_does_not_matter_rings(change, name, factor):
    same = {key: factor * reward for key, reward in HONEST.probe.as_is.items()}
    probe = replace(HONEST.probe, changed={**HONEST.probe.changed, change: same})
    assert rung(replace(HONEST, probe=probe)) == {name}


def test_a_probe_in_which_nothing_could_be_changed_gives_no_metric():
    probe = Probe(as_is={}, changed={change: {} for change in Change})
    metrics, _ = watch_round(replace(HONEST, probe=probe))
    assert not [name for name in metrics if name.endswith("_worth")]


@pytest.mark.parametrize("items", [HONEST.items, {}])
def test_a_policy_that_says_one_thing_of_all_items_rings(items):
    rng = np.random.default_rng(1)
    one = rng.normal(size=SIZE)
    vectors = {key: unit(one + 0.05 * rng.normal(size=SIZE)) for key in HONEST.vectors}
    names = {name.partition("/")[0] for name in rung(replace(HONEST, vectors=vectors, items=items))}
    assert names == ({"effective_rank", "distance"} if items else {"effective_rank"})


def test_items_that_are_close_by_nature_are_no_collapse():
    """An Embedder whose vectors share a direction, with traces as without."""
    shared = np.full(SIZE, 6.0)
    close = {key: unit(shared + v * 5) for key, v in HONEST.vectors.items()}
    items = {name: close[f"{name}/1"] for name in HONEST.items}
    round = replace(HONEST, vectors=close, items=items)
    assert value(round, "mean_cosine/query") > 0.9
    assert rung(round) == set()


def test_a_policy_that_has_nothing_left_to_learn_rings():
    round = paid(lambda one: replace(one.parts, accuracy=1.0, outcome=0.3, total=0.35))
    assert rung(round) == {"saturated"}


def test_all_right_with_rewards_that_still_differ_is_success_and_does_not_ring():
    round = paid(lambda one: replace(one.parts, accuracy=1.0))
    assert value(round, "all_right") == 1.0
    assert rung(round) == set()


def test_a_policy_that_never_finds_its_pair_rings():
    round = paid(lambda one: replace(one.parts, accuracy=0.0))
    assert rung(round) == {"all_wrong"}


def test_a_policy_that_pleases_one_embedder_only_rings():
    rng = np.random.default_rng(2)
    second = {str(one.trajectory.key): -one.parts.total for one in HONEST.scored}
    assert rung(replace(HONEST, second=second)) == {"agreement"}
    assert value(replace(HONEST, second=second), "agreement") == pytest.approx(-1.0)
    noise = {key: float(rng.normal()) for key in second}
    assert value(replace(HONEST, second=noise), "agreement") < 0.2


def test_few_groups_give_metrics_but_no_alarm():
    few = [one for one in HONEST.scored if one.trajectory.key.group.serial < MIN_COUNT // 2 - 1]
    cheat = [replace(one, parts=replace(one.parts, accuracy=0.0)) for one in few]
    metrics, alarms = watch_round(replace(HONEST, scored=cheat, probe=None))
    assert metrics["hack/all_wrong"] == 1.0
    assert alarms == ()


def test_an_empty_round_gives_nothing():
    empty = WatchedRound(scored=[], pairs={}, vectors={}, relevance=Relevance([]))
    assert watch_round(empty) == ({}, ())


def test_order_of_traces_changes_nothing():
    rng = np.random.default_rng(3)
    shuffled = [HONEST.scored[i] for i in rng.permutation(len(HONEST.scored))]
    before, after = watch_round(HONEST)[0], watch_round(replace(HONEST, scored=shuffled))[0]
    assert after == pytest.approx(before)


def test_an_alarm_says_what_was_found_what_it_means_and_what_to_do():
    (alarm,) = watch_round(paid(lambda one: replace(one.parts, accuracy=0.0)))[1]
    text = str(alarm)
    monitor = monitor_of("all_wrong")
    assert text.startswith("all_wrong 1 (limit 0.9)")
    assert monitor.meaning in text
    assert monitor.advice in text


def test_spearman_by_hand_with_ties():
    assert spearman(np.array([1, 2, 3]), np.array([30, 20, 10])) == pytest.approx(-1.0)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
    found = spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4]))
    assert found == pytest.approx(math.sqrt(4.5 / 5))
    assert spearman(np.array([1, 1]), np.array([1, 2])) is None


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=20))
def test_spearman_sees_order_alone_and_both_ways(points):
    left, right = np.array(points, dtype=float).T
    found = spearman(left, right)
    if found is None:
        assert min(len(set(left)), len(set(right))) == 1
    else:
        assert -1 - 1e-9 <= found <= 1 + 1e-9
        assert spearman(np.exp(left / 9), 3 * right) == pytest.approx(found)
        assert spearman(-left, right) == pytest.approx(-found)
        assert spearman(right, left) == pytest.approx(found)


def test_the_effective_rank_by_hand():
    assert effective_rank(np.eye(5)) == pytest.approx(5.0)
    assert effective_rank(np.ones((5, 3))) == pytest.approx(1.0)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(math.exp(entropy))


def test_words_of_any_script():
    assert words_of("A RED-Star, a\nstar!") == ["a", "red", "star", "a", "star"]
    assert words_of("\u7ea2\u8272star\ud55c") == ["\u7ea2", "\u8272", "star", "\ud55c"]
    assert words_of("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \U0001f600") == [
        "\u05e9\u05dc\u05d5\u05dd",
        "\u05e2\u05d5\u05dc\u05dd",
    ]


def test_prose_leaves_tags_and_cue_out_and_takes_what_is_no_trace_as_it_is():
    assert words_of(prose_of(TRACES[Kind.TEXT], Item(text=""))) == ["a", "dog", "yes", "a", "dog"]
    assert prose_of("no trace", Item(text="")) == "no trace"
    item = Item(text="", kind=Kind.IMAGE, uris=("/a",))
    boxed = TCoT(thinking="x", rethink="y", answer="z", cues=Cues(boxes=(Box(0, 0, 0.5, 0.5),)))
    assert words_of(prose_of(render(boxed, kind=Kind.IMAGE), item)) == ["x", "y", "z"]


def test_the_first_trace_of_a_group_stands_for_it():
    vectors = {
        key: HONEST.vectors[key] if key.endswith("/0") else np.full(SIZE, SIZE**-0.5)
        for key in HONEST.vectors
    }
    assert value(replace(HONEST, vectors=vectors), "mean_cosine/query") == pytest.approx(
        value(HONEST, "mean_cosine/query")
    )


def test_items_that_are_right_for_each_other_count_once_in_what_lies_apart():
    """All queries seek the first target too: nothing is left that must lie apart."""
    golds = [replace(pair, target=PAIR_OF[min(PAIR_OF)].target) for pair in PAIR_OF.values()]
    assert "hack/mean_cosine/query" in watch_round(HONEST)[0]
    pairs = {n: pair for n, pair in PAIR_OF.items() if n == min(PAIR_OF)}
    alone = [one for one in HONEST.scored if one.trajectory.key.group.serial in pairs]
    other = [one for one in HONEST.scored if one.trajectory.key.group.serial == max(PAIR_OF)]
    two = replace(HONEST, scored=[*alone, *other])
    assert "hack/mean_cosine/query" in watch_round(two)[0]
    known = Relevance([*PAIR_OF.values(), *golds])
    assert "hack/mean_cosine/query" not in watch_round(replace(two, relevance=known))[0]
