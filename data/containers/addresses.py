"""The address of a picture (`uri`): a file, and where in the file the picture lies.

/data/a.png                             the file is the picture
/data/report.pdf#page=3                 a page, counted from 1 as PDF viewers do
/data/clip.mp4#frame=12                 a frame of a video, counted from 0 as they are shown
/data/part.parquet#row=7&column=image   the bytes in a cell, rows counted from 0
"""

import os
import re
from dataclasses import dataclass

_PLACE = re.compile(
    r"#(?:page=([0-9]{1,18})|frame=([0-9]{1,18})|row=([0-9]{1,18})&column=([^#&]+))\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A parsed uri; at most one of page, frame and row is given."""

    path: str
    page: int | None = None
    frame: int | None = None
    row: int | None = None
    column: str = ""
    """Given with `row`."""


def parse_address(uri: str) -> Address:
    """Return the file of a uri and the place in it.

    If a file has the whole uri as its name, that file is meant.
    """
    place = _PLACE.search(uri)
    if place is None or os.path.lexists(uri):
        return Address(path=uri)
    page, frame, row, column = place.groups()
    return Address(
        path=uri[: place.start()],
        page=None if page is None else int(page),
        frame=None if frame is None else int(frame),
        row=None if row is None else int(row),
        column=column or "",
    )


def file_of(uri: str) -> str:
    """Return the path of the file that holds a picture."""
    return parse_address(uri).path
