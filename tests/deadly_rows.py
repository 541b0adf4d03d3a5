"""Rows of which one ends the process that reads it, as some broken videos do."""

import os

from data.rows.rows import FileRow, Rows


class DeadlyRows(Rows):
    """Rows of texts; the process that was not started by pytest ends with one of them."""

    def __init__(self, count: int, deadly: int) -> None:
        self._indices = range(count)
        self.deadly, self.pytest = deadly, os.getpid()

    def file_ends(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return ("rows",), (len(self._indices),)

    def _row(self, number: int) -> FileRow:
        if number == self.deadly and os.getpid() != self.pytest:
            os._exit(1)
        return {"qry": f"q {number}", "pos_text": "t"}

    def _place(self, number: int) -> str:
        return f"rows row {number + 1}"
