"""Which rows of its file a data set uses: the first, evenly spread ones, or the hardest.

Of these it leaves out those that a file of near duplicates names.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence, Set
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from configs.common import DataSetConfig
from data.errors import DataError, RowError
from data.rows.rows import Rows
from data.sets.fingerprints import file_fingerprint
from data.sets.hardness import ease_of_pairs, is_run

CHECKED_FILES = b"checked_files"
"""Entry of the metadata of `near_duplicates.parquet`: fingerprints of the files of rows that were
checked, by path, as JSON."""


def rows_in_use(
    rows: Rows, config: DataSetConfig, shown: Callable[[str], str]
) -> tuple[Sequence[int], Mapping[int, str], list[str]]:
    """Return the indices of the rows that a set uses, ascending, from 0.

    The mapping has the index of each row that `hardest_by` cannot rank, with the reason; the set
    does not use such rows. The list says what a person should know of the choice.

    ``shown`` returns the name of a file as the settings write it, which may be an address.

    Raises:
        DataError: no row can be ranked, `leave_out` does not fit the set's files, or it leaves no
            row.
    """
    every = rows.kept
    in_use, unranked = every, dict[int, str]()
    told: list[str] = []
    if is_run(config.hardest_by) and rows:
        in_use, told = _hardest_in_run(rows, every, config)
    elif config.hardest_by and rows:
        in_use, unranked = _hardest(rows, every, config)
    elif config.sample:
        count = min(config.sample, len(every))
        in_use = [every[number * len(every) // count] for number in range(count)]
    in_use = in_use[: config.limit] if config.limit else in_use
    if not config.leave_out or not in_use:
        return in_use, unranked, told
    named = _left_out(rows, config, shown)
    stay = [index for index in in_use if index not in named]
    if not stay:
        raise DataError(
            f"data set '{config.name}', leave_out: {config.leave_out} names each of the "
            f"{len(in_use)} rows in use of {config.path}; use another set, or remove leave_out"
        )
    told.append(
        f"data set '{config.name}': {len(in_use) - len(stay)} of {len(in_use)} rows left out, "
        f"which {config.leave_out} names"
    )
    return stay, unranked, told


def _left_out(rows: Rows, config: DataSetConfig, shown: Callable[[str], str]) -> Set[int]:
    """Return the indices of the rows of the set's files that its `leave_out` names."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    where = f"data set '{config.name}', leave_out: {config.leave_out}"
    expected = "expected near_duplicates.parquet as check_data writes it"
    try:
        with pq.ParquetFile(config.leave_out) as file:
            metadata = file.schema_arrow.metadata or {}
            table = file.read(columns=["file", "row"])
        table = table.cast(pa.schema([("file", pa.string()), ("row", pa.int64())])).drop_null()
        checked = {
            Path(name).resolve(): str(fingerprint)
            for name, fingerprint in json.loads(metadata[CHECKED_FILES]).items()
        }
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: {expected}, cannot read that ({type(error).__name__}: {error}); run "
            "check_data on this set, or remove leave_out"
        ) from error
    firsts: dict[Path, tuple[int, int]] = {}
    begin = 0
    for name, end in zip(*rows.file_ends(), strict=True):
        path = Path(shown(name)).resolve()
        if path not in checked:
            files = reprlib.repr(sorted(map(str, checked)))
            raise DataError(
                f"{where}: expected rows of {name}, found that check_data read {files} when it "
                "wrote the file; run check_data on this set too, or remove leave_out"
            )
        if (now := file_fingerprint(Path(name))) != checked[path]:
            raise DataError(
                f"{where}: {name} has changed since check_data read it (then {checked[path]}, now "
                f"{now}), so row numbers may mean other rows; run check_data again"
            )
        firsts[path] = (begin, end)
        begin = end
    named = set()
    for name in table["file"].unique().to_pylist():
        begin, end = firsts.get(Path(name).resolve(), (0, 0))
        for row in table["row"].filter(pc.equal(table["file"], name)).to_pylist() if end else ():
            if not 1 <= row <= end - begin:
                raise DataError(
                    f"{where}: expected rows from 1 to {end - begin} of {name}, found row {row}; "
                    "run check_data again"
                )
            named.add(begin + row - 1)
    return named


def _hardest_in_run(
    rows: Rows, every: Sequence[int], config: DataSetConfig
) -> tuple[Sequence[int], list[str]]:
    """Return the rows whose pairs were the hardest in a run, and how many of all it has met."""
    ease = ease_of_pairs(config.hardest_by, config.name)
    known: dict[int, float] = {}
    seen: set[str] = set()
    for index, row in zip(every, rows.at(every).read(), strict=True):
        given = "" if isinstance(row, RowError) else row.get("id")
        usable = isinstance(given, str | int) and given != ""
        pair_id = str(given) if usable else f"{config.name}-{index}"
        # Of rows that share an id the later ones have their number behind it.
        pair_id = f"{pair_id}-{index}" if pair_id in seen else pair_id
        seen.add(pair_id)
        if pair_id in ease:
            known[index] = ease[pair_id]
    if not known:
        raise DataError(
            f"data set '{config.name}', hardest_by: {config.hardest_by}: expected pairs of these "
            f"rows, found {len(ease)} others; name a run on the same file"
        )
    told = (
        f"data set '{config.name}': {len(known)} of {len(every)} rows were met in "
        f"{config.hardest_by}; the hardest {min(config.sample, len(known))} are used"
    )
    hardest = sorted(known, key=known.__getitem__)  # equal ones stay in the file's order
    return sorted(hardest[: config.sample]), [told]


def _hardest(
    rows: Rows, every: Sequence[int], config: DataSetConfig
) -> tuple[Sequence[int], dict[int, str]]:
    column = config.hardest_by
    numbers: dict[int, float] = {}
    unranked: dict[int, str] = {}
    for index, row in zip(every, rows.at(every).read(), strict=True):
        if isinstance(row, RowError):
            unranked[index] = str(row)
            continue
        value = row.get(column)
        number = _number(value)
        # Not math.isfinite: it fails for whole numbers that no float can hold.
        if number is not None and -math.inf < number < math.inf:
            numbers[index] = number
        else:
            where = rows.place(index)
            unranked[index] = (
                f"{where}, field '{column}': expected a finite number, as the set's hardest_by "
                f"names this column, found {reprlib.repr(value)}; add it or remove the row"
            )
    if not numbers:
        near = get_close_matches(column, sorted(_fields(rows) - {column}), n=1)
        raise DataError(
            f"data set '{config.name}', hardest_by: expected numbers in column '{column}' of "
            f"{config.path}, found none in any row"
            + (f" (near {near[0]!a})" if near else "")
            + "; name a column of numbers or, with a '/' in it, a run's folder such as './plain'; "
            "or remove hardest_by for evenly spread rows"
        )
    hardest = sorted(numbers, key=numbers.__getitem__)  # equal numbers stay in the file's order
    return sorted(hardest[: config.sample]), unranked


def _fields(rows: Rows) -> set[str]:
    first = next(rows.read())
    return set() if isinstance(first, RowError) else set(first)


def _number(value: Any) -> int | float | None:
    """Return the number that a cell holds, also as text, as all cells of CSV are."""
    if isinstance(value, str | Decimal):
        try:
            return float(value)
        except ValueError:
            return None
    return value if type(value) in (int, float) else None
