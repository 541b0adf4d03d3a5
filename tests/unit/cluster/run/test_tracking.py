"""MLflow is a copy of metrics.jsonl that no server can make a job wait for, fail on or lose."""

import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import cluster.run.tracking as tracking
from cluster.jobs.command import run_job
from cluster.run.run_folder import RUN_ID_FILE, RunFolder
from cluster.run.stopping import Interrupted
from cluster.run.tracking import (
    MlflowRun,
    Tracker,
    attach_files,
    masked,
    metric_name,
    open_tracking_store,
)
from configs.common import RunConfig
from configs.load import load
from configs.schema import DemoDataConfig, WarmStartConfig
from data.errors import LearnerLost, StopRequested
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[4]
CODE = """
import logging
from pathlib import Path
from cluster.run.tracking import open_tracking_store
logging.basicConfig(format="%(name)s: %(message)s")
assert open_tracking_store(Path("runs/job")).search_experiments()
print(logging.getLogger("mlflow.store.db.utils").getEffectiveLevel() >= logging.WARNING)
"""
NOISE = re.compile(r"(?<![\w.])(mlflow|alembic|cluster|configs|data)\.\w")
"""In what a logger of MLflow, of its migrations or of ours prints."""
KEY = "reward/total"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let a busy machine take its time, but where a test is about that."""
    monkeypatch.setattr(tracking, "START_S", PATIENCE_S)
    monkeypatch.setattr(tracking, "END_S", PATIENCE_S)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of all runs here, beside which they share a store: it takes seconds."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    folder.mkdir()
    return folder


def config_of(runs, name):
    return DemoDataConfig(run=RunConfig(dir=str(runs / name)))


def folder_of(runs, name):
    return RunFolder(config_of(runs, name), job="rl")


def track(folder):
    return Tracker(folder.path, job="rl", given=str(folder.path))


def log_steps(folder, *steps):
    for step in steps:
        folder.log_metrics(step, {KEY: step / 4})


def fail(folder, error, *steps):
    """Run a job that logs some steps and then ends with an error."""
    with track(folder):
        log_steps(folder, *steps)
        raise error


def run_in(path):
    """Return what MLflow holds of a folder's run."""
    return open_tracking_store(path).get_run((path / RUN_ID_FILE).read_text())


def points(path, name=KEY):
    history = open_tracking_store(path).get_metric_history((path / RUN_ID_FILE).read_text(), name)
    return sorted((one.step, one.value) for one in history)


