"""The job `serve` as a process: clients, bad requests, engines that die, its end."""

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from configs.load import load, to_yaml
from configs.schema import EncoderConfig, ServeConfig
from data.types import Side
from encoder.encoder import Encoded, Encoder
from tests.chaos.serve_load import KILLS, Load, sent_inputs, served_url
from tests.e2e.jobs import Job, job_env
from tests.inputs.media_files import write_video
from tests.patience import PATIENCE_S
from tests.tiny_model import write_tiny_model

SETTINGS = Path(__file__).parents[2] / "configs/demo/serve.yaml"
TOKEN = "a-token-of-the-test"
REQUESTS = 300
CLOSE = {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True)
class Served:
    """A server, and what an encoder of this process gave for the same inputs."""

    job: Job
    url: str
    config: ServeConfig
    inputs: dict[str, dict]
    vectors: dict[str, np.ndarray]
    traced: Encoded
    """Of the first two inputs, with traces."""
    video: Path
    frames: np.ndarray
    """Vector of the video's first and last frame."""

    def post(self, **body) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.post(f"{self.url}/embeddings", json=body, headers=headers, timeout=PATIENCE_S)

    def metrics(self) -> str:
        return httpx.get(self.url.replace("/v1", "/metrics"), timeout=PATIENCE_S).text


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("serve")
    model = write_tiny_model(home / "model")
    media = home / "media"
    media.mkdir()
    video = write_video(media / "a.mp4")
    overrides = [
        *(f"{key}={model}" for key in ("reward.model", "reasoner")),
        *(f"run.dir={home}/run", f"media_root={media}", "token_env=SERVE_TOKEN"),
        *("replicas=2", "cpus=0.5", "port=0", "limits.body_bytes=1000000"),
    ]
    config = load(ServeConfig, SETTINGS, overrides)
    inputs = sent_inputs()
    first = list(inputs.values())[:2]
    settings = EncoderConfig(data=config.data, rollout=config.rollout, reward=config.reward)
    with Encoder.from_pretrained(config.reward.model, config.reasoner, settings) as encoder:
        plain = encoder.encode_later(list(inputs.values()), side=Side.TARGET, trace="none")
        traced = encoder.encode_later(first, side=Side.QUERY)
        frames = encoder.encode_later(
            [{"video": str(video), "max_frames": 2}], side=Side.TARGET, trace="none"
        )
        vectors = dict(zip(inputs, plain.result().vectors, strict=True))
        traced, frames = traced.result(), frames.result().vectors[0]
    (home / "serve.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "cluster.jobs.serve", str(home / "serve.yaml")]
    with Job(*command, folder=home, env=job_env(home, SERVE_TOKEN=TOKEN)) as job:
        url = served_url(job)
        yield Served(job, url, config, inputs, vectors, traced, video, frames)


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_a_server_gives_the_encoders_vectors_until_it_is_stopped(served):
    names = list(served.inputs)
    client = openai.OpenAI(base_url=served.url, api_key=TOKEN, timeout=PATIENCE_S)
    texts = [served.inputs[name]["text"] for name in names[:2]]
    [model] = client.models.list().data
    more = {"trace": "none"}
    answer = client.embeddings.create(model=model.id, input=texts, extra_body=more)
    for name, entry in zip(names, answer.data, strict=False):
        np.testing.assert_allclose(entry.embedding, served.vectors[name], **CLOSE)
    assert answer.usage.prompt_tokens > 0

    more = {"side": "query", "return_traces": True}
    answer = client.embeddings.create(
        model=model.id, input=texts, encoding_format="float", extra_body=more
    )
    assert [entry.trace for entry in answer.data] == served.traced.traces
    for vector, entry in zip(served.traced.vectors, answer.data, strict=True):
        np.testing.assert_allclose(entry.embedding, vector, **CLOSE)
    given = served.post(input=texts, trace="given", traces=served.traced.traces).json()
    np.testing.assert_allclose(
        [entry["embedding"] for entry in given["data"]], served.traced.vectors, **CLOSE
    )

    content = base64.b64encode(served.video.read_bytes()).decode()
    for url in (f"data:video/mp4;base64,{content}", f"file://{served.video}", "a.mp4"):
        part = {"type": "video_url", "video_url": {"url": url}, "max_frames": 2}
        [entry] = served.post(messages=chat_of(part), trace="none").json()["data"]
        np.testing.assert_allclose(entry["embedding"], served.frames, **CLOSE)

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for body, status in (
        ({"messages": chat_of(picture)}, 400),
        ({"messages": chat_of({"type": "image_url", "image_url": {"url": "../x.png"}})}, 400),
        ({"input": "a" * 1_000_000}, 413),
        ({"input": "a", "model": "other"}, 404),
    ):
        refused = served.post(**body)
        assert (refused.status_code, bool(refused.json()["error"]["message"])) == (status, True)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served.url, api_key="other").models.list()
    with pytest.raises(openai.BadRequestError, match="was not trained to be cut"):
        client.embeddings.create(model=model.id, input="a", dimensions=3)

    load_ = Load(
        served.job.process.pid,
        served.url,
        served.inputs,
        served.vectors,
        served.config.limits.body_bytes,
        token=TOKEN,
    )
    report = asyncio.run(load_.run(REQUESTS))
    assert (report.wrong, report.lost, report.misjudged) == (0, 0, 0), report.text()
    assert len(report.killed) == len(KILLS)
    assert 'embed_rl_requests_total{status="200"}' in served.metrics()

    with ThreadPoolExecutor(4) as pool:
        running = [
            pool.submit(served.post, input=[f"{names[0]} {n} {number}" for number in range(20)])
            for n in range(4)
        ]
        while "embed_rl_requests_in_flight 4.0" not in served.metrics():
            if all(future.done() for future in running):
                break
            time.sleep(0.01)
        os.kill(served.job.process.pid, signal.SIGTERM)
        assert [future.result().status_code for future in running] == [200] * 4
    printed = served.job.finish(exit_code=3)
    assert "the requests that ran were answered" in printed
    assert TOKEN not in printed
    folder = Path(served.config.run.dir)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def chat_of(part: dict) -> list[dict]:
    return [{"role": "user", "content": [part]}]
