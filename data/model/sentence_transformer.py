"""An Embedder's folder that `SentenceTransformer(folder)` loads, with our vectors and no code.

sentence-transformers and vLLM read the files that are written here. Our own jobs read the folder
as before: they ask the chat template for the open turn of the assistant, and choose sizes and
frames of pictures themselves.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

from configs.common import MediaConfig
from data.embed_inputs import SUFFIX
from data.errors import DataError
from data.media.sizes import frame_limits
from data.model.chat import EMB_TOKEN
from data.model.emb_token import TEMPLATE
from data.model.model_folder import load_processor, sees_pictures, sees_videos, vector_width
from data.types import Pair

LEGACY_TEMPLATE = "chat_template.json"
"""Where older releases have a processor's chat template; it would be read in place of ours."""
OWN_BEGINS, OWN_ENDS = "{#- own template begins #}", "{# own template ends -#}"
MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
"""Folder and class, in the order in which they run; releases that moved a class know this name."""
VECTOR = {"method": "forward", "method_output_name": "last_hidden_state"}


def prompts_of(pairs: Iterable[Pair]) -> dict[str, str]:
    """Return the instruction of each data set whose queries all have the same, by its name."""
    instructions: dict[str, set[str]] = {}
    for pair in pairs:
        instructions.setdefault(pair.source, set()).add(pair.query.instruction)
    return {
        source: "".join(texts)
        for source, texts in instructions.items()
        if len(texts) == 1 and texts != {""}
    }


def write_sentence_transformer(
    folder: Path,
    media: MediaConfig,
    *,
    dimensions: Sequence[int] = (),
    prompts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add to an Embedder's complete folder what sentence-transformers and vLLM's server read.

    ``media``: the limits that it was trained with; those of pictures are the default there.
    ``dimensions``: leading parts of the vector that retrieve by themselves.
    ``prompts``: instructions by the name that `encode` takes as `prompt_name`.

    Raises:
        DataError: the folder is incomplete, or has no chat template or width.
    """
    vision, width = sees_pictures(str(folder)), vector_width(str(folder))
    if width is None:
        raise DataError(
            f"{folder / 'config.json'}: expected the width of the vectors, hidden_size, found no "
            "such number; copy the file of the model that the folder was made from"
        )
    around = resources.files("data").joinpath("templates/embed_chat.jinja").read_text("utf-8")
    template = Template(around).substitute(
        own=_own_template(folder).removesuffix("\n"),
        suffix=SUFFIX,
        emb=EMB_TOKEN,
        as_parts=str(vision).lower(),
        pictures_first=str(media.video == "video").lower(),
    )
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    (folder / LEGACY_TEMPLATE).unlink(missing_ok=True)

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("matryoshka_dimensions", None)  # of the model that the training started from
    if dimensions:
        config["matryoshka_dimensions"] = sorted({*dimensions, width})
    _write(folder / "config.json", config)

    _write(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (path, kind) in enumerate(MODULES)
        ],
    )
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": {**prompts, "query": "", "document": ""}, "similarity_fn_name": "cosine"},
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True},
    )
    _write(folder / "2_Normalize" / "config.json", {})
    seen = [*(["image"] if vision else []), *(["video"] if sees_videos(str(folder)) else [])]
    _write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                **dict.fromkeys(("text", *seen), VECTOR),
                "message": {**VECTOR, "format": "structured" if vision else "flat"},
            },
            "module_output_name": "token_embeddings",
            # The library says of Qwen-VL models that they do not read texts without padding.
            "unpad_inputs": False,
            **({"processing_kwargs": _limits(media, seen)} if vision else {}),
        },
    )


def _own_template(folder: Path) -> str:
    """Return the chat template of the model, without what this file puts around it.

    Raises:
        DataError: it has none.
    """
    template = load_processor(str(folder)).chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if not template:
        raise DataError(
            f"{folder}: expected a chat template, found none; put its {TEMPLATE} into the folder"
        )
    _, begun, rest = template.partition(OWN_BEGINS)
    return rest.partition(OWN_ENDS)[0] if begun else template


def _limits(media: MediaConfig, seen: Sequence[str]) -> dict[str, Any]:
    """Return how a processor sees pictures, and videos of `max_frames`, as `data.media` does."""
    limits: dict[str, Any] = {
        "image": {"size": _size(media.image_min_pixels, media.image_max_pixels)}
    }
    if "video" in seen:
        frames = max(1, media.max_frames // 2 * 2)
        shown = max(2, frames)
        least, most = frame_limits(frames, media)
        limits["video"] = {
            "size": _size(shown * least, shown * most),
            "num_frames": frames,
            "fps": None,
            "do_sample_frames": True,
            "cap_pixels_per_frame": False,
        }
    return limits


def _size(least: int, most: int) -> dict[str, int]:
    return {"shortest_edge": least, "longest_edge": most}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
