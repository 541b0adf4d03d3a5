"""Gathered parameters to a folder that everyone loads."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def export_folder(
    net: nn.Module, named_tensors: Iterable[tuple[str, Tensor]], *, source: Path, folder: Path
) -> None:
    """Write an ordinary Hugging Face folder that replaces ``folder`` when it is complete.

    Configuration and weights come from the model, everything else (tokenizer, processor, chat
    template, generation settings) is copied from the ``source`` folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    ignored = shutil.ignore_patterns(*WEIGHT_FILES, "checkpoint*")
    shutil.copytree(source, partial, ignore=ignored, dirs_exist_ok=True)
    net.save_pretrained(partial, state_dict=dict(named_tensors))
    os.chmod(partial, 0o755)  # mkdtemp's own are closed to other users
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
