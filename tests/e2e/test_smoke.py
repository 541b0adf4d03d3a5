"""EG-RL through its command, on a random model as Reasoner and Embedder: all its parts once."""

import math
import signal
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.chaos.running import family, metrics_of
from tests.e2e.jobs import Job, job_command, job_env, run

STEPS, PAIRS, SIBLINGS = 4, 2, 2
MODEL = "runs/demo/data/model"
SETTINGS = (
    *(f"reasoner={MODEL}", f"reward.model={MODEL}", "reward.gate_by_format=false"),
    *(f"steps={STEPS}", f"pairs={PAIRS}", f"siblings={SIBLINGS}", "checkpoint_every=2"),
    *(f"evaluation.every={STEPS}", "evaluation.samples=4"),
    "data.media.video=video",  # test_demo_jobs.py shows frames, as the demo does
)
FIXED_METRICS = {
    *("reward/total", "reward/format", "reward/outcome", "rank/accuracy", "rank/margin"),
    *("policy/kl", "policy/entropy", "staleness/max", "dropped/total"),
    *("sync/checksum_ok", "sync/logprob_max_abs_diff", "sync/bytes"),
    *("parity/mean", "parity/p999", "parity/max"),
    *("time/rollout_s", "time/reward_s", "time/train_s", "time/sync_s", "time/step_s"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a run that has ended."""
    home = tmp_path_factory.mktemp("smoke")
    run(*job_command("demo_data", "data", "train_scenes=40", "heldout_scenes=10"), home=home)
    run(*job_command("rl", "rl", *SETTINGS), home=home)
    return home / "runs/demo/rl"


@pytest.fixture(scope="module")
def steps(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of every step."""
    first, *steps = metrics_of(folder)
    assert (first["step"], "eval/hit_at_1" in first) == (0, True)
    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    return steps


def test_every_step_has_the_fixed_metrics_and_its_phases_add_up(steps: list) -> None:
    for one in steps:
        assert not FIXED_METRICS - one.keys()
        whole, overlap = one["time/step_s"], one["time/overlap_s"]
        phases = sum(v for k, v in one.items() if k.startswith("time/")) - whole - overlap
        assert math.isclose(phases - overlap, whole, rel_tol=1e-6)
    assert "eval/hit_at_1" in steps[-1]


def test_engines_hold_and_compute_with_the_learners_weights_in_every_step(steps: list) -> None:
    for one in steps:
        assert one["sync/checksum_ok"] == 1.0
        assert one["sync/logprob_max_abs_diff"] < 1e-3
        assert (one["version"], one["staleness/max"]) == (one["step"], 0)


def test_the_policy_leaves_its_reference(steps: list) -> None:
    assert steps[0]["policy/kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[-1]["policy/kl"] > 0
    assert all(one["policy/grad_norm"] > 0 for one in steps)


def test_every_trace_is_in_the_rows_once_and_in_the_accounts(folder: Path, steps: list) -> None:
    keys = []
    for one in steps:
        path = folder / f"trajectories/step-{one['step']:06d}.parquet"
        rows = pq.read_table(path).to_pylist()
        keys += [row["key"] for row in rows]
        trained = [row for row in rows if row["dropped"] is None]
        assert len(rows) == one["traces/issued"] == PAIRS * 2 * SIBLINGS
        assert len(trained) == one["traces/trained"] == len(rows) - one["dropped/total"]
        for row in trained:
            assert row["min_version"] == row["max_version"] == one["step"]
            assert row["rank/gold"] >= 1
            # A picture on the target side comes without words.
            assert row["prompt"] or row["pictures"]
            assert row["templates"].startswith("brief-")
    assert len(set(keys)) == len(keys)


def test_checkpoint_and_export_are_complete(folder: Path) -> None:
    assert (folder / f"checkpoints/step-{STEPS:06d}/loop.json").is_file()
    assert not list((folder / "checkpoints").glob("*.part"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (folder / "export" / name).is_file(), name
    assert "It was trained for the Embedder" in (folder / "export/README.md").read_text()


def test_mlflow_has_every_step_once(folder: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1] / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("embed-rl").experiment_id])
    assert (run.info.run_name, run.info.status) == ("demo/rl", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "reward/total")
    assert [one.step for one in history] == list(range(1, STEPS + 1))
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"resolved.yaml"}


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one that has may still wait for its parent to notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.extended
@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("run folder", signal.SIGINT),
        ("starting a Ray of the job's own", signal.SIGTERM),
        ("waiting for the engines", signal.SIGINT),
    ],
)
def test_a_job_that_is_stopped_before_its_first_step_ends_with_its_code(
    folder: Path, said: str, number: int
) -> None:
    home = folder.parents[2]
    command = job_command("rl", "rl", *SETTINGS, "run.dir=runs/demo/stopped")
    with Job(*command, folder=home, env=job_env(home)) as job:
        job.wait_until(lambda: said in job.printed(), said)
        started = family(job.process.pid)
        job.process.send_signal(number)
        printed = job.finish(exit_code=3)
    assert printed.endswith("exit code 3\n")
    assert "Traceback" not in printed
    assert [process for process in started if runs(process)] == []


@pytest.mark.extended
def test_a_learner_that_disagrees_with_its_engines_ends_with_its_code(folder: Path) -> None:
    home = folder.parents[2]
    strict = job_command("rl", "rl", *SETTINGS, "run.dir=runs/demo/disagrees", "parity.mean=1e-12")
    for step in (1, 2):
        printed = run(*strict, home=home, exit_code=6)
        assert "the engine did not sample from the learner's weights" in printed
        assert f"The same command goes on after step {step}" in printed
    run(*job_command("rl", "rl", *SETTINGS, "run.dir=runs/demo/disagrees"), home=home)
    steps = metrics_of(home / "runs/demo/disagrees")
    assert [one["step"] for one in steps] == list(range(STEPS + 1))
