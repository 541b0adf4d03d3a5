"""On two nodes media are decoded on both, and all bad rows named; needs a process without a Ray."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from tests.e2e.jobs import run
from tests.inputs.bad_rows import MAX_BAD_ROWS, SITE, assert_all_are_named, write_bad_rows
from tests.nodes.conftest import STORE_BYTES

NOTES_NODE = """
def noted(path):
    with open({log!r}, "a") as file:
        file.write(f"{{os.getppid()}}\\n")
    return read(path)
pathlib.Path.read_bytes = noted
"""
"""Added to `SITE`: writes down who started a process that reads media, which is its node."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all processes of nodes that start from now on load a `sitecustomize`; return its log."""
    log = tmp_path / "parents"
    (tmp_path / "sitecustomize.py").write_text(SITE + NOTES_NODE.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return log


def test_two_nodes_decode_all_media_and_each_bad_row_is_named(
    site: Path, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    sets = write_bad_rows(tmp_path)
    data = {"train": [asdict(own) for own in sets.values()], "max_bad_rows": MAX_BAD_ROWS}
    config = tmp_path / "check.yaml"
    config.write_text(yaml.safe_dump({"run": {"dir": "runs/check"}, "data": data}))
    command = [sys.executable, "-m", "cluster.jobs.check_data", str(config)]
    run(*command, home=tmp_path, RAY_ADDRESS=cluster.address)
    assert_all_are_named(tmp_path / "runs/check/quarantine.parquet", sets)
    nodes = set(site.read_text().split()) - {str(os.getpid())}
    assert len(nodes) == 2
