"""Named sets of settings lie under what a file or an override sets."""

import dataclasses

import pytest

from configs.errors import ConfigError
from configs.load import load, to_yaml
from configs.presets import PRESETS, with_presets
from configs.schema import GRPOConfig, RLConfig

RL = """
run: {dir: runs/x}
reasoner: models/reasoner
reward: {model: models/embedder}
rollout: {engine: {dtype: float32}}
learner: {bf16: false}
data:
  train:
  - {name: a, path: a.json, root: pictures}
"""


@pytest.fixture
def rl(tmp_path):
    """Return a function that loads the settings with this `grpo` section and overrides."""

    def read(grpo: str = "", *overrides: str) -> GRPOConfig:
        path = tmp_path / "rl.yaml"
        path.write_text(RL + grpo)
        return load(RLConfig, path, overrides).grpo

    return read


def test_without_a_preset_the_defaults_stay(rl):
    assert rl() == GRPOConfig()


@pytest.mark.parametrize("name", PRESETS["grpo"])
def test_a_preset_sets_its_values_and_nothing_else(rl, name):
    expected = dataclasses.replace(GRPOConfig(preset=name), **PRESETS["grpo"][name])
    assert rl(f"grpo: {{preset: {name}}}") == expected
    assert rl("", f"grpo.preset={name}") == expected


def test_the_files_own_keys_lie_over_the_preset(rl):
    found = rl("grpo: {preset: dapo, clip_high: 0.3}")
    assert (found.clip_high, found.overlong_penalty) == (0.3, 1.0)


def test_overrides_lie_over_file_and_preset(rl):
    found = rl("grpo: {preset: dapo, clip_high: 0.3}", "grpo.preset=gspo", "grpo.clip_low=0.1")
    assert (found.preset, found.ratio) == ("gspo", "sequence")
    assert (found.clip_low, found.clip_high) == (0.1, 0.3)
    assert found.overlong_penalty == 0.0


def test_an_override_can_take_a_preset_away(rl):
    assert rl("grpo: {preset: dapo}", "grpo.preset=''") == GRPOConfig()


def test_an_unknown_preset_is_refused(rl):
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*grpo.preset"):
        rl("grpo: {preset: ppo}")


def test_resolved_settings_load_again(tmp_path):
    path = tmp_path / "rl.yaml"
    path.write_text(RL + "grpo: {preset: cispo, kl_coef: 0.5}")
    config = load(RLConfig, path)
    path.write_text(to_yaml(config))
    assert load(RLConfig, path) == config


def test_presets_come_before_all_parts():
    parts = {"file": {"grpo": {"preset": "grpo"}}, "override": {"steps": 3}}
    assert list(with_presets(parts)) == ["preset grpo.preset=grpo", "file", "override"]


def test_sections_that_are_no_mapping_name_no_preset():
    assert with_presets({"file": {"grpo": None}}) == {"file": {"grpo": None}}
