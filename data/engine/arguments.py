"""Settings that every vLLM engine shares, as plain values: nothing here imports vLLM."""

import ast
import importlib.util
import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.common import EngineConfig, RolloutConfig
from configs.errors import ConfigError
from configs.reward import JudgeConfig, Pooling, RewardConfig
from data.engine.lifeline import ACTOR_PID, EndsWithActor

PICTURE_CACHE_GB = 1.0
"""Processed pictures an engine keeps, so that siblings of a prompt share the work."""
VIDEO_AS_IT_IS = {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False}
"""What a model's own video processor must leave alone: `data.media` has chosen frames and sizes."""


OURS = {
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "tensor_parallel_size": "engine.tensor_parallel",
    "enforce_eager": "engine.enforce_eager",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    **dict.fromkeys(
        (
            *("model", "trust_remote_code", "distributed_executor_backend", "limit_mm_per_prompt"),
            *("mm_processor_cache_gb", "mm_processor_kwargs", "generation_config", "runner"),
            *("worker_extension_cls", "disable_log_stats", "use_tqdm_on_load", "logprobs_mode"),
            *("pooler_config", "weight_transfer_config", "hf_overrides"),
        )
    ),
}
"""vLLM's arguments that engines of this project set, with the setting that they follow from, if
there is one."""


def check_engines(sections: Mapping[str, RolloutConfig | RewardConfig | JudgeConfig]) -> None:
    """Refuse engines that the installed vLLM cannot start; ``sections`` by their keys.

    Raises:
        ConfigError: with each key to change.
    """
    problems = [
        text for key, part in sections.items() for text in _extra_problems(key, part.engine)
    ]
    problems += [
        f"{key}.pool.gpus: the installed vLLM is its CUDA build, which runs on GPUs only, and an "
        "actor sees no GPU that it does not ask for: expected more than 0, found 0; or set up the "
        "CPU build (make clean; make ENGINE=cpu ...)"
        for key, section in sections.items()
        if not section.pool.gpus and _is_cuda_build()
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _extra_problems(key: str, engine: EngineConfig) -> list[str]:
    problems = []
    known = _argument_names() if engine.extra else set()
    for name in engine.extra:
        place = f"{key}.engine.extra.{name}"
        if name in OURS:
            setting = OURS[name]
            remedy = f"set {key}.{setting} instead" if setting else "remove it"
            problems.append(f"{place}: expected what Embed-RL does not set itself; {remedy}")
        elif known and name not in known:
            [near] = get_close_matches(name, known - set(OURS), n=1, cutoff=0)
            problems.append(f"{place}: vLLM has no such argument; the nearest name is '{near}'")
    return problems


def _argument_names() -> set[str]:
    """Return the names of `AsyncEngineArgs`' fields, read from vLLM's source: importing it takes
    seconds. Empty where there is no vLLM.
    """
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return set()
    source = (Path(package.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    return {
        node.target.id
        for owner in ast.parse(source).body
        if isinstance(owner, ast.ClassDef) and owner.name in ("EngineArgs", "AsyncEngineArgs")
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _is_cuda_build() -> bool:
    """Tell vLLM's builds apart as vLLM itself does: by the package's name and version."""
    try:
        return "cpu" not in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False


def set_engine_environment(engine: EngineConfig) -> None:
    """Set what vLLM reads from the environment; call it before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Otherwise every engine of a machine binds its threads to the same cores, and the number of
    # threads that the cluster gave this actor is overwritten.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # On a CPU the model then runs in the engine's process and not in one more: 0.7 GB less memory,
    # no copying between the two. vLLM wants the extra process only to bind its threads.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Else the last bits of a small picture's features depend on what is computed beside it (those
    # of a product of matrices, on its number of rows): a run that goes on after a kill would drift
    # away from the undisturbed one. For Intel CPUs, where nothing else was seen to depend on it.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(engine.cpu_kv_cache_gb)
    os.environ[ACTOR_PID] = str(os.getpid())


def engine_arguments(
    model: str, engine: EngineConfig, *, max_pictures: int, videos: bool = False
) -> dict[str, Any]:
    """Return vLLM's engine arguments for a model folder; ours win over ``engine.extra``.

    ``max_pictures``: pictures (files, frames and crops) in one prompt at most; 0: the model reads
    text only. ``videos``: a prompt may show a video, too.
    """
    pictures: dict[str, Any] = {
        "limit_mm_per_prompt": {"image": max_pictures, "video": int(videos)},
        "mm_processor_cache_gb": PICTURE_CACHE_GB,
    }
    if videos:
        pictures["mm_processor_kwargs"] = {"videos_kwargs": VIDEO_AS_IT_IS}
    return {
        **engine.extra,
        "model": model,
        "trust_remote_code": False,
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel,
        # Not Ray's: the ranks of one engine are children of its actor, on the actor's GPUs.
        "distributed_executor_backend": "mp" if engine.tensor_parallel > 1 else None,
        "enforce_eager": engine.enforce_eager,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        **(pictures if max_pictures else {}),
        # The model folder's own sampling defaults must not slip in.
        "generation_config": "vllm",
        "worker_extension_cls": f"{EndsWithActor.__module__}.{EndsWithActor.__name__}",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def pooling_type(pooling: Pooling) -> str:
    """Return vLLM's name of a pooling; `<emb>` is always the last token."""
    return "LAST" if pooling == "emb_token" else pooling.upper()
