"""What a user gives, to items: texts, pictures, videos and pages, on disk or in memory.

Bytes become files in a folder of the caller's, so that they are read and refused as other files
are. Pictures of PIL have been decoded already: their pixels are kept under an address of their own.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.common import MediaConfig
from data.containers.addresses import file_of
from data.containers.file_kinds import HEAD, kind_of_file
from data.containers.pdf_pages import SUFFIX as PDF_SUFFIX
from data.containers.video_files import FRAME_RATE
from data.containers.video_files import SUFFIXES as VIDEO_SUFFIXES
from data.errors import DataError
from data.media.frames import sample_frames
from data.media.pictures import shown_pixels, too_large
from data.rows.picture_paths import PictureFiles
from data.rows.row_formats import clean
from data.sets.items import MEDIA_FIELDS, media_field
from data.types import Item, Kind

Input = str | os.PathLike[str] | Image.Image | Mapping[str, Any]
"""A text, a path, a picture, or a mapping with `FIELDS`."""
SINGLE = (str, bytes, os.PathLike, Image.Image, Mapping)
"""What is one input and no list of them; bytes are refused, as nothing says what they are."""
FIELDS = ("text", "instruction", *MEDIA_FIELDS, "trace", "max_frames", "fps")
_IN_MEMORY = "memory:"
"""How addresses of pictures of PIL begin."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An input, read."""

    item: Item
    trace: str | None
    """Its own; None: it has none."""


