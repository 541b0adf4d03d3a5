"""Requests to the job `serve`, one in fifty of them bad, while engines are killed.

Prints how many answers had which status, how many vectors were wrong, and how long answers took.
Example: python -m tests.chaos.serve_load configs/demo/serve.yaml 5000 replicas=2 reasoner=''
"""

import asyncio
import base64
import io
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image

from configs.load import load
from configs.schema import EncoderConfig, ServeConfig
from data.types import Side
from tests.chaos.running import ROLES, family, named
from tests.e2e.jobs import Job, job_env

CLIENTS = 16
"""Requests at a time."""
KILLS = (1 / 3, 2 / 3)
"""Shares of the requests after which an engine is killed."""
TRIES_S = 600.0
"""Longest time that a request is tried again."""
TOLERANCE = 1e-4
"""Largest difference of a number from the encoder's own; two inputs differ by far more."""
MALFORMED = (b"{", b'{"input": []}', b'{"input": [1, 2]}', b'{"input": "a", "dimensions": -1}')
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")


@dataclass
class Report:
    """What became of the requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status; 0: the connection broke."""
    wrong: int = 0
    """Vectors that are not the encoder's own."""
    lost: int = 0
    """Good requests that never got vectors."""
    misjudged: int = 0
    """Bad requests that were answered otherwise than 400 or 413."""
    killed: list[int] = field(default_factory=list)
    """Process ids of engines."""
    seconds: list[float] = field(default_factory=list)
    """Of each answer with vectors."""

    def text(self) -> str:
        """Return it in lines."""
        p50, p99 = np.percentile(self.seconds, (50, 99)) * 1000
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return (
            f"answers by status: {counts}\nengines killed: {len(self.killed)}\n"
            f"wrong vectors: {self.wrong}\ngood requests without vectors: {self.lost}\n"
            f"bad requests misjudged: {self.misjudged}\np50: {p50:.0f} ms, p99: {p99:.0f} ms"
        )


def sent_inputs() -> dict[str, dict[str, Any]]:
    """Return inputs as an `Encoder` takes them, by name: texts and pictures."""
    inputs: dict[str, dict[str, Any]] = {
        f"{color} {shape}": {"text": f"find a {color} {shape}"}
        for color in COLORS
        for shape in SHAPES
    }
    for color in COLORS:
        content = io.BytesIO()
        Image.new("RGB", (64, 48), color).save(content, "PNG")
        inputs[f"a {color} picture"] = {"text": "what is it", "image": content.getvalue()}
    return inputs


