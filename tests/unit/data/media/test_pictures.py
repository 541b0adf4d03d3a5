"""Pictures: refused before decoding, sized within limits, cropped at borders."""

import errno
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageOps

from configs.common import MediaConfig
from data.cues import MIN_BOX_SIDE
from data.errors import DataError
from data.media.frames import frames_only, sample_frames
from data.media.pictures import DECODE_THREADS, FORMATS, SUFFIXES, load_picture, load_pictures
from data.media.sizes import MIN_CROP_PIXELS, crop_pixels, fit, limits_of, target_size
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


def png(*chunks):
    """Return a PNG of chunks, (name, content)."""
    whole = b"\x89PNG\r\n\x1a\n"
    for name, body in (*chunks, (b"IEND", b"")):
        crc = zlib.crc32(name + body)
        whole += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return whole


def png_header(width, height):
    """Return a PNG that claims a size and holds no pixels."""
    return png((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))


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


def disc(ink, under=(0, 0, 0)):
    """Return a disc of a colour on a transparent ground, with another colour under that."""
    image = Image.new("RGBA", (64, 64), (*under, 0))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(*ink, 255))
    return image


def disc_of_one_clear_colour(mode, ground, ink):
    image = Image.new(mode, (64, 64), ground)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=ink)
    return image


def palette_disc():
    image = disc_of_one_clear_colour("P", 0, 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("rgba.png", disc((0, 0, 0)), {}),
        ("below.png", disc((0, 0, 0), under=(90, 0, 200)), {}),
        ("la.png", disc((0, 0, 0)).convert("LA"), {}),
        ("rgba.webp", disc((0, 0, 0)), {"lossless": True}),
        ("rgba.tiff", disc((0, 0, 0)), {}),
        ("rgba.avif", disc((0, 0, 0)), {"quality": 100}),
        ("palette.png", palette_disc(), {"transparency": 0}),
        ("alphas.png", palette_disc(), {"transparency": b"\0\xff"}),
        ("palette.gif", palette_disc(), {"transparency": 0}),
        ("grey.png", disc_of_one_clear_colour("L", 9, 0), {"transparency": 9}),
        ("two.png", disc_of_one_clear_colour("1", 1, 0), {"transparency": 255}),
        ("rgb.png", disc_of_one_clear_colour("RGB", (7, 8, 9), 0), {"transparency": (7, 8, 9)}),
        ("deep.png", disc_of_one_clear_colour("I;16", 300, 0), {"transparency": 300}),
    ],
)
def test_what_is_transparent_is_white(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    pixels = load_picture(str(tmp_path / name), LIMITS)
    assert pixels[0, 0].min() >= 254
    assert pixels[32, 32].max() <= 1


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 100, 0, 51)).save(tmp_path / "a.png")
    assert load_picture(str(tmp_path / "a.png"), LIMITS)[0, 0].tolist() == [204, 224, 204]


def test_a_transparent_colour_of_16_bit_a_channel_is_white(tmp_path):
    clear, ink = (0x1234, 0x5678, 0x9ABC), (0, 0, 0)
    rows = np.array([[clear, ink]], ">u2")
    path = tmp_path / "deep.png"
    path.write_bytes(
        png(
            (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
            (b"tRNS", struct.pack(">HHH", *clear)),
            (b"IDAT", zlib.compress(b"\0" + rows.tobytes())),
        )
    )
    assert load_picture(str(path), LIMITS).tolist() == [[[255] * 3, [0] * 3]]


UPRIGHT = np.kron(
    np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255] * 3, [255, 255, 0]]]),
    np.ones((16, 16, 1)),
).astype(np.uint8)
"""Six fields of different colours."""


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_viewers_show_it(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(UPRIGHT)
    # Turning by 90 degrees is undone by the opposite; all others are their own opposites.
    opposite = {6: 8, 8: 6}.get(orientation, orientation)
    image.getexif()[ExifTags.Base.Orientation] = opposite
    stored = ImageOps.exif_transpose(image)
    stored.save(tmp_path / name, exif=exif, **({} if name == "a.png" else {"quality": 95}))
    pixels = load_picture(str(tmp_path / name), LIMITS)
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels[8::16, 8::16].astype(int) - UPRIGHT[8::16, 8::16]).max() < 40