def until(reached):
    """Wait for what another thread or process does."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_its_first_use_of_a_store_prints_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert [line for line in done.stderr.splitlines() if NOISE.search(line)] == []


def test_the_store_lies_beside_the_runs_though_a_link_leads_a_run_elsewhere(runs, tmp_path):
    (runs / "elsewhere").symlink_to(tmp_path)
    given = runs / "elsewhere/job"
    folder = folder_of(runs, "elsewhere/job")
    with Tracker(folder.path, job="rl", given=str(given)):
        log_steps(folder, 1)
    assert (tmp_path / "job/mlflow_run_id").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["job"]
    assert points(given) == [(1, 0.25)]


def test_a_resumed_job_goes_on_in_the_same_run_and_writes_each_step_once(runs):
    folder = folder_of(runs, "resumed")
    with pytest.raises(StopRequested):
        fail(folder, StopRequested("after step 3"), 1, 2, 3)
    first = run_in(folder.path)
    assert first.info.status == "KILLED"
    folder = folder_of(runs, "resumed")
    folder.keep_until(2)
    with track(folder):
        assert run_in(folder.path).info.status == "RUNNING"
        folder.log_metrics(3, {KEY: 0.5, "eval/hit_at_1": 0.5})  # done again
        folder.log_metrics(4, {KEY: 1.0})
        folder.keep_until(3)
        folder.log_metrics(4, {KEY: 1.5})  # once more, the learner having been lost
        folder.log_metrics(5, {KEY: math.nan})
    assert (run_in(folder.path).info.run_id, run_in(folder.path).info.status) == (
        first.info.run_id,
        "FINISHED",
    )
    assert [step for step, _ in points(folder.path)] == [1, 2, 3, 4, 5]
    assert points(folder.path)[:3] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert points(folder.path, "eval/hit_at_1") == [(3, 0.5)]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (StopRequested("after step 1"), "KILLED"),
        (Interrupted("while the engines loaded"), "KILLED"),
        (LearnerLost("rank 1 died"), "FAILED"),
        (ZeroDivisionError("a defect"), "FAILED"),
        (KeyboardInterrupt(), "FAILED"),
    ],
)
def test_a_run_ends_as_its_job_does_with_all_that_was_logged(runs, error, ending):
    folder = folder_of(runs, type(error).__name__)
    with pytest.raises(type(error)):
        fail(folder, error, 0)
    assert run_in(folder.path).info.status == ending
    assert points(folder.path) == [(0, 0.0)]


def test_half_a_line_is_waited_for_and_a_shorter_file_is_read_from_its_start(runs):
    folder = folder_of(runs, "lines")
    run = MlflowRun(folder.path)
    log_steps(folder, 1)
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 2, "logged_at": 1.5, ')
    run.catch_up()
    assert points(folder.path) == [(1, 0.25)]
    with folder.metrics_path.open("a") as file:
        file.write(f'"{KEY}": 0.5}}\n')
    run.catch_up()
    folder.keep_until(1)
    log_steps(folder, 2, 3)
    run.catch_up()
    assert points(folder.path) == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_a_write_whose_answer_was_lost_gives_no_point_twice(runs):
    folder = folder_of(runs, "twice")
    log_steps(folder, 1, 2)
    run = MlflowRun(folder.path)
    run.catch_up()
    slow = MlflowRun(folder.path)  # as if it had asked what is there before that came in
    slow._open()
    slow._newest = {}
    slow._write_metrics()
    assert points(folder.path) == [(1, 0.25), (2, 0.5)]


@pytest.mark.parametrize("kept", ["", "\0\0\0\0", "0123456789abcdef0123456789abcdef", "no id"])
def test_an_unknown_run_id_gives_a_new_run_with_all_metrics_and_is_told_once(runs, kept, caplog):
    folder = folder_of(runs, f"unknown-{len(kept)}")
    log_steps(folder, 1, 2)
    (folder.path / RUN_ID_FILE).write_text(kept)
    with track(folder):
        log_steps(folder, 3)
    assert len([one for one in caplog.records if "a new run gets all metrics" in one.message]) == 1
    assert points(folder.path) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert run_in(folder.path).info.status == "FINISHED"


def test_a_run_deleted_in_mlflow_is_followed_by_a_new_one(runs):
    folder = folder_of(runs, "deleted")
    with track(folder):
        log_steps(folder, 1)
    old = run_in(folder.path).info.run_id
    open_tracking_store(folder.path).delete_run(old)
    with track(folder):
        log_steps(folder, 2)
    assert run_in(folder.path).info.run_id != old
    assert points(folder.path) == [(1, 0.25), (2, 0.5)]


def test_a_report_on_a_copied_folder_writes_its_metrics_to_a_run_of_its_own(runs, tmp_path_factory):
    folder = folder_of(runs, "to_copy")
    with track(folder):
        log_steps(folder, 1, 2)
    folder.finish()
    copied = tmp_path_factory.mktemp("copy") / "runs" / "copied"
    shutil.copytree(folder.path, copied)
    page = copied / "report.html"
    page.write_text("<html>")
    assert attach_files(copied, {page: "pages"})
    run = run_in(copied)
    assert points(copied) == [(1, 0.25), (2, 0.5)]
    assert run.info.status == "FINISHED"
    [kept] = open_tracking_store(copied).list_artifacts(run.info.run_id, "pages")
    assert kept.path == "pages/report.html"


def test_a_report_on_what_is_no_run_folder_says_what_it_lacks(tmp_path, caplog):
    assert not attach_files(tmp_path, {tmp_path / "report.html": ""})
    assert "expected a run's resolved.yaml, found none" in caplog.text


def test_a_run_of_a_killed_job_does_not_stay_running_when_its_folder_starts_anew(runs):
    folder = folder_of(runs, "killed")
    killed = MlflowRun(folder.path, job="rl")
    killed.catch_up()
    elsewhere = folder_of(runs, "alive")
    MlflowRun(elsewhere.path, job="rl").catch_up()
    shutil.rmtree(folder.path)
    again = folder_of(runs, "killed")
    with track(again):
        pass
    assert open_tracking_store(folder.path).get_run(killed.run_id).info.status == "FAILED"
    assert run_in(elsewhere.path).info.status == "RUNNING"
    assert run_in(again.path).info.status == "FINISHED"


def test_names_of_data_sets_become_names_that_mlflow_takes(runs):
    names = ["eval/hit_at_1/a$_$b", "eval/../c", "eval//d", "eval/e:f", "eval/" + "g" * 300]
    folder = folder_of(runs, "names")
    with track(folder):
        folder.log_metrics(1, dict.fromkeys(names, 0.5))
    assert {*run_in(folder.path).data.metrics} == {
        *("eval/hit_at_1/a___b", "eval/_/c", "eval/_/d", "eval/e_f"),
        metric_name(names[-1]),
    }


def test_a_locked_database_delays_no_step(runs, monkeypatch):
    import sqlite3

    monkeypatch.setattr(tracking, "END_S", 0.2)
    folder = folder_of(runs, "locked")
    with track(folder):
        log_steps(folder, 1)
        run = MlflowRun(folder.path)
        run.catch_up()
        lock = sqlite3.connect(runs / "mlflow.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        log_steps(folder, 2)
    lock.execute("ROLLBACK")
    run.catch_up()
    assert points(folder.path) == [(1, 0.25), (2, 0.5)]


# --- A server of MLflow's own that goes away and comes back ---


class Server:
    """An MLflow server on a port of its own."""

    def __init__(self, home):
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://bob:s3cret-word@127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.home / 'server.db'}"]
        command += ["--artifacts-destination", str(self.home / "artifacts")]
        with (self.home / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.home,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        until(self._answers)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self):
        assert self.process.poll() is None, (self.home / "server.log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def away(server, monkeypatch):
    """Name a server that does not run; it runs again in the end."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.stop()
    yield server
    if server.process.poll() is not None:
        server.start()


