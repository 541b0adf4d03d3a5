"""The Embedder's batches: readable pictures, identities, and hard negatives in disguise."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from cluster.jobs.embedder import (
    contrastive_batches,
    held_out_hit_at_1,
    make_row,
    negatives_traces,
    warn_of_leak,
    with_pictures,
    write_readme,
)
from configs.common import DataConfig, MediaConfig, RunConfig
from configs.schema import EmbedderConfig
from data.errors import NothingToTrainOn
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import Item, Kind
from tests.builders import TRACES, WITHOUT_AN_ITEM, loaded_set, make_pair, write_picture
from tests.shared_pictures import DecoderHere

CONFIG = EmbedderConfig(run=RunConfig(dir="run"), model="m")
DECODER = DecoderHere()


@pytest.mark.parametrize("content", [b"no picture", WITHOUT_AN_ITEM.read_bytes()])
def test_a_pair_with_a_broken_picture_is_left_out_and_the_others_stay(tmp_path, capsys, content):
    good = write_picture(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    pairs = [
        make_pair(name, query=Item(text="q", kind=Kind.IMAGE, uris=(str(path),)))
        for name, path in (("a", good), ("b", bad), ("c", good))
    ]
    kept, pictures = with_pictures([*pairs, make_pair("text")], CONFIG, DECODER)
    assert [pair.pair_id for pair in kept] == ["a", "c", "text"]
    assert set(pictures.sizes) == {str(good)}
    assert "bad.png: not a readable picture" in capsys.readouterr().err


def test_frames_are_shrunk_and_what_crops_are_made_of_is_not(tmp_path):
    still, frame = (str(write_picture(tmp_path / f"{name}.png")) for name in ("still", "frame"))
    video = Item(text="q", kind=Kind.VIDEO, uris=(frame, still))
    pair = make_pair(query=video, target=Item(text="t", kind=Kind.IMAGE, uris=(still,)))
    media = MediaConfig(frame_min_pixels=100, frame_max_pixels=300)
    _, pictures = with_pictures([pair], replace(CONFIG, data=DataConfig(media=media)), DECODER)
    assert pictures.sizes == {still: (30, 40), frame: (15, 20)}


def test_a_set_without_a_readable_picture_ends_with_a_reason(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    pair = make_pair("a", query=Item(text="q", kind=Kind.IMAGE, uris=(str(bad),)))
    loaded = loaded_set(name="set", pairs=(pair,), bad_rows=())
    feed = PairFeed([loaded], {"set": 1.0}, batch=1, seed=0)
    with pytest.raises(NothingToTrainOn, match="20 batches in a row had fewer than learner"):
        next(contrastive_batches(feed, CONFIG, Relevance([pair]), DECODER))


def test_batches_go_on_where_a_checkpoint_stopped():
    sets = [
        loaded_set(name=name, pairs=tuple(make_pair(f"{name}{i}") for i in range(5)), bad_rows=())
        for name in ("x", "y")
    ]
    relevance = Relevance(pair for one in sets for pair in one.pairs)

    def feed():
        return PairFeed(sets, {"x": 1.0, "y": 2.0}, batch=2, seed=0)

    straight = list(islice(contrastive_batches(feed(), CONFIG, relevance, DECODER), 9))
    _, state = straight[3]
    resumed = feed()
    resumed.restore(state)
    assert list(islice(contrastive_batches(resumed, CONFIG, relevance, DECODER), 5)) == straight[4:]


def test_batches_without_video_come_in_the_order_of_earlier_releases():
    sets = [
        loaded_set(
            name=name, pairs=tuple(make_pair(f"{name}{i}") for i in range(size)), bad_rows=()
        )
        for name, size in (("a", 5), ("b", 9), ("c", 4))
    ]
    relevance = Relevance(pair for loaded in sets for pair in loaded.pairs)
    feed = PairFeed(sets, {"a": 1.0, "b": 2.0, "c": 0.5}, batch=2, seed=3)
    config = replace(CONFIG, sub_batches=3)
    batches = list(islice(contrastive_batches(feed, config, relevance, DECODER), 5))
    drawn = [[text_of(row.query).split()[1][:2] for row in rows] for (rows, _), _ in batches]
    assert [" ".join(names) for names in drawn] == [
        "a4 a2 b5 b1 a1 a3",
        "a3 a1 b2 b4 a4 a0",
        "b0 b7 b8 b6 b6 b5",
        "c0 c3 b3 b1 b2 b0",
        "b7 b4 b6 b8 c2 c1",
    ]
    assert batches[-1][1] == {"batches": 15, "set/a": 9, "set/b": 20, "set/c": 4}


NEGATIVE = Item(text="a hard one")
TRACE = TRACES[Kind.TEXT]
ALWAYS = replace(CONFIG, trace_dropout=0.0, evidence_dropout=0.0)
NEVER = replace(CONFIG, trace_dropout=1.0)


def row_of(pair, config, traces=None, decoded=frozenset()):
    rng, relevance = np.random.default_rng(0), Relevance([pair])
    return make_row(pair, rng, config, traces or {}, decoded, relevance)


def text_of(content):
    return "".join(part for part in content if isinstance(part, str))


def feed_of(*pairs, batch):
    return PairFeed(
        [loaded_set(name="set", pairs=pairs, bad_rows=())], {"set": 1.0}, batch=batch, seed=0
    )


def test_a_row_names_the_targets_of_its_batch_that_are_right_for_its_query():
    dog, puppy, cat = (Item(text=text) for text in ("a dog", "a puppy", "a cat"))
    pairs = [
        make_pair("a", target=dog),
        make_pair("b", query=make_pair("a").query, target=puppy),
        make_pair("c", target=puppy),
        make_pair("d", target=cat, label="feline"),
        make_pair("e", target=Item(text="a kitten"), label="feline"),
    ]
    feed = feed_of(*pairs, batch=5)
    [((rows, _), _)] = islice(contrastive_batches(feed, CONFIG, Relevance(pairs), DECODER), 1)
    # A batch shuffles its pairs; the numbers of queries and targets tell which is which.
    right = {(text_of(row.query)[6], row.target_key): set(row.right) for row in rows}
    both = {dog.key(), puppy.key()}
    assert right["a", dog.key()] == right["a", puppy.key()] == both
    assert right["c", puppy.key()] == {puppy.key()}
    felines = {cat.key(), Item(text="a kitten").key()}
    assert right["d", cat.key()] == right["e", Item(text="a kitten").key()] == felines


def test_what_is_right_is_known_from_the_whole_set_and_not_from_the_batch_alone():
    pairs = [
        make_pair("a", target=Item(text="a dog")),
        make_pair("b", query=make_pair("a").query, target=Item(text="a puppy")),
        make_pair("c", target=Item(text="a puppy")),
    ]
    relevance = Relevance(pairs)
    feed = feed_of(pairs[0], pairs[2], batch=2)
    [((rows, _), _)] = islice(contrastive_batches(feed, CONFIG, relevance, DECODER), 1)
    right = {row.target_key: set(row.right) for row in rows}
    puppy = Item(text="a puppy").key()
    assert right == {Item(text="a dog").key(): {Item(text="a dog").key(), puppy}, puppy: {puppy}}


def test_a_hard_negative_that_is_another_right_target_of_the_query_is_left_out():
    other, wrong = Item(text="another right one"), Item(text="a wrong one")
    pair = make_pair("a", hard_negatives=(other, wrong))
    relevance = Relevance([pair, make_pair("b", query=pair.query, target=other)])
    config = replace(ALWAYS, hard_negatives=2)
    row = make_row(pair, np.random.default_rng(0), config, {}, set(), relevance)
    assert [text_of(one) for one in row.negatives] == [text_of(row_of(pair, config).negatives[1])]


def test_a_hard_negative_is_shown_with_the_trace_that_its_own_row_has():
    pair = make_pair("a", target_trace=TRACE, hard_negatives=(NEGATIVE,))
    own = make_pair("b", target=NEGATIVE, target_trace=TRACE)
    loaded = loaded_set(name="set", pairs=(pair, own), bad_rows=())
    traces = negatives_traces(PairFeed([loaded], {"set": 1.0}, batch=1, seed=0))
    assert traces == {NEGATIVE.key(): TRACE}
    [negative] = row_of(pair, ALWAYS, traces).negatives
    assert "a hard one" in text_of(negative)
    assert "<thinking>" in text_of(negative)
    [bare] = row_of(pair, NEVER, traces).negatives
    assert "<thinking>" not in text_of(bare)


def test_a_hard_negative_without_trace_stands_beside_bare_targets_only():
    pair = make_pair("a", target_trace=TRACE, hard_negatives=(NEGATIVE,))
    assert row_of(pair, ALWAYS).negatives == ()
    assert len(row_of(pair, NEVER).negatives) == 1
    assert len(row_of(replace(pair, target_trace=""), ALWAYS).negatives) == 1


def test_as_many_hard_negatives_as_asked_and_never_the_target_itself():
    others = tuple(Item(text=f"hard {index}") for index in range(3))
    pair = make_pair("a", hard_negatives=others)
    shown = {n: row_of(pair, replace(ALWAYS, hard_negatives=n)).negatives for n in (0, 2, 9)}
    assert [len(negatives) for negatives in shown.values()] == [0, 2, 3]
    itself = make_pair("a", hard_negatives=(make_pair("a").target,))
    assert row_of(itself, ALWAYS).negatives == ()


def test_a_hard_negative_with_a_broken_picture_is_left_out_and_its_pair_stays(tmp_path):
    good, bad = write_picture(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    one, other = (Item(text="n", kind=Kind.IMAGE, uris=(str(path),)) for path in (bad, good))
    pair = make_pair("a", hard_negatives=(one, other))
    config = replace(ALWAYS, hard_negatives=2)
    kept, pictures = with_pictures([pair], config, DECODER)
    assert kept == [pair]
    assert set(pictures.sizes) == {str(good)}
    [negative] = row_of(pair, config, decoded=pictures.sizes.keys()).negatives
    assert negative[0].uri == str(good)


class FakeGroup:
    """Embeds a text by the letter that its pair is named with."""

    def embed(self, contents, pictures):
        letters = [text_of(content).split()[1][0] for content in contents]
        return np.stack([np.eye(4)["abcd".index(letter)] + 0.01 for letter in letters])


def test_held_out_figures_are_given_over_queries_over_sets_and_by_set():
    pairs = [make_pair(name, source="one" if name < "d" else "two") for name in "abcd"]
    found = held_out_hit_at_1(
        FakeGroup(), pairs, None, replace(CONFIG, dimensions=(2,)), Relevance(pairs)
    )
    for name in ("eval/hit_at_1", "eval/hit_at_1_no_trace"):
        assert {found[name], found[f"{name}_over_sets"], found[f"{name}_by_set/one"]} == {1.0}
    # Two dimensions cannot tell c from d, but tell it from a and b.
    assert found["eval/hit_at_1_dim_2_by_set/one"] == 1.0


def test_where_nothing_held_out_is_left_that_is_logged_and_the_metric_left_out(caplog):
    assert held_out_hit_at_1(FakeGroup(), [], None, CONFIG, Relevance([])) == {}
    assert "eval/hit_at_1: no held-out pair is left to be measured" in caplog.text


class Parrot(FakeGroup):
    """Finds what a query's trace says, and nothing for a query without one."""

    def embed(self, contents, pictures):
        said = [text_of(content) for content in contents]
        letters = [text.partition("<answer>")[2][1:2] or text.split()[1][0] for text in said]
        asked = [text.startswith("query") and "<answer>" not in text for text in said]
        return np.stack(
            [
                -np.ones(4) if blind else np.eye(4)["abcd".index(letter)]
                for letter, blind in zip(letters, asked, strict=True)
            ]
        )


