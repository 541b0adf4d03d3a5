"""A run's folder: its settings are its identity, its metrics survive a kill."""

import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.run.run_folder import (
    RUN_ID_FILE,
    RunFolder,
    project_root,
    settled,
    state_of,
    write_atomically,
)
from configs.common import DataConfig, DataSetConfig, MediaConfig, RunConfig
from configs.errors import ConfigError
from configs.load import load
from configs.reward import RewardConfig
from configs.schema import (
    DemoDataConfig,
    EmbedderConfig,
    EvaluateConfig,
    RivalConfig,
    RLConfig,
    WarmStartConfig,
)
from data.errors import RunFolderError
from tests.patience import PATIENCE_S


@pytest.fixture
def config(tmp_path):
    return DemoDataConfig(run=RunConfig(dir=str(tmp_path / "run")), train_scenes=5)


@pytest.fixture
def folder(config):
    return RunFolder(config, job="demo_data")


def test_the_resolved_settings_are_written_and_load_again(folder, config):
    assert load(DemoDataConfig, folder.path / "resolved.yaml") == config


def test_a_run_goes_on_with_the_same_settings(folder, config):
    folder.log_metrics(1, {"a": 0.5})
    again = RunFolder(config, job="demo_data")
    assert again.metrics_path.is_file()


def test_a_run_that_never_began_takes_other_settings(folder, config):
    other = replace(config, train_scenes=6)
    tracked = folder.path / RUN_ID_FILE
    tracked.write_text("of a run that MLflow lets have no other settings")
    RunFolder(config, job="demo_data")
    assert tracked.is_file()
    RunFolder(other, job="demo_data")
    assert load(DemoDataConfig, folder.path / "resolved.yaml") == other
    assert not tracked.exists()