def settings_file(runs, name):
    path = runs.parent / f"{name}.yaml"
    path.write_text(f"run: {{dir: {runs / name}}}\n")
    return str(path)


@pytest.mark.extended
def test_a_server_that_is_away_stops_nothing_and_gets_every_step_once(
    server, runs, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tracking, "WRITE_EVERY_S", 0.05)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = folder_of(runs, "away")
    with track(folder) as tracker:
        log_steps(folder, 1, 2)
        until(lambda: points(folder.path) == [(1, 0.25), (2, 0.5)])
        server.stop()
        log_steps(folder, 3)
        until(lambda: tracker._behind)
        for step in range(4, 40):
            log_steps(folder, step)
        folder.keep_until(20)  # goes on from a checkpoint meanwhile
        log_steps(folder, *range(21, 30))
        server.start()
        until(lambda: not tracker._behind)
        assert len(points(folder.path)) == 29
        log_steps(folder, 30)
    assert points(folder.path) == [(step, step / 4) for step in range(1, 31)]
    assert run_in(folder.path).info.status == "FINISHED"
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]
    assert "answers; it holds all metrics" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.extended
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(None, 0, "FINISHED"), (LearnerLost("rank 1 died"), 1, None), (StopRequested("so"), 3, None)],
)
def test_a_job_begun_and_ended_without_its_server_keeps_its_exit_code_and_is_written_later(
    away, runs, error, code, status, caplog, capfd
):
    name = f"never{code}"

    def main(config):
        folder = RunFolder(config, job="rl")
        with Tracker(folder.path, job="rl", given=str(folder.path)):
            log_steps(folder, 1, 2)
            if error:
                raise error
        folder.finish()
        return 0

    assert run_job(DemoDataConfig, main, argv=[settings_file(runs, name)]) == code
    assert f"python -m cluster.run.tracking {runs / name}" in caplog.text
    away.start()
    assert tracking.main([str(runs / name)]) == 0
    folder = folder_of(runs, name)
    assert points(folder.path) == [(1, 0.25), (2, 0.5)]
    if status:
        assert run_in(folder.path).info.status == status
    printed = capfd.readouterr()
    assert "s3cret" not in caplog.text + printed.out + printed.err


