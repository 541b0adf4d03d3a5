"""One copy of the models in a process of its own, and what its failures mean for a request.

    front (the job's process) --- handle ---> replica: Encoder, its engines' processes
                                               | an engine died
                                               v
                              leaves; Ray Serve starts another one in its place

An engine that died does not come back. What it was working on fails with `EngineLost`, and the
replica leaves at once, so that no further request finds it.
"""

import asyncio
import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from cluster.faults import cause_of
from cluster.placement import Role, actor_env
from cluster.serving.app import DOWN_S, Encode
from cluster.serving.refusal import Refused
from cluster.serving.request import EmbeddingsRequest
from configs.errors import ConfigError
from configs.schema import EncoderConfig, ServeConfig
from data.errors import ClusterError, DataError, EngineLost
from data.types import Side
from encoder.encoder import Encoded, Encoder

log = logging.getLogger(__name__)
DEPLOYMENT = "replica"
LEAVE_S = 0.2
"""From an engine's death to the replica's end: what failed with it is answered first."""
DEATHS = 3
"""Replicas that die with a request before it is refused. Fewer may die by chance, of other requests
or with their machine."""
MOST_DEADLY = 4096
"""Requests that are remembered."""
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 30.0
SHUTDOWN_LOOK_S = 0.1
"""No request runs when replicas are stopped, so they need not look for long."""
STARTS = 3
"""How often a replica is started that fails at its start."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Of Ray Serve, which would write a line for each request."""


class Replica:
    """An `Encoder` for calls from the front."""

    def __init__(self, config: ServeConfig) -> None:
        settings = EncoderConfig(data=config.data, rollout=config.rollout, reward=config.reward)
        self._encoder = Encoder.from_pretrained(
            config.reward.model, config.reasoner or None, settings
        )
        root = Path(config.media_root).resolve() if config.media_root else None
        kept = re.escape(gettempdir()) + r"/encoder-\w+/"
        self._folders = re.compile(f"{re.escape(str(root))}/|{kept}" if root else kept)
        """What a client need not know of the paths in messages."""

    async def encode(
        self, inputs: list[dict[str, Any]], side: str, trace: str, truncate_dim: int | None
    ) -> Encoded | DataError:
        """Return the vectors of all inputs, or why there are none: one cannot be encoded.

        It is no exception, as Ray Serve logs the stack of each; a client could fill the disk.

        Raises:
            EngineLost: an engine died; this replica ends.
        """
        try:
            future = self._encoder.encode_later(
                inputs, side=Side(side), trace=trace, truncate_dim=truncate_dim
            )
            return await asyncio.wrap_future(future)
        except Exception as error:
            # Whatever a library raises: an engine that died may be its cause.
            self._leave_if_lost(error)
            if isinstance(error, DataError | ConfigError):
                return DataError(self._folders.sub("", str(error)))
            raise

    def check_health(self) -> None:
        """Ray Serve asks: an engine may die while it has no work.

        Raises:
            EngineLost: it did.
        """
        self._leave_if_lost(None)

    def __del__(self) -> None:
        self._encoder.close()

    def _leave_if_lost(self, error: Exception | None) -> None:
        if self._encoder.healthy() and not isinstance(error, EngineLost):
            return
        log.warning("an engine died: this replica ends, and another one takes its place")
        leave = threading.Timer(LEAVE_S, os._exit, [1])
        leave.daemon = True
        leave.start()
        raise EngineLost("an engine of this replica died") from error


