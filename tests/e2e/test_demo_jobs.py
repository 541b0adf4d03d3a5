"""All jobs of the demo in order, small, as the processes a user starts; RL through `ray job`."""

import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.run_folder import RUN_ID_FILE
from tests.chaos.running import family, metrics_of, named
from tests.patience import PATIENCE_S

JOB_S = 1800.0
"""Longest wait for what a job does; one that failed is seen at once."""
# The module fixture runs eight jobs: the limit is for all of them together.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3 * JOB_S)]
REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
STEPS = 12
"""RL steps: a few seconds' work is left when a test sees the first ones and then interferes."""
SMALL = {
    "demo_data data": ["train_scenes=160", "heldout_scenes=40"],
    "warm_start sight": ["steps=6", "evaluation.every=3", "evaluation.samples=8"],
    "warm_start grounding": ["steps=6", "evaluation.every=3", "evaluation.samples=8"],
    "embedder embedder": ["steps=6", "evaluation.every=3", "evaluation.samples=16"],
    "warm_start warm_start": ["steps=6", "evaluation.every=3", "evaluation.samples=8"],
    "rl rl": [
        f"steps={STEPS}",
        "pairs=4",
        "siblings=2",
        f"evaluation.every={STEPS}",
        "evaluation.samples=8",
        "checkpoint_every=2",
        "reward.gate_by_format=false",
    ],
    "evaluate evaluate": ["bootstrap=50"],
    "report report": ["gallery=4"],
}
FIXED_METRICS = (
    *("reward/total", "reward/format", "reward/outcome", "rank/accuracy", "rank/margin"),
    *("policy/kl", "policy/entropy", "staleness/max", "dropped/total"),
    *("sync/checksum_ok", "sync/logprob_max_abs_diff", "sync/bytes"),
    *("time/rollout_s", "time/reward_s", "time/train_s", "time/sync_s", "time/step_s"),
)


def run(*command: str, home: Path, **env: str) -> str:
    """Run one command in the repository with its outputs under ``home``; return what it printed."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "EMBED_RL_ROOT": str(home), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_S,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}"
    return done.stdout


def job_command(name: str) -> list[str]:
    job, config = name.split()
    return ["-m", f"cluster.jobs.{job}", f"configs/demo/{config}.yaml", *SMALL[name]]


@dataclass(frozen=True)
class Head:
    """A Ray head of the test's own."""

    address: str
    dashboard: str
    env: dict[str, str]
    """The environment to reach it with."""


def submit(job: list[str], *, home: Path, head: Head) -> None:
    """Run a job on the head; the agent that starts jobs is up some seconds after the dashboard."""
    submission = [
        *("job", "submit", "--address", head.dashboard, "--working-dir", "."),
        *("--runtime-env-json", json.dumps({"env_vars": {"EMBED_RL_ROOT": str(home)}})),
    ]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            run(RAY, *submission, "--", sys.executable, *job, home=home, **head.env)
            return
        except AssertionError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, below those that the system gives out by itself."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


