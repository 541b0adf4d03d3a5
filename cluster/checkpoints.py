"""The checkpoints of one run: complete or absent, the newest and the best kept."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run_folder import RunFolder
from data.errors import CheckpointError

log = logging.getLogger(__name__)
KEPT = 2
"""Newest checkpoints kept, beside the best."""
SCORE = "eval/hit_at_1"
"""What the best is best by, where it was measured at the checkpoint's step."""
STATE_FILE = "loop.json"
LEARNER_FOLDER = "learner"
"""Where in a checkpoint the learner group's own lies."""


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

        ``metrics`` are the step's; ``state`` is kept as JSON.
        """
        for partial in self.path.glob("*.part"):
            shutil.rmtree(partial)
        part = self.path / f"step-{step:06d}.part"
        part.mkdir(parents=True)
        write(part)
        facts = {"step": step, "score": metrics.get(SCORE), "seconds": self.folder.seconds}
        (part / STATE_FILE).write_text(json.dumps({**facts, "state": state}))
        part.rename(part.with_suffix(""))
        self._rotate()

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        found = self._complete()
        return _read(found[-1]) if found else None

    def resume(self) -> Checkpoint | None:
        """Take the run's folder back to its newest checkpoint, or to its start; return `newest`."""
        found = self.newest()
        self.folder.keep_until(found.step if found else -1)
        if found:
            self.folder.started = min(self.folder.started, time.time() - found.seconds)
            log.info("resumed after step %d from %s", found.step, found.path)
        return found

    def _complete(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        found = self.path.glob("step-[0-9]*")
        return sorted(path for path in found if path.suffix != ".part")

    def _rotate(self) -> None:
        """Drop all but the newest and the best; of equally good ones the newer is the best."""
        found = self._complete()
        scored = [one for one in map(_read, found) if one.score is not None]
        best = max(scored, key=lambda one: (one.score, one.step), default=None)
        for old in found[:-KEPT]:
            if best is None or old != best.path:
                # Renamed first: a half-deleted one is not complete.
                shutil.rmtree(old.rename(old.with_suffix(".part")))


def _read(path: Path) -> Checkpoint:
    try:
        facts = json.loads((path / STATE_FILE).read_text())
        return Checkpoint(path=path, **facts)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: unreadable ({error}); delete this folder to go back to the one before"
        ) from error
