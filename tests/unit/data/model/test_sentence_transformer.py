"""`SentenceTransformer(folder)` of an export gives our token ids and our vectors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText, Qwen3Config, Qwen3ForCausalLM

from configs.common import MediaConfig
from data.demo.model import CHAT_TEMPLATE, train_tokenizer
from data.embed_inputs import embed_content
from data.errors import DataError
from data.model.chat import load_encoder
from data.model.sentence_transformer import prompts_of, write_sentence_transformer
from data.types import Evidence, Item, Kind
from tests.builders import TRACES, make_pair
from tests.integration.reference import embedding
from tests.tiny_model import write_tiny_model

MEDIA = MediaConfig(
    image_min_pixels=64 * 64,
    image_max_pixels=128 * 128,
    frame_min_pixels=32 * 32,
    frame_max_pixels=64 * 64,
    crop_min_pixels=64 * 64,
    crop_max_pixels=128 * 128,
    max_frames=4,
)
INSTRUCTION = "find the star"
TIMES = (0.0, 0.5, 1.0, 1.5)
FRAMES = tuple(f"frame {i}" for i in range(4))


def picture(height, width):
    """Return noise: where two codes resize unlike each other, it shows."""
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame(number):
    """Return a smooth frame: of noise, transformers clips less when it resizes videos."""
    rows, columns = np.mgrid[:80, :60] * 3
    return np.stack([rows, columns, np.full_like(rows, 50 * number)], axis=-1).astype(np.uint8)


PICTURES = {
    "fits": picture(96, 128),
    "large": picture(210, 90),
    "small": picture(20, 30),
    **{name: frame(number) for number, name in enumerate(FRAMES)},
}
IMAGES = {name: Image.fromarray(pixels) for name, pixels in PICTURES.items()}
STACK = np.stack([PICTURES[name] for name in FRAMES])
VIDEO = {"array": STACK, "video_metadata": {"fps": 2.0, "total_num_frames": 4}}


def image(*names, text="", instruction=""):
    return Item(text=text, kind=Kind.IMAGE, uris=names, instruction=instruction)


def video(text="", instruction="", times=TIMES):
    return Item(text=text, kind=Kind.VIDEO, uris=FRAMES, times=times, instruction=instruction)


CASES = {
    "text": (Item(text="red star"), "red star"),
    "picture": (image("fits"), IMAGES["fits"]),
    "large picture": (image("large", text="red"), {"image": IMAGES["large"], "text": "red"}),
    "text first": (image("small", text="red"), {"text": "red", "image": IMAGES["small"]}),
    "two pictures": (
        image("fits", "large", text="red"),
        {"image": [IMAGES["fits"], IMAGES["large"]], "text": "red"},
    ),
    "video": (video(text="red"), {"text": "red", "video": VIDEO}),
    "video first": (video(text="red"), {"video": VIDEO, "text": "red"}),
    "video alone": (video(), {"video": VIDEO}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("export") / "tiny")
    write_sentence_transformer(folder, MEDIA, dimensions=(32, 64), prompts={"stars": INSTRUCTION})
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(folder):
    """Return what gives our token ids and our vector of an item."""
    encoder = load_encoder(str(folder), MEDIA)
    model = AutoModelForImageTextToText.from_pretrained(folder)

    def embed(item, trace="", evidence=Evidence.FULL):
        content = embed_content(item, trace, max_frames=4, item_tokens=0, evidence=evidence)
        prompt = encoder.embed(content, PICTURES)
        return prompt.expanded, embedding(model, encoder, prompt)

    return embed


def ids_of(loaded, asked, prompt=None):
    return loaded.preprocess([asked], prompt=prompt)["input_ids"][0].tolist()


@pytest.mark.parametrize("instruction", ["", INSTRUCTION], ids=["bare", "instruction"])
@pytest.mark.parametrize("case", CASES)
def test_token_ids_and_vectors_are_ours(loaded, ours, case, instruction):
    item, asked = CASES[case]
    ids, vector = ours(replace(item, instruction=instruction))
    assert ids_of(loaded, asked, instruction or None) == ids
    theirs = loaded.encode([asked], prompt=instruction or None)[0]
    np.testing.assert_allclose(theirs, vector, atol=1e-3)


def test_items_of_a_batch_do_not_change_each_other(loaded, ours):
    for case, vector in zip(CASES, loaded.encode([CASES[case][1] for case in CASES]), strict=True):
        np.testing.assert_allclose(vector, ours(CASES[case][0])[1], atol=1e-3, err_msg=case)


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.IMAGE, Kind.VIDEO])
def test_a_trace_is_text_after_the_item(loaded, ours, kind):
    trace = TRACES[kind]
    asked = {
        Kind.TEXT: "red" + trace,
        Kind.IMAGE: {"image": IMAGES["fits"], "text": "red" + trace},
        Kind.VIDEO: {"video": VIDEO, "text": trace},
    }[kind]
    item = {
        Kind.TEXT: Item(text="red"),
        Kind.IMAGE: image("fits", text="red"),
        Kind.VIDEO: video(),
    }[kind]
    assert ids_of(loaded, asked) == ours(item, trace, Evidence.TEXT)[0]


def test_a_message_may_hold_the_evidence_where_the_trace_points_at_it(loaded, ours):
    trace, pixels = TRACES[Kind.IMAGE], PICTURES["fits"]
    thinking, rest = trace.split("<rethink>")
    rows, columns = pixels.shape[:2]
    crop = Image.fromarray(
        pixels[round(0.2 * rows) : round(0.6 * rows), round(0.1 * columns) : round(0.5 * columns)]
    )
    parts = [
        {"type": "image", "image": IMAGES["fits"]},
        {"type": "text", "text": "red" + thinking},
        {"type": "image", "image": crop},
        {"type": "text", "text": "<rethink>" + rest},
    ]
    ids, vector = ours(image("fits", text="red"), trace)
    message = [{"role": "user", "content": parts}]
    assert ids_of(loaded, message) == ids
    np.testing.assert_allclose(loaded.encode([message])[0], vector, atol=1e-3)


def test_leading_dimensions_and_queries_without_a_prompt(loaded, ours):
    vector = ours(Item(text="red"))[1]
    short = loaded.encode("red", truncate_dim=32, normalize_embeddings=True)
    np.testing.assert_allclose(short, vector[:32] / np.linalg.norm(vector[:32]), atol=1e-3)
    for encode in (loaded.encode_query, loaded.encode_document):
        np.testing.assert_allclose(encode("red"), vector, atol=1e-3)
    assert loaded.similarity_fn_name == "cosine"


def test_a_prompt_has_a_name_where_all_queries_of_a_set_have_one_instruction(loaded, ours):
    def pair(source, instruction):
        return make_pair(source=source, query=Item(text="red", instruction=instruction))

    pairs = [
        pair("a", "find it"),
        pair("b", "1"),
        pair("b", "2"),
        pair("c", ""),
        pair("a", "find it"),
    ]
    assert prompts_of(pairs) == {"a": "find it"}
    named = loaded.encode("red", prompt_name="stars")
    np.testing.assert_allclose(named, ours(Item(text="red", instruction=INSTRUCTION))[1], atol=1e-3)


def test_a_text_that_is_too_long_is_cut_before_the_suffix(folder):
    loaded = SentenceTransformer(str(folder), device="cpu")
    whole = ids_of(loaded, "red")
    loaded.max_seq_length = 100
    ids = ids_of(loaded, "red star " * 100)
    assert len(ids) == 100
    assert ids[-20:] == whole[-20:]


def test_the_folder_says_which_dimensions_a_server_may_give(folder):
    path = folder / "config.json"
    assert json.loads(path.read_text())["matryoshka_dimensions"] == [32, 64, 128]


def test_our_own_reader_sees_the_model_as_it_was(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    path = folder / "chat_template.jinja"
    before = load_encoder(str(folder), MEDIA), path.read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": before[1]}))
    content = ("find it", "red")
    for dimensions in ((32,), ()):  # twice: a training may start from an export
        write_sentence_transformer(folder, MEDIA, dimensions=dimensions)
        after = load_encoder(str(folder), MEDIA)
        assert after.text(content) == before[0].text(content)
        assert path.read_text().count(before[1]) == 1
    assert "matryoshka_dimensions" not in json.loads((folder / "config.json").read_text())
    assert ids_of(SentenceTransformer(str(folder), device="cpu"), "red")[-1] == (
        after.tokenizer.convert_tokens_to_ids("<emb>")
    )


def test_frames_that_are_pictures_stay_after_the_text(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    media = replace(MEDIA, video="frames", frame_min_pixels=64 * 64, frame_max_pixels=128 * 128)
    write_sentence_transformer(folder, media)
    content = embed_content(
        video(text="red", times=()), "", max_frames=4, item_tokens=0, evidence=Evidence.NONE
    )
    prompt = load_encoder(str(folder), media).embed(content, PICTURES)
    loaded = SentenceTransformer(str(folder), device="cpu")
    asked = {"text": "red", "image": [IMAGES[name] for name in FRAMES]}
    assert ids_of(loaded, asked) == prompt.expanded


def test_an_embedder_that_reads_text_only(tmp_path):
    tokenizer = train_tokenizer(["what color is the red star"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(
        tmp_path
    )
    write_sentence_transformer(tmp_path, MEDIA)
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    content = embed_content(
        Item(text="red star", instruction=INSTRUCTION), "", max_frames=4, item_tokens=0
    )
    prompt = load_encoder(str(tmp_path), MEDIA).embed(content, {})
    assert ids_of(loaded, "red star", INSTRUCTION) == prompt.ids
    assert loaded.encode("red star").shape == (32,)
    assert loaded.modalities == ["text", "message"]


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match=r"expected a chat template, found none; put its chat_"):
        write_sentence_transformer(folder, MEDIA)
