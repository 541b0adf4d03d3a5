"""Drawing evidence on pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from configs.common import MediaConfig
from data.types import Box
from evaluation.report.drawing import (
    TRACE_COLOUR,
    data_uri,
    draw_boxes,
    draw_strip,
    load_image,
    placeholder,
    resize_to,
    thumbnail,
)

TRACE_RGB = tuple(int(TRACE_COLOUR[i : i + 2], 16) for i in (1, 3, 5))
GREY = Image.new("RGB", (100, 50), (128, 128, 128))


def pixels_like(image: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    return (np.asarray(image) == np.array(colour)).all(axis=-1)


def test_resize_keeps_the_aspect_and_stays_within() -> None:
    assert resize_to(GREY, width=200, height=200).size == (200, 100)
    assert resize_to(GREY, width=200, height=40).size == (80, 40)


def test_small_drawings_are_enlarged_without_blur() -> None:
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8))
    assert set(np.asarray(resize_to(image, width=40, height=40)).ravel()) == {0, 255}


def test_boxes_are_drawn_where_they_point() -> None:
    canvas = draw_boxes(GREY, boxes=[Box(0.5, 0.0, 1.0, 1.0)], truth=[], width=200, height=200)
    drawn = pixels_like(canvas, TRACE_RGB)
    assert drawn[50, 100]
    assert drawn[50, 199]
    assert not drawn[:, :100].any()
    assert not drawn[30:70, 120:180].any()


def test_truth_is_dashed_in_black_and_white() -> None:
    truth = [Box(0.0, 0.0, 0.5, 1.0)]
    canvas = draw_boxes(GREY, boxes=[], truth=truth, width=200, height=200)
    assert pixels_like(canvas, (0, 0, 0)).any()
    assert pixels_like(canvas, (255, 255, 255)).any()
    assert not pixels_like(canvas, TRACE_RGB).any()


def test_both_boxes_show_where_they_agree() -> None:
    box = Box(0.1, 0.1, 0.9, 0.9)
    canvas = draw_boxes(GREY, boxes=[box], truth=[box], width=200, height=200)
    assert pixels_like(canvas, TRACE_RGB).sum() > 500
    assert pixels_like(canvas, (0, 0, 0)).sum() > 300


def test_a_box_thinner_than_a_line_is_still_drawn() -> None:
    thin = Box(0.5, 0.5, 0.501, 0.501)
    canvas = draw_boxes(GREY, boxes=[thin], truth=[thin], width=100, height=100)
    assert pixels_like(canvas, TRACE_RGB).any()


def test_the_picture_itself_is_left_alone() -> None:
    before = GREY.tobytes()
    draw_boxes(GREY, boxes=[Box(0, 0, 1, 1)], truth=[], width=100, height=50)
    assert GREY.tobytes() == before


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_strip_holds_every_frame(count: int, rows: int) -> None:
    strip = draw_strip([GREY] * count, key_frames=[], truth=[], width=400)
    one = draw_strip([GREY] * min(count, 4), key_frames=[], truth=[], width=400)
    assert strip.width == 400
    assert strip.height == pytest.approx(rows * one.height, abs=10 * rows)


def test_only_key_frames_are_framed() -> None:
    strip = draw_strip([GREY] * 4, key_frames=[2], truth=[0], width=400)
    # Labels below the frames are coloured too; look at the frames only.
    drawn = pixels_like(strip, TRACE_RGB)[:40]
    assert drawn[:, 200:310].any()
    assert not drawn[:, :200].any()
    assert not drawn[:, 310:].any()
    assert pixels_like(strip, (0, 0, 0))[:40, :100].any()


def test_thumbnail_of_a_clip_shows_first_middle_last() -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 20, 30, 40, 50)]
    sheet = np.asarray(thumbnail(frames, side=64))
    assert {int(v) for v in sheet[..., 0].ravel()} == {10, 30, 50, 255}
    assert thumbnail(frames[:1], side=64).size == (64, 64)


def test_data_uri_holds_the_picture() -> None:
    uri = data_uri(GREY)
    form, _, body = uri.partition(";base64,")
    assert form in {"data:image/png", "data:image/jpeg"}
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == GREY.size


def test_a_picture_that_is_gone_gives_none(tmp_path) -> None:
    assert load_image(str(tmp_path / "gone.png"), MediaConfig()) is None
    assert placeholder("not found", width=64, height=48).size == (64, 48)
