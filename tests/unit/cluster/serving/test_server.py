"""The socket and the thread that answers: what clients see of refusals and of the end."""

import asyncio
import threading
import time

import httpx
import pytest

from cluster.jobs.serve import drain
from cluster.serving.server import Server, listening_socket
from tests.patience import PATIENCE_S
from tests.unit.cluster.serving.fronts import LIMITS, front_of, lengths


def post(server, content: bytes) -> httpx.Response:
    url = f"http://127.0.0.1:{server.getsockname()[1]}/v1/embeddings"
    headers = {"Content-Type": "application/json"}
    return httpx.post(url, content=content, headers=headers, timeout=PATIENCE_S)


@pytest.fixture
def listener():
    with listening_socket("127.0.0.1", 0) as listener:
        yield listener


@pytest.mark.parametrize("size", [LIMITS.body_bytes + 1, 3 * LIMITS.body_bytes])
def test_a_client_that_sends_too_much_sees_why_it_is_refused(listener, size):
    with Server(front_of().app, listener):
        answer = post(listener, b" " * size)
    assert answer.status_code == 413
    assert "limits.body_bytes" in answer.json()["error"]["message"]


def test_a_client_is_told_before_its_body_is_looked_at_and_sees_the_answer(listener):
    with Server(front_of(replicas=0).app, listener):
        answer = post(listener, b" " * 3 * LIMITS.body_bytes)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_requests_that_run_are_answered_at_the_end_and_new_ones_are_not(listener):
    begun, go_on = threading.Event(), threading.Event()

    async def encode(request, inputs):
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return await lengths(request, inputs)

    front, answers = front_of(encode), []
    with Server(front.app, listener):
        running = threading.Thread(
            target=lambda: answers.append(post(listener, b'{"input": "a"}').status_code)
        )
        running.start()
        begun.wait(PATIENCE_S)
        ending = threading.Thread(target=drain, args=(front, PATIENCE_S))
        ending.start()
        while not front.draining:
            time.sleep(0.001)
        assert post(listener, b'{"input": "a"}').status_code == 503
        assert ending.is_alive()
        go_on.set()
        ending.join(PATIENCE_S)
        running.join(PATIENCE_S)
    assert answers == [200]
    assert not ending.is_alive()


def test_the_end_does_not_wait_for_ever():
    front = front_of()
    front.in_flight = 1
    drain(front, 0.01)
    assert front.draining