@pytest.mark.extended
def test_a_server_that_answers_nothing_delays_start_and_end_by_their_limits_alone(
    server, runs, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(tracking, "START_S", 0.2)
    monkeypatch.setattr(tracking, "END_S", 0.2)
    folder = folder_of(runs, "mute")
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        with track(folder) as tracker:
            log_steps(folder, 1)
        assert "the job begins without it" in caplog.text
        assert "lacks a part of this run" in caplog.text
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    tracker._thread.join(PATIENCE_S)
    assert points(folder.path) == [(1, 0.25)]


# --- What is wrong is refused at the start, without the password ---


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with the code at the head of the path."""

    def do_GET(self):
        code = int(self.path.split("/")[1])
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def refusing():
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:s3cret-word@{}/401",
        "http://bob:s3cret-word@{}/403",
        "http://bob:s3cret-word@{}/404",
        "https://bob:s3cret-word@{}",
        "http://bob:s3/cret-word@127.0.0.1:1",
        "htp://bob:s3cret-word@127.0.0.1:1",
        "localhost:5000",
        "sqlite:////dev/null/mlflow.db",
        "postgresql://bob:s3cret-word@127.0.0.1:1/db?password=s3cret-word",
    ],
)
def test_a_wrong_uri_or_credentials_end_the_start_with_code_2(
    runs, uri, monkeypatch, capfd, caplog
):
    def main(config):
        folder = RunFolder(config, job="rl")
        with Tracker(folder.path, job="rl", given=str(folder.path)):
            raise AssertionError("begun")

    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(address))
        code = run_job(DemoDataConfig, main, argv=[settings_file(runs, "wrong")])
    printed = capfd.readouterr()
    assert code == 2
    assert "MLFLOW_TRACKING_URI=" in printed.err
    assert "cannot be used: " in printed.err
    for piece in ("s3cret", "cret-word", "bob"):
        assert piece not in printed.err + printed.out + caplog.text


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_server_in_trouble_is_no_reason_not_to_begin(runs, code, monkeypatch, caplog):
    folder = folder_of(runs, "trouble")
    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:s3cret@{address}/{code}")
        with track(folder):
            log_steps(folder, 1)
    assert "lacks a part of this run" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://bob:pw1@host:5000/api of", "at http://***@host:5000/api of"),
        ("postgresql+psycopg://bob:p@w@host/db", "postgresql+psycopg://***@host/db"),
        ("host/db?user=bob&password=pw1&x=1", "host/db?user=bob&password=***&x=1"),
        ("http://host:5000 answers nothing", "http://host:5000 answers nothing"),
        ("Invalid port: 'first'; its user said fir/st and first/second", ""),
    ],
)
def test_passwords_are_masked_however_an_error_quotes_them(text, shown, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:first%2Fsecond/third@host:5000")
    assert masked(text) == (shown or masked(text))
    for piece in ("pw1", "p@w", "first/second", "third"):
        assert piece not in masked(text)


def test_a_value_from_the_environment_does_not_reach_mlflow(runs, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    monkeypatch.delenv("USER", raising=False)
    path = runs.parent / "token.yaml"
    path.write_text(
        f"run: {{dir: {runs}/token, experiment: '${{oc.env:USER,a}}b'}}\n"
        "model: https://bob:${oc.env:MY_TOKEN}@host/model\n"
        "data: {train: [{name: a, path: a, root: '${oc.env:MY_TOKEN}'}]}\n"
    )
    folder = RunFolder(load(WarmStartConfig, path), job="rl")
    with track(folder):
        pass
    params = run_in(folder.path).data.params
    assert params["model"] == "https://bob:${oc.env:MY_TOKEN}@host/model"
    assert "'root': '${oc.env:MY_TOKEN}'" in params["data.train"]
    found = open_tracking_store(folder.path).get_experiment(run_in(folder.path).info.experiment_id)
    assert found.name == "ab"
    for kept in (runs / "mlflow.db", folder.path / "resolved.yaml"):
        assert b"hunter2" not in kept.read_bytes()
