"""The socket that `serve` listens at, and the thread that answers.

Signals go to the main thread, which is the job's; uvicorn runs in another one.
"""

import logging
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette

from configs.errors import ConfigError

BACKLOG = 2048
START_LOOK_S = 0.01
KEEP_ALIVE_S = 75
"""Longer than clients keep a connection, or wait for another try: a server that closes it first
breaks a request that is just being sent."""
END_S = 10.0
"""Longest wait for the thread when no request runs any more."""
log = logging.getLogger(__name__)


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that has the address; it does not listen yet.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"host, port: expected an address of this machine that is free, found {host}:{port}: "
            f"{error.strerror or error}; choose another port, or 0 for any"
        ) from error
    return listener


class Server:
    """Answers by ``app`` in a thread of its own while in a `with`."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            http="h11",  # it bounds the headers of a request
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(END_S),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="http", daemon=True
        )

    def __enter__(self) -> "Server":
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(START_LOOK_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(END_S)
        self._listener.close()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()
