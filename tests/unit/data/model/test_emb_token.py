import json

import pytest
from transformers import AutoModelForImageTextToText

from configs.common import MediaConfig
from data.errors import ConfigError
from data.model.chat import EMB_TOKEN, load_encoder
from data.model.emb_token import with_emb_token
from tests.tiny_model import SPECIAL, write_model, write_tiny_model

RELEASED = tuple(word for word in SPECIAL if word != EMB_TOKEN)
LIMITS = MediaConfig()
ROWS = 512
"""More than the tokenizer has tokens, as in released models."""


@pytest.fixture
def released(tmp_path):
    return write_model(tmp_path / "released", {"vocab_size": ROWS}, {}, special=RELEASED)


def test_a_released_model_gets_the_token_in_a_free_row(released, tmp_path):
    before = load_encoder(str(released), LIMITS)
    folder = with_emb_token(str(released), tmp_path / "base")
    encoder = load_encoder(folder, LIMITS)
    prompt = encoder.embed(("what color",), {})
    assert prompt.ids[:-1] == before.encode(("what color",), {}).ids
    assert max(before.tokenizer.get_vocab().values()) < prompt.ids[-1] < ROWS
    assert encoder.tokenizer.added_tokens_decoder[prompt.ids[-1]].special
    assert {path.name for path in released.iterdir()} <= {
        p.name for p in (tmp_path / "base").iterdir()
    }
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings == ROWS


def test_the_given_folder_stays_as_it_is_and_a_half_made_one_is_replaced(released, tmp_path):
    files = {path.name: path.read_bytes() for path in released.iterdir()}
    (tmp_path / ".base").mkdir()
    for _ in range(2):
        with_emb_token(str(released), tmp_path / "base")
    assert {path.name: path.read_bytes() for path in released.iterdir()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "released"]


def test_a_model_with_the_token_is_used_as_it_is(tmp_path):
    folder = str(write_tiny_model(tmp_path / "tiny"))
    assert with_emb_token(folder, tmp_path / "base") == folder
    assert not (tmp_path / "base").exists()


def test_a_model_without_a_free_row_is_refused(released, tmp_path):
    path = released / "config.json"
    config = json.loads(path.read_text())
    vocabulary = load_encoder(str(released), LIMITS).tokenizer.get_vocab()
    config["text_config"]["vocab_size"] = max(vocabulary.values()) + 1
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="expected a free row in the embeddings"):
        with_emb_token(str(released), tmp_path / "base")
