"""A model folder on disk: complete or refused, before anything heavy starts."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.embed_inputs import INPUT_FORM
from data.errors import ConfigError, DataError
from data.types import Kind

log = logging.getLogger(__name__)
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs has put in the place of the one that it keeps elsewhere."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICTURE_PROCESSOR = "preprocessor_config.json|processor_config.json"

NEEDED_FILES = (
    ("config.json", "the model's configuration"),
    ("tokenizer_config.json", "the tokenizer"),
    (PICTURE_PROCESSOR, "the picture processor"),
)


class ShownSet(Protocol):
    """A data set as far as a model must be able to see it."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def as_video(self) -> bool:
        """Whether it shows a video as one, not as separate pictures."""

    def shows(self, kinds: Iterable[Kind]) -> bool:
        """Return whether it has an item of one of these kinds."""


def check_folder(folder: str) -> Path:
    """Return the model folder's path.

    Raises:
        DataError: it does not exist, or lacks configuration, weights, tokenizer or, where the
            model sees pictures, their processor; or git-lfs pointers stand for files of it.
    """
    path = Path(folder)
    if not path.is_dir():
        remedy = "check the path, or download the model to it"
        if path.name == "export":  # what a training job writes at its end
            remedy = f"run the job first whose run.dir is {path.parent}"
        raise DataError(f"{folder}: expected a model folder, found none; {remedy}")
    pointers = sorted(
        model_file.name
        for kind in MODEL_FILES
        for model_file in path.glob(kind)
        if _is_pointer(model_file)
    )
    if pointers:
        raise DataError(
            f"{folder}: expected a model's files, found git-lfs pointers in the place of "
            f"{', '.join(pointers)}; run `git lfs pull` in the folder"
        )
    missing = [
        f"{names.replace('|', ' or ')} ({what})"
        for names, what in NEEDED_FILES
        if not any((path / name).is_file() for name in names.split("|"))
        and (names != PICTURE_PROCESSOR or sees_pictures(folder))
    ]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors (the weights)")
    missing += [f"{name} (named by {WEIGHTS_INDEX})" for name in _missing_shards(path)]
    if missing:
        raise DataError(
            f"{folder}: not a complete model folder, missing {', '.join(missing)}; copy them from "
            "the model that it was made from"
        )
    return path


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _missing_shards(folder: Path) -> list[str]:
    """Return the files that the index of the weights names and that are not there.

    Raises:
        DataError: it is no index.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return []  # loaders read the one file and no index
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index}: expected an index of weights, found no readable 'weight_map' ({error!r}); "
            "copy the file again"
        ) from error
    return sorted(name for name in named if not (folder / name).is_file())


def sees_pictures(folder: str) -> bool:
    """Return whether the folder's model has a vision tower; where nothing says so: yes.

    Raises:
        DataError: its configuration is not JSON.
    """
    return not (Path(folder) / "config.json").is_file() or "vision_config" in _config(folder)


def _config(folder: str) -> dict[str, Any]:
    """Return a model's configuration; none where there is no file.

    Raises:
        DataError: it is not JSON.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON ({error}); copy the file again") from error


def sees_videos(folder: str) -> bool:
    """Return whether the folder's model sees videos, and their times, as Qwen3-VL does.

    Raises:
        DataError: its configuration is not JSON.
    """
    config = _config(folder)
    return "video_token_id" in config and str(config.get("model_type")).startswith("qwen3")


def vector_width(folder: str) -> int | None:
    """Return the width of the model's hidden states; None where nothing says it.

    Raises:
        DataError: its configuration is not JSON.
    """
    config = _config(folder)
    width = config.get("text_config", config).get("hidden_size")
    return width if isinstance(width, int) else None


