"""What an Encoder makes of calls, with engines that compute nothing."""

import asyncio
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs.common import DataConfig, MediaConfig
from configs.schema import EncoderConfig
from data.errors import ConfigError, DataError, EngineLost
from data.media.pictures import load_pictures
from data.model.chat import load_encoder
from data.model.sentence_transformer import write_sentence_transformer
from data.stores.quantized import Ranges, packed_bits
from data.types import DroppedTrajectory, Kind, Side, pictures_in
from encoder.encoder import Encoder, with_embedder
from encoder.engines import LoadedPictures
from tests.builders import TRACES, make_trajectory, write_picture
from tests.patience import PATIENCE_S
from tests.tiny_model import write_tiny_model

MEDIA = MediaConfig(
    **{f"{name}_min_pixels": 32 * 32 for name in ("image", "page", "frame", "crop")},
    **{f"{name}_max_pixels": 64 * 64 for name in ("image", "page", "frame", "crop")},
    max_frames=4,
    max_step_bytes=1 << 20,
)
WIDTH = 8
TRACE = TRACES[Kind.TEXT]


class RecordingEngines:
    """Engines whose vectors follow from the content, and that note what they are asked."""

    def __init__(self):
        self.asked, self.embedded, self.pictures, self.closed = [], [], [], False
        self.lost = False
        self.go = threading.Event()
        self.go.set()

    async def start(self):
        return WIDTH

    def share(self, uris, pixels, *, frames):
        loaded, failed = load_pictures(uris, MEDIA, frames=frames)
        return LoadedPictures({**loaded, **pixels}), failed

    async def generate(self, requests, pictures):
        self.asked.append(requests)
        return [
            DroppedTrajectory(request.key, "generation_failed", "too long")
            if "broken" in request.content[-1]
            else replace(make_trajectory(0, Side.QUERY, text=TRACE), key=request.key)
            for request in reversed(requests)
        ]

    async def embed(self, requests, pictures):
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        if self.lost:
            raise EngineLost("the engine's process died")
        self.embedded.append(requests)
        self.pictures.append(pictures)
        for request in requests:
            assert {
                picture.uri for picture in pictures_in(request.content)
            } <= pictures.sizes.keys()
        refused = {r.key: "vLLM refused" for r in requests if "unreadable" in str(r.content[0])}
        return {r.key: vector(r.content) for r in requests if r.key not in refused}, refused

    def healthy(self):
        return not self.lost

    async def close(self):
        self.closed = True


def vector(content):
    numbers = np.frombuffer(str(content[0]).encode().ljust(WIDTH)[:WIDTH], np.uint8).astype(float)
    return ((numbers - 90) / np.linalg.norm(numbers - 90)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("encoder") / "tiny")
    write_sentence_transformer(folder, MEDIA, prompts={"stars": "find the star"})
    return folder


@pytest.fixture
def made(folder):
    """Return a function that makes an encoder, and its engines."""
    encoders = []

    def make(reasoner="", **changes):
        config = with_embedder(EncoderConfig(data=DataConfig(media=MEDIA), **changes), folder)
        engines = RecordingEngines()
        encoders.append(Encoder(reasoner and str(folder), config, engines))
        return encoders[-1], engines

    yield make
    for encoder in encoders:
        encoder.close()


def test_one_input_is_a_vector_and_a_list_is_a_row_each(made):
    encoder, _ = made()
    assert encoder.dimensions == WIDTH
    single, rows = encoder.encode_query("red star"), encoder.encode_query(["red star", "blue"])
    assert (single.shape, single.dtype) == ((WIDTH,), np.float32)
    np.testing.assert_array_equal(rows[0], single)
    assert encoder.encode([]).shape == (0, WIDTH)
    np.testing.assert_array_equal(encoder.encode(["blue"]), encoder.encode_document(["blue"]))


def test_a_long_list_is_encoded_in_blocks_and_keeps_its_order(made):
    encoder, engines = made(block=4)
    texts = [f"{number:08d}" for number in range(11)]
    vectors = encoder.encode(texts)
    assert sorted(len(requests) for requests in engines.embedded) == [3, 4, 4]
    np.testing.assert_array_equal(vectors, [vector((text,)) for text in texts])