def test_a_finished_run_keeps_the_settings_that_it_ran_with(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m")
    RunFolder(config, job="warm_start").finish()
    RunFolder(replace(config, learner=replace(config.learner, ranks=4)), job="warm_start")
    assert "ranks: 1" in (tmp_path / "resolved.yaml").read_text()


def test_of_many_changed_settings_the_rest_is_counted(tmp_path):
    def config(name):
        sets = [DataSetConfig(name=name, path=name, root=name) for _ in range(4)]
        run = RunConfig(dir=str(tmp_path / "run"))
        return WarmStartConfig(run=run, model="m", data=DataConfig(train=sets))

    RunFolder(config("b"), job="warm_start").log_metrics(1, {"a": 0.5})
    with pytest.raises(ConfigError, match=r"; and 4 more\); choose"):
        RunFolder(config("c"), job="warm_start")


def test_a_changed_setting_inside_a_list_is_named_alone(tmp_path):
    def config(path):
        sets = [DataSetConfig(name=name, path=name, root=".") for name in ("a", path)]
        run = RunConfig(dir=str(tmp_path / "run"))
        return WarmStartConfig(run=run, model="m", data=DataConfig(train=sets))

    RunFolder(config("b"), job="warm_start").log_metrics(1, {"a": 0.5})
    with pytest.raises(ConfigError, match=r"\(data\.train\[1\]\.name: there 'b', now 'c'; "):
        RunFolder(config("c"), job="warm_start")


def test_a_data_set_that_is_added_was_not_there(tmp_path):
    def config(*names):
        sets = [DataSetConfig(name=name, path=name, root=".") for name in names]
        run = RunConfig(dir=str(tmp_path / "run"))
        return WarmStartConfig(run=run, model="m", data=DataConfig(train=sets))

    RunFolder(config("a"), job="warm_start").log_metrics(1, {"a": 0.5})
    with pytest.raises(ConfigError, match=r"\(data\.train\[1\]\.name: there None, now 'b'; "):
        RunFolder(config("a", "b"), job="warm_start")


def test_other_settings_are_refused_with_the_keys_that_changed(folder, config):
    folder.log_metrics(1, {"a": 0.5})
    other = replace(config, train_scenes=6, run=replace(config.run, seed=3))
    with pytest.raises(ConfigError) as caught:
        RunFolder(other, job="demo_data")
    text = str(caught.value)
    assert "train_scenes: there 5, now 6" in text
    assert "run.seed: there 0, now 3" in text
    assert "heldout_scenes" not in text
    assert "another run.dir" in text
    assert load(DemoDataConfig, folder.path / "resolved.yaml") == config


def test_a_run_may_go_on_elsewhere(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m")
    RunFolder(config, job="warm_start").log_metrics(1, {"a": 0.5})
    learner = replace(config.learner, ranks=4, gpus=1.0, timeout_s=60.0)
    run = replace(config.run, nodes_timeout_s=600.0)
    data = replace(config.data, offline=False)
    RunFolder(replace(config, run=run, learner=learner, data=data), job="warm_start")
    with pytest.raises(ConfigError, match=r"learner\.zero_stage: there 2, now 3"):
        RunFolder(replace(config, learner=replace(learner, zero_stage=3)), job="warm_start")


def test_settings_of_an_older_release_are_refused_too(folder, config):
    path = folder.path / "resolved.yaml"
    path.write_text(path.read_text() + "gone: 1\n")
    folder.log_metrics(1, {"a": 0.5})
    with pytest.raises(ConfigError, match="gone: there 1, now None"):
        RunFolder(config, job="demo_data")


@pytest.mark.parametrize(
    ("given", "missing", "same"),
    [
        ({}, "extra_fields", True),
        ({"extra_fields": "ignore"}, "extra_fields", False),
        ({}, "max_bad_rows", True),
    ],
)
def test_a_setting_that_an_older_release_did_not_have_has_its_default_there(
    tmp_path, given, missing, same
):
    one = DataSetConfig(name="a", path="a.json", root=".", **given)
    config = EmbedderConfig(
        run=RunConfig(dir=str(tmp_path)), data=DataConfig(train=[one]), model="m"
    )
    folder = RunFolder(config, job="embedder")
    folder.write_json("begun", {})
    lines = (tmp_path / "resolved.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if missing not in line]
    assert len(kept) == len(lines) - 1
    (tmp_path / "resolved.yaml").write_text("".join(kept))
    if same:
        RunFolder(config, job="embedder")
        return
    with pytest.raises(ConfigError, match="extra_fields: there 'refuse', now 'ignore'"):
        RunFolder(config, job="embedder")


def test_metrics_are_appended_one_object_a_line(folder):
    folder.log_metrics(1, {"reward/total": 0.5})
    folder.log_metrics(2, {"reward/total": 0.25, "time/step_s": 3.0})
    rows = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    logged_at = [row.pop("logged_at") for row in rows]
    assert 1e9 < logged_at[0] <= logged_at[1]
    assert rows == [
        {"step": 1, "reward/total": 0.5},
        {"step": 2, "reward/total": 0.25, "time/step_s": 3.0},
    ]


HOLDER = """
import os, sys
from cluster.run.run_folder import RunFolder
from configs.common import RunConfig
from configs.schema import DemoDataConfig
folder = RunFolder(DemoDataConfig(run=RunConfig(dir=sys.argv[1])), job="demo_data")
forked = os.fork()
if forked:
    print(os.getpid(), forked, flush=True)
sys.stdin.read()
"""


def test_a_second_job_in_a_folder_is_refused_until_the_first_is_dead(tmp_path):
    config = DemoDataConfig(run=RunConfig(dir=str(tmp_path / "run")), train_scenes=5)
    command = [sys.executable, "-c", HOLDER, config.run.dir]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        process, forked = map(int, first.stdout.readline().split())
        who = rf"another job runs in this folder \(process {process} on {socket.gethostname()}\)"
        with pytest.raises(ConfigError, match=who):
            RunFolder(config, job="demo_data")
        with pytest.raises(ConfigError, match=who):
            state_of(config)
        first.kill()
        first.wait(PATIENCE_S)
        os.kill(forked, 0)  # what it had forked still lives, and holds nothing
        RunFolder(replace(config, train_scenes=6), job="demo_data")


def test_a_link_that_is_moved_takes_no_run_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in ("seed0", "seed1"):
        (tmp_path / seed / "rl").mkdir(parents=True)
    (tmp_path / "demo").symlink_to("seed0")
    folder = RunFolder(DemoDataConfig(run=RunConfig(dir="demo/rl")), job="rl")
    folder.log_metrics(1, {})
    (tmp_path / "demo").unlink()
    (tmp_path / "demo").symlink_to("seed1")
    folder.log_metrics(2, {})
    assert steps(folder) == [1, 2]
    assert folder.metrics_path == tmp_path / "seed0/rl/metrics.jsonl"
    assert not list((tmp_path / "seed1/rl").iterdir())


def test_models_are_named_as_links_lie_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed0").mkdir()
    (tmp_path / "demo").symlink_to("seed0")
    found = settled(RLConfig(reasoner="demo/export", reward=RewardConfig(model="demo/embedder")))
    assert found.reasoner == str(tmp_path / "seed0/export")
    assert found.reward.model == str(tmp_path / "seed0/embedder")
    assert found.reward.second_model == ""
    rivals = [RivalConfig(name="a", model="demo/a")]
    [rival] = settled(EvaluateConfig(reward=RewardConfig(model="m"), rivals=rivals)).rivals
    assert rival.model == str(tmp_path / "seed0/a")


def test_what_a_killed_job_had_half_written_is_cleared_away(folder, config):
    (folder.path / ".export-ab12").mkdir()
    (folder.path / ".export-ab12/model.safetensors").touch()
    (folder.path / "trajectories").mkdir()
    for name in ("stage.json.part", "trajectories/step-000001.parquet.part"):
        (folder.path / name).touch()
    (folder.path / "export").mkdir()
    RunFolder(config, job="demo_data")
    left = {str(one.relative_to(folder.path)) for one in folder.path.rglob("*")}
    assert left == {".lock", "resolved.yaml", "trajectories", "export"}


@pytest.mark.parametrize("changed", [20, 5])
def test_a_run_goes_on_with_more_or_fewer_steps_and_another_learning_rate(
    tmp_path, caplog, changed
):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m", steps=10)
    RunFolder(config, job="warm_start").log_metrics(1, {"a": 0.5})
    optimizer = replace(config.learner.optimizer, lr=1e-9)
    learner = replace(config.learner, optimizer=optimizer)
    with caplog.at_level(logging.INFO):
        RunFolder(replace(config, steps=changed, learner=learner), job="warm_start")
    assert f"steps: there 10, from here on {changed}" in caplog.text
    assert "learner.optimizer.lr: there " in caplog.text
    assert f"steps: {changed}\n" in (tmp_path / "resolved.yaml").read_text()


def test_a_finished_run_goes_on_only_with_more_steps(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m", steps=10)
    RunFolder(config, job="warm_start").finish()
    assert RunFolder(replace(config, steps=9), job="warm_start").finished
    assert not RunFolder(replace(config, steps=11), job="warm_start").finished


def test_a_finished_run_says_how_it_may_go_on(tmp_path, folder):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path / "stage")), model="m", steps=10)
    assert "give it more `steps`" in RunFolder(config, job="warm_start").finished_line
    assert "steps" not in folder.finished_line  # this job takes none


def test_a_finished_run_names_settings_that_differ_from_its_own(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m", steps=10)
    RunFolder(config, job="warm_start").finish()
    assert "other settings" not in RunFolder(config, job="warm_start").finished_line
    fewer = replace(config, steps=9)
    said = ", with other settings (steps: there 10, now 9); for these choose another run.dir"
    assert f"already finished{said}; " in RunFolder(fewer, job="warm_start").finished_line
    assert state_of(fewer).endswith(f"a finished run, which the job leaves as it is{said}")


def test_what_a_run_folder_holds_is_said_and_nothing_is_written(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path / "run")), model="m", steps=10)
    more = replace(config, steps=11)
    assert state_of(config).endswith("run: a new run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="expected a run folder, found a file"):
        state_of(config)
    (tmp_path / "run").unlink()
    folder = RunFolder(config, job="warm_start")
    assert state_of(config).endswith("run: a new run")
    folder.log_metrics(1, {"a": 0.5})
    assert state_of(config).endswith("run: an unfinished run, which goes on")
    with pytest.raises(ConfigError, match="model: there 'm', now 'n'"):
        state_of(replace(config, model="n"))
    folder.finish()
    before = (tmp_path / "run/resolved.yaml").read_bytes()
    assert state_of(config).endswith("run: a finished run, which the job leaves as it is")
    assert state_of(more).endswith(
        "run: a finished run, which goes on; steps: there 10, from now on 11"
    )
    assert (tmp_path / "run/resolved.yaml").read_bytes() == before


def test_a_finished_run_with_more_steps_stays_finished_until_it_goes_on(tmp_path):
    config = WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m", steps=10)
    more = replace(config, steps=11)
    RunFolder(config, job="warm_start").finish()
    RunFolder(more, job="warm_start")  # and is refused, as where its data has changed
    assert RunFolder(config, job="warm_start").finished
    RunFolder(more, job="warm_start").keep_until(10)
    assert not (tmp_path / "stage.json").exists()
    assert "steps: 11\n" in (tmp_path / "resolved.yaml").read_text()


def steps(folder):
    return [json.loads(line)["step"] for line in folder.metrics_path.read_text().splitlines()]


def test_a_resumed_run_drops_the_metrics_behind_its_checkpoint(folder):
    for step in range(6):
        folder.log_metrics(step, {})
    folder.keep_until(3)
    assert steps(folder) == [0, 1, 2, 3]
    folder.log_metrics(4, {})
    assert steps(folder) == [0, 1, 2, 3, 4]


BROKEN = [b'{"step": 2, "a": 0.', b"\0" * 300 + b"\n", b"\0" * 300, b"[2]\n", b"\xff\xfe{\n"]


@pytest.mark.parametrize("tail", [*BROKEN, b'{"a": 2.0}\n', b"\0\0\n" + BROKEN[0]])
def test_a_broken_tail_of_the_metrics_is_cut_off_and_told_once(folder, tail, caplog):
    folder.log_metrics(1, {"a": 1.0})
    folder.metrics_path.write_bytes(folder.metrics_path.read_bytes() + tail)
    folder.keep_until(5)
    assert steps(folder) == [1]
    folder.keep_until(5)
    [told] = caplog.records
    assert "lines are cut off" in told.message


@pytest.mark.parametrize("left", [b"", b"\0" * 500, b"\n", b"- 1\n", b"a: [\n"])
def test_settings_that_a_power_cut_left_empty_are_written_anew_and_it_is_told(
    folder, config, left, caplog
):
    folder.log_metrics(1, {"a": 1.0})
    (folder.path / "resolved.yaml").write_bytes(left)
    RunFolder(config, job="demo_data")
    RunFolder(config, job="demo_data")
    [told] = caplog.records
    assert "was not checked" in told.message
    assert load(DemoDataConfig, folder.path / "resolved.yaml") == config


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, Linux's full disk")
def test_metrics_that_find_no_room_say_what_to_do(folder):
    folder.metrics_path = Path("/dev/full")
    with pytest.raises(RunFolderError, match=r"No space left on device\); make room"):
        folder.log_metrics(1, {"a": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, Linux's full disk")
def test_trajectories_that_find_no_room_say_what_to_do(folder):
    (folder.path / "trajectories").mkdir()
    (folder.path / "trajectories/step-000007.parquet.part").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"step-000007\.parquet: .* make room"):
        folder.write_trajectories(7, [{"key": "k"}])


def test_values_from_the_environment_are_kept_as_they_were_given(tmp_path, monkeypatch):
    monkeypatch.setenv("WORD", "hunter2")
    folder = RunFolder(given(tmp_path), job="warm_start")
    text = (folder.path / "resolved.yaml").read_text()
    assert "hunter2" not in text
    assert "model: models/${oc.env:WORD}" in text
    assert load(WarmStartConfig, folder.path / "resolved.yaml") == given(tmp_path)


def test_a_run_goes_on_where_the_environment_gives_the_same_value(tmp_path, monkeypatch):
    monkeypatch.setenv("WORD", "hunter2")
    RunFolder(given(tmp_path), job="warm_start").log_metrics(1, {"a": 0.5})
    RunFolder(given(tmp_path), job="warm_start")
    RunFolder(given(tmp_path, "models/hunter2"), job="warm_start")
    RunFolder(given(tmp_path), job="warm_start")


def test_another_value_from_the_environment_is_refused_without_either(tmp_path, monkeypatch):
    monkeypatch.setenv("WORD", "hunter2")
    RunFolder(given(tmp_path), job="warm_start").log_metrics(1, {"a": 0.5})
    monkeypatch.setenv("WORD", "hunter3")
    with pytest.raises(ConfigError) as caught:
        RunFolder(given(tmp_path), job="warm_start")
    text = str(caught.value)
    for key in ("model", "data.train[1].root"):
        assert f"{key}: there " in text
    assert "there 'another value'" in text
    assert "data.train[0]" not in text
    assert "hunter" not in text


def test_a_folder_that_holds_such_values_in_the_clear_goes_on(tmp_path, monkeypatch):
    RunFolder(given(tmp_path, "models/hunter2", root="hunter2"), job="warm_start").log_metrics(
        1, {}
    )
    monkeypatch.setenv("WORD", "hunter3")
    with pytest.raises(ConfigError, match="model: there 'another value', now 'models/") as caught:
        RunFolder(given(tmp_path), job="warm_start")
    assert "hunter" not in str(caught.value)
    monkeypatch.setenv("WORD", "hunter2")
    RunFolder(given(tmp_path), job="warm_start")
    assert "hunter2" not in (tmp_path / "run" / "resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"salt": "a1", "dig', "JSONDecodeError"),
        ('{"salt": "a1"}', "KeyError('digests')"),
        ('{"digests": {}}', "KeyError('salt')"),
        ("5", "TypeError"),
        ('{"salt": "a1", "digests": 5}', "TypeError"),
    ],
)
def test_broken_digests_of_such_values_say_where_and_what_to_do(
    tmp_path, monkeypatch, broken, reason
):
    monkeypatch.setenv("WORD", "hunter2")
    path = RunFolder(given(tmp_path), job="warm_start").path / "resolved.yaml"
    *settings, digests = path.read_text().splitlines(keepends=True)
    path.write_text("".join(settings) + digests.partition("{...}: ")[0] + "{...}: " + broken)
    with pytest.raises(ConfigError) as caught:
        RunFolder(given(tmp_path), job="warm_start")
    text = str(caught.value)
    assert text.startswith(f"{path} line {len(settings) + 1}: expected salt and digests")
    assert reason in text
    assert "restore the file from a copy, or choose another run.dir" in text


def given(tmp_path, model="models/${oc.env:WORD}", root="${oc.env:WORD}"):
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"run: {{dir: {tmp_path}/run}}\n"
        f"model: {model}\n"
        "data:\n  train:\n"
        "    - {name: a, path: a, root: a}\n"
        f"    - {{name: b, path: b, root: '{root}'}}\n"
    )
    return load(WarmStartConfig, path)


