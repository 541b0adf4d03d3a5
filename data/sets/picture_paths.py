"""The pictures that rows name: each is inside its root and looked at once; copies are known.

Several paths to one file, and files of equal bytes, count as one file. Its identity is the path
that the data set named first. Behind the path a name may have a place in the file
(`data.containers`): a page of a PDF, a frame of a video file, a cell of a table. Cells of equal
bytes count as one picture.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.common import MediaConfig
from data.containers.addresses import Address, parse_address
from data.containers.cells import cell_size, read_cell
from data.containers.pdf_pages import SUFFIX as PDF_SUFFIX
from data.containers.pdf_pages import page_count, page_number
from data.containers.video_files import frame_count, frame_times
from data.errors import DataError
from data.media.pictures import SUFFIXES, too_large

COMPARED_BYTES = 256 << 20
"""Files of one size are compared until so much was read; the later ones count as different."""


class PictureFiles:
    """Picture files under one root by the names that rows give them."""

    def __init__(
        self,
        root: Path,
        *,
        follow_links: bool = False,
        max_file_bytes: int = MediaConfig.max_file_bytes,
    ) -> None:
        """Larger PDFs and video files than ``max_file_bytes`` are not opened."""
        self.max_file_bytes = max_file_bytes
        self.base = root.resolve()
        self.follow_links = follow_links
        self.copies: dict[str, str] = {}
        """Files of the same bytes as an earlier one, with that one."""
        self.compared = 0
        """Bytes read to find them."""
        self.uncompared = 0
        """Files that may be copies: the budget was used up."""
        self._roots = (self.base, Path(os.path.abspath(root)))
        self._known: dict[tuple[str, bool], tuple[str, str]] = {}
        """Path and, where it cannot be used, the reason; by name, and whether a row's own cell."""
        self._first: dict[Path | str, str] = {}
        """Path of the first name, by the real file or by the address of the cell."""
        self._first_of_size: dict[int, tuple[Path | str, str] | None] = {}
        """Real file or cell, and path, until it is read; None from then on."""
        self._by_bytes: dict[bytes, str] = {}
        self._counts: dict[tuple[str, Callable[[str], int]], int | str] = {}
        """Pages of a PDF or frames of a video file, or why they cannot be counted."""
        self._times: dict[tuple[str, tuple[int, ...]], tuple[float, ...]] = {}
        """Times of frames that were asked for, by video file and numbers."""

    def path(self, name: str, *, where: str) -> str:
        """Return the absolute path of ``name`` under the root; equal pictures get one path.

        A place in the file stays behind the path. A PDF that is named without a page gets the
        number of its only page.

        Raises:
            DataError: the path leaves the root, no such file exists, or the file has no such page,
                frame or cell.
        """
        return self._known_path(name, False, where)

    def cell(self, address: str, *, where: str) -> str:
        """Return the address of the first cell with these bytes; it was read from the row itself.

        Unlike a path that a row names, it may lie outside the root, where the rows are.

        Raises:
            DataError: there is no such cell.
        """
        return self._known_path(address, True, where)

    def _known_path(self, name: str, is_cell: bool, where: str) -> str:
        key = name, is_cell
        if key not in self._known:
            try:
                self._known[key] = (self._first_cell if is_cell else self._look_at)(name), ""
            except DataError as error:
                self._known[key] = "", str(error)
            except (OSError, ValueError) as error:
                self._known[key] = "", f"'{name[:200]}' is not a usable path ({error})"
        path, reason = self._known[key]
        if reason:
            raise DataError(f"{where}: {reason}")
        return path

    def found(self) -> tuple[int, int]:
        """Return how many names were found and how many were asked for."""
        return sum(not reason for _, reason in self._known.values()), len(self._known)

    def frame_count(self, path: str, *, where: str) -> int:
        """Return how many frames a video file has, by its absolute path.

        Raises:
            DataError: it cannot be read as a video, or is too large.
        """
        try:
            return self._count(path, frame_count)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def frame_times(self, path: str, numbers: Sequence[int], *, where: str) -> tuple[float, ...]:
        """Return when frames of a counted video file are shown, in seconds from its first frame.

        Raises:
            DataError: it cannot be read any more, or has other frames now.
        """
        key = path, tuple(numbers)
        if key not in self._times:
            try:
                self._times[key] = frame_times(path, numbers)
            except (DataError, OSError) as error:
                raise DataError(f"{where}: {error}") from error
        return self._times[key]

    def folder(self, name: str, *, where: str) -> list[str] | None:
        """Return the names of a folder's picture files, 2 before 10; None: ``name`` is no folder.

        Raises:
            DataError: the folder is outside the root, or holds no picture.
        """
        if not os.path.isdir(self.base / name):
            return None
        try:
            self._inside(name)
            files = [file for file in os.listdir(self.base / name) if not file.startswith(".")]
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except OSError as error:
            raise DataError(f"{where}: folder '{name[:200]}' cannot be read ({error})") from error
        pictures = [file for file in files if Path(file).suffix.lower() in SUFFIXES]
        if not pictures:
            raise DataError(
                f"{where}: expected a folder of frames, found no picture in '{name[:200]}'; name "
                "the folder that holds the frames themselves, as JPEG or PNG files"
            )
        try:
            "".join(pictures).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: expected names of files in UTF-8 in '{name[:200]}', found others "
                f"({error}); rename them"
            ) from error
        return [f"{name.rstrip('/')}/{file}" for file in sorted(pictures, key=natural_order)]

    def _look_at(self, name: str) -> str:
        whole = str(self.base / name)
        address = parse_address(whole)
        if address.row is not None:
            _, table = self._inside(address.path)
            return self._first_cell(f"{table}#row={address.row}&column={address.column}")
        place = whole[len(address.path) :]
        path = self._file(name.removesuffix(place))
        if not place and name.lower().endswith(PDF_SUFFIX):
            return self._page(path, None)
        return self._placed(path, address, place)

    def _placed(self, path: str, address: Address, place: str) -> str:
        """Return a path with the place in its file, which exists."""
        if address.page is not None:
            return self._page(path, address.page)
        if address.frame is None:
            return path + place
        frames = self._count(path, frame_count)
        if address.frame >= frames:
            raise DataError(
                f"{path}: expected a frame from 0 to {frames - 1}, found '{place}'; name another "
                "frame"
            )
        return f"{path}#frame={address.frame}"

    def _page(self, path: str, page: int | None) -> str:
        return f"{path}#page={page_number(path, page, pages=self._count(path, page_count))}"

    def _count(self, path: str, count: Callable[[str], int]) -> int:
        """Return the pages or frames of a file, which is opened once, also if it is broken."""
        if (path, count) not in self._counts:
            try:
                size = os.stat(path).st_size
                if size > self.max_file_bytes:
                    raise DataError(f"{path}: {too_large(size, self.max_file_bytes)}")
                self._counts[path, count] = count(path)
            except (DataError, OSError) as error:
                self._counts[path, count] = str(error)
        counted = self._counts[path, count]
        if isinstance(counted, str):
            raise DataError(counted)
        return counted

    def _first_cell(self, cell: str) -> str:
        """Return the address of the first cell with these bytes."""
        if cell not in self._first:
            self._first[cell] = self._first_of_equals(cell, cell_size(cell), cell)
        return self._first[cell]

    def _file(self, name: str) -> str:
        """Return the path of the first file with these bytes, by a name without a place."""
        real, path = self._inside(name)
        if not real.is_file():
            raise DataError(_not_a_file(name, real, self.base))
        size = real.stat().st_size
        if real not in self._first:
            self._first[real] = self._first_of_equals(real, size, path)
        return self._first[real]

    def _inside(self, name: str) -> tuple[Path, str]:
        """Return the real path of a name, and its path under the root.

        Raises:
            DataError: it leaves the root.
        """
        shown = f"'{name[:200]}'"
        try:
            real = (self.base / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            # Too long, a link to itself, a NUL.
            raise DataError(f"{shown} is not a usable path ({error})") from error
        if real.is_relative_to(self.base):
            return real, str(real)
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
        return real, link

    def _link(self, name: str) -> str | None:
        """Return the path of a link that lies inside the root; None where the name leads out."""
        if ".." in Path(name).parts:
            return None
        for root in self._roots:
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


def _not_a_file(name: str, real: Path, base: Path) -> str:
    shown = f"'{name[:200]}'"
    if real.is_dir():
        return f"expected a picture file, found the folder {shown}; name a file in it"
    if "://" in name:
        return f"expected a path, found the address {shown}; download the file and name its path"
    if any(mark in name for mark in ("#page", "#frame", "#row")):
        return (
            f"file {shown} not found under {base}; a place in a file is written '#page=3', "
            "'#frame=12' or '#row=7&column=image'"
        )
    return f"file {shown} not found under {base}; check the set's root"


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return what orders names with numbers in them by the numbers: 2 before 10."""
    parts = re.split("([0-9]+)", name)
    return [(int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]
