"""The cards of exports: the code in them runs, and they say what the run measured."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

from cluster.run.model_card import embedder_card, measured_at, reasoner_card
from configs.common import DataConfig, DataSetConfig, EvalConfig, MediaConfig, RunConfig
from configs.reward import RewardConfig
from configs.schema import EmbedderConfig, RLConfig
from data.embed_inputs import embed_content
from data.media.pictures import load_pictures
from data.model.chat import load_encoder
from data.model.sentence_transformer import write_sentence_transformer
from data.types import Item, Kind
from tests.builders import write_picture
from tests.integration.reference import embedding
from tests.tiny_model import write_tiny_model

MEDIA = MediaConfig(image_min_pixels=64 * 64, image_max_pixels=96 * 96)
HUB = "/cache/hub/models--Qwen--Qwen3-VL-2B-Instruct/snapshots/0a1b"
SETS = [
    DataSetConfig(name="mine", path="/secret/rows.json", root="/secret"),
    DataSetConfig(name="theirs", path="hf://datasets/org/rows@main/train.parquet", root="r"),
]
DATA = DataConfig(train=SETS, media=MEDIA)
CONFIG = EmbedderConfig(
    run=RunConfig(dir="/runs/my-embedder"), model=HUB, data=DATA, dimensions=[32, 64]
)
MEASURED = {
    "eval/hit_at_1_no_trace": 0.25,
    "eval/hit_at_1_no_trace_by_set/held": 0.25,
    "eval/hit_at_1": 0.5,
    "eval/hit_at_1_over_sets": 0.5,
    "eval/hit_at_1_by_set/held": 0.5,
    "eval/hit_at_1_dim_32": 0.375,
    "eval/hit_at_1_dim_64": 0.5,
    "steps": 40.0,
}


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Return an export with its card, as the current folder, and the picture of the examples."""
    folder = write_tiny_model(tmp_path / "export")
    config = replace(CONFIG, model=str(folder))
    write_sentence_transformer(folder, MEDIA, dimensions=config.dimensions)
    (folder / "README.md").write_text(embedder_card(config, MEASURED, {}))
    write_picture(folder / "picture.png", 120, 80)
    monkeypatch.chdir(folder)
    return folder


def test_the_code_of_a_card_gives_our_vectors(export, capsys):
    encoder = load_encoder(str(export), MEDIA)
    model = AutoModelForImageTextToText.from_pretrained(export)
    pictures, failed = load_pictures({"picture.png"}, MEDIA)
    assert not failed

    def ours(item):
        content = embed_content(item, "", max_frames=8, item_tokens=480)
        return embedding(model, encoder, encoder.embed(content, pictures))

    document = ours(Item(text="a red star", kind=Kind.IMAGE, uris=("picture.png",)))
    blocks = re.findall(r"```python\n(.+?)```", (export / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    ran = {}
    for block in blocks:
        exec(block, ran)
    np.testing.assert_allclose(ran["queries"][0], ours(Item(text="a red star")), atol=1e-3)
    np.testing.assert_allclose(ran["documents"][0], document, atol=1e-3)
    np.testing.assert_allclose(ran["vector"][0], document, atol=1e-3)
    assert "tensor" in capsys.readouterr().out


def test_a_card_is_one_of_the_hub(export):
    card = ModelCard.load(export / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "feature-extraction"
    assert card.data.datasets == ["org/rows"]
    results = {
        (result.dataset_name, result.metric_name): result.metric_value
        for result in card.data.eval_results
    }
    assert results == {("held", "hit@1 without trace"): 0.25, ("held", "hit@1 with trace"): 0.5}


def test_the_request_of_a_card_is_json():
    text = embedder_card(CONFIG, MEASURED, {"held": "find it"})
    request = json.loads(re.search(r"-d '(.+?)'\n```", text, re.DOTALL)[1])
    assert request["dimensions"] == 32
    assert request["messages"][0]["content"][0]["type"] == "image_url"
    limits = json.loads(re.search(r"--mm-processor-kwargs '(.+?)'", text)[1])
    assert limits["images_kwargs"]["size"] == {"shortest_edge": 4096, "longest_edge": 9216}


def test_a_card_names_models_sets_and_scores_but_no_path():
    text = embedder_card(CONFIG, MEASURED, {"held": "find it"})
    for words in (
        "base_model: Qwen/Qwen3-VL-2B-Instruct",
        "`Qwen/Qwen3-VL-2B-Instruct`",
        "`mine`, `theirs`",
        "| all queries | 0.250 | 0.500 |",
        "| mean of the sets |  | 0.500 |",
        "| `held` | 0.250 | 0.500 |",
        "| all queries, 32 dimensions |  | 0.375 |",
        "| steps | 40 |",
        "| prompt `held` | find it |",
        "| pixels of a picture, at least and most | 4096, 9216 |",
    ):
        assert words in text
    assert "secret" not in text
    assert "/cache" not in text
    assert "No held-out data was measured." in embedder_card(CONFIG, {"steps": 40.0}, {})


def test_a_card_tells_how_videos_go_in():
    as_frames = replace(CONFIG, data=replace(DATA, media=replace(MEDIA, video="frames")))
    for config, key, other in ((CONFIG, "video", "image"), (as_frames, "image", "video")):
        text = embedder_card(config, {}, {})
        assert f"the key `{key}`" in text
        assert f"the key `{other}`" not in text


def test_a_card_of_an_embedder_that_reads_text_only(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    text = embedder_card(replace(CONFIG, model=str(tmp_path)), {}, {})
    assert "one vector from\na text, together" in text
    assert "| numbers in a vector | 32 |" in text
    assert 'encode_document(["a red star"])' in text
    assert "picture.png" not in text
    assert "images_kwargs" not in text


def test_a_reasoner_names_its_embedder_and_its_score(tmp_path):
    config = RLConfig(
        run=RunConfig(dir="/runs/my-rl"),
        reasoner=HUB,
        reward=RewardConfig(model="/runs/my-embedder/export"),
        data=DATA,
        evaluation=EvalConfig(every=10),
    )
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 10, "eval/hit_at_1": 0.5}\n{"step": 20, "eval/hit_at_1": 0.25}\n{"st'
    )
    text = reasoner_card(config, measured_at(metrics, 10), step=10)
    for words in (
        "pipeline_tag: image-text-to-text",
        "**It was trained for the Embedder `my-embedder/export`** (pooling `emb_token`)",
        "held-out pairs, both sides with a trace of this Reasoner: 0.500.",
        "| steps | 300, exported after 10 |",
    ):
        assert words in text
    assert "secret" not in text
    assert "$" not in text
