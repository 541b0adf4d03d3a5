"""A rival's folder is refused before anything heavy starts, with what to do."""

import json

import pytest

from configs.schema import RivalConfig
from data.errors import ConfigError, DataError
from data.model import rival_folder
from data.model.rival_folder import check_rival


def rival(folder, **more):
    return RivalConfig(name="other", model=str(folder), **more)


def write_modules(folder, *kinds):
    rows = [{"idx": i, "path": "", "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(rows))


def test_a_folder_of_sentence_transformers_is_taken(tmp_path):
    write_modules(tmp_path, "sentence_transformers.models.Transformer")
    check_rival(rival(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="lost: expected a model folder, found none"):
        check_rival(rival(tmp_path / "lost"))


def test_a_folder_that_does_not_say_how_to_pool_is_refused(tmp_path):
    with pytest.raises(DataError, match="would guess how to pool; save the model with"):
        check_rival(rival(tmp_path))


def test_code_of_a_folder_is_never_run(tmp_path):
    write_modules(tmp_path, "sentence_transformers.models.Transformer", "custom_st.Transformer")
    with pytest.raises(DataError, match=r"found 'custom_st\.Transformer', which needs code"):
        check_rival(rival(tmp_path))


@pytest.mark.parametrize("text", ["{", "7", "[{}]", '{"type": "x"}'])
def test_a_broken_list_of_modules_is_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(DataError, match="expected a list of modules, each with its type"):
        check_rival(rival(tmp_path))


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(rival_folder, "LIBRARY", "a_library_that_is_not_there")
    with pytest.raises(ConfigError, match=r"rival 'other': .* `pip install -c .*\.\[rivals\]'`"):
        check_rival(rival(tmp_path))


def test_a_rival_on_vllm_needs_a_complete_folder(tmp_path):
    write_modules(tmp_path, "sentence_transformers.models.Transformer")
    with pytest.raises(DataError, match=r"not a complete model folder, missing config\.json"):
        check_rival(rival(tmp_path, library="vllm"))