def load_processor(folder: str) -> Any:
    """Return the folder's Hugging Face processor; of a text-only model its tokenizer.

    Raises:
        DataError: the folder is incomplete, a file of it cannot be read, or only code of its own
            can read it.
    """
    # Imported here: transformers takes seconds, and settings are checked without it.
    from transformers import AutoProcessor, AutoTokenizer

    kind = AutoProcessor if sees_pictures(folder) else AutoTokenizer
    path = check_folder(folder)
    try:
        return load_pretrained(kind, path)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: its tokenizer or picture processor cannot be read: {error}; copy their "
            "files again"
        ) from error


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


def check_reasoner(folder: str, sets: Sequence[ShownSet]) -> None:
    """Refuse an incomplete Reasoner, and pictures for one that would have to guess what they show.

    Raises:
        DataError: as `check_folder`.
        ConfigError: the model reads text only and a data set holds pictures, or it sees no videos
            and a data set shows them; it is named.
    """
    check_folder(folder)
    unseen = _unseen_sets(folder, sets)
    if unseen:
        raise ConfigError(
            f"{folder}: a text-only Reasoner cannot see the pictures of {', '.join(unseen)}; use a "
            "vision-language model, or data sets of texts"
        )
    _check_videos(folder, sets)


def check_embedder(folder: str, sets: Sequence[ShownSet]) -> None:
    """Refuse an Embedder that cannot see the sets' videos, and warn of what it reads worse.

    A text-only one ignores pictures; one of ours that was trained with the other
    `data.media.video` reads videos worse.

    Raises:
        ConfigError: it sees pictures, but no videos, and a data set shows videos; it is named.
    """
    _check_videos(folder, sets)
    _warn_other_videos(folder, sets)
    unseen = _unseen_sets(folder, sets)
    if unseen:
        log.warning(
            "%s: a text-only Embedder: the pictures and evidence of %s are ignored, it reads "
            "texts and traces",
            folder,
            ", ".join(unseen),
        )


def warn_older_input(folder: str) -> None:
    """Warn of an Embedder that the job `embedder` trained when inputs were put together otherwise.

    Other folders, published ones among them, say nothing about that and are taken as they are.
    """
    facts = _embedder_facts(folder)
    if facts and facts.get("input_form") != INPUT_FORM:
        log.warning(
            "%s: trained by an older release, whose inputs had other line ends and the text of "
            "videos last: its vectors are worse here; train it again with the job `embedder`",
            folder,
        )


def _warn_other_videos(folder: str, sets: Sequence[ShownSet]) -> None:
    facts = _embedder_facts(folder)
    videos = [data_set for data_set in sets if data_set.shows([Kind.VIDEO])]
    shown = {"video" if data_set.as_video else "frames" for data_set in videos}
    trained = facts.get("video", "frames")  # older releases knew no other form
    if facts and shown - {trained}:
        log.warning(
            "%s: trained with data.media.video=%s, and videos are shown in the other form here: "
            "its vectors are worse; set the same, or train it again with the job `embedder`",
            folder,
            trained,
        )


def _embedder_facts(folder: str) -> dict[str, Any]:
    """Return what the job `embedder` says of the folder that it wrote; of other folders nothing."""
    stage = Path(folder).absolute().parent / "stage.json"
    try:
        facts = json.loads(stage.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("job") == "embedder" else {}


def _check_videos(folder: str, sets: Sequence[ShownSet]) -> None:
    """Refuse videos for a model that sees pictures only."""
    if sees_videos(folder) or not sees_pictures(folder):
        return
    videos = [data_set.name for data_set in sets if data_set.as_video]
    if videos:
        raise ConfigError(
            f"{folder}: expected a model that sees videos as Qwen3-VL does, found one of "
            f"model_type '{_config(folder).get('model_type')}', and data set "
            f"{', '.join(videos)} shows videos; set data.media.video=frames, or use another model"
        )


def _unseen_sets(folder: str, sets: Sequence[ShownSet]) -> list[str]:
    """Return the names of the data sets with pictures, where the model reads text only."""
    if sees_pictures(folder):
        return []
    kinds = [kind for kind in Kind if kind is not Kind.TEXT]
    return [data_set.name for data_set in sets if data_set.shows(kinds)]
