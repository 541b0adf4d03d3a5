"""The document sets of MMEB-V2: queries, corpus and qrels in three tables, pages as candidates."""

import hashlib
import os
from functools import partial
from typing import Any

from data.rows.beir_rows import CORPUS, MAX_GRADE, QRELS, QUERIES, part_files
from data.rows.row_files import PictureCell, table_rows
from data.rows.row_formats import RowReader
from data.rows.trace_files import row_name
from data.types import Kind
from evaluation.benchmarks.reading import SetReader, Shown, filled, unlike
from evaluation.benchmarks.texts import query_item, sought_after, target_item


def read_pages(reader: SetReader, *, hashed: bool) -> None:
    """Queries over all pages of a corpus. ``hashed``: files of pages have short names with a hash.

    A page is the file of its id; where that is not there, the picture in the corpus.
    """
    benchmark_set, place = reader.benchmark_set, reader.places[0]
    parts = {part: table_rows(files, frozenset()) for part, files in part_files(place).items()}
    for row in reader.read(parts[CORPUS], place / CORPUS, "corpus-id"):
        key = filled(row, "corpus-id")
        if key in reader.candidates:
            raise unlike(row, "corpus-id", "an id of its own", key)
        name = _hashed_name(key) if hashed else f"{key}.png"
        page = target_item(
            reader.prompts, vlm2vec=benchmark_set.target_text, **_page(reader, row, name)._asdict()
        )
        reader.candidates[key] = page

    right: dict[str, dict[str, int]] = {}
    for row in reader.read(parts[QRELS], place / QRELS, "query-id", "corpus-id", "score"):
        score = _score(row)
        if score <= 0:
            continue
        query, key = filled(row, "query-id"), filled(row, "corpus-id")
        if key not in reader.candidates:
            raise unlike(row, "corpus-id", "the id of a row of the corpus", key)
        grades, grade = right.setdefault(query, {}), max(1, round(score))
        grades[key] = max(grades.get(key, 0), grade)

    for row in reader.read(parts[QUERIES], place / QUERIES, "query-id", "query"):
        text, query_id = filled(row, "query"), filled(row, "query-id")
        glued = sought_after(benchmark_set.instruction, text)
        item = query_item(reader.prompts, benchmark_set.instruction, text, glued=glued)
        grades = right.get(query_id, {})
        named = row_name(row.row, ("query-id",))
        reader.add_query(query_id, item, grades, (), row.where, named=named)


def _page(reader: SetReader, row: RowReader, name: str) -> Shown:
    picture = row.row.get("image")
    if isinstance(picture, PictureCell) and not os.path.isfile(reader.files.base / name):
        return reader.cell(picture, row.where)
    return reader.picture(name, row.where)._replace(kind=Kind.PAGE)


def _hashed_name(key: str) -> str:
    """Return the name of a page's file: ids are names of files, some of them too long for one."""
    stem, ending = os.path.splitext(key)
    return f"{stem[:50]}_{hashlib.md5(key.encode()).hexdigest()[:8]}{ending}"


def _score(row: RowReader) -> float:
    score: Any = row.row.get("score")
    if not isinstance(score, int | float) or isinstance(score, bool) or not score <= MAX_GRADE:
        raise unlike(row, "score", f"a number up to {MAX_GRADE}", score)
    return score


PARSERS = {"vidore": partial(read_pages, hashed=False), "visrag": partial(read_pages, hashed=True)}
