"""Encoded items on disk: their order over parts, what a search reads, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.common import MediaConfig
from configs.reward import RewardConfig
from data.errors import DataError
from data.stores.encoded import EncodedItem, EncodedParts, encoded_table
from data.stores.facts import embedder_facts
from data.types import Box, Cues, Kind
from evaluation.search import search

WIDTH = 4


def item(number: int, **changes) -> EncodedItem:
    whole = EncodedItem(
        item_id=f"{number}",
        file=f"{number}.png",
        text="",
        kind=Kind.IMAGE,
        uris=(f"/pictures/{number}.png",),
        trace="",
        cues=Cues(),
    )
    return replace(whole, **changes)


def vectors(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def reward(tmp_path: Path) -> RewardConfig:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("weights")
    (tmp_path / "model/config.json").write_text("{}")
    return RewardConfig(model=str(tmp_path / "model"))


def write(folder: Path, items: list[EncodedItem], rows: np.ndarray, sizes: list[int], **facts):
    """Write parts of these sizes, and the facts."""
    folder.mkdir(exist_ok=True)
    start = 0
    for number, size in enumerate(sizes):
        part = encoded_table(items[start : start + size], rows[start : start + size])
        pq.write_table(part, folder / f"part-{number:05d}.parquet")
        start += size
    facts = {"count": len(items), "model": "m", "embedder": {}} | facts
    (folder / "facts.json").write_text(json.dumps(facts))


def test_items_come_back_as_they_were_whatever_part_holds_them(tmp_path):
    cues = Cues(boxes=(Box(0.1, 0.2, 0.3, 0.4),))
    items = [
        item(0, trace="<thinking>", cues=cues),
        item(1, kind=Kind.VIDEO, uris=("/a.mp4#frame=0", "/a.mp4#frame=9")),
        item(2, kind=Kind.TEXT, uris=(), text="a dog", cues=Cues(keywords=("dog",))),
    ]
    items[1] = replace(items[1], cues=Cues(key_frames=(0, 1)))
    write(tmp_path, items, vectors(3), [1, 2])
    parts = EncodedParts(tmp_path)
    assert len(parts) == 3
    assert parts.items([2, 0, 1, 0]) == [items[2], items[0], items[1], items[0]]


def test_a_part_has_the_documented_columns(tmp_path):
    write(tmp_path, [item(0)], vectors(1), [1])
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.column_names == [
        *("id", "file", "text", "kind", "uris", "trace"),
        *("boxes", "key_frames", "keywords", "vector"),
    ]
    assert str(table.schema.field("vector").type).startswith("list<")
    assert table["vector"].to_pylist() == [vectors(1)[0].tolist()]


def test_a_search_over_parts_finds_what_one_over_the_array_finds(tmp_path):
    count = 2500  # more than are read at a time
    rows = vectors(count)
    write(tmp_path, [item(number) for number in range(count)], rows, [3, 2400, 97])
    parts = EncodedParts(tmp_path)
    queries = rows[[2, 1999, 2450]]
    over_parts, over_array = (search(queries, c, 5) for c in (parts.vectors(), rows))
    assert over_parts.indices[:, 0].tolist() == [2, 1999, 2450]
    assert np.array_equal(over_parts.indices, over_array.indices)
    assert np.array_equal(over_parts.similarities, over_array.similarities)
    names = [hit.item_id for hit in parts.items(over_parts.indices[1].tolist())]
    assert names == [str(index) for index in over_parts.indices[1]]


def test_vectors_are_read_by_their_indices_over_parts(tmp_path):
    rows = vectors(2500)
    write(tmp_path, [item(number) for number in range(2500)], rows, [3, 2400, 97])
    wanted = np.array([0, 2, 3, 1100, 2402, 2403, 2499])
    assert np.array_equal(EncodedParts(tmp_path).rows(wanted), rows[wanted])


def test_more_than_nine_parts_are_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path, [item(number) for number in range(12)], vectors(12), [1] * 12)
    parts = EncodedParts(tmp_path)
    assert np.array_equal(np.concatenate(list(parts.vectors())), vectors(12))


def test_an_unfinished_or_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="name the run folder of a job `encode` that has ended"):
        EncodedParts(tmp_path)
    write(tmp_path, [item(0), item(1)], vectors(2), [1, 1])
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"expected 2 items as facts\.json says, found 1 in 1"):
        EncodedParts(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read"):
        EncodedParts(tmp_path)


def test_another_embedder_or_recipe_is_refused_and_the_same_one_is_not(tmp_path, reward):
    media, folder = MediaConfig(), tmp_path / "encoded"
    facts = {"model": reward.model, "embedder": embedder_facts(reward, media)}
    write(folder, [item(0)], vectors(1), [1], **facts)
    parts = EncodedParts(folder)
    parts.check_embedder(reward, media)
    with pytest.raises(DataError, match="pooling: there 'emb_token', now 'last'"):
        parts.check_embedder(replace(reward, pooling="last"), media)
    with pytest.raises(DataError, match="pixels: there"):
        parts.check_embedder(reward, replace(media, image_max_pixels=1 << 20))
    (Path(reward.model) / "model.safetensors").write_text("others")
    with pytest.raises(DataError, match=f"other files in {reward.model}"):
        parts.check_embedder(reward, media)