def test_a_run_without_metrics_has_nothing_to_drop(folder):
    folder.keep_until(3)
    assert not folder.metrics_path.exists()


def test_trajectories_are_one_file_a_step_and_read_as_one_data_set(folder):
    folder.write_trajectories(7, [{"key": "k", "tokens": 3}])
    folder.write_trajectories(8, [{"key": "d", "dropped": "bad_picture"}])
    assert len(list((folder.path / "trajectories").iterdir())) == 2
    rows = pq.read_table(folder.path / "trajectories").to_pylist()
    assert [(one["key"], one["tokens"], one["dropped"]) for one in rows] == [
        ("k", 3, None),
        ("d", None, "bad_picture"),
    ]


def test_a_finished_run_says_so_and_how_long_it_took(folder, config):
    assert not folder.finished
    folder.finish(steps=3)
    assert folder.finished
    assert RunFolder(config, job="demo_data").finished
    facts = json.loads((folder.path / "stage.json").read_text())
    assert facts["job"] == "demo_data"
    assert facts["steps"] == 3
    assert facts["seconds"] >= 0


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_relative_paths_start_from_the_named_root_else_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBED_RL_ROOT", raising=False)
    assert project_root() == tmp_path
    named = tmp_path / "embed-rl"
    monkeypatch.setenv("EMBED_RL_ROOT", str(named))
    with pytest.raises(ConfigError, match=rf"EMBED_RL_ROOT={named}: no such folder"):
        project_root()
    named.mkdir()
    assert project_root() == named


