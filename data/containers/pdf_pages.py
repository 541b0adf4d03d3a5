"""Pages of PDF files: counted, and drawn on white at the size that models need."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from data.containers.file_kinds import HEAD, kind_of_file
from data.errors import DataError

SUFFIX = ".pdf"
"""Ending of names that are read as PDFs even if they name no page."""
DOTS_PER_INCH = 300
"""A page is drawn as if it was scanned at this resolution: printed pages hold no more detail."""
_POINTS_PER_INCH = 72
_lock = threading.Lock()
"""PDFium may be used by one thread at a time."""


def page_count(path: str) -> int:
    """Return how many pages a PDF has.

    Raises:
        DataError: no PDF that can be opened, or one without pages; the message names the file.
    """
    with _opened(path) as pdf:
        pages = len(pdf)
    if not pages:
        raise DataError(
            f"{path}: expected pages in the PDF, found none; save it again or remove it"
        )
    return pages


def page_number(path: str, page: int | None, *, pages: int) -> int:
    """Return the number of the page that an address names, from 1; None: the only page.

    Raises:
        DataError: no such page, or several and none is named; the message names the file.
    """
    if page is None and pages > 1:
        raise DataError(
            f"{path}: expected the number of one of its {pages} pages, found none; name it behind "
            f"the path: '#page=1' to '#page={pages}'"
        )
    number = 1 if page is None else page
    if not 1 <= number <= pages:
        raise DataError(
            f"{path}: expected a page from 1 to {pages}, found '#page={number}'; name another page"
        )
    return number


def draw_page(
    path: str, page: int, *, least_pixels: int, useful_pixels: int, max_pixels: int
) -> np.ndarray:
    """Return a page's pixels on white, uint8 [H, W, 3].

    It has ``least_pixels``, or those of `DOTS_PER_INCH` where that is more; never more than
    ``useful_pixels``, nor than ``max_pixels``, which is a limit of memory.

    Raises:
        DataError: no PDF that can be opened, no such page, or one that cannot be drawn.
    """
    with _opened(path) as pdf:
        pdf.init_forms()  # what is filled in is drawn
        drawn_page = pdf[page_number(path, page, pages=len(pdf)) - 1]
        width, height = drawn_page.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise DataError(
                f"{path}#page={page}: expected a page with a size, found {width}x{height} points; "
                "save the file again or remove it"
            )
        printed = width * height * (DOTS_PER_INCH / _POINTS_PER_INCH) ** 2
        scale = math.sqrt(
            min(max(least_pixels, printed), useful_pixels, max_pixels) / (width * height)
        )
        # Sides are rounded up, which matters for very narrow pages.
        while math.ceil(width * scale) * math.ceil(height * scale) > max_pixels:
            scale *= 0.99
        bitmap = drawn_page.render(scale=scale, rev_byteorder=True)
        try:
            return bitmap.to_numpy().copy()
        finally:
            bitmap.close()


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a PDF (`pypdfium2.PdfDocument`) for this thread alone."""
    import pypdfium2

    with _lock:
        try:
            pdf = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            raise _unreadable(path, error) from error
        # Closed here and not when it is collected: that may happen in another thread.
        with pdf:
            try:
                yield pdf
            except pypdfium2.PdfiumError as error:
                raise DataError(
                    f"{path}: not a readable PDF ({error}); save it again or remove it"
                ) from error


def _unreadable(path: str, error: Exception) -> DataError:
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if "assword" in str(error):
        return DataError(f"{path}: the PDF is encrypted; save it without its password")
    kind, advice = kind_of_file(head)
    if kind == "a PDF":
        kind, advice = "a damaged PDF", "copy or download it again"
    elif kind.startswith("a damaged "):  # which nobody has tried to decode
        kind = kind.replace("damaged ", "")
        advice = "only PDFs have pages: name it without '#page'"
    return DataError(f"{path}: not a readable PDF: expected a PDF, found {kind}; {advice}")
