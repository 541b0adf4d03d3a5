"""Mutated files of every accepted picture format, videos and PDFs: only our own errors come out.

Run for longer than the unit tests do: python -m tests.fuzz_pictures MINUTES [SEED]
"""

import io
import math
import os
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from configs.common import MediaConfig
from data.containers.video_files import frame_times
from data.errors import DataError
from data.media.pictures import load_picture
from tests.inputs.media_files import write_pdf, write_video

LIMITS = MediaConfig(max_decode_pixels=1 << 20, frame_min_pixels=1, frame_max_pixels=300)
VALUES = (0, 1, 2, 3, 4, 6, 8, 16, 32, 127, 128, 254, 255)
"""Bytes that sizes, counts and kinds of fields are made of."""
PNG_START = 8
PLACES = {".mp4": "#frame=3", ".mkv": "#frame=3", ".avi": "#frame=3", ".pdf": "#page=2"}
"""What is read of a file that is no picture, by the ending of its name."""


def seeds() -> dict[str, bytes]:
    """Return small whole files: every accepted format, in the modes that are read differently."""
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 4), np.uint8)
    clear = Image.fromarray(pixels)
    image = clear.convert("RGB")
    second = image.transpose(Image.Transpose.ROTATE_180)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 251)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    files: dict[str, tuple[Image.Image, str, dict]] = {
        "rgb.png": (image, "PNG", {"exif": exif}),
        "rgba.png": (clear, "PNG", {}),
        "la.png": (clear.convert("LA"), "PNG", {}),
        "palette.png": (image.quantize(8), "PNG", {"transparency": b"\0\x80\xff"}),
        "two.png": (image.convert("1"), "PNG", {"transparency": 0}),
        "deep.png": (deep, "PNG", {"transparency": 300}),
        "moving.png": (image, "PNG", {"save_all": True, "append_images": [second.copy()]}),
        "rgb.jpg": (image, "JPEG", {"exif": exif}),
        "grey.jpg": (image.convert("L"), "JPEG", {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
        "two.jpg": (image, "MPO", {"save_all": True, "append_images": [second.copy()]}),
        "still.gif": (image, "GIF", {}),
        "moving.gif": (
            image.quantize(8),
            "GIF",
            {"save_all": True, "append_images": [second.quantize(8)], "transparency": 1},
        ),
        "lossy.webp": (image, "WEBP", {"exif": exif}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
        "moving.webp": (clear, "WEBP", {"save_all": True, "append_images": [second.copy()]}),
        "rgb.avif": (image, "AVIF", {"exif": exif}),
        "rgba.avif": (clear, "AVIF", {}),
        "raw.tiff": (image, "TIFF", {"exif": exif}),
        "rgba.tiff": (clear, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tiff": (image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tiff": (image, "TIFF", {"compression": "jpeg"}),
        "fax.tiff": (image.convert("1"), "TIFF", {"compression": "group4"}),
        "deep.tiff": (deep, "TIFF", {}),
        "numbers.tiff": (image.convert("F"), "TIFF", {}),
        "lab.tiff": (image.convert("LAB"), "TIFF", {}),
        "pages.tiff": (image, "TIFF", {"save_all": True, "append_images": [second.copy()]}),
        "rgb.bmp": (image, "BMP", {}),
        "palette.bmp": (image.quantize(16), "BMP", {}),
        "rgba.bmp": (clear, "BMP", {}),
        "rgb.ppm": (image, "PPM", {}),
        "deep.pgm": (deep.convert("I"), "PPM", {}),
        "two.pbm": (image.convert("1"), "PPM", {}),
        "numbers.pfm": (image.convert("F"), "PPM", {}),
    }
    found = {}
    for name, (one, form, options) in files.items():
        buffer = io.BytesIO()
        one.copy().save(buffer, form, **options)  # JPEG leaves settings of its own behind
        found[name] = buffer.getvalue()
    found["text.ppm"] = b"P3 # a comment\n2 2\n255\n" + b" 9 8 7" * 4
    return found


def place_seeds() -> dict[str, bytes]:
    """Return small whole video files and a PDF, of each of which `PLACES` names a picture."""
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write_video(Path(folder) / "h264.mp4", 5, gop=2),
            write_video(Path(folder) / "mpeg4.mp4", 5, codec="mpeg4", gop=2),
            write_video(Path(folder) / "vp8.mkv", 5, codec="libvpx", gop=2),
            write_video(Path(folder) / "mpeg4.avi", 5, codec="mpeg4", gop=2),
            write_pdf(Path(folder) / "page.pdf", 2, size=(20, 10)),
        ]
        return {file.name: file.read_bytes() for file in files}


def mutations(files: Mapping[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files without end, each with the name of the whole one."""
    names = sorted(files)
    while True:
        name = names[rng.integers(len(names))]
        content = bytearray(files[name])
        for _ in range(rng.integers(1, 5)):
            _damage(content, rng, files[names[rng.integers(len(names))]])
        if content.startswith(b"\x89PNG") and rng.random() < 0.7:
            _mend_checksums(content)
        yield name, bytes(content)


def _damage(content: bytearray, rng: np.random.Generator, other: bytes) -> None:
    """Change one thing; the beginning, where headers are, is hit more often than the rest."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 96)
    place = int(rng.integers(end + 1))
    length = int(rng.integers(1, 9))
    kind = rng.integers(7)
    if kind == 0:
        del content[max(place, 1) :]
    elif kind == 1:
        del content[place : place + length]
    elif kind == 2:
        content[place:place] = rng.bytes(length)
    elif kind == 3:
        content[place : place + length] = bytes(rng.choice(VALUES, length).tolist())
    elif kind == 4:
        start = int(rng.integers(len(other)))
        content[place : place + 4 * length] = other[start : start + 4 * length]
    elif kind == 5:
        content[place:place] = content[place : place + 4 * length]
    elif place < len(content):
        content[place] ^= 1 << rng.integers(8)


def _mend_checksums(content: bytearray) -> None:
    """Make a PNG's checksums right again, so that its chunks are read and not refused."""
    place = PNG_START
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            return
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4


def fault(path: Path, content: bytes, *, frame: bool, place: str = "") -> str | None:
    """Return what is wrong with the loader's answer to a file, None where nothing is.

    ``place`` is that of the picture in the file.

    A picture comes as pixels within the limits, a frame with its time, or as an error of ours that
    names the file.
    """
    path.write_bytes(content)
    try:
        pixels = load_picture(f"{path}{place}", LIMITS, frame=frame)
        start, end = frame_times(str(path), [0, 3]) if place.startswith("#frame") else (0.0, 0.0)
    except DataError as error:
        names_it = str(error).startswith((f"{path}: ", f"{path}{place}: "))
        return None if names_it else f"does not name the file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not start == 0 <= end < math.inf:
        return f"times {start} and {end}"
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"{pixels.dtype} of shape {pixels.shape}"
    if not 0 < pixels.shape[0] * pixels.shape[1] <= LIMITS.max_decode_pixels:
        return f"shape {pixels.shape}"
    return None


def main(minutes: float, seed: int) -> int:
    """Try files for that long; print how many, and each that fails, which is kept."""
    warnings.simplefilter("ignore")
    files, rng = seeds() | place_seeds(), np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_pictures-"))
    print(f"seed {seed}; files in {folder}; if the process dies, `last` is the file", flush=True)
    os.dup2(os.open(folder / "log", os.O_CREAT | os.O_WRONLY), 2)  # what C libraries print
    last = folder / "last"
    end = time.monotonic() + 60 * minutes
    counts: Counter[str] = Counter()
    slowest, failed = 0.0, 0
    for name, content in mutations(files, rng):
        begun = time.monotonic()
        if begun >= end:
            break
        place = PLACES.get(Path(name).suffix, "")
        found = fault(last, content, frame=rng.random() < 0.5, place=place)
        slowest = max(slowest, time.monotonic() - begun)
        counts[name] += 1
        if found:
            failed += 1
            (folder / f"{failed}-{name}").write_bytes(content)
            print(f"{failed}-{name}: {found}", flush=True)
    print(
        f"{counts.total()} files, {failed} failed; {min(counts.values())} to "
        f"{max(counts.values())} of each of {len(counts)}; the slowest took {slowest:.2f} s"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())))
