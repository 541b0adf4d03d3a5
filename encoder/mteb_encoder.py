"""`MtebEncoder`: an `Encoder` as mteb takes a model, and what mteb's files say of it.

An instruction is the one of a query, or the prompt that its task defines; mteb's general prompts,
which no task defines, are not told.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import FramesCollator
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from PIL import Image
from safetensors import safe_open

from configs.schema import EncoderConfig
from data.errors import DataError
from data.model.model_folder import check_folder, sees_pictures, sees_videos, vector_width
from data.stores.facts import embedder_facts, reasoner_recipe
from encoder.encoder import Encoder, with_embedder

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader

ORGANISATION = "embed-rl"
"""Before the `/` in the name of a model that its user has not named."""
PAGES = "DocumentUnderstanding"
"""mteb's type of the tasks whose pictures are pages, such as ViDoRe."""
ROWS_AT_ONCE = 1024
"""Inputs that are encoded together; mteb's batches are smaller than what engines hold."""


class MtebEncoder(AbsEncoder):
    """An encoder for `mteb.evaluate`; close it, or use it in a `with`.

    Args:
        encoder: makes the vectors; it is closed with this object.
        meta: what mteb's files say of it, see `model_meta`.
        max_frames: frames of a video that are decoded.
        truncate_dim: leading dimensions that are kept; None: all.
    """

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        *,
        max_frames: int,
        truncate_dim: int | None = None,
    ) -> None:
        self.model, self.mteb_model_meta = encoder, meta
        self._max_frames, self._truncate_dim = max_frames, truncate_dim

    @classmethod
    def from_pretrained(
        cls,
        embedder: str | os.PathLike[str],
        reasoner: str | os.PathLike[str] | None = None,
        config: EncoderConfig | None = None,
        *,
        name: str = "",
        truncate_dim: int | None = None,
    ) -> Self:
        """Return an encoder whose engines belong to this process; see `Encoder.from_pretrained`.

        ``name`` and ``truncate_dim`` as for `model_meta`.

        Raises:
            ConfigError, DataError: as `Encoder.from_pretrained`.
        """
        config = with_embedder(config, embedder)
        meta = model_meta(config, reasoner, name=name, truncate_dim=truncate_dim)
        return cls(
            Encoder.from_pretrained(embedder, reasoner, config),
            meta,
            max_frames=config.data.media.max_frames,
            truncate_dim=truncate_dim,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engines."""
        self.model.close()

    def encode(
        self,
        inputs: "DataLoader[Mapping[str, Any]]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return unit vectors, float32 [N, D], in the order of the inputs.

        An input without any text, picture or video gets a vector of zeros, which is like nothing.
        Of ``kwargs`` batch size and progress bar change nothing.

        Raises:
            DataError: another precision than float32 is asked for, or an input cannot be embedded.
        """
        if kwargs.get("precision", "float32") != "float32":
            raise DataError(
                f"precision: expected float32, found {kwargs['precision']!r}; quantize with mteb's "
                "compression wrapper"
            )
        query = prompt_type == PromptType.query
        encode = self.model.encode_query if query else self.model.encode_document
        prompt = task_prompt(task_metadata, prompt_type)
        page = task_metadata.type == PAGES
        rows = (row for batch in inputs for row in self._rows(batch, page=page))
        parts: list[np.ndarray] = []
        while block := list(islice(rows, ROWS_AT_ONCE)):
            vectors = np.zeros((len(block), self._width), dtype=np.float32)
            told = [place for place, row in enumerate(block) if row]
            vectors[told] = encode(
                [block[place] for place in told], prompt=prompt, truncate_dim=self._truncate_dim
            )
            parts.append(vectors)
        return np.concatenate(parts) if parts else np.empty((0, self._width), dtype=np.float32)

    @property
    def _width(self) -> int:
        return self._truncate_dim or self.model.dimensions

    def _rows(self, batch: Mapping[str, Any], *, page: bool) -> Iterator[dict[str, Any]]:
        """Yield mteb's inputs as ours, empty ones as empty mappings."""
        # mteb appends a query's own instruction to its text.
        own = "instruction" in batch and "query" in batch
        columns = {
            "text": batch.get("query" if own else "text"),
            "instruction": batch.get("instruction"),
            "page" if page else "image": batch.get("image"),
            "video": batch.get("video"),
        }
        there = {name: values for name, values in columns.items() if values is not None}
        if not there.keys() - {"instruction"}:
            raise DataError(
                f"expected a task of texts, pictures or videos, found {', '.join(batch)}; leave it "
                "out"
            )
        for values in zip(*there.values(), strict=True):
            named = zip(there, values, strict=True)
            row = {name: value for name, value in named if value is not None}
            if not row.get("text", "").strip():
                row.pop("text", None)
            if "video" in row:
                row |= _frames(row["video"], self._max_frames)
            yield row if row.keys() - {"instruction"} else {}


def task_prompt(task: "TaskMetadata", prompt_type: PromptType | None) -> str:
    """Return the instruction that a task defines, empty if none.

    One that stands for no side is that of queries, and of tasks without sides.
    """
    if isinstance(task.prompt, dict):
        return task.prompt.get(prompt_type.value, "") if prompt_type else ""
    return "" if prompt_type == PromptType.document else task.prompt or ""


def _frames(video: Any, most: int) -> dict[str, Any]:
    """Return the frames of a video as fields of an input: of a decoder of torchcodec, or decoded
    ones, uint8 [T, 3, H, W].
    """
    rate: dict[str, float] = {}
    if hasattr(video, "get_frames_at"):
        count, fps = video.metadata.num_frames, video.metadata.average_fps
        frames = FramesCollator.resample_video(video, num_frames=min(most, count))
        if len(frames) > 1 and fps:
            rate = {"fps": fps * (len(frames) - 1) / (count - 1)}
    else:
        frames = video
    shown = [Image.fromarray(np.moveaxis(np.asarray(frame), 0, -1)) for frame in frames]
    return {"video": shown, **rate}


def model_meta(
    config: EncoderConfig,
    reasoner: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    truncate_dim: int | None = None,
) -> ModelMeta:
    """Return what mteb's files say of an encoder.

    The revision follows from the models' files and from the settings that change vectors, so that
    mteb never takes the results of one for those of another.

    Args:
        config: settings that name the Embedder's folder.
        reasoner: folder of the Reasoner; None: no traces are written.
        name: `organisation/model`; empty: made from the Embedder's folder.
        truncate_dim: leading dimensions that are kept; None: all.

    Raises:
        DataError: a model's folder is incomplete.
    """
    reward, data = config.reward, config.data
    folder = check_folder(reward.model)
    facts: dict[str, Any] = {
        "embedder": embedder_facts(reward, data.media),
        "max_frames": data.media.max_frames,
        "item_tokens": data.item_tokens,
    }
    if reasoner:
        recipe = reasoner_recipe(
            os.fspath(reasoner), config.rollout, data.media, templates=data.templates, seed=None
        )
        facts |= {"reasoner": asdict(recipe), "evidence": reward.evidence}
    revision = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=10).hexdigest()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dimensions = settings.get("matryoshka_dimensions") or vector_width(reward.model)
    sees = [
        *(["image"] if sees_pictures(reward.model) else []),
        *(["video"] if _sees_frames(config) else []),
    ]
    weights = list(folder.glob("*.safetensors"))
    return ModelMeta(
        loader=None,
        name=name or f"{ORGANISATION}/{_name_of(folder)}",
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=sum(map(_parameters, weights)),
        memory_usage_mb=sum(file.stat().st_size for file in weights) / (1 << 20),
        max_tokens=reward.engine.max_model_len,
        embed_dim=truncate_dim or dimensions,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        modalities=["text", *sees],
        experiment_kwargs={
            **({"reasoner": _name_of(Path(reasoner))} if reasoner else {}),
            **({"truncate_dim": truncate_dim} if truncate_dim else {}),
        }
        or None,
    )


def _sees_frames(config: EncoderConfig) -> bool:
    model = config.reward.model
    return sees_videos(model) if config.data.media.video == "video" else sees_pictures(model)


def _name_of(folder: Path) -> str:
    """Return a model's name: of an export that of its run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def _parameters(file: Path) -> int:
    """Return how many numbers a file of weights holds."""
    with safe_open(file, framework="numpy") as weights:
        names = weights.keys()
        return sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)
