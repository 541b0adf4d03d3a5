"""MLflow's web pages of these runs, served on loopback: `make mlflow`.

The server stops when the process that started it ends.

python -m cluster.run.mlflow_server runs 5000
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from urllib.request import Request, urlopen

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}
"""No workers of jobs that nobody has, no usage data, no address but the one printed here."""
RUNS_TAB = "#/experiments/{}/runs?workflowType=machine_learning"
"""MLflow opens on its pages for agents otherwise, which show no curve."""
SERVER_POLL_S = 0.5
"""Seconds between two checks of the server and of the process that started it."""
SERVER_TIMEOUT_S = 5.0
"""Longest wait for the server's answer, and for its end after a signal."""


def main(argv: list[str]) -> int:
    """Serve ``mlflow.db`` of a folder of runs on a port until asked to stop or left alone."""
    runs, port = Path(argv[0]).absolute(), int(argv[1])
    starter = os.getppid()
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{runs / 'mlflow.db'}"]
    command += ["--uvicorn-opts", "--log-level warning"]
    # Without this, MLflow prints advice to open the server to other machines.
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
    print("starting MLflow's server, up to a minute ...", flush=True)
    with Path(os.devnull).open("w") as nowhere:  # what it says of itself; its errors show
        server = subprocess.Popen(
            command, env={**os.environ, **SETTINGS}, stdout=nowhere, start_new_session=True
        )
    links: list[str] = []
    try:
        # Killed itself, a `make` ends nobody; what it had started gets another parent.
        while server.poll() is None and os.getppid() == starter and not stop.wait(SERVER_POLL_S):
            if not links:
                links = links_of(f"http://127.0.0.1:{port}/")
                print(*links, sep="\n", end="\n" * bool(links), flush=True)
    finally:
        end(server)
    return 0 if stop.is_set() else 1


def links_of(address: str) -> list[str]:
    """Return a line for each experiment with the address of its runs; none before it answers."""
    ask = Request(
        address + "api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        experiments = json.load(urlopen(ask, timeout=SERVER_TIMEOUT_S))["experiments"]
    except (OSError, ValueError, KeyError):
        return []  # it does not answer yet, or another program does
    ours = [entry for entry in experiments if entry["name"] != "Default"] or experiments
    return [
        f"{entry['name']}: {address}{RUNS_TAB.format(entry['experiment_id'])}" for entry in ours
    ]


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(SERVER_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