def test_a_box_of_a_turned_photo_crops_what_it_was_drawn_around(tmp_path):
    upright = np.zeros((300, 200, 3), np.uint8)
    upright[:100] = (255, 0, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    uri = str(tmp_path / "phone.jpg")
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(uri, exif=exif, quality=95)
    pictures, _ = load_pictures([uri], LIMITS)
    crop = fit(Picture(uri, Kind.IMAGE, Box(0, 0, 1, 0.3)), pictures, LIMITS, factor=32)
    assert np.asarray(crop)[..., 0].min() > 240


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0rubbish",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12\0\x07\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_broken_exif_block_is_no_reason_to_refuse_a_picture(tmp_path, name, block):
    Image.fromarray(UPRIGHT).save(tmp_path / name, exif=block)
    assert load_picture(str(tmp_path / name), LIMITS).shape == UPRIGHT.shape


RAMP = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", Image.fromarray(RAMP)),
        ("a.tiff", Image.fromarray(RAMP)),
        ("a.pgm", Image.fromarray(RAMP.astype(np.int32))),
        ("integers.tiff", Image.fromarray(RAMP.astype(np.int32) - 30000)),
        ("large.tiff", Image.fromarray(RAMP.astype(np.int32) * 32000)),
        ("share.tiff", Image.fromarray((RAMP / 65535).astype(np.float32))),
        ("share.pfm", Image.fromarray((RAMP / 65535).astype(np.float32))),
    ],
)
def test_a_picture_of_more_than_8_bit_keeps_its_greys(tmp_path, name, image):
    image.save(tmp_path / name)
    pixels = load_picture(str(tmp_path / name), LIMITS)
    assert np.abs(pixels - np.arange(256)[None, :, None]).max() <= 1


def test_a_faint_picture_of_16_bit_stays_faint(tmp_path):
    Image.fromarray(RAMP // 4).save(tmp_path / "a.png")
    assert load_picture(str(tmp_path / "a.png"), LIMITS).max() == 64


def test_a_16_bit_tiff_whose_0_is_white_is_not_inverted(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    assert load_picture(str(tmp_path / "a.tiff"), LIMITS)[0, [0, -1], 0].tolist() == [255, 0]


def test_a_picture_of_one_number_has_one_grey(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tiff")
    assert load_picture(str(tmp_path / "a.tiff"), LIMITS).max() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_a_value_that_is_no_number_is_refused(tmp_path, value):
    values = np.ones((4, 4), np.float32)
    values[1, 2] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: .*not all finite"):
        load_picture(str(tmp_path / "a.tiff"), LIMITS)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("no frame"), RecursionError(), ZeroDivisionError(), KeyError("x")],
)
def test_any_exception_of_a_decoder_is_the_reason_of_its_picture_alone(
    tmp_path, monkeypatch, error
):
    def decode(*_):
        raise error

    Image.init()
    _, accept = Image.OPEN["BMP"]
    monkeypatch.setitem(Image.OPEN, "BMP", (decode, accept))
    good, bad = (str(write_picture(tmp_path / name)) for name in ("good.png", "bad.bmp"))
    pictures, failed = load_pictures([good, bad], LIMITS)
    assert (set(pictures), set(failed)) == ({good}, {bad})
    assert f"{bad}: not a readable picture ({type(error).__name__}" in failed[bad]


BROKEN = sorted((Path(__file__).parent / "broken_pictures").iterdir())
"""Files that once ended a job."""


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
def test_a_file_that_once_ended_a_job_is_refused_by_name(path):
    pictures, failed = load_pictures([str(path)], LIMITS)
    assert not pictures
    assert failed[str(path)].startswith(f"{path}: ")


def test_no_decoder_is_open_that_no_data_set_needs(tmp_path):
    Image.init()
    refused = set()
    for form in Image.SAVE.keys() - {*FORMATS, "MPO"}:
        path = tmp_path / f"picture.{form}"
        for mode in ("RGB", "P", "1"):
            try:
                Image.new(mode, (16, 16)).save(path, form)
            except (OSError, ValueError):
                continue
            with pytest.raises(DataError, match=f"{path}: not a readable picture: expected one of"):
                load_picture(str(path), LIMITS)
            refused.add(form)
            break
    assert refused >= {"EPS", "PDF", "ICNS", "DDS", "TGA", "PCX"}


def test_a_folders_pictures_are_told_by_the_endings_of_all_accepted_formats():
    endings = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
    assert endings == SUFFIXES


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found an empty file; copy or download it again"),
        (bytes(4096), "found a file of zeros; copy"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "found a git-lfs pointer; run `git lfs pull`",
        ),
        (b"%PDF-1.7\n%\xe2", "found a PDF; name a page of it"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "found an SVG drawing; render it as a PNG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg>', "found an SVG drawing"),
        (b"<!DOCTYPE html>\n<title>404", "found an HTML page; the download failed"),
        (b" \n<html><body>404 Not Found", "found an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "found a HEIC photo; convert it"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40), "found a damaged AVIF"),
        (
            b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
            "found a video (MP4 or MOV); name it in a field `video`",
        ),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "found a video (MP4 or MOV)"),
        (b"RIFF\x24\0\0\0AVI LIST", "found a video (AVI); name it in a field `video`"),
        (b"\x1a\x45\xdf\xa3\x01", "found a video (WebM or Matroska)"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "found what macOS keeps beside a file"),
        (b"PK\x03\x04\x14", "found a ZIP archive; unpack it"),
        (b"PAR1\x15\x04", "found a parquet file"),
        (
            b'{"qry": "caf\xc3\xa9"}',
            'found a text that begins \'{"qry": "caf\u00e9"}\'; check the path',
        ),
        ("\u65e5".encode() * 600, "found a text that begins '\u65e5"),
        (b"\x89PNG\r\n", "found a damaged PNG; copy or download it again"),
        (b"RIFF\x24\0\0\0WEBPVP", "found a damaged WebP"),
        (b"\x07\x08\xfe\xff", "found an unknown kind of file that begins with 07 08 fe ff"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path, content, found):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_picture(str(path), LIMITS)
    assert str(caught.value).startswith(
        f"{path}: not a readable picture: expected one of AVIF, BMP"
    )
    assert found in str(caught.value)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = write_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="max_file_bytes=10"):
        load_picture(str(path), MediaConfig(max_file_bytes=10))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [5000, 12000, 60000])
