"""The folder of one run: resolved settings, metrics, trajectories, checkpoints, export."""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run.trajectory_rows import SCHEMA
from configs.common import MISSING
from configs.errors import ConfigError
from configs.load import to_flat, to_yaml, values_given
from data.durable import sync
from data.errors import RunFolderError
from evaluation.summary import METRICS_FILE, STAGE_FILE

log = logging.getLogger(__name__)
T = TypeVar("T")
SETTINGS_FILE = "resolved.yaml"
RUN_ID_FILE = "mlflow_run_id"
LOCK_FILE = ".lock"
"""Locked by the job that runs in the folder; says its process and host."""
LEFTOVERS = (".export-*", "*.part", "trajectories/*.part")
"""What a killed job may leave half-written."""
SHOWN_KEYS = 8
"""Changed settings that a refusal spells out."""
BROKEN_FILE = "broken_steps.txt"
"""Keys of the samples behind three skipped steps in a row."""
PLACEMENT = {
    *("ranks", "actors", "min_actors", "max_actors", "cpus", "gpus"),
    *("gpu_memory_utilization", "timeout_s", "start_timeout_s", "nodes_timeout_s"),
    *("max_step_bytes", "offline"),
    *("block", "store", "vector_bytes"),
}
"""Settings that say where a run computes and not what: they may change when it is resumed."""
OLDER = {"data.media.video": "frames", "data.item_tokens": 0}
"""Settings whose default has changed, with the value that stands for a folder of an older release
that lacks the key."""
STEPS = "steps"
OPEN = {
    *(STEPS, "learner.optimizer.lr", "max_missing_traces"),
    *("parity.mean", "parity.p999", "logprob_tolerance"),
}
"""Settings that may change as well; that they did is logged. The last is of an older release."""
MODEL_FOLDERS = ("model", "reasoner", "warm_start", "eg_rl", "second_model")
"""Settings of jobs, and of what they hold, that name a model's folder."""


def project_root() -> Path:
    """Return the folder that relative paths in settings start from.

    EMBED_RL_ROOT where set. A job submitted with a working directory runs in Ray's copy of it,
    which vanishes: there it is the folder of the virtual environment. Else the current folder.

    Raises:
        ConfigError: a submitted job without either, no such folder, or another copy of the code
            lies there.
    """
    named = os.environ.get("EMBED_RL_ROOT")
    submitted = "runtime_resources" in Path.cwd().parts
    if named:
        if not Path(named).is_dir():
            raise ConfigError(
                f"EMBED_RL_ROOT={named}: no such folder on this machine; create it, on a cluster "
                "as one that all nodes share"
            )
        # Ray's workers import from the folder of a job that was not submitted with its own.
        own = Path(__file__).parents[1] / "__init__.py"
        there = Path(named, "cluster", own.name)
        if not submitted and there.is_file() and not there.samefile(own):
            raise ConfigError(
                f"EMBED_RL_ROOT={named} holds another copy of the code than {own.parents[1]}: "
                "start the job there, or let EMBED_RL_ROOT be a folder without code"
            )
        return Path(named)
    if not submitted:
        return Path.cwd()
    beside = Path(sys.prefix).parent
    if (beside / "setup.cfg").is_file():
        return beside
    raise ConfigError(
        "a submitted job runs in a temporary copy of the working directory, so relative paths "
        "have no home: set EMBED_RL_ROOT to a folder that all nodes share, e.g. "
        '--runtime-env-json \'{"env_vars": {"EMBED_RL_ROOT": "/shared/embed-rl"}}\''
    )


