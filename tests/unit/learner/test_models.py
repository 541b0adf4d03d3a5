"""Model folders that cannot be trained are refused with what is missing."""

import pytest
import torch

from data.errors import ConfigError, DataError
from data.model_folder import check_folder
from learner.models import freeze_vision


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    for name in ("config.json", "processor_config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"missing tokenizer_config.json \(the tokenizer\)"):
        check_folder(str(tmp_path))


def test_everything_missing_is_listed_at_once(tmp_path):
    with pytest.raises(DataError, match=r"config.json.*tokenizer.*processor.*weights"):
        check_folder(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a model folder"):
        check_folder(str(tmp_path / "none"))


def test_freezing_a_vision_tower_that_is_not_there_is_refused():
    net = torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="found text, tower"):
        freeze_vision(net)


def test_freezing_leaves_the_language_model_trainable():
    net = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    freeze_vision(net)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == {
        "visual.weight": False,
        "visual.bias": False,
        "text.weight": True,
        "text.bias": True,
    }