def test_a_picture_with_too_many_pixels_is_refused_before_decoding(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=rf"bomb\.png: {side}x{side} pixels, .*max_decode_pixels"):
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


def test_pictures_that_need_too_much_memory_together_are_refused_and_the_largest_named(tmp_path):
    sizes = {"small.png": (10, 10), "wide.png": (90, 30), "high.png": (50, 60)}
    uris = [str(write_picture(tmp_path / name, *size)) for name, size in sizes.items()]
    assert len(load_pictures(uris, MediaConfig(max_step_bytes=17_400))[0]) == 3
    with pytest.raises(DataError) as caught:
        load_pictures(uris, MediaConfig(max_step_bytes=17_399))
    found = str(caught.value)
    assert "data.media.max_step_bytes=17399" in found
    assert "found 3 of 17400 bytes" in found
    largest = [str(tmp_path / name) for name in ("high.png", "wide.png", "small.png")]
    assert f"the largest {largest[0]} (9000), {largest[1]} (8100), {largest[2]} (300);" in found


def test_a_picture_that_is_refused_takes_no_memory(tmp_path):
    good = str(write_picture(tmp_path / "good.png", 10, 10))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_header(5000, 5000))
    limits = MediaConfig(max_step_bytes=300, max_decode_pixels=1_000_000)
    pictures, failed = load_pictures([good, str(bomb)], limits)
    assert (set(pictures), set(failed)) == ({good}, {str(bomb)})


@pytest.mark.parametrize(
    ("flat", "all_", "said"), [(4, 8, False), (5, 40, True), (5, 60, False), (8, 8, True)]
)
def test_many_pictures_of_one_colour_are_said_once(tmp_path, caplog, monkeypatch, flat, all_, said):
    monkeypatch.setattr("data.media.pictures._said_flat", threading.Event())
    uris = [str(write_picture(tmp_path / f"{index}.png")) for index in range(flat, all_)]
    for index in range(flat):
        uris.append(str(tmp_path / f"flat-{index}.png"))
        Image.new("RGBA", (40, 30), (255, 255, 255, 9 * index)).save(uris[-1])
    for _ in range(2):
        load_pictures(uris, LIMITS)
    assert [record.getMessage() for record in caplog.records] == [
        f"{flat} of {all_} pictures have one colour each, {tmp_path}/flat-0.png for instance: look "
        "at these files; what is transparent is shown white, so white drawings on it vanish"
    ] * said


