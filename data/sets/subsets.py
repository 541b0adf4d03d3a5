"""Which rows of its file a data set uses: the first, evenly spread ones, or the hardest."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from configs.common import DataSetConfig
from data.errors import DataError, RowError
from data.sets.rows import Rows


def rows_in_use(rows: Rows, config: DataSetConfig) -> tuple[Sequence[int], Mapping[int, str]]:
    """Return the indices of the rows that a set uses, ascending, from 0.

    The mapping has the index of each row that `hardest_by` cannot rank, with the reason; the set
    does not use such rows.

    Raises:
        DataError: no row can be ranked.
    """
    every = rows.kept
    in_use, unranked = every, dict[int, str]()
    if config.hardest_by and rows:
        in_use, unranked = _hardest(rows, every, config)
    elif config.sample:
        count = min(config.sample, len(every))
        in_use = [every[number * len(every) // count] for number in range(count)]
    return in_use[: config.limit] if config.limit else in_use, unranked


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
            + "; name a column of numbers, or remove hardest_by for evenly spread rows"
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
