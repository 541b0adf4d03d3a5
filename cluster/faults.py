"""What a failed call to an actor means: ask again, replace the actor, or end the run."""

from enum import StrEnum

from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
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


def cause_of(error: BaseException) -> BaseException:
    """Return what was raised inside the actor, or the error itself where there is nothing."""
    inside = error.cause if isinstance(error, RayTaskError) else None
    return inside if isinstance(inside, BaseException) else error
