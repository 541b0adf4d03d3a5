"""Queries, corpus and qrels to pairs and distractors, in the layouts of ViDoRe, VisRAG and BEIR."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import DataConfig, MediaConfig
from data.checks.set_figures import (
    CheckedSet,
    Medium,
    contents_of,
    decode_group,
    describe_set,
    media_groups,
    set_aside,
)
from data.errors import DataError
from data.media.pictures import load_pictures
from data.relevance import Relevance
from data.sets.fingerprints import pairs_fingerprint
from data.sets.load_sets import load_set, load_sets
from data.types import Item, Kind
from evaluation.metrics import pools_of
from tests.builders import TRACES, write_beir, write_picture

pytestmark = pytest.mark.usefixtures("table_cache")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
QUERIES = {"query-id": [1, 2, 3], "query": ["how many?", "who?", "where?"]}
QRELS = {"query-id": [1, 1, 2], "corpus-id": [10, 11, 11], "score": [1, 2, 1]}


@pytest.fixture
def corpus(tmp_path):
    """Return four pages, by their ids, as the hub has them."""
    pages = [write_picture(tmp_path / f"{n}.png", 30 + n).read_bytes() for n in range(4)]
    cells = [{"bytes": page, "path": f"{n}.png"} for n, page in enumerate(pages)]
    return pa.table({"corpus-id": [10, 11, 12, 13], "image": pa.array(cells, IMAGE)})


def page(config, row):
    address = f"{config.path}/corpus/test-00000-of-00001.parquet#row={row}&column=image"
    return Item(text="", kind=Kind.PAGE, uris=(address,))


def test_each_qrel_is_a_pair_and_the_rest_of_the_corpus_are_distractors(tmp_path, corpus):
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    loaded = load_set(config)
    assert [(p.query, p.target, p.query_id, p.row) for p in loaded.pairs] == [
        (Item(text="how many?"), page(config, 0), "1", 0),
        (Item(text="how many?"), page(config, 1), "1", 1),
        (Item(text="who?"), page(config, 1), "2", 2),
    ]
    assert loaded.distractors == {5: page(config, 2), 6: page(config, 3)}
    assert loaded.place(2) == (f"{config.path}/qrels/test-00000-of-00001.parquet", 3)
    assert loaded.place(6) == (f"{config.path}/corpus/test-00000-of-00001.parquet", 4)
    assert (loaded.rows, loaded.read, loaded.bad_rows, loaded.unknown_fields) == (7, 5, (), {})


def test_a_set_says_how_large_it_is_whatever_part_is_used(tmp_path, corpus):
    qrels = {**QRELS, "score": [1, 0, 1]}
    figures = {
        load_set(write_beir(tmp_path / f"{place}", QUERIES, corpus, qrels, limit=limit)).beir
        for place, limit in enumerate((0, 1))
    }
    said = "3 queries, 4 corpus entries, 2 qrels above 0 for 2 queries, 1.00 right entries a query"
    assert list(map(str, figures)) == [said]


def test_all_corpus_entries_are_in_the_pool_and_all_golds_are_right(tmp_path, corpus):
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    loaded = load_set(config)
    pool = pools_of(loaded.pairs, Relevance(loaded.pairs), {"set": loaded.distractors.values()})[
        "set"
    ]
    assert pool.items == tuple(page(config, row) for row in range(4))
    assert [pool.relevant[key] for key in dict.fromkeys(p.query.key() for p in loaded.pairs)] == [
        {0, 1},
        {1},
    ]


def test_only_scores_above_0_count_and_the_highest_of_each_pair(tmp_path, corpus):
    qrels = {
        "query-id": [1, 1, 2, 2, 3, 3],
        "corpus-id": [10, 10, 11, 12, 13, 13],
        "score": [0.0, 2.0, 0.4, -1.0, 1.0, 3.0],
    }
    loaded = load_set(write_beir(tmp_path, QUERIES, corpus, qrels))
    assert [(pair.row, pair.grade) for pair in loaded.pairs] == [(1, 2), (2, 1), (5, 3)]
    assert [*loaded.distractors] == [6 + 2]


def test_the_columns_of_published_sets_are_read(tmp_path, corpus):
    """ViDoRe v2 has languages and answers; VisRAG names pages by file, in a split `train`."""
    names = pa.array([f"page {n}.jpg" for n in range(4)], pa.large_string())
    config = write_beir(
        tmp_path,
        {**QUERIES, "query-id": ["a", "b", "c"], "language": ["english"] * 3, "options": [[]] * 3},
        pa.table({"image": corpus["image"], "corpus-id": names, "doc-id": ["d"] * 4}),
        {"query-id": ["b"], "corpus-id": ["page 2.jpg"], "score": [1], "answer": ["5"]},
        split="train",
    )
    (loaded,) = load_sets([config], limits=DataConfig(max_bad_rows=0.0))
    (pair,) = loaded.pairs
    assert pair.query.text == "who?"
    assert pair.target.uris[0].endswith("corpus/train-00000-of-00001.parquet#row=2&column=image")
    assert len(loaded.distractors) == 3
    pictures, failed = load_pictures(pair.target.uris, MediaConfig())
    assert pictures[pair.target.uris[0]].shape == (30, 32, 3)
    assert failed == {}


def test_parts_may_be_shards_or_files_and_write_ids_as_numbers_or_texts(tmp_path, corpus):
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    expected = load_set(config)
    other = tmp_path / "other"
    (other / "corpus").mkdir(parents=True)
    for number in range(2):
        pq.write_table(
            corpus.slice(2 * number, 2), other / f"corpus/test-0000{number}-of-00002.parquet"
        )
    pq.write_table(pa.table(QUERIES), other / "queries.parquet")
    qrels = {**QRELS, "corpus-id": ["10", "11", "11"], "query-id": pa.array([1, 1, 2], pa.uint8())}
    pq.write_table(pa.table(qrels), other / "qrels.parquet")
    loaded = load_set(replace(config, path=str(other)))
    assert [p.query for p in loaded.pairs] == [p.query for p in expected.pairs]
    shard = f"{other}/corpus/test-00001-of-00002.parquet"
    assert [item.uris[0] for item in loaded.distractors.values()] == [
        f"{shard}#row={row}&column=image" for row in (0, 1)
    ]
    assert loaded.place(6) == (shard, 2)


def test_a_corpus_may_be_of_texts_with_titles_or_of_paths(tmp_path):
    texts = {
        "corpus-id": ["x", "y"],
        "title": ["Dogs", None],
        "text": ["They bark.", "Cats purr."],
        "image": pa.nulls(2),
    }
    qrels = {"query-id": [1], "corpus-id": ["x"], "score": [1]}
    loaded = load_set(write_beir(tmp_path / "a", QUERIES, texts, qrels))
    assert loaded.pairs[0].target == Item(text="Dogs They bark.")
    assert [*loaded.distractors.values()] == [Item(text="Cats purr.")]
    paths = {"corpus-id": ["x", "y"], "image": ["x.png", "y.png"]}
    config = write_beir(tmp_path / "b", QUERIES, paths, qrels)
    for width, name in ((30, "x.png"), (40, "y.png")):
        write_picture(Path(config.root) / name, width)
    loaded = load_set(config)
    items = [loaded.pairs[0].target, *loaded.distractors.values()]
    assert [item.uris for item in items] == [(f"{config.root}/{name}.png",) for name in "xy"]


def test_the_fields_of_other_formats_stand_in_the_qrels(tmp_path, corpus):
    qrels = {
        **QRELS,
        "id": ["a", "b", "c"],
        "label": ["l", None, None],
        "query_cot": [TRACES[Kind.TEXT]] * 3,
        "pos_cot": [TRACES[Kind.PAGE]] * 3,
        "pos_evidence": ['{"bbox_2d": [0, 0, 500, 500]}', None, None],
        "hard": [0.5, 0.1, 0.2],
    }
    config = write_beir(tmp_path, QUERIES, corpus, qrels, sample=2, hardest_by="hard")
    pairs = load_set(config).pairs
    assert [(p.pair_id, p.query_trace, p.target_trace) for p in pairs] == [
        (name, TRACES[Kind.TEXT], TRACES[Kind.PAGE]) for name in "bc"
    ]
    (pair, *_) = load_set(replace(config, sample=0, hardest_by="", extra_fields="ignore")).pairs
    assert (pair.label, len(pair.target_evidence.boxes)) == ("l", 1)


def test_a_part_of_the_rows_makes_no_right_page_a_wrong_one(tmp_path, corpus):
    """With the first qrel alone, the other page of its query is no distractor; all others are."""
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    loaded = load_set(replace(config, limit=1))
    assert [pair.row for pair in loaded.pairs] == [0]
    assert [*loaded.distractors] == [5, 6]
    write_beir(tmp_path, QUERIES, corpus, {name: cells[::-1] for name, cells in QRELS.items()})
    loaded = load_set(replace(config, limit=1))
    assert [*loaded.distractors] == [3, 5, 6]
    spread = load_set(replace(config, sample=2))
    assert [pair.row for pair in spread.pairs] == [0, 1]


def test_qrels_that_name_nothing_and_broken_entries_are_set_aside(tmp_path):
    corpus = {"corpus-id": [10, 11, 12, 13], "image": ["a.png", "lost.png", "", "gone.png"]}
    qrels = {
        "query-id": [1, 7, 1, 1, None, 2],
        "corpus-id": [10, 10, 77, 11, 10, 10],
        "score": [1.0, 1.0, 1.0, 1.0, 1.0, None],
    }
    config = write_beir(tmp_path, QUERIES, corpus, qrels)
    write_picture(Path(config.root) / "a.png")
    loaded = load_set(config)
    assert [pair.row for pair in loaded.pairs] == [0]
    names = f"{config.path}/qrels/test-00000-of-00001.parquet"
    entries = f"{config.path}/corpus/test-00000-of-00001.parquet"
    told = [(bad.index, bad.field, bad.reason) for bad in loaded.bad_rows]
    assert told[:3] == [
        (
            1,
            "query-id",
            f"{names} row 2, field 'query-id': expected the id of a row in the set's queries, "
            "found 7; remove the row, or add what it names",
        ),
        (
            2,
            "corpus-id",
            f"{names} row 3, field 'corpus-id': expected the id of a row in the set's corpus, "
            "found 77; remove the row, or add what it names",
        ),
        (
            3,
            "image",
            f"{names} row 4, corpus-id 11, field 'image': file 'lost.png' not found under "
            f"{config.root}; check the set's root",
        ),
    ]
    assert [(index, name) for index, name, _ in told[3:]] == [
        (4, "query-id"),
        (5, "score"),
        (8, "image or text"),
        (9, "image"),
    ]
    assert told[5][2] == (
        f"{entries} row 3, field 'image' or 'text': the entry is empty: no text and no picture; "
        "mend or remove it"
    )
    assert loaded.distractors == {}
    assert (loaded.rows, loaded.read) == (10, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"queries": {"query-id": [1], "text": ["a"]}},
            "queries/test-00000-of-00001.parquet: expected a column 'query' in the queries, found "
            "query-id, text; rename the column that holds it",
        ),
        (
            {"corpus": {"corpus-id": [1], "page": ["a"]}},
            r"expected a column 'image' or 'text' in the corpus, found corpus-id, page",
        ),
        (
            {"qrels": {**QRELS, "score": ["1", "1", "1"]}},
            "field 'score': expected a column of numbers, found one of string; write the column as "
            "numbers",
        ),
        (
            {"qrels": {**QRELS, "query-id": [1.0, 1.0, 2.0]}},
            "field 'query-id': expected a column of whole numbers or texts, found one of double",
        ),
        (
            {"corpus": {"corpus-id": [1, 2], "image": [1, 2]}},
            "field 'image': expected a column of bytes, {bytes, path} or texts, found one of int64",
        ),
        (
            {"queries": {"query-id": [1], "query": [[1]]}},
            "field 'query': expected a column of texts, found one of list<",
        ),
        (
            {"corpus": {"corpus-id": [10, 11, 10], "text": ["a", "b", "c"]}},
            "corpus/test-00000-of-00001.parquet row 3, field 'corpus-id': expected an id of its "
            r"own, found '10', which .* row 1 has; remove one of the two rows",
        ),
        (
            {"queries": {"query-id": [1, None], "query": ["a", "b"]}},
            "row 2, field 'query-id': expected an id, found none; give each row one",
        ),
        (
            {"qrels": {**QRELS, "score": [0, 0, -1]}},
            "beir: expected qrels with a score above 0, found none in 3 rows; give the qrels of "
            "this set",
        ),
        (
            {"qrels": {name: pa.nulls(0) for name in QRELS}},
            "expected qrels with a score above 0, found none in 0 rows",
        ),
    ],
)
def test_sets_that_cannot_be_read_are_refused(tmp_path, corpus, change, message):
    config = write_beir(
        tmp_path, **{"queries": QUERIES, "corpus": corpus, "qrels": QRELS, **change}
    )
    with pytest.raises(DataError, match=message):
        load_set(config)


def test_a_missing_part_names_the_three_expected(tmp_path, corpus):
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    shutil.rmtree(Path(config.path) / "qrels")
    with pytest.raises(
        DataError,
        match=r"beir: expected the three parts queries, corpus and qrels, each a folder of parquet "
        r"files or one file such as queries\.parquet, found no qrels; download the whole data set",
    ):
        load_set(config)
    with pytest.raises(DataError, match="found no queries and no corpus and no qrels"):
        load_set(replace(config, path=str(tmp_path / "nothing")))


def test_a_check_decodes_distractors_and_names_those_that_are_broken(tmp_path, corpus):
    cells = corpus["image"].to_pylist()
    cells[0]["bytes"] = b"no picture"
    cells[3]["bytes"] = b"none either"
    corpus = corpus.set_column(1, "image", pa.array(cells, IMAGE))
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    loaded = load_set(config)
    checked = CheckedSet(
        settings=config,
        held_out=True,
        loaded=loaded,
        problems=(),
    )
    limits = MediaConfig()
    media = {
        row.pop("uri"): Medium(**row)
        for group in media_groups(loaded.pairs, 8, loaded.distractors.values())
        for row in decode_group(group, limits)
    }
    lines = [
        (Path(x["file"]).parent.name, x["row"], x["field"]) for x in set_aside(checked, media, 8)
    ]
    assert lines == [("qrels", 1, "corpus.image"), ("corpus", 4, "corpus.image")]
    figures = describe_set(checked, media, contents_of(loaded, media, 8), limits)
    assert figures["distractors"] == 2
    assert figures["media"]["shown"] == 4
    assert figures["media"]["set_aside"] == 2


def test_the_fingerprint_of_a_set_covers_its_three_parts(tmp_path, corpus):
    config = write_beir(tmp_path, QUERIES, corpus, QRELS)
    prints = []
    for queries in (QUERIES, {**QUERIES, "query": ["how many?", "who?", "when?"]}):
        write_beir(tmp_path, queries, corpus, QRELS)
        prints.append(pairs_fingerprint([config], [load_set(config)]))
    assert prints[0]["file of set 'set'"].startswith("3 files, ")
    assert prints[0] != prints[1]
