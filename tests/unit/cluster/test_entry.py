"""How a job starts: settings, dry run, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.entry import run_job
from cluster.session import Role
from configs.errors import ConfigError
from configs.schema import WarmStartConfig
from data.errors import (
    ActorLost,
    CheckpointError,
    DataError,
    DivergedError,
    StopRequested,
    WeightSyncError,
)

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
run: {dir: runs/x}
model: models/m
data: {train: [{name: birds, path: birds.json, root: pictures}]}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBED_RL_ROOT", raising=False)
    (tmp_path / "job.yaml").write_text(TEXT)
    return "job.yaml"


def never(config):
    raise AssertionError("the job must not start")


def test_a_job_gets_its_settings_and_gives_its_exit_code(path):
    seen = []

    def main(config):
        seen.append(config)
        return 5

    assert run_job(WarmStartConfig, main, argv=[path, "steps=3", "run.seed=4"]) == 5
    assert (seen[0].steps, seen[0].run.seed) == (3, 4)


def test_a_job_runs_in_the_project_root(path, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("EMBED_RL_ROOT", str(home))

    def main(config):
        return int(Path.cwd() == home)

    assert run_job(WarmStartConfig, main, argv=[path]) == 1
    assert Path(os.getcwd()) == home


def test_wrong_settings_end_with_two_before_the_job_starts(path, capsys):
    assert run_job(WarmStartConfig, never, argv=[path, "steps=0", "stepz=1"]) == 2
    error = capsys.readouterr().err
    assert "steps: expected more than 0" in error
    assert "stepz" in error
    assert error.endswith("\nexit code 2\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (DataError("why"), 2),
        (ActorLost("why"), 1),
        (WeightSyncError("why"), 1),
        (CheckpointError("why"), 1),
        (DivergedError("why"), 1),
        (StopRequested("why"), 3),
    ],
)
def test_expected_failures_end_with_a_message_and_their_code(path, capsys, error, code):
    def main(config):
        raise error

    assert run_job(WarmStartConfig, main, argv=[path]) == code
    assert capsys.readouterr().err.endswith(f"why\nexit code {code}\n")


def test_defects_are_not_hidden(path):
    def main(config):
        raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        run_job(WarmStartConfig, main, argv=[path])


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_dry_run_prints_settings_plan_and_data_wherever_it_is_asked_for(path, capsys, place):
    argv = [path, "steps=3", "run.seed=4"]
    argv.insert(place, "--dry-run")

    def roles(config):
        return [Role("learner", 2, 1.5, 0.5), Role("rollout", 1, 1, 0)]

    assert run_job(WarmStartConfig, never, roles=roles, argv=argv) == 0
    out = capsys.readouterr().out
    assert "steps: 3" in out
    assert "seed: 4" in out
    assert "learner: 2 x (1.5 CPU, 0.5 GPU)" in out
    assert "in all: 4 CPU, 1 GPU" in out
    assert "birds: birds.json (mmeb, image, weight 1, not there)" in out


def test_a_dry_run_leaves_no_folder_behind(path, tmp_path):
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.yaml"]


def test_settings_are_checked_without_what_takes_seconds_to_load():
    jobs = [path.stem for path in (ROOT / "cluster/jobs").glob("[a-z]*.py")]
    slow = ["torch", "transformers", "deepspeed", "peft", "vllm", "mlflow"]
    code = f"""
import importlib, sys
for job in {jobs}:
    importlib.import_module(f"cluster.jobs.{{job}}")
print(*sorted(sys.modules.keys() & set({slow})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "rl" in jobs
    assert done.stdout.split() == []