def test_equal_inputs_are_embedded_once_and_no_two_requests_share_a_key(made):
    encoder, engines = made(reasoner="tiny")
    encoder.encode(["red", "blue", "red"])
    encoder.encode(["red"])
    assert [len(requests) for requests in engines.embedded] == [2, 1]
    assert [len(requests) for requests in engines.asked] == [2, 1]
    for calls in (engines.embedded, engines.asked):
        keys = [request.key for requests in calls for request in requests]
        assert len(set(keys)) == len(keys)


def test_a_reasoner_writes_greedy_traces_of_the_side_that_is_asked(made):
    encoder, engines = made(reasoner="tiny")
    vectors, traces = encoder.encode_query(["red", "blue"], return_traces=True)
    assert (traces, len(vectors)) == ([TRACE, TRACE], 2)
    assert encoder.encode_document("red", return_traces=True)[1] == TRACE
    queries, documents = engines.asked
    assert queries[0].greedy
    assert [request.key.group.side for request in (*queries, *documents)] == [
        *[Side.QUERY] * 2,
        Side.TARGET,
    ]
    assert queries[0].content != documents[0].content
    assert "<rethink>" in engines.embedded[0][0].content[0]


def test_traces_are_given_or_none_if_asked(made):
    encoder, engines = made(reasoner="tiny")
    encoder.encode("red", trace="none")
    _, trace = encoder.encode({"text": "red", "trace": TRACE}, trace="given", return_traces=True)
    assert (trace, engines.asked) == (TRACE, [])
    assert ["<rethink>" in requests[0].content[0] for requests in engines.embedded] == [False, True]
    for given, trace in (("red", "given"), ({"text": "red", "trace": TRACE}, "auto")):
        with pytest.raises(DataError, match="input 0, field 'trace'"):
            encoder.encode(given, trace=trace)


def test_instructions_come_from_the_input_the_call_or_the_export(made):
    encoder, engines = made()
    own = {"text": "red", "instruction": "name it"}
    encoder.encode([own, "red"], prompt="find it")
    encoder.encode("red", prompt_name="stars")
    contents = [request.content for requests in engines.embedded for request in requests]
    assert [str(content[0]) for content in contents] == ["name it", "find it", "find the star"]
    with pytest.raises(DataError, match="expected a prompt 'moons', found stars"):
        encoder.encode("red", prompt_name="moons")


def test_leading_dimensions_are_unit_vectors_again(made):
    encoder, _ = made()
    whole, short = encoder.encode(["red"]), encoder.encode(["red"], truncate_dim=3)
    assert short.shape == (1, 3)
    np.testing.assert_allclose(short, whole[:, :3] / np.linalg.norm(whole[:, :3]), atol=1e-6)
    for wrong in (0, WIDTH + 1):
        with pytest.raises(DataError, match="truncate_dim: expected 1 to 8"):
            encoder.encode(["red"], truncate_dim=wrong)


def test_vectors_may_be_codes_or_bits(made):
    encoder, _ = made()
    texts = ["red star", "blue circle", "green"]
    vectors = encoder.encode(texts)
    ranges = Ranges.of(vectors)
    codes = encoder.encode(texts, precision="int8", ranges=ranges)
    np.testing.assert_array_equal(codes, ranges.codes(vectors))
    np.testing.assert_array_equal(
        encoder.encode(texts[0], precision="binary"), packed_bits(vectors[0])
    )
    for wrong in ({"precision": "int8"}, {"ranges": ranges}, {"precision": "int4"}):
        with pytest.raises(DataError, match=r"precision|ranges"):
            encoder.encode(texts, **wrong)


def test_similarity_is_the_cosine_also_of_vectors_of_other_lengths(made):
    encoder, _ = made()
    first, second = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([0.0, 2.0])
    expected = [[0.0], [np.sqrt(0.5)]]
    np.testing.assert_allclose(encoder.similarity(first, second), expected, atol=1e-6)


