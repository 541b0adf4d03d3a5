"""MLflow, written by the driver only: parameters, metrics per step, files.

It takes seconds to load and is imported where it is used: settings are checked without it.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.run_folder import RUN_ID_FILE
from configs.load import to_flat
from data.errors import StopRequested

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
# MLflow reads them when it is imported.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

PARAM_BYTES = 500
FLUSH_S = 5.0
"""A write costs as much as a small training step, so steps share one."""
BATCH_METRICS = 1000
"""MLflow takes no more in one call."""


class Tracker:
    """One MLflow run; the same run id goes on when a job resumes.

    A step that is done again is not written again: MLflow would keep both points.
    """

    def __init__(self, config: Any, *, job: str, folder: Path) -> None:
        """Open the run whose id is kept in the run folder, or create one.

        The store is MLFLOW_TRACKING_URI, else SQLite at `mlflow.db` beside the run folders.
        """
        from mlflow.entities import Param

        self._waiting: list[tuple[str, float, int, int]] = []
        """Name, value, milliseconds since 1970, step."""
        self._newest: dict[str, int] = {}
        """Last step of each metric."""
        self._flushed = time.monotonic()
        given = Path(config.run.dir)  # `folder` is what its links lead to
        home = runs_folder(given)
        self.client = open_store(given)
        experiment = self.client.get_experiment_by_name(config.run.experiment)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(
                config.run.experiment,
                artifact_location=None
                if os.environ.get("MLFLOW_TRACKING_URI")
                else (home / "mlflow-artifacts").absolute().as_uri(),
            )
        )
        kept = folder / RUN_ID_FILE
        if kept.is_file():
            self.run_id = kept.read_text().strip()
            self.client.update_run(self.run_id, status="RUNNING")
            written = self.client.get_run(self.run_id).data.to_proto().metrics
            self._newest = {metric.key: metric.step for metric in written}
        else:
            name = "/".join(folder.resolve().parts[-2:])  # of what `runs/demo` stands for
            run = self.client.create_run(experiment_id, run_name=name, tags={"job": job})
            self.run_id = run.info.run_id
            kept.write_text(self.run_id)
            self.client.log_batch(
                self.run_id,
                params=[
                    Param(key, str(value)[:PARAM_BYTES]) for key, value in to_flat(config).items()
                ],
            )
            self.client.log_artifact(self.run_id, str(folder / "resolved.yaml"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep one step's metrics; they are written together every few seconds."""
        now = int(time.time() * 1000)
        new = {key: value for key, value in metrics.items() if step > self._newest.get(key, -1)}
        self._newest |= dict.fromkeys(new, step)
        self._waiting += [(key, float(value), now, step) for key, value in new.items()]
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the metrics kept so far."""
        from mlflow.entities import Metric

        for start in range(0, len(self._waiting), BATCH_METRICS):
            batch = self._waiting[start : start + BATCH_METRICS]
            self.client.log_batch(self.run_id, metrics=[Metric(*one) for one in batch])
        self._waiting = []
        self._flushed = time.monotonic()

    def log_file(self, path: Path) -> None:
        """Attach a file."""
        self.client.log_artifact(self.run_id, str(path))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is kept and end the run: finished, killed on request, or failed."""
        self.flush()
        endings = {None: "FINISHED", StopRequested: "KILLED"}
        self.client.set_terminated(self.run_id, status=endings.get(kind, "FAILED"))


def open_store(folder: Path) -> "MlflowClient":
    """Return a client of MLFLOW_TRACKING_URI, else of the SQLite file beside the run folders."""
    from mlflow import MlflowClient

    # Not `set_tracking_uri`: it sets the variable, which says whether the user has a store.
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return MlflowClient()
    beside = f"sqlite:///{(runs_folder(folder) / 'mlflow.db').absolute()}"
    return MlflowClient(tracking_uri=beside)


def attach_files(folder: Path, files: Mapping[Path, str]) -> None:
    """Attach files to the run that a job left in ``folder``: path -> place among its artifacts."""
    kept = folder / RUN_ID_FILE
    if not kept.is_file():
        log.warning("%s: no MLflow run here, so nothing is attached to it", folder)
        return
    client = open_store(folder)
    for path, place in files.items():
        client.log_artifact(kept.read_text().strip(), str(path), place or None)


def runs_folder(folder: Path) -> Path:
    """Return the nearest parent named `runs`, else the run folder's parent."""
    absolute = folder.absolute()
    named = [parent for parent in absolute.parents if parent.name == "runs"]
    return named[0] if named else absolute.parent
