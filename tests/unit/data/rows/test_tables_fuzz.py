"""Damaged parquet, Arrow and CSV files: whatever they hold, only this project's errors come out.

For longer: `settings(max_examples=10_000)(test)()` of a test below.
"""

import io
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import MediaConfig
from data.errors import DataError
from data.media.pictures import load_pictures
from data.sets.load_sets import load_set
from tests.builders import write_picture, write_set

pytestmark = pytest.mark.usefixtures("table_cache")


def seeds() -> dict[str, bytes]:
    """Return whole files by name: rows with pictures as bytes, as structs, and as paths."""
    with tempfile.TemporaryDirectory() as name:
        picture = write_picture(Path(name) / "a.png", 8, 8).read_bytes()
    count = 5
    table = pa.table(
        {
            "qry": [f"what is {n}?" for n in range(count)],
            "qry_image_path": [picture, None, b"", b"abc", picture],
            "pos_text": [None, "a dog", "a cat", "\u00e9", "x" * 99],
            "pos_image_path": pa.array(
                [{"bytes": picture, "path": "a.png"}, None, {"path": "a.png"}, {}, {}],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "pos_evidence": [None, {"text_keywords": ["dog"]}, None, None, None],
            "label": list(range(count)),
        }
    )
    stream, file = io.BytesIO(), io.BytesIO()
    for new, sink in ((pa.ipc.new_stream, stream), (pa.ipc.new_file, file)):
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    plain, small = io.BytesIO(), io.BytesIO()
    pq.write_table(table, plain, compression="none", row_group_size=2)
    pq.write_table(table, small, compression="zstd", use_dictionary=False)
    text = b'qry,qry_image_path,pos_text,pos_evidence\n"a\nb",a.png,c,\nd,,e,"{""bbox_2d"": [1]}"\n'
    return {
        "plain.parquet": plain.getvalue(),
        "small.parquet": small.getvalue(),
        "rows.stream": stream.getvalue(),
        "rows.arrow": file.getvalue(),
        "rows.csv": text,
        "rows.tsv": text.replace(b",", b"\t"),
    }


SEEDS = seeds()
DAMAGE = st.tuples(
    # The ends of the files, where what is in them is described, are hit most.
    st.one_of(st.integers(0, 1 << 16), st.integers(0, 64), st.integers(-1200, -1)),
    st.sampled_from(["put", "delete", "insert", "cut"]),
    st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4, b'"'])),
)


def damaged(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for place, how, new in changes:
        at = place % max(len(content), 1)
        before, after = content[:at], content[at:]
        if how == "put":
            content = before + new + after[len(new) :]
        elif how == "delete":
            content = before + after[len(new) :]
        else:
            content = before + new + after if how == "insert" else before
    return content


@given(st.sampled_from(sorted(SEEDS)), st.lists(DAMAGE, min_size=1, max_size=3))
def test_damaged_tables_are_read_or_refused_by_name(name, changes):
    with tempfile.TemporaryDirectory() as folder:
        config = write_set(Path(folder), [], extra_fields="ignore")
        write_picture(Path(config.root) / "a.png", 8, 8)
        path = Path(folder) / name
        path.write_bytes(damaged(SEEDS[name], changes))
        reason, loaded = str(path), None
        try:
            loaded = load_set(replace(config, path=str(path)))
        except DataError as error:
            reason = str(error)
        assert reason.startswith(str(path))
        reason.encode()
        if loaded is None:
            return
        for bad in loaded.bad_rows:
            assert bad.reason.startswith(f"{path} row ")
            bad.reason.encode()
        items = [item for pair in loaded.pairs for item in (pair.query, pair.target)]
        uris = {uri for item in items for uri in item.uris}
        pictures, failed = load_pictures(uris, MediaConfig(max_decode_pixels=1 << 16))
        assert pictures.keys() | failed.keys() == uris
        assert all(reason.startswith(uri) for uri, reason in failed.items())