def test_pictures_in_memory_and_on_disk_are_read_once_and_counted(made, folder, tmp_path):
    encoder, engines = made()
    path = write_picture(tmp_path / "a.png", width=96, height=64)
    inputs = [path, Image.open(path), {"image": path.read_bytes()}, "red"]
    later = encoder.encode_later(inputs, side=Side.TARGET).result(PATIENCE_S)
    [requests], [pictures] = engines.embedded, engines.pictures
    assert len(requests) == 4
    assert list(pictures.sizes.values()) == [(64, 96)] * 3
    assert later.traces == [""] * 4
    reader = load_encoder(str(folder), MEDIA)
    assert later.prompt_tokens == [
        len(reader.embed(request.content, pictures.pixels).expanded) for request in requests
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("broken", "input 5: expected a trace, found that the Reasoner wrote none"),
        ("unreadable", "input 5: could not be embedded: vLLM refused"),
        ({"image": b"no picture"}, "input 5: .*not a readable picture"),
        ({"image": "/nowhere.png"}, "input 5, field 'image': expected a file, found none"),
    ],
)
def test_a_bad_input_is_named_by_its_place_in_the_whole_list(made, given, message):
    encoder, _ = made(reasoner="tiny", block=3)
    with pytest.raises(DataError, match=message):
        encoder.encode(["red", "blue", "green", "red", "blue", given])
    assert encoder.encode("red").shape == (WIDTH,)


def test_pictures_that_are_too_many_for_one_call_are_refused(made):
    encoder, _ = made()
    images = [Image.new("RGB", (400, 300), (shade, 0, 0)) for shade in range(4)]
    with pytest.raises(DataError, match=r"data\.media\.max_step_bytes"):
        encoder.encode(images)


def test_many_calls_run_at_a_time_and_may_be_cancelled(made):
    encoder, engines = made()
    engines.go.clear()
    first, second = (
        encoder.encode_later([text], side=Side.QUERY) for text in ("red", "blue circle")
    )
    assert first.cancel()
    engines.go.set()
    np.testing.assert_array_equal(second.result(PATIENCE_S).vectors, [vector(("blue circle",))])
    with pytest.raises(CancelledError):
        first.result(PATIENCE_S)


def test_a_lost_engine_reaches_the_caller_and_shows(made):
    encoder, engines = made()
    assert encoder.healthy()
    engines.lost = True
    with pytest.raises(EngineLost):
        encoder.encode("red")
    assert not encoder.healthy()


def test_a_closed_encoder_ends_its_calls_and_takes_no_more(made):
    encoder, engines = made()
    engines.go.clear()
    running = encoder.encode_later(["red"], side=Side.QUERY)
    with encoder:
        pass
    encoder.close()
    assert engines.closed
    assert not encoder.healthy()
    with pytest.raises(CancelledError):
        running.result(PATIENCE_S)
    with pytest.raises(RuntimeError, match="expected an open encoder"):
        encoder.encode("red")


def test_engines_that_do_not_start_are_stopped(folder):
    class Broken(RecordingEngines):
        async def start(self):
            raise DataError("no weights")

    engines = Broken()
    with pytest.raises(DataError, match="no weights"):
        Encoder("", with_embedder(EncoderConfig(data=DataConfig(media=MEDIA)), folder), engines)
    assert engines.closed


def test_settings_and_models_are_checked_before_engines_start(folder, tmp_path):
    good = with_embedder(EncoderConfig(data=DataConfig(media=MEDIA)), folder)
    started = SimpleNamespace()  # has no method at all
    with pytest.raises(ConfigError, match="block: expected"):
        Encoder("", replace(good, block=0), started)
    with pytest.raises(DataError, match="expected a model folder, found none"):
        Encoder(str(tmp_path / "nowhere"), good, started)
    with pytest.raises(DataError, match="expected a model folder, found none"):
        Encoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="pixel limits must lie"):
        Encoder.from_pretrained(
            folder, config=EncoderConfig(data=DataConfig(media=replace(MEDIA, frame_min_pixels=1)))
        )
