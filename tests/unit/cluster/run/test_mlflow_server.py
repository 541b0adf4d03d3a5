"""MLflow's pages: addresses that open the runs, nothing beside them, nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from cluster.run.mlflow_server import links_of
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[4]
# Stands in for a `make` that is killed before it could end what it has started.
STARTER = (
    "import subprocess, sys; "
    "subprocess.run([sys.executable, '-m', 'cluster.run.mlflow_server', *sys.argv[1:]])"
)


class Experiments(BaseHTTPRequestHandler):
    """Answers every question with the experiments of the server's attribute of that name."""

    def do_POST(self):
        body = json.dumps({"experiments": self.server.experiments}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("names", "shown"), [(["Default", "embed-rl", "mine"], [1, 2]), (["Default"], [0])]
)
def test_addresses_open_the_runs_of_each_experiment(names, shown):
    with ThreadingHTTPServer(("127.0.0.1", 0), Experiments) as http:
        http.experiments = [{"experiment_id": str(i), "name": n} for i, n in enumerate(names)]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/"
        found = links_of(address)
        http.shutdown()
    tab = "runs?workflowType=machine_learning"
    assert found == [f"{names[i]}: {address}#/experiments/{i}/{tab}" for i in shown]


def test_a_server_that_does_not_answer_yet_has_no_addresses():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert links_of(f"http://127.0.0.1:{port}/") == []


def test_make_is_the_parent_of_the_pages():
    done = subprocess.run(
        ["make", "-C", ROOT, "-n", "mlflow"], capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("exec ")]


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_pages_end_with_who_started_them_and_leave_no_workers(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = [starter.stdout.readline()]
    assert lines[0] == "starting MLflow's server, up to a minute ...\n"
    while "/#/experiments/0/runs?workflowType=" not in lines[-1]:
        lines.append(starter.stdout.readline())
        assert lines[-1], lines
    assert "0.0.0.0" not in "".join(lines)  # MLflow's advice to open the server to others
    started = psutil.Process(starter.pid).children(recursive=True)
    assert not [one for one in started if "mlflow.server.jobs" in " ".join(one.cmdline())]
    telemetry = f"http://127.0.0.1:{port}/ajax-api/3.0/mlflow/ui-telemetry"
    assert json.load(urlopen(telemetry))["disable_ui_telemetry"]
    pages = started[0] if number == signal.SIGTERM else psutil.Process(starter.pid)
    pages.send_signal(number)
    _, alive = psutil.wait_procs(started, PATIENCE_S)
    assert not alive
    starter.wait()
    socket.create_server(("127.0.0.1", port)).close()
