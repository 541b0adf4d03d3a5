"""What a learner group says when a rank dies, its input is wrong, or a checkpoint is missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.learner_group import LearnerGroup
from configs.schema import LearnerConfig, MediaConfig
from data.errors import ActorLost, CheckpointError, ClusterError, DataError
from data.types import Kind, Picture, TrainSample

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


@pytest.fixture
def start(local_ray: str, tiny_folder: Path) -> Callable[[int], LearnerGroup]:
    """Return a function that starts a group; its first failure stops it."""

    def start_group(ranks: int) -> LearnerGroup:
        group = LearnerGroup(LearnerConfig(ranks=ranks, bf16=False, timeout_s=60.0))
        group.build_supervised(model=str(tiny_folder), media=MEDIA, total_steps=1, seed=0)
        return group

    return start_group


@pytest.fixture
def pictures(local_ray: str) -> ray.ObjectRef:
    return ray.put({"a": np.zeros((32, 32, 3), dtype=np.uint8)})


def test_a_dead_rank_is_named(start, pictures):
    group = start(2)
    ray.kill(group._ranks[1])
    with pytest.raises(ActorLost, match="rank 1 died"):
        group.train_supervised([TEXT, TEXT], pictures)


def test_picture_tokens_that_do_not_match_are_named(start, pictures):
    with pytest.raises(DataError, match="s1: expected 1 picture tokens"):
        start(2).train_supervised([TEXT, UNEXPANDED], pictures)


def test_a_missing_checkpoint_is_refused(start, tmp_path):
    group = start(1)
    with pytest.raises(CheckpointError, match="expected a complete checkpoint"):
        group.load(tmp_path / "nothing")
    with pytest.raises(ClusterError, match="the group was stopped"):
        group.save(tmp_path / "nothing")
