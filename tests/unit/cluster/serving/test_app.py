"""The HTTP side of `serve` around an encoder: answers, refusals, limits, metrics."""

import asyncio
import base64
import json
import threading

import httpx
import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError

from cluster.serving import answers as writing_answers
from cluster.serving import app
from cluster.serving.app import Front
from cluster.serving.refusal import Refused
from cluster.serving.replica import Deadly, application_name, key_of, refusal_of
from configs.serving import LimitsConfig
from data.errors import EngineLost
from encoder.encoder import Encoded
from tests.patience import PATIENCE_S
from tests.unit.cluster.serving.fronts import LIMITS, front_of, lengths

JSON = {"Content-Type": "application/json"}


def client_of(front: Front) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=front.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def send(front: Front, content: bytes | None = None, **fields) -> httpx.Response:
    async def post() -> httpx.Response:
        async with client_of(front) as client:
            body = json.dumps(fields).encode() if content is None else content
            return await client.post("/v1/embeddings", content=body, headers=JSON)

    return asyncio.run(post())


def get(front: Front, path: str, **headers) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client_of(front) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_vectors_come_as_numbers_or_as_base64():
    answer = send(front_of(), model="m", input=["abc", "z"]).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == [3, np.float32(0.1)]
    assert "trace" not in answer["data"][0]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    answer = send(front_of(), input="abc", encoding_format="base64", return_traces=True).json()
    assert answer["data"][0]["trace"] == "ABC"
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert vector.tolist() == [3, np.float32(0.1)]


def test_models_are_listed_by_name():
    front = front_of()
    assert [card["id"] for card in get(front, "/v1/models").json()["data"]] == ["m"]
    assert get(front, "/v1/models/m").json()["object"] == "model"
    assert get(front, "/v1/models/other").status_code == 404


def test_every_refusal_has_the_body_of_openais_errors():
    front = front_of()
    for answer, status in (
        (send(front, input=[]), 400),
        (send(front, content=b"{"), 400),
        (send(front, model="other", input="a"), 404),
        (get(front, "/v2/embed"), 404),
        (get(front, "/v1/embeddings"), 405),
        (send(front, content=b" " * 2001), 413),
        (send(front, content=b" " * 20_000), 413),
    ):
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert "Retry-After" not in answer.headers
    counted = get(front, "/metrics").text
    assert 'embed_rl_requests_total{status="413"} 2.0' in counted
    assert "embed_rl_requests_in_flight 0.0" in counted


def test_another_content_type_is_refused():
    async def post() -> httpx.Response:
        async with client_of(front_of()) as client:
            return await client.post("/v1/embeddings", content=b'{"input": "a"}')

    assert asyncio.run(post()).status_code == 415


def test_requests_show_the_token_where_one_is_asked_for():
    front = front_of(token="wörd")
    assert send(front, input="a").status_code == 401
    for shown in ("Bearer other", "Basic word", "Bearer", "w\u00f6rd"):
        answer = get(front, "/v1/models", authorization=shown.encode())
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert get(front, "/v1/models", authorization="Bearer wörd".encode()).status_code == 200
    assert get(front, "/health").status_code == 200