def test_a_picture_that_is_replaced_between_two_reads_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("data.media.pictures._replaced", set())
    uris = [str(write_picture(tmp_path / f"{index}.png")) for index in range(4)]
    for width in (None, 60, None, 70):  # the second change of a file says nothing new
        for uri in uris:
            load_pictures([uri], LIMITS)
            if width and uri != uris[0]:
                write_picture(Path(uri), width)
    load_pictures(uris, LIMITS)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"{uris[count]}: expected the file as it was when it was read before, found that it has "
        f"changed since ({count} files so far)"
        for count in (1, 2)
    ]


def test_a_picture_with_one_other_pixel_has_two_colours(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("data.media.pictures._said_flat", threading.Event())
    image = Image.new("RGB", (101, 67))
    image.putpixel((50, 33), (0, 0, 1))
    uris = [str(tmp_path / f"{index}.png") for index in range(9)]
    for uri in uris:
        image.save(uri)
    load_pictures(uris, LIMITS)
    assert not caplog.records


def smooth(width, height):
    """Return a picture without detail that shrinking could lose."""
    small = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "mode", "shape"),
    [
        ("a.jpg", "RGB", (600, 800)),  # JPEG's own scales are powers of 2
        ("a.png", "RGB", (400, 534)),
        ("a.png", "P", (400, 534)),
        ("a.tiff", "I;16", (400, 534)),
    ],
)
def test_a_large_frame_is_shrunk_to_what_a_frame_can_need(tmp_path, name, mode, shape):
    uri = str(tmp_path / name)
    image = smooth(1601, 1200)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.convert(mode).save(uri)
    pictures, _ = load_pictures([uri], LIMITS, frames={uri})
    assert pictures[uri].shape[0] == shape[0]
    assert pictures[uri].shape[1] in (shape[1], shape[1] + 1)
    frame = Picture(uri, Kind.VIDEO)
    whole = {uri: load_picture(uri, LIMITS)}
    assert whole[uri].shape == (1200, 1601, 3)
    shown, full = (
        np.asarray(fit(frame, some, LIMITS, factor=32), int) for some in (pictures, whole)
    )
    assert np.abs(shown - full).mean() < 4


def test_a_turned_frame_is_shrunk_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    uri = str(tmp_path / "a.jpg")
    smooth(1600, 1200).save(uri, exif=exif)
    assert load_pictures([uri], LIMITS, frames={uri})[0][uri].shape == (800, 600, 3)


def test_a_frame_that_is_shown_as_a_picture_too_is_not_shrunk():
    shown = [
        *(Picture(uri, Kind.VIDEO) for uri in ("frame", "still", "page")),
        Picture("still", Kind.IMAGE),
        Picture("page", Kind.PAGE, Box(0, 0, 0.5, 0.5)),
        Picture("other", Kind.IMAGE),
    ]
    assert frames_only(shown) == {"frame"}


def test_a_picture_keeps_the_pixels_that_its_crops_can_show(tmp_path):
    uri = str(tmp_path / "a.png")
    smooth(2000, 1500).save(uri)
    assert load_picture(uri, MediaConfig()).shape == (1500, 2000, 3)


@pytest.mark.parametrize("most", [1, 4, 9, 30])
def test_a_shrunk_picture_still_gives_its_smallest_crop_all_that_a_crop_may_have(tmp_path, most):
    uri = str(tmp_path / "a.png")
    smooth(1000, 800).save(uri)
    few = {
        f"{name}_{end}_pixels": 1 for name in ("image", "page", "frame") for end in ("min", "max")
    }
    limits = MediaConfig(**few, crop_min_pixels=1, crop_max_pixels=most)
    height, width, _ = load_picture(uri, limits).shape
    assert (height < 800) == (most <= 9)
    assert height * width * MIN_BOX_SIDE**2 >= most
    assert height / width == pytest.approx(0.8, rel=0.01)


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
