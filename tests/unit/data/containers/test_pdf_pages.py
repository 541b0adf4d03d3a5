"""Pages of PDFs: drawn on white at the size that is needed, and refused by file and page."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from configs.common import MediaConfig
from data.containers.pdf_pages import DOTS_PER_INCH, draw_page, page_count, page_number
from data.errors import DataError
from data.media.pictures import load_picture, load_pictures
from tests.inputs.media_files import encrypt, write_pdf

LARGE = 1 << 40


def square(pixels):
    """Return the side of the red square as a share of the page's height; white around it."""
    red = (pixels == (255, 0, 0)).all(axis=-1)
    white = (pixels == 255).all(axis=-1)
    assert (red | white).mean() > 0.99
    assert white[-1, -1]
    return np.sqrt(red.sum()) / len(pixels)


def test_a_page_is_drawn_by_its_number_on_white(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", 3)
    uris = [f"{path}#page={page}" for page in (1, 2, 3)]
    pictures, failed = load_pictures(uris, MediaConfig())
    assert failed == {}
    for side, uri in zip((0.1, 0.2, 0.3), uris, strict=True):
        assert pictures[uri].dtype == np.uint8
        assert pictures[uri].flags.c_contiguous
        assert abs(square(pictures[uri]) - side) < 0.01


def test_a_page_gets_the_pixels_of_print_or_those_that_are_needed(tmp_path):
    path = str(write_pdf(tmp_path / "a.pdf", size=(144, 72)))
    printed = (DOTS_PER_INCH, 2 * DOTS_PER_INCH, 3)
    assert (
        draw_page(path, 1, least_pixels=100, useful_pixels=LARGE, max_pixels=LARGE).shape == printed
    )
    assert draw_page(
        path, 1, least_pixels=2_000_000, useful_pixels=LARGE, max_pixels=LARGE
    ).shape == (1000, 2000, 3)
    assert draw_page(path, 1, least_pixels=100, useful_pixels=5000, max_pixels=LARGE).shape == (
        50,
        100,
        3,
    )
    assert draw_page(path, 1, least_pixels=100, useful_pixels=LARGE, max_pixels=5000).shape == (
        50,
        100,
        3,
    )


def test_a_page_that_is_a_frame_is_drawn_no_larger_than_frames_are(tmp_path):
    uri = f"{write_pdf(tmp_path / 'a.pdf')}#page=1"
    limits = MediaConfig(frame_min_pixels=1, frame_max_pixels=5000)
    assert load_picture(uri, limits, frame=True).shape == (50, 100, 3)


@pytest.mark.parametrize("size", [(20000, 20000), (0.001, 20000), (14400, 0.01)])
def test_a_huge_or_flat_page_is_drawn_within_the_limit(tmp_path, size):
    path = write_pdf(tmp_path / "a.pdf", size=size)
    pixels = load_picture(f"{path}#page=1", MediaConfig(max_decode_pixels=1 << 20))
    assert 0.9 * (1 << 10) < pixels.shape[0] * pixels.shape[1] <= 1 << 20


def test_the_limits_of_pictures_hold_for_pdfs(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", 2)
    with pytest.raises(DataError, match=rf"{path}#page=2: .*data\.media\.max_file_bytes=100;"):
        load_picture(f"{path}#page=2", MediaConfig(max_file_bytes=100))
    with pytest.raises(DataError, match=r"max_step_bytes=9999.*a\.pdf#page="):
        load_pictures([f"{path}#page=1", f"{path}#page=2"], MediaConfig(max_step_bytes=9999))


@pytest.mark.parametrize("page", [0, 3, 10**17])
def test_a_page_outside_the_file_is_refused(tmp_path, page):
    path = write_pdf(tmp_path / "a.pdf", 2)
    with pytest.raises(
        DataError, match=f"{path}: expected a page from 1 to 2, found '#page={page}"
    ):
        load_picture(f"{path}#page={page}", MediaConfig())


def test_a_pdf_of_several_pages_needs_a_number(tmp_path):
    assert page_number("a.pdf", None, pages=1) == 1
    assert page_number("a.pdf", 7, pages=7) == 7
    with pytest.raises(DataError, match=r"^a\.pdf: .*one of its 7 pages.*'#page=1' to '#page=7'"):
        page_number("a.pdf", None, pages=7)


def test_ten_thousand_pages_are_counted(tmp_path):
    assert page_count(str(write_pdf(tmp_path / "a.pdf", 10_000))) == 10_000


def test_an_encrypted_pdf_is_refused(tmp_path):
    path = encrypt(write_pdf(tmp_path / "a.pdf"))
    with pytest.raises(DataError, match=f"^{path}: the PDF is encrypted; save it without"):
        load_picture(f"{path}#page=1", MediaConfig())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found an empty file; copy"),
        (b"no pdf", "found a text that begins 'no pdf'; check the path"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "found a PNG; only PDFs have pages"),
        (b"%PDF-1.7\n%\xe2", "found a damaged PDF; copy or download it again"),
    ],
)
def test_what_is_no_pdf_is_called_what_it_is(tmp_path, content, words):
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: not a readable PDF: expected a PDF, {words}"):
        load_picture(f"{path}#page=1", MediaConfig())


def test_a_missing_pdf_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"a\.pdf#page=1: picture not found"):
        load_picture(f"{tmp_path / 'a.pdf'}#page=1", MediaConfig())


def test_threads_take_turns(tmp_path):
    paths = [str(write_pdf(tmp_path / f"{index}.pdf", 3)) for index in range(8)]

    def drawn(path):
        return [
            square(draw_page(path, p, least_pixels=9, useful_pixels=5000, max_pixels=LARGE))
            for p in (1, 2, 3)
        ]

    with ThreadPoolExecutor(8) as pool:
        for sides in pool.map(drawn, paths * 8):
            assert np.allclose(sides, (0.1, 0.2, 0.3), atol=0.03)