class Deadly:
    """Refuses requests that ended replicas, by a hash of what is encoded."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def check(self, key: bytes) -> None:
        """Refuse a request that has ended `DEATHS` replicas.

        Raises:
            Refused: it did; its client is told not to send it again.
        """
        if self._deaths.get(key, 0) >= DEATHS:
            message = f"{DEATHS} replicas died while they worked on this request; change its inputs"
            raise Refused(message, status=500, code="replicas_died", retry=False)

    def clear(self, key: bytes) -> None:
        """Forget the deaths of a request that was answered."""
        self._deaths.pop(key, None)

    def count(self, key: bytes) -> None:
        """Note that a replica ended with a request; the oldest ones are forgotten."""
        self._deaths[key] = self._deaths.pop(key, 0) + 1
        if len(self._deaths) > MOST_DEADLY:
            self._deaths.popitem(last=False)


def key_of(request: EmbeddingsRequest, inputs: list[dict[str, Any]]) -> bytes:
    """Return a hash of what a replica gets."""
    key = hashlib.sha256(repr((request.side.value, request.trace, request.dimensions)).encode())
    for name, content in (pair for item in inputs for pair in item.items()):
        for part in content if isinstance(content, list) else [content]:
            # The media themselves, not their text: it is several times as long.
            binary = part if isinstance(part, bytes) else repr(part).encode()
            key.update(f"{name} {len(binary)} ".encode())
            key.update(binary)
    return key.digest()


class Replicas:
    """The replicas of a job; Ray Serve keeps their number.

    Args:
        name: of the application among those of a cluster.
    """

    def __init__(self, config: ServeConfig, name: str) -> None:
        self._config, self._name = config, name
        self._handle: DeploymentHandle | None = None

    def start(self) -> None:
        """Start all and wait for the first time that all can serve.

        Raises:
            ClusterError: they cannot be started.
        """
        config = self._config
        # The front listens itself: bodies, limits and errors are its own.
        serve.start(proxy_location="Disabled", logging_config=LOGGING)
        try:
            self._handle = serve.run(
                deployment_of(config).bind(config), name=self._name, route_prefix=None
            )
        except RuntimeError as error:
            raise ClusterError(
                f"expected {config.replicas} replicas, found that they do not start: {error}; "
                "Ray's logs: /tmp/ray/session_latest/logs/serve"
            ) from error

    def running(self) -> int | None:
        """Return how many can serve; None: Ray Serve does not say now, the replicas may be well."""
        try:
            application = serve.status().applications.get(self._name)
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("Ray Serve does not say how the replicas are: %s", error)
            return None
        return replicas_in(application)

    def stop(self) -> None:
        """Stop all and wait for their end."""
        with suppress(RayServeException):  # it was stopped before Ray Serve ran
            serve.delete(self._name)

    def encoder(self) -> Encode:
        """Return what has a request's inputs encoded by one of the replicas."""

        deadly = Deadly()

        async def encode(request: EmbeddingsRequest, inputs: list[dict[str, Any]]) -> Encoded:
            key = await asyncio.to_thread(key_of, request, inputs)
            deadly.check(key)
            response = self._handle.encode.remote(
                inputs, request.side.value, request.trace, request.dimensions
            )
            try:
                encoded = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (RayError, RayServeException) as error:
                if isinstance(cause_of(error), EngineLost | RayActorError):
                    deadly.count(key)
                    deadly.check(key)
                raise refusal_of(error) from error
            deadly.clear(key)
            if isinstance(encoded, DataError):
                raise Refused(str(encoded), param="input")
            return encoded

        return encode


def refusal_of(error: BaseException) -> BaseException:
    """Return what a failed call of a replica means for its request; a defect stays what it is."""
    cause = cause_of(error)
    if isinstance(error, RayTaskError) and not isinstance(cause, EngineLost | RayError):
        return cause
    log.warning("a request was lost with its replica: %s", type(cause).__name__)
    message = "the replica that worked on this request died; try again"
    return Refused(message, status=503, retry_after_s=DOWN_S)


def replicas_in(application: ApplicationStatusOverview | None) -> int | None:
    """Return how many can serve; None: a controller that has just come back does not know."""
    if application is None:
        return None
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        return 0
    deployment = application.deployments.get(DEPLOYMENT)
    return None if deployment is None else deployment.replica_states.get("RUNNING", 0)


def deployment_of(config: ServeConfig) -> serve.Deployment:
    """Return what Ray Serve keeps running: replicas in the environment of all actors."""
    return serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=config.replicas,
        ray_actor_options={
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "runtime_env": {"env_vars": actor_env(role(config))},
        },
        max_ongoing_requests=config.limits.requests,
        graceful_shutdown_wait_loop_s=SHUTDOWN_LOOK_S,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=STARTS,
        logging_config=LOGGING,
    )


def role(config: ServeConfig) -> Role:
    """Return what the job asks Ray for."""
    return Role(DEPLOYMENT, config.replicas, config.cpus, config.gpus)


def application_name(folder: Path) -> str:
    """Return the application's name on a cluster: one for each run folder."""
    return "embed-rl-" + re.sub(r"[^\w.-]+", "-", str(folder.absolute()).strip("/"))
