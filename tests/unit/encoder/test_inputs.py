"""What a user may give an Encoder, and how it is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from configs.common import MediaConfig
from data.errors import DataError
from data.media.pictures import load_picture
from data.types import Item, Kind
from encoder.inputs import InputReader
from tests.builders import write_picture
from tests.inputs.media_files import write_pdf, write_video

MEDIA = MediaConfig(max_frames=4, max_file_bytes=1 << 16, max_decode_pixels=10_000)


@pytest.fixture
def reader(tmp_path):
    (tmp_path / "kept").mkdir()
    return InputReader(MEDIA, tmp_path / "kept")


def png(image):
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def noise(width=8, height=6):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_text_is_a_text_and_read_as_the_jobs_read_it(reader):
    assert reader.read(" red\r\nstar ", 0).item == Item(text="red\nstar")
    assert reader.read("/etc/hosts", 0).item.kind is Kind.TEXT


def test_an_instruction_of_the_call_counts_where_the_input_has_none(tmp_path):
    reader = InputReader(MEDIA, tmp_path, instruction="find it")
    assert reader.read("red", 0).item.instruction == "find it"
    own = {"text": "red", "instruction": " name it "}
    assert reader.read(own, 0).item.instruction == "name it"


def test_a_path_is_what_its_name_says(reader, tmp_path):
    picture = write_picture(tmp_path / "a.png")
    assert reader.read(picture, 0).item == Item(text="", kind=Kind.IMAGE, uris=(str(picture),))
    pdf = write_pdf(tmp_path / "a.pdf", 3)
    page = reader.read(Path(f"{pdf}#page=2"), 0).item
    assert (page.kind, page.uris) == (Kind.PAGE, (f"{pdf}#page=2",))
    video = reader.read(write_video(tmp_path / "a.mp4"), 0).item
    assert (video.kind, len(video.uris)) == (Kind.VIDEO, 4)


def test_a_relative_path_starts_where_the_process_is(reader, tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert reader.read({"image": "a.png"}, 0).item.uris == (str(tmp_path / "a.png"),)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_a_picture_in_memory_has_the_pixels_of_its_file(reader, tmp_path, mode):
    path = tmp_path / "a.tiff"
    image = noise().convert("L").convert(mode) if mode == "I;16" else noise().convert(mode)
    image.save(path)
    expected = load_picture(str(path), MEDIA)
    with Image.open(path) as opened:
        for shown in (image, opened):
            [uri] = reader.read({"image": shown}, 0).item.uris
            np.testing.assert_array_equal(reader.pixels[uri], expected)
    [uri] = reader.read({"image": path.read_bytes()}, 0).item.uris
    np.testing.assert_array_equal(load_picture(uri, MEDIA), expected)


def test_a_picture_in_memory_is_turned_as_its_exif_data_say(reader, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise().save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        [uri] = reader.read(opened, 0).item.uris
    assert reader.pixels[uri].shape == (8, 6, 3)


def test_equal_pictures_have_one_address_and_others_have_their_own(reader):
    first, same, other = (
        reader.read(image, 0).item.uris for image in (noise(), noise(), noise().resize((6, 8)))
    )
    assert first == same != other
    flat, tall = (reader.read(Image.new("RGB", size), 0).item.uris for size in ((4, 2), (2, 4)))
    assert flat != tall


def test_bytes_of_a_pdf_and_of_a_video_are_read_as_files(reader, tmp_path):
    pdf = write_pdf(tmp_path / "a.pdf").read_bytes()
    [page] = reader.read({"page": pdf}, 0).item.uris
    assert page.endswith(".pdf#page=1")
    video = write_video(tmp_path / "a.mp4")
    named, kept = (reader.read({"video": value}, 0).item for value in (video, video.read_bytes()))
    assert kept.times == named.times
    assert [uri.partition("#")[2] for uri in kept.uris] == [
        uri.partition("#")[2] for uri in named.uris
    ]
    with pytest.raises(DataError, match="one of its 2 pages"):
        reader.read({"page": write_pdf(tmp_path / "b.pdf", 2).read_bytes()}, 0)


def test_frames_may_be_named_one_by_one_in_any_form(reader, tmp_path):
    path = write_picture(tmp_path / "a.png")
    frames = [path, str(path), path.read_bytes(), noise(), path, path]
    item = reader.read({"video": frames, "text": "red"}, 0).item
    assert len(item.uris) == 4
    assert item.times == (0.0, 1.0, 1.5, 2.5)
    assert reader.read({"video": frames, "fps": 10}, 0).item.times == (0.0, 0.2, 0.3, 0.5)


def test_a_folder_of_frames_is_a_video(reader, tmp_path):
    for number in (1, 2, 10):
        write_picture(tmp_path / "frames" / f"{number}.png")
    item = reader.read({"video": tmp_path / "frames"}, 0).item
    assert [Path(uri).name for uri in item.uris] == ["1.png", "10.png"]


def test_frames_of_a_video_file_are_chosen_by_number_or_rate(reader, tmp_path):
    video = write_video(tmp_path / "a.mp4", 50)  # two seconds

    def frames(**settings):
        item = reader.read({"video": video, **settings}, 0).item
        return [int(uri.partition("#frame=")[2]) for uri in item.uris]

    assert frames() == [0, 16, 33, 49]
    assert frames(max_frames=2) == frames(fps=1) == [0, 49]
    assert frames(max_frames=1) == frames(fps=0.1) == [0]
    assert frames(fps=25) == frames()


def test_frames_that_are_shown_as_pictures_have_no_times(tmp_path):
    media = MediaConfig(max_frames=3, video="frames")
    item = InputReader(media, tmp_path).read(write_video(tmp_path / "a.mp4"), 0).item
    assert (len(item.uris), item.times) == (3, ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input 7: expected a text, or one of"),
        ("\ud83d", "field 'text': expected text, found half a character"),
        (b"red", "found bytes"),
        (5, "found int"),
        ({"txt": "red"}, "found 'txt'; the nearest name is 'text'"),
        ({"text": 5}, "field 'text': expected text, found int"),
        ({"image": "a.png", "video": "b.mp4"}, "found image and video"),
        ({"image": []}, "found an empty list"),
        ({"image": 5}, "field 'image': expected a path, bytes or a picture of PIL, found int"),
        ({"image": "/nowhere/a.png"}, "expected a file, found none at /nowhere/a.png"),
        ({"image": "https://example.org/a.png"}, "download the file and name its path"),
        ({"video": "/nowhere/a.mp4"}, "expected a file, found none at /nowhere/a.mp4"),
        ({"video": "/nowhere"}, "a folder of frames or a list of them"),
        ({"video": b"no video"}, "not a readable video"),
        ({"video": ["a.png"], "max_frames": 5}, "max_frames from 1 to data.media.max_frames=4"),
        ({"video": ["a.png"], "max_frames": 0}, "a number above 0 as max_frames, found 0"),
        ({"video": ["a.png"], "fps": "2"}, "a number above 0 as fps, found '2'"),
        ({"text": "red", "fps": 2}, "beside a video only"),
        ({"image": b"x" * (1 << 17)}, "more than data.media.max_file_bytes=65536"),
        (Image.new("RGB", (101, 100)), "more than data.media.max_decode_pixels=10000"),
        (Path("/nowhere/a.txt"), "expected the name of a picture, a video or a PDF"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(reader, given, message):
    with pytest.raises(DataError) as refused:
        reader.read(given, 7)
    assert message in str(refused.value)
    assert "input 7" in str(refused.value)


def test_a_picture_that_was_opened_and_is_cut_is_refused(reader):
    cut = Image.open(io.BytesIO(png(noise(90, 90))[:-2000]))
    with pytest.raises(DataError, match="input 3, field 'image': not a readable picture"):
        reader.read(cut, 3)
