"""What runs in `make test-all` alone."""

from typing import Any

import pytest


def extended(*values: Any) -> Any:
    """Return a parameter set that `make test` leaves to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.extended)
