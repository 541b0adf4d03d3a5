"""One set while it is read: its rows, its media, and the queries and candidates made so far."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.common import DataSetConfig, MediaConfig
from data.containers.video_files import FRAME_RATE
from data.errors import DataError, RowError
from data.rows.picture_paths import PictureFiles
from data.rows.row_files import PictureCell, read_rows
from data.rows.row_formats import RowReader
from data.rows.rows import Rows
from data.types import Item, Kind
from evaluation.benchmarks.tables import BenchmarkSet
from evaluation.sets import EvaluationQuery, EvaluationSet, PublishedName

_AGAIN = "download the rows again"
_KINDS = {"image": "image", "video": "corpus_content", "visdoc": "corpus-id"}
"""Of names of candidates in published files of traces, by the set's first group; UVRB has none."""


class Shown(NamedTuple):
    """What an item shows: fields of `Item`."""

    kind: Kind
    uris: tuple[str, ...]
    times: tuple[float, ...] = ()


NOTHING = Shown(Kind.TEXT, ())


class SetReader:
    """What a parser reads a set from, and where it puts what it makes.

    Media that are not there are noted in `absent`; the set cannot be used then.
    """

    def __init__(
        self,
        benchmark_set: BenchmarkSet,
        *,
        places: Sequence[Path],
        folder: Path,
        prompts: str,
        limits: MediaConfig,
        follow_links: bool,
    ) -> None:
        """``places``: the files or folders of the rows. ``folder``: where the media are."""
        self.benchmark_set, self.places, self.prompts = benchmark_set, places, prompts
        self.files = PictureFiles(
            folder, follow_links=follow_links, max_file_bytes=limits.max_file_bytes
        )
        self.absent: dict[str, None] = {}
        """Pictures and folders of frames that rows name and that are not there, in order."""
        self.candidates: dict[str, Item] = {}
        self.names: dict[str, str] = {}
        """Names of candidates in published files of traces, by their keys where these are none."""
        self.limits = limits
        self._queries: dict[str, EvaluationQuery] = {}
        self._shown: dict[str, Shown] = {}
        self._keys: dict[str, str] = {}
        self._config = DataSetConfig(name=benchmark_set.name)

    def rows(self, place: Path, *needed: str) -> Iterator[RowReader]:
        """Yield the rows of a place; each of the ``needed`` fields must be in one of them at least.

        Raises:
            DataError: the file cannot be read, a row is malformed, or a field is in no row.
        """
        yield from self.read(read_rows(place), place, *needed)

    def read(self, rows: Rows, place: Path, *needed: str) -> Iterator[RowReader]:
        """Yield opened rows, as `rows` does."""
        seen: set[str] = set()
        most = self.benchmark_set.limit or len(rows)
        for index, row in enumerate(rows[:most].read()):
            if isinstance(row, RowError):
                raise row
            seen.update(row)
            yield RowReader(
                row=row,
                where=rows.place(index),
                config=self._config,
                index=index,
                files=self.files,
                max_frames=self.limits.max_frames,
                boxes=[],
            )
        if missing := [name for name in needed if name not in seen]:
            raise DataError(
                f"{place}: expected rows with a field '{missing[0]}', found "
                f"{', '.join(sorted(seen))[:200] or 'no rows'}; {_AGAIN}"
            )

    def picture(self, name: str, where: str) -> Shown:
        """Return a picture file under the folder of the media; one that is absent is noted.

        Raises:
            DataError: the name leads out of the folder.
        """
        if name not in self._shown:
            if not os.path.isfile(self.files.base / name):
                self.absent[name] = None
                return NOTHING
            self._shown[name] = Shown(Kind.IMAGE, (self.files.path(name, where=where),))
        return self._shown[name]

    def video(
        self, name: str, where: str, *, lexical: bool = False, stored_rate: float = 0
    ) -> Shown:
        """Return a video by its folder of frames; one that is absent is noted.

        At most `max_frames` of its frames are shown, those at `linspace(0, n - 1, k)` rounded
        down, in natural order of their names, or in the order of texts with ``lexical``. As one
        video the last of an odd number of frames is shown twice, and each gets a time: two frames a
        second, or with ``stored_rate`` `k x rate / n` a second, as Embed-RL computes it.

        Raises:
            DataError: the name leads out of the folder, or a folder of frames has no picture.
        """
        if name in self._shown:
            return self._shown[name]
        names = self.files.folder(name, where=where)
        if names is None:
            self.absent[f"{name}/"] = None
            return NOTHING
        as_video, most = self.limits.video == "video", self.limits.max_frames
        stored = sorted(names) if lexical else names
        if as_video and most > 1:
            most -= most % 2
        count = min(len(stored), most)
        chosen = np.linspace(0, len(stored) - 1, count, dtype=int).tolist()
        if as_video and count > 1 and count % 2:
            chosen.append(chosen[-1])  # as the released code does
        uris = tuple(self.files.path(stored[index], where=where) for index in chosen)
        rate = most * stored_rate / len(stored) if stored_rate else FRAME_RATE
        times = tuple(place / rate for place in range(len(chosen))) if as_video else ()
        self._shown[name] = Shown(Kind.VIDEO, uris, times)
        return self._shown[name]

    def cell(self, address: PictureCell, where: str) -> Shown:
        """Return a picture in a cell of the rows."""
        return Shown(Kind.PAGE, (self.files.cell(address, where=where),))

    def add_query(
        self,
        query_id: str,
        item: Item,
        right: Mapping[str, int],
        keys: Iterable[str],
        where: str,
        *,
        named: PublishedName | None = None,
    ) -> None:
        """Add a query with its right candidates; in a `local` set it is ranked over the ``keys``.

        ``named``: what names it in published files of traces, if there may be any.

        Raises:
            DataError: there is a query of this id already, or no candidate is right.
        """
        if query_id in self._queries:
            raise DataError(
                f"{where}: expected an id of its own, found that of an earlier query, "
                f"{query_id[:80]!a}; {_AGAIN}"
            )
        if not right:
            raise DataError(
                f"{where}: expected a right candidate for query {query_id[:80]!a}, found none; "
                f"{_AGAIN}"
            )
        candidates: tuple[str, ...] = ()
        if self.benchmark_set.scope == "local":
            # Each key once in memory: some sets rank every query over the same thousand texts.
            candidates = tuple(dict.fromkeys(self._keys.setdefault(key, key) for key in keys))
        self._queries[query_id] = EvaluationQuery(
            query_id=query_id,
            item=item,
            right=right,
            candidates=candidates,
            named=named,
        )

    def row_id(self) -> str:
        """Return the id of the next query where queries are known by their place in the rows."""
        return f"{self.benchmark_set.name}-{len(self._queries)}"

    def made(self) -> EvaluationSet:
        """Return the set."""
        return EvaluationSet(
            name=self.benchmark_set.name,
            queries=list(self._queries.values()),
            candidates=self.candidates,
            metric=self.benchmark_set.metric,
            suite=self.benchmark_set.suite,
            groups=self.benchmark_set.groups,
            named=self._published_names(),
        )

    def _published_names(self) -> dict[str, PublishedName]:
        """Return what names the candidates in published files of traces, by their keys."""
        group = self.benchmark_set.groups[0]
        if group not in _KINDS:
            return {}
        return {
            key: (
                "text" if group == "image" and not item.uris else _KINDS[group],
                self.names.get(key, key),
            )
            for key, item in self.candidates.items()
        }


def filled(row: RowReader, field: str) -> str:
    """Return a text or whole number of a row as text.

    Raises:
        RowError: there is none.
    """
    value = row.name(field)
    if not value:
        raise row.refused(field, f"expected a text or a whole number, found none; {_AGAIN}")
    return value


def choice(row: RowReader, field: str, options: int) -> int:
    """Return the number of an option, from 0.

    Raises:
        RowError: there is no such option.
    """
    value = filled(row, field)
    if not value.isascii() or not value.isdigit() or int(value) >= options:
        raise row.refused(
            field, f"expected a number from 0 to {options - 1}, found {value[:80]!a}; {_AGAIN}"
        )
    return int(value)


def unlike(row: RowReader, field: str, expected: str, actual: Any) -> RowError:
    """Return the refusal of a value that is not what the benchmark has there."""
    return row.refused(field, f"expected {expected}, found {str(actual)[:80]!a}; {_AGAIN}")
