"""Archives of media under a set's root, unpacked once before the set's rows are read.

A member gets its name when it is whole. A marker in `.unpacked/` says that an archive is done, and
holds the size and time of its files; a killed job leaves none, so the next one begins again.
Several jobs may ask for the same archive: one unpacks, the others wait.
"""

import io
import json
import logging
import os
import re
import shutil
import socket
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO
from urllib.parse import quote

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from configs.common import DataSetConfig
from data.containers import pdf_pages, video_files
from data.containers.file_kinds import HEAD, kind_of_file
from data.durable import DISK_FULL
from data.errors import DataError
from data.media import pictures
from data.rows.folder_lock import locked
from data.rows.picture_paths import natural_order

log = logging.getLogger(__name__)

MEDIA = pictures.SUFFIXES | video_files.SUFFIXES | {pdf_pages.SUFFIX}
"""Endings of the members that are unpacked; all others are left in the archive."""
MOST_GROWTH, ALWAYS_ALLOWED = 20, 4 << 30
"""An archive may unpack to so many times its size, and to so many bytes in any case: media are
compressed already."""
MAX_HEADER = 1 << 20
"""Bytes of the name and other facts of one member."""
STORE = ".unpacked"
"""Folder in the root for markers, the lock and the file that is being written."""

_TRUSTED = "unpack the archive yourself if you trust it, and remove it from `unpack`"
_CUT_OFF = "the archive is cut off: its download was not finished; download it again"
_ARROW = " -> "
_PART = re.compile(r"(?P<name>.+\.(?:tar|tgz|tar\.\w+))[-.](?P<number>\d+)")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_READERS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
"""The module that unpacks a compressed tar archive, by how it begins; Python may lack some."""
_USTAR_AT = 257
_BLOCK = 512
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive under a root, in one file or in numbered parts."""

    files: tuple[Path, ...]
    root: Path
    into: str
    """Folder under the root that its members are put into; `.` is the root."""

    @property
    def name(self) -> str:
        """Its path under the root, of parts that of the first."""
        return str(self.files[0].relative_to(self.root))

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)

    def is_done(self) -> bool:
        """Return whether it was unpacked as it is now."""
        try:
            return json.loads(self._marker().read_text()) == self._state()
        except (FileNotFoundError, ValueError):
            return False

    def mark_as_done(self) -> None:
        """Write the marker, once the disk holds what was unpacked."""
        marker = self._marker()
        marker.parent.mkdir(parents=True, exist_ok=True)
        part = marker.with_name(marker.name + ".part")
        os.sync()
        part.write_text(json.dumps(self._state()))
        part.replace(marker)

    def _marker(self) -> Path:
        return self.root / STORE / (self.name + _marker_ending(self.into))

    def _state(self) -> list[list[Any]]:
        states = [(file.name, file.stat()) for file in self.files]
        return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


def archive_pattern(entry: str) -> str:
    """Return the pattern under the root in an entry of `unpack`."""
    return entry.partition(_ARROW)[0].strip()


def waiting_archives(config: DataSetConfig) -> list[Archive]:
    """Return the archives of a set's `unpack` that are not unpacked yet; its root is on disk.

    Raises:
        DataError: an entry leads out of the root or names no archive, or a part is missing.
    """
    try:
        archives = [archive for entry in config.unpack for archive in _archives(config, entry)]
        return [archive for archive in archives if not archive.is_done()]
    except OSError as error:
        raise DataError(
            f"data set '{config.name}', unpack: {config.root} cannot be read ({error}); mend that"
        ) from error


def unpack_archives(config: DataSetConfig) -> None:
    """Unpack those archives of a set's `unpack` that are not unpacked yet.

    Raises:
        DataError: as `waiting_archives`; an archive is damaged or too large when unpacked, a member
            leads out of its folder or is no plain file, or the root cannot be written; the message
            names archive and member.
    """
    if not waiting_archives(config):
        return
    root = Path(config.root)
    try:
        (root / STORE).mkdir(exist_ok=True)
        with locked(root / STORE / "lock") as alone:
            # Another job may have unpacked them in the meantime.
            for archive in waiting_archives(config):
                _unpack(archive)
            for part in (root / STORE).glob("*.part") if alone else ():
                part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"data set '{config.name}', unpack: the folder {root} cannot be written ({error}); "
            "unpack the archives yourself and remove `unpack`, or copy the set to a folder of yours"
        ) from error


def _marker_ending(into: str) -> str:
    return ("" if into == "." else f" in {quote(into, safe='')}") + ".done"


def _archives(config: DataSetConfig, entry: str) -> Iterator[Archive]:
    """Yield the archives of an entry `<pattern>` or `<pattern> -> <folder>`."""
    where, root = f"data set '{config.name}', unpack", Path(config.root)
    pattern, folder = archive_pattern(entry), entry.partition(_ARROW)[2].strip()
    for part in (pattern, folder):
        path = PurePosixPath(part)
        if path.is_absolute() or ".." in path.parts or "\0" in part:
            raise DataError(
                f"{where}: expected '<pattern>' or '<pattern> -> <folder>' with paths inside the "
                f"root, found {entry!a}; write them relative to the root {root}"
            )
    if PurePosixPath(pattern) == PurePosixPath("."):
        raise DataError(f"{where}: expected a pattern such as 'images_zip/*.zip', found {entry!a}")
    into = str(PurePosixPath(folder))
    files = [
        file
        for file in sorted(root.glob(pattern), key=lambda file: natural_order(str(file)))
        if file.is_file() and file.relative_to(root).parts[0] != STORE
    ]
    markers = escape(_marker_ending(into))
    if not files and not any((root / STORE).glob(pattern + markers)):
        raise DataError(
            f"{where}: expected archives as {pattern!a} in {root}, found none; download them, or "
            "correct the pattern, or remove it where the media lie in the root already"
        )
    parts: dict[Path, dict[int, Path]] = {}
    for file in files:
        if match := _PART.fullmatch(file.name):
            parts.setdefault(file.with_name(match["name"]), {})[int(match["number"])] = file
        else:
            yield Archive(files=(file,), root=root, into=into)
    for name, numbered in parts.items():
        last = max(numbered)
        missing = sorted(set(range(0 if 0 in numbered else 1, last + 1)) - numbered.keys())
        if missing:
            raise DataError(
                f"{where}: expected all parts of {name}, found {len(numbered)}, the last with "
                f"number {last}: number {missing[0]} is missing; download it"
            )
        ordered = tuple(numbered[number] for number in sorted(numbered))
        yield Archive(files=ordered, root=root, into=into)


def _unpack(archive: Archive) -> None:
    """Unpack one archive with a progress bar, and write its marker."""
    into = archive.root / archive.into
    log.info("%s: unpacking %d MiB into %s", archive.root / archive.name, archive.size >> 20, into)
    part = archive.root / STORE / f"{socket.gethostname()}-{os.getpid()}.part"
    base, folders, count = archive.root.resolve(), set(), 0
    words = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    bar = Progress(
        *(words, BarColumn(), DownloadColumn()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with _errors_named(archive), bar:
        task = bar.add_task(f"unpacking {archive.name}", total=archive.size)
        reading = _reading(archive)
        for name, content in reading.members():
            target = into / name
            if target.parent not in folders:
                _make_folder(target.parent, base, name)
                folders.add(target.parent)
            try:
                with part.open("wb") as file:
                    shutil.copyfileobj(content, file, _CHUNK)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            count += 1
            bar.update(task, completed=reading.position())
        if not count:
            raise DataError(
                "expected pictures, videos or PDFs, found no file whose name ends like one; leave "
                "this archive out of `unpack`"
            )
        archive.mark_as_done()
    log.info("%s: %d files unpacked", archive.root / archive.name, count)


def _make_folder(folder: Path, base: Path, name: str) -> None:
    if not folder.resolve().is_relative_to(base):
        raise DataError(
            f"member {name[:200]!a}: {folder} is a link that leads out of the root {base}; replace "
            "the link by a folder, or set `root` to the folder that it leads to"
        )
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _errors_named(archive: Archive) -> Iterator[None]:
    """Turn what a broken archive or disk raises into errors that name the archive."""
    path = archive.root / archive.name
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except EOFError as error:
        raise DataError(f"{path}: {_CUT_OFF}") from error
    except OSError as error:
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(archive.root).free
            raise DataError(
                f"{path}: no room left in {archive.root} to unpack it ({error.strerror}, {free} "
                "bytes free); make room, or move the set to a larger disk and set `root`"
            ) from error
        if error.errno is not None:
            raise DataError(
                f"{path}: cannot be unpacked ({error}); mend that, or unpack it yourself and "
                "remove it from `unpack`"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a broken archive may raise anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    what = f"{type(error).__name__}: {str(error)[:300]!a}"
    return DataError(
        f"{path}: expected a whole zip or tar archive, found {what}; download it again"
    )


def _reading(archive: Archive) -> "_Zip | _Tar":
    with archive.files[0].open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(_ZIP):
        return _Zip(archive)
    reader = next((read for start, read in _READERS.items() if head.startswith(start)), None)
    if reader is None and not head.startswith(b"ustar", _USTAR_AT):
        kind, advice = kind_of_file(head)
        raise DataError(
            f"expected a zip, tar, tar.gz, tar.bz2 or tar.xz archive, found {kind}; {advice}"
        )
    return _Tar(archive, reader)


def _is_media(name: str) -> bool:
    """Return whether a member is unpacked, by its name.

    Raises:
        DataError: the name leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(
            f"member {name[:200]!a} leads out of the folder that the archive is unpacked "
            f"into; {_TRUSTED}"
        )
    # macOS keeps facts about a.jpg in ._a.jpg.
    return path.suffix.lower() in MEDIA and not path.name.startswith(".")


