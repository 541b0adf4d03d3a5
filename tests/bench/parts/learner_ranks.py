"""Two ranks of the learner as plain processes, with the demo's model, settings and lengths."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.load import load
from configs.schema import RLConfig
from data.demo.model import MERGE, PATCH, write_tiny_model
from data.model.model_folder import load_processor
from data.types import Kind, Picture, Pictures, TrainSample
from learner.objectives import LearnerPlan, PolicyObjective
from learner.rank.deepspeed_engine import open_rendezvous
from learner.rank.worker import LearnerWorker

RANKS = 2
ADDRESS, TIMEOUT_S = "127.0.0.1", 900.0
LENGTHS = Path(__file__).parents[1] / "data" / "rl_lengths.json"
CONFIG = Path(__file__).resolve().parents[3] / "configs" / "demo" / "rl.yaml"


def demo_config() -> RLConfig:
    """Return the demo's RL settings."""
    return load(RLConfig, CONFIG)


def write_model(folder: Path) -> Path:
    """Write the demo's model, with the characters as its vocabulary, and return its folder."""
    write_tiny_model(folder, ["what color is the star"], seed=0)
    return folder


def demo_steps(model: Path) -> list[tuple[list[TrainSample], Pictures]]:
    """Return samples and pictures of RL steps: the demo's lengths, tokens and pixels by chance."""
    tokenizer = load_processor(str(model)).tokenizer
    start, end, image = tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    )
    words = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop"))
    rng = np.random.default_rng(0)
    steps = []
    for step in json.loads(LENGTHS.read_text())["steps"]:
        samples: list[TrainSample] = []
        pictures: dict[str, np.ndarray] = {}
        for serial, group in enumerate(step["groups"]):
            shown, ids = [], list[int]()
            for index, (height, width) in enumerate(group["pictures"]):
                uri = f"{serial}-{index}"
                pictures[uri] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                shown.append(Picture(uri, Kind.IMAGE))
                ids += [start, *[image] * picture_tokens(pictures[uri]), end]
            ids += rng.choice(words, group["prompt"] - len(ids)).tolist()
            prompt = np.array(ids)
            samples += [
                TrainSample(
                    key=f"{serial}/{sibling}",
                    content=tuple(shown),
                    prompt_ids=prompt,
                    response_ids=rng.choice(words, count),
                    advantage=float(rng.normal()),
                    logprobs=rng.normal(-6.0, 0.3, count).astype(np.float32),
                )
                for sibling, count in enumerate(group["responses"])
            ]
        steps.append((samples, pictures))
    return steps


def picture_tokens(pixels: np.ndarray) -> int:
    """Return how many tokens the demo's model makes of a picture that needs no fitting."""
    height, width, _ = pixels.shape
    return height * width // (PATCH * MERGE) ** 2


def build(worker: LearnerWorker, model: Path) -> None:
    """Load the model for RL as the demo does."""
    config = demo_config()
    worker.build(
        LearnerPlan(
            model=str(model),
            objective=PolicyObjective(
                reference=str(model),
                grpo=config.grpo,
                max_tokens=config.rollout.sampling.max_tokens,
            ),
            learner=config.learner,
            media=config.data.media,
            steps=config.steps,
        )
    )


def on_ranks(measure: Callable[..., Any], *args: Any) -> Any:
    """Call ``measure(worker, *args)`` on every rank, each a process; return what rank 0 found."""
    rendezvous = open_rendezvous(ADDRESS, RANKS, TIMEOUT_S)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(RANKS, mp_context=context) as pool:
        found = [
            pool.submit(_on_rank, measure, rank, rendezvous.port, *args) for rank in range(RANKS)
        ]
        first, *_ = [one.result() for one in found]
        return first


def _on_rank(measure: Callable[..., Any], rank: int, port: int, *args: Any) -> Any:
    torch.set_num_threads(1)
    worker = LearnerWorker(rank, RANKS)
    worker.join(ADDRESS, port, TIMEOUT_S)
    return measure(worker, *args)
