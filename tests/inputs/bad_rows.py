"""Data sets with 5 % bad rows: each kind of fault of a row or a file that a row names.

Their text files, tables and media lie in one folder. `SITE` ends each process that reads the bytes
of a picture called `deadly.png`, as a broken decoder does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from configs.common import DataSetConfig
from tests.inputs.media_files import encrypt, write_pdf, write_video

ROWS = {"signs": 400, "clips": 80, "lines": 40, "cells": 20, "table": 20, "heldout": 20}
MAX_BAD_ROWS = 0.06
DEADLY = "deadly.png"
SITE = f"""
import os, pathlib
read_bytes = pathlib.Path.read_bytes
def read(path):
    if path.name == {DEADLY!r}:
        os._exit(1)
    return read_bytes(path)
pathlib.Path.read_bytes = read
"""
"""A `sitecustomize`, which Python runs at the start of every process."""


@dataclass(frozen=True)
class Bad:
    """A bad row."""

    name: str
    """The field that is to blame, as the job names it."""
    reason: str
    """Words of the reason."""
    change: dict[str, Any] = field(default_factory=dict)
    """What the row has in place of its own fields."""
    decoded: bool = False
    """Whether only decoding tells."""


def picture(name: str, reason: str, *, decoded: bool = False) -> Bad:
    return Bad("qry_image_path", reason, {"qry_image_path": name}, decoded)


def video(name: str | list[str], reason: str) -> Bad:
    return Bad("qry.video", reason, {"video": name})


BAD = {
    # Data set and row from 1.
    ("signs", 5): picture("lost.png", "file 'lost.png' not found"),
    ("signs", 21): picture("broken.png", "not a readable picture", decoded=True),
    ("signs", 37): Bad("pos_text", "expected text, found int; mend", {"pos_text": 7}),
    ("signs", 53): Bad(
        "pos_text or pos_image_path", "the target is empty: no text", {"pos_text": " "}
    ),
    ("signs", 69): picture("a.pdf#page=9", "expected a page from 1 to 2, found '#page=9'"),
    ("signs", 85): picture("secret.pdf", "the PDF is encrypted; save it without its password"),
    ("signs", 101): picture("../outside.png", "'../outside.png' which leaves it; move the file"),
    ("signs", 117): picture("link.png", "'link.png' is a link to "),
    ("signs", 133): picture("broken.jpg", "image file is truncated", decoded=True),
    ("signs", 149): picture("huge.png", "20000x20000 pixels, more than data.media", decoded=True),
    ("signs", 165): Bad("pos_text", "found half a character", {"pos_text": "half \ud83d"}),
    ("signs", 181): Bad("query_cot", "not a usable trace: expected <thin", {"query_cot": "red"}),
    ("signs", 197): Bad("id", "duplicate: a row before says the same under id 'twice'"),
    ("signs", 213): Bad("error", "expected none, found 'timeout'; make the", {"error": "timeout"}),
    ("signs", 229): picture("a.pdf", "expected the number of one of its 2 pages, found none"),
    ("signs", 245): picture("cut.pdf", "found a damaged PDF; copy or download it again"),
    ("signs", 261): picture("0.mp4#frame=99", "expected a frame from 0 to 3, found '#frame=99'"),
    ("signs", 277): picture("book.pdf", "expected the number of one of its 10000 pages"),
    ("signs", 293): Bad(
        "qry_evidence", "a box is [x1, y1, x2, y2] in thou", {"qry_evidence": {"bbox_2d": [1]}}
    ),
    ("signs", 309): picture("pointer.png", "found a git-lfs pointer; run `git lfs", decoded=True),
    ("signs", 325): picture(DEADLY, "process which decodes it ended each time", decoded=True),
    ("clips", 7): video("lost.mp4", "file 'lost.mp4' not found"),
    ("clips", 27): video("cut.mp4", "found a video (MP4 or MOV); it is damaged, cut short"),
    ("clips", 47): video("no_video.mp4", "expected a video stream, found none; replace"),
    ("clips", 67): video([], "expected paths, found an empty list"),
    ("lines", 11): Bad("", "malformed JSON (Expecting value); mend or remove the row"),
    ("lines", 31): Bad("", "expected an object, found list; write each row as an object"),
    ("cells", 9): Bad("", "expected 2 cells, as many as the first line names, found 1 in 'cut'"),
    ("table", 13): Bad("qry_image_path", "not a readable picture", decoded=True),
}
USABLE = {
    # What looks broken and is not.
    ("signs", 341): {"qry_image_path": "book.pdf#page=9999"},
    ("signs", 357): {"qry_image_path": "wide.png"},
    ("clips", 12): {"video": "one_frame.mp4"},
    ("clips", 32): {"video": "below_zero.mkv"},
    ("clips", 52): {"video": "four_hours.mp4"},
}


def write_bad_rows(home: Path) -> dict[str, DataSetConfig]:
    """Write the sets, media included, and return their settings by name."""
    root = home / "root"
    root.mkdir()
    _write_pictures(root, home / "outside.png")
    _write_pages_and_clips(root)
    rows = {
        "signs": [_sign(number) for number in range(ROWS["signs"])],
        "clips": [_clip(number) for number in range(ROWS["clips"])],
        "lines": [_question(number) for number in range(ROWS["lines"])],
        "cells": [_question(number) for number in range(ROWS["cells"])],
        "table": [_sign(number) for number in range(ROWS["table"])],
        "heldout": [_sign(ROWS["signs"] + number) for number in range(ROWS["heldout"])],
    }
    rows["heldout"][3] = _sign(40)  # which is trained on, too
    rows["heldout"][5]["qry_image_path"] = "copy.jpg"
    rows["signs"][195]["id"] = "twice"
    rows["signs"][196] = rows["signs"][195]
    for (name, row), change in ({key: bad.change for key, bad in BAD.items()} | USABLE).items():
        place = rows[name][row - 1]
        if "qry_image_path" in change:
            place.pop("qry_evidence", None)
        (place["qry"] if "video" in change else place).update(change)
    return {name: _write(home, name, content) for name, content in rows.items()}


def assert_all_are_named(quarantine: Path, sets: dict[str, DataSetConfig]) -> None:
    """Assert that the file which `check_data` writes names all bad rows and no other."""
    lines = pq.read_table(quarantine).to_pylist()
    assert sorted((line["data_set"], line["row"]) for line in lines) == sorted(BAD)
    for line in lines:
        bad = BAD[line["data_set"], line["row"]]
        assert line["file"] == sets[line["data_set"]].path
        assert (line["field"], bad.reason in line["reason"]) == (bad.name, True), line


def _write(home: Path, name: str, rows: list[dict[str, Any]]) -> DataSetConfig:
    settings = {"name": name, "root": str(home / "root")}
    if name == "lines":
        lines = [json.dumps(row) for row in rows]
        lines[10], lines[30] = '{"qry": ', "[1]"
        path, content = home / "lines.jsonl", "\n".join(lines).encode()
    elif name == "cells":
        lines = ["qry,pos_text", *("{qry},{pos_text}".format(**row) for row in rows)]
        lines[9] = "cut"
        path, content = home / "cells.csv", "\n".join(lines).encode()
    elif name == "table":
        return DataSetConfig(path=_write_table(home, rows), **settings)
    else:
        path, content = home / f"{name}.json", json.dumps(rows).encode()
    path.write_bytes(content)
    return DataSetConfig(
        path=str(path), format="llavahound" if name == "clips" else "mmeb", **settings
    )


def _write_table(home: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as parquet with the pictures in cells, of which one is cut off."""
    cells = [
        row | {"qry_image_path": (home / "root" / row["qry_image_path"]).read_bytes()}
        for row in rows
    ]
    cells[12]["qry_image_path"] = cells[12]["qry_image_path"][:60]
    path = home / "table.parquet"
    pq.write_table(pa.Table.from_pylist(cells), path)
    return str(path)


