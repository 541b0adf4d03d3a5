"""Rivals in sentence-transformers: an export of ours gives our vectors, other models their own."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import AutoModelForImageTextToText

from configs.common import EngineConfig
from data.embed_inputs import embed_content
from data.errors import ConfigError
from data.model.chat import load_encoder
from data.model.sentence_transformer import write_sentence_transformer
from data.types import EmbedRequest, Item, Side
from reward.engines.sentence_transformer_actor import SentenceTransformerActor
from tests.integration.reference import embedding
from tests.tiny_model import write_tiny_model, write_tiny_sentence_bert
from tests.unit.data.model.test_sentence_transformer import (
    INSTRUCTION,
    MEDIA,
    PICTURES,
    image,
    video,
)

ENGINE = EngineConfig(dtype="float32", max_model_len=512, max_num_seqs=3)
ITEMS = {
    "text": Item(text="red star"),
    "another text": Item(text="blue circle 7"),
    "instruction": Item(text="red star", instruction=INSTRUCTION),
    "picture": image("fits"),
    "picture and text": image("large", text="red", instruction=INSTRUCTION),
    "two pictures": image("fits", "large", text="red"),
    "video": video(text="red"),
    "video with instruction": video(instruction=INSTRUCTION),
}


def content(item):
    return embed_content(item, None, max_frames=4, item_tokens=0)


def requests(items):
    return [EmbedRequest(key=name, content=content(item)) for name, item in items.items()]


def actor(folder, side=Side.QUERY, **prompts):
    return SentenceTransformerActor(
        name="rival-0", model=str(folder), engine=ENGINE, side=side, prompts=prompts
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("export") / "tiny")
    write_sentence_transformer(folder, MEDIA)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Return the folder of a tiny BERT that reads text only, with a prompt for queries."""
    return write_tiny_sentence_bert(tmp_path_factory.mktemp("words"), query="find ")


def test_an_export_of_ours_gives_our_vectors(export):
    encoder = load_encoder(str(export), MEDIA)
    model = AutoModelForImageTextToText.from_pretrained(export)
    for side in Side:
        rival = actor(export, side)
        assert rival.ready() == 128
        vectors, failed = rival.embed(requests(ITEMS), PICTURES)
        assert failed == {}
        for name, item in ITEMS.items():
            ours = embedding(model, encoder, encoder.embed(content(item), PICTURES))
            np.testing.assert_allclose(vectors[name], ours, atol=1e-3, err_msg=name)
            assert vectors[name].dtype == np.float32


def test_each_side_has_the_librarys_prompt(words):
    library = SentenceTransformer(str(words), device="cpu")
    items = {"one": Item(text="blue circle")}
    for side, prompt in ((Side.QUERY, "find "), (Side.TARGET, "")):
        rival = actor(words, side)
        rival.ready()
        vectors, _ = rival.embed(requests(items), {})
        expected = library.encode(prompt + "blue circle", normalize_embeddings=True)
        np.testing.assert_allclose(vectors["one"], expected, atol=1e-5)
    rival = actor(words, query="what color is the ")
    rival.ready()
    vectors, _ = rival.embed(requests(items), {})
    other = library.encode("what color is the blue circle", normalize_embeddings=True)
    np.testing.assert_allclose(vectors["one"], other, atol=1e-5)


def test_a_text_model_reads_the_instruction_and_ignores_pictures(words):
    rival = actor(words)
    rival.ready()
    items = {
        "both": image("fits", text="red star", instruction="what color is"),
        "picture": image("fits"),
    }
    vectors, failed = rival.embed(requests(items), PICTURES)
    library = SentenceTransformer(str(words), device="cpu")
    expected = library.encode("find what color is red star", normalize_embeddings=True)
    np.testing.assert_allclose(vectors["both"], expected, atol=1e-5)
    assert failed == {"picture": "the model reads text only, and the item has none"}


def test_a_text_that_looks_like_an_address_is_not_fetched(export, words):
    items = {"one": Item(text="https://127.0.0.1:9/star.png")}
    for folder in (export, words):
        rival = actor(folder)
        rival.ready()
        assert list(rival.embed(requests(items), {})[0]) == ["one"]


def test_an_item_whose_picture_is_missing_fails_alone(export):
    rival = actor(export)
    rival.ready()
    items = {"lost": image("lost"), "text": Item(text="red")}
    vectors, failed = rival.embed(requests(items), PICTURES)
    assert list(vectors) == ["text"]
    assert failed == {"lost": "lost: the picture was not loaded"}


def test_longer_texts_are_cut_at_the_engines_limit(words):
    rival = actor(words)
    rival._engine = EngineConfig(dtype="float32", max_model_len=16, max_num_seqs=3)
    rival.ready()
    items = {"long": Item(text="red star " * 400), "longer": Item(text="red star " * 500)}
    vectors, _ = rival.embed(requests(items), {})
    np.testing.assert_allclose(vectors["long"], vectors["longer"], atol=1e-6)


def test_a_model_that_is_not_ranked_by_the_cosine_is_refused(words, tmp_path):
    model = SentenceTransformer(str(words), device="cpu", similarity_fn_name="dot")
    model.save_pretrained(str(tmp_path / "dot"))
    with pytest.raises(ConfigError, match="expected an Embedder whose similarity is the cosine"):
        actor(tmp_path / "dot").ready()
    unit = SentenceTransformer(modules=[*model, Normalize()], similarity_fn_name="dot")
    unit.save_pretrained(str(tmp_path / "unit"))
    assert actor(tmp_path / "unit").ready() == 32
