"""Items that belong to no pair: of a folder of media, or of rows, each with an id of its own.

A row has a `text`, or one of `image`, `page` and `video`, or a text with one of them. It may have
an `id` and an `instruction`. Further fields are ignored. A PDF that is named without a page stands
for all its pages. A file in a folder is read as a row that names it, with its path as the id.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from configs.common import DataSetConfig, MediaConfig
from data.containers.addresses import file_of
from data.containers.pdf_pages import SUFFIX as PDF_SUFFIX
from data.containers.video_files import SUFFIXES as VIDEO_SUFFIXES
from data.errors import DataError, RowError, RunFolderError
from data.media.pictures import SUFFIXES as PICTURE_SUFFIXES
from data.rows.picture_paths import PictureFiles, natural_order
from data.rows.row_files import PictureCell, read_rows
from data.rows.row_formats import RowReader
from data.rows.rows import FileRow, Rows
from data.types import Item, Kind

if TYPE_CHECKING:
    import pyarrow as pa

MEDIA_FIELDS = ("image", "page", "video")
BATCH = 1024
"""Items that are written, or read again, at a time."""
_JSON_FIELDS = frozenset(("video",))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedItem:
    """An item with what it is known by."""

    item_id: str
    """Unique among those that are read together."""
    file: str
    """The file that it shows, relative to the root; of a text the file of its row."""
    item: Item
    row_file: str = ""
    """The file of its row; empty: it is a file in a folder."""
    row: int | None = None
    """Number of its row there, from 1."""

    def aside(self, reason: str, field: str = "") -> "SetAside":
        """Return that it cannot be used."""
        file = self.row_file or self.file
        return SetAside(file=file, row=self.row, field=field, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """What cannot be used, and why."""

    file: str
    row: int | None
    """From 1; None: the file is no file of rows."""
    field: str
    """Empty where the reason names none."""
    reason: str


def read_items(source: Path, *, root: Path, media: MediaConfig) -> Iterator[NamedItem | SetAside]:
    """Yield the items of a folder of media in natural order, or of a file of rows, one by one.

    Links to folders are not followed, and names that begin with a dot are passed over.

    Args:
        source: the folder, with its sub-folders; or rows as `read_rows` opens them.
        root: folder that paths in rows are relative to; of a folder of media itself.
        media: which frames of videos are shown; larger files are refused.

    Raises:
        DataError: the rows cannot be opened.
    """
    reading = _Reading(source, root, media)
    seen: set[str] = set()
    for entry in reading.of_folder() if source.is_dir() else reading.of_rows():
        if isinstance(entry, NamedItem):
            if entry.item_id in seen:
                entry = entry.aside(
                    f"{source}: expected an id of its own, found that of an earlier item, "
                    f"{entry.item_id[:80]!a}; give each row another id, or remove the field",
                    "id",
                )
            else:
                seen.add(entry.item_id)
        yield entry


def items_root(source: Path, named: str) -> Path:
    """Return the folder that paths are relative to: ``named``, else that of the rows."""
    if source.is_dir():
        return source
    return Path(named) if named else source.parent


def read_item(row: FileRow, *, root: Path, media: MediaConfig) -> Item:
    """Return the item of fields that a user gave, which may name files by links.

    Raises:
        DataError: it cannot be read, or is several pages.
    """
    files = PictureFiles(root, follow_links=True, max_file_bytes=media.max_file_bytes)
    reader = _reader(row, "the query", files, media)
    named = list(_items_of(reader))
    if len(named) > 1:
        raise reader.refused(
            "page",
            f"expected one page, found a PDF of {len(named)}; name one, as in 'a.pdf#page=3'",
        )
    return named[0][1]


class _Reading:
    """Where items are read from."""

    def __init__(self, source: Path, root: Path, media: MediaConfig) -> None:
        self._source, self._media = source, media
        self._files = PictureFiles(root, max_file_bytes=media.max_file_bytes)

    def of_folder(self) -> Iterator[NamedItem | SetAside]:
        for name in _files_in(self._source):
            where = f"{self._source}/{name}"
            try:
                named_field = media_field(name, where)
                row = {"id": name, named_field: name}
                reader = _reader(row, where, self._files, self._media)
                for item_id, item in _items_of(reader):
                    yield NamedItem(item_id=item_id, file=name, item=item)
            except DataError as error:
                yield _aside(error, file=_spelled(name), row=None)

    def of_rows(self) -> Iterator[NamedItem | SetAside]:
        rows = read_rows(self._source, json_fields=_JSON_FIELDS)
        for index, row in enumerate(rows.read()):
            file, number = _place(rows, index)
            if isinstance(row, RowError):
                yield _aside(row, file=file, row=number)
                continue
            reader = _reader(row, rows.place(index), self._files, self._media, index)
            try:
                for item_id, item in _items_of(reader):
                    shown = self._relative(item.uris[0]) if item.uris else file
                    yield NamedItem(
                        item_id=item_id, file=shown, item=item, row_file=file, row=number
                    )
            except DataError as error:
                yield _aside(error, file=file, row=number)

    def _relative(self, uri: str) -> str:
        path = Path(file_of(uri))
        base = self._files.base
        return str(path.relative_to(base) if path.is_relative_to(base) else path)


def _reader(
    row: FileRow, where: str, files: PictureFiles, media: MediaConfig, index: int = 0
) -> RowReader:
    return RowReader(
        row=row,
        where=where,
        config=DataSetConfig(name="row"),
        index=index,
        files=files,
        max_frames=media.max_frames,
        boxes=[],
        as_video=media.video == "video",
    )


def _items_of(reader: RowReader) -> Iterator[tuple[str, Item]]:
    """Yield what a row stands for, with ids: one item, or the pages of a PDF.

    Raises:
        DataError: the row cannot be used; the message names file, row and field.
    """
    item_id, text = reader.pair_id(), reader.read(reader.text("text"))
    instruction = reader.text("instruction").strip()
    item = Item(text=text, instruction=instruction)
    named = [name for name in MEDIA_FIELDS if reader.row.get(name) not in (None, "")]
    if len(named) > 1:
        raise reader.refused(
            named[1],
            f"expected one of {', '.join(MEDIA_FIELDS)}, found {' and '.join(named)}; write a row "
            "for each",
        )
    if not named:
        if not text:
            raise reader.refused(
                "text",
                f"expected a text, or a path in {', '.join(MEDIA_FIELDS)}, found neither; mend or "
                "remove the row",
            )
        yield item_id, item
    elif named == ["video"]:
        uris = reader.shown(reader.frames(reader.paths("video"), "video"))
        yield item_id, reader.timed(replace(item, kind=Kind.VIDEO, uris=uris))
    elif named == ["image"]:
        uris = (reader.path(reader.picture("image"), "image"),)
        yield item_id, replace(item, kind=Kind.IMAGE, uris=uris)
    else:
        name = reader.picture("page")
        with reader.blaming("page") as where:
            cell = isinstance(name, PictureCell)
            pages = [name] if cell else reader.files.pages(name, where=where)
        for page in pages:
            # Each page of a PDF is an item of its own.
            place = page[len(name) :]
            page_uris = (reader.path(page, "page"),)
            yield item_id + place, replace(item, kind=Kind.PAGE, uris=page_uris)


def _files_in(folder: Path) -> list[str]:
    """Return the files in a folder and below, relative to it: 2 before 10."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        names += [
            os.path.normpath(os.path.join(inside, name))
            for name in files
            if not name.startswith(".")
        ]
    return sorted(names, key=natural_order)