def _not_plain(name: str) -> DataError:
    return DataError(
        f"expected files and folders, found that member {name[:200]!a} is a link, a device or "
        f"another special file; {_TRUSTED}"
    )


class _Counted(io.RawIOBase):
    """What comes out of an archive, read from begin to end; too much of it is refused."""

    def __init__(self, file: Any, archive: Archive, before: int = 0) -> None:
        self._file = file
        self._most = max(ALWAYS_ALLOWED, MOST_GROWTH * archive.size)
        self.count = before
        """Bytes read, those of members before as well."""
        self.last = b""
        """What the last `read` gave."""
        self.most_at_once: int | None = None
        """Bytes that one `read` may ask for."""

    def read(self, size: int = -1) -> bytes:
        if self.most_at_once is not None and size > self.most_at_once:
            raise DataError(
                f"expected at most {MAX_HEADER} bytes that describe a member, found {size}; the "
                "archive is damaged: download it again"
            )
        self.last = self._file.read(size)
        self.count += len(self.last)
        if self.count > self._most:
            raise DataError(
                f"unpacks to more than {self._most} bytes, of which a damaged or malicious archive "
                f"is suspected (at most {MOST_GROWTH} times its size is expected); unpack it "
                "yourself if that is right, and remove it from `unpack`"
            )
        return self.last

    def tell(self) -> int:
        return self.count

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Read on to a place further on."""
        if whence != io.SEEK_SET or place < self.count:
            raise io.UnsupportedOperation("an archive is read from begin to end")
        limit, self.most_at_once = self.most_at_once, None
        while self.count < place and self.read(min(_CHUNK, place - self.count)):
            pass
        self.most_at_once = limit
        return self.count


class _Zip:
    """Members of a zip archive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._done = 0

    def position(self) -> int:
        """Return how many bytes of the archive were read."""
        return self._done

    def members(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield name and content of each medium; contents are read before the next is asked for."""
        unpacked = 0
        with zipfile.ZipFile(self._archive.files[0]) as file:
            for info in file.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _not_plain(info.filename)
                wanted = _is_media(info.filename) and not info.is_dir()
                if wanted and info.flag_bits & 1:
                    raise DataError(
                        f"member {info.filename[:200]!a} needs a password; unpack the archive "
                        "yourself and remove it from `unpack`"
                    )
                if wanted:
                    with file.open(info) as content:
                        counted = _Counted(content, self._archive, unpacked)
                        yield info.filename, counted
                        unpacked = counted.count
                self._done += info.compress_size


class _Tar:
    """Members of a tar archive, which may be compressed and in parts; read in their order."""

    def __init__(self, archive: Archive, reader: str | None) -> None:
        self._archive, self._reader = archive, reader
        self._joined = _Joined(archive.files)

    def position(self) -> int:
        """Return how many bytes of the archive were read."""
        return self._joined.position

    def members(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield name and content of each medium; contents are read before the next is asked for."""
        with self._joined, io.BufferedReader(self._joined, _CHUNK) as raw:
            tar = import_module(self._reader).open(raw) if self._reader else raw
            stream = _Counted(tar, self._archive)
            stream.most_at_once = MAX_HEADER
            with tarfile.open(fileobj=stream, mode="r:") as file:
                while member := self._next(file, stream):
                    wanted = _is_media(member.name)
                    if member.isdir():
                        continue
                    if not member.isfile() or member.issparse():
                        raise _not_plain(member.name)
                    content = file.extractfile(member)
                    if wanted and content is not None:
                        yield member.name, content
                # Checks the sum at the end of a compressed archive.
                while stream.read(_CHUNK):
                    pass

    def _next(self, file: tarfile.TarFile, stream: _Counted) -> tarfile.TarInfo | None:
        """Return the next member.

        Raises:
            DataError: there is none, but the archive does not end as one that is whole.
        """
        stream.most_at_once = MAX_HEADER
        member = file.next()
        stream.most_at_once = None
        file.members.clear()  # a million members need no memory
        if member is None and len(stream.last) < _BLOCK:
            raise DataError(_CUT_OFF)
        if member is None and stream.last.strip(b"\0"):
            raise DataError(
                f"the archive is damaged {stream.count} bytes into its unpacked content; download "
                "it again"
            )
        return member


class _Joined(io.RawIOBase):
    """Files read one after the other as if they were one."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._waiting = list(files)
        self._file: BinaryIO | None = None
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None or self._waiting:
            if self._file is None:
                self._file = self._waiting.pop(0).open("rb")
            if count := self._file.readinto(buffer):
                self.position += count
                return count
            self._file.close()
            self._file = None
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
