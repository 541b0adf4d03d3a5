"""Pictures from disk to pixels: checked before decoding, decoded once.

A picture is a file, a frame of a video file, a page of a PDF or a cell of a table; see
`data.containers`. Decoded it is what a viewer shows on a white page: turned as its EXIF data say,
white where it is transparent, 8 bit a channel; of an animation the first picture.
"""

import io
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from configs.common import MediaConfig
from data.containers import pdf_pages
from data.containers.addresses import Address, parse_address
from data.containers.cells import read_cell
from data.containers.file_kinds import HEAD, kind_of_file
from data.containers.video_files import decode_frames
from data.cues import MIN_BOX_SIDE
from data.errors import DataError, TooManyBytes
from data.types import Pictures

log = logging.getLogger(__name__)
DECODE_THREADS = min(16, max(4, (os.cpu_count() or 1) // 4))
"""Threads that decode in one process; the node's other cores are for its engines and ranks."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Files in another format are refused. Pillow has dozens more decoders that data sets do not need,
code that reads untrusted bytes; some start programs (EPS)."""
SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm"),
        *(".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""Endings of names of such files, by which a folder's pictures are told from its other files."""
Image.MAX_IMAGE_PIXELS = None
"""Off: Pillow would refuse pictures above 179 million pixels by itself, in a message that does not
name `max_decode_pixels`."""
SHOWN_FILES = 5
FEW_FLAT, FLAT_SHARE = 4, 0.1
"""More pictures of one colour than this number and this share are worth a warning."""
_said_flat = threading.Event()
"""Set when that was said: once in a process."""
MOST_WATCHED = 1 << 18
"""Files whose replacement is noticed, at most: some 40 MB of a process's memory."""
_states: dict[int, int] = {}
"""Hashes of size and time of the files that this process has read, by the hash of the path."""
_replaced: set[int] = set()
"""Those that were another file when they were read again."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows a picture upright, by its EXIF orientation."""


class _Held:
    """Bytes of the pictures of one call, counted before they are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, uri: str, size: int) -> None:
        """Count a picture.

        Raises:
            DataError: the call holds too much by now: nothing more is to be decoded.
        """
        with self._lock:
            self._sizes[uri] = size
            self._total += size
            if self._total > self._most:
                raise DataError(
                    f"{uri}: {size} bytes when decoded, more than is left of "
                    f"data.media.max_step_bytes={self._most}; make it smaller or raise that"
                )

    def check(self) -> None:
        """Refuse a call that would hold too much.

        Raises:
            TooManyBytes: it would; the largest files are named.
        """
        check_bytes(self._sizes, self._most)


def check_bytes(sizes: Mapping[str, int], most: int) -> None:
    """Refuse pictures whose bytes, by uri, are more than ``most`` together.

    Raises:
        TooManyBytes: they are; the largest files are named.
    """
    total = sum(sizes.values())
    if total <= most:
        return
    largest = sorted(sizes, key=lambda uri: (-sizes[uri], uri))[:SHOWN_FILES]
    raise TooManyBytes(
        f"expected pictures of at most data.media.max_step_bytes={most} bytes for one step or "
        f"block, found {len(sizes)} of {total} bytes when they are decoded, the largest "
        f"{', '.join(f'{uri} ({sizes[uri]})' for uri in largest)}; make these smaller, take fewer "
        "pairs at once (a smaller batch or block), or raise the limit if the "
        "machine has the memory"
    )


def load_pictures(
    uris: Iterable[str], limits: MediaConfig, *, frames: Set[str] = frozenset()
) -> tuple[Pictures, dict[str, str]]:
    """Return the decoded files by uri, uint8 [H, W, 3], and the reason for each that failed.

    ``frames``: those that are shown as frames only (`frames_only`).

    Raises:
        TooManyBytes: together they hold more than ``limits.max_step_bytes``.
    """
    pictures: dict[str, np.ndarray] = {}
    failed: dict[str, str] = {}
    byte_count = _Held(limits.max_step_bytes)

    def load(uris: list[str]) -> dict[str, np.ndarray | DataError]:
        return dict(decode_each(uris, limits, frames=frames, held=byte_count))

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for results in pool.map(load, decoded_together(sorted(set(uris)))):
            for uri, result in results.items():
                if isinstance(result, DataError):
                    failed[uri] = str(result)
                else:
                    pictures[uri] = result
    byte_count.check()
    flat = [uri for uri, pixels in pictures.items() if is_one_colour(pixels)]
    if len(flat) > max(FEW_FLAT, FLAT_SHARE * len(pictures)) and not _said_flat.is_set():
        _said_flat.set()
        log.warning(
            "%d of %d pictures have one colour each, %s for instance: look at these files; what is "
            "transparent is shown white, so white drawings on it vanish",
            len(flat),
            len(pictures),
            flat[0],
        )
    return pictures, failed


def load_picture(uri: str, limits: MediaConfig, *, frame: bool = False) -> np.ndarray:
    """Return one picture's pixels, uint8 [H, W, 3].

    Its sides are shrunk by a whole factor where no view can need all its pixels. A ``frame`` is
    shown whole, within the limits of frames; of others the smallest crop gets all that it may have.

    Raises:
        DataError: the file is missing, too large, or not a picture; the message names it.
    """
    [(_, result)] = decode_each([uri], limits, frames={uri} if frame else set())
    if isinstance(result, DataError):
        raise result
    return result


def shown_pixels(
    uri: str, image: Image.Image, limits: MediaConfig, *, frame: bool = False
) -> np.ndarray:
    """Return the pixels of a picture in memory, uint8 [H, W, 3], as `load_picture` does of a file.

    ``uri`` names it in messages. What was opened and not yet read is read here.

    Raises:
        DataError: it has too many pixels, or cannot be read.
    """
    try:
        _refuse_large(uri, image, limits)
        enough = limits.frame_max_pixels if frame else _most_needed(limits)
        image.load()
        return _shown(image, _surplus(image, enough))
    except DataError:
        raise
    except Exception as error:  # of one that was opened and is broken, anything
        raise _reason(uri, error) from error


def decoded_together(uris: Iterable[str]) -> list[list[str]]:
    """Return the pictures that are decoded at once: frames of one video file, else each alone."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for uri in uris:
        address = parse_address(uri)
        is_frame = address.frame is not None
        groups.setdefault((address.path if is_frame else uri, is_frame), []).append(uri)
    return list(groups.values())


def decode_each(
    uris: list[str], limits: MediaConfig, *, frames: Set[str], held: _Held | None = None
) -> Iterator[tuple[str, np.ndarray | DataError]]:
    """Yield the pixels, uint8 [H, W, 3], or why there are none, of a group of `decoded_together`.

    ``frames`` as in `load_pictures`. Whoever keeps no pixels holds one picture at a time.
    """
    done: set[str] = set()
    reason: Exception | None = None
    try:
        for uri, pixels in _decode(uris, limits, frames, held or _Held(limits.max_step_bytes)):
            done.add(uri)
            yield uri, pixels
    except Exception as error:
        # Decoders raise on broken files whatever they like, MemoryError too.
        reason = error
    for uri in uris:
        if uri not in done:
            yield uri, _reason(uri, reason)


def _reason(uri: str, error: Exception | None) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{uri}: picture not found")
    if error is None:
        return DataError(
            f"{uri}: the frame cannot be decoded; the video is damaged there or has fewer frames: "
            "copy or download it again, or remove it"
        )
    return DataError(
        f"{uri}: not a readable picture ({type(error).__name__}: {error}); replace or remove it"
    )


def is_one_colour(pixels: np.ndarray) -> bool:
    """Return whether all pixels of a picture, uint8 [H, W, 3], are equal."""
    height, width, _ = pixels.shape
    coarse_pixels = pixels[:: max(1, height // 16), :: max(1, width // 16)]
    # Hardly any picture gets as far as the second look, at all of it.
    return bool(
        (coarse_pixels == coarse_pixels[0, 0]).all() and (pixels == coarse_pixels[0, 0]).all()
    )


def _most_needed(limits: MediaConfig) -> int:
    """Return the pixels of a picture whose smallest crop still has as many as a crop may have."""
    crop = math.ceil(limits.crop_max_pixels / MIN_BOX_SIDE**2)
    return max(crop, limits.image_max_pixels, limits.page_max_pixels, limits.frame_max_pixels)


def _decode(
    uris: list[str], limits: MediaConfig, frames: Set[str], held: _Held
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (uri, pixels) of a group of `decoded_together`; without frames that are broken."""
    addresses = {uri: parse_address(uri) for uri in uris}
    enough = {
        uri: limits.frame_max_pixels if uri in frames else _most_needed(limits) for uri in uris
    }
    first, address = uris[0], addresses[uris[0]]
    numbers = [place.frame for place in addresses.values() if place.frame is not None]
    if not numbers:
        yield first, _load(first, address, limits, enough[first], held)
        return
    path = _small_enough(first, address, limits)
    for number, image in decode_frames(path, numbers, max_pixels=limits.max_decode_pixels):
        for uri in uris:
            if addresses[uri].frame == number:
                factor = _surplus(image, enough[uri])
                held.add(uri, 3 * -(-image.width // factor) * -(-image.height // factor))
                yield uri, np.asarray(image if factor == 1 else image.reduce(factor))


def _small_enough(uri: str, address: Address, limits: MediaConfig) -> str:
    """Return the path of a file that may be read.

    Raises:
        DataError: it is too large.
    """
    state = Path(address.path).stat()
    if state.st_size > limits.max_file_bytes:
        raise DataError(f"{uri}: {too_large(state.st_size, limits.max_file_bytes)}")
    _watch(address.path, hash((state.st_size, state.st_mtime_ns)))
    return address.path


def _watch(path: str, state: int) -> None:
    """Warn of a file that is another one than when this process read it before."""
    key = hash(path)
    before = _states.get(key, state)
    if key in _states or len(_states) < MOST_WATCHED:
        _states[key] = state
    if before != state and key not in _replaced:
        _replaced.add(key)
        if len(_replaced).bit_count() == 1:  # 1, 2, 4, 8, ...: a run must not drown in lines
            log.warning(
                "%s: expected the file as it was when it was read before, found that it has "
                "changed since (%d files so far); what the job did before is of the old one: see "
                "that nothing writes to the pictures of a running job",
                path,
                len(_replaced),
            )


def too_large(size: int, most: int) -> str:
    """Return why a file of ``size`` bytes is refused."""
    return (
        f"{size} bytes, more than data.media.max_file_bytes={most}; make it smaller or raise that"
    )


def _load(uri: str, address: Address, limits: MediaConfig, enough: int, held: _Held) -> np.ndarray:
    if address.page is not None:
        pixels = pdf_pages.draw_page(
            _small_enough(uri, address, limits),
            address.page,
            least_pixels=max(limits.image_max_pixels, limits.page_max_pixels),
            useful_pixels=enough,
            max_pixels=limits.max_decode_pixels,
        )
        held.add(uri, pixels.nbytes)
        return pixels
    content = _bytes_of(uri, address, limits)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kind, advice = kind_of_file(content[:HEAD])
        raise DataError(
            f"{uri}: not a readable picture: expected one of {', '.join(FORMATS)}, found {kind}; "
            f"{advice}"
        ) from error
    with image:
        _refuse_large(uri, image, limits)
        factor = _surplus(image, enough)
        if factor > 1:
            # Shrinks a JPEG while it is decoded, by 2, 4 or 8; nothing else.
            image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
            factor = _surplus(image, enough)
        held.add(uri, 3 * -(-image.width // factor) * -(-image.height // factor))
        image.load()
        return _shown(image, factor)


def _refuse_large(uri: str, image: Image.Image, limits: MediaConfig) -> None:
    if image.width * image.height > limits.max_decode_pixels:
        raise DataError(
            f"{uri}: {image.width}x{image.height} pixels, more than "
            f"data.media.max_decode_pixels={limits.max_decode_pixels}; make it smaller or "
            "raise that"
        )


def _shown(image: Image.Image, factor: int) -> np.ndarray:
    """Return what a viewer shows of a loaded picture, its sides shrunk by a whole factor."""
    pixels = _in_rgb(image)
    return np.asarray(_upright(pixels if factor == 1 else pixels.reduce(factor), image))


def _bytes_of(uri: str, address: Address, limits: MediaConfig) -> bytes:
    """Return the bytes of a picture file, or of the cell that holds the picture."""
    if address.row is not None:
        return read_cell(uri, max_bytes=limits.max_file_bytes)
    return Path(_small_enough(uri, address, limits)).read_bytes()


def _surplus(image: Image.Image, enough: int) -> int:
    """Return the whole factor by which the sides can shrink, so that enough pixels are left."""
    return max(1, math.isqrt(image.width * image.height // enough))


def _in_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in 8-bit RGB, white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey_levels(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear and max(clear) > 255:
        # The one transparent colour of a picture that had 16 bit a channel in its file.
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    layer = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(layer, mask=layer)
    return page


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Return a grey picture of more than 8 bit in 8 bit, uint8 [H, W].

    65535 becomes 255 where the format says that this is white; else the largest value in the
    picture becomes 255 and the smallest 0.

    Raises:
        ValueError: a value is no finite number.
    """
    values, clear = np.asarray(image), image.info.get("transparency", math.nan)
    # Pillow scales a PPM's values to 16 bit.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        levels = (values.astype(np.uint32) + 128) // 257
    else:
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(high - low):
            raise ValueError("its values are not all finite numbers")
        levels = np.subtract(values, low, dtype=np.float32) * (255 / (high - low or 1))
        levels = levels.round()
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        levels = 255 - levels  # 0 is white, which Pillow heeds in 8 bit only
    return np.where(values == clear, 255, levels).astype(np.uint8)


def _upright(pixels: Image.Image, file: Image.Image) -> Image.Image:
    """Return the pixels turned as the decoded file's EXIF or XMP data say."""
    try:
        turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        turn = None  # data so broken that no viewer can read them
    return pixels if turn is None else pixels.transpose(turn)
