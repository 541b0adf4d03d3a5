"""Files decoded beside the driver: pixels, reasons, and a decoder that crashes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from cluster.jobs.embedder import contrastive_batches
from cluster.jobs.warm_start import encode
from cluster.pictures import Decoder
from cluster.side_process import RETRIES
from configs.common import DataConfig, MediaConfig, RunConfig
from configs.schema import EmbedderConfig, WarmStartConfig
from data.errors import DataError
from data.media.pictures import load_picture, load_pictures
from data.model.chat import ChatEncoder
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.types import Content, Item, Kind, Picture, Video, merge_pictures
from tests.builders import WITHOUT_AN_ITEM, loaded_set, make_pair, write_picture
from tests.integration.conftest import MEDIA
from tests.workers import CrashesAt

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_files_come_decoded_with_sizes_and_reasons(decoder: Decoder, tmp_path: Path) -> None:
    wide = str(write_picture(tmp_path / "wide.png", 40, 30))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    shared, failed = decoder.share([wide, str(broken), wide], MediaConfig())
    found = merge_pictures(ray.get(list(shared.refs)))
    assert list(found) == [wide]
    assert (found[wide] == load_picture(wide, MediaConfig())).all()
    assert shared.sizes == {wide: (30, 40)}
    assert list(failed) == [str(broken)]


def test_what_a_decoder_raises_is_the_reason_of_its_file_alone(
    decoder: Decoder, tmp_path: Path
) -> None:
    good = str(write_picture(tmp_path / "a.png"))
    broken = str(WITHOUT_AN_ITEM)
    shared, failed = decoder.share([good, broken], MediaConfig())
    assert list(shared.sizes) == [good]
    assert list(failed) == [broken]
    assert failed[broken].startswith(f"{broken}: not a readable picture (RuntimeError: ")


def test_frames_come_shrunk_and_too_many_bytes_are_refused(
    decoder: Decoder, tmp_path: Path
) -> None:
    uri = str(write_picture(tmp_path / "a.png", 40, 30))
    limits = MediaConfig(frame_min_pixels=100, frame_max_pixels=100, max_step_bytes=3600)
    shared, _ = decoder.share([uri], limits, frames={uri})
    assert shared.sizes == {uri: (10, 14)}
    other = str(write_picture(tmp_path / "b.png", 40, 30))
    with pytest.raises(DataError, match=f"largest {uri} "):
        decoder.share([uri, other], limits)


def test_a_block_that_holds_more_than_a_step_is_halved(decoder: Decoder, tmp_path: Path) -> None:
    uris = [str(write_picture(tmp_path / f"{name}.png", 40, 30)) for name in "abc"]
    contents: list[Content] = [(Picture(uri, Kind.IMAGE),) for uri in uris]
    frame = Picture(uris[2], Kind.VIDEO)  # shown as a frame in one block, as a picture in another
    contents += [(Video((frame,), (0.0,)),), ("text",)]
    limits = MediaConfig(frame_min_pixels=100, frame_max_pixels=100, max_step_bytes=2 * 3600)
    blocks = list(decoder.share_blocks("abcvt", contents, limits, block=2))
    assert [(requests, shared.sizes) for requests, shared, _ in blocks] == [
        ("ab", dict.fromkeys(uris[:2], (30, 40))),
        ("cv", {uris[2]: (30, 40)}),
        ("t", {}),
    ]
    halved = list(decoder.share_blocks("abcvt", contents, limits, block=5))
    assert [requests for requests, _, _ in halved] == ["ab", "c", "vt"]
    assert not any(failed for _, _, failed in halved)
    small = MediaConfig(frame_min_pixels=100, frame_max_pixels=100, max_step_bytes=3599)
    [first, second] = decoder.share_blocks("bv", contents[1:4:2], small, block=2)
    assert first[1].refs == ()
    assert "max_step_bytes=3599" in first[2][uris[1]]
    assert (second[1].sizes, second[2]) == ({uris[2]: (10, 14)}, {})


def test_no_files_are_no_pictures(decoder: Decoder) -> None:
    shared, failed = decoder.share([], MediaConfig())
    assert (shared.refs, shared.sizes, failed) == ((), {}, {})


def test_a_file_that_ends_the_decoder_is_found_and_the_others_are_decoded(
    decoder: Decoder, tmp_path: Path
) -> None:
    good = [str(write_picture(tmp_path / f"{name}.png")) for name in "acd"]
    deadly = tmp_path / "b.png"
    deadly.write_bytes(b"of a size of its own")
    limit = CrashesAt(deadly.stat().st_size, tmp_path / "log")
    shared, failed = decoder.share([*good, str(deadly)], MediaConfig(max_file_bytes=limit))
    assert sorted(shared.sizes) == good
    reason = f"{deadly}: ends the process that decodes it; replace or remove it"
    assert failed == {str(deadly): reason}
    tries = RETRIES + 1
    assert (tmp_path / "log").read_text() == "x" * tries * 3  # of four files, of two, alone


def test_nothing_else_that_waits_is_blamed_for_it(decoder: Decoder, tmp_path: Path) -> None:
    good, deadly = str(write_picture(tmp_path / "good.png")), tmp_path / "deadly.png"
    deadly.write_bytes(b"of a size of its own")
    limit = CrashesAt(deadly.stat().st_size, tmp_path / "log")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(decoder.share, [str(deadly)], MediaConfig(max_file_bytes=limit))
        second = threads.submit(decoder.share, [good], MediaConfig())
    assert list(first.result()[1]) == [str(deadly)]
    assert second.result()[1] == {}


def test_the_batches_of_embedder_and_warm_start_come_without_pixels_in_the_driver(
    decoder: Decoder, encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [str(write_picture(tmp_path / f"{name}.png", 150, 90)) for name in "ab"]
    query, target = (Item(text="what color", kind=Kind.IMAGE, uris=(uri,)) for uri in uris)
    pair = make_pair("a", query=query, target=target)
    run, data = RunConfig(dir="unused"), DataConfig(media=MEDIA)
    contents = [(uri, (Picture(uri, Kind.IMAGE), "what color"), "red") for uri in uris]
    expected, _ = load_pictures(uris, MEDIA)

    def refuse(*_: object) -> None:
        raise AssertionError("the driver decodes")

    monkeypatch.setattr("data.media.pictures._decode", refuse)
    feed = PairFeed(
        [loaded_set(name="set", pairs=(pair,), bad_rows=())], {"set": 1.0}, batch=1, seed=0
    )
    config = EmbedderConfig(run=run, model="unused", data=data, sub_batches=1)
    (rows, shown), _ = next(contrastive_batches(feed, config, Relevance([pair]), decoder))
    supervised = WarmStartConfig(run=run, model="unused", data=data)
    samples, described = encode(contents, encoder, supervised, decoder)
    assert len(rows) == 1
    for shared in (shown, described):
        assert shared.sizes == dict.fromkeys(uris, (90, 150))
        for uri, pixels in merge_pictures(ray.get(list(shared.refs))).items():
            assert (pixels == expected[uri]).all()
    for sample, (_, content, _) in zip(samples, contents, strict=True):
        assert sample.prompt_ids.tolist() == encoder.encode(content, expected).expanded
