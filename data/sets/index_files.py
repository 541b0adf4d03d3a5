"""The index of a set on disk, so that its rows are not read anew at every start.

A folder in the cache holds it. Its name follows from the set's files, from the settings that decide
what a pair is, and from the code that reads rows: when one of these changes, another folder is
written. A folder has its name only once it is complete.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from errno import EEXIST, ENOTEMPTY
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from configs.common import DataSetConfig, MediaConfig
from data.content_numbers import Contents
from data.durable import sync_tree
from data.errors import DataError
from data.rows.json_rows import JsonRows
from data.rows.locations import cache_folder
from data.rows.rows import Rows
from data.sets.fingerprints import WHOLE_BYTES, file_hash, set_files
from data.sets.hardness import files_of_run, is_run
from data.sets.index import PairTable, PictureTable, Texts
from data.sets.scan import BadRow

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_FROM = 20_000
"""Rows; a smaller set is read again at every start, which takes seconds."""
ABANDONED_S = 86_400
"""A part of an index that is older was left by a job that was killed."""
FACTS, SPANS = "facts.json", "spans.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIndex:
    """What is known of a set."""

    pairs: PairTable
    pictures: PictureTable
    counts: Mapping[str, int]
    """Pages of PDFs and frames of video files, by path."""
    bad_rows: tuple[BadRow, ...]
    unranked: tuple[BadRow, ...]
    """Rows that the set's `hardest_by` cannot rank."""
    unknown_fields: Mapping[str, int]
    """Rows by the field in them that the format does not know."""
    first_unknown: Mapping[str, Sequence[int]]
    """The numbers of the first rows with each of these fields, from 0."""
    media_named: int
    """Names of media in its rows, each counted once."""
    media_usable: int
    """Those of them that can be used, as far as is known before decoding."""
    rows: int
    """Rows of its files, those that the set does not use as well."""
    read: int
    """Rows that were read of them."""
    files: tuple[str, ...]
    file_ends: tuple[int, ...]
    """Rows of its files up to the end of each."""
    other_format: str
    """The format that the rows plainly have instead of the set's; then none of them can be used."""
    warnings: tuple[str, ...]
    """What a person should know of the set."""


