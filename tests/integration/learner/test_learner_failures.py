"""A learner group that loses a rank, is given wrong input, or reads another group's checkpoint."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.learner_group import LearnerGroup
from configs.common import MediaConfig
from configs.learner import LearnerConfig
from data.errors import CheckpointError, ClusterError, DataError, LearnerLost
from data.types import Kind, Picture, TrainSample
from tests.patience import PATIENCE_S
from tests.shared_pictures import share_pictures
from tests.workers import die_in_backward, limit_files

MEDIA = MediaConfig(
    **{
        f"{what}_{end}_pixels": 32 * 32
        for what in ("image", "page", "frame", "crop")
        for end in ("min", "max")
    }
)
TEXT = TrainSample(
    key="s0", content=("x",), prompt_ids=np.array([20, 21]), response_ids=np.array([22])
)
UNEXPANDED = TrainSample(
    key="s1",
    content=(Picture("a", Kind.IMAGE), "x"),
    prompt_ids=np.array([20, 21]),
    response_ids=np.array([22]),
)
STEPS = 5
Metrics = list[dict[str, float]]


def build(group: LearnerGroup, tiny_folder: Path, **changes: object) -> LearnerGroup:
    ranks, cpus = group.config.ranks, group.config.cpus
    settings = {"bf16": False, "timeout_s": PATIENCE_S, **changes}
    group.config = LearnerConfig(ranks=ranks, cpus=cpus, **settings)
    group.build_supervised(model=str(tiny_folder), media=MEDIA, total_steps=9, seed=0)
    return group


@pytest.fixture(scope="module")
def pictures(local_ray: str) -> ray.ObjectRef:
    return share_pictures({"a": np.zeros((32, 32, 3), dtype=np.uint8)})


def batch(step: int) -> list[TrainSample]:
    rng = np.random.default_rng(step)
    return [
        dataclasses.replace(TEXT, key=f"{step}/{i}", response_ids=rng.integers(20, 300, 3 + i))
        for i in range(6)
    ]


def train(group: LearnerGroup, pictures: ray.ObjectRef, *, first: int = 0) -> Metrics:
    return [group.train_supervised(batch(first + i), pictures).metrics for i in range(STEPS)]


@pytest.fixture(scope="module")
def written(group_of, tiny_folder, pictures, tmp_path_factory) -> dict[int, tuple[Path, Metrics]]:
    """Return, by ZeRO stage, a checkpoint of two ranks and what their next steps gave."""
    found = {}
    for zero_stage in (0, 1, 2, 3):
        folder = tmp_path_factory.mktemp("two") / "learner"
        group = build(group_of(2), tiny_folder, zero_stage=zero_stage)
        train(group, pictures)
        group.save(folder)
        found[zero_stage] = folder, train(group, pictures, first=STEPS)
    return found


def test_a_group_that_lost_a_rank_goes_on_from_its_checkpoint_bit_for_bit(
    group, tiny_folder, pictures, tmp_path
):
    build(group, tiny_folder)
    train(group, pictures)
    group.save(tmp_path / "learner")
    straight = train(group, pictures, first=STEPS)
    ray.get(group._ranks[1].__ray_call__.remote(die_in_backward), timeout=PATIENCE_S)
    with pytest.raises(LearnerLost, match="rank 1 died while supervised training"):
        train(group, pictures, first=STEPS)
    assert not group.running
    group.restart()
    assert group.load(tmp_path / "learner") == STEPS
    assert train(group, pictures, first=STEPS) == straight


def test_picture_tokens_that_do_not_match_are_named(group, tiny_folder, pictures):
    with pytest.raises(DataError, match="s1: expected 1 picture tokens"):
        build(group, tiny_folder).train_supervised([TEXT, UNEXPANDED], pictures)


def test_a_missing_checkpoint_is_refused(group, tiny_folder, tmp_path):
    build(group, tiny_folder)
    with pytest.raises(CheckpointError, match="expected a complete checkpoint"):
        group.load(tmp_path / "nothing")
    with pytest.raises(ClusterError, match="the group was stopped"):
        group.save(tmp_path / "nothing")


@pytest.mark.extended
def test_a_checkpoint_that_the_system_refuses_to_write_is_no_lost_rank(
    group, tiny_folder, tmp_path
):
    build(group, tiny_folder)
    for rank in group._ranks:
        ray.get(rank.__ray_call__.remote(limit_files, 1 << 20), timeout=PATIENCE_S)
    with pytest.raises(CheckpointError, match=r"rank \d could not write it"):
        group.save(tmp_path / "learner")
    assert not (tmp_path / "learner").exists()


@pytest.mark.extended
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_rank_goes_on_from_two_ranks_checkpoint(
    group_of, tiny_folder, pictures, written, zero_stage, caplog
):
    folder, straight = written[zero_stage]
    group = build(group_of(1), tiny_folder, zero_stage=zero_stage)
    with caplog.at_level("INFO", "cluster.learner_group"):
        assert group.load(folder) == STEPS
    assert ("converting it for 1 ranks" in caplog.text) == (zero_stage > 0)
    for found, expected in zip(train(group, pictures, first=STEPS), straight, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
