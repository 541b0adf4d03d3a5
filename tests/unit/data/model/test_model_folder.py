"""Text-only models: what their folder needs, and what is said of pictures they cannot see."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from data.embed_inputs import INPUT_FORM
from data.errors import ConfigError, DataError
from data.model.model_folder import (
    check_embedder,
    check_folder,
    check_reasoner,
    load_pretrained,
    load_processor,
    sees_pictures,
    warn_older_input,
)
from data.types import Item, Kind
from tests.builders import loaded_set, make_pair

SHOWN = Item(text="", kind=Kind.IMAGE, uris=("/a.png",))


@pytest.fixture
def folder(tmp_path):
    """Write a complete folder of a model with that configuration."""

    def write(**config):
        for name in ("tokenizer_config.json", "model.safetensors"):
            (tmp_path / name).touch()
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "b" * 64 + "\nsize 4996\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def loaded(name, *pairs):
    return loaded_set(name=name, pairs=pairs, bad_rows=())


@pytest.fixture
def sets():
    return [loaded("words", make_pair()), loaded("photos", make_pair(), make_pair(target=SHOWN))]


def test_a_text_only_model_needs_no_picture_processor(folder):
    assert check_folder(folder(model_type="llama")).is_dir()


def test_a_model_with_a_vision_tower_does(folder):
    with pytest.raises(DataError, match=r"missing preprocessor_config\.json or "):
        check_folder(folder(model_type="qwen3_vl", vision_config={}))


@pytest.fixture
def coded(folder, tmp_path):
    """Return a folder that asks for code of its own, which leaves a mark where it is run."""
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM")
    path = folder(model_type="own", auto_map=dict.fromkeys(names, "own.Own"))
    tokenizer = {"auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    yield path
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_is_not_run_for_its_tokenizer(coded):
    with pytest.raises(DataError, match=f"{coded}: .*code from its own folder, which is never run"):
        load_processor(coded)


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_code_in_a_folder_is_run_for_nothing_else(coded, kind):
    with pytest.raises(DataError, match="code from its own folder, which is never run"):
        load_pretrained(getattr(transformers, kind), coded)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_git_lfs_pointers_are_refused_with_what_to_do(folder, tmp_path, name):
    path = folder(model_type="llama")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DataError, match=rf"in the place of {name}; run `git lfs pull`"):
        check_folder(path)


def sharded(folder, tmp_path):
    """Return a folder with the first of two shards."""
    path = folder(model_type="llama")
    (tmp_path / "model.safetensors").rename(tmp_path / SHARDS[0])
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_a_shard_of_the_index_that_is_not_there_is_named(folder, tmp_path):
    path = sharded(folder, tmp_path)
    with pytest.raises(DataError, match=f"missing {SHARDS[1]} \\(named by model.safetensors.index"):
        check_folder(path)
    (tmp_path / SHARDS[1]).touch()
    assert check_folder(path).is_dir()


def test_an_index_that_is_none_is_refused(folder, tmp_path):
    path = sharded(folder, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(DataError, match="expected an index of weights"):
        check_folder(path)


def test_a_tokenizer_that_cannot_be_read_is_refused(folder, tmp_path):
    path = folder(model_type="llama")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer or picture processor cannot be read"):
        load_processor(path)


@pytest.mark.parametrize(
    ("stage", "warned"),
    [
        ({"job": "embedder"}, True),
        ({"job": "embedder", "input_form": INPUT_FORM}, False),
        ({"job": "warm_start"}, False),
        (["embedder"], False),
        (None, False),
    ],
)
def test_an_embedder_of_an_older_release_is_warned_of(tmp_path, caplog, stage, warned):
    if stage is not None:
        (tmp_path / "stage.json").write_text(json.dumps(stage))
    warn_older_input(str(tmp_path / "export"))
    assert ("trained by an older release" in caplog.text) == warned


def test_a_configuration_that_is_not_json_is_refused(folder, tmp_path):
    path = folder()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: malformed JSON"):
        sees_pictures(path)


def test_a_text_only_reasoner_is_refused_with_the_set_that_holds_pictures(folder, sets):
    with pytest.raises(ConfigError, match="cannot see the pictures of photos; use"):
        check_reasoner(folder(model_type="llama"), sets)
    check_reasoner(folder(model_type="llama"), sets[:1])
    sees = folder(model_type="qwen3_vl", vision_config={})
    (Path(sees) / "preprocessor_config.json").touch()
    check_reasoner(sees, sets)


def test_an_incomplete_reasoner_is_refused(folder, sets):
    with pytest.raises(DataError, match="the picture processor"):
        check_reasoner(folder(model_type="qwen3_vl", vision_config={}), sets)


def test_pictures_among_a_rows_own_candidates_count(folder):
    rows = loaded("choices", make_pair(candidates=(Item(text="a"), SHOWN)))
    with pytest.raises(ConfigError, match="choices"):
        check_reasoner(folder(model_type="llama"), [rows])


def test_a_text_only_embedder_says_once_that_pictures_are_ignored(folder, sets, caplog):
    with caplog.at_level(logging.WARNING):
        check_embedder(folder(model_type="bert"), sets)
    (line,) = caplog.messages
    assert "the pictures and evidence of photos are ignored" in line


def test_nothing_is_said_where_nothing_is_ignored(folder, sets, caplog):
    with caplog.at_level(logging.WARNING):
        check_embedder(folder(model_type="bert"), sets[:1])
        check_embedder(folder(model_type="qwen3_vl", vision_config={}), sets)
    assert caplog.messages == []


CLIP = Item(text="", kind=Kind.VIDEO, uris=("/1.png", "/2.png"), times=(0.0, 0.5))
SEES = {"vision_config": {}, "video_token_id": 3}


@pytest.mark.parametrize("check", [check_reasoner, check_embedder])
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3_vl", "vision_config": {}},
        {"model_type": "qwen2_5_vl", **SEES},  # its videos have no times
    ],
)
def test_a_model_without_videos_is_refused_with_the_set_that_shows_them(folder, check, config):
    path = folder(**config)
    (Path(path) / "preprocessor_config.json").touch()
    frames = replace(CLIP, times=())
    check(path, [loaded("frames", make_pair(target=frames))])
    with pytest.raises(ConfigError, match=r"clips shows videos; set data\.media\.video=frames"):
        check(path, [loaded("clips", make_pair(target=CLIP))])


@pytest.mark.parametrize("check", [check_reasoner, check_embedder])
def test_a_model_that_sees_videos_may_be_shown_them(folder, check):
    path = folder(model_type="qwen3_vl", **SEES)
    (Path(path) / "preprocessor_config.json").touch()
    check(path, [loaded("clips", make_pair(query=CLIP))])


def test_a_text_only_embedder_ignores_videos_as_it_does_pictures(folder, caplog):
    check_embedder(folder(model_type="bert"), [loaded("clips", make_pair(query=CLIP))])
    assert "the pictures and evidence of clips are ignored" in caplog.text


@pytest.mark.parametrize(
    ("stage", "item", "warned"),
    [
        ({"job": "embedder", "video": "video"}, CLIP, ""),
        ({"job": "embedder", "video": "video"}, replace(CLIP, times=()), "video=video"),
        ({"job": "embedder"}, CLIP, "video=frames"),
        ({"job": "embedder"}, SHOWN, ""),
        ({"job": "warm_start"}, CLIP, ""),
        (None, CLIP, ""),
    ],
)
def test_an_embedder_that_was_trained_on_the_other_form_of_videos_is_warned_of(
    tmp_path, caplog, stage, item, warned
):
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **SEES}))
    if stage is not None:
        (tmp_path / "stage.json").write_text(json.dumps(stage))
    check_embedder(str(export), [loaded("clips", make_pair(query=item))])
    assert ("trained with data.media." in caplog.text) == bool(warned)
    assert warned in caplog.text
