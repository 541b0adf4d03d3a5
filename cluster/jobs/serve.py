"""Vectors over HTTP, as OpenAI's `/v1/embeddings`: texts, pictures, videos and pages.

Example: python -m cluster.jobs.serve configs/demo/serve.yaml
"""

import logging
import sys
import time
from contextlib import closing
from pathlib import Path

from cluster.jobs.command import run_job
from cluster.placement import Role
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stopping import StopRequest
from cluster.serving.app import Front
from cluster.serving.loopback import is_loopback
from cluster.serving.media import Media
from cluster.serving.preflight import check_settings, served_by
from cluster.serving.remote import Remote
from cluster.serving.replica import Replicas, application_name, role
from cluster.serving.server import Server, listening_socket
from cluster.session import session
from configs.schema import ServeConfig
from data.errors import ClusterError, StopRequested
from data.model.chat import load_encoder
from data.model.model_folder import check_embedder, check_reasoner

LOOK_S = 1.0
"""From one look at the replicas and at signals to the next."""
END_NOTICE = "the job ends when the requests that run are answered; a second signal ends it at once"
log = logging.getLogger(__name__)


def roles(config: ServeConfig) -> list[Role]:
    """Return what the job asks Ray for."""
    return [role(config)]


def main(config: ServeConfig) -> int:
    """Serve until a signal comes.

    Raises:
        StopRequested: it came, and all requests that ran then were answered.
        ClusterError: replicas cannot be started.
    """
    token = check_settings(config)
    if config.reasoner:
        check_reasoner(config.reasoner, [])
    load_encoder(config.reward.model, config.data.media).check_pooling(config.reward.pooling)
    check_embedder(config.reward.model, [])
    folder = RunFolder(config, job="serve")
    config = settled(config)
    limits = config.limits
    replicas = Replicas(config, application_name(folder.path))
    media = Media(
        root=Path(config.media_root) if config.media_root else None,
        remote=Remote(timeout_s=limits.remote_timeout_s) if config.remote else None,
        max_file_bytes=config.data.media.max_file_bytes,
        max_bytes=limits.media_bytes,
    )
    front = Front(
        served_by(config),
        limits,
        media,
        replicas.encoder(),
        token=token,
        loopback=is_loopback(config.host),
    )
    with (
        closing(listening_socket(config.host, config.port)) as listener,
        session(
            roles(config),
            namespace=str(folder.path.absolute()),
            nodes_timeout_s=config.run.nodes_timeout_s,
        ),
    ):
        try:
            replicas.start()
            front.replicas = config.replicas
            with StopRequest(END_NOTICE) as stop, Server(front.app, listener) as server:
                host, port = listener.getsockname()[:2]
                address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                print(f"serving {config.name} at http://{address}/v1", flush=True)
                watch(front, replicas, server, stop)
                drain(front, limits.timeout_s)
        finally:
            replicas.stop()
    raise StopRequested("stopped on request; the requests that ran were answered")


def watch(front: Front, replicas: Replicas, server: Server, stop: StopRequest) -> None:
    """Tell the front how many replicas can serve, until a signal comes.

    Raises:
        ClusterError: the thread that answers has ended.
    """
    before = front.replicas
    while not stop.made:
        running = replicas.running()
        if running is not None:
            front.replicas = running
        if front.replicas != before:
            before = front.replicas
            log.info("%d replicas can serve", before)
        if not server.alive:
            raise ClusterError("the thread that answers requests ended; the log says why")
        time.sleep(LOOK_S)


def drain(front: Front, timeout_s: float) -> None:
    """Refuse new requests, and wait for those that run."""
    front.draining = True
    deadline = time.monotonic() + timeout_s
    while front.in_flight and time.monotonic() < deadline:
        time.sleep(LOOK_S / 20)


if __name__ == "__main__":
    sys.exit(run_job(ServeConfig, main, roles=roles))