def settled(config: T) -> T:
    """Return settings whose model folders are named as links lie now.

    Engines and ranks read them again later, when they are replaced.
    """
    changes: dict[str, Any] = {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            changes[setting.name] = settled(value)
        elif isinstance(value, list) and all(map(is_dataclass, value)):
            changes[setting.name] = [settled(entry) for entry in value]
        elif setting.name in MODEL_FOLDERS and value:
            changes[setting.name] = str(Path(value).resolve())
    return replace(config, **changes)


class RunFolder:
    """Owns the files of one run; created once per job, which holds its lock from then on."""

    def __init__(self, config: Any, *, job: str) -> None:
        """Open or create the folder ``config.run.dir``, and clear away what a killed job has left.

        A finished run that gets more steps is opened again. On disk the run stays finished until
        `keep_until`, as the job may still be refused.

        Raises:
            ConfigError: another job runs in the folder, it holds a run with other settings (the
                keys are listed), or the digests in its settings file are broken.
        """
        # As links lie now: whoever moves one later does not move the run.
        self.path = Path(config.run.dir).resolve()
        self.job = job
        self.started = time.time()
        self.inputs: Mapping[str, Mapping[str, str]] = {}
        """Fingerprints of the data and models that the run reads, for its checkpoints."""
        self._reopened = False
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = None if self.finished else _locked(self.path / LOCK_FILE)
        changes, begun = _allowed_changes(self.path, config)
        if not begun and not OPEN.issuperset(changes):
            # MLflow lets no run change its settings.
            (self.path / RUN_ID_FILE).unlink(missing_ok=True)
        if self.finished and STEPS in changes and _rises(*changes[STEPS]):
            self._lock = _locked(self.path / LOCK_FILE)
            self._reopened = True
        self._settings = to_yaml(config) + _given_values(config)
        self._other = _unused(changes) if self.finished else ""
        if not self.finished:
            for key in changes.keys() & OPEN if begun else ():
                log.info("%s: there %r, from here on %r", key, *changes[key])
            self._clear_leftovers()
            if not self._reopened:
                write_atomically(self.path / SETTINGS_FILE, self._settings)
        self._steps = hasattr(config, STEPS)
        self.metrics_path = self.path / METRICS_FILE

    def _clear_leftovers(self) -> None:
        """Delete what a job that was killed had half-written."""
        for path in (path for pattern in LEFTOVERS for path in self.path.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def seconds(self) -> float:
        """Age of the run; what was lost with a killed process is not counted."""
        return round(time.time() - self.started, 1)

    @property
    def finished(self) -> bool:
        """Whether the job ran to its end before, and has nothing to add."""
        return (self.path / STAGE_FILE).is_file() and not self._reopened

    @property
    def finished_line(self) -> str:
        """What a job says that finds its run finished."""
        more = "give it more `steps` to go on, or " if self._steps else ""
        again = f"{more}delete the folder to run it again"
        return f"{self.path}: already finished{self._other}; {again}"

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics, with the time in seconds since 1970.

        Raises:
            RunFolderError: they cannot be written.
        """
        line = json.dumps({"step": step, "logged_at": round(time.time(), 3), **metrics})
        with _writing(self.metrics_path), self.metrics_path.open("a") as file:
            file.write(line + "\n")

    def settle_metrics(self) -> None:
        """Have the metrics on disk: after the checkpoint that comes now nobody makes them again.

        Raises:
            RunFolderError: they cannot be written.
        """
        with _writing(self.metrics_path), self.metrics_path.open("a") as file:
            os.fsync(file.fileno())

    def keep_until(self, step: int) -> None:
        """Drop the metrics and trajectories of later steps: a resumed run makes them again."""
        if self._reopened:
            self._reopened = False
            (self.path / STAGE_FILE).unlink()
            write_atomically(self.path / SETTINGS_FILE, self._settings)
        if self.metrics_path.is_file():
            lines = self.metrics_path.read_bytes().splitlines(keepends=True)
            read = {line: parse_record(line) for line in lines}
            broken = [line for line in lines if not read[line]]
            if broken:
                log.warning(
                    "%s: %d of %d lines are cut off: a kill, a power cut or a full disk left them "
                    "unreadable, the first: %r",
                    self.metrics_path,
                    len(broken),
                    len(lines),
                    broken[0][:60],
                )
            kept = [line for line in lines if (record := read[line]) and record["step"] <= step]
            write_atomically(self.metrics_path, b"".join(kept).decode())
        for path in (self.path / "trajectories").glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def write_trajectories(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `trajectories/step-NNNNNN.parquet`.

        Raises:
            RunFolderError: it cannot be written.
        """
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        self.write_table(f"trajectories/step-{step:06d}.parquet", table)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file into the folder.

        Raises:
            RunFolderError: it cannot be written.
        """
        path = self.path / name
        part = path.with_name(path.name + ".part")
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, part)
            part.replace(path)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file into the folder."""
        path = self.path / name
        write_atomically(path, json.dumps(value, indent=2) + "\n")
        return path

    def finish(self, **facts: Any) -> None:
        """Mark the job as done, with how long it took."""
        self.write_json(STAGE_FILE, {"job": self.job, "seconds": self.seconds, **facts})


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what to do where a file of the run folder cannot be written.

    Raises:
        RunFolderError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path}: cannot be written ({error.strerror or error}); make room or mend the file "
            "system, then the same command goes on from the last checkpoint"
        ) from error


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl with its step, None where it is broken."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def settings_in(folder: Path) -> Any:
    """Return a run folder's settings as written there; empty where there are none to be read."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = folder / SETTINGS_FILE
    try:
        settings = OmegaConf.create(path.read_text(errors="replace") if path.is_file() else "")
    except (YAMLError, ValueError):
        settings = None
    return settings if OmegaConf.is_dict(settings) else OmegaConf.create({})


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new one, never half of it.

    Raises:
        RunFolderError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with _writing(path):
        part.write_text(text)
        sync(part)
        part.replace(path)
        sync(path.parent)


def state_of(config: Any) -> str:
    """Return in words what ``config.run.dir`` holds for a job with these settings; write nothing.

    Raises:
        ConfigError: it is no folder, another job runs in it, or it holds a run with other settings
            (the keys are listed).
    """
    path = Path(config.run.dir).resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: expected a run folder, found a file; choose another run.dir")
    if (path / LOCK_FILE).is_file():
        _locked(path / LOCK_FILE, for_now=True).close()
    changes, begun = _allowed_changes(path, config) if path.is_dir() else ({}, False)
    if not begun:
        return f"{path}: a new run"
    said = [f"{key}: there {old!r}, from now on {new!r}" for key, (old, new) in changes.items()]
    if not (path / STAGE_FILE).is_file():
        return "; ".join([f"{path}: an unfinished run, which goes on", *said])
    if STEPS in changes and _rises(*changes[STEPS]):
        return "; ".join([f"{path}: a finished run, which goes on", *said])
    return f"{path}: a finished run, which the job leaves as it is{_unused(changes)}"


def _unused(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Return in words which settings differ from those of a finished run; empty: none does."""
    if not changes:
        return ""
    differ = ", ".join(f"{key}: there {old!r}, now {new!r}" for key, (old, new) in changes.items())
    return f", with other settings ({differ}); for these choose another run.dir"


