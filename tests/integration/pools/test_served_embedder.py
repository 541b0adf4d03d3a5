"""vLLM's server, started and asked as the card of an Embedder says, gives our vectors."""

import base64
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.run.model_card import embedder_card
from configs.common import DataConfig, RunConfig
from configs.schema import EmbedderConfig
from data.embed_inputs import embed_content
from data.model.chat import ChatEncoder
from data.model.sentence_transformer import write_sentence_transformer
from data.types import Item, Kind
from tests.integration.conftest import MEDIA
from tests.integration.reference import embedding
from tests.patience import PATIENCE_S
from tests.tiny_model import write_tiny_model

SMALL = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4")
DIMENSIONS = [32, 64]

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return an export of the shared model's weights, and the commands of its card."""
    export = write_tiny_model(tmp_path_factory.mktemp("served") / "export", seed=0)
    write_sentence_transformer(export, MEDIA, dimensions=DIMENSIONS)
    config = EmbedderConfig(
        run=RunConfig(dir="run"),
        model=str(export),
        data=DataConfig(media=MEDIA),
        dimensions=DIMENSIONS,
    )
    return export, re.findall(r"```bash\n(.+?)```", embedder_card(config, {}, {}), re.DOTALL)


@pytest.fixture(scope="module")
def ask(card: tuple[Path, list[str]]) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Return what posts a request to the card's server."""
    export, (serve, _) = card
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    command, verb, model, *arguments = shlex.split(serve)
    assert (command, verb) == ("vllm", "serve")
    log = export.parent / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                # What the command starts: the command itself looks for a package named vllm, which
                # the build for CPUs is not.
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", model, *arguments),
                *("--host", "127.0.0.1", "--port", port, *SMALL),
            ],
            cwd=export,
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def post(request: dict[str, Any]) -> Any:
        address = f"http://127.0.0.1:{port}/v1/embeddings"
        headers = {"Content-Type": "application/json"}
        body = urllib.request.Request(address, json.dumps(request).encode(), headers)
        with urllib.request.urlopen(body, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    try:
        until = time.monotonic() + PATIENCE_S
        while not _healthy(port):
            ended = server.poll() is not None or time.monotonic() > until
            assert not ended, log.read_text(errors="replace")[-4000:]
            time.sleep(0.5)
        yield post
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _healthy(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _address(pixels: np.ndarray) -> str:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


@pytest.fixture(scope="module")
def ours(
    tiny_model: torch.nn.Module, encoder: ChatEncoder, pictures: dict[str, np.ndarray]
) -> Callable[[Item], tuple[int, np.ndarray]]:
    """Return what gives the number of our tokens and our vector of an item."""

    def embed(item: Item) -> tuple[int, np.ndarray]:
        content = embed_content(item, "", max_frames=4, item_tokens=0)
        prompt = encoder.embed(content, pictures)
        return len(prompt.expanded), embedding(tiny_model, encoder, prompt)

    return embed


def test_the_request_of_the_card_is_answered_with_leading_dimensions(
    card, ask, ours, pictures
) -> None:
    request = json.loads(re.search(r"-d '(.+)'", card[1][1], re.DOTALL)[1])
    request["messages"][0]["content"][0]["image_url"]["url"] = _address(pictures["c"])
    tokens, vector = ours(Item(text="a red star", kind=Kind.IMAGE, uris=("c",)))
    answer = ask(request)
    assert answer["usage"]["prompt_tokens"] == tokens
    expected = vector[:32] / np.linalg.norm(vector[:32])
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=1e-3)


def test_an_instruction_is_a_system_message(ask, ours, pictures) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": _address(pictures[uri])}} for uri in ("a", "b")
    ]
    messages = [
        {"role": "system", "content": "find the star"},
        {"role": "user", "content": [*parts, {"type": "text", "text": "red"}]},
    ]
    answer = ask({"model": "embedder", "messages": messages})
    tokens, vector = ours(
        Item(text="red", kind=Kind.IMAGE, uris=("a", "b"), instruction="find the star")
    )
    assert answer["usage"]["prompt_tokens"] == tokens
    np.testing.assert_allclose(answer["data"][0]["embedding"], vector, atol=1e-3)


def test_a_size_that_was_not_trained_is_refused(ask) -> None:
    messages = [{"role": "user", "content": "red"}]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask({"model": "embedder", "messages": messages, "dimensions": 48})
