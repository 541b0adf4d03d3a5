"""Traces and vectors from the stores, else from pools, here ones without engines."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import inference
from cluster.inference import Blocks, TraceSource, VectorSource, engine_roles
from cluster.pictures import SharedPictures
from cluster.run.stage_loop import plain_console
from configs.common import MediaConfig, PoolConfig, RolloutConfig
from configs.reward import RewardConfig
from data.errors import DataError
from data.stores.keys import content_key
from data.stores.traces import Subject, TraceCost
from data.types import (
    Content,
    DroppedTrajectory,
    EmbedRequest,
    GenerationRequest,
    Item,
    Side,
    Trajectory,
)


class NoPictures:
    """Stands in for `cluster.pictures.Decoder`: no content here shows a picture."""

    def share_blocks(
        self, requests: Sequence, contents: Sequence[Content], limits: MediaConfig, *, block: int
    ) -> Iterator[tuple[Sequence, SharedPictures, dict[str, str]]]:
        for start in range(0, len(requests), block):
            yield requests[start : start + block], SharedPictures((), {}), {}


class Writers:
    """Stands in for `RolloutPool`: a trace names its content and seed; `bad` ones are dropped."""

    asked: list[list[GenerationRequest]]

    def __init__(self, model: str, rollout: RolloutConfig, media: MediaConfig) -> None:
        pass

    def ready(self) -> None:
        pass

    def generate(
        self, requests: Sequence[GenerationRequest], pictures: SharedPictures
    ) -> tuple[list[Trajectory], list[DroppedTrajectory]]:
        self.asked.append(list(requests))
        bad = [r for r in requests if r.content == ("bad",) and r.seed == 1]
        return (
            [self._trajectory(r) for r in requests if r not in bad],
            [DroppedTrajectory(r.key, "poisoned", "it killed") for r in bad],
        )

    def _trajectory(self, request: GenerationRequest) -> Trajectory:
        return Trajectory(
            key=request.key,
            prompt_ids=np.zeros(1, dtype=np.int64),
            response_ids=np.zeros(10 + request.seed, dtype=np.int64),
            logprobs=np.zeros(10 + request.seed, dtype=np.float32),
            text=f"{request.content[0]} {'greedy' if request.greedy else request.seed}",
            finish="stop",
            min_version=1,
            max_version=1,
        )

    def close(self) -> None:
        pass


class Embedders:
    """Stands in for `RewardPool`."""

    def __init__(self, reward: RewardConfig, media: MediaConfig) -> None:
        pass

    def ready(self) -> None:
        pass

    def embed(
        self, requests: Sequence[EmbedRequest], pictures: SharedPictures
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return {request.key: np.ones(3) for request in requests}, {}

    def close(self) -> None:
        pass


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a model's folder; its engines are the ones above."""
    monkeypatch.setattr(inference, "RolloutPool", Writers)
    monkeypatch.setattr(inference, "RewardPool", Embedders)
    monkeypatch.setattr(Writers, "asked", [], raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


@pytest.fixture
def source(model: str, tmp_path: Path) -> TraceSource:
    return TraceSource(
        model=model,
        rollout=RolloutConfig(),
        templates="brief",
        blocks=Blocks(NoPictures(), MediaConfig(), 4, plain_console()),
        store=tmp_path / "store",
        made_by="a test",
    )


def asked(*texts: str) -> list[tuple[Subject, Content]]:
    return [
        (Subject(key=content_key((t,)), item=Item(text=t), side=Side.QUERY, task="s"), (t,))
        for t in texts
    ]


def test_samples_are_one_trace_of_each_seed_and_none_is_made_twice(source) -> None:
    subjects = asked("a", "b", "c")
    keys = [subject.key for subject, _ in subjects]
    first = source.sampled(subjects[:2], samples=2)
    assert first == [{keys[0]: f"a {seed}", keys[1]: f"b {seed}"} for seed in (0, 1)]
    again = source.sampled(subjects, samples=3)
    assert [list(traces.values()) for traces in again] == [
        [f"{text} {seed}" for text in "abc"] for seed in range(3)
    ]
    requests = [request for block in Writers.asked for request in block]
    assert len(requests) == 9
    assert not any(request.greedy for request in requests)
    # Samples of one item follow each other in one group, whose prompt an engine reads once.
    assert [(r.content[0], r.seed, r.key.sibling) for r in Writers.asked[0]] == [
        (text, seed, seed) for text in "ab" for seed in (0, 1)
    ]
    assert [r.key.group for r in Writers.asked[0][:2]] == [Writers.asked[0][0].key.group] * 2


def test_greedy_traces_are_not_the_samples(source) -> None:
    subjects = asked("a")
    assert source.sampled(subjects, samples=1) == [{subjects[0][0].key: "a 0"}]
    assert source.greedy(subjects) == {subjects[0][0].key: "a greedy"}
    assert Writers.asked[-1][0].greedy


def test_a_seed_with_too_many_failures_is_refused(source) -> None:
    with pytest.raises(DataError, match="1 missing; 1 failed: poisoned it killed"):
        source.sampled(asked("a", "bad"), samples=2)
    lenient = replace(source, most_missing=0.5)
    assert [len(traces) for traces in lenient.sampled(asked("a", "bad"), samples=2)] == [2, 1]


def test_the_cost_of_greedy_traces_is_known_after_the_run_that_wrote_them(source) -> None:
    subjects = asked("a", "b")
    keys = [subject.key for subject, _ in subjects]
    assert source.stored().cost(keys) == TraceCost()
    source.greedy(subjects)
    source.sampled(subjects, samples=3)
    cost = source.stored().cost(keys)
    assert cost.tokens == 10
    assert cost.wall_ms > 0
    assert source.stored().tokens(keys) == dict.fromkeys(keys, 10)


def test_the_rate_of_the_embedder_is_known_after_the_run_that_embedded(model, tmp_path) -> None:
    source = VectorSource.of(
        reward=RewardConfig(model=model),
        blocks=Blocks(NoPictures(), MediaConfig(), 4, plain_console()),
        store=tmp_path,
        memory_bytes=1 << 20,
    )
    keys = [content_key((text,)) for text in "ab"]
    assert source.per_second(keys) is None
    source.embed([EmbedRequest(key=k, content=(t,)) for k, t in zip(keys, "ab", strict=True)])
    assert source.per_second(keys) > 0


def test_a_plan_shows_both_pools_in_turn_and_asks_for_the_larger_one():
    rollout = RolloutConfig(pool=PoolConfig(actors=2, cpus=4, gpus=1))
    reward = RewardConfig(model="m", pool=PoolConfig(actors=8, cpus=1, gpus=1))
    [role] = engine_roles(reward, rollout)
    assert str(role) == "rollout: 2 x (4 CPU, 1 GPU), then reward: 8 x (1 CPU, 1 GPU)"
    assert (role.name, role.actors, role.gpus) == ("reward", 8, 1)
    assert list(map(str, engine_roles(reward, None))) == ["reward: 8 x (1 CPU, 1 GPU)"]