def _allowed_changes(folder: Path, config: Any) -> tuple[dict[str, Any], bool]:
    """Return how the settings differ from those of a folder, and whether a run began there.

    Raises:
        ConfigError: a run began there with settings that must not change (the keys are listed).
    """
    resolved = folder / SETTINGS_FILE
    changes = _changes(resolved, config) if resolved.is_file() else {}
    # A job that was refused before it did anything has left no more than these.
    own = (resolved, folder / RUN_ID_FILE, folder / LOCK_FILE)
    begun = any(path not in own for path in folder.iterdir())
    kept = {key: change for key, change in changes.items() if key not in OPEN}
    if kept and begun:
        lines = [f"{key}: there {old!r}, now {new!r}" for key, (old, new) in kept.items()]
        more = len(lines) - SHOWN_KEYS
        shown = [*lines[:SHOWN_KEYS], *([f"and {more} more"] if more > 0 else [])]
        raise ConfigError(
            f"{folder}: holds a run with other settings ({'; '.join(shown)}); choose "
            "another run.dir, or delete the folder to start over"
        )
    return changes, begun


def _changes(path: Path, config: Any) -> dict[str, tuple[Any, Any]]:
    """Return the settings that are not as in a file, but for those of a placement: old, new.

    A key that the file lacks, being of an older release, has its default there, or what `OLDER`
    says. None where the file is broken.
    """
    settings = settings_in(path.parent)
    if not settings:
        log.warning(
            "%s: empty or unreadable, as a power cut leaves it; it is written anew, so whether "
            "the settings are those that the run began with was not checked",
            path,
        )
        return {}
    old, new = _leaves(to_flat(settings)), _leaves(to_flat(config))
    before = _leaves(_defaults(config)) | OLDER
    old = {key: value for key, value in before.items() if key in new} | old
    interpolated = values_given(config)
    salt, digests = _digests_in(path)
    changes = {}
    for key in sorted(set(old) | set(new)):
        value = interpolated.get(key, new.get(key))
        if key in digests:
            same = key in new and digests[key] == _digest(salt, value)
        else:
            same = old.get(key) == value
        if not same and key.rpartition(".")[2] not in PLACEMENT:
            # What was given as `${...}` may be a password: it is not shown.
            secret = key in interpolated or key in digests
            changes[key] = ("another value" if secret else old.get(key), new.get(key))
    return changes


