"""Damaged tables and strange cells of `beir` sets: only this project's errors come out.

For longer: `settings(max_examples=10_000)(test)()` of a test below.
"""

import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import DataSetConfig, MediaConfig
from data.errors import DataError
from data.media.pictures import load_pictures
from data.rows.beir_rows import PARTS
from data.sets.load_sets import load_set
from tests.builders import write_beir, write_picture
from tests.unit.data.rows.test_tables_fuzz import DAMAGE, damaged

pytestmark = pytest.mark.usefixtures("table_cache")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def seeds() -> dict[str, pa.Table]:
    with tempfile.TemporaryDirectory() as name:
        picture = write_picture(Path(name) / "a.png", 8, 8).read_bytes()
    cells = [{"bytes": picture}, {"path": "a.png"}, {"bytes": b"none"}, None]
    return {
        "queries": pa.table({"query-id": [1, 2, 3], "query": ["a?", "b?", None]}),
        "corpus": pa.table(
            {
                "corpus-id": ["1", "x", "y", "z"],
                "image": pa.array(cells, IMAGE),
                "text": [None, "a", None, "b"],
            }
        ),
        "qrels": pa.table(
            {
                "query-id": [1, 1, 2, 2, 9],
                "corpus-id": ["1", "x", "x", "lost", "y"],
                "score": [1, 2, 0, 1, 1],
            }
        ),
    }


SEEDS = seeds()
IDS = st.one_of(st.integers(-1, 4), st.integers(-(1 << 63), (1 << 63) - 1))
NAMES = st.one_of(st.sampled_from(["1", "2", "x", "", "a.png", "../a.png", "\0"]), st.text())
COLUMNS = {
    pa.int64(): IDS,
    pa.string(): NAMES,
    pa.large_string(): NAMES,
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.null(): st.none(),
    pa.binary(): st.binary(max_size=8),
    IMAGE: st.fixed_dictionaries({"bytes": st.binary(max_size=8), "path": NAMES}),
    pa.list_(pa.string()): st.lists(NAMES, max_size=2),
    pa.decimal128(5, 2): st.decimals(-9, 9, places=2),
    pa.timestamp("us"): IDS,
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["1", "2", "x"]),
}
COLUMN = st.sampled_from([*COLUMNS]).flatmap(
    lambda kind: st.tuples(
        st.just(kind), st.lists(st.one_of(st.none(), COLUMNS[kind]), min_size=5, max_size=5)
    )
)
CHANGE = st.tuples(
    st.sampled_from(PARTS),
    st.sampled_from(["query-id", "corpus-id", "query", "image", "text", "title", "score", "other"]),
    st.one_of(st.none(), COLUMN),
)


def check(config: DataSetConfig, folder: Path) -> None:
    """Assert that a set is refused by its path, or that all it holds can be written and read."""
    reason, loaded = config.path, None
    try:
        loaded = load_set(config)
    except DataError as error:
        reason = str(error)
    assert reason.startswith(config.path)
    reason.encode()
    if loaded is None:
        return
    for bad in loaded.bad_rows:
        file, row = loaded.place(bad.index)
        assert bad.reason.startswith(f"{file} row {row}, ")
        bad.reason.encode()
    items = [item for pair in loaded.pairs for item in (pair.query, pair.target)]
    items += loaded.distractors.values()
    for item in items:
        repr(item).encode()
        assert item.text or item.uris
        assert all(Path(uri).is_relative_to(folder) for uri in item.uris)
    uris = {uri for item in items for uri in item.uris}
    pictures, failed = load_pictures(uris, MediaConfig(max_decode_pixels=1 << 16))
    assert pictures.keys() | failed.keys() == uris


@given(st.sampled_from(PARTS), st.lists(DAMAGE, min_size=1, max_size=3))
def test_damaged_parts_are_read_or_refused_by_name(part, changes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        config = write_beir(folder, **SEEDS)
        write_picture(Path(config.root) / "a.png", 8, 8)
        path = Path(config.path) / part / "test-00000-of-00001.parquet"
        stream = io.BytesIO()
        pq.write_table(SEEDS[part], stream)
        path.write_bytes(damaged(stream.getvalue(), changes))
        check(config, folder)


@given(st.lists(CHANGE, min_size=1, max_size=3))
def test_any_column_of_any_type_is_read_or_refused_by_name(changes):
    tables = dict(SEEDS)
    for part, column, content in changes:
        table = tables[part]
        if column in table.column_names:
            table = table.drop_columns([column])
        if content is not None:
            kind, cells = content
            try:
                array = pa.array(cells[: table.num_rows], kind)
            except (ValueError, pa.ArrowException):  # a text that is no UTF-8, a number too large
                continue
            table = table.append_column(column, array)
        tables[part] = table
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        config = write_beir(folder, **tables, extra_fields="ignore")
        write_picture(Path(config.root) / "a.png", 8, 8)
        check(config, folder)
