"""What follows from a failure."""

import pytest
from ray.exceptions import (
    ActorDiedError,
    AuthenticationError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
)

from cluster.faults import Fault, cause_of, explain, fault_of
from configs.errors import ConfigError
from data.errors import DataError, EngineLost, WeightSyncError


def inside(cause: Exception) -> RayTaskError:
    """Return what a call raises whose actor raised."""
    return RayTaskError("generate", "traceback", cause)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ActorDiedError(), Fault.REPLACE),
        (GetTimeoutError("slow"), Fault.REPLACE),
        (inside(EngineLost("gone")), Fault.REPLACE),
        (inside(WeightSyncError("stale")), Fault.REPLACE),
        (inside(ZeroDivisionError("a defect")), Fault.REPLACE),
        (ObjectLostError("ab" * 28, None, ""), Fault.RETRY),
        (inside(DataError("no such file")), Fault.FATAL),
        (inside(ConfigError("a wrong key")), Fault.FATAL),
        (DataError("ours"), Fault.FATAL),
        (ZeroDivisionError("ours"), Fault.FATAL),
    ],
)
def test_a_failure_is_answered_by_what_it_means(error, fault) -> None:
    assert fault_of(error) is fault


def test_the_cause_is_what_the_actor_raised() -> None:
    cause = DataError("no such file")
    assert cause_of(inside(cause)) is cause
    died = ActorDiedError()
    assert cause_of(died) is died


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ObjectStoreFullError("4 GB asked"), "--object-store-memory"),
        (OutOfDiskError("95 % used"), "free space under /tmp/ray"),
        (GetTimeoutError("late"), "session_latest/logs"),
        (AuthenticationError("wrong token"), "~/.ray/auth_token"),
        (OutOfMemoryError("task killed"), "fewer actors"),
        (RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.9"), "environment"),
        (RayTaskError("embed", "trace", ObjectStoreFullError("full")), "--object-store-memory"),
    ],
)
def test_failures_that_are_not_ours_say_what_happened_and_what_to_do(error, advice):
    said = explain(error)
    assert advice in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "error", [KeyError("a defect"), RuntimeError("another"), BrokenPipeError()]
)
def test_defects_are_not_explained_away(error):
    assert explain(error) is None


def test_a_token_that_a_cluster_does_not_take_is_told_from_a_cluster_that_is_not_there() -> None:
    inner = RuntimeError("Failed to connect to GCS. Last connection error: AuthenticationError")
    error = ConnectionError("Failed to connect to Ray cluster at HEAD:6379")
    assert explain(error) is None
    error.__cause__ = inner
    assert "~/.ray/auth_token" in explain(error)
