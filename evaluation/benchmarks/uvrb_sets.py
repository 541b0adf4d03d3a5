"""The sets of UVRB: texts, pictures and videos that seek videos, in three files of JSON lines."""

import os
from typing import Any

from data.rows.row_formats import RowReader
from data.types import Item
from evaluation.benchmarks.reading import NOTHING, SetReader, Shown, filled, unlike

FILES = ("queries", "corpus", "instances")
"""The files under `jsonl/`."""
RELEASED = "released"
PROMPTED = frozenset(("CMRB", "DiDeMo"))
"""Sets whose prompt the released code finds: it looks for the others under another spelling."""
STORED_RATE = 8.0
"""Frames a second that the released code takes the stored frames for."""
MAX_TEXT = 8192
"""Characters of a query that the released settings leave."""


def read_uvrb(reader: SetReader) -> None:
    """Queries over all videos of the corpus, each with one right video or more."""
    queries, corpus, instances = reader.places
    for row in reader.rows(corpus, "id", "video"):
        key = filled(row, "id")
        if key in reader.candidates:
            raise unlike(row, "id", "an id of its own", key)
        reader.candidates[key] = Item(text="", **_video(reader, row)._asdict())

    right: dict[str, dict[str, int]] = {}
    for row in reader.rows(instances, "qid", "pos"):
        grades = right.setdefault(filled(row, "qid"), {})
        for key in _ids(row, "pos"):
            if key not in reader.candidates:
                raise unlike(row, "pos", "ids of the corpus", key)
            grades[key] = 1

    for row in reader.rows(queries, "id"):
        query_id = filled(row, "id")
        item = Item(text=_text(reader, row), **_shown(reader, row)._asdict())
        if not (row.text("text") or item.uris or reader.absent):
            raise unlike(row, "text", "a text, a picture or a video", "none")
        reader.add_query(query_id, item, right.get(query_id, {}), (), row.where)


def _text(reader: SetReader, row: RowReader) -> str:
    """Return what a query says, behind the set's prompt."""
    benchmark_set = reader.benchmark_set
    prompt = benchmark_set.instruction
    if reader.prompts == RELEASED and benchmark_set.name not in PROMPTED:
        prompt = ""
    return " ".join(filter(None, (prompt, row.text("text")))).strip()[:MAX_TEXT]


def _shown(reader: SetReader, row: RowReader) -> Shown:
    """Return what a query shows: with a picture, its video does not count."""
    if picture := row.text("image"):
        return reader.picture(f"images/{picture}", row.where)
    return _video(reader, row) if row.text("video") else NOTHING


def _video(reader: SetReader, row: RowReader) -> Shown:
    folder = os.path.splitext(filled(row, "video"))[0]
    name = f"videos_frames/{folder}"
    return reader.video(name, row.where, lexical=True, stored_rate=STORED_RATE)


def _ids(row: RowReader, field: str) -> list[str]:
    value: Any = row.row.get(field)
    if not isinstance(value, list) or not all(
        isinstance(key, int | str) and not isinstance(key, bool) for key in value
    ):
        raise unlike(row, field, "a list of ids", value)
    return [str(key) for key in value]


PARSERS = {"uvrb": read_uvrb}
