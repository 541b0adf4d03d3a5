"""SentenceTransformerActor: another Embedder in sentence-transformers; the cluster makes it a Ray
actor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from configs.common import EngineConfig
from data.embed_inputs import SUFFIX
from data.errors import ConfigError, DataError
from data.types import (
    Content,
    EmbedRequest,
    Instruction,
    Picture,
    Pictures,
    Side,
    Video,
    merge_pictures,
    visuals_in,
)

UNIT_LENGTH = "Normalize"
"""Class of the module after which a scalar product is a cosine."""
Asked = tuple[str | None, Any]
"""A prompt, None for the library's own, and one input of the library."""


class SentenceTransformerActor:
    """Embeds the items of one side without traces; settings as in RivalConfig.

    The methods are those of `EmbedderActor`. Code of the model's folder is never run, and nothing
    is fetched.
    """

    def __init__(
        self, *, name: str, model: str, engine: EngineConfig, side: Side, prompts: Mapping[str, str]
    ) -> None:
        self.name = name
        self._folder, self._engine, self._side, self._prompts = model, engine, side, prompts

    def ready(self) -> int:
        """Load the model; return the width D of its vectors.

        Raises:
            ConfigError: its similarity is no cosine, by which candidates are ranked here.
        """
        from sentence_transformers import SentenceTransformer  # loads torch

        self._model = model = SentenceTransformer(
            self._folder,
            prompts=dict(self._prompts) or None,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": self._engine.dtype},
        )
        last = type(model[-1]).__name__
        if model.similarity_fn_name != "cosine" and last != UNIT_LENGTH:
            raise ConfigError(
                f"{self._folder}: expected an Embedder whose similarity is the cosine, found "
                f"'{model.similarity_fn_name}' and no module {UNIT_LENGTH} at its end; its ranks "
                "would not be those it was trained for: leave this rival out"
            )
        most = self._engine.max_model_len
        if model.max_seq_length is None or model.max_seq_length > most:
            model.max_seq_length = most
        width = model.get_embedding_dimension()
        return len(model.encode("a")) if width is None else width

    def embed(
        self, requests: list[EmbedRequest], *parts: Pictures
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return unit vectors, float32 [D], by key, and the reason by key for those that failed.

        ``parts`` are the pictures.
        """
        pictures = merge_pictures(parts)
        failed: dict[str, str] = {}
        alike: dict[tuple[Any, ...], dict[str, Any]] = {}
        """Inputs with one prompt and of the same parts: few models read others in one batch."""
        for request in requests:
            try:
                prompt, asked = self.asked(request.content, pictures)
            except DataError as error:
                failed[request.key] = str(error)
            else:
                parts_of = tuple(asked) if isinstance(asked, dict) else ()
                alike.setdefault((prompt, parts_of), {})[request.key] = asked
        encode = self._model.encode_query
        if self._side is Side.TARGET:
            encode = self._model.encode_document
        vectors: dict[str, np.ndarray] = {}
        for (prompt, _), inputs in alike.items():
            made = encode(
                list(inputs.values()),
                prompt=prompt,
                batch_size=self._engine.max_num_seqs,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            for key, vector in zip(inputs, made, strict=True):
                # In bf16 a vector that was normalised is not quite of length 1.
                vector = vector.astype(np.float32)
                length = float(np.linalg.norm(vector))
                if np.isfinite(length) and length > 0:
                    vectors[key] = vector / np.float32(length)
                else:
                    failed[key] = f"expected a finite vector, found length {length}"
        return vectors, failed

    def asked(self, content: Content, pictures: Pictures) -> Asked:
        """Return the prompt and the input that the library gets for a content without a trace.

        As our own Embedder, a model that reads text only gets an item's text alone. An instruction
        is told to a model that reads messages as its prompt; to others at the beginning of the
        text, and not at all beside pictures alone.

        Raises:
            DataError: the model reads nothing of the item, or not all of it together; a picture
                was not loaded.
        """
        instruction = "".join(part for part in content if isinstance(part, Instruction))
        texts = [p for p in content if isinstance(p, str) and not isinstance(p, Instruction)]
        text = "".join(texts).removesuffix(SUFFIX)
        sees = {"image", "video"}.intersection(self._model.modalities)
        visuals = visuals_in(content) if sees else ()
        if not self._model.supports("message"):
            if instruction and (text or not visuals):
                text = f"{instruction} {text}".rstrip()
            instruction = ""
        if not visuals:
            if not text and not instruction:
                raise DataError("the model reads text only, and the item has none")
            # As a text alone the library would take an address of a picture for the picture.
            return instruction or None, {"text": text} if sees else text
        shown = _shown(visuals, pictures)
        order = [shown, {"text": text} if text else {}]
        first = next(part for part in content if part and not isinstance(part, Instruction))
        if isinstance(first, str) and text:
            order.reverse()
        asked = {name: value for part in order for name, value in part.items()}
        names = tuple(sorted(asked))
        if not self._model.supports(names if len(names) > 1 else names[0]):
            raise DataError(
                f"expected a model that reads {' and '.join(names)} together, found one that reads "
                f"{', '.join(map(str, self._model.modalities))}"
            )
        return instruction or None, asked

    def close(self) -> None:
        """Let the model go."""
        del self._model


def _shown(visuals: Sequence[Picture | Video], pictures: Pictures) -> dict[str, Any]:
    """Return pictures and videos as the library takes them."""
    shown: dict[str, list[Any]] = {}
    for visual in visuals:
        if isinstance(visual, Video):
            frames = [_picture(frame, pictures) for frame in visual.frames]
            shown.setdefault("video", []).append(_video(frames, visual.times))
        else:
            shown.setdefault("image", []).append(_picture(visual, pictures))
    return {name: values[0] if len(values) == 1 else values for name, values in shown.items()}


def _picture(picture: Picture, pictures: Pictures) -> Image.Image:
    pixels = pictures.get(picture.uri)
    if pixels is None:
        raise DataError(f"{picture.uri}: the picture was not loaded")
    return Image.fromarray(pixels)


def _video(frames: Sequence[Image.Image], times: Sequence[float]) -> dict[str, Any]:
    if len({frame.size for frame in frames}) > 1:
        raise DataError("expected frames of one size in a video, found several")
    seconds = times[-1] - times[0]
    return {
        "array": np.stack([np.asarray(frame) for frame in frames]),
        "video_metadata": {
            "fps": (len(frames) - 1) / seconds if seconds else 1.0,
            "total_num_frames": len(frames),
        },
    }
