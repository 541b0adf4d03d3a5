"""MLflow, written by the driver only: parameters, metrics per step, files.

`metrics.jsonl` of the run folder is the truth, MLflow a copy of it that may lag behind: a thread of
its own reads the file and writes what MLflow lacks. So no server stops, delays or fails a job. What
a job logs while the server is away is written when the server is back. After the job's end, use:

    python -m cluster.run.tracking runs/my-rl

MLflow takes seconds to load and is imported where it is used: settings are checked without it.
"""

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from cluster.run.run_folder import RUN_ID_FILE, SETTINGS_FILE, parse_record, settings_in
from cluster.run.stopping import Interrupted
from configs.errors import ConfigError
from configs.load import to_flat
from data.errors import StopRequested
from evaluation.summary import METRICS_FILE, STAGE_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
# MLflow reads them when it is imported, the last two at every request: the thread tries again.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password in it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

URI = "MLFLOW_TRACKING_URI"
PARAM_BYTES = 500
METRIC_NAME_CHARS = 250
WRITE_EVERY_S = 5.0
"""A write costs as much as a small training step, so steps share one."""
START_S = 30.0
"""How long a job waits for MLflow's first answer before it begins without it."""
END_S = 60.0
"""How long an ending job waits for what is still to be written."""
WARN_EVERY_S = 60.0
BATCH_METRICS = 1000
"""MLflow takes no more in one call."""
FOLDER_TAG = "folder"
"""Where a run's folder is, `host:path`: a run left RUNNING there was killed."""


