"""Queries, corpus and qrels in three tables, as retrieval benchmarks are published, read as rows.

A qrel says that an entry of the corpus is right for a query, and how much, by its score. Each qrel
with a score above 0 is a row, of several about the same two the highest. Only ids are in memory:
the query and the entry are read with the row that names them.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.containers.cells import count_rows, holds_bytes, open_table
from data.errors import DataError
from data.rows.row_files import TableRows, row_files, table_rows
from data.rows.rows import FileRow, Rows

if TYPE_CHECKING:
    import pyarrow as pa

QUERIES, CORPUS, QRELS = PARTS = ("queries", "corpus", "qrels")
IDS = {QUERIES: "query-id", CORPUS: "corpus-id"}
"""The column that names the rows of a part, there and in the qrels."""
MAX_GRADE = 1_000_000
"""Scores are grades such as 0, 1 and 2."""
_ID, _TEXT = "whole numbers or texts", "texts"
_PICTURE, _NUMBER = "bytes, {bytes, path} or texts", "numbers"
_COLUMNS = {
    QUERIES: {"query-id": _ID, "query": _TEXT},
    CORPUS: {"corpus-id": _ID, "image": _PICTURE, "title": _TEXT, "text": _TEXT},
    QRELS: {"query-id": _ID, "corpus-id": _ID, "score": _NUMBER},
}
"""What the columns of each part hold."""
_OPTIONAL = frozenset(("image", "title", "text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BeirFigures:
    """How large a set of queries, corpus and qrels is."""

    queries: int
    corpus: int
    """Rows of these two parts."""
    qrels: int
    """Qrels with a score above 0, of several about the same two one."""
    asked: int
    """Different queries that they name."""

    def __str__(self) -> str:
        each = self.qrels / max(1, self.asked)
        return (
            f"{self.queries} queries, {self.corpus} corpus entries, {self.qrels} qrels "
            f"above 0 for {self.asked} queries, {each:.2f} right entries a query"
        )


class BeirRows(TableRows):
    """The qrels as rows. A row also has the rows that it names, under `queries` and `corpus`.

    A part is absent where no row of it has the id.
    """

    def __init__(self, path: Path, json_fields: Set[str]) -> None:
        """``json_fields`` are those of the qrels.

        Raises:
            DataError: a part is missing or cannot be read, has a column of the wrong type or an
                id twice, or no qrel has a score above 0.
        """
        files = part_files(path)
        for part, part_of_files in files.items():
            for file in part_of_files:
                _check_columns(file, part)
        qrels = files[QRELS]
        super().__init__(qrels, [count_rows(file) for file in qrels], open_table, json_fields)
        self.corpus = table_rows(files[CORPUS], frozenset())
        self._tables = {QUERIES: table_rows(files[QUERIES], frozenset()), CORPUS: self.corpus}
        self._places = {part: _places(self._tables[part], IDS[part]) for part in IDS}
        self._pairs = self._right_pairs()
        if not self._pairs:
            raise DataError(
                f"{path}: expected qrels with a score above 0, found none in {len(self)} rows; "
                "give the qrels of this set"
            )

    @property
    def kept(self) -> Sequence[int]:
        """The qrels that are rows, by their numbers among all."""
        return list(self._pairs)

    def figures(self) -> BeirFigures:
        """Return how large the set is, whatever part of it is used."""
        return BeirFigures(
            queries=len(self._places[QUERIES]),
            corpus=len(self._places[CORPUS]),
            qrels=len(self._pairs),
            asked=len({query for query, _ in self._pairs.values()}),
        )

    def rest_of_corpus(self, used: Iterable[int]) -> tuple[list[int], Rows]:
        """Return the corpus entries that are right for no query of the ``used`` qrels.

        They come by their numbers in the corpus, from 0, and as rows.
        """
        queries = {self._pairs[number][0] for number in used}
        right = {entry for query, entry in self._pairs.values() if query in queries}
        numbers = [place for name, place in self._places[CORPUS].items() if name not in right]
        return numbers, self.corpus.at(numbers)

    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the files of the qrels, then those of the corpus, and all rows up to each end."""
        names, ends = super().file_ends()
        more_names, more_ends = self.corpus.file_ends()
        return names + more_names, ends + tuple(ends[-1] + end for end in more_ends)

    def _right_pairs(self) -> dict[int, tuple[str | None, str | None]]:
        """Return the ids of query and entry by the number of each qrel that is a row.

        One whose score is no number is kept, and set aside when it is read.
        """
        pairs: dict[int, tuple[str | None, str | None]] = {}
        best: dict[tuple[str | None, str | None], tuple[float, int]] = {}
        columns = (self.column(name) for name in _COLUMNS[QRELS])
        for number, (query, entry, score) in enumerate(zip(*columns, strict=True)):
            ids = _id(query), _id(entry)
            if isinstance(score, int | float) and score == score:
                most, before = best.get(ids, (0, -1))
                if score <= most:
                    continue
                pairs.pop(before, None)
                best[ids] = score, number
            pairs[number] = ids
        return pairs

    def _rows(self, file: int, first: int, count: int) -> list[FileRow]:
        rows = super()._rows(file, first, count)
        for row in rows:
            for part, column in IDS.items():
                row.pop(part, None)
                place = self._places[part].get(_id(row.get(column)))
                if place is not None:
                    row[part] = self._tables[part][place]
        return rows


