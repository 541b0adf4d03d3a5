"""What MLflow is told before it is loaded."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import logging
from pathlib import Path
from cluster.tracking import open_store
assert open_store(Path("runs/job")).search_experiments()
print(logging.getLogger("mlflow.store.db.utils").getEffectiveLevel() >= logging.WARNING)
"""


def test_its_first_use_of_a_store_prints_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
