"""Video files: their frames by number, few of them decoded, and every refusal by its file."""

import shutil
import struct
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from configs.common import MediaConfig
from data.containers.video_files import decode_frames, frame_count, frame_times
from data.errors import DataError
from data.media.frames import frames_only
from data.media.pictures import load_picture, load_pictures
from data.types import Kind, Picture
from tests.builders import write_picture
from tests.inputs.media_files import colour, write_pdf, write_video

MOST = MediaConfig.max_decode_pixels
NEAR = 20
"""Levels of 255 by which a coded frame's colour may differ from what was drawn."""


def load(path, *numbers, **limits):
    """Return pictures by number, and the reasons of those that failed."""
    pictures, failed = load_pictures(
        [f"{path}#frame={number}" for number in numbers], MediaConfig(**limits)
    )
    return {int(uri.rpartition("=")[2]): pixels for uri, pixels in pictures.items()}, failed


def assert_colours(pictures, numbers):
    assert sorted(pictures) == sorted(numbers)
    for number in numbers:
        mean = pictures[number].mean(axis=(0, 1))
        assert np.abs(mean - colour(number)).max() < NEAR, number


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.avi", "libx264"),
        ("a.ts", "libx264"),
    ],
)
def test_frames_are_found_by_their_number_in_the_order_shown(tmp_path, name, codec):
    path = write_video(tmp_path / name, 60, codec=codec, gop=7)
    assert frame_count(str(path)) == 60
    numbers = [0, 1, 6, 7, 20, 21, 58, 59]
    pictures, failed = load(path, *numbers)
    assert failed == {}
    assert_colours(pictures, numbers)
    assert pictures[0].shape == (48, 64, 3)
    assert pictures[0].dtype == np.uint8


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_times_count_from_the_first_frame_whatever_the_container_begins_with(tmp_path, name):
    path = write_video(tmp_path / name, 51)
    assert frame_times(str(path), [0, 25, 30, 50]) == pytest.approx((0, 1, 1.2, 2), abs=2e-3)


def test_frames_of_no_steady_rate_have_their_own_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4, times=(0, 1, 50, 75))
    assert frame_times(str(path), range(4)) == (0.0, 0.04, 2.0, 3.0)
    assert frame_times(str(path), [2, 0]) == (2.0, 0.0)
    with pytest.raises(DataError, match=r"a\.mp4: expected a frame 4, found 4 frames"):
        frame_times(str(path), [0, 4])


def test_every_frame_comes_out_alone_as_it_does_with_all_others(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30, gop=8)
    pictures, failed = load(path, *range(30))
    assert failed == {}
    assert_colours(pictures, range(30))
    for number in range(30):
        assert (load_picture(f"{path}#frame={number}", MediaConfig()) == pictures[number]).all()


def test_a_file_of_one_frame_is_a_video_of_one_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1)
    assert frame_count(str(path)) == 1
    assert_colours(load(path, 0)[0], [0])


def test_what_lies_between_wanted_frames_is_not_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", 600, size=(160, 120), gop=30)

    def cpu_s(numbers):
        begun = time.thread_time()
        decoded = [number for number, _ in decode_frames(str(path), numbers, max_pixels=MOST)]
        assert decoded == numbers
        return time.thread_time() - begun

    assert frame_count(str(path)) == 600  # remembered from here on
    # A frame of each of 20 groups, so that all are decoded, and of the first and the last one.
    assert cpu_s([0, 599]) < cpu_s([0, *range(29, 600, 30)]) / 3


def test_a_frame_that_players_do_not_show_has_no_number(tmp_path):
    path = write_video(tmp_path / "a.webm", 12, codec="libvpx", gop=30)
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    fifth = packets[4]
    place = packets.index(fifth)  # frames before it may have the same bytes
    hidden = bytes([fifth[0] & ~0x10]) + fifth[1:]
    path.write_bytes(path.read_bytes().replace(fifth, hidden, 1))
    assert frame_count(str(path)) == 11
    pictures, failed = load(path, *range(11))
    assert failed == {}
    shown = [*range(place), *range(place + 1, 12)]
    for number, drawn in enumerate(shown):
        assert np.abs(pictures[number].mean(axis=(0, 1)) - colour(drawn)).max() < NEAR