def part_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of `queries`, `corpus` and `qrels` in a folder.

    Raises:
        DataError: a part is missing, or a folder of it has a gap.
    """
    files = {}
    for part in PARTS:
        folder, file = path / part, path / f"{part}.parquet"
        if folder.is_dir():
            files[part] = row_files(folder)
        elif file.is_file():
            files[part] = [file]
    if missing := [part for part in PARTS if part not in files]:
        raise DataError(
            f"{path}: expected the three parts queries, corpus and qrels, each a folder of parquet "
            f"files or one file such as queries.parquet, found no {' and no '.join(missing)}; "
            "download the whole data set and give its folder as the set's `path`"
        )
    return files


def _check_columns(file: Path, part: str) -> None:
    schema = open_table(file).schema
    wanted = _COLUMNS[part]
    missing = [name for name in wanted if name not in schema.names and name not in _OPTIONAL]
    if part == CORPUS and not _OPTIONAL.intersection(schema.names):
        missing += ["image' or 'text"]
    if missing:
        raise DataError(
            f"{file}: expected a column '{missing[0]}' in the {part}, found "
            f"{', '.join(map(str, schema.names))[:200]}; rename the column that holds it"
        )
    for name, what in wanted.items():
        if name in schema.names and not _holds(schema.field(name).type, what):
            raise DataError(
                f"{file}, field '{name}': expected a column of {what}, found one of "
                f"{str(schema.field(name).type)[:80]}; write the column as {what}"
            )


def _holds(kind: "pa.DataType", what: str) -> bool:
    """Return whether a column's cells are what they should be, or all null."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if what == _NUMBER:
        return types.is_null(kind) or types.is_integer(kind) or types.is_floating(kind)
    return (
        types.is_null(kind)
        or is_text
        or (what == _ID and types.is_integer(kind))
        or (what == _PICTURE and holds_bytes(kind))
    )


def _places(rows: TableRows, column: str) -> dict[str, int]:
    """Return the number of each row by its id.

    Raises:
        DataError: a row has no id, or that of another row.
    """
    places: dict[str, int] = {}
    for number, value in enumerate(rows.column(column)):
        name = _id(value)
        if name is None:
            raise DataError(
                f"{rows.place(number)}, field '{column}': expected an id, found none; give each "
                "row one"
            )
        first = places.setdefault(name, number)
        if first != number:
            raise DataError(
                f"{rows.place(number)}, field '{column}': expected an id of its own, found "
                f"{name[:80]!a}, which {rows.place(first)} has; remove one of the two rows"
            )
    return places


def _id(value: Any) -> str | None:
    """Return an id as text: parts of one set may write it as a number or as a text."""
    return str(value) if isinstance(value, int | str) else None
