"""A job of the demo as a process, and the processes that it has started."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from cluster.run.run_folder import project_root

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs/demo/rl.yaml"
ROLES = {
    "rollout actor": "RolloutActor",
    "engine core": "EngineCore",
    "reward actor": "EmbedderActor",
    "learner rank": "LearnerRank",
    "weight store": "WeightStore",
    "side process": "SideProcessActor",
}
"""What a process of a role is called."""
STEP_TIMEOUT_S = 600.0


class Life:
    """One life of a job on a run folder, with a Ray of its own.

    ``path`` is a folder of modules that its processes find first; empty: there is none.
    """

    def __init__(
        self, config: Path, folder: Path, *settings: str, job: str = "rl", path: str = ""
    ) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.log = folder.with_suffix(".log").open("a")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"cluster.jobs.{job}", str(config)),
                *(f"run.dir={folder}", *settings),
            ],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "EMBED_RL_ROOT": str(project_root()),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH")))),
            },
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def steps(self) -> list[dict[str, float]]:
        """Return the metrics of the steps done so far."""
        return [one for one in metrics_of(self.folder) if one["step"] > 0]

    def wait_for(self, what: str, done: Callable[[], bool]) -> bool:
        """Return True once something is done, False where the job ended before."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not done():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"{what}: not done in {STEP_TIMEOUT_S} s"
            time.sleep(0.1)
        return True

    def wait_for_step(self, step: int) -> bool:
        """Return True once a step is done, False where the job ended before."""
        return self.wait_for(f"step {step}", lambda: any(s["step"] >= step for s in self.steps()))

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the job's living processes of a role."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                if named(one, ROLES[role]):
                    found.append(one)
        return found

    def kill_one(self, role: str, rng: random.Random) -> bool:
        """Kill a process of that role, as a machine's memory killer would; False: there is none."""
        found = self.processes(role)
        if not found:
            return False
        with suppress(psutil.NoSuchProcess):
            rng.choice(found).kill()
        return True

    def kill(self) -> None:
        """Kill the driver, and wait until its Ray has noticed and is gone.

        Ray's own agents look only now and then whether their node is still there.
        """
        started = family(self.process.pid)
        self.process.kill()
        self.process.wait(60)
        deadline = time.monotonic() + 60
        while left := [one for one in started if one.is_running() and not _is_agent(one)]:
            assert time.monotonic() < deadline, f"still there 60 s after the driver: {left}"
            time.sleep(0.5)

    def finish(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout_s)


@contextmanager
def running(
    config: Path, folder: Path, *settings: str, job: str = "rl", path: str = ""
) -> Iterator[Life]:
    """Run a job, see `Life`; whatever happens, it is gone afterwards."""
    life = Life(config, folder, *settings, job=job, path=path)
    try:
        yield life
    finally:
        if life.process.poll() is None:
            started = family(life.process.pid)
            life.process.kill()
            life.process.wait(60)
            for one in started:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        life.log.close()


def named(process: psutil.Process, name: str) -> bool:
    """Return whether a process lives and its command line has that name."""
    try:
        return name in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _is_agent(process: psutil.Process) -> bool:
    return named(process, "Agent") or named(process, "/agent")


def family(pid: int) -> list[psutil.Process]:
    """Return all processes that a process has started, and those that they have."""
    return psutil.Process(pid).children(recursive=True)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, as far as they are written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def groups_by_step(folder: Path, *, trained: bool) -> dict[int, list[str]]:
    """Return the keys of a run's prompts by step, in order; only those that taught something."""
    found = {}
    for path in sorted((folder / "trajectories").glob("step-*.parquet")):
        rows = pq.read_table(path, columns=["key", "advantage"]).to_pylist()
        keys = [r["key"] for r in rows if r["advantage"] is not None or not trained]
        found[int(path.stem.removeprefix("step-"))] = list(
            dict.fromkeys(key.rpartition("/")[0] for key in keys)
        )
    return found


def accounts_close(steps: list[dict[str, float]]) -> bool:
    """Return whether every step's traces were trained or dropped."""
    return all(s["traces/issued"] == s["traces/trained"] + s["dropped/total"] for s in steps)
