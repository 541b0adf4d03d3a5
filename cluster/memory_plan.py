"""What a plan needs of GPUs, object store and disk, by formula; `--dry-run` prints it.

P is the number of a model's parameters, b the bytes of one (2 in bf16, else 4), R the ranks. What a
formula leaves out: CUDA's own memory (0.5 to 1 GB a process), logits, buffers of ZeRO and NCCL.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from configs.common import EngineConfig
from configs.learner import LearnerConfig
from configs.schema import EmbedderConfig, RLConfig, WarmStartConfig, engines_of
from data.errors import DataError
from data.model.model_size import ModelSize, model_size

GIB = 1 << 30
MOMENTS_BYTES, MASTER_BYTES = 8, 4
"""Of a trained value: AdamW's two moments in float32, and the float32 copy that bf16 needs."""
ACTIVATION_UNITS = 17
"""Values that a layer keeps for the backward pass, by hidden unit and token (Korthikanti et al.,
2022, without the attention matrix, which fused kernels do not keep)."""
SNAPSHOTS = 2
"""Versions in the object store at a time."""
CHECKPOINTS = 4
"""The newest two, the best, and one that is being written."""


def plan_lines(config: Any) -> Iterator[str]:
    """Yield what each kind of actor needs, a line each; nothing where a model is not on disk."""
    sizes: dict[str, ModelSize] = {}
    for section, folder in _models(config).items():
        try:
            sizes[section] = model_size(folder)
        except DataError:
            continue  # other checks name it
    if "learner" in sizes:
        reference = isinstance(config, RLConfig) and config.grpo.kl != "none"
        parts = rank_bytes(config.learner, sizes["learner"], reference=reference)
        yield f"learner rank: {_sum(parts)}"
        checkpoint = checkpoint_bytes(config.learner, sizes["learner"])
        yield f"checkpoints: {CHECKPOINTS} x {_gib(checkpoint)} GiB on disk"
    for section, part in engines_of(config).items():
        if section in sizes:
            weights, sequence = engine_bytes(part.engine, sizes[section])
            yield (
                f"{section} engine: weights {_gib(weights)} GiB, and {_gib(sequence)} GiB of "
                f"key-value cache for each sequence of {part.engine.max_model_len} tokens, on each "
                f"GPU, in its gpu_memory_utilization={part.engine.gpu_memory_utilization:g}"
            )
    if isinstance(config, RLConfig) and "learner" in sizes:
        weights = SNAPSHOTS * sizes["learner"].parameters * _width(config.learner)
        pictures = config.data.media.max_step_bytes
        yield (
            f"object store: {_gib(weights)} GiB for {SNAPSHOTS} versions of the weights on the "
            f"learner's node and {_gib(pictures)} GiB for pictures at most; Ray takes the smaller "
            "of 30 % of memory and 95 % of /dev/shm"
        )


def rank_bytes(
    learner: LearnerConfig, size: ModelSize, *, reference: bool = False
) -> dict[str, float]:
    """Return the bytes on the device of one learner rank, by what they are for.

    weights P b (ZeRO-3: / R); gradients P b (ZeRO-2 and 3: / R); optimiser P (8, in bf16 12), from
    ZeRO-1 on / R, 0 if it is offloaded; reference P b, whole; activations: tokens x hidden units x
    layers x b x 17, with gradient checkpointing x 1. Adapters have a hundredth of the parameters,
    or less: their gradients and optimiser count 0, and no reference is needed.
    """
    width, stage, adapted = _width(learner), learner.zero_stage, learner.lora.rank > 0
    whole = size.parameters * width
    trained = 0 if adapted else size.parameters
    units = 1 if learner.gradient_checkpointing else ACTIVATION_UNITS
    on_host = learner.offload != "none"
    return {
        "weights": 0.0 if learner.offload == "parameters" else whole / _parts(learner, stage == 3),
        "gradients": trained * width / _parts(learner, stage >= 2),
        "optimiser": 0.0 if on_host else _state(learner, trained) / _parts(learner, stage >= 1),
        "reference": float(whole if reference and not adapted else 0),
        "activations": float(
            learner.micro_batch_tokens * size.hidden * size.layers * width * units
        ),
    }


def checkpoint_bytes(learner: LearnerConfig, size: ModelSize) -> float:
    """Return the bytes of a checkpoint: P b, and the optimiser's state of what is trained."""
    trained = 0 if learner.lora.rank else size.parameters
    return size.parameters * _width(learner) + _state(learner, trained)


def engine_bytes(engine: EngineConfig, size: ModelSize) -> tuple[float, float]:
    """Return the bytes of the weights, and of the keys and values of one sequence of
    `max_model_len` tokens, on each of an engine's GPUs: P b / TP; tokens x layers x 2 x heads of
    keys x their size x b / TP.
    """
    width = 4 if engine.dtype == "float32" else 2
    sequence = engine.max_model_len * size.layers * 2 * size.key_width * width
    return size.parameters * width / engine.tensor_parallel, sequence / engine.tensor_parallel


def _models(config: Any) -> dict[str, str]:
    """Return the folders of the models that a job loads, by what holds them."""
    models: dict[str, str] = {}
    if isinstance(config, WarmStartConfig | EmbedderConfig):
        models["learner"] = config.model
    if isinstance(config, RLConfig):
        models["learner"] = config.reasoner
    for section, part in engines_of(config).items():
        names = (getattr(config, name, "") for name in ("reasoner", "eg_rl", "warm_start"))
        models[section] = next(filter(None, names), "") if section == "rollout" else part.model
    return models


def _state(learner: LearnerConfig, trained: int) -> float:
    return float(trained * (MOMENTS_BYTES + (MASTER_BYTES if learner.bf16 else 0)))


def _parts(learner: LearnerConfig, split: bool) -> int:
    return learner.ranks if split else 1


def _width(learner: LearnerConfig) -> int:
    return 2 if learner.bf16 else 4


def _sum(parts: Mapping[str, float]) -> str:
    named = " + ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    return f"{named} = {_gib(sum(parts.values()))} GiB"


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}"
