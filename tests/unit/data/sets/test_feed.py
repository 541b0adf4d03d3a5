"""The order of training: one set per batch, every pair once, resumable, by weight."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import DataConfig
from data.sets.feed import PairFeed, held_out_pairs, supervised_rows
from data.types import Item, Kind
from tests.builders import loaded_set, make_pair


def make_set(name, size, **sides):
    pairs = tuple(make_pair(f"{name}{i}", source=name, **sides) for i in range(size))
    return loaded_set(name=name, pairs=pairs, bad_rows=())


def feed(sizes, *, batch=4, seed=0, weights=None):
    sets = [make_set(name, size) for name, size in sizes.items()]
    return PairFeed(sets, weights or dict.fromkeys(sizes, 1.0), batch=batch, seed=seed)


def ids(batch):
    return [pair.pair_id for pair in batch]


def take(feeder, batches):
    return [name for _ in range(batches) for name in ids(feeder.next())]


def test_a_batch_comes_from_one_set():
    feeder = feed({"a": 40, "b": 60})
    batches = [feeder.next() for _ in range(100)]
    assert all(len({pair.source for pair in batch}) == 1 for batch in batches)
    assert {batch[0].source for batch in batches} == {"a", "b"}


def test_every_pair_comes_once_an_epoch_and_epochs_differ():
    feeder = feed({"a": 20})
    first, second = take(feeder, 5), take(feeder, 5)
    assert sorted(first) == sorted(second) == sorted(f"a{i}" for i in range(20))
    assert first != second


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 100))
def test_no_pair_comes_twice_in_an_epoch_and_only_the_last_short_batch_is_left_out(
    size, batch, seed
):
    feeder = feed({"a": size}, batch=batch, seed=seed)
    whole = max(1, size // batch)
    for _ in range(3):
        epoch = take(feeder, whole)
        assert len(epoch) == len(set(epoch)) == whole * min(batch, size)


def test_pairs_left_out_of_one_epoch_come_in_others():
    feeder = feed({"a": 7}, batch=4)
    assert len(set(take(feeder, 20))) == 7


def test_a_restored_feed_goes_on_identically():
    sizes = {"a": 13, "b": 30, "c": 5}
    straight, stopped = feed(sizes), feed(sizes)
    for _ in range(17):
        straight.next(), stopped.next()
    resumed = feed(sizes)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    for _ in range(40):
        assert ids(resumed.next()) == ids(straight.next())


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_the_sets():
    def order(seed, names):
        feeder = feed(dict.fromkeys(names, 20), seed=seed)
        return [ids(feeder.next()) for _ in range(20)]

    assert order(0, "ab") == order(0, "ba")
    assert order(0, "ab") != order(1, "ab")


def test_sets_are_drawn_by_weight_times_size():
    feeder = feed({"a": 10, "b": 30, "c": 5}, weights={"a": 3.0, "b": 1.0, "c": 0.0})
    drawn = Counter(feeder.next()[0].source for _ in range(2000))
    assert drawn["c"] == 0
    assert drawn["a"] == pytest.approx(1000, abs=100)


VIDEO = Item(text="a clip", kind=Kind.VIDEO, uris=("1.png",))
MIXED = [
    *(make_set("clips", 30, query=VIDEO), make_set("films", 50, target=VIDEO)),
    *(make_set("photos", 20), make_set("texts", 40)),
]
WEIGHTS = dict.fromkeys(("clips", "films", "photos", "texts"), 1.0)


def sources(drawn, batch=4):
    """Return the set of each batch among the pairs of several."""
    named = [{pair.source for pair in drawn[i : i + batch]} for i in range(0, len(drawn), batch)]
    return [name for (name,) in named]


def test_at_most_one_of_several_batches_is_of_video_and_the_others_are_drawn_by_weight_and_size():
    feeder = PairFeed(MIXED, WEIGHTS, batch=4, seed=0)
    drawn = [sources(feeder.next_pairs_of(3)) for _ in range(1000)]
    counted = [Counter(names) for names in drawn]
    videos = [names["clips"] + names["films"] for names in counted]
    assert {sum(names.values()) for names in counted} == {3}
    assert max(videos) == 1
    # Of 80 video pairs among 140: no batch of three is of video with probability (60 / 140) ** 3.
    assert sum(videos) == pytest.approx(1000 - 79, abs=40)
    firsts = Counter(names[0] for names in drawn)
    assert firsts["clips"] + firsts["films"] == pytest.approx(571, abs=60)
    every = sum(counted, Counter())
    assert every["texts"] / every["photos"] == pytest.approx(2, abs=0.3)


def test_a_batch_of_video_that_is_drawn_again_leaves_the_video_where_it_was():
    feeder = PairFeed(MIXED, WEIGHTS, batch=2, seed=0)
    clips = [
        pair.pair_id
        for _ in range(40)
        for pair in feeder.next_pairs_of(4)
        if pair.source == "clips"
    ]
    assert sorted(clips[:30]) == sorted(f"clips{i}" for i in range(30))


def test_draws_with_a_limit_on_video_go_on_identically_after_a_restore():
    straight, stopped, resumed = (PairFeed(MIXED, WEIGHTS, batch=4, seed=5) for _ in range(3))
    for _ in range(9):
        straight.next_pairs_of(3), stopped.next_pairs_of(3)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    for _ in range(30):
        assert ids(resumed.next_pairs_of(3)) == ids(straight.next_pairs_of(3))


@pytest.mark.parametrize("weight", [None, 0.0])
def test_video_has_no_limit_where_no_other_set_can_be_drawn(weight):
    sets = MIXED[:2] if weight is None else MIXED
    weights = {**WEIGHTS, "photos": weight, "texts": weight}
    feeder, single = (PairFeed(sets, weights, batch=4, seed=0) for _ in range(2))
    assert ids(feeder.next_pairs_of(20)) == take(single, 20)


def test_a_batch_by_itself_may_be_of_video_each_time():
    feeder = PairFeed(MIXED, WEIGHTS | {"clips": 1e6}, batch=4, seed=0)
    assert {feeder.next()[0].source for _ in range(20)} == {"clips"}


def test_supervised_rows_are_the_sides_that_have_a_trace():
    pairs = (
        make_pair("1", query_trace="QT", target_trace="TT"),
        make_pair("2", target_trace="TT2"),
        make_pair("3"),
    )
    loaded = loaded_set(name="set", pairs=pairs, bad_rows=())
    rows = list(supervised_rows(loaded, data=DataConfig(templates="brief"), caption=False))
    assert rows == [
        ("set/1/query", ("query 1",), "QT"),
        ("set/1/target", ("target 1",), "TT"),
        ("set/2/target", ("target 2",), "TT2"),
    ]


def test_captions_are_asked_with_their_own_text_whatever_the_prompt_set():
    query = Item(text="What is it?", kind=Kind.TEXT)
    loaded = loaded_set(
        name="set", pairs=(make_pair("1", query=query, query_trace="A cat."),), bad_rows=()
    )
    ((_, content, response),) = supervised_rows(loaded, data=DataConfig(), caption=True)
    assert (content, response) == (("What is it?",), "A cat.")


@pytest.mark.parametrize(
    ("sizes", "samples", "expected"),
    [
        ([90] * 6 + [30], 200, [32, 31, 32, 31, 32, 31, 11]),
        ([500, 500], 512, [256, 256]),
        ([3, 5], 100, [3, 5]),
        ([1000, 2, 1000], 10, [5, 1, 5]),
        ([7, 0, 7], 4, [2, 0, 2]),
        ([], 10, []),
        ([0], 10, [0]),
    ],
)
def test_every_held_out_set_gives_its_share_and_at_least_one_pair(sizes, samples, expected):
    sets = [make_set(f"s{number}", size) for number, size in enumerate(sizes)]
    chosen = held_out_pairs(sets, samples)
    assert chosen == held_out_pairs(sets, samples)
    assert len({(pair.source, pair.pair_id) for pair in chosen}) == len(chosen)
    counted = Counter(pair.source for pair in chosen)
    assert [counted[one.name] for one in sets] == expected


def test_held_out_pairs_are_spread_over_the_rows_of_their_set():
    [*chosen] = held_out_pairs([make_set("s", 10)], 5)
    assert ids(chosen) == ["s0", "s2", "s4", "s6", "s8"]