class Tracker:
    """Keeps one MLflow run equal to the run folder, from a thread; ends it as the job ends.

    A step that is done again is not written again: MLflow would keep both points.
    """

    def __init__(self, folder: Path, *, job: str, given: str) -> None:
        """Open the run whose id is kept in the run folder, or create one.

        The store is MLFLOW_TRACKING_URI, else SQLite at `mlflow.db` beside the run folders, where
        ``given``, the folder as the settings name it, leads without following links. One that does
        not answer is tried again until the job ends.

        Raises:
            ConfigError: MLFLOW_TRACKING_URI names no MLflow, or it refuses the credentials.
        """
        import mlflow  # noqa: F401  # here, not in the thread: it loads much that jobs load too

        self.run = MlflowRun(folder, job=job, given=Path(given))
        self._answered = threading.Event()
        self._due = threading.Event()
        self._ending = ""
        """The status that the run ends with, once the job does."""
        self._behind = ""
        """Why MLflow may lack something; empty: it does not."""
        self._refused: ConfigError | None = None
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()
        if not self._answered.wait(START_S):
            self._behind = f"no answer in {START_S:g} s"
            log.warning("%s: %s; the job begins without it", tracking_store_name(), self._behind)
            self._answered.set()  # what comes now is too late to refuse the start
        if self._refused:
            raise self._refused

    def log_file(self, path: Path) -> None:
        """Attach a file with the next write."""
        self.run.files[path] = ""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the rest and end the run: finished, killed on request, or failed."""
        endings = {None: "FINISHED", StopRequested: "KILLED", Interrupted: "KILLED"}
        self._ending = endings.get(kind, "FAILED")
        self._due.set()
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._behind = self._behind or f"still writing after {END_S:g} s"
        if self._behind:
            log.warning(
                "%s lacks a part of this run (%s); %s holds all of it, and once the server is "
                "there this writes the rest: python -m cluster.run.tracking %s",
                tracking_store_name(),
                self._behind,
                self.run.given / METRICS_FILE,
                self.run.given,
            )

    def _follow(self) -> None:
        warned = float("-inf")
        while True:
            ending = self._ending  # before the write: what the job did before belongs to it
            try:
                self.run.catch_up()
                if ending:
                    self.run.end(ending)
                self.run.attach()
                if self._behind:
                    log.info("%s answers; it holds all metrics of this run", tracking_store_name())
                self._behind = ""
            except Exception as error:  # whatever it is, it is no reason to stop training
                self._behind = self._behind or reason_of(error)
                if isinstance(error, ConfigError) and not self._answered.is_set():
                    self._refused = error
                    self._answered.set()
                    return
                if time.monotonic() - warned > WARN_EVERY_S and not ending:
                    warned = time.monotonic()
                    log.warning(
                        "%s cannot be written (%s); the job goes on, %s is written there later",
                        tracking_store_name(),
                        reason_of(error),
                        METRICS_FILE,
                    )
            self._answered.set()
            if ending:
                return
            self._due.wait(WRITE_EVERY_S)


class MlflowRun:
    """A run folder's run in MLflow, and how far it has come."""

    def __init__(self, folder: Path, *, job: str = "", given: Path | None = None) -> None:
        """Take a folder; ``job`` names the job that this process runs in it, if it does."""
        self.folder = folder
        self.given = given or folder
        self.job = job
        self.run_id = ""
        """Empty: not opened yet, or to be asked anew what it holds."""
        self.files: dict[Path, str] = {folder / SETTINGS_FILE: ""}
        """To be attached: path -> folder among the run's artifacts."""
        self._newest: dict[str, int] = {}
        """Last step of each metric."""
        self._metrics: BinaryIO | None = None

    def catch_up(self) -> None:
        """Write the settings and metrics that the folder holds and MLflow lacks."""
        try:
            if not self.run_id:
                self._open()
            self._write_metrics()
        except BaseException:
            self.run_id = ""  # it may hold more or less than was thought
            raise

    def attach(self) -> None:
        """Attach the files that wait for it."""
        for path, artifact_folder in list(self.files.items()):
            self.client.log_artifact(self.run_id, str(path), artifact_folder or None)
            del self.files[path]

    def end(self, status: str) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, status=status)

    def end_if_finished(self) -> None:
        """End the run of a finished job that MLflow still holds for running."""
        status = self.client.get_run(self.run_id).info.status
        if status == "RUNNING" and (self.folder / STAGE_FILE).is_file():
            self.end("FINISHED")

    def _open(self) -> None:
        from mlflow.entities import Param

        settings = settings_in(self.folder)
        if not settings:
            raise ConfigError(f"{self.folder}: expected a run's {SETTINGS_FILE}, found none")
        experiment_id = ""
        try:
            self.client = open_tracking_store(self.given)
            experiment_id = self._experiment(settings.run.experiment)
            run = self._kept() or self._create(experiment_id)
        except Exception as error:
            if refuses(error, answered=bool(experiment_id)):
                raise ConfigError(
                    f"{URI}={masked(os.environ[URI])} cannot be used: {reason_of(error)}; "
                    "correct it, or the credentials (MLFLOW_TRACKING_USERNAME and _PASSWORD, or "
                    f"_TOKEN), or unset {URI} for a store beside the run folders"
                ) from None
            raise
        run_id = run.info.run_id
        if self.job:
            self.client.update_run(run_id, status="RUNNING")
            self._end_killed(experiment_id, run_id)
        values, known = to_flat(settings), run.data.params
        params = [Param(k, str(v)[:PARAM_BYTES]) for k, v in values.items() if k not in known]
        self.client.log_batch(run_id, params=params)
        self._newest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._metrics = None
        self.run_id = run_id

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment:
            return experiment.experiment_id
        home = runs_folder(self.given) / "mlflow-artifacts"
        where = None if os.environ.get(URI) else home.absolute().as_uri()
        return self.client.create_experiment(name, artifact_location=where)

    def _kept(self) -> "Run | None":
        """Return the run whose id the folder keeps, None where MLflow has none of that id."""
        from mlflow.exceptions import MlflowException

        kept = self.folder / RUN_ID_FILE
        if not kept.is_file():
            return None
        run_id = kept.read_text(errors="replace").strip("\0 \n")
        lacks = "the file is empty"
        if run_id:
            try:
                run = self.client.get_run(run_id)
                if run.info.lifecycle_stage == "active":
                    return run
                lacks = f"run {run_id} was deleted there"
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                lacks = f"{tracking_store_name()} has no run {run_id}"
        log.warning("%s: %s; a new run gets all metrics so far", kept, lacks)
        return None

    def _create(self, experiment_id: str) -> "Run":
        name = "/".join(self.folder.resolve().parts[-2:])  # of what `runs/demo` stands for
        tags = {FOLDER_TAG: folder_tag(self.folder), **({"job": self.job} if self.job else {})}
        run = self.client.create_run(experiment_id, run_name=name, tags=tags)
        (self.folder / RUN_ID_FILE).write_text(run.info.run_id)
        return run

    def _end_killed(self, experiment_id: str, run_id: str) -> None:
        """End other runs of this folder: their jobs were killed, or it would be in use."""
        for run in self.client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
            ours = run.data.tags.get(FOLDER_TAG) == folder_tag(self.folder)
            if ours and run.info.run_id != run_id:
                self.client.set_terminated(run.info.run_id, status="FAILED")

    def _write_metrics(self) -> None:
        from mlflow.entities import Metric

        waiting: list[Metric] = []
        for step, milliseconds, metrics in self._lines():
            new = {key: value for key, value in metrics.items() if step > self._newest.get(key, -1)}
            self._newest |= dict.fromkeys(new, step)
            waiting += [Metric(key, value, milliseconds, step) for key, value in new.items()]
            if len(waiting) >= BATCH_METRICS:
                self.client.log_batch(self.run_id, metrics=waiting)
                waiting = []
        if waiting:
            self.client.log_batch(self.run_id, metrics=waiting)

    def _lines(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        """Yield step, milliseconds since 1970 and metrics of the lines that are new.

        A line has the same time whenever it is read: MLflow takes a point that it is sent again,
        its answer having been lost, for the one that it has.
        """
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return
        opened = self._metrics and os.fstat(self._metrics.fileno())
        if not opened or not os.path.samestat(opened, path.stat()):
            # The first time, or a resumed loop has put a shorter file in its place.
            self._metrics = path.open("rb")
        undated = os.fstat(self._metrics.fileno()).st_mtime
        for line in iter(self._metrics.readline, b""):
            if not line.endswith(b"\n"):
                self._metrics.seek(-len(line), os.SEEK_CUR)  # still being written
                return
            if record := parse_record(line):
                step, logged_at = record.pop("step"), record.pop("logged_at", undated)
                numbers = {k: float(v) for k, v in record.items() if isinstance(v, (int, float))}
                named = {metric_name(key): value for key, value in numbers.items()}
                yield step, int(1000 * logged_at), named


def open_tracking_store(folder: Path) -> "MlflowClient":
    """Return a client of MLFLOW_TRACKING_URI, else of the SQLite file beside the run folders."""
    from mlflow import MlflowClient

    # Not `set_tracking_uri`: it sets the variable, which says whether the user has a store.
    if os.environ.get(URI):
        return MlflowClient()
    beside = f"sqlite:///{(runs_folder(folder) / 'mlflow.db').absolute()}"
    return MlflowClient(tracking_uri=beside)


def attach_files(folder: Path, files: Mapping[Path, str]) -> bool:
    """Attach files to the run of a job's folder, and write what MLflow lacks of it.

    ``files`` maps each path to a folder among the run's artifacts, "" for the top. Where
    MLflow has no such run it gets one. Where it cannot be written, that is logged and False
    returned.
    """
    run = MlflowRun(folder)
    run.files |= files
    try:
        run.catch_up()
        run.end_if_finished()
        run.attach()
    except Exception as error:  # whatever it is, what was to be attached is there
        names = ", ".join(str(path) for path in files)
        log.warning(
            "%s cannot be written (%s)%s; once it can: python -m cluster.run.tracking %s",
            tracking_store_name(),
            reason_of(error),
            f", so nothing is attached to the run: {names}" if files else "",
            folder,
        )
        return False
    return True


def runs_folder(folder: Path) -> Path:
    """Return the nearest parent named `runs`, else the run folder's parent."""
    absolute = folder.absolute()
    named = [parent for parent in absolute.parents if parent.name == "runs"]
    return named[0] if named else absolute.parent


def folder_tag(folder: Path) -> str:
    """Return what tells a run's folder from all others on one MLflow server."""
    return f"{socket.gethostname()}:{folder.resolve()}"


def metric_name(key: str) -> str:
    """Return a metric's name as MLflow takes it; a name may contain that of a data set."""
    parts = ("_" if part in ("", ".", "..") else part for part in key.split("/"))
    return re.sub(r"[^\w./ -]", "_", "/".join(parts))[:METRIC_NAME_CHARS]


def tracking_store_name() -> str:
    """Return the name of the tracking store for messages."""
    uri = os.environ.get(URI)
    return f"MLflow at {masked(uri)}" if uri else "MLflow's mlflow.db beside the run folders"


def reason_of(error: Exception) -> str:
    """Return an error in one line of a log, without passwords: what the system said, if it did."""
    said = [cause for cause in chain_of(error) if isinstance(cause, OSError)]
    lines = str(said[-1] if said else error).strip().splitlines() or [type(error).__name__]
    return masked(lines[0])[:400]


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    cause: BaseException | None = error
    while cause:
        yield cause
        cause = cause.__cause__ or cause.__context__


def masked(text: str) -> str:
    """Return a text without the users and passwords of URIs in it, that of the store above all."""
    text = re.sub(r"://\S*@", "://***@", text)
    text = re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s]+", r"\1***", text)
    # A password with a "/" or "#" that was not escaped is cut there by who reads the URI.
    uri = os.environ.get(URI, "").partition("://")[2]
    user, _, password = uri.rpartition("@")[0].partition(":")
    if password:
        text = re.sub(re.escape(user) + r":[^\s'\",)]+", "***", text)
    pieces = {password, *re.split(r"[/?#@:]", password)}
    pieces |= {unquote(password), *re.split(r"[/?#@:]", unquote(password))}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 2:
            text = text.replace(piece, "***")
    return text


def refuses(error: BaseException, *, answered: bool) -> bool:
    """Return whether MLFLOW_TRACKING_URI or the credentials are wrong, rather than the server away.

    The URI cannot be once the server has ``answered``.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import InvalidURL, SSLError

    if not os.environ.get(URI):
        return False
    refusals = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
    wrong = (InvalidURL, SSLError, ModuleNotFoundError)
    if not answered:
        # No MLflow there, or a scheme that it does not know; a path where no file can be.
        refusals |= {"ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"}
        wrong += (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)
    return any(
        isinstance(cause, wrong)
        or (isinstance(cause, MlflowException) and cause.error_code in refusals)
        or (isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME)
        for cause in chain_of(error)
    )


def main(argv: list[str]) -> int:
    """Write what MLflow lacks of the run folders named; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    if not argv:
        print("usage: python -m cluster.run.tracking RUN_FOLDER ...", file=sys.stderr)
        return 2
    failed = [folder for folder in argv if not attach_files(Path(folder), {})]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
