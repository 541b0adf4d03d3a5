"""Sizes asked for on the command line, before any Ray is asked."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from cluster.jobs.scale import main
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[4]


def test_a_job_that_has_finished_takes_no_sizes(tmp_path, capsys):
    (tmp_path / "stage.json").write_text("{}")
    assert main([str(tmp_path), "rollout=2"]) == 1
    assert f"expected a job that runs in {tmp_path}, found one that" in capsys.readouterr().err


def test_what_is_no_number_of_actors_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "rollout=two"]) == 1
    assert "expected pool=count with a whole number, found rollout=two" in capsys.readouterr().err


def test_a_dashboards_address_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert main([str(tmp_path), "rollout=2"]) == 2
    assert "which only `ray job` commands talk to" in capsys.readouterr().err


def test_an_address_without_a_cluster_is_named(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main([str(tmp_path), "rollout=2"]) == 1
    assert f"on the Ray cluster of RAY_ADDRESS={address}, found none" in capsys.readouterr().err


def test_a_ray_that_never_answers_ends_the_command_with_a_message(tmp_path):
    code = "import cluster.jobs.scale as s; s.ANSWER_TIMEOUT_S = 0.1; s.main(['run', 'rollout=2'])"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": address, "EMBED_RL_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 1
    assert "run: no answer of the job's Ray in 0.1 s" in done.stderr
