"""Ray heads and nodes as processes of their own, with ports and folders of their own."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.jobs import Job, run

RAY = str(Path(sys.executable).with_name("ray"))
STARTS = 3
"""How often a node is started at most: a busy machine may not keep Ray's own time limits."""
UP = "To terminate the Ray runtime"
OPTIONS = (
    *("--block", "--disable-usage-stats"),
    # Chosen when they are taken: nodes share this machine, and so may other users' Rays.
    *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
)
STOP_WAIT_S = 600
"""What a job gets between SIGTERM and SIGKILL, Ray's 3 s by default."""


@dataclass(frozen=True)
class Head:
    """A Ray head."""

    node: Job
    folder: Path
    dashboard: str
    env: Mapping[str, str]
    """What joins it."""

    def job(self, *command: str, home: Path) -> str:
        """Run a `ray job` command; return what it printed."""
        name, *rest = command
        return run(RAY, "job", name, "--address", self.dashboard, *rest, home=home, **self.env)

    def submitted(self, name: str, *command: str, home: Path, **env: str) -> Job:
        """Return a submission that prints what its job prints."""
        own = {"EMBED_RL_ROOT": str(home), "PYTHONFAULTHANDLER": "1", **env}
        submission = [
            *("job", "submit", "--address", self.dashboard, "--submission-id", name),
            *("--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": own})),
        ]
        return Job(
            *(RAY, *submission, "--", *command),
            folder=home,
            env={**os.environ, **self.env},
            host=self.node.process,
        )


@contextmanager
def ray_head(folder: Path, *, cpus: int) -> Iterator[Head]:
    """Run a Ray head whose output goes to ``folder``."""
    # Sockets lie there, whose paths must be short.
    own = tempfile.mkdtemp(prefix="ray")
    env = {"RAY_TMPDIR": own, "RAY_AUTH_MODE": "token"}
    options = ("--head", f"--num-cpus={cpus}", "--port=0", "--dashboard-port=0")
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    try:
        with started(*options, folder=folder, env={**os.environ, **env, **wait}) as node:
            [address] = re.findall(r"ray start --address='(.+?)'", node.printed())
            [dashboard] = re.findall(r"RAY_API_SERVER_ADDRESS='(.+?)'", node.printed())
            yield Head(node, folder, dashboard, {**env, "RAY_ADDRESS": address})
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def ray_node(head: Head) -> Iterator[Job]:
    """Run a further node of the head's cluster, which alone has what Ray takes for a GPU."""
    options = (f"--address={head.env['RAY_ADDRESS']}", "--num-cpus=1", "--num-gpus=1")
    with started(*options, folder=head.folder, env={**os.environ, **head.env}) as node:
        yield node


def started(*options: str, folder: Path, env: Mapping[str, str]) -> Job:
    """Return a node that is up."""
    for left in reversed(range(STARTS)):
        node = Job(RAY, "start", *OPTIONS, *options, folder=folder, env=env)
        try:
            node.wait_until(lambda node=node: UP in node.printed(), "Ray was up")
            return node
        except AssertionError:
            node.kill()
            if not left:
                raise