def _sign(number: int) -> dict[str, Any]:
    return {
        "qry": "Name the sign.",
        "qry_image_path": f"{number}.png",
        "pos_text": f"sign {number}",
        "qry_evidence": {"bbox_2d": [0, 0, 500, 500]},
    }


def _clip(number: int) -> dict[str, Any]:
    asked = [{"from": "human", "value": "<video>what"}]
    return {
        "qry": {"conversations": asked, "video": f"{number}.mp4"},
        "pos": {"conversations": [{"from": "gpt", "value": f"clip {number}"}]},
    }


def _question(number: int) -> dict[str, Any]:
    return {"qry": f"question {number}", "pos_text": f"answer {number}"}


def _write_pictures(root: Path, outside: Path) -> None:
    for number in range(ROWS["signs"] + ROWS["heldout"]):
        _pixels(number).save(root / f"{number}.png")
    whole = (root / "0.png").read_bytes()
    (root / "broken.png").write_bytes(whole[: len(whole) // 2])
    _pixels(0).save(root / "broken.jpg")
    whole = (root / "broken.jpg").read_bytes()
    (root / "broken.jpg").write_bytes(whole[:-20])
    (root / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (root / DEADLY).write_bytes(b"of a size of its own")
    Image.new("1", (20_000, 20_000)).save(root / "huge.png")
    Image.new("L", (20_000, 40)).save(root / "wide.png")
    # Its pixels are those of another picture, its bytes are not.
    _pixels(1).save(root / "2.png", compress_level=0)
    _pixels(60).resize((128, 96)).save(root / "copy.jpg", quality=50)
    _pixels(0).save(outside)
    (root / "link.png").symlink_to(outside)


def _pixels(number: int) -> Image.Image:
    """Return a picture that has the number's own pixels."""
    pixels = np.full((48, 64, 3), 255, np.uint8)
    colour = (number % 256, number // 256 * 90, 200)
    pixels[number % 30 : number % 30 + 16, number % 40 : number % 40 + 16] = colour
    return Image.fromarray(pixels)


def _write_pages_and_clips(root: Path) -> None:
    whole = write_pdf(root / "a.pdf", 2).read_bytes()
    (root / "cut.pdf").write_bytes(whole[: len(whole) // 2])
    encrypt(write_pdf(root / "secret.pdf"))
    write_pdf(root / "book.pdf", 10_000)
    for number in range(ROWS["clips"]):
        write_video(root / f"{number}.mp4", 4 + number // 20, size=(64 + 2 * (number % 20), 48))
    whole = (root / "0.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(root / "no_video.mp4"), "w") as file:
        file.add_stream("libx264", rate=25)
        file.start_encoding()
    write_video(root / "one_frame.mp4", 1, size=(62, 48))
    write_video(root / "below_zero.mkv", 6, size=(60, 48), times=range(-3, 3))
    write_video(root / "four_hours.mp4", 9, size=(58, 48), times=range(0, 360_001, 45_000))
