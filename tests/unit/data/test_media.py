"""Pictures: refused before decoding, sized within limits, cropped at borders."""

import errno
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs.schema import MediaConfig
from data.errors import DataError
from data.media import (
    DECODE_THREADS,
    MIN_CROP_PIXELS,
    crop_pixels,
    fit,
    limits_of,
    load_picture,
    load_pictures,
    resolve,
    sample_frames,
    target_size,
)
from data.types import Box, Kind, Picture
from tests.builders import write_picture

LIMITS = MediaConfig(
    image_min_pixels=1024,
    image_max_pixels=16384,
    page_min_pixels=4096,
    frame_max_pixels=131072,
    crop_min_pixels=1024,
    crop_max_pixels=1024,
)


def png_header(width, height):
    """Return a PNG that claims a size and holds no pixels."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_picture_is_read_as_rgb_bytes(tmp_path):
    path = write_picture(tmp_path / "a.png", width=5, height=3)
    pixels = load_picture(str(path), LIMITS)
    assert (pixels.shape, pixels.dtype) == ((3, 5, 3), np.uint8)
    assert pixels[2, 4].tolist() == [4, 2, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_other_color_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "a.tiff"
    Image.new(mode, (5, 3)).save(path)
    assert load_picture(str(path), LIMITS).shape == (3, 5, 3)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = write_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="max_file_bytes=10"):
        load_picture(str(path), MediaConfig(max_file_bytes=10))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL")
@pytest.mark.parametrize("side", [5000, 12000, 60000])
def test_a_picture_with_too_many_pixels_is_refused_before_decoding(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png"):
        load_picture(str(path), MediaConfig(max_decode_pixels=1_000_000))


def test_a_page_20000_pixels_wide_is_refused_before_decoding(tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(png_header(20_000, 4_000))
    with pytest.raises(DataError, match=r"20000x4000 pixels, more than .*max_decode_pixels"):
        load_picture(str(path), MediaConfig())


@pytest.mark.parametrize("height", [1, 60, 1000])
def test_a_page_20000_pixels_wide_within_the_limit_is_scaled_to_those_of_pages(tmp_path, height):
    path = tmp_path / "page.png"
    Image.new("L", (20_000, height), 255).save(path)
    limits = MediaConfig()
    pictures, failed = load_pictures([str(path)], limits)
    assert not failed
    image = fit(Picture(str(path), Kind.PAGE), pictures, limits, factor=32)
    assert limits.page_min_pixels <= image.width * image.height <= limits.page_max_pixels
    assert image.width % 32 == image.height % 32 == 0
    assert image.width < 200 * image.height
    crop = Picture(str(path), Kind.PAGE, Box(0.5, 0, 0.51, 1))
    cut = fit(crop, pictures, limits, factor=32)
    assert limits.crop_min_pixels <= cut.width * cut.height <= limits.crop_max_pixels


def test_no_more_files_are_decoded_at_once_than_there_are_threads(tmp_path):
    # A pipe blocks its reader until somebody writes: each open one is a file being read.
    paths = [tmp_path / f"{index}.png" for index in range(DECODE_THREADS + 2)]
    for path in paths:
        os.mkfifo(path)
    uris = [str(path) for path in paths]
    with ThreadPoolExecutor(1) as outside:
        loading = outside.submit(load_pictures, uris, LIMITS)
        writers = [os.open(uri, os.O_WRONLY) for uri in uris[:DECODE_THREADS]]
        waiting = uris[DECODE_THREADS:]
        for uri in waiting:
            with pytest.raises(OSError, match=str(uri)) as caught:
                os.open(uri, os.O_WRONLY | os.O_NONBLOCK)
            assert caught.value.errno == errno.ENXIO
        for writer in writers:
            os.close(writer)
        for uri in waiting:
            os.close(os.open(uri, os.O_WRONLY))
        pictures, failed = loading.result()
    assert (set(pictures), set(failed)) == (set(), set(uris))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tiff", "a.bmp", "a.dds"])
def test_broken_files_raise_nothing_but_data_errors(tmp_path, name):
    rng = np.random.default_rng(0)
    whole = write_picture(tmp_path / name).read_bytes()
    broken = tmp_path / f"broken-{name}"
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(damaged), 60), size=8):
            damaged[place] = rng.integers(0, 256)
        broken.write_bytes(damaged)
        pictures, failed = load_pictures([str(broken)], MediaConfig(max_decode_pixels=1_000_000))
        assert set(pictures) | set(failed) == {str(broken)}
        assert all(str(broken) in reason for reason in failed.values())


def test_failed_pictures_come_back_with_their_reason_and_the_others_with_pixels(tmp_path):
    good = str(write_picture(tmp_path / "good.png"))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    lost = str(tmp_path / "lost.png")
    pictures, failed = load_pictures([good, str(text), lost, good], LIMITS)
    assert set(pictures) == {good}
    assert set(failed) == {str(text), lost}
    assert "not a readable picture" in failed[str(text)]
    assert "not found" in failed[lost]


def test_a_path_inside_the_root_is_resolved(tmp_path):
    path = write_picture(tmp_path / "root" / "a" / "b.png")
    assert resolve(tmp_path / "root", "a/../a/b.png", where="here") == str(path)


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "{outside}", "link.png", "."])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, name):
    outside = write_picture(tmp_path / "out.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"here: .*(leaves it|not found)"):
        resolve(root, name.format(outside=outside), where="here")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "loop/a.png", ""])
def test_a_path_that_is_none_is_refused_by_name(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="here: "):
        resolve(tmp_path, name, where="here")


side = st.integers(1, 6000)


@given(side, side, st.sampled_from([28, 32]), st.integers(1, 30), st.integers(0, 700))
def test_a_size_is_in_multiples_of_the_factor_and_within_the_limits(
    height, width, factor, least, more
):
    square = factor * factor
    found = target_size(
        height, width, factor=factor, min_pixels=least * square, max_pixels=(least + more) * square
    )
    assert found[0] % factor == found[1] % factor == 0
    assert least * square <= found[0] * found[1] <= (least + more) * square
    assert max(found) < 200 * min(found)


@given(st.integers(50, 2000), st.integers(50, 2000))
def test_a_size_keeps_the_aspect_where_the_limits_are_wide(height, width):
    rows, columns = target_size(height, width, factor=32, min_pixels=1024, max_pixels=1 << 24)
    assert abs(rows - height) <= 16
    assert abs(columns - width) <= 16


def test_limits_that_no_size_meets_are_missed_by_little():
    assert target_size(100, 100, factor=32, min_pixels=1100, max_pixels=1900) == (32, 32)


def test_a_size_that_fits_is_left_alone():
    assert target_size(128, 96, factor=32, min_pixels=1024, max_pixels=16384) == (128, 96)


def test_flat_and_large_pictures_stay_within_the_limits():
    rows, columns = target_size(10, 100_000, factor=32, min_pixels=1024, max_pixels=16384)
    assert (rows, columns) == (32, 512)


def test_every_kind_of_picture_has_limits_of_its_own():
    def limits(kind, box=None):
        return limits_of(Picture("a", kind, box), LIMITS)

    assert limits(Kind.IMAGE) == (1024, 16384)
    assert limits(Kind.PAGE) == (4096, LIMITS.page_max_pixels)
    assert limits(Kind.VIDEO) == (LIMITS.frame_min_pixels, 131072)
    assert limits(Kind.PAGE, Box(0, 0, 1, 0.5)) == (1024, 1024)


def test_a_crop_shows_the_pixels_of_its_box():
    assert crop_pixels(Box(0.25, 0.5, 0.75, 1.0), 100, 200) == (50, 50, 150, 100)
    assert crop_pixels(None, 100, 200) == (0, 0, 200, 100)


unit = st.floats(0, 1, allow_nan=False)


@given(st.tuples(unit, unit), st.tuples(unit, unit), side, side)
def test_a_crop_lies_inside_the_picture_and_is_never_too_thin(xs, ys, height, width):
    box = Box(min(xs), min(ys), max(xs), max(ys))
    left, top, right, bottom = crop_pixels(box, height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= min(MIN_CROP_PIXELS, width)
    assert bottom - top >= min(MIN_CROP_PIXELS, height)


@pytest.mark.parametrize("box", [Box(0, 0, 0.01, 0.01), Box(0.99, 0.99, 1.0, 1.0)])
def test_thin_crops_at_the_borders_are_widened_inwards(box):
    left, top, right, bottom = crop_pixels(box, 50, 50)
    assert (right - left, bottom - top) == (MIN_CROP_PIXELS, MIN_CROP_PIXELS)
    assert left in (0, 50 - MIN_CROP_PIXELS)


def test_a_fitted_crop_holds_the_right_pixels():
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[32:, 32:] = 255
    limits = MediaConfig(crop_min_pixels=1024, crop_max_pixels=1024)
    image = fit(Picture("a", Kind.IMAGE, Box(0.5, 0.5, 1, 1)), {"a": pixels}, limits, factor=32)
    assert image.size == (32, 32)
    assert np.asarray(image).min() == 255


def test_a_picture_that_was_not_loaded_is_named():
    with pytest.raises(DataError, match="lost: picture was not loaded"):
        fit(Picture("lost", Kind.IMAGE), {}, LIMITS, factor=32)


def test_short_videos_are_shown_whole():
    assert sample_frames(("a", "b"), 8) == ("a", "b")


@given(st.integers(1, 200), st.integers(1, 40))
def test_frames_are_spread_in_order_with_both_ends(total, most):
    uris = tuple(str(i) for i in range(total))
    found = [int(uri) for uri in sample_frames(uris, most)]
    assert found == sorted(set(found))
    assert len(found) == min(total, most)
    assert found[0] == 0
    if most > 1:
        assert found[-1] == total - 1
        steps = np.diff(found)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
