"""What follows from a failure."""

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayTaskError

from cluster.faults import Fault, cause_of, fault_of
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
