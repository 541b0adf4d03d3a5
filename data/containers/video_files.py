"""Frames of video files: counted by the times of their packets, decoded from entry to frame.

A file's frames are numbered from 0 in the order in which a player shows them. An entry is a frame
that can be decoded without others; codecs call it a key frame, but here that is what a trace names.
Only files on disk of a few kinds are opened: no playlists and no addresses in a network.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

from data.containers.file_kinds import HEAD, is_video, kind_of_file
from data.errors import DataError

FRAME_RATE = 2.0
"""Frames a second that are assumed for frames without times: those that a row names one by one, and
folders. Qwen's own code and the published training assume the same."""
SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts")
)
"""Endings of names that are read as video files."""
MAX_COUNTED_FRAMES = 1 << 22
"""Frames of one file, 38 hours at 30 a second; what claims more is broken."""
_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts",  # MP4 and WebM are among them
    "protocol_whitelist": "file",
}
_PROBED, _PROBED_STREAMS = {"max_pixels": str(1 << 24)}, 64
"""Opening a file decodes one frame of each stream, but none above this size."""
_SEEKABLE = ("mov", "matroska")
"""Containers whose index leads to an entry or to one before it."""
_REMEMBERED = 256
"""Files whose times are kept; a file of four hours takes 4 MiB."""


@dataclass(frozen=True, slots=True)
class _Times:
    """Where the frames of a file are, in its own unit of time."""

    frames: int
    shown: np.ndarray
    """int64 [frames], ascending; the frames' numbers where the file gives no usable times."""
    entries: np.ndarray
    """int64 [E, 2], ascending: each entry's time, and the time to seek to; [0, 2] where the file
    gives no usable times."""
    unit: float
    """Seconds that 1 stands for in `shown`."""


def frame_count(path: str) -> int:
    """Return how many frames a video file has, at least 1; they are not decoded.

    Raises:
        DataError: no video of an accepted kind, none in it, or no frame; the message names the
            file.
    """
    with _errors_named(path):
        return _times_of(path).frames


def frame_times(path: str, numbers: Sequence[int]) -> tuple[float, ...]:
    """Return when frames of a video file are shown, in seconds from its first frame, to 1 ms.

    A file that gives no usable times has those of its frame rate, or else of `FRAME_RATE`.

    Raises:
        DataError: as for `frame_count`; or the file has no such frame.
    """
    with _errors_named(path):
        times = _times_of(path)
    if max(numbers) >= times.frames:
        raise DataError(
            f"{path}: expected a frame {max(numbers)}, found {times.frames} frames; change no file "
            "while a job runs"
        )
    # As whole numbers of Python: those of a broken file may be too far apart for 64 bits.
    first, *shown = times.shown[[0, *numbers]].tolist()
    return tuple(round((time - first) * times.unit, 3) for time in shown)


def decode_frames(
    path: str, numbers: Sequence[int], *, max_pixels: int
) -> Iterator[tuple[int, Image.Image]]:
    """Yield frames by number in RGB: upright, with square pixels, in ascending order.

    One pass over the file decodes from the entry before a wanted frame to that frame. Frames
    that cannot be decoded are left out.

    Raises:
        DataError: as for `frame_count`; or frames of more than ``max_pixels``, checked before they
            are decoded.
    """
    with _errors_named(path):
        times = _times_of(path)
        with _opened(path) as (container, stream):
            context = stream.codec_context
            _refuse_large(path, context.width, context.height, max_pixels)
            # The decoder itself refuses frames that turn out larger than the header says.
            context.options = {"max_pixels": str(max_pixels)}
            context.thread_count = 1  # files are decoded side by side
            wanted = sorted({number for number in numbers if number < times.frames})
            for number, frame in _decoded(container, stream, times, wanted) if wanted else ():
                _refuse_large(path, frame.width, frame.height, max_pixels)
                yield number, _as_shown(frame, stream)


def _refuse_large(path: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"{path}: frames of {width}x{height} pixels, more than "
            f"data.media.max_decode_pixels={max_pixels}; make the video smaller or raise that"
        )


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into an error that names the file."""
    try:
        yield
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: expected a video that can be decoded, found an error "
            f"({type(error).__name__}: {error}); copy or download it again, or remove it"
        ) from error


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Open a file's container and its video stream (`av.container.InputContainer`, `av.Stream`)."""
    import av

    try:
        container = av.open(
            "file:" + path,
            options=_OPTIONS,
            stream_options=[_PROBED] * _PROBED_STREAMS,
            metadata_errors="ignore",
        )
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        with open(path, "rb") as file:
            head = file.read(HEAD)
        kind, advice = kind_of_file(head)
        if is_video(head):
            advice = (
                f"it is damaged, cut short or of another kind ({error.strerror}); copy or download "
                "it again"
            )
        raise DataError(
            f"{path}: not a readable video: expected MP4, MOV, Matroska, WebM, AVI or MPEG-TS, "
            f"found {kind}; {advice}"
        ) from error
    except ValueError as error:
        # By PyAV itself, not FFmpeg: a file without any stream has nothing for the options.
        raise _without_video(path) from error
    with container:
        stream = container.streams.best("video")
        # The cover of a sound file is a stream of one picture.
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise _without_video(path)
        yield container, stream