def test_a_root_with_another_copy_of_the_code_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/__init__.py").touch()
    monkeypatch.setenv("EMBED_RL_ROOT", str(tmp_path))
    with pytest.raises(ConfigError, match="another copy of the code"):
        project_root()


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Stand in a submitted job's copy of the working directory."""
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "pkg"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("EMBED_RL_ROOT", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "checkout" / ".venv"))
    return tmp_path


def test_a_submitted_job_works_beside_its_virtual_environment(submitted):
    (submitted / "checkout").mkdir()
    (submitted / "checkout" / "setup.cfg").touch()
    assert project_root() == submitted / "checkout"


def test_a_submitted_job_without_a_home_is_told_what_to_set(submitted):
    with pytest.raises(ConfigError, match="set EMBED_RL_ROOT"):
        project_root()


def test_a_run_of_a_release_without_whole_videos_goes_on_with_frames_only(tmp_path):
    def config(video):
        data = DataConfig(media=MediaConfig(video=video))
        return WarmStartConfig(run=RunConfig(dir=str(tmp_path)), model="m", data=data)

    RunFolder(config("frames"), job="warm_start").log_metrics(1, {"a": 0.5})
    path = tmp_path / "resolved.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "video:" not in line))
    RunFolder(config("frames"), job="warm_start")
    path.write_text("".join(line for line in lines if "video:" not in line))
    with pytest.raises(ConfigError, match=r"data\.media\.video: there 'frames', now 'video'"):
        RunFolder(config("video"), job="warm_start")
