"""On two nodes `encode` embeds on both, each item once; needs a process without a Ray."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from tests.answered_requests import answered_requests, write_site
from tests.builders import write_picture
from tests.e2e.jobs import run
from tests.nodes.conftest import STORE_BYTES
from tests.tiny_model import write_tiny_model

PICTURES = 48


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all processes of nodes that start from now on write down what engines answer."""
    folder = write_site(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


def test_two_nodes_embed_each_item_once(site: Path, cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "items").mkdir()
    for number in range(PICTURES):
        write_picture(tmp_path / f"items/{number:02d}.png", 64 + number, 64)
    settings = {
        "run.dir": "runs/encode",
        "input": "items",
        "reasoner": "''",
        "reward.model": "model",
        "reward.pool.actors": "2",
        "reward.engine.max_num_seqs": "4",
        "block": "24",
    }
    command = [sys.executable, "-m", "cluster.jobs.encode", "configs/demo/encode.yaml"]
    command += [f"{key}={value}" for key, value in settings.items()]
    run(*command, home=tmp_path, RAY_ADDRESS=cluster.address)
    parts = sorted((tmp_path / "runs/encode/encoded").glob("part-*.parquet"))
    ids = [name for part in parts for name in pq.read_table(part)["id"].to_pylist()]
    assert ids == [f"{number:02d}.png" for number in range(PICTURES)]
    answered = answered_requests(site)
    assert len(answered) == 2
    keys = [key for of_node in answered.values() for key in of_node]
    assert len(keys) == len(set(keys)) == PICTURES
