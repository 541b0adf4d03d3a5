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


def make_set(name, size):
    pairs = tuple(make_pair(f"{name}{i}", source=name) for i in range(size))
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
