"""Which checkpoints another number of ranks has written, and where their converted form lies.

DeepSpeed's own form belongs to the number of ranks that wrote it, its universal form to none.
"""

import json
from pathlib import Path

from configs.learner import LearnerConfig

SHAPE_FILE = "learner.json"
"""In a checkpoint: what must agree between writing and reading it."""


def universal_folder(folder: Path) -> Path:
    """Return where the universal form of a checkpoint lies while it is read."""
    return folder.with_name(f"{folder.name}.universal")


def needs_conversion(folder: Path, config: LearnerConfig) -> bool:
    """Return whether these ranks can only read a checkpoint in its universal form.

    Not where ranks refuse it, as where it is damaged; nor without ZeRO, where every rank holds, and
    one has written, the whole state.
    """
    try:
        stored = dict(json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
    same = (stored.get("zero_stage"), stored.get("bf16")) == (config.zero_stage, config.bf16)
    return same and config.zero_stage > 0 and stored.get("ranks") != config.ranks
