"""A model folder on disk: complete or refused, before anything heavy starts."""

from pathlib import Path
from typing import Any

from data.errors import DataError

NEEDED_FILES = (
    ("config.json", "the model's configuration"),
    ("tokenizer_config.json", "the tokenizer"),
    ("preprocessor_config.json|processor_config.json", "the picture processor"),
)


def check_folder(folder: str) -> Path:
    """Return the model folder's path.

    Raises:
        DataError: it does not exist, or lacks configuration, weights, tokenizer or processor.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{folder}: expected a model folder, found none; check the path")
    missing = [
        f"{names.replace('|', ' or ')} ({what})"
        for names, what in NEEDED_FILES
        if not any((path / name).is_file() for name in names.split("|"))
    ]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors (the weights)")
    if missing:
        raise DataError(
            f"{folder}: not a complete model folder, missing {', '.join(missing)}; copy them from "
            "the model that it was made from"
        )
    return path


def load_processor(folder: str) -> Any:
    """Return the folder's Hugging Face processor.

    Raises:
        DataError: the folder is incomplete.
    """
    # Imported here: transformers takes seconds, and settings are checked without it.
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(check_folder(folder))