def index_folder(config: DataSetConfig, media: MediaConfig) -> Path:
    """Return the folder in which the index of a set is kept.

    Raises:
        DataError: the set's files are not there.
    """
    limits = (media.max_frames, media.max_file_bytes, media.video)
    settings = asdict(config)
    settings.pop("weight")  # decides nothing about a pair
    settings["root"] = os.path.realpath(config.root)
    files = []
    read = [("path or traces", file) for file in set_files(config)]
    if Path(config.leave_out).is_file():
        read.append(("leave_out", Path(config.leave_out)))
    if is_run(config.hardest_by):
        read += [("hardest_by", file) for file in files_of_run(config.hardest_by)]
    for key, file in read:
        try:
            state = file.stat()
            content = file_hash(file, whole=state.st_size <= WHOLE_BYTES)
        except OSError as error:
            raise DataError(
                f"data set '{config.name}', {key}: {file} cannot be read ({error}); check that key"
            ) from error
        files.append((os.path.realpath(file), state.st_mtime_ns, content))
    facts = json.dumps([settings, limits, files, _code()], sort_keys=True, default=str)
    return cache_folder("indexes") / blake2b(facts.encode(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """Return a hash of the code that decides what a pair is."""
    digest = blake2b(digest_size=16)
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def save_index(folder: Path, index: SetIndex, rows: Rows) -> None:
    """Write an index; a kill leaves no folder of that name.

    Raises:
        DataError: it cannot be written.
    """
    part = folder.with_name(f"{folder.name}-{uuid4().hex[:8]}.part")
    try:
        for older in folder.parent.glob("*.part"):
            with suppress(FileNotFoundError):  # another job removes it, too
                if older.stat().st_mtime < time.time() - ABANDONED_S:
                    shutil.rmtree(older, ignore_errors=True)
        part.mkdir(parents=True)
        _save_tables(part, index)
        if isinstance(rows, JsonRows):
            np.save(part / SPANS, rows.spans)
        facts = {
            field.name: getattr(index, field.name)
            for field in fields(index)
            if field.name not in ("pairs", "pictures", "bad_rows", "unranked")
        }
        for name in ("bad_rows", "unranked"):
            facts[name] = [asdict(row) for row in getattr(index, name)]
        (part / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        sync_tree(part)
        _replace(part, folder)
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the index of a data set cannot be written there ({error}); make "
            "room, or set EMBED_RL_CACHE to a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(part: Path, folder: Path) -> None:
    """Give a folder its name; one of that name is no longer right."""
    try:
        os.replace(part, folder)
    except OSError as error:
        if error.errno not in (ENOTEMPTY, EEXIST):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        # Where another job was faster by now, its index is as good.
        with suppress(OSError):
            os.replace(part, folder)


def load_index(folder: Path) -> tuple[SetIndex, np.ndarray | None] | None:
    """Return an index and, of JSON files, where their rows lie; None where there is none."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        spans = np.load(folder / SPANS) if (folder / SPANS).exists() else None
        tables = _load_tables(folder)
    except (OSError, EOFError, ValueError, KeyError):  # also what pyarrow raises
        return None
    for name in ("bad_rows", "unranked"):
        facts[name] = tuple(BadRow(**row) for row in facts[name])
    for name in ("files", "file_ends", "warnings"):
        facts[name] = tuple(facts[name])
    return SetIndex(**tables, **facts), spans


def _save_tables(folder: Path, index: SetIndex) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pairs, pictures = index.pairs, index.pictures
    tables = {
        "pairs": {
            "id": pairs.ids.column,
            **{name: getattr(pairs, name) for name in _PAIR_COLUMNS},
            **_content_columns("query", pairs.queries),
            **_content_columns("target", pairs.targets),
        },
        "negatives": {"pair": pairs.owners, **_content_columns("negative", pairs.negatives)},
        "pictures": {
            "uri": pictures.uris.column,
            **{name: getattr(pictures, name) for name in _PICTURE_COLUMNS},
        },
    }
    for name, columns in tables.items():
        pa.parquet.write_table(pa.table(columns), folder / f"{name}.parquet")


_PAIR_COLUMNS = ("rows", "places", "labels", "kinds", "traces")
_PICTURE_COLUMNS = ("numbers", "files", "reals", "sizes", "shown", "times")


def _content_columns(name: str, contents: Contents) -> dict[str, Any]:
    import pyarrow as pa

    ends = np.concatenate([[0], np.cumsum(contents.counts)])
    lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(contents.pictures))
    return {f"{name}_text": contents.texts, f"{name}_pictures": lists}


def _load_tables(folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    pairs, negatives, pictures = (
        pq.read_table(folder / f"{name}.parquet") for name in ("pairs", "negatives", "pictures")
    )
    return {
        "pairs": PairTable(
            ids=Texts(pairs["id"]),
            **{name: pairs[name].to_numpy() for name in _PAIR_COLUMNS},
            queries=_contents("query", pairs),
            targets=_contents("target", pairs),
            negatives=_contents("negative", negatives),
            owners=negatives["pair"].to_numpy(),
        ),
        "pictures": PictureTable(
            uris=Texts(pictures["uri"]),
            **{name: pictures[name].to_numpy() for name in _PICTURE_COLUMNS},
        ),
    }


def _contents(name: str, table: "pa.Table") -> Contents:
    lists = table[f"{name}_pictures"].combine_chunks()
    return Contents(
        texts=table[f"{name}_text"].to_numpy(),
        counts=lists.value_lengths().to_numpy(),
        pictures=lists.flatten().to_numpy(),
    )
