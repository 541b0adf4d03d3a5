"""A model folder on disk: complete or refused, before anything heavy starts."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import ConfigError, DataError
from data.records import LoadedSet
from data.types import Pair

log = logging.getLogger(__name__)
PICTURE_PROCESSOR = "preprocessor_config.json|processor_config.json"

NEEDED_FILES = (
    ("config.json", "the model's configuration"),
    ("tokenizer_config.json", "the tokenizer"),
    (PICTURE_PROCESSOR, "the picture processor"),
)


def check_folder(folder: str) -> Path:
    """Return the model folder's path.

    Raises:
        DataError: it does not exist, or lacks configuration, weights, tokenizer or, where the
            model sees pictures, their processor.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{folder}: expected a model folder, found none; check the path")
    missing = [
        f"{names.replace('|', ' or ')} ({what})"
        for names, what in NEEDED_FILES
        if not any((path / name).is_file() for name in names.split("|"))
        and (names != PICTURE_PROCESSOR or sees_pictures(folder))
    ]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors (the weights)")
    if missing:
        raise DataError(
            f"{folder}: not a complete model folder, missing {', '.join(missing)}; copy them from "
            "the model that it was made from"
        )
    return path


def sees_pictures(folder: str) -> bool:
    """Return whether the folder's model has a vision tower; where nothing says so: yes.

    Raises:
        DataError: its configuration is not JSON.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return True
    try:
        return "vision_config" in json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON ({error}); copy the file again") from error


def load_processor(folder: str) -> Any:
    """Return the folder's Hugging Face processor; of a text-only model its tokenizer.

    Raises:
        DataError: the folder is incomplete, or only code of its own can read it.
    """
    # Imported here: transformers takes seconds, and settings are checked without it.
    from transformers import AutoProcessor, AutoTokenizer

    kind = AutoProcessor if sees_pictures(folder) else AutoTokenizer
    return load_pretrained(kind, check_folder(folder))


def load_pretrained(kind: Any, folder: str | Path, **settings: Any) -> Any:
    """Return what a class of transformers makes of a folder; code in the folder is never run.

    Raises:
        DataError: nothing but that code can read it.
    """
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise DataError(
            f"{folder}: expected a model that transformers knows, found one that needs code from "
            "its own folder, which is never run; use another model"
        ) from error


def check_reasoner(folder: str, sets: Sequence[LoadedSet]) -> None:
    """Refuse an incomplete Reasoner, and pictures for one that would have to guess what they show.

    Raises:
        DataError: as `check_folder`.
        ConfigError: the model reads text only and a data set holds pictures; it is named.
    """
    check_folder(folder)
    unseen = _unseen_sets(folder, sets)
    if unseen:
        raise ConfigError(
            f"{folder}: a text-only Reasoner cannot see the pictures of {', '.join(unseen)}; use a "
            "vision-language model, or data sets of texts"
        )


def warn_embedder_ignores(folder: str, sets: Sequence[LoadedSet]) -> None:
    """Say once that a text-only Embedder reads texts and traces, and no pictures."""
    unseen = _unseen_sets(folder, sets)
    if unseen:
        log.warning(
            "%s: a text-only Embedder: the pictures and evidence of %s are ignored, it reads "
            "texts and traces",
            folder,
            ", ".join(unseen),
        )


def _unseen_sets(folder: str, sets: Sequence[LoadedSet]) -> list[str]:
    """Return the names of the data sets with pictures, where the model reads text only."""
    if sees_pictures(folder):
        return []
    return [one.name for one in sets if any(_shows(pair) for pair in one.pairs)]


def _shows(pair: Pair) -> bool:
    return any(item.uris for item in (pair.query, pair.target, *pair.candidates))
