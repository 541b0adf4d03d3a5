"""Vectors of rivals have stores of their own, here from pools without engines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import inference, rivals
from cluster.inference import Blocks, engine_roles
from cluster.pictures import SharedPictures
from cluster.rivals import embed_with_rival
from cluster.run.stage_loop import plain_console
from configs.common import MediaConfig, PoolConfig
from configs.reward import RewardConfig
from configs.schema import RivalConfig
from data.stores.keys import content_key
from data.types import EmbedRequest, Side
from tests.unit.cluster.test_inference import NoPictures

TEXTS = ("a", "b")
A, BAD = (content_key((text,)) for text in ("a", "bad"))


class Embedders:
    """Stands in for pools of Embedders; keeps what each was opened with."""

    opened: list[tuple[Any, ...]]

    def __init__(self, *given: Any, **settings: Any) -> None:
        self.opened.append((*given, settings))

    def ready(self) -> None:
        pass

    def embed(
        self, requests: Sequence[EmbedRequest], pictures: SharedPictures
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return {r.key: np.full(3, len(self.opened)) for r in requests if r.key != BAD}, {
            r.key: "it is bad" for r in requests if r.key == BAD
        }

    def close(self) -> None:
        pass


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what embeds with a rival; its engines are the ones above."""
    monkeypatch.setattr(inference, "RewardPool", Embedders)
    monkeypatch.setattr(rivals, "EmbedderPool", Embedders)
    monkeypatch.setattr(Embedders, "opened", [], raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    blocks = Blocks(NoPictures(), MediaConfig(), 4, plain_console())

    def embed(*texts: str, **settings: Any):
        rival = RivalConfig(name="other", model=str(tmp_path / "model"), **settings)
        requests = [EmbedRequest(key=content_key((text,)), content=(text,)) for text in texts]
        return embed_with_rival(
            dict.fromkeys(Side, requests),
            rival=rival,
            blocks=blocks,
            store=tmp_path / "store",
            memory_bytes=1 << 20,
        )

    return embed


def test_each_side_has_actors_and_a_store_of_its_own(embedded) -> None:
    vectors = embedded(*TEXTS, prompts={"query": "q: "})
    assert [float(vectors[side][A][0]) for side in (Side.QUERY, Side.TARGET)] == [1.0, 2.0]
    assert [opened[-1]["side"] for opened in Embedders.opened] == [Side.QUERY, Side.TARGET]
    assert Embedders.opened[0][-1]["prompts"] == {"query": "q: "}
    assert [opened[0] for opened in Embedders.opened] == ["rival", "rival"]


def test_nothing_is_embedded_twice(embedded) -> None:
    first = embedded(*TEXTS)
    again = embedded(*TEXTS)
    assert len(Embedders.opened) == 2
    for side in Side:
        assert {key: row.tolist() for key, row in again[side].items()} == {
            key: row.tolist() for key, row in first[side].items()
        }
    embedded(*TEXTS, prompts={"query": "q: "})
    assert len(Embedders.opened) == 4


def test_vllm_reads_both_sides_alike_with_the_settings_of_a_reward(embedded) -> None:
    vectors = embedded(*TEXTS, library="vllm", pooling="last", instruction="Represent.")
    [(reward, _, _)] = Embedders.opened
    assert (reward.pooling, reward.instruction) == ("last", "Represent.")
    assert vectors[Side.QUERY][A].tolist() == vectors[Side.TARGET][A].tolist()


def test_what_fails_is_left_out(embedded, capsys) -> None:
    vectors = embedded("a", "bad")
    assert [list(vectors[side]) for side in Side] == [[A], [A]]
    assert "1 contents not embedded: it is bad" in capsys.readouterr().out


def test_a_job_asks_for_its_largest_pool() -> None:
    rivals = {"other": PoolConfig(actors=2, cpus=3)}
    [role] = engine_roles(RewardConfig(model="m"), None, rivals)
    assert (role.name, role.actors, role.cpus, role.gpus) == ("other", 2, 3, 0)
    assert str(role) == "reward: 1 x (1 CPU, 0 GPU), then other: 2 x (3 CPU, 0 GPU)"
