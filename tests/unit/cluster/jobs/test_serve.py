"""The job `serve` around its replicas: settings, what a dry run says, the address."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from cluster.jobs import serve
from cluster.jobs.command import run_job
from cluster.jobs.serve import main, roles, watch
from cluster.serving.preflight import check_settings, served_by
from cluster.serving.replica import DEPLOYMENT, deployment_of, replicas_in
from cluster.serving.server import listening_socket
from configs.errors import ConfigError
from configs.load import load
from configs.schema import ServeConfig

DEMO = Path(__file__).resolve().parents[4] / "configs/demo/serve.yaml"


def config(*settings: str) -> ServeConfig:
    return load(ServeConfig, DEMO, settings)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("name=' '", "name: "),
        ("port=70000", "port: expected 0 to 65535"),
        ("replicas=0", "replicas: "),
        ("limits.items=0", "limits.items: "),
        ("data.eval=[{name: a, path: a, root: r}]", "data: expected no data sets"),
    ],
)
def test_impossible_settings_are_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        config(setting)


def test_replicas_need_the_gpus_of_their_engines():
    with pytest.raises(ConfigError, match=r"gpus: expected reward\.engine"):
        config("gpus=1", "reward.engine.tensor_parallel=2")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["gpus=1.5"], "gpus: Ray lends"),
        (["gpus=1", "rollout.engine.gpu_memory_utilization=0.6"], "at most 1 of a GPU"),
        (["reward.second_model=x"], r"reward\.second_model: `serve` has no use"),
    ],
)
def test_what_a_replica_cannot_have_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        config(*settings)


def test_the_plan_has_all_replicas():
    [role] = roles(config("replicas=3", "cpus=2", "gpus=1"))
    assert (role.actors, role.cpus, role.gpus) == (3, 2, 1)


def test_replicas_have_the_environment_of_all_actors(monkeypatch):
    shows_all = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    submitted = {"runtime_env": {"env_vars": {shows_all: "1", "OMP_NUM_THREADS": "3"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))

    def env(*settings: str) -> dict[str, str]:
        options = deployment_of(config(*settings)).ray_actor_options
        return options["runtime_env"]["env_vars"]

    assert env("gpus=0")["CUDA_VISIBLE_DEVICES"] == ""
    with_gpu = env("gpus=1")
    assert (with_gpu[shows_all], with_gpu["OMP_NUM_THREADS"]) == ("0", "3")
    assert "CUDA_VISIBLE_DEVICES" not in with_gpu


def test_a_controller_that_does_not_know_the_replicas_changes_nothing(monkeypatch):
    def application(status: str, **states: int) -> ApplicationStatusOverview:
        deployment = DeploymentStatusOverview("HEALTHY", "UNSPECIFIED", states, "")
        deployments = {DEPLOYMENT: deployment} if states else {}
        return ApplicationStatusOverview(status, "", 0.0, deployments)

    assert replicas_in(None) is None
    assert replicas_in(application("DEPLOYING")) is None
    assert replicas_in(application("RUNNING", RUNNING=2)) == 2
    assert replicas_in(application("RUNNING", STARTING=2)) == 0
    assert replicas_in(application("DEPLOY_FAILED", RUNNING=2)) == 0

    monkeypatch.setattr(serve, "LOOK_S", 0)
    stop, answers = SimpleNamespace(made=False), [3, None]

    def running() -> int | None:
        stop.made = len(answers) == 1
        return answers.pop(0)

    front = SimpleNamespace(replicas=1)
    watch(front, SimpleNamespace(running=running), SimpleNamespace(alive=True), stop)
    assert front.replicas == 3


def test_the_token_comes_from_the_environment_and_must_be_there(monkeypatch):
    named = config("token_env=SERVE_TOKEN")
    monkeypatch.delenv("SERVE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="SERVE_TOKEN, found none"):
        check_settings(named)
    monkeypatch.setenv("SERVE_TOKEN", " abc\n")
    assert check_settings(named) == "abc"
    assert check_settings(config()) == ""


def test_a_dry_run_names_a_folder_and_a_model_that_are_not_there(tmp_path, capsys):
    argv = [str(DEMO), f"run.dir={tmp_path}/run", f"media_root={tmp_path}/media", "--dry-run"]
    assert run_job(ServeConfig, main, roles=roles, argv=argv) == 2
    captured = capsys.readouterr()
    assert "media_root: expected a folder" in captured.err
    assert "reward.model" in captured.err
    assert "replica: 1 x (1 CPU, 0 GPU)" in captured.out


def test_requests_may_cut_vectors_as_the_export_says(tmp_path):
    settings = config(f"reward.model={tmp_path}", "name=m")
    (tmp_path / "config.json").write_text(json.dumps({"matryoshka_dimensions": [32, 128]}))
    served = served_by(settings)
    assert (served.name, served.dimensions) == ("m", {32, 128})
    (tmp_path / "config.json").write_text("{}")
    assert served_by(settings).dimensions == frozenset()


def test_an_address_that_is_taken_is_refused_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            listening_socket("127.0.0.1", port)
    with listening_socket("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
