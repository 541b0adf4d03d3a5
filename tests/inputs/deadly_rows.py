"""Rows that end the process that reads or opens them, as some broken videos do."""

import os
from pathlib import Path

from data.rows.rows import FileRow, Rows


class DeadlyRows(Rows):
    """Rows of texts; the process that was not started by pytest ends with some of them."""

    def __init__(self, count: int, *deadly: int) -> None:
        self._indices = range(count)
        self.deadly, self.pytest = deadly, os.getpid()

    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return ("rows",), (len(self._indices),)

    def _row(self, number: int) -> FileRow:
        if number in self.deadly and os.getpid() != self.pytest:
            os._exit(1)
        return {"qry": f"q {number}", "pos_text": "t"}

    def _place(self, number: int) -> str:
        return f"rows row {number + 1}"


class UnsentRows(DeadlyRows):
    """Rows with which no process can be started."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


class CountedRows(DeadlyRows):
    """Rows that write a byte into a file whenever one is read."""

    def __init__(self, count: int, log: Path) -> None:
        super().__init__(count)
        self.log = log

    def _row(self, number: int) -> FileRow:
        with self.log.open("a") as file:
            file.write("x")
        return super()._row(number)
