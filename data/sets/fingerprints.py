"""Fingerprints of data and models: names, sizes and hashes, no times; copies have the same."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from configs.common import DataSetConfig
from data.containers.addresses import file_of
from data.containers.cells import is_table
from data.rows.beir_rows import part_files
from data.rows.locations import local_set
from data.rows.row_files import row_files

if TYPE_CHECKING:
    from data.sets.load_sets import LoadedSet

WHOLE_BYTES = 16 << 20
PARTS, PART_BYTES = 64, 4096
"""Larger files of models, and tables, are hashed in this many evenly spread parts."""
PICTURES = 64
"""Pictures of a data set whose sizes are looked at."""
NO_PART = (".md", ".part")
"""Endings of files in a model folder that no model is made of."""


def model_fingerprint(folder: str) -> dict[str, str]:
    """Return size and hash of each file in a model folder; none for no folder."""
    path = Path(folder)
    if not folder or not path.is_dir():
        return {}
    files = (file for file in path.iterdir() if file.is_file())
    return {
        file.name: file_hash(file, whole=file.stat().st_size <= WHOLE_BYTES)
        for file in sorted(files)
        if not file.name.startswith(".") and file.suffix not in NO_PART
    }


def rows_fingerprint(
    sets: Sequence[DataSetConfig], keys: Iterable[str], uris: Iterable[str]
) -> dict[str, str]:
    """Return what training rows are: their files, and number, order and pictures of those in use.

    ``keys`` name the rows in their order, ``uris`` are all of their pictures.
    """
    shown = sorted(set(uris))
    sampled_uris = shown[:: max(1, len(shown) // PICTURES)]
    files = [Path(file_of(uri)) for uri in sampled_uris]
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    return {
        **{f"file of set '{config.name}'": _set_files(local_set(config)) for config in sets},
        "rows in use": "{} rows, {}".format(*_count_and_hash(keys)),
        "pictures": f"{len(shown)} pictures, sizes of some {_hash(map(str, sizes))}",
    }


def file_fingerprint(path: Path) -> str:
    """Return size and hash of a file of rows."""
    # Tables may hold the pictures too, and are as large as a model.
    return file_hash(path, whole=not is_table(path) or path.stat().st_size <= WHOLE_BYTES)


def files_fingerprint(config: DataSetConfig, names: Iterable[str]) -> dict[str, str]:
    """Return size and hash of a set's files of rows, by their names as the settings write them."""
    on_disk = local_set(config).path
    return {name: file_fingerprint(Path(name.replace(config.path, on_disk))) for name in names}


def pairs_fingerprint(
    sets: Sequence[DataSetConfig], loaded: "Sequence[LoadedSet]"
) -> dict[str, str]:
    """Return the `rows_fingerprint` of data sets whose pairs are all in use."""
    keys = (f"{data_set.name}/{pair_id}" for data_set in loaded for pair_id in data_set.table.ids)
    uris = (uri for data_set in loaded for uri in data_set.shown_uris())
    return rows_fingerprint(sets, keys, uris)


def texts_fingerprint(texts: Iterable[str]) -> str:
    """Return number and hash of texts in their order."""
    return "{} texts, {}".format(*_count_and_hash(texts))


def changed_inputs(
    then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return a line for each part of each input that is not as it was."""
    return [
        f"{name}, {part}: there {old.get(part, 'nothing')}, now {new.get(part, 'nothing')}"
        for name in sorted(then.keys() | now.keys())
        for old, new in [(then.get(name, {}), now.get(name, {}))]
        for part in sorted(old.keys() | new.keys())
        if old.get(part) != new.get(part)
    ]


def file_hash(path: Path, *, whole: bool) -> str:
    """Return size and hash of a file, of its evenly spread parts where it is not hashed whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if whole:
            digest = hashlib.file_digest(file, "sha256")
        else:
            digest = hashlib.sha256()
            for part in range(PARTS):
                file.seek(part * (size - PART_BYTES) // (PARTS - 1))
                digest.update(file.read(PART_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def set_files(config: DataSetConfig) -> list[Path]:
    """Return the files in which a set's rows are, and what belongs to them.

    Raises:
        DataError: see `row_files` and `part_files`.
    """
    path = Path(config.path)
    parts = part_files(path).values() if config.format == "beir" else [row_files(path)]
    return [*chain.from_iterable(parts), *map(Path, config.traces)]


def _set_files(config: DataSetConfig) -> str:
    files = set_files(config)
    hashes = [file_fingerprint(file) for file in files]
    return hashes[0] if files == [Path(config.path)] else f"{len(files)} files, {_hash(hashes)}"


def _hash(words: Iterable[str]) -> str:
    return _count_and_hash(words)[1]


def _count_and_hash(words: Iterable[str]) -> tuple[int, str]:
    digest, count = hashlib.sha256(), 0
    for word in words:
        digest.update(word.encode("utf-8", "surrogatepass") + b"\0")
        count += 1
    return count, digest.hexdigest()[:16]
