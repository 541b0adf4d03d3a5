"""What vectors and traces follow from beside their contents: the names of stores follow from it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from configs.common import EngineConfig, MediaConfig, RolloutConfig, SamplingConfig
from configs.reward import RewardConfig
from data.embed_inputs import INPUT_FORM
from data.errors import DataError
from data.prompts import templates_version
from data.sets.fingerprints import model_fingerprint


def embedder_facts(reward: RewardConfig, media: MediaConfig) -> dict[str, Any]:
    """Return what the vectors of an Embedder follow from: its files, pixel limits, and recipe.

    Raises:
        DataError: the model's folder has no files.
    """
    return {
        "model": _model(reward.model),
        "pixels": _pixels(media),
        "pooling": reward.pooling,
        "instruction": reward.instruction,
        "input_form": INPUT_FORM,
        "dtype": reward.engine.dtype,
        "max_model_len": reward.engine.max_model_len,
        **_extra(reward.engine),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecipe:
    """What traces follow from beside their prompts."""

    model: str
    """Fingerprint of the Reasoner's files, or what is known of it."""
    templates: str
    """`templates_version`"""
    temperature: float | None
    """0: greedy; None: unknown."""
    seed: int | None = None
    """None: greedy, or unknown."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further settings that change what is written."""


PUBLISHED = TraceRecipe(model="Embed-RL's published traces", templates="published", temperature=1.0)
"""Of the files that Embed-RL's authors published beside the benchmarks."""


def reasoner_recipe(
    model: str, rollout: RolloutConfig, media: MediaConfig, *, templates: str, seed: int | None
) -> TraceRecipe:
    """Return what the traces of a Reasoner follow from: its files, prompts, sampling, pixels.

    A ``seed`` of None stands for greedy sampling, whatever the temperature.

    Raises:
        DataError: the model's folder has no files.
    """
    files = json.dumps(_model(model), sort_keys=True)
    return TraceRecipe(
        model=blake2b(files.encode(), digest_size=16).hexdigest(),
        templates=templates_version(templates),
        temperature=0.0 if seed is None else rollout.sampling.temperature,
        seed=seed,
        more={
            "pixels": _pixels(media),
            "max_tokens": rollout.sampling.max_tokens,
            "dtype": rollout.engine.dtype,
            "max_model_len": rollout.engine.max_model_len,
            **_extra(rollout.engine),
            **_left_out(rollout.sampling, greedy=seed is None),
        },
    )


def _extra(engine: EngineConfig) -> dict[str, Any]:
    return {"extra": dict(engine.extra)} if engine.extra else {}


def _left_out(sampling: SamplingConfig, *, greedy: bool) -> dict[str, Any]:
    """Return the settings that say which tokens are not sampled, where they say anything."""
    names = ("stop",) if greedy else ("stop", "top_p", "top_k", "min_p")
    default = SamplingConfig()
    values = {name: getattr(sampling, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _model(folder: str) -> dict[str, str]:
    files = model_fingerprint(folder)
    if not files:
        raise DataError(f"{folder}: expected a model folder, found no files; correct the path")
    return files


def _pixels(media: MediaConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(media).items()
        if name.endswith("_pixels") or name == "video"
    }