def test_frames_are_numbered_by_their_times_though_these_are_negative_and_uneven(tmp_path):
    times = [-50, -3, 0, 1, 40, 41, 42, 900]
    path = write_video(tmp_path / "a.mkv", 8, times=times, stream={"time_base": Fraction(1, 25)})
    pictures, failed = load(path, *range(8))
    assert failed == {}
    assert_colours(pictures, range(8))


def test_frames_without_times_are_numbered_by_their_order(tmp_path):
    path = write_video(tmp_path / "a.ts", 12, gop=6)
    content, place = bytearray(path.read_bytes()), -1
    while (place := content.find(b"\0\0\1\xe0", place + 1)) >= 0:
        content[place + 7] &= 0x3F  # this packet has no times
    path.write_bytes(content)
    with av.open(str(path)) as file:
        assert {packet.pts for packet in file.demux(video=0)} == {None}
    pictures, failed = load(path, 0, 5, 11)
    assert failed == {}
    assert_colours(pictures, [0, 5, 11])


def test_frames_of_one_time_are_numbered_by_their_order(tmp_path):
    path = write_video(tmp_path / "a.mp4", 6, codec="mpeg4")
    content = bytearray(path.read_bytes())
    place = content.index(b"stts") + 8  # the table of durations: one of 0 for all frames
    assert struct.unpack(">II", content[place : place + 8])[:2] == (1, 6)
    content[place + 8 : place + 12] = bytes(4)
    path.write_bytes(content)
    assert frame_count(str(path)) == 6
    pictures, failed = load(path, 0, 3, 5)
    assert failed == {}
    assert_colours(pictures, [0, 3, 5])


MATRICES = {
    Image.Transpose.ROTATE_270: (0, 1, -1, 0),
    Image.Transpose.ROTATE_180: (-1, 0, 0, -1),
    Image.Transpose.ROTATE_90: (0, -1, 1, 0),
}
"""What a phone writes that was held so, by what shows the frame upright."""


@pytest.mark.parametrize("turn", MATRICES)
def test_a_frame_is_turned_as_players_show_it(tmp_path, turn):
    path = tmp_path / "a.mp4"
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(video.encode())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in MATRICES[turn])
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    shown = np.asarray(Image.fromarray(pixels).transpose(turn)).astype(int)
    assert np.abs(load_picture(f"{path}#frame=0", MediaConfig()) - shown).mean() < NEAR


@pytest.mark.parametrize(("aspect", "shape"), [((4, 3), (36, 64, 3)), ((1, 2), (48, 32, 3))])
def test_pixels_that_are_no_squares_become_squares(tmp_path, aspect, shape):
    stream = {"sample_aspect_ratio": Fraction(*aspect)}
    path = write_video(tmp_path / "a.mp4", 2, stream=stream)
    assert load_picture(f"{path}#frame=1", MediaConfig()).shape == shape


def test_a_frame_is_shrunk_to_what_a_frame_can_need(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2, size=(320, 240))
    uri = f"{path}#frame=1"
    limits = MediaConfig(frame_min_pixels=1, frame_max_pixels=80 * 60)
    pictures, _ = load_pictures([uri], limits, frames=frames_only([Picture(uri, Kind.VIDEO)]))
    assert pictures[uri].shape == (60, 80, 3)


def test_the_limits_of_pictures_hold_for_video_files(tmp_path):
    path = write_video(tmp_path / "a.mp4", 8)
    _, failed = load(path, 0, 7, max_file_bytes=100)
    assert len(failed) == 2
    assert all("data.media.max_file_bytes=100" in why for why in failed.values())
    _, failed = load(path, 0, max_decode_pixels=1000)
    assert f"{path}: frames of 64x48 pixels, more than data.media.max_decode" in str(failed)
    with pytest.raises(DataError, match=r"max_step_bytes=20000.*a\.mp4#frame="):
        load(path, *range(8), max_step_bytes=20000)


