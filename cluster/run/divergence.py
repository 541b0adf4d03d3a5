"""Ends a run whose steps keep being NaN or infinite."""

from collections.abc import Sequence
from pathlib import Path

from data.errors import DivergedError

MAX_BROKEN_STEPS = 3
"""Skipped steps in a row: one may be bad luck, three are not."""


class BrokenStreak:
    """Counts skipped steps in a row, and remembers what broke them.

    Args:
        path: where the keys are written, one a line, when the limit is reached.
    """

    def __init__(self, path: Path, *, limit: int = MAX_BROKEN_STEPS) -> None:
        self.path = path
        self.limit = limit
        self._steps: list[tuple[str, ...]] = []

    def record(self, broken: Sequence[str]) -> None:
        """Take note of a step: `StepReport.broken`, empty for a step that was applied.

        Raises:
            DivergedError: it is the last one of ``limit`` skipped steps in a row.
        """
        if not broken:
            self._steps = []
            return
        self._steps.append(tuple(broken))
        if len(self._steps) < self.limit:
            return
        keys = list(dict.fromkeys(key for step in self._steps for key in step))
        self.path.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        raise DivergedError(
            f"{self.limit} steps in a row had a NaN or infinite loss or gradient; the {len(keys)} "
            f"trajectories are listed in {self.path}, first {keys[0]}: look at these traces. The "
            "same command goes on from the last checkpoint, from before or between these steps, "
            "and would meet them again: give it a lower learner.optimizer.lr, which a run that "
            "goes on may have. Delete the newest folder under checkpoints/ to go on from the one "
            "before"
        )
