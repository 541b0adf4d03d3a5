"""What is known of a set's pairs without reading their rows.

Order, masks and held-out splits come from it; a row is read when its pair is drawn.
Shapes: P pairs, N hard negatives, U pictures (each address once, as the first row names it).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from data.containers.addresses import parse_address
from data.content_numbers import Contents, content_parts, text_number
from data.relevance import label_number
from data.types import Kind, Pair, Side

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {kind: 1 << place for place, kind in enumerate(Kind)}
"""The bit of each kind of item in `PairTable.kinds`."""
TIMED = 1 << len(KINDS)
"""The bit of items with times."""


class Texts(Sequence[str]):
    """Many texts, at a fraction of the memory of a list."""

    def __init__(self, texts: "Sequence[str] | pa.ChunkedArray") -> None:
        import pyarrow as pa

        is_arrow = isinstance(texts, pa.ChunkedArray)
        self.column = texts if is_arrow else pa.chunked_array([pa.array(texts, pa.large_string())])

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: int | slice) -> "str | Texts":
        if isinstance(index, slice):
            return Texts(self.column[index])
        return self.column[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from chunk.to_pylist()

    def take(self, places: np.ndarray) -> "Texts":
        """Return the texts at some places."""
        return Texts(self.column.take(places))

    @classmethod
    def join(cls, parts: Iterable["Texts"]) -> "Texts":
        """Return the texts of all parts."""
        import pyarrow as pa

        chunks = [chunk for part in parts for chunk in part.column.chunks]
        return cls(pa.chunked_array(chunks, pa.large_string()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTable:
    """Pairs by columns, in the order of their rows."""

    ids: Texts
    """`Pair.pair_id`"""
    rows: np.ndarray
    """int64 [P]: number of the row in the set's files, from 0."""
    places: np.ndarray
    """int64 [P]: which of its row's pairs it is, from 0."""
    labels: np.ndarray
    """uint64 [P]: see `label_number`."""
    kinds: np.ndarray
    """uint8 [P]: the bits of `KINDS` of query, target and candidates, and `TIMED`."""
    traces: np.ndarray
    """uint8 [P]: 1, if the query has a trace, and 2, if the target has one."""
    queries: Contents
    targets: Contents
    negatives: Contents
    """[N] hard negatives."""
    owners: np.ndarray
    """int64 [N]: the pair of each hard negative."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, pairs: Sequence[Pair], places: Sequence[int] | None = None) -> "PairTable":
        """Return the table of some pairs."""
        negatives = [(place, item) for place, p in enumerate(pairs) for item in p.hard_negatives]
        return cls(
            ids=Texts([pair.pair_id for pair in pairs]),
            rows=np.array([pair.row for pair in pairs], dtype=np.int64),
            places=np.array(places or [0] * len(pairs), dtype=np.int64),
            labels=np.array([label_number(pair) for pair in pairs], dtype=np.uint64),
            kinds=np.array([_kinds(pair) for pair in pairs], dtype=np.uint8),
            traces=np.array([_traces(pair) for pair in pairs], dtype=np.uint8),
            queries=Contents.of([content_parts(pair.key(Side.QUERY)) for pair in pairs]),
            targets=Contents.of([content_parts(pair.target.key()) for pair in pairs]),
            negatives=Contents.of([content_parts(item.key()) for _, item in negatives]),
            owners=np.array([place for place, _ in negatives], dtype=np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence["PairTable"]) -> "PairTable":
        """Return the pairs of all parts."""
        before = np.cumsum([0, *map(len, parts)])[: len(parts)]
        shifted = [
            replace(part, owners=part.owners + count)
            for part, count in zip(parts, before, strict=True)
        ]
        return joined(cls, shifted or [cls.of([])])

    def take(self, places: np.ndarray) -> "PairTable":
        """Return the pairs at some ascending places."""
        kept = np.isin(self.owners, places)
        return PairTable(
            ids=self.ids.take(places),
            **{
                name: getattr(self, name)[places]
                for name in ("rows", "places", "labels", "kinds", "traces")
            },
            queries=self.queries.take(places),
            targets=self.targets.take(places),
            negatives=self.negatives.take(np.flatnonzero(kept)),
            owners=np.searchsorted(places, self.owners[kept]),
        )

    def with_pictures(self, old: np.ndarray, new: np.ndarray) -> "PairTable":
        """Return the table with other numbers for some pictures, both uint64 [X]."""
        return replace(
            self,
            queries=self.queries.with_pictures(old, new),
            targets=self.targets.with_pictures(old, new),
            negatives=self.negatives.with_pictures(old, new),
        )

    def numbers(self) -> np.ndarray:
        """Return the `pair_numbers` of all pairs, uint64 [P, 3]."""
        return np.stack([self.queries.numbers(), self.targets.numbers(), self.labels], axis=1)

    def shows(self, kinds: Iterable[Kind]) -> bool:
        """Return whether any pair shows an item of one of these kinds."""
        bits = sum(KINDS[kind] for kind in kinds)
        return bool((self.kinds & bits).any())

    @property
    def as_video(self) -> bool:
        """Whether a pair shows a video as one, not as separate pictures."""
        return bool((self.kinds & TIMED).any())

    def with_trace(self, side: Side) -> np.ndarray:
        """Return which pairs have a trace on that side, boolean [P]."""
        return (self.traces & (1 if side is Side.QUERY else 2)) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTable:
    """The pictures of a set's rows by columns, in the order in which rows first name them."""

    uris: Texts
    numbers: np.ndarray
    """uint64 [U]: the `text_number` of each uri."""
    files: np.ndarray
    """uint64 [U]: the number of the file that holds it; of a cell that of its address."""
    reals: np.ndarray
    """uint64 [U]: the number of the file behind links."""
    sizes: np.ndarray
    """int64 [U]: bytes of the file or of the cell."""
    shown: np.ndarray
    """bool [U]: whether a query or a target shows it; else only candidates and negatives do."""
    times: np.ndarray
    """float64 [U], seconds: when a frame of a video file is shown; NaN for other pictures."""

    @classmethod
    def join(cls, parts: Sequence["PictureTable"]) -> "PictureTable":
        """Return the pictures of all parts, each once."""
        table = joined(cls, parts)
        _, first, back = np.unique(table.numbers, return_index=True, return_inverse=True)
        shown = np.zeros(len(first), dtype=bool)
        np.logical_or.at(shown, back, table.shown)
        order = np.argsort(first)
        return replace(table, shown=shown[back]).take(first[order])

    def take(self, places: np.ndarray) -> "PictureTable":
        """Return the pictures at some places."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        uris = columns.pop("uris").take(places)
        return PictureTable(uris=uris, **{name: column[places] for name, column in columns.items()})

    def frame_times(self) -> Callable[[str], float]:
        """Return what tells when a frame of a video file is shown, by its address."""
        timed = np.flatnonzero(~np.isnan(self.times))
        order = timed[np.argsort(self.numbers[timed])]
        numbers, times = self.numbers[order], self.times[order]
        return lambda uri: float(times[np.searchsorted(numbers, np.uint64(text_number(uri)))])

    def file(self, index: int) -> str:
        """Return the path of the file that holds a picture; of a cell its address."""
        uri = self.uris[index]
        address = parse_address(uri)
        return uri if address.row is not None else address.path

    def renamed(self, first: Mapping[str, str]) -> "PictureTable":
        """Return the table with the files that stand for others, by the others' paths."""
        if not first:
            return self
        numbers = np.fromiter(map(text_number, first), np.uint64, len(first))
        places = np.flatnonzero(np.isin(self.files, numbers)).tolist()
        new = {place: self._renamed(place, first) for place in places}
        uris = [new.get(place, uri) for place, uri in enumerate(self.uris)] if new else self.uris
        column = self.numbers.copy()
        column[places] = [text_number(new[place]) for place in places]
        return replace(self, uris=uris if isinstance(uris, Texts) else Texts(uris), numbers=column)

    def _renamed(self, place: int, first: Mapping[str, str]) -> str:
        file = self.file(place)
        return first[file] + self.uris[place][len(file) :]


def joined(cls: type, parts: Sequence[Any]) -> Any:
    """Return tables of one class as one, column by column."""
    columns = {}
    for field in fields(cls):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            columns[field.name] = np.concatenate(values)
        else:
            columns[field.name] = type(values[0]).join(values)
    return cls(**columns)


def _kinds(pair: Pair) -> int:
    bits = 0
    for item in (pair.query, pair.target, *pair.candidates):
        bits |= KINDS[item.kind] | (TIMED if item.times else 0)
    return bits


def _traces(pair: Pair) -> int:
    return bool(pair.query_trace) + 2 * bool(pair.target_trace)