def _defaults(part: Any) -> Any:
    """Return the defaults of all settings that have a default, as mappings and lists."""
    if isinstance(part, list):
        return [_defaults(entry) for entry in part]
    if not is_dataclass(part):
        return part
    bare, tree = type(part)(), {}
    for setting in fields(part):
        value, default = getattr(part, setting.name), getattr(bare, setting.name)
        if is_dataclass(value) or (isinstance(value, list) and any(map(is_dataclass, value))):
            tree[setting.name] = _defaults(value)
        elif default != MISSING:
            tree[setting.name] = default
    return tree


VALUES_LINE = "# digests of values given as ${...}: "


def _given_values(config: Any) -> str:
    """Return a comment that tells a resumed run whether what was given as `${...}` has changed.

    It holds salted digests, slow to guess from: such a value may be a password.
    """
    values = values_given(config)
    if not values:
        return ""
    salt = secrets.token_hex(16)
    digests = {key: _digest(salt, value) for key, value in values.items()}
    return VALUES_LINE + json.dumps({"salt": salt, "digests": digests}) + "\n"


def _digests_in(path: Path) -> tuple[str, dict[str, str]]:
    """Return the salt and the digests that a file's comment holds; empty where it has none.

    Raises:
        ConfigError: the comment is broken.
    """
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if line.startswith(VALUES_LINE):
            try:
                comment = json.loads(line.removeprefix(VALUES_LINE))
                return str(comment["salt"]), dict(comment["digests"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} line {number}: expected salt and digests, which tell whether a value "
                    f"given as ${{...}} has changed, found a broken line ({error!r}); restore the "
                    "file from a copy, or choose another run.dir"
                ) from error
    return "", {}


def _digest(salt: str, value: Any) -> str:
    return _slow_digest(salt, json.dumps(value))


@lru_cache  # one path is often the root of several sets
def _slow_digest(salt: str, text: str) -> str:
    return hashlib.scrypt(text.encode(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=16).hex()


def _rises(old: Any, new: Any) -> bool:
    return isinstance(old, int) and isinstance(new, int) and old < new


def _locked(path: Path, *, for_now: bool = False) -> TextIO:
    """Return the file of a lock that this process has taken, and loses as it ends, however it does.

    It loses it earlier where the file is closed. ``for_now``: nothing is written into it.

    Not `flock`: processes that are forked would hold it longer than their parent lives.

    Raises:
        ConfigError: another process holds it.
    """
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise ConfigError(
            f"{path.parent}: another job runs in this folder ({file.read().strip()}); wait until "
            "it has ended, stop it, or choose another run.dir"
        ) from error
    except OSError as error:
        log.warning("%s: no lock (%s): see that no other job runs in this folder", path, error)
    if not for_now:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """Return the values of nested mappings and lists by `section.list[0].key`."""
    if isinstance(tree, dict):
        parts = [(f"{key}.{name}" if key else str(name), value) for name, value in tree.items()]
    elif isinstance(tree, list) and tree:
        parts = [(f"{key}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {key: tree}
    return {name: leaf for k, value in parts for name, leaf in _leaves(value, k).items()}
