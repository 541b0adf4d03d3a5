"""The RL step on what a run consists of: real engines, ranks, weight store and object store."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from transformers import AutoModelForImageTextToText

from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder
from cluster.rl.held_out import measure_held_out
from cluster.rl.logprob_parity import PARITY, check_parity
from cluster.rl.ranker import Ranker
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline, StepResult
from configs.common import DataConfig, RolloutConfig, RunConfig
from configs.learner import GRPOConfig, LearnerConfig, OptimizerConfig
from configs.reward import RewardConfig
from configs.schema import RLConfig
from data.relevance import Relevance
from data.sets.feed import PairFeed
from data.stores.facts import held_out_recipe
from data.stores.traces import TraceStore
from data.types import Item, Kind, Pair
from tests.builders import loaded_set, make_pair, write_picture
from tests.integration.conftest import MEDIA, SAMPLING
from tests.integration.reference import logprobs, request
from tests.patience import PATIENCE_S

PAIRS, SIBLINGS, STEPS = 3, 2, 4


@pytest.fixture
def group(group_of: Callable[[int], LearnerGroup]) -> LearnerGroup:
    """Return the group of two ranks; pytest may hold an older one, where a test took one rank."""
    return group_of(2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, ...]:
    """Return pairs of a picture and a text, and of two texts."""
    folder = tmp_path_factory.mktemp("pictures")

    def query(index: int) -> Item:
        if index % 2:
            return Item(text=f"red star {index}")
        path = write_picture(folder / f"{index}.png", 32 + 8 * index, 64)
        return Item(text="what color", kind=Kind.IMAGE, uris=(str(path),))

    return tuple(make_pair(f"p{index}", query=query(index)) for index in range(8))


@pytest.fixture(scope="module")
def config(tiny_folder: Path) -> RLConfig:
    return RLConfig(
        run=RunConfig(dir="unused"),
        reasoner=str(tiny_folder),
        data=DataConfig(templates="brief", media=MEDIA),
        rollout=RolloutConfig(sampling=SAMPLING),
        # A random model writes no valid trace: what it is paid for is to be short.
        reward=RewardConfig(
            model=str(tiny_folder), gate_by_format=False, length_weight=1.0, length_budget=1
        ),
        learner=LearnerConfig(
            ranks=2,
            cpus=0.0,
            bf16=False,
            attention="eager",
            micro_batch_tokens=400,
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
            timeout_s=PATIENCE_S,
        ),
        grpo=GRPOConfig(kl_coef=0.1),
        pairs=PAIRS,
        siblings=SIBLINGS,
        steps=STEPS,
        max_staleness=1,
    )


@pytest.fixture
def make_pipeline(
    config, pairs, rollout_pool, reward_pool, group, store, publish, tiny_model
) -> Iterator:
    """Return a function that gives a pipeline as the job builds it, its ranks freshly built."""
    decoder, ranker, made = Decoder(), Ranker(), []
    group.config = config.learner

    def make() -> Pipeline:
        ray.get(store.actor.clear.remote(), timeout=PATIENCE_S)
        group.build_policy(
            model=config.reasoner,
            media=MEDIA,
            total_steps=STEPS,
            seed=0,
            grpo=config.grpo,
            sampling=SAMPLING,
        )
        loaded = loaded_set(name="set", pairs=pairs, bad_rows=())
        scorer = Scorer(
            config.reward,
            embedder=reward_pool,
            judge=None,
            item_tokens=0,
            max_frames=MEDIA.max_frames,
            compute=ranker.rank_sides,
            relevance=Relevance(pairs),
        )
        made.append(
            Pipeline(
                config,
                feed=PairFeed([loaded], {"set": 1.0}, batch=PAIRS, seed=0),
                rollout=rollout_pool,
                scorer=scorer,
                decoder=decoder,
                learner=group,
                store=store.actor,
            )
        )
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()
    decoder.close()
    ranker.close()
    ray.get(store.actor.clear.remote(), timeout=PATIENCE_S)
    rollout_pool.pull_weights(publish(tiny_model))  # as other tests expect the engine


def check(result: StepResult, step: int) -> None:
    """Hold what is true of every step."""
    metrics = result.metrics
    assert not result.broken
    assert metrics["version"] == step
    assert metrics["sync/checksum_ok"] == 1.0
    assert metrics[PARITY] < 1e-3
    assert metrics["traces/issued"] == len(result.rows) == PAIRS * 2 * SIBLINGS
    assert metrics["traces/issued"] == metrics["traces/trained"] + metrics["dropped/total"]
    assert metrics["traces/trained"] > 0
    assert metrics["policy/grad_norm"] > 0
    assert metrics["staleness/max"] <= 1
    for row in result.rows:
        assert max(1, step - 1) <= row["min_version"] <= row["max_version"] <= step


def measured(pairs: Sequence[Pair], pipeline: Pipeline, root: Path) -> dict[str, float]:
    """Return held-out hit@1 after two steps; the traces are kept under ``root``."""
    recipe = held_out_recipe(
        pipeline.weights_digest,
        pipeline.config.rollout,
        MEDIA,
        templates="brief",
        step=2,
        version=pipeline.version,
    )
    traces = TraceStore(root, recipe)
    return measure_held_out(pairs, pipeline.collector, traces=traces, made_by="a test")


def test_steps_train_serve_and_measure_what_they_say_and_go_on_after_a_restart(
    make_pipeline, config, reasoner, group, encoder, tiny_model, contents, pictures, pairs, tmp_path
) -> None:
    pipeline = make_pipeline()
    pipeline.sync()
    results = []
    for step in (1, 2):
        results.append(pipeline.step())
        check(results[-1], step)
        check_parity(results[-1].metrics, broken=False, limits=config.parity)
    assert results[0].metrics["policy/kl"] == pytest.approx(0.0, abs=1e-6)
    assert results[1].metrics["policy/kl"] > 0

    # What the engine computes with is what the learner would export, not what it began with.
    group.export(tmp_path / "export")
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "export").eval()
    for content in contents.values():
        [trace] = reasoner.generate([request(content, greedy=True)], pictures)
        prompt = encoder.encode(content, pictures)
        gaps = [
            np.abs(trace.logprobs - logprobs(model, encoder, prompt, trace.response_ids)).max()
            for model in (trained, tiny_model)
        ]
        assert gaps[0] < 1e-3 < gaps[1]
        assert trace.min_version == trace.max_version == 3
    kept = tmp_path / "traces"
    assert 0.0 <= measured(pairs[:4], pipeline, kept)["eval/hit_at_1"] <= 1.0
    before = list(kept.glob("*/*.parquet"))

    state = json.loads(json.dumps(pipeline.state()))
    pipeline.save(tmp_path)
    pipeline.close()
    resumed = make_pipeline()
    resumed.load(tmp_path, state)
    resumed.sync()
    # The same weights after a restart: the kept traces stand for them.
    measured(pairs[:4], resumed, kept)
    assert list(kept.glob("*/*.parquet")) == before != []
    results += [resumed.step() for _ in range(2)]
    for step in (3, 4):
        check(results[step - 1], step)
    serials = [{int(row["key"].split("/")[0][2:]) for row in one.rows} for one in results]
    assert serials == [set(range(n * PAIRS, (n + 1) * PAIRS)) for n in range(STEPS)]
