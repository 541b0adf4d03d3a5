"""The HTTP side of `serve`: routes, token, limits, errors, metrics. It knows no Ray.

Every answer that is no success has the body of OpenAI's errors. A status of 4xx says what is wrong
with the request; 429, 503 and 504 say that the same request may succeed later.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.serving.answers import answer
from cluster.serving.loopback import is_loopback
from cluster.serving.media import Media
from cluster.serving.metrics import CONTENT_TYPE, Metrics
from cluster.serving.refusal import Refused, wrong
from cluster.serving.request import EmbeddingsRequest, Served, parse_request
from configs.serving import LimitsConfig
from encoder.encoder import Encoded

log = logging.getLogger(__name__)
Encode = Callable[[EmbeddingsRequest, list[dict[str, Any]]], Awaitable[Encoded]]
"""Has inputs encoded; raises `Refused` where they cannot be, or not now."""
BUSY_S = 1
"""Seconds until a client may try again where too many requests are running."""
DOWN_S = 5
"""The same where no replica can serve, or the job ends."""
DISCARD_S = 10.0
"""Longest time for which a body is read that nobody looks at."""
DISCARDED = 4
"""Bodies that are too large are read and thrown away up to so many times the limit, as a client
that still sends does not see the answer."""
CLIENT_GONE = 499
"""Status, in metrics alone, of a request whose client went away."""


class Front:
    """Answers the requests of one server.

    Args:
        token: what requests of `/v1/` must show; empty: nothing.
        loopback: requests of `/v1/` must name this machine as their `Host`: a page in a browser
            may give its own name the address 127.0.0.1.
    """

    def __init__(
        self,
        served: Served,
        limits: LimitsConfig,
        media: Media,
        encode: Encode,
        *,
        token: str = "",
        loopback: bool = False,
    ) -> None:
        self._served, self._limits, self._media = served, limits, media
        self._encode, self._token, self._loopback = encode, token.encode(), loopback
        self._began = int(time.time())
        self.metrics = Metrics()
        self.replicas = 0
        """That can serve; whoever looks after them sets it."""
        self.draining = False
        """Whether the job ends: new requests are refused."""
        self.in_flight = 0
        """Requests of vectors that run."""
        self.app = Starlette(
            routes=[
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={Refused: _refusal, HTTPException: _http_error, Exception: _bug},
        )

    async def _embeddings(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            self._check_client(request)
            self._check_room()
        except Refused as refused:
            response = await self._turned_away(request, refused)
        else:
            self._count(1)
            try:
                response = await self._in_time(request)
                self.metrics.seconds.observe(time.monotonic() - began)
            except Refused as refused:
                response = await _refusal(request, refused)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_GONE)
            except Exception as error:
                response = await _bug(request, error)
                log.exception("a request failed in a way that it should not")
            finally:
                self._count(-1)
        self.metrics.requests.labels(str(response.status_code)).inc()
        return response

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)

    def _check_room(self) -> None:
        """Refuse a request that cannot run now.

        Raises:
            Refused: the job ends, no replica can serve, or too many requests run.
        """
        if self.draining:
            raise Refused("the server ends", status=503, retry_after_s=DOWN_S)
        if not self.replicas:
            message = "no replica can serve yet; one is being started"
            raise Refused(message, status=503, retry_after_s=DOWN_S)
        if self.in_flight >= self._limits.requests:
            raise Refused(
                f"expected at most {self._limits.requests} requests at a time, found more; try "
                "again, or raise limits.requests of the server",
                status=429,
                code="queue_full",
                retry_after_s=BUSY_S,
            )

    async def _turned_away(self, request: Request, refused: Refused) -> Response:
        """Answer a request whose body was not looked at, but read it: else its client sees a
        broken connection and no answer."""
        try:
            async with asyncio.timeout(DISCARD_S):
                await self._read(request, 0)
        except TimeoutError:
            pass
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        return await _refusal(request, refused)

    async def _read(self, request: Request, most: int) -> tuple[bytes, int]:
        """Return a body's first bytes, and how many it has, as far as it was read."""
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= most:
                body += part
            elif size > DISCARDED * self._limits.body_bytes:
                break
        return bytes(body), size

    async def _in_time(self, request: Request) -> Response:
        """Answer a request, unless its client goes away or its time is over.

        Raises:
            Refused: it is wrong, or took too long.
            ClientDisconnect: nobody waits for the answer.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await self._body(request)
                work = asyncio.ensure_future(self._answer(body))
                gone = asyncio.ensure_future(_client_gone(request))
                try:
                    await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        raise ClientDisconnect
                    return work.result()
                finally:
                    work.cancel()
                    gone.cancel()
        except TimeoutError:
            raise Refused(
                f"no answer within limits.timeout_s={self._limits.timeout_s:g} s; try again, or "
                "with fewer items",
                status=504,
                retry_after_s=DOWN_S,
            ) from None

    async def _body(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            Refused: it is too large, or of another type.
        """
        most = self._limits.body_bytes
        body, size = await self._read(request, most)
        if size > most:
            raise Refused(
                f"body: expected at most {most} bytes, found more; send fewer items or smaller "
                "media, or raise limits.body_bytes of the server",
                status=413,
                param="body",
            )
        # A page in a browser may send other types to any server, this one without being asked.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(
                f"Content-Type: expected application/json, found {kind[:60]!a}", status=415
            )
        return body

    async def _answer(self, body: bytes) -> Response:
        # In threads: JSON and base64 of many megabytes would hold up all other requests.
        request = await asyncio.to_thread(parse_request, body, self._served)
        inputs = await self._media.inputs(request.items)
        encoded = await self._encode(request, inputs)
        content = await asyncio.to_thread(_json_of, request, encoded, self._served.name)
        self.metrics.items.inc(len(inputs))
        self.metrics.tokens.inc(sum(encoded.prompt_tokens))
        return Response(content, media_type="application/json")

    async def _models(self, request: Request) -> Response:
        self._check_client(request)
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def _model(self, request: Request) -> Response:
        self._check_client(request)
        name = request.path_params["name"]
        if name != self._served.name:
            raise Refused(
                f"expected the model '{self._served.name}', found {name[:60]!a}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._model_card())

    def _model_card(self) -> dict[str, Any]:
        name = self._served.name
        return {"id": name, "object": "model", "created": self._began, "owned_by": "embed-rl"}

    async def _health(self, request: Request) -> Response:
        """Tell whether requests can be answered: for load balancers and probes."""
        ready = self.replicas > 0 and not self.draining
        word = "ok" if ready else "ending" if self.draining else "starting"
        content = {"status": word, "replicas": self.replicas}
        return JSONResponse(content, status_code=200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        self.metrics.replicas.set(self.replicas)
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    def _check_client(self, request: Request) -> None:
        """Refuse a request without the token, or of another host.

        Raises:
            Refused: it shows no token, or another one, or names another host.
        """
        name = re.sub(r":\d*$", "", request.headers.get("host", ""))
        if self._loopback and not is_loopback(name.strip("[]")):
            raise Refused(
                "Host: expected 127.0.0.1, localhost or [::1] and the port, as the server listens "
                f"on loopback, found {name[:60]!a}; use such an address, or set host and token_env",
                status=421,
            )
        if not self._token:
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        # The bytes that came; a token may have other characters than ASCII.
        same = hmac.compare_digest(shown.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not same:
            raise Refused(
                "Authorization: expected `Bearer TOKEN` with this server's token, found another "
                "or none",
                status=401,
                code="invalid_api_key",
            )


def _json_of(request: EmbeddingsRequest, encoded: Encoded, name: str) -> bytes:
    return json.dumps(answer(request, encoded, name)).encode()


async def _client_gone(request: Request) -> None:
    """Return when a request's client has gone away; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refusal(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    return JSONResponse(refused.body(), status_code=refused.status, headers=refused.headers())


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    refused = wrong("path", "/v1/embeddings (POST) or /v1/models", ascii(request.url.path[:60]))
    refused.status = error.status_code
    headers = {**(error.headers or {}), **refused.headers()}
    return JSONResponse(refused.body(), status_code=refused.status, headers=headers)


async def _bug(request: Request, error: Exception) -> Response:
    """Answer without what the error says: it may name files or values of the server."""
    refused = Refused("the server failed; its log says why", status=500)
    return JSONResponse(refused.body(), status_code=HTTPStatus.INTERNAL_SERVER_ERROR)