@contextmanager
def ray_head(home: Path, *, cpus: int = 2) -> Iterator[Head]:
    """Run a Ray head."""
    env = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"), "RAY_AUTH_MODE": "token"}
    # Two heads with one agent port: the later one never has an agent to start jobs.
    port, dashboard, agent = free_ports(3)
    ports = f"--port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env)
    options = f"--head --block --num-cpus={cpus} {ports}"
    with (home / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [RAY, "start", *options.split(), "--disable-usage-stats"],
            env={**os.environ, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{head.dashboard}/api/version", timeout=5):
                    break
            except urllib.error.HTTPError:
                break  # it asks for the token
            except OSError:
                assert process.poll() is None, (home / "ray.log").read_text()
                assert time.monotonic() < deadline, "Ray's dashboard does not answer"
                time.sleep(0.5)
        yield head
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        kill_tree(process)
        shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


@contextmanager
def ray_node(head: Head, log: Path) -> Iterator[subprocess.Popen]:
    """Run a further node of the head's cluster, which alone has what Ray takes for a GPU."""
    options = f"--address={head.address} --block --num-cpus=1 --num-gpus=1 --disable-usage-stats"
    with log.open("w") as output:
        node = subprocess.Popen(
            [RAY, "start", *options.split()],
            env={**os.environ, **head.env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        # Two nodes of one machine that start at once may choose the same ports.
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"the node is not there: {log.read_text()}"
            time.sleep(0.5)
        yield node
    finally:
        kill_tree(node)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started, at once, as when a machine goes away."""
    if process.poll() is None:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every job of the demo has run once, RL as a submitted Ray job."""
    home = tmp_path_factory.mktemp("demo")
    for name in SMALL:
        if name != "rl rl":
            run(sys.executable, *job_command(name), home=home)
            continue
        with ray_head(home) as head:
            submit(job_command(name), home=home, head=head)
    return home


def test_metrics_name_every_phase_and_the_phases_add_up(home: Path) -> None:
    steps = metrics_of(home / "runs/demo/rl")
    assert [one["step"] for one in steps] == list(range(STEPS + 1))
    assert "eval/hit_at_1" in steps[0]
    for one in steps[1:]:
        assert not [name for name in FIXED_METRICS if name not in one]
        assert one["sync/checksum_ok"] == 1.0
        assert one["sync/logprob_max_abs_diff"] < 1e-3
        whole, overlap = one["time/step_s"], one["time/overlap_s"]
        phases = sum(v for k, v in one.items() if k.startswith("time/")) - whole - overlap
        assert math.isclose(phases - overlap, whole, rel_tol=1e-6)
    assert "eval/hit_at_1" in steps[STEPS]


def test_every_trajectory_is_kept_with_its_reward(home: Path) -> None:
    rows = pq.read_table(home / "runs/demo/rl/trajectories/step-000001.parquet").to_pylist()
    assert len(rows) == 4 * 2 * 2
    assert len({row["key"] for row in rows}) == len(rows)
    kept = [row for row in rows if row["dropped"] is None]
    assert kept
    for row in kept:
        assert row["min_version"] == 1
        assert row["rank/gold"] >= 1
        # A picture on the target side comes without words.
        assert row["prompt"] or row["pictures"]
        assert row["templates"].startswith("brief-")


def test_summary_and_report_are_complete(home: Path) -> None:
    summary = json.loads((home / "runs/demo/summary.json").read_text())
    assert set(summary["hit_at_1"]) == {
        "no_cot",
        "warm_start_text",
        "warm_start",
        "eg_rl_text",
        "eg_rl",
    }
    assert set(summary["valid"]) == set(summary["on_target"]) == {"warm_start", "eg_rl"}
    assert set(summary["seconds"]) >= {"data", "sight", "embedder", "warm_start", "rl"}
    assert summary["steps"] == STEPS
    page = (home / "runs/demo/report.html").read_text()
    assert "data:image/" in page
    assert "<svg" in page or "data:image/png" in page


def test_checkpoint_and_export_are_complete(home: Path) -> None:
    folder = home / "runs/demo/rl"
    assert (folder / f"checkpoints/step-{STEPS:06d}/loop.json").is_file()
    assert not list((folder / "checkpoints").glob("*.part"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (folder / "export" / name).is_file(), name


def wait_until(job: subprocess.Popen, there: Callable[[], bool], what: str) -> None:
    """Wait for something that a running job does."""
    deadline = time.monotonic() + JOB_S
    while not there():
        assert job.poll() is None, f"the job ended before {what}"
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.1)


def kept_after_restart(folder: Path) -> bool:
    """Return whether a step that was done by new ranks has its checkpoint."""
    return any(
        one.get("learner/restarts") == 1
        and (folder / f"checkpoints/step-{one['step']:06d}").is_dir()
        for one in metrics_of(folder)
    )


def traces(folder: Path, step: int) -> list[tuple[str, str]]:
    rows = pq.read_table(folder / f"trajectories/step-{step:06d}.parquet").to_pylist()
    return sorted((row["key"], row["text"]) for row in rows)


def serials(folder: Path) -> list[int]:
    """Return the numbers of the groups that a run has trained on, each step's once."""
    groups = [{key.rsplit("/", 2)[0] for key, _ in traces(folder, n + 1)} for n in range(STEPS)]
    return [int(key.split("/")[0].removeprefix("g=")) for some in groups for key in some]


def test_rl_that_loses_a_rank_and_then_its_driver_ends_as_if_it_had_not(home: Path) -> None:
    command = [*job_command("rl rl"), "run.dir=runs/demo/killed", "checkpoint_every=1"]
    straight, killed = home / "runs/demo/rl", home / "runs/demo/killed"
    job = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "EMBED_RL_ROOT": str(home), "OMP_NUM_THREADS": "1"},
    )
    try:
        kept = killed / "checkpoints"
        wait_until(job, lambda: any(kept.glob("step-??????")), "its first checkpoint")
        next(one for one in family(job.pid) if named(one, "LearnerRank")).kill()
        wait_until(job, lambda: kept_after_restart(killed), "a checkpoint of new ranks")
        started = family(job.pid)
    finally:
        job.kill()
        job.wait(PATIENCE_S)
    for one in psutil.wait_procs(started, timeout=30)[1]:
        with suppress(psutil.NoSuchProcess):
            one.kill()  # a lost driver's Ray goes by itself, in its own time
    run(sys.executable, *command, home=home)
    found, expected = metrics_of(killed), metrics_of(straight)
    assert [one["step"] for one in found] == list(range(STEPS + 1))
    restarts = [one["learner/restarts"] for one in found[1:]]
    assert [value for value, _ in groupby(restarts)] == [0.0, 1.0, 0.0]
    for step in range(1, STEPS + 1):
        assert traces(killed, step) == traces(straight, step)
        for name in ("version", "reward/total", "policy/kl", "policy/grad_norm"):
            assert math.isclose(found[step][name], expected[step][name], rel_tol=1e-3, abs_tol=1e-6)


def test_rl_ahead_of_its_learner_stops_on_request_and_goes_on_without_loss(home: Path) -> None:
    folder = home / "runs/demo/ahead"
    settings = ("run.dir=runs/demo/ahead", "max_staleness=1", "evaluation.every=0")
    command = [*job_command("rl rl"), *settings]
    job = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "EMBED_RL_ROOT": str(home), "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_until(job, (folder / "metrics.jsonl").is_file, "its first step")
        job.terminate()
        assert job.wait(PATIENCE_S) == 3
    finally:
        job.kill()
    stopped = len((folder / "metrics.jsonl").read_text().splitlines())
    assert stopped < STEPS
    assert (folder / f"checkpoints/step-{stopped:06d}/loop.json").is_file()
    assert not (folder / "export").exists()
    printed = run(sys.executable, *command, home=home)
    assert "all engines are ready" in printed
    assert "SIGTERM received" not in printed  # what Ray says of an engine that it sees crash
    steps = metrics_of(folder)
    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    assert max(one["staleness/max"] for one in steps) == 1
    assert steps[stopped]["staleness/max"] == 0  # collected after the new start
    assert all(one["sync/logprob_max_abs_diff"] < 1e-3 for one in steps)
    assert sorted(serials(folder)) == list(range(STEPS * 4))


def test_a_node_that_goes_away_in_a_step_is_survived(home: Path) -> None:
    folder = home / "runs/demo/nodes"
    settings = [
        *("run.dir=runs/demo/nodes", "evaluation.every=0", "max_staleness=1"),
        # The engines find room on the two further nodes only, learner and Embedder on the head.
        *("rollout.pool.actors=2", "rollout.pool.cpus=1", "rollout.pool.gpus=1"),
        *("learner.cpus=1", "reward.pool.cpus=2"),
    ]
    with (
        ray_head(home, cpus=4) as head,
        ray_node(head, home / "lost.log") as lost,
        ray_node(head, home / "left.log"),
    ):
        job = subprocess.Popen(
            [sys.executable, *job_command("rl rl"), *settings],
            cwd=REPOSITORY,
            env={
                **os.environ,
                **head.env,
                "RAY_ADDRESS": head.address,
                "EMBED_RL_ROOT": str(home),
                "OMP_NUM_THREADS": "1",
            },
        )
        try:
            traces_of_two = folder / "trajectories/step-000002.parquet"
            wait_until(job, traces_of_two.is_file, "the traces of its second step")
            kill_tree(lost)
            assert job.wait(JOB_S) == 0
        finally:
            job.kill()
    steps = metrics_of(folder)
    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    assert sum(one["pool/rollout/lost"] for one in steps) == 1
    assert steps[0]["pool/rollout/actors"] == 2
    assert steps[-1]["pool/rollout/actors"] == 1
    for one in steps:
        assert one["traces/issued"] == one["traces/trained"] + one["dropped/total"]
    assert sorted(serials(folder)) == list(range(STEPS * 4))


def test_a_finished_job_says_so_and_another_config_is_refused(home: Path) -> None:
    printed = run(sys.executable, *job_command("warm_start sight"), home=home)
    assert "already finished" in printed
    refused = subprocess.run(
        [sys.executable, *job_command("warm_start sight"), "batch=4"],
        cwd=REPOSITORY,
        env={**os.environ, "EMBED_RL_ROOT": str(home)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == 2
    assert "batch: there 16, now 4" in refused.stderr


def test_a_job_that_no_cluster_takes_leaves_no_mlflow_run(home: Path) -> None:
    folder = home / "runs/demo/refused"
    refused = subprocess.run(
        [
            sys.executable,
            *job_command("rl rl"),
            "run.dir=runs/demo/refused",
            "run.nodes_timeout_s=0",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "EMBED_RL_ROOT": str(home), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == 1
    assert "expected a Ray cluster at RAY_ADDRESS=127.0.0.1:1" in refused.stderr
    assert folder.is_dir()
    assert not (folder / RUN_ID_FILE).exists()


def test_mlflow_holds_the_curves_of_every_training_job_and_the_report(home: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home / 'runs/mlflow.db'}")
    experiment = client.get_experiment_by_name("embed-rl")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_name for run in runs}
    assert {"demo/sight", "demo/rl", "demo/embedder"} <= names
    assert experiment.artifact_location == (home / "runs/mlflow-artifacts").as_uri()
    rl = next(run for run in runs if run.info.run_name == "demo/rl")
    assert len(client.get_metric_history(rl.info.run_id, "reward/total")) == STEPS
    assert rl.info.status == "FINISHED"
    held = {one.path for one in client.list_artifacts(rl.info.run_id)}
    assert {"resolved.yaml", "report.html", "summary.json", "plots"} <= held
    assert client.list_artifacts(rl.info.run_id, "plots")
