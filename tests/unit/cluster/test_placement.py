"""A plan is compared with the cluster before anything starts; what actors find in their
environment."""

import json

import pytest
from ray.runtime_env.runtime_env import _merge_runtime_env

from cluster.placement import Role, actor_env, check_resources, job_env
from data.errors import NotEnoughResources

ROLES = (Role("rollout", 2, 0.5, 0.0), Role("learner", 2, 1.0, 1.0))


def test_a_plan_that_fits_exactly_passes():
    check_resources(ROLES, {"CPU": 3.0, "GPU": 2.0})


def test_shares_that_add_up_are_not_refused_for_rounding():
    check_resources([Role("a", 10, 0.1, 0.0)], {"CPU": 1.0})


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"CPU": 2.0, "GPU": 2.0}, "3 CPUs asked, 2 in the cluster"),
        ({"CPU": 8.0}, "2 GPUs asked, 0 in the cluster"),
        ({}, "3 CPUs asked, 0 in the cluster and 2 GPUs asked, 0 in the cluster"),
    ],
)
def test_a_plan_that_cannot_fit_names_every_role_and_what_to_change(cluster, words):
    with pytest.raises(NotEnoughResources) as caught:
        check_resources(ROLES, cluster)
    text = str(caught.value)
    assert words in text
    assert "rollout: 2 x (0.5 CPU, 0 GPU); learner: 2 x (1 CPU, 1 GPU)" in text
    assert "Lower actors/ranks" in text


def test_a_job_without_actors_fits_anywhere():
    check_resources([], {})


def submit(monkeypatch, **env_vars):
    """Let this process be the driver of a job that was submitted with these variables."""
    told = {"runtime_env": {"working_dir": "gcs://copy.zip", "env_vars": env_vars}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    return told["runtime_env"]


def test_an_actor_sees_no_gpu_that_it_did_not_ask_for(monkeypatch):
    submit(monkeypatch, CUDA_VISIBLE_DEVICES="0,1")
    assert actor_env(Role("reward", 1, 1.0, 0.0))["CUDA_VISIBLE_DEVICES"] == ""


def test_ray_chooses_what_an_actor_with_gpus_sees_whatever_the_image_says(monkeypatch):
    name = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    submit(monkeypatch, **{name: "1"})
    env = actor_env(Role("rollout", 1, 1.0, 0.5))
    assert env[name] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in env
    assert "DS_ACCELERATOR" not in env


def test_what_the_user_submits_wins_over_our_variables(monkeypatch):
    theirs = submit(monkeypatch, VLLM_LOGGING_LEVEL="INFO", OMP_NUM_THREADS="3", MINE="x")
    # Ray's own function: it gives None, and the job ends, where a variable is on both sides.
    merged = _merge_runtime_env(theirs, {"env_vars": job_env()})
    assert merged is not None
    assert merged["env_vars"]["VLLM_LOGGING_LEVEL"] == "INFO"
    assert merged["env_vars"]["TOKENIZERS_PARALLELISM"] == "false"
    env = actor_env(Role("rollout", 1, 2.0, 0.0))
    assert (env["VLLM_LOGGING_LEVEL"], env["OMP_NUM_THREADS"], env["MINE"]) == ("INFO", "3", "x")


def test_a_job_that_was_not_submitted_has_our_variables_alone(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert "VLLM_LOGGING_LEVEL" in job_env()
    assert actor_env(Role("rollout", 1, 2.5, 1.0))["OMP_NUM_THREADS"] == "2"
