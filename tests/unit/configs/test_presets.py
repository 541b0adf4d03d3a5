"""Named sets of settings: under the keys beside them; the command line's over the file's keys."""

import dataclasses
import logging
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.learner import GRPOConfig
from configs.load import load, to_flat, to_yaml
from configs.presets import PRESETS, with_presets
from configs.reward import RewardConfig
from configs.schema import RLConfig

FOLDER = Path(__file__).parents[3] / "configs"
SHIPPED = sorted(FOLDER.rglob("rl.yaml"))
READ_AND_RUN = {
    *("preset", "model", "second_model", "pooling", "instruction", "evidence", "pool", "engine"),
    *("judge.model", "judge.pool", "judge.engine"),
}
"""Settings of a reward that are no part of its formula."""
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


def keys_of(tree, prefix=""):
    """Return the dotted keys of all values."""
    return {
        key
        for name, value in tree.items()
        for key in (
            keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        )
    }


@pytest.mark.parametrize(
    ("section", "cls", "name"),
    [
        *(("grpo", GRPOConfig, name) for name in PRESETS["grpo"]),
        *(("reward", RewardConfig, name) for name in PRESETS["reward"]),
    ],
)
def test_a_preset_sets_every_key_of_its_objective(section, cls, name):
    every = {
        key
        for key in to_flat(cls(model="m") if cls is RewardConfig else cls())
        if not {key, key.split(".")[0], ".".join(key.split(".")[:2])} & READ_AND_RUN
    }
    assert keys_of(PRESETS[section][name]) == every


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section in PRESETS for name in PRESETS[section]]
)
def test_a_preset_of_the_command_line_is_whole_over_every_shipped_file(path, section, name):
    chosen = [f"{section}.preset={name}", *(["reward.judge.model=j"] * (section == "reward"))]
    found = to_flat(getattr(load(RLConfig, path, chosen), section))
    wanted = to_flat(PRESETS[section][name])
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_file_repeats_no_default_that_would_win_over_a_preset_in_it(path):
    given = yaml.safe_load(path.read_text())
    defaults = to_flat(GRPOConfig()) | to_flat(RewardConfig(model="m"))
    for section in PRESETS:
        chosen = to_flat(given[section])
        weights = keys_of(next(iter(PRESETS[section].values())))
        assert not [key for key in weights & chosen.keys() if chosen[key] == defaults[key]]


@pytest.mark.parametrize("name", PRESETS["grpo"])
def test_a_preset_sets_its_values_and_nothing_else(rl, name):
    expected = dataclasses.replace(GRPOConfig(preset=name), **PRESETS["grpo"][name])
    assert rl(f"grpo: {{preset: {name}}}") == expected
    assert rl("", f"grpo.preset={name}") == expected


def test_the_files_own_keys_lie_over_the_preset(rl):
    found = rl("grpo: {preset: dapo, clip_high: 0.3}")
    assert (found.clip_high, found.overlong_penalty) == (0.3, 1.0)


def test_a_preset_of_the_command_line_lies_over_the_files_keys_and_under_its_own(rl):
    beside = ["grpo.clip_low=0.1", "grpo.preset=gspo"]
    for overrides in (beside, beside[::-1]):
        found = rl("grpo: {preset: dapo, clip_high: 0.3, clip_low: 0.4, kl: k2}", *overrides)
        assert (found.preset, found.ratio) == ("gspo", "sequence")
        assert (found.clip_low, found.clip_high, found.kl) == (0.1, 4e-4, "none")
        assert found.overlong_penalty == 0.0


def test_an_override_can_take_a_preset_away(rl):
    assert rl("grpo: {preset: dapo}", "grpo.preset=''") == GRPOConfig()
    found = rl("grpo: {preset: dapo, clip_low: 0.1}", "grpo.preset=''")
    assert (found.clip_low, found.clip_high, found.overlong_penalty) == (0.1, 0.2, 0.0)


def test_the_last_preset_of_the_command_line_counts(rl):
    found = rl("", "grpo.preset=dapo", "grpo.preset=cispo")
    assert (found.clip_high, found.overlong_penalty) == (4.0, 0.0)


def test_what_a_preset_changes_is_said_once_and_what_wins_over_it(rl, caplog):
    caplog.set_level(logging.INFO)
    rl("grpo: {clip_low: 0.4, kl: none}", "grpo.preset=gspo", "grpo.clip_high=0.1")
    [line] = caplog.messages
    assert line.startswith("grpo.preset=gspo changes ")
    changed, _, kept = line.partition("; keys beside it that win: ")
    assert "clip_low 0.4 -> 0.0003, dual_clip 3.0 -> 0.0" in changed
    assert "kl " not in changed
    assert kept == "clip_high=0.1 (preset: 0.0004)"


def test_without_a_preset_nothing_is_said(rl, caplog):
    caplog.set_level(logging.INFO)
    rl("grpo: {clip_low: 0.4}")
    assert not caplog.messages


def test_an_unknown_preset_is_refused(rl):
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*grpo.preset"):
        rl("grpo: {preset: ppo}")


def test_resolved_settings_load_again(tmp_path):
    path = tmp_path / "rl.yaml"
    path.write_text(RL + "grpo: {preset: cispo, kl_coef: 0.5}")
    config = load(RLConfig, path)
    path.write_text(to_yaml(config))
    assert load(RLConfig, path) == config


def test_a_preset_comes_before_what_names_it():
    named, other = {"grpo": {"preset": "grpo"}}, {"steps": 3}
    layer = "preset grpo.preset=grpo"
    assert list(with_presets({"file": named, "override": other})) == [layer, "file", "override"]
    assert list(with_presets({"file": other, "override": named})) == ["file", layer, "override"]


def test_sections_that_are_no_mapping_name_no_preset():
    assert with_presets({"file": {"grpo": None}}) == {"file": {"grpo": None}}
