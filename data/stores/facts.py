"""What vectors and traces follow from beside their contents: the names of stores follow from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from configs.common import EngineConfig, MediaConfig, RolloutConfig, SamplingConfig
from configs.reward import RewardConfig
from configs.schema import RivalConfig
from data.embed_inputs import INPUT_FORM
from data.errors import DataError
from data.prompts import templates_version
from data.sets.fingerprints import file_hash, model_fingerprint
from data.types import Side


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


def rival_facts(
    rival: RivalConfig, media: MediaConfig, side: Side, *, library: str
) -> dict[str, Any]:
    """Return what the vectors of a rival that sentence-transformers loads follow from.

    ``library``: its version.

    Raises:
        DataError: the model's folder has no files.
    """
    root = Path(rival.model)
    folders = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_dir()]
    return {
        "library": f"sentence-transformers {library}",
        "model": _model(rival.model)
        | {
            f"{folder}/{name}": hashed
            for folder in folders
            if not any(part.startswith(".") for part in folder.parts)
            for name, hashed in model_fingerprint(str(root / folder)).items()
        },
        "side": side,
        "prompts": rival.prompts,
        "pixels": _pixels(media),
        "dtype": rival.engine.dtype,
        "max_model_len": rival.engine.max_model_len,
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


def published_recipe(files: Iterable[Path]) -> TraceRecipe:
    """Return what traces in files follow from that Embed-RL's code wrote beside benchmarks."""
    hashes = sorted(f"{file.name}: {file_hash(file, whole=True)}" for file in files)
    digest = blake2b("\n".join(hashes).encode(), digest_size=16).hexdigest()
    return TraceRecipe(model=f"published files {digest}", templates="published", temperature=1.0)


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
        more=_limits(rollout, media, greedy=seed is None),
    )


STEP = "step"
"""Of `TraceRecipe.more`: the step of a run after which held-out traces were written."""
MAX_FRAMES = "max_frames"


def held_out_recipe(
    weights: str,
    rollout: RolloutConfig,
    media: MediaConfig,
    *,
    templates: str,
    step: int,
    version: int,
) -> TraceRecipe:
    """Return what the greedy traces of a policy in training follow from.

    Args:
        weights: `Published.digest` of the policy's version.
        rollout: its engines.
        media: how pictures and videos are shown.
        templates: of the prompts.
        step: after which they are written; 0: before the first.
        version: the policy's.
    """
    steps = {STEP: step, "version": version, MAX_FRAMES: media.max_frames}
    return TraceRecipe(
        model=f"weights {weights}",
        templates=templates_version(templates),
        temperature=0.0,
        more=_limits(rollout, media, greedy=True) | steps,
    )


def _limits(rollout: RolloutConfig, media: MediaConfig, *, greedy: bool) -> dict[str, Any]:
    return {
        "pixels": _pixels(media),
        "max_tokens": rollout.sampling.max_tokens,
        "dtype": rollout.engine.dtype,
        "max_model_len": rollout.engine.max_model_len,
        **_head(rollout.engine),
        **_extra(rollout.engine),
        **_left_out(rollout.sampling, greedy=greedy),
    }


def _head(engine: EngineConfig) -> dict[str, Any]:
    """Return the type of the logits, where older releases took another one, the model's."""
    return {} if engine.dtype == "float32" else {"head": "float32"}


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
