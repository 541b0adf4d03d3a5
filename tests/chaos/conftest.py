"""What all runs under fire start from."""

from pathlib import Path

import pytest

from cluster.run.run_folder import project_root


@pytest.fixture(scope="session")
def models() -> Path:
    """Return the folder of the demo's warm-started models."""
    folder = project_root() / "runs/demo"
    for stage in ("warm_start", "embedder"):
        exported = folder / stage / "export"
        assert exported.is_dir(), f"expected {exported}: run `make demo` first"
    return folder