def own_vectors(config: ServeConfig, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the vectors that an encoder of this process gives, float32 [D], by name."""
    from encoder.encoder import Encoder

    settings = EncoderConfig(data=config.data, rollout=config.rollout, reward=config.reward)
    with Encoder.from_pretrained(config.reward.model, None, settings) as encoder:
        future = encoder.encode_later(list(inputs.values()), side=Side.TARGET, trace="none")
        return dict(zip(inputs, future.result().vectors, strict=True))


def chat(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an input as a conversation."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": value["text"]}]
    if "image" in value:
        url = "data:image/png;base64," + base64.b64encode(value["image"]).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": parts}]


class Load:
    """Sends requests to a server.

    Args:
        server: process id of the job, whose engines are killed.
        url: of the server, without `/embeddings`.
        vectors: of the inputs, by name.
        body_bytes: the server's limit.
        token: that it asks for; empty: none.
    """

    def __init__(
        self,
        server: int,
        url: str,
        inputs: Mapping[str, Mapping[str, Any]],
        vectors: Mapping[str, np.ndarray],
        body_bytes: int,
        *,
        token: str = "",
    ) -> None:
        self._server, self._url, self._inputs, self._vectors = server, url, inputs, vectors
        self._oversized = b'{"input": "' + b"a" * body_bytes + b'"}'
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        self._begun = 0
        self.report = Report()

    async def run(self, requests: int, *, seed: int = 0) -> Report:
        """Send so many requests, one in a hundred malformed and one too large."""
        rng = random.Random(seed)
        kills = [int(share * requests) for share in KILLS]
        plans = iter([self._plan(rng, number) for number in range(requests)])
        limit = aiohttp.ClientTimeout(total=TRIES_S)
        async with aiohttp.ClientSession(timeout=limit) as session:

            async def client() -> None:
                for names, body in plans:
                    if self._begun in kills:
                        self._kill(rng)
                    self._begun += 1
                    await (self._good(session, names, body) if names else self._bad(session, body))

            await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return self.report

    def _plan(self, rng: random.Random, number: int) -> tuple[list[str], bytes]:
        """Return the names of a request's inputs, none for a bad one, and its body."""
        if number % 100 == 17:
            return [], rng.choice(MALFORMED)
        if number % 100 == 58:
            return [], self._oversized
        names = rng.sample(sorted(self._inputs), rng.randint(1, 4))
        body = {
            "input": [chat(self._inputs[name]) for name in names],
            "trace": "none",
            "encoding_format": rng.choice(("float", "base64")),
        }
        return names, json.dumps(body).encode()

    async def _send(
        self, session: aiohttp.ClientSession, body: bytes
    ) -> tuple[int, dict[str, Any], float]:
        """Return status, answer, and seconds until another try."""
        url = f"{self._url}/embeddings"
        try:
            async with session.post(url, data=body, headers=self._headers) as response:
                status, answer = response.status, await response.json()
                wait_s = float(response.headers.get("Retry-After", 0))
        except (aiohttp.ClientError, OSError):
            status, answer, wait_s = 0, {}, 1.0
        self.report.statuses[status] += 1
        return status, answer, wait_s

    async def _bad(self, session: aiohttp.ClientSession, body: bytes) -> None:
        status, answer, _ = await self._send(session, body)
        expected = 413 if body is self._oversized else 400
        self.report.misjudged += status != expected or not answer["error"]["message"]

    async def _good(
        self, session: aiohttp.ClientSession, names: Sequence[str], body: bytes
    ) -> None:
        deadline = time.monotonic() + TRIES_S
        while time.monotonic() < deadline:
            began = time.monotonic()
            status, answer, wait_s = await self._send(session, body)
            if status == 200:
                self.report.seconds.append(time.monotonic() - began)
                self._check(names, answer)
                return
            if status not in (0, 429, 503, 504):
                break
            await asyncio.sleep(wait_s)
        self.report.lost += 1

    def _check(self, names: Sequence[str], answer: Mapping[str, Any]) -> None:
        entries = answer["data"]
        self.report.wrong += len(entries) != len(names)
        for name, entry in zip(names, entries, strict=False):
            value = entry["embedding"]
            if isinstance(value, str):
                value = np.frombuffer(base64.b64decode(value), "<f4")
            same = np.shape(value) == self._vectors[name].shape and np.allclose(
                value, self._vectors[name], rtol=0, atol=TOLERANCE
            )
            self.report.wrong += not same

    def _kill(self, rng: random.Random) -> None:
        engines = [p for p in family(self._server) if named(p, ROLES["engine core"])]
        if engines:
            engine = rng.choice(engines)
            with suppress(psutil.NoSuchProcess):
                engine.kill()
                self.report.killed.append(engine.pid)


def served_url(job: Job) -> str:
    """Wait until a job serves, and return its address."""
    pattern = re.compile(r"^serving \S+ at (\S+)$", re.MULTILINE)
    job.wait_until(lambda: pattern.search(job.printed()) is not None, "it serves")
    return pattern.search(job.printed()).group(1)


def main(path: str, requests: str, *settings: str) -> int:
    """Start the job, send the requests, print the report; 1 if anything is not as promised."""
    config = load(ServeConfig, Path(path), [*settings, "port=0", "run.dir=runs/serve-load"])
    inputs = sent_inputs()
    vectors = own_vectors(config, inputs)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cluster.jobs.serve", path, *settings, "port=0"]
        command.append(f"run.dir={folder}/run")
        home = Path.cwd()
        with Job(*command, folder=Path(folder), env=job_env(home)) as job:
            url = served_url(job)
            load_ = Load(job.process.pid, url, inputs, vectors, config.limits.body_bytes)
            report = asyncio.run(load_.run(int(requests)))
            print(report.text())
            job.process.terminate()
            job.finish(exit_code=3)
    good = report.wrong == report.lost == report.misjudged == 0
    return 0 if good and len(report.killed) == len(KILLS) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
