"""The pictures that rows name: each is inside its root and looked at once; copies are known.

Several paths to one file, and files of equal bytes, count as one picture. Its identity is the path
that the data set named first. A picture may also lie in a cell of a table (`data/addresses.py`).
"""

import hashlib
import os
from pathlib import Path

from data.addresses import Address, parse_address
from data.cells import cell_size, read_cell
from data.errors import DataError

COMPARED_BYTES = 256 << 20
"""Files of one size are compared until so much was read; the later ones count as different."""


class PictureFiles:
    """Picture files under one root by the names that rows give them."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.base = root.resolve()
        self.follow_links = follow_links
        self.tables: set[str] = set()
        """Row files of the sets, absolute: cells in them may be named, wherever they are."""
        self.copies: dict[str, str] = {}
        """Files of the same bytes as an earlier one, with that one."""
        self.compared = 0
        """Bytes read to find them."""
        self.uncompared = 0
        """Files that may be copies: the budget was used up."""
        self._given = (self.base, Path(os.path.abspath(root)))
        self._known: dict[str, tuple[str, str]] = {}
        """Path and, where it cannot be used, the reason; by name."""
        self._first: dict[Path | str, str] = {}
        """Path of the first name, by the real file or by the address of the cell."""
        self._first_of_size: dict[int, tuple[Path | str, str] | None] = {}
        """Real file or cell, and path, until it is read; None from then on."""
        self._by_bytes: dict[bytes, str] = {}

    def path(self, name: str, *, where: str) -> str:
        """Return the absolute path of ``name`` under the root; equal pictures get one path.

        Raises:
            DataError: the path leaves the root, or no such file or cell exists.
        """
        if name not in self._known:
            self._known[name] = self._look_at(name)
        path, reason = self._known[name]
        if reason:
            raise DataError(f"{where}: {reason}")
        return path

    def found(self) -> tuple[int, int]:
        """Return how many names were found and how many were asked for."""
        return sum(not reason for _, reason in self._known.values()), len(self._known)

    def _look_at(self, name: str) -> tuple[str, str]:
        address = parse_address(name)
        try:
            if address.row is not None:
                return self._first_cell(address), ""
            real, size, path = self._inside(name)
        except DataError as error:
            return "", str(error)
        if real not in self._first:
            self._first[real] = self._first_of_equals(real, size, path)
        return self._first[real], ""

    def _first_cell(self, address: Address) -> str:
        table = address.path if address.path in self.tables else self._inside(address.path)[2]
        cell = f"{table}#row={address.row}&column={address.column}"
        if cell not in self._first:
            self._first[cell] = self._first_of_equals(cell, cell_size(cell), cell)
        return self._first[cell]

    def _inside(self, name: str) -> tuple[Path, int, str]:
        """Return the real file of a name, its bytes, and its path under the root.

        Raises:
            DataError: it leaves the root, or is no file.
        """
        shown = f"'{name[:200]}'"
        try:
            real = (self.base / name).resolve()
            size = real.stat().st_size if real.is_file() else None
        except (OSError, RuntimeError, ValueError) as error:
            # Too long, a link to itself, a NUL.
            raise DataError(f"{shown} is not a usable path ({error})") from error
        path = str(real)
        if not real.is_relative_to(self.base):
            link = self._link(name)
            if link is None:
                raise DataError(
                    f"expected a path inside {self.base}, found {shown} which leaves it; move the "
                    "file under the root or set the data set's root higher"
                )
            if not self.follow_links:
                raise DataError(
                    f"{shown} is a link to {real}, outside {self.base}; copy the file (from a "
                    "hub, download with local_dir), or set the data set's follow_links: true"
                )
            path = link
        if size is None:
            raise DataError(f"file {shown} not found under {self.base}; check the set's root")
        return real, size, path

    def _link(self, name: str) -> str | None:
        """Return the path of a link that lies inside the root; None where the name leads out."""
        if ".." in Path(name).parts:
            return None
        for root in self._given:
            path = root / name
            if path.is_relative_to(root):
                return str(path)
        return None

    def _first_of_equals(self, real: Path | str, size: int, path: str) -> str:
        """Return the path of the first file with these bytes; only files of one size are read."""
        if size not in self._first_of_size:
            self._first_of_size[size] = (real, path)
            return path
        if self.compared + size > COMPARED_BYTES:
            self.uncompared += 1
            return path
        try:
            if unread := self._first_of_size[size]:
                other, its_path = unread
                self._by_bytes.setdefault(self._digest(other, size), its_path)
                self._first_of_size[size] = None
            first = self._by_bytes.setdefault(self._digest(real, size), path)
        except OSError:  # the reason is told where the picture is decoded
            return path
        if first != path:
            self.copies[path] = first
        return first

    def _digest(self, real: Path | str, size: int) -> bytes:
        self.compared += size
        if isinstance(real, str):
            return hashlib.sha256(read_cell(real, max_bytes=size)).digest()
        with real.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
