"""The Embedder's batches: pairs whose pictures are broken never reach the ranks."""

from cluster.jobs.embedder import with_pictures
from configs.schema import EmbedderConfig, RunConfig
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
