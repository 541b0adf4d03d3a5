"""The rows that data/README.md shows are rows of the formats under whose names they stand."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from data.cues import CUE_KEYS, parse_evidence
from data.rows.row_formats import KNOWN_FIELDS
from data.sets.load_sets import load_set
from data.types import Kind
from tests.builders import write_beir, write_picture, write_set

README = (Path(__file__).parents[4] / "data/README.md").read_text()
ROWS = re.findall(r"^`(\w+)`.*?```json\n(.+?)\n```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("table_cache")
@pytest.mark.parametrize(("form", "row"), ROWS, ids=[form for form, _ in ROWS])
def test_each_shown_row_is_read(form, row, tmp_path):
    if form == "beir":
        parts = json.loads(row)
        config = write_beir(
            tmp_path, **{part: pa.Table.from_pylist([parts[part]]) for part in parts}
        )
    else:
        config = write_set(tmp_path, [json.loads(row)], format=form)
    for width, name in enumerate(re.findall(r'"((?:images|videos)/[^"]+)"', row), start=40):
        write_picture(Path(config.root) / name, width)
    loaded = load_set(config)
    assert loaded.bad_rows == ()
    (pair,) = loaded.pairs
    shown = {uri for item in (pair.query, pair.target, *pair.candidates) for uri in item.uris}
    assert len(shown) == len(re.findall(r"\.png", row))


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.VIDEO, Kind.TEXT])
def test_each_shown_evidence_is_read(kind):
    (line,) = re.findall(rf'^{{"{CUE_KEYS[kind]}": .*}}$', README, flags=re.MULTILINE)
    assert parse_evidence(json.loads(line), kind=kind, num_frames=20)


def test_every_format_is_shown():
    assert {form for form, _ in ROWS} == KNOWN_FIELDS.keys()
