"""Tables in parquet and Arrow files, and the pictures in their cells.

An Arrow file is mapped into memory. A parquet file is first unpacked, once, into the cache of
Hugging Face `datasets` (HF_DATASETS_CACHE), and the Arrow file there is mapped. So no table is
whole in memory, and a cell is read when it is asked for.
"""

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from data.containers.addresses import Address, parse_address
from data.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
PARQUET = b"PAR1"
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
TABLES = (PARQUET, ARROW_FILE, ARROW_STREAM)
"""How the files of tables begin."""
MESSAGE_CHARS = 300
"""Characters of a library's message that an error repeats."""
_opened: dict[tuple[str, int, int], "pa.Table"] = {}
"""Tables by the path, the time and the size of their files."""
_opening = threading.Lock()


def is_table(path: Path) -> bool:
    """Return whether a file begins as parquet and Arrow files do."""
    return _begins(path).startswith(TABLES)


def open_table(path: Path) -> "pa.Table":
    """Return the table in a parquet or Arrow file; each file is opened once in a process.

    Raises:
        DataError: no such file, not a table, or no room for the unpacked parquet file.
    """
    try:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        with _opening:
            if key not in _opened:
                _opened[key] = _read_table(path, key)
            return _opened[key]
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check the data set's `path`") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the data set's `path`") from error


def count_rows(path: Path) -> int:
    """Return the number of rows in a parquet or Arrow file; of parquet only the end is read.

    Raises:
        DataError: the file cannot be read as a table.
    """
    import pyarrow.parquet

    if not _begins(path).startswith(PARQUET):
        return open_table(path).num_rows
    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except Exception as error:  # a broken file may raise anything
        raise _unreadable(path, "parquet", error) from error


def holds_bytes(kind: "pa.DataType") -> bool:
    """Return whether the cells of a column are bytes, or `{bytes, path}` as `datasets` has them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def hides_bytes(kind: "pa.DataType") -> bool:
    """Return whether there are bytes deeper in the cells, such as lists of pictures."""
    fields = (kind.field(index) for index in range(kind.num_fields))
    return any(_is_binary(field.type) or hides_bytes(field.type) for field in fields)


def bytes_in(cell: "pa.Scalar") -> "pa.Buffer | None":
    """Return the bytes in a cell of a column that `holds_bytes`, None where it has none."""
    import pyarrow.types

    if not cell.is_valid:
        return None
    buffer = bytes_in(cell["bytes"]) if pyarrow.types.is_struct(cell.type) else cell.as_buffer()
    return buffer if buffer is not None and buffer.size else None


def cell_size(uri: str) -> int:
    """Return how many bytes the cell of an address holds; they are not read.

    Raises:
        DataError: there is no such table, row or column, or the cell holds no bytes.
    """
    return _cell(uri, parse_address(uri)).size


def read_cell(uri: str, *, max_bytes: int) -> bytes:
    """Return the bytes in the cell of an address `<file>#row=<N>&column=<name>`.

    Raises:
        DataError: no such table, row or column, no bytes there, or more than ``max_bytes``.
    """
    buffer = _cell(uri, parse_address(uri))
    if buffer.size > max_bytes:
        raise DataError(
            f"{uri}: {buffer.size} bytes, more than data.media.max_file_bytes={max_bytes}; "
            "make it smaller or raise that"
        )
    return buffer.to_pybytes()


def _cell(uri: str, address: Address) -> "pa.Buffer":
    table = open_table(Path(address.path))
    row = address.row or 0
    if row >= table.num_rows:
        raise DataError(f"{uri}: no such row; the table has {table.num_rows}, counted from 0")
    if address.column not in table.column_names:
        raise DataError(f"{uri}: no such column; the table has {', '.join(table.column_names)}")
    column = table.column(address.column)
    if not holds_bytes(column.type):
        raise DataError(f"{uri}: expected a column of bytes, found one of {column.type}")
    buffer = bytes_in(column[row])
    if buffer is None:
        raise DataError(f"{uri}: expected bytes in the cell, found none")
    return buffer


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(max(map(len, TABLES)))


def _read_table(path: Path, key: tuple[str, int, int]) -> "pa.Table":
    begin = _begins(path)
    if begin.startswith(PARQUET):
        table = _parquet_table(path, key)
    elif begin.startswith((ARROW_FILE, ARROW_STREAM)):
        table = _arrow_table(path, begin)
    else:
        raise DataError(f"{path}: expected a parquet or Arrow file, found another kind of file")
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: two columns are called '{twice[0]}'; rename one")
    return table


def _arrow_table(path: Path, begin: bytes) -> "pa.Table":
    import pyarrow as pa

    try:
        read = pa.ipc.open_file if begin.startswith(ARROW_FILE) else pa.ipc.open_stream
        table = read(pa.memory_map(str(path))).read_all()
        # Offsets of a broken file point anywhere, also outside the memory of this process.
        table.validate(full=True)
    except Exception as error:  # a broken file may raise anything
        raise _unreadable(path, "Arrow", error) from error
    return table


def _parquet_table(path: Path, key: tuple[str, int, int]) -> "pa.Table":
    import datasets
    from datasets.data_files import DataFilesDict, DataFilesList

    if "::" in str(path):
        raise DataError(f"{path}: '::' in a path has a meaning for `datasets`; rename the folder")
    if not count_rows(path):
        return _rowless_table(path)  # `datasets` fails on it
    datasets.disable_progress_bars()
    cache = datasets.config.HF_DATASETS_CACHE
    log.info("%s: %d MiB, read through the cache %s", path, key[2] >> 20, cache)
    # A path alone would be taken for a pattern, in which [ and * mean something.
    files = DataFilesDict(train=DataFilesList([str(path)], [tuple(map(str, key[1:]))]))
    try:
        return datasets.Dataset.from_parquet(files, split="train").with_format("arrow")[:]
    except Exception as error:  # a broken file may raise anything
        if _is_of_the_system(error):
            raise DataError(
                f"{path}: cannot be unpacked into {cache} "
                f"({str(error)[:MESSAGE_CHARS]}); make room there, or set HF_DATASETS_CACHE to a "
                "folder that can be written and has room for the set"
            ) from error
        raise _unreadable(path, "parquet", error) from error


def _rowless_table(path: Path) -> "pa.Table":
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except Exception as error:  # a broken file may raise anything
        raise _unreadable(path, "parquet", error) from error


def _is_of_the_system(error: BaseException | None) -> bool:
    """Return whether the disk was the cause; errors about a file's content have no number."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno or "disk space" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable {kind} file "
        f"({type(error).__name__}: {str(error)[:MESSAGE_CHARS]}); download or write it again"
    )
