"""The Embedder's batches: pairs whose pictures are broken never reach the ranks."""

from itertools import islice

import pytest

from cluster.jobs.embedder import batches, with_pictures
from configs.schema import EmbedderConfig, RunConfig
from data.datasets import PairFeed
from data.errors import DataError
from data.records import LoadedSet
from data.types import Item, Kind
from tests.builders import make_pair, write_picture

CONFIG = EmbedderConfig(run=RunConfig(dir="run"), model="m")


def test_a_pair_with_a_broken_picture_is_left_out_and_the_others_stay(tmp_path, capsys):
    good = write_picture(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    pairs = [
        make_pair(name, query=Item(text="q", kind=Kind.IMAGE, uris=(str(path),)))
        for name, path in (("a", good), ("b", bad), ("c", good))
    ]
    kept, pictures = with_pictures([*pairs, make_pair("text")], CONFIG)
    assert [pair.pair_id for pair in kept] == ["a", "c", "text"]
    assert set(pictures) == {str(good)}
    assert "bad.png: not a readable picture" in capsys.readouterr().err


def test_a_set_without_a_readable_picture_ends_with_a_reason(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    pair = make_pair("a", query=Item(text="q", kind=Kind.IMAGE, uris=(str(bad),)))
    loaded = LoadedSet(name="set", pairs=(pair,), bad_rows=())
    feed = PairFeed([loaded], {"set": 1.0}, batch=1, seed=0)
    with pytest.raises(DataError, match="20 batches in a row had fewer than learner"):
        next(batches(feed, CONFIG))


def test_batches_go_on_where_a_checkpoint_stopped():
    sets = [
        LoadedSet(name=name, pairs=tuple(make_pair(f"{name}{i}") for i in range(5)), bad_rows=())
        for name in ("x", "y")
    ]

    def feed():
        return PairFeed(sets, {"x": 1.0, "y": 2.0}, batch=2, seed=0)

    straight = list(islice(batches(feed(), CONFIG), 9))
    _, state = straight[3]
    resumed = feed()
    resumed.restore(state)
    assert list(islice(batches(resumed, CONFIG), 5)) == straight[4:]