def media_field(name: str, where: str) -> str:
    """Return the field in which a row would name a file; ``where`` is for messages.

    Raises:
        DataError: the name is none of a picture, a video or a PDF.
    """
    suffix = Path(name).suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix == PDF_SUFFIX:
        return "page"
    raise DataError(
        f"{_spelled(where)}: expected the name of a picture, a video or a PDF, found the ending "
        f"'{_spelled(suffix)}'; rename or convert the file, or leave it where it is"
    )


def _place(rows: Rows, index: int) -> tuple[str, int]:
    """Return the file of a row and its number there, from 1."""
    files, ends = rows.file_ends()
    file = bisect_right(ends, index)
    return files[file], index - (ends[file - 1] if file else 0) + 1


def _aside(error: DataError, *, file: str, row: int | None) -> SetAside:
    named = error.field if isinstance(error, RowError) else ""
    return SetAside(file=file, row=row, field=named, reason=_spelled(str(error)))


def _spelled(name: str) -> str:
    """Return a name that UTF-8 can write; those of files may hold any bytes."""
    return name.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class SavedItems:
    """Items in a file, read again a few at a time as often as they are asked for."""

    path: Path
    as_video: bool
    """Whether a model sees a video as one, not as separate pictures."""
    name: str = "the input"
    """In messages."""

    def save(self, items: Iterable[NamedItem]) -> None:
        """Write the file anew.

        Raises:
            RunFolderError: it cannot be written.
        """
        import pyarrow.parquet as pq

        rest, schema = iter(items), _schema()
        try:
            with pq.ParquetWriter(self.path, schema) as writer:
                while batch := list(islice(rest, BATCH)):
                    writer.write_table(_table(batch, schema))
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: cannot be written ({error}); make room, then start the job again"
            ) from error

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return pq.read_metadata(self.path).num_rows

    def __iter__(self) -> Iterator[NamedItem]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    item = Item(
                        text=row["text"],
                        kind=Kind(row["kind"]),
                        uris=tuple(row["uris"]),
                        instruction=row["instruction"],
                        times=tuple(row["times"]),
                    )
                    yield NamedItem(
                        item_id=row["id"],
                        file=row["file"],
                        item=item,
                        row_file=row["row_file"],
                        row=row["row"],
                    )

    def shows(self, kinds: Iterable[Kind]) -> bool:
        """Return whether there is an item of one of these kinds."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            batches = file.iter_batches(columns=["kind"])
            there = {kind for batch in batches for kind in batch["kind"].unique().to_pylist()}
        return not there.isdisjoint(kinds)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            *((name, pa.string()) for name in ("id", "file", "row_file")),
            *((name, pa.string()) for name in ("text", "instruction", "kind")),
            ("uris", pa.list_(pa.string())),
            ("times", pa.list_(pa.float64())),
            ("row", pa.int64()),
        ]
    )


def _table(batch: list[NamedItem], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    rows = [
        {
            "id": named.item_id,
            "file": named.file,
            "row_file": named.row_file,
            "text": named.item.text,
            "instruction": named.item.instruction,
            "kind": named.item.kind,
            "uris": list(named.item.uris),
            "times": list(named.item.times),
            "row": named.row,
        }
        for named in batch
    ]
    return pa.Table.from_pylist(rows, schema=schema)
