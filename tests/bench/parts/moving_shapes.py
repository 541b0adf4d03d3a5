"""Clips of a shape that moves to the left or to the right, as MP4 files, and the rows about them.

Only the order of a clip's frames says where the shape moves: each clip has a twin that shows the
same frames, pixel for pixel, the other way round. There are two kinds.

`across`: the shape crosses the picture. Who knows which frame is the first needs no other one.
`around`: it starts anywhere, and what leaves at one edge comes back at the other. Even with its
place in the clip no frame tells anything; two of them do, in their order.
"""

import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.demo.world import CELL, COLORS, SHAPES, Thing, draw_grid
from data.embed_inputs import SUFFIX

WIDTH = 5 * CELL
"""The picture is as high as the shape."""
PACE = CELL // 4
"""Pixels from frame to frame."""
FRAMES = 13
"""Of which 4 are shown, evenly: the shape is then one cell further in each."""
RATE = 12
"""Frames a second."""
DIRECTIONS = ("left", "right")
STARTS = range(WIDTH)
"""Where a shape is at the left end of its way, in pixels from the left."""
ACROSS = range(WIDTH - CELL - PACE * (FRAMES - 1) + 1)
"""Those from where it does not leave the picture."""
QUESTION = "where does it move?"

Track = tuple[str, str, int]
"""Colour, shape and start."""


def write_clips(folder: Path, *, seed: int, train: int, heldout: int) -> None:
    """Write ``train.json`` with clips of both kinds, and ``across.json`` and ``around.json``.

    The latter two are held out. The numbers count the tracks of each kind; of each track there is a
    clip in either direction. No track is there twice.
    """
    rng = random.Random(seed)
    rest = list(product(COLORS, SHAPES, STARTS))
    rows: dict[str, list[dict[str, Any]]] = {"train": []}
    for kind, starts in (("around", STARTS), ("across", ACROSS)):
        drawn = rng.sample([track for track in rest if track[2] in starts], train + heldout)
        rest = sorted({*rest} - {*drawn})
        rows["train"] += _rows(folder, drawn[:train])
        rows[kind] = _rows(folder, drawn[train:])
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def corpus() -> list[str]:
    """Return what a tokenizer is trained on: all that an Embedder reads, times of frames too."""
    captions = [_caption(color, way) for color in COLORS for way in DIRECTIONS]
    times = [f"<{tenths / 10:.1f} seconds>" for tenths in range(11)]
    return [QUESTION, SUFFIX, "user\n", "assistant\n", *captions, *times]


def frames_of(track: Track, way: str) -> list[np.ndarray]:
    """Return a clip's frames, uint8 [CELL, WIDTH, 3]."""
    color, shape, start = track
    canvas = np.full((CELL, WIDTH, 3), 255, np.uint8)
    canvas[:, :CELL] = draw_grid((Thing(color, shape, 0),), 1)
    frames = [np.roll(canvas, start + PACE * step, axis=1) for step in range(FRAMES)]
    return frames if way == "right" else frames[::-1]


def _rows(folder: Path, tracks: Sequence[Track]) -> list[dict[str, Any]]:
    return [_row(folder, track, way) for track in tracks for way in DIRECTIONS]


def _row(folder: Path, track: Track, way: str) -> dict[str, Any]:
    name = f"clips/{'-'.join(map(str, track))}-{way}.mp4"
    _write_clip(folder / name, frames_of(track, way))
    return {
        "id": name,
        "qry": {
            "conversations": [{"from": "human", "value": f"<video>\n{QUESTION}"}],
            "video": name,
        },
        "pos": {"conversations": [{"from": "gpt", "value": _caption(track[0], way)}]},
    }


def _caption(color: str, way: str) -> str:
    return f"something {color} moves to the {way}"


def _write_clip(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames that are coded one by one with a fixed quantiser: their order changes none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"qp": "12", "preset": "ultrafast"}
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=RATE, options=options)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt, video.gop_size = "yuv420p", 1
        video.codec_context.thread_count = 1
        for pixels in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(video.encode())