def telling(name, **more):
    trace = f'<thinking> {name}{{"text_keywords": ["{name}"]}}</thinking><rethink> {name}</rethink>'
    query, target = Item(text=f"query {name}"), Item(text=f"{name} {name}")
    return replace(
        make_pair(name, **more),
        query=query,
        target=target,
        query_trace=f"{trace}<answer> {target.text}</answer>",
        target_trace="",
    )


def test_no_held_out_figure_comes_from_traces_that_know_the_answer(caplog):
    pairs = [telling(name) for name in "abcd"]
    found = held_out_hit_at_1(Parrot(), pairs, None, CONFIG, Relevance(pairs))
    assert (found["eval/hit_at_1"], found["eval/hit_at_1_no_trace"]) == (1.0, 0.0)
    warn_of_leak(pairs, found)
    assert "100 % of the held-out queries' traces hold their target's text" in caplog.text

    caplog.clear()
    pairs = [replace(pair, answer_known=True) for pair in pairs]
    found = held_out_hit_at_1(Parrot(), pairs, None, CONFIG, Relevance(pairs))
    warn_of_leak(pairs, found)
    assert (found["eval/hit_at_1"], found["eval/hit_at_1_no_trace"]) == (0.0, 0.0)
    assert not caplog.records
    # The figure without any trace comes first on the console.
    assert next(iter(found)) == "eval/hit_at_1_no_trace"


def test_an_export_says_how_it_must_be_read(tmp_path):
    write_readme(tmp_path, replace(CONFIG, dimensions=(64, 128)))
    text = (tmp_path / "README.md").read_text()
    for words in ("`Summarize the above content in one word:`", "`<emb>`", "64, 128", "first 480"):
        assert words in text
    assert "$" not in text