def test_a_server_without_replicas_or_at_its_end_asks_for_another_try():
    front = front_of(replicas=0)
    answer = send(front, input="a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert get(front, "/health").json() == {"status": "starting", "replicas": 0}
    front.replicas = 2
    assert get(front, "/health").json() == {"status": "ok", "replicas": 2}
    front.draining = True
    assert send(front, input="a").status_code == 503
    assert get(front, "/health").status_code == 503


def test_too_many_requests_at_a_time_are_turned_away():
    async def run() -> list[int]:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def encode(request, inputs):
            if front.in_flight == LIMITS.requests:
                begun.set()
            await go_on.wait()
            return await lengths(request, inputs)

        front = front_of(encode)
        async with client_of(front) as client:

            async def post() -> httpx.Response:
                return await client.post("/v1/embeddings", json={"input": "a"})

            running = [asyncio.create_task(post()) for _ in range(LIMITS.requests)]
            await begun.wait()
            refused = await post()
            go_on.set()
            answers = await asyncio.gather(*running)
            assert refused.headers["Retry-After"] == "1"
            assert front.in_flight == 0
            return [refused.status_code, *(answer.status_code for answer in answers)]

    assert asyncio.run(run()) == [429, 200, 200]


def test_a_request_that_takes_too_long_is_ended():
    ended = []

    async def never(request, inputs):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(request)

    limits = LimitsConfig(timeout_s=0.01)
    assert send(front_of(never, limits=limits), input="a").status_code == 504
    assert len(ended) == 1


def test_the_work_for_a_client_that_goes_away_is_ended():
    async def run() -> str:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def encode(request, inputs):
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        front = front_of(encode)
        messages = [{"type": "http.request", "body": b'{"input": "a"}', "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def ignore(message):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embeddings",
            "raw_path": b"/v1/embeddings",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await front.app(scope, receive, ignore)
        await ended.wait()
        return front.metrics.text().decode()

    assert 'embed_rl_requests_total{status="499"} 1.0' in asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Refused("no", status=503, retry_after_s=5), 503, "5"),
        (Refused("no"), 400, None),
        (KeyError("/secret/path"), 500, None),
    ],
)
def test_errors_of_the_encoder_keep_their_meaning(error, status, retry):
    async def encode(request, inputs):
        raise error

    answer = send(front_of(encode), input="a")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry)
    assert "secret" not in answer.text


def test_a_vector_that_is_not_finite_is_never_sent():
    async def encode(request, inputs):
        return Encoded(np.array([[np.nan, 1]], dtype=np.float32), [""], [1])

    assert send(front_of(encode), input="a").status_code == 500


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RayTaskError("encode", "trace", EngineLost("died")), 503),
        (RayActorError(), 503),
    ],
)
def test_what_a_failed_call_of_a_replica_means(error, status):
    assert refusal_of(error).status == status


def test_a_defect_in_a_replica_stays_an_error():
    defect = KeyError("x")
    assert refusal_of(RayTaskError("encode", "trace", defect)) is defect


def test_an_application_is_named_after_its_run_folder(tmp_path):
    name = application_name(tmp_path / "a b#c")
    assert name.startswith("embed-rl-")
    assert name.endswith("a-b-c")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_a_server_on_loopback_answers_its_own_names_alone(host, status):
    answer = get(front_of(loopback=True), "/v1/models", Host=host)
    assert answer.status_code == status
    assert get(front_of(), "/v1/models", Host=host).status_code == 200


def test_other_requests_are_answered_while_an_answer_is_written(monkeypatch):
    begun, go_on, write = threading.Event(), threading.Event(), writing_answers.answer

    def slow(*arguments):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return write(*arguments)

    monkeypatch.setattr(app, "answer", slow)

    async def both() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(front_of()) as client:
            writing = asyncio.create_task(
                client.post("/v1/embeddings", content=b'{"input": "a"}', headers=JSON)
            )
            assert await asyncio.to_thread(begun.wait, PATIENCE_S)
            health = await client.get("/health")
            go_on.set()
            return health, await writing

    assert [response.status_code for response in asyncio.run(both())] == [200, 200]


def test_a_request_that_ended_three_replicas_gets_no_other_one():
    deadly = Deadly()

    async def encode(request, inputs):
        key = key_of(request, inputs)
        deadly.check(key)
        if inputs[0]["text"] != "bad":
            deadly.clear(key)
            return await lengths(request, inputs)
        deadly.count(key)
        deadly.check(key)
        raise Refused("died", status=503, retry_after_s=5)

    front = front_of(encode)
    answers = [send(front, input=text) for text in ("bad", "good", "bad", "bad", "bad", "good")]
    assert [answer.status_code for answer in answers] == [503, 200, 503, 500, 500, 200]
    assert answers[3].headers["x-should-retry"] == "false"
    assert "Retry-After" not in answers[3].headers
    assert answers[3].json()["error"]["code"] == "replicas_died"
    assert "x-should-retry" not in answers[0].headers
