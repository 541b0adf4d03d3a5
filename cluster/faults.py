"""What a failed call to an actor means: ask again, replace the actor, or end the run.

`fault_of` judges one failed call for a pool, `wait_for` the failed calls of a group.
"""

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import (
    AuthenticationError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from configs.errors import ConfigError
from data.errors import (
    ActorLost,
    CheckpointError,
    ClusterError,
    EmbedRLError,
    EngineLost,
    WeightSyncError,
)

DEAD = (
    RayActorError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
    GetTimeoutError,
    RaySystemError,
)
"""What `fault_of` takes for the end of an actor of a pool."""
DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError)
"""What `wait_for` takes for the death of an actor of a group, or of a task's process."""
GRACE_S = 30.0
"""What other calls get after a failure to show theirs, which may be its cause."""
SHOWN_CHARACTERS = 400
"""Of what another library says."""
RESUMES = "; the same command goes on from the last checkpoint"
REMEDIES: dict[type[BaseException], str] = {
    ObjectStoreFullError: "Ray's object store has no room for what is in use: give it more memory "
    "(ray start --object-store-memory=BYTES; a larger /dev/shm for a Ray of the job's own), or "
    "lower pairs, max_staleness or the pixels in data.media" + RESUMES,
    OutOfDiskError: "Ray's object store is full, and so is the disk that it spills to: free space "
    "under /tmp/ray, or name another folder (ray start --temp-dir=FOLDER)" + RESUMES,
    AuthenticationError: "the cluster asks for another token than this process shows: copy its "
    "head's ~/.ray/auth_token to this machine, and set RAY_AUTH_MODE=token (an activated "
    "environment does)",
    OutOfMemoryError: "a node's memory was full, so Ray ended a process on it: give a node fewer "
    "actors, or lower an engine's max_num_seqs or cpu_kv_cache_gb" + RESUMES,
    GetTimeoutError: "a process of Ray's did not answer in time: is a node overloaded, or gone? "
    "Ray's logs lie under /tmp/ray/session_latest/logs" + RESUMES,
    RayActorError: "a process of the job died: see why in its log under "
    "/tmp/ray/session_latest/logs" + RESUMES,
    ObjectLostError: "what a process of the job held was lost with it or with its node" + RESUMES,
    RaySystemError: "Ray itself failed: see its logs under /tmp/ray/session_latest/logs" + RESUMES,
}
"""What to do about failures that are not ours; the first that fits."""


class Fault(StrEnum):
    """What follows from a failure."""

    RETRY = "retry"
    """The answer was lost on its way, the actor is well: ask anyone again."""
    REPLACE = "replace"
    """The actor, or the engine in it, is gone or broken: others take its work."""
    FATAL = "fatal"
    """We refused something on purpose; asking again changes nothing."""


def fault_of(error: BaseException) -> Fault:
    """Return what follows from the failure of a call.

    An engine without good weights serves nothing. An exception that is not ours counts against the
    actor: out of memory, a broken device, a defect of a library that a fresh process may not have.
    Pools bound how often that may happen.
    """
    cause = cause_of(error)
    if isinstance(error, ObjectLostError):
        return Fault.RETRY
    if isinstance(error, DEAD) or isinstance(cause, EngineLost | WeightSyncError):
        return Fault.REPLACE
    if isinstance(cause, EmbedRLError | ConfigError):
        return Fault.FATAL
    return Fault.REPLACE if isinstance(error, RayError) else Fault.FATAL


def wait_for(
    refs: Sequence[Any], names: Sequence[str], *, timeout_s: float, what: str
) -> list[Any]:
    """Return the results of calls to actors or tasks, in their order.

    After a first failure the others get `GRACE_S` to show theirs, as the cause is often there; a
    death or a checkpoint is cause enough.

    Raises:
        ActorLost: an actor, or the process of a task, died; it is named.
        ClusterError: actors did not answer in time, or failed in a way that is not ours; named.
        EmbedRLError: what a call itself raised.
    """
    deadline = time.monotonic() + timeout_s
    waiting = dict(zip(refs, names, strict=True))
    answers: dict[Any, Any] = {}
    failures: dict[str, RayError] = {}
    while waiting:
        remaining_s = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=remaining_s)
        if not ready:
            break
        name = waiting.pop(ready[0])
        try:
            answers[ready[0]] = ray.get(ready[0])
        except RayError as error:
            failures[name] = error
            if isinstance(error, DEATHS) or isinstance(cause_of(error), CheckpointError):
                break
            deadline = min(deadline, time.monotonic() + GRACE_S)
    if failures:
        raise _cause(failures, what)
    if waiting:
        raise ClusterError(
            f"{what}: no answer within {timeout_s:.0f} s from {', '.join(waiting.values())}; see "
            "their logs, or raise timeout_s where the role has one"
        )
    return [answers[ref] for ref in refs]


def _cause(failures: Mapping[str, RayError], what: str) -> Exception:
    """Return the failure that explains the others: a death, then our own errors, then any."""
    for name, error in failures.items():
        if isinstance(error, DEATHS):
            return ActorLost(f"{name} died while {what}: {error}")
    causes = {name: cause_of(error) for name, error in failures.items()}
    for cause in causes.values():
        if isinstance(cause, EmbedRLError | ConfigError):
            return cause
    name, cause = next(iter(causes.items()))
    return ClusterError(f"{name} failed while {what}: {cause!r}")


def explain(error: BaseException) -> str | None:
    """Return what happened and what to do, of failures that are not ours; None: of no other."""
    cause = cause_of(error)
    if isinstance(cause, RuntimeError) and "Version mismatch" in str(cause):
        return (
            f"the cluster runs another Ray or Python than this process ({_one_line(cause)}): use "
            "the environment that its nodes were started with"
        )
    refused = isinstance(cause, ConnectionError) and any(
        word in str(cause.__cause__) for word in ("AuthenticationError", "InvalidAuthToken")
    )
    for kind, remedy in REMEDIES.items():
        if isinstance(cause, kind) or (refused and kind is AuthenticationError):
            return f"{remedy} ({type(cause).__name__}: {_one_line(cause)})"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:SHOWN_CHARACTERS]


def cause_of(error: BaseException) -> BaseException:
    """Return what was raised inside the actor, or the error itself where there is nothing."""
    inside = error.cause if isinstance(error, RayTaskError) else None
    return inside if isinstance(inside, BaseException) else error
