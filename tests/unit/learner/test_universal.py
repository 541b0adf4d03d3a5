"""A checkpoint is converted where only the number of its ranks is another one."""

import json
from pathlib import Path

import pytest

from configs.learner import LearnerConfig
from learner.universal import SHAPE_FILE, needs_conversion, universal_folder

WRITTEN = {"ranks": 2, "zero_stage": 3, "bf16": True, "trained_parameters": 9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / SHAPE_FILE).write_text(json.dumps(WRITTEN))
    return tmp_path


def test_another_number_of_ranks_needs_it(folder: Path) -> None:
    assert needs_conversion(folder, LearnerConfig(ranks=4, zero_stage=3))
    assert not needs_conversion(folder, LearnerConfig(ranks=2, zero_stage=3))


def test_what_the_ranks_refuse_is_left_to_them(folder: Path) -> None:
    assert not needs_conversion(folder, LearnerConfig(ranks=4, zero_stage=2))
    assert not needs_conversion(folder, LearnerConfig(ranks=4, zero_stage=3, bf16=False))
    assert not needs_conversion(folder / "nothing", LearnerConfig(ranks=4, zero_stage=3))


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_a_damaged_checkpoint_is_left_to_the_ranks(folder: Path, text: str) -> None:
    (folder / SHAPE_FILE).write_text(text)
    assert not needs_conversion(folder, LearnerConfig(ranks=4, zero_stage=3))


def test_without_zero_no_rank_needs_another_form(folder: Path) -> None:
    (folder / SHAPE_FILE).write_text(json.dumps({**WRITTEN, "zero_stage": 0, "bf16": False}))
    assert not needs_conversion(folder, LearnerConfig(ranks=4, zero_stage=0, bf16=False))


def test_the_converted_form_lies_beside_it() -> None:
    assert universal_folder(Path("a/learner")) == Path("a/learner.universal")
