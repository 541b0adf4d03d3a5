"""A learner group that loses a rank, is given wrong input, or reads another group's checkpoint."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from cluster.learner_group import LearnerGroup
from cluster.pictures import share_pictures
from configs.schema import LearnerConfig, MediaConfig
from data.errors import CheckpointError, ClusterError, DataError, LearnerLost
from data.types import Kind, Picture, TrainSample
from tests.patience import PATIENCE_S

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


@pytest.fixture(scope="module")
def start(local_ray: str, tiny_folder: Path) -> Iterator[Callable[..., LearnerGroup]]:
    """Return a function that gives the running group of so many ranks, freshly built."""
    groups: list[LearnerGroup] = []

    def start_group(ranks: int, **changes: object) -> LearnerGroup:
        config = LearnerConfig(ranks=ranks, bf16=False, timeout_s=PATIENCE_S, **changes)
        if not groups or groups[0].config.ranks != ranks:
            for old in groups:
                old.close()
            groups[:] = [LearnerGroup(config)]
        group = groups[0]
        group.config = config
        group.build_supervised(model=str(tiny_folder), media=MEDIA, total_steps=9, seed=0)
        return group

    yield start_group
    groups[0].close()


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
def written(start, pictures, tmp_path_factory) -> dict[int, tuple[Path, Metrics]]:
    """Return, by ZeRO stage, a checkpoint of two ranks and what their next steps gave."""
    found = {}
    for zero_stage in (0, 1, 2, 3):
        folder = tmp_path_factory.mktemp("two") / "learner"
        group = start(2, zero_stage=zero_stage)
        train(group, pictures)
        group.save(folder)
        found[zero_stage] = folder, train(group, pictures, first=STEPS)
    return found


def kill_in_a_step(group: LearnerGroup, pictures: ray.ObjectRef) -> None:
    """Kill rank 1 with SIGKILL while both compute a long step."""
    rank = psutil.Process(ray.get(group._ranks[1].__ray_call__.remote(lambda self: os.getpid())))
    long = [dataclasses.replace(TEXT, response_ids=np.full(2000, 22)) for _ in range(20)]
    with ThreadPoolExecutor(1) as pool:
        idle = rank.cpu_times().user
        step = pool.submit(group.train_supervised, long, pictures)
        while rank.cpu_times().user < idle + 0.2 and not step.done():
            pass
        rank.send_signal(signal.SIGKILL)
        step.result()


def test_a_group_that_lost_a_rank_goes_on_from_its_checkpoint_bit_for_bit(
    start, pictures, tmp_path
):
    group = start(2)
    train(group, pictures)
    group.save(tmp_path / "learner")
    straight = train(group, pictures, first=STEPS)
    with pytest.raises(LearnerLost, match="rank 1 died while supervised training"):
        kill_in_a_step(group, pictures)
    assert not group.running
    group.restart()
    assert group.load(tmp_path / "learner") == STEPS
    assert train(group, pictures, first=STEPS) == straight


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_rank_goes_on_from_two_ranks_checkpoint(start, pictures, written, zero_stage):
    folder, straight = written[zero_stage]
    group = start(1, zero_stage=zero_stage)
    assert group.load(folder) == STEPS
    for found, expected in zip(train(group, pictures, first=STEPS), straight, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_picture_tokens_that_do_not_match_are_named(start, pictures):
    with pytest.raises(DataError, match="s1: expected 1 picture tokens"):
        start(1).train_supervised([TEXT, UNEXPANDED], pictures)


def test_a_missing_checkpoint_is_refused(start, tmp_path):
    group = start(1)
    with pytest.raises(CheckpointError, match="expected a complete checkpoint"):
        group.load(tmp_path / "nothing")
    with pytest.raises(ClusterError, match="the group was stopped"):
        group.save(tmp_path / "nothing")
