"""Gathered parameters to a folder that everyone loads."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from data.durable import sync_tree
from data.errors import CheckpointError

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def export_folder(
    net: nn.Module, named_tensors: Iterable[tuple[str, Tensor]], *, source: Path, folder: Path
) -> None:
    """Write an ordinary Hugging Face folder that replaces ``folder`` when it is complete.

    Configuration and weights come from the model, everything else (tokenizer, processor, chat
    template, generation settings) is copied from the ``source`` folder. Who may read it, the umask
    says.

    Raises:
        CheckpointError: it could not be written, as where the disk is full.
    """
    partial = folder.with_name(f".{folder.name}-part")
    shutil.rmtree(partial, ignore_errors=True)
    ignored = shutil.ignore_patterns(*WEIGHT_FILES, "checkpoint*")
    try:
        partial.mkdir(parents=True)
        mode = partial.stat().st_mode & 0o777
        shutil.copytree(source, partial, ignore=ignored, dirs_exist_ok=True)
        net.save_pretrained(partial, state_dict=dict(named_tensors))
        _set_modes(partial, mode)
        sync_tree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: the model could not be written ({error}). Make room; the same command then "
            "writes it from the last checkpoint"
        ) from error


def _set_modes(folder: Path, mode: int) -> None:
    """Give a folder this mode and its files the same less execution: writers have their own."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)