def test_a_frame_that_cannot_be_decoded_fails_alone(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20, codec="mjpeg", stream={"pix_fmt": "yuvj420p"})
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, size = packets[7]
    content[position : position + size] = bytes(size)
    path.write_bytes(content)
    pictures, failed = load(path, 0, 7, 19)
    assert_colours(pictures, [0, 19])
    assert list(failed) == [f"{path}#frame=7"]
    assert failed[f"{path}#frame=7"].startswith(f"{path}#frame=7: the frame cannot be decoded")


def test_a_frame_beyond_the_last_one_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    pictures, failed = load(path, 4, 5)
    assert list(pictures) == [4]
    assert "#frame=5: the frame cannot be decoded" in failed[f"{path}#frame=5"]


def test_a_file_that_is_cut_short_gives_the_frames_it_has(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", 40, gop=5)
    content = whole.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: len(content) * 2 // 3])
    frames = frame_count(str(path))
    assert 5 < frames < 40
    assert_colours(load(path, 0, 4)[0], [0, 4])


def test_a_file_that_is_another_now_is_counted_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    assert frame_count(str(path)) == 5
    write_video(path, 9)
    assert frame_count(str(path)) == 9


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found an empty file; copy"),
        (b"RIFF\x24\0\0\0AVI LIST", r"found a video \(AVI\); it is damaged, cut short"),
        (b"no video", "found a text that begins 'no video'; check the path"),
        (b"#EXTM3U\n#EXTINF:1,\nb.mp4\n#EXT-X-ENDLIST\n", "found a text that begins '#EXTM3U"),
        (b"ffconcat version 1.0\nfile b.mp4\n", "found a text that begins 'ffconcat"),
        (b"FLV\x01\x05\0\0\0\x09\0\0\0\0", r"found a video \(FLV\)"),
    ],
)
def test_what_is_no_video_is_called_what_it_is(tmp_path, content, words):
    write_video(tmp_path / "b.mp4", 2)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: not a readable video: expected MP4.*{words}"):
        frame_count(str(path))
    _, failed = load(path, 0)
    assert failed[f"{path}#frame=0"].startswith(f"{path}: not a readable video")


def test_other_files_that_are_called_videos_are_refused(tmp_path):
    shutil.copy(write_picture(tmp_path / "a.png"), tmp_path / "a.mp4")
    shutil.copy(write_pdf(tmp_path / "a.pdf"), tmp_path / "b.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.mp4", "GIF")
    whole = write_video(tmp_path / "whole.mp4", 5).read_bytes()
    (tmp_path / "d.mp4").write_bytes(whole[: whole.index(b"moov")])
    with av.open(str(tmp_path / "e.mp4"), "w") as file:
        sound = file.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        file.mux(sound.encode(silence))
        file.mux(sound.encode())
    with av.open(str(tmp_path / "f.mp4"), "w") as file:
        file.add_stream("libx264", rate=25)
        file.start_encoding()
    reasons = {}
    for name in "abcdef":
        with pytest.raises(DataError, match=rf"/{name}\.mp4: ") as error:
            frame_count(str(tmp_path / f"{name}.mp4"))
        reasons[name] = str(error.value)
    assert "found a damaged PNG" in reasons["a"]
    assert "found a PDF; name a page of it" in reasons["b"]
    assert "found a damaged GIF" in reasons["c"]
    assert "it is damaged, cut short" in reasons["d"]
    for name in "ef":
        assert "expected a video stream, found none; replace or remove" in reasons[name]


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    _, failed = load(tmp_path / "a.mp4", 0)
    assert "picture not found" in failed[f"{tmp_path / 'a.mp4'}#frame=0"]


def test_a_name_is_never_an_address_in_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "http:" / "a.mp4", 3)
    assert frame_count("http:/a.mp4") == 3
