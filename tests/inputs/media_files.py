"""Video files and PDFs for tests: each frame and each page has a colour of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pypdfium2


def colour(index: int) -> np.ndarray:
    """Return the colour of a video's frame or a PDF's page, counted from 0, [3]."""
    return np.array((index * 7 % 256, 255 - index * 7 % 256, index * 3 % 256), np.uint8)


def write_video(
    path: Path,
    frames: int = 10,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    gop: int = 5,
    times: Sequence[int] | None = None,
    stream: dict[str, Any] | None = None,
) -> Path:
    """Write frames of width and height ``size``, 25 a second unless ``times`` gives their times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"auto-alt-ref": "1", "lag-in-frames": "8"} if codec == "libvpx" else {}
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=25, options=options)
        video.width, video.height = size
        video.pix_fmt, video.gop_size = "yuv420p", gop
        video.codec_context.thread_count = 1
        for name, value in (stream or {}).items():
            setattr(video, name, value)
        for index in range(frames):
            pixels = np.broadcast_to(colour(index), (size[1], size[0], 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index if times is None else times[index]
            file.mux(video.encode(frame))
        file.mux(video.encode())
    return path


def write_lossless_video(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """Write frames, uint8 [H, W, 3] each, two a second, so that just these pixels are decoded."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264rgb", rate=2, options={"qp": "0"})
        video.height, video.width, _ = frames[0].shape
        video.pix_fmt = "rgb24"
        video.codec_context.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            file.mux(video.encode(frame))
        file.mux(video.encode())
    return path


def write_pdf(path: Path, pages: int = 1, *, size: tuple[float, float] = (200, 100)) -> Path:
    """Write pages of width and height ``size`` in points; each has a red square at its top left.

    The side of the square is a tenth of the page's height on page 1, two tenths on page 2.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    contents = [
        f"1 0 0 rg 0 {height - side} {side} {side} re f".encode()
        for side in (height * (page % 10 + 1) / 10 for page in range(pages))
    ]
    kids = " ".join(f"{3 + 2 * page} 0 R" for page in range(pages))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {pages}>>".encode(),
    ]
    for page, content in enumerate(contents):
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents {4 + 2 * page} 0 R"
            ">>".encode(),
            b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        ]
    whole, places = bytearray(b"%PDF-1.4\n"), []
    for number, entry in enumerate(objects, start=1):
        places.append(len(whole))
        whole += b"%d 0 obj%s endobj\n" % (number, entry)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    whole += b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\n" % (
        len(places) + 1,
        table,
        len(places) + 1,
    )
    path.write_bytes(whole + b"startxref\n%d\n%%%%EOF\n" % whole.index(b"xref\n0 "))
    with pypdfium2.PdfDocument(path) as pdf:
        assert len(pdf) == pages
    return path


def encrypt(pdf: Path) -> Path:
    """Mark a PDF of `write_pdf` as one that a password opens; nobody knows the password."""
    entry = b"<</Filter/Standard/V 1/R 2/P -4/O(" + b"o" * 32 + b")/U(" + b"u" * 32 + b")>>"
    root = b"/Root 1 0 R"
    pdf.write_bytes(pdf.read_bytes().replace(root, root + b"/ID[(1)(1)]/Encrypt " + entry))
    return pdf