class InputReader:
    """Reads the inputs of one call.

    Args:
        media: limits; which frames of videos are shown.
        folder: where bytes are kept, until the caller has decoded the pictures.
        instruction: of inputs that have none of their own.
    """

    def __init__(self, media: MediaConfig, folder: Path, *, instruction: str = "") -> None:
        self._media, self._folder, self._instruction = media, folder, instruction
        self._files = PictureFiles(
            Path("/"), follow_links=True, max_file_bytes=media.max_file_bytes
        )
        self.pixels: dict[str, np.ndarray] = {}
        """Of pictures in memory, uint8 [H, W, 3], by their addresses."""

    def read(self, given: Input, index: int) -> Asked:
        """Return an input; ``index`` is its place, from 0, for messages.

        Raises:
            DataError: it cannot be read; the message names place and field.
        """
        place = f"input {index}"
        row = self._row(given, place)
        named = [name for name in MEDIA_FIELDS if row.get(name) is not None]
        if len(named) > 1:
            raise DataError(
                f"{place}: expected one of {', '.join(MEDIA_FIELDS)}, found {' and '.join(named)}; "
                "make an input of each"
            )
        text = clean(_text(row, "text", place))
        instruction = (_text(row, "instruction", place) or self._instruction).strip()
        trace = _text(row, "trace", place) if row.get("trace") is not None else None
        if named != ["video"] and (row.get("max_frames") or row.get("fps")) is not None:
            raise DataError(
                f"{place}: expected max_frames and fps beside a video only, found them without "
                "one; leave them out"
            )
        if named:
            item = self._shown(row, named[0], Item(text=text, instruction=instruction), place)
        elif text:
            item = Item(text=text, instruction=instruction)
        else:
            raise DataError(
                f"{place}: expected a text, or one of {', '.join(MEDIA_FIELDS)}, found neither"
            )
        return Asked(item, trace)

    def _row(self, given: Input, place: str) -> Mapping[str, Any]:
        """Return an input as a mapping with known fields."""
        if isinstance(given, str):
            return {"text": given}
        if isinstance(given, Image.Image):
            return {"image": given}
        if isinstance(given, os.PathLike):
            path = os.fspath(given)
            return {media_field(file_of(path), f"{place}, '{path}'"): path}
        if not isinstance(given, Mapping):
            raise DataError(
                f"{place}: expected a text, a picture of PIL, a path (pathlib) or a dict, found "
                f"{type(given).__name__}; name what it is, as in {{'image': ...}}"
            )
        for name in given:
            if name not in FIELDS:
                near = get_close_matches(str(name), FIELDS, n=1, cutoff=0)[0]
                raise DataError(
                    f"{place}: expected the fields {', '.join(FIELDS)}, found '{name}'; the "
                    f"nearest name is '{near}'"
                )
        return given

    def _shown(self, row: Mapping[str, Any], field: str, item: Item, place: str) -> Item:
        """Return the item with what it shows."""
        where = f"{place}, field '{field}'"
        kind = {"image": Kind.IMAGE, "page": Kind.PAGE, "video": Kind.VIDEO}[field]
        times: tuple[float, ...] = ()
        if kind is Kind.VIDEO:
            uris, times = self._video(row, where)
        else:
            shown = row[field]
            pictures = shown if isinstance(shown, list | tuple) else [shown]
            uris = tuple(self._address(picture, where) for picture in pictures)
        if not uris:
            raise DataError(f"{where}: expected pictures, found an empty list")
        return Item(text=item.text, kind=kind, uris=uris, instruction=item.instruction, times=times)

    def _video(
        self, row: Mapping[str, Any], where: str
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return the frames that are shown of a video, and when; no times: as pictures."""
        as_video, video = self._media.video == "video", row["video"]
        most = _number(row, "max_frames", self._media.max_frames, where)
        if most != int(most) or most > self._media.max_frames:
            raise DataError(
                f"{where}: expected max_frames from 1 to data.media.max_frames="
                f"{self._media.max_frames}, found {most:g}"
            )
        most = int(most)
        frames = self._frames(video, where)
        if frames is not None:
            rate = _number(row, "fps", FRAME_RATE, where)
            numbers = sample_frames(range(len(frames)), most, paired=as_video)
            uris = tuple(self._address(frames[number], where, frame=True) for number in numbers)
            times = tuple(number / rate for number in numbers)
            return uris, times if as_video else ()
        path = self._save(video, where) if isinstance(video, bytes) else self._path(video, where)
        count = self._files.frame_count(path, where=where)
        if row.get("fps") is not None and count > 1:
            [last] = self._files.frame_times(path, [count - 1], where=where)
            seconds = last * count / (count - 1)
            most = min(most, max(1, round(seconds * _number(row, "fps", 1, where))))
        numbers = sample_frames(range(count), most, paired=as_video)
        times = self._files.frame_times(path, numbers, where=where) if as_video else ()
        return tuple(f"{path}#frame={number}" for number in numbers), times

    def _frames(self, video: Any, where: str) -> Sequence[Any] | None:
        """Return the frames that a user named one by one or by their folder; None: a file."""
        if isinstance(video, list | tuple):
            return video
        if isinstance(video, bytes):
            return None
        path = _absolute(video, where)
        if Path(path).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(path):
            return None
        names = self._files.folder(path, where=where)
        if names is None:
            raise DataError(
                f"{where}: expected a video file ({', '.join(sorted(VIDEO_SUFFIXES))}), a folder "
                f"of frames or a list of them, found '{path}'; check the path"
            )
        return names

    def _address(self, picture: Any, where: str, *, frame: bool = False) -> str:
        """Return the address of a picture; one in memory is kept."""
        if isinstance(picture, Image.Image):
            pixels = shown_pixels(where, picture, self._media, frame=frame)
            uri = f"{_IN_MEMORY}{hashlib.sha256(pixels).hexdigest()}/{pixels.shape[1]}"
            self.pixels[uri] = pixels
            return uri
        if isinstance(picture, bytes):
            return self._files.path(self._save(picture, where), where=where)
        return self._path(picture, where)

    def _path(self, name: Any, where: str) -> str:
        path = _absolute(name, where)
        if "://" not in path and not os.path.lexists(file_of(path)):
            raise DataError(f"{where}: expected a file, found none at {path}; check the path")
        return self._files.path(path, where=where)

    def _save(self, content: bytes, where: str) -> str:
        """Return the path of a file with these bytes."""
        if len(content) > self._media.max_file_bytes:
            raise DataError(f"{where}: {too_large(len(content), self._media.max_file_bytes)}")
        suffix = PDF_SUFFIX if kind_of_file(content[:HEAD])[0] == "a PDF" else ""
        path = self._folder / (hashlib.sha256(content).hexdigest() + suffix)
        path.write_bytes(content)
        return str(path)


def _absolute(name: Any, where: str) -> str:
    if not isinstance(name, str | os.PathLike):
        raise DataError(
            f"{where}: expected a path, bytes or a picture of PIL, found {type(name).__name__}"
        )
    # Not normalised: a network address must stay one, to be refused by that name.
    return os.path.join(os.getcwd(), os.fspath(name))


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}, field '{field}': expected text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}, field '{field}': expected text, found half a character ({error}); mend it"
        ) from error
    return value


def _number(row: Mapping[str, Any], field: str, default: float, where: str) -> float:
    """Return a number above 0."""
    value = row.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise DataError(f"{where}: expected a number above 0 as {field}, found {value!r}")
    return value