def _without_video(path: str) -> DataError:
    return DataError(f"{path}: expected a video stream, found none; replace or remove the file")


def _times_of(path: str) -> _Times:
    state = os.stat(path)
    return _read_times(path, state.st_size, state.st_mtime_ns)


@lru_cache(_REMEMBERED)
def _read_times(path: str, size: int, changed: int) -> _Times:
    """Return the times of a file's frames; ``size`` and ``changed`` tell its versions apart."""
    shown: list[int | None] = []
    entries: list[tuple[int, int]] = []
    with _opened(path) as (container, stream):
        rate, unit = stream.average_rate, stream.time_base
        for packet in container.demux(stream):
            if not packet.size or packet.is_corrupt:
                continue
            if packet.is_keyframe and packet.pts is not None:
                dts = packet.pts if packet.dts is None else packet.dts
                entries.append((packet.pts, min(packet.pts, dts)))
            if _is_shown(packet, stream):
                shown.append(packet.pts)
            if len(shown) > MAX_COUNTED_FRAMES:
                raise DataError(
                    f"{path}: more than {MAX_COUNTED_FRAMES} frames; cut it into shorter videos"
                )
    if not shown:
        raise DataError(
            f"{path}: expected frames in the video, found none; copy or download it again, or "
            "remove it"
        )
    if not entries or None in shown or len(set(shown)) < len(shown):
        # Decoders give frames in the order in which they are shown.
        none = np.empty((0, 2), np.int64)
        return _Times(len(shown), np.arange(len(shown)), none, 1 / float(rate or FRAME_RATE))
    return _Times(
        len(shown),
        np.sort(np.array(shown, np.int64)),
        np.array(sorted(entries)).reshape(-1, 2),
        float(unit),
    )


def _is_shown(packet: Any, stream: Any) -> bool:
    """Return whether a player shows a packet's frame: other frames only help to decode."""
    # VP8 writes such frames as packets of their own; a bit in their first byte says so.
    hidden = stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10
    return not packet.is_discard and not hidden


def _decoded(
    container: Any, stream: Any, times: _Times, numbers: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yield (number, `av.VideoFrame`) in one pass; ``numbers`` ascend.

    The wanted frames are grouped by the entry before them. Packets between a group's last frame
    and the next group's entry are skipped.
    """
    import av

    by_order = not len(times.entries)
    place = count()
    groups = _groups(times, numbers)
    entry, seek_to, wanted = groups.pop(0)
    passed: set[int | None] = {None}
    """Entries whose packets were read."""
    feeding = entry is None
    if not feeding:
        _seek(container, stream, seek_to)
    for packet in container.demux(stream):
        if packet.is_keyframe:
            passed.add(packet.pts)
            feeding = feeding or packet.pts == entry
        if not feeding:
            continue
        try:
            frames = stream.codec_context.decode(packet)
        except av.EOFError:
            return
        except av.FFmpegError:
            if by_order:
                return  # the numbers of the frames behind it are not known
            continue
        for frame in frames:
            time = next(place) if by_order else frame.pts
            if time is None:
                continue
            while True:
                if time in wanted:
                    yield wanted[time], frame
                if time < max(wanted):
                    break
                if not groups:
                    return
                entry, seek_to, wanted = groups.pop(0)
                feeding = entry in passed
        if not feeding:
            _seek(container, stream, seek_to)


def _seek(container: Any, stream: Any, time: int) -> None:
    """Empty the decoder, and move to a time or before it; where that fails, stay."""
    import av

    stream.codec_context.flush_buffers()
    if container.format.name.split(",")[0] in _SEEKABLE:
        with suppress(av.FFmpegError):
            container.seek(time, stream=stream)


def _groups(times: _Times, numbers: Sequence[int]) -> list[tuple[int | None, int, dict[int, int]]]:
    """Return (entry's time, time to seek to, numbers by time), ascending.

    The first entry is None where frames before any entry are wanted.
    """
    groups: dict[int, dict[int, int]] = {}
    for number in numbers:
        time = int(times.shown[number])
        groups.setdefault(int(times.entries[:, 0].searchsorted(time, "right")) - 1, {})[time] = (
            number
        )
    return [
        (None, 0, wanted) if index < 0 else (*times.entries[index].tolist(), wanted)
        for index, wanted in groups.items()
    ]


def _as_shown(frame: Any, stream: Any) -> Image.Image:
    """Return a decoded frame as a player shows it: with square pixels, turned upright."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    aspect = stream.sample_aspect_ratio or 1
    if aspect > 1:
        image = image.resize((image.width, max(1, round(image.height / aspect))))
    elif 0 < aspect < 1:
        image = image.resize((max(1, round(image.width * aspect)), image.height))
    turn = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)
