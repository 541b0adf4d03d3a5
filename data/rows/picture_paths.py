"""The pictures that rows name: each is inside its root, and is looked at once.

Behind the path a name may have a place in the file (`data.containers`): a page of a PDF, a frame of
a video file, a cell of a table. Which files are copies of others is found later
(`data.sets.picture_copies`); when a row is read again, the first of the copies stands for all.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.common import MediaConfig
from data.containers.addresses import Address, parse_address
from data.containers.cells import cell_size
from data.containers.pdf_pages import SUFFIX as PDF_SUFFIX
from data.containers.pdf_pages import page_count, page_number
from data.containers.video_files import frame_count, frame_times
from data.errors import DataError
from data.media.pictures import SUFFIXES, too_large


@dataclass(frozen=True, slots=True)
class LookedAt:
    """What looking at a file or a cell told."""

    real: str
    """The file behind links; of a cell its address."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class KnownFiles:
    """What is known of all files of a set, so that none needs to be looked at again."""

    first: Mapping[str, str]
    """The file that stands for another, by the other's path; see `find_copies`."""
    counts: Mapping[str, int]
    """Pages of PDFs and frames of video files, by their paths."""
    times: Callable[[str], float]
    """When frames of video files are shown, by their addresses."""


class PictureFiles:
    """Picture files under one root by the names that rows give them."""

    def __init__(
        self,
        root: Path,
        *,
        follow_links: bool = False,
        max_file_bytes: int = MediaConfig.max_file_bytes,
        links_to: Path | None = None,
        known: KnownFiles | None = None,
    ) -> None:
        """Larger PDFs and video files than ``max_file_bytes`` are not opened.

        Links under the root may lead into ``links_to``, with ``follow_links`` anywhere.

        With ``known`` no file is looked at: whether it is there shows when it is decoded.
        """
        self.max_file_bytes = max_file_bytes
        self.base = root.resolve()
        self.follow_links = follow_links
        self._links_to = links_to
        self.looked_at: dict[str, LookedAt] = {}
        """Files and cells by path or address."""
        self._counts: dict[tuple[str, Callable[[str], int]], int | str] = {}
        """Pages of a PDF or frames of a video file, or why they cannot be counted."""
        self._roots = (self.base, Path(os.path.abspath(root)))
        self._known = known
        self._names: dict[tuple[str, bool], tuple[str, str]] = {}
        """Path and, where it cannot be used, the reason; by name, and whether a row's own cell."""
        self._times: dict[str, float] = {}
        """Times of frames of video files that were asked for, by their addresses."""

    def path(self, name: str, *, where: str) -> str:
        """Return the absolute path of ``name`` under the root.

        A place in the file stays behind the path. A PDF that is named without a page gets the
        number of its only page.

        Raises:
            DataError: the path leaves the root, no such file exists, or the file has no such page,
                frame or cell.
        """
        return self._usable_path(name, False, where)

    def cell(self, address: str, *, where: str) -> str:
        """Return the address of a cell; it was read from the row itself.

        Unlike a path that a row names, it may lie outside the root, where the rows are.

        Raises:
            DataError: there is no such cell.
        """
        return self._usable_path(address, True, where)

    def file(self, uri: str) -> tuple[str, LookedAt]:
        """Return the file or cell that holds a picture, and what looking at it told."""
        address = parse_address(uri)
        path = uri if address.row is not None else address.path
        return path, self.looked_at[path]

    def names(self) -> Mapping[str, bool]:
        """Return the names that rows gave, with whether each can be used."""
        return {name: not reason for (name, _), (_, reason) in self._names.items()}

    def counts(self) -> Mapping[str, int]:
        """Return the pages of PDFs and the frames of video files that were counted, by path."""
        known = self._counts.items()
        return {path: count for (path, _), count in known if isinstance(count, int)}

    def _usable_path(self, name: str, is_cell: bool, where: str) -> str:
        key = name, is_cell
        path, reason = self._names.get(key) or self._look(name, is_cell)
        if self._known is None:
            self._names[key] = path, reason
        if reason:
            raise DataError(f"{where}: {reason}")
        return path

    def _look(self, name: str, is_cell: bool) -> tuple[str, str]:
        try:
            return (self._cell if is_cell else self._look_at)(name), ""
        except DataError as error:
            return "", str(error)
        except (OSError, ValueError) as error:
            return "", f"'{name[:200]}' is not a usable path ({error})"

    def frame_count(self, path: str, *, where: str) -> int:
        """Return how many frames a video file has, by its absolute path.

        Raises:
            DataError: it cannot be read as a video, or is too large.
        """
        try:
            return self._count(path, frame_count)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def pages(self, name: str, *, where: str) -> list[str]:
        """Return the names of all pages of a PDF that is named without a page; else the name.

        Raises:
            DataError: the PDF leaves the root, is not there, or cannot be opened.
        """
        if not name.lower().endswith(PDF_SUFFIX):
            return [name]
        try:
            count = self._count(self._file(name), page_count)
        except (DataError, OSError) as error:
            raise DataError(f"{where}: {error}") from error
        return [f"{name}#page={number}" for number in range(1, count + 1)]

    def frame_times(self, path: str, numbers: Sequence[int], *, where: str) -> tuple[float, ...]:
        """Return when frames of a counted video file are shown, in seconds from its first frame.

        Raises:
            DataError: it cannot be read any more, or has other frames now.
        """
        uris = [f"{path}#frame={number}" for number in numbers]
        if self._known is not None:
            return tuple(self._known.times(uri) for uri in uris)
        if any(uri not in self._times for uri in uris):
            try:
                self._times.update(zip(uris, frame_times(path, numbers), strict=True))
            except (DataError, OSError) as error:
                raise DataError(f"{where}: {error}") from error
        return tuple(self._times[uri] for uri in uris)

    def time(self, uri: str) -> float:
        """Return the time of a frame that was asked for; NaN: it was not."""
        return self._times.get(uri, math.nan)

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
            return self._cell(f"{table}#row={address.row}&column={address.column}")
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
        if self._known and path in self._known.counts:
            return self._known.counts[path]
        key = path, count
        if key not in self._counts:
            try:
                size = os.stat(path).st_size
                if size > self.max_file_bytes:
                    raise DataError(f"{path}: {too_large(size, self.max_file_bytes)}")
                self._counts[key] = count(path)
            except (DataError, OSError) as error:
                self._counts[key] = str(error)
        counted = self._counts[key]
        if isinstance(counted, str):
            raise DataError(counted)
        return counted

    def _cell(self, address: str) -> str:
        if self._known:
            return self._known.first.get(address, address)
        if address not in self.looked_at:
            self.looked_at[address] = LookedAt(address, cell_size(address))
        return address

    def _file(self, name: str) -> str:
        """Return the path of a file, by a name without a place in it."""
        real, path = self._inside(name)
        if self._known:
            return self._known.first.get(path, path)
        if not real.is_file():
            raise DataError(_not_a_file(name, real, self.base))
        if path not in self.looked_at:
            self.looked_at[path] = LookedAt(str(real), real.stat().st_size)
        return path

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
        accepted = self._links_to is not None and real.is_relative_to(self._links_to)
        if not (accepted or self.follow_links):
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
