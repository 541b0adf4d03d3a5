"""FAISS indexes of encoded vectors: what they find, when a file is taken again, what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.errors import ConfigError, DataError
from data.stores import vector_index
from data.stores.encoded import EncodedItem, EncodedParts, encoded_table
from data.stores.vector_index import VectorIndex, lists_of, probes_of
from data.types import Cues, Kind
from evaluation.search import search

KINDS = ("flat", "ivf", "hnsw", "binary")
COUNT, WIDTH = 3000, 60
RECALL = {"flat": 1.0, "ivf": 0.95, "hnsw": 0.95, "binary": 0.8}
"""Least that each finds of the vectors below."""


def vectors(seed: int, count: int = COUNT, width: int = WIDTH) -> np.ndarray:
    """Return unit vectors around 50 centres, as items of 50 subjects are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((50, width))
    rows = centres[rng.integers(50, size=count)] + 0.7 * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def parts_of(folder: Path, rows: np.ndarray, size: int = 1024) -> EncodedParts:
    """Write vectors as parts of ``size`` rows, and open them."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(rows), size)):
        items = [
            EncodedItem(
                item_id=f"{start + place}",
                file="rows.jsonl",
                text="a text",
                kind=Kind.TEXT,
                uris=(),
                trace="",
                cues=Cues(),
            )
            for place in range(len(rows[start : start + size]))
        ]
        table = encoded_table(items, rows[start : start + size])
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    facts = {"count": len(rows), "model": "m", "embedder": {}}
    (folder / "facts.json").write_text(json.dumps(facts))
    return EncodedParts(folder)


def built(parts: EncodedParts, kind: str, **settings: int) -> VectorIndex:
    index = VectorIndex(parts, kind, **settings)
    assert not index.is_built
    assert sum(index.build()) == len(parts)
    assert index.is_built
    return index


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return vectors(0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> EncodedParts:
    return parts_of(tmp_path_factory.mktemp("encoded"), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_the_nearest_in_order_and_is_read_again(parts, rows, kind) -> None:
    queries, k = vectors(1)[:50], 10
    exact = search(queries, rows, k)
    index = built(parts, kind)
    indices, similarities = index.search(queries, k)
    shares = [len(set(a) & set(b)) / k for a, b in zip(indices, exact.indices, strict=True)]
    assert np.mean(shares) >= RECALL[kind]
    assert (np.diff(similarities, axis=1) <= 0).all()
    expected = np.einsum("qd,qkd->qk", queries, rows[indices])
    assert np.abs(similarities - expected).max() < 1e-5
    again = VectorIndex(parts, kind)
    assert again.is_built
    assert np.array_equal(again.search(queries, k)[0], indices)
    assert [file.name for file in parts.folder.glob(f"index-{kind}*")] == [f"index-{kind}.faiss"]


def test_more_probes_and_more_rescored_find_more(parts, rows) -> None:
    queries, k = vectors(1)[:50], 10
    exact = search(queries, rows, k).indices
    for kind, setting, few, many in (("ivf", "probes", 1, 10**6), ("binary", "rescore", 1, 300)):
        index = VectorIndex(parts, kind)
        if not index.is_built:
            list(index.build())
        shares = []
        for value in (few, many):
            indices, _ = VectorIndex(parts, kind, **{setting: value}).search(queries, k)
            shares.append(np.mean([np.isin(a, b) for a, b in zip(indices, exact, strict=True)]))
        assert shares[0] < shares[1] == 1.0


def test_the_number_of_lists_follows_from_the_number_of_vectors() -> None:
    assert [lists_of(count) for count in (1, 77, 78, 3000, 10**6)] == [1, 1, 2, 76, 4000]
    assert [probes_of(lists) for lists in (1, 76, 4000)] == [1, 8, 250]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_vectors_than_are_asked_for_come_all_and_equal_ones_by_index(tmp_path, kind) -> None:
    rows = np.repeat(np.eye(3, 5, dtype=np.float32), 2, axis=0)
    index = built(parts_of(tmp_path, rows, size=4), kind)
    indices, similarities = index.search(rows[2:3], 10)
    assert indices.tolist() == [[2, 3, 0, 1, 4, 5]]
    assert similarities.tolist() == [[1, 1, 0, 0, 0, 0]]


def test_what_the_probed_lists_do_not_hold_is_minus_one_at_the_end(parts) -> None:
    index = VectorIndex(parts, "ivf", probes=1)
    if not index.is_built:
        list(index.build())
    [indices], [similarities] = index.search(vectors(1)[:1], 1000)
    count = int((indices >= 0).sum())
    assert 0 < count < 1000
    assert (indices[count:] == -1).all()
    assert (similarities[: count - 1] >= similarities[1:count]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_other_vectors_is_stale_though_count_and_facts_are_the_same(
    tmp_path, kind
) -> None:
    first, second = vectors(2, 100), vectors(3, 100)
    list(VectorIndex(parts_of(tmp_path, first), kind).build())
    parts = parts_of(tmp_path, second)
    index = built(parts, kind)
    assert index.search(second[:5], 1)[0].tolist() == [[0], [1], [2], [3], [4]]


def test_a_damaged_file_is_built_again(tmp_path, rows) -> None:
    parts = parts_of(tmp_path, rows[:100])
    index = built(parts, "flat")
    content = index.path.read_bytes()
    for damaged in (b"", content[:-5], content[-32:], b"no index" + content[-32:]):
        index.path.write_bytes(damaged)
        assert sum(built(parts, "flat").build()) == 100
    assert index.path.read_bytes() == content


def test_a_query_of_other_dimensions_is_refused(parts) -> None:
    index = VectorIndex(parts, "flat")
    if not index.is_built:
        list(index.build())
    with pytest.raises(DataError, match=r"expected queries of 60 dimensions.*found \[1, 59\]"):
        index.search(np.ones((1, WIDTH - 1), dtype=np.float32), 1)


def test_a_file_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, rows) -> None:
    parts = parts_of(tmp_path, rows[:10])
    index = VectorIndex(parts, "flat")
    index.path.mkdir()
    with pytest.raises(DataError, match="the index cannot be written there"):
        list(index.build())
    assert not list(tmp_path.glob("*.part"))


def test_without_faiss_an_index_is_refused_with_the_remedy(parts, monkeypatch) -> None:
    monkeypatch.setattr(vector_index, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"'hnsw' needs FAISS.*pip install.*index=exact"):
        VectorIndex(parts, "hnsw")
