"""What a failed call to an actor means: ask again, replace the actor, or end the run."""

from enum import StrEnum

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
from data.errors import EmbedRLError, EngineLost, WeightSyncError

DEAD = (
    RayActorError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
    GetTimeoutError,
    RaySystemError,
)

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
