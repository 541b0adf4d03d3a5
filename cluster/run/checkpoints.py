"""The checkpoints of one run: complete or absent, the newest and the best kept."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.run.run_folder import RunFolder
from configs.errors import ConfigError
from data.durable import sync, sync_tree
from data.errors import CheckpointError, DamagedCheckpoint
from data.sets.fingerprints import changed_inputs

log = logging.getLogger(__name__)
KEPT = 2
"""Newest checkpoints kept, beside the best."""
SCORE = "eval/hit_at_1"
"""What the best is best by, where it was measured at the checkpoint's step."""
STATE_FILE = "loop.json"
LEARNER_FOLDER = "learner"
"""Where in a checkpoint the learner group's own lies."""
DAMAGED = ".damaged"
"""Ends the name of a checkpoint that could not be read, until a newer one is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    """Folder that holds what the run has put there."""
    step: int
    """Steps done."""
    score: float | None
    """Held-out hit@1; None: not measured at that step."""
    seconds: float
    """Age of the run."""
    state: dict[str, Any]
    """What the loop must know to go on."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of every other file; none where an older release wrote it."""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Fingerprints of the data and models; none where an older release wrote it."""


class Checkpoints:
    """Writes, rotates and finds the checkpoints in a run's folder.

    A checkpoint is a folder that gets its final name once everything is in it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.path = folder.path / "checkpoints"

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Have ``write`` put its files into a new checkpoint, complete it and drop old ones.

        ``metrics`` are the step's; ``state`` is kept as JSON. It counts once the disk holds it.

        Raises:
            CheckpointError: it could not be written, as where the disk is full.
        """
        self._clear()
        part = self.path / f"step-{step:06d}.part"
        try:
            part.mkdir(parents=True)
            write(part)
            facts = {"step": step, "score": metrics.get(SCORE), "seconds": self.folder.seconds}
            facts |= {"files": _sizes(part), "inputs": self.folder.inputs, "state": state}
            (part / STATE_FILE).write_text(json.dumps(facts))
            sync_tree(part)
            part.rename(part.with_suffix(""))
            sync(self.path)
        except (CheckpointError, OSError) as error:
            shutil.rmtree(part, ignore_errors=True)
            last = self._folders()[-1:]
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {error}; the last good one "
                f"is {last[0] if last else 'none'}. Make room, or mend what is named; the same "
                "command then goes on from there"
            ) from error
        self._rotate()

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there is none.

        Newer ones that are damaged are set aside, which is logged.

        Raises:
            CheckpointError: all are damaged.
        """
        return self._last_readable(self._folders)

    def best(self) -> Checkpoint | None:
        """Return the best by held-out hit@1, of equally good ones the newest; None: unmeasured.

        Better ones that are damaged are set aside, which is logged.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        return self._last_readable(self._ranked)

    def resume(self, steps: int) -> Checkpoint | None:
        """Take the run's folder back to its newest checkpoint, or to its start; return `newest`.

        ``steps`` are those that are asked for now.
        """
        self._clear()
        newest = self.newest()
        self.folder.keep_until(newest.step if newest else -1)
        if newest:
            self.folder.started = min(self.folder.started, time.time() - newest.seconds)
            log.info("resumed after step %d from %s", newest.step, newest.path)
            if newest.step > steps:
                log.warning("%s: beyond steps=%d: no step is left to take", newest.path, steps)
        return newest

    @contextmanager
    def reading(self, found: Checkpoint) -> Iterator[None]:
        """Set a checkpoint aside whose files turn out, inside, to be damaged.

        Raises:
            DamagedCheckpoint: it was; there is another one.
            CheckpointError: it was the only one.
        """
        try:
            yield
        except DamagedCheckpoint as error:
            self._set_aside(found.path, error)
            raise

    def check_inputs(
        self, inputs: Mapping[str, Mapping[str, str]], *, arithmetic: str = ""
    ) -> None:
        """Compare the data and models that are there with what the newest checkpoint was made with.

        New checkpoints are marked with ``inputs``, the fingerprints by what they are of.
        ``arithmetic`` says what an older release, which left no mark, computed otherwise.

        Raises:
            ConfigError: they are others, which are listed, or the checkpoint is of such a release.
        """
        self.folder.inputs = inputs
        newest = self.newest()
        if newest is None:
            return
        if not newest.inputs and arithmetic:
            raise ConfigError(
                f"{self.folder.path}: begun by an older release, with another arithmetic "
                f"({arithmetic}): finish it with that release, or choose another run.dir to begin "
                "anew"
            )
        if not newest.inputs:
            log.warning(
                "%s: from a release that did not note data and models: see that they are the same",
                newest.path,
            )
            return
        changes = changed_inputs(newest.inputs, inputs)
        if changes:
            listed = "\n  ".join(changes)
            raise ConfigError(
                f"{self.folder.path}: the data or models are not those that it was begun with, so "
                f"that prompts would be doubled or left out:\n  {listed}\nPut back what was there, "
                "or choose another run.dir to begin anew"
            )

    def _clear(self) -> None:
        """Delete what was begun and is no checkpoint, and what was only made to read one."""
        for pattern in ("*.part", f"step-*/{LEARNER_FOLDER}.universal"):
            for leftover in self.path.glob(pattern):
                _delete(leftover)

    def _folders(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("step-[0-9]*") if not path.suffix)

    def _ranked(self) -> list[Path]:
        """Return the checkpoints that were measured, the best last."""
        scored = [(_score(path), path) for path in self._folders()]
        return [path for _, path in sorted(entry for entry in scored if entry[0] is not None)]

    def _last_readable(self, ordered: Callable[[], list[Path]]) -> Checkpoint | None:
        """Return the last of these checkpoints after setting aside those behind it, all damaged."""
        while paths := ordered():
            try:
                return _read(paths[-1])
            except DamagedCheckpoint as error:
                self._set_aside(paths[-1], error)
        return None

    def _set_aside(self, path: Path, error: DamagedCheckpoint) -> None:
        """Rename a damaged checkpoint, so that another is the newest or the best.

        Raises:
            CheckpointError: there is no other.
        """
        others = [folder for folder in self._folders() if folder != path]
        if not others:
            raise CheckpointError(
                f"{error}; there is no other checkpoint. Put back a copy, or delete this "
                "folder to begin anew"
            ) from error
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        log.warning("%s; it is now %s, the newest left is %s", error, aside.name, others[-1].name)

    def _rotate(self) -> None:
        """Drop all but the newest and the best."""
        best = self._ranked()[-1:]
        for path in self._folders()[:-KEPT]:
            if path not in best:
                _delete(path)
        for path in self.path.glob(f"*{DAMAGED}"):
            _delete(path)


def _delete(path: Path) -> None:
    """Delete a folder that is no longer needed; what cannot be deleted stays, which is logged."""
    part = path.with_suffix(".part")
    try:
        # Renamed first: a half-deleted checkpoint is not complete.
        shutil.rmtree(path.rename(part) if path.name.startswith("step-") else path)
    except OSError as error:
        log.warning("%s: could not be deleted: %s", path, error)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of all files in a folder by their paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def _score(path: Path) -> float | None:
    """Return the score of a checkpoint, None also where that cannot be read."""
    try:
        score: float | None = json.loads((path / STATE_FILE).read_text())["score"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: unreadable (%s), so it is not kept as the best", path, error)
        return None
    return score


def _read(path: Path) -> Checkpoint:
    """Return a checkpoint.

    Raises:
        CheckpointError: this user may not read it, or a newer release wrote it.
        DamagedCheckpoint: a file is not there, or not as long as it was.
    """
    try:
        facts = dict(json.loads((path / STATE_FILE).read_text()))
        if newer := facts.keys() - {fact.name for fact in fields(Checkpoint)}:
            raise CheckpointError(
                f"{path}: written by a newer release ({STATE_FILE} holds {', '.join(newer)}): go "
                "on with that release"
            )
        checkpoint = Checkpoint(path=path, **facts)
        there = _sizes(path)
    except PermissionError as error:
        raise CheckpointError(f"{path}: {error}; give this user access to it") from error
    except (OSError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"{path}: damaged: {STATE_FILE}: {error}") from error
    for name, size in checkpoint.files.items():
        if there.get(name) != size:
            has = f"{there[name]}" if name in there else "no such file"
            raise DamagedCheckpoint(f"{path}: damaged: {name}: expected {size} bytes, found {has}")
    return checkpoint
