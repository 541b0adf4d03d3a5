"""The learner group on real DeepSpeed ranks against plain PyTorch, one sequence at a time.

Every objective in every ZeRO stage on one and on two ranks; what plain PyTorch does is computed
once per objective, and the configurations share two process groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
)

from cluster.learner_group import LearnerGroup
from cluster.weights.store import WeightStore
from configs.common import MediaConfig, SamplingConfig
from configs.learner import GRPOConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from data.errors import WeightSyncError
from data.model.chat import ChatEncoder
from data.types import Content, ContrastPair, Kind, Picture, TrainSample, Video
from data.weights.parcels import Adapter, base_name, merge
from data.weights.types import Bucket
from learner.rank.contrastive import Temperature
from learner.rank.lora import add_adapters, stored_weights
from tests.integration.reference import model_inputs
from tests.marks import extended
from tests.patience import PATIENCE_S
from tests.shared_pictures import share_pictures

MEDIA = MediaConfig(
    **{
        f"{what}_{end}_pixels": pixels
        for what in ("image", "page", "frame", "crop")
        for end, pixels in (("min", 32 * 32), ("max", 64 * 64))
    }
)
LR = 1e-4
"""Small: Adam turns rounding in near-zero gradients into steps of this size."""
CONFIG = LearnerConfig(
    zero_stage=2,
    bf16=False,
    attention="eager",
    micro_batch_tokens=60,  # several micro-batches, some without pictures, some empty
    optimizer=OptimizerConfig(lr=LR, weight_decay=0.01, grad_clip=1.0),
    timeout_s=PATIENCE_S,
)
LORA = LoRAConfig(rank=4, alpha=8, vision_modules=["*.qkv"])
GRPO = GRPOConfig(clip_low=0.2, clip_high=0.2, kl_coef=0.05)
TEMPERATURE = 0.8
CONTRAST_TEMPERATURE = 0.2
DIMENSIONS = (24, 64)
STEPS = 6
ONE_BATCH = {"micro_batch_tokens": 10_000}
"""ZeRO-3 gathers every layer in every pass, so each micro-batch more costs seconds."""
# Of the scope of a session, so that those of one size follow each other.
ONE_AND_TWO_RANKS = pytest.mark.parametrize(
    "group", [extended(1), 2], indirect=True, scope="session"
)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> ChatEncoder:
    return ChatEncoder(AutoProcessor.from_pretrained(tiny_folder), MEDIA)


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("a", "b", "c")}


def configure(group: LearnerGroup, **changes: object) -> None:
    base = dataclasses.replace(CONFIG, ranks=group.config.ranks, cpus=group.config.cpus)
    group.config = dataclasses.replace(base, **changes)


def contents() -> list[Content]:
    image = Picture("a", Kind.IMAGE)
    frames = (Picture("b", Kind.VIDEO), Picture("c", Kind.VIDEO))
    return [
        (image, "what color is the star?"),
        (image, "what color is the star?"),
        ("find the red star",),
        (Picture("b", Kind.IMAGE), image, "the same as the star but a circle"),
        ("green 1 2 3 4 5 6 7 8 9 " * 2,),
        (Video(frames, (0.0, 1.5)), frames[1], "the star moves"),
    ]


def samples(encoder: ChatEncoder, pictures: dict[str, np.ndarray]) -> list[TrainSample]:
    rng = np.random.default_rng(1)
    rows = []
    for index, content in enumerate(contents()):
        count = 3 + 2 * index
        rows.append(
            TrainSample(
                key=f"s{index}",
                content=content,
                prompt_ids=np.array(encoder.encode(content, pictures).expanded),
                response_ids=rng.integers(20, 300, count),
                advantage=float(rng.normal()),
                logprobs=rng.normal(-5.9, 0.3, count).astype(np.float32),
            )
        )
    return rows


def batches(rows: list[Any]) -> list[list[Any]]:
    """Return the rows of each step: all kinds of input, or on two ranks text beside pictures."""
    beside = [rows[2], rows[3]]
    return [rows, rows, beside, rows, beside, rows]


class Plain:
    """The model in plain PyTorch, each sequence alone and unpadded."""

    def __init__(
        self,
        tiny_folder: Path,
        encoder: ChatEncoder,
        pictures: dict[str, np.ndarray],
        lora: LoRAConfig | None = None,
    ):
        torch.set_num_threads(1)
        self.encoder, self.pictures = encoder, pictures
        self.net = AutoModelForImageTextToText.from_pretrained(
            tiny_folder, dtype=torch.float32, attn_implementation="eager"
        )
        if lora is not None:
            torch.manual_seed(0)
            add_adapters(self.net, lora)
        trained = [param for param in self.net.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01)

    def hidden(self, content: Content, ids: list[int]) -> torch.Tensor:
        prompt = dataclasses.replace(self.encoder.encode(content, self.pictures), expanded=ids)
        inputs = model_inputs(self.encoder, prompt, [])
        return self.net.model(**inputs).last_hidden_state[0]

    def logits(self, sample: TrainSample) -> torch.Tensor:
        ids = [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()]
        hidden = self.hidden(sample.content, ids)
        return self.net.lm_head(hidden[len(sample.prompt_ids) - 1 : -1])

    def picked(self, logits: torch.Tensor, sample: TrainSample) -> torch.Tensor:
        targets = torch.from_numpy(sample.response_ids)
        return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]

    def train_also(self, param: torch.nn.Parameter) -> None:
        self.optimizer.param_groups[0]["params"].append(param)

    def step(self, loss: torch.Tensor) -> float:
        # As on ranks, of which some may show pictures: where none does, their gradient is 0.
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        self.optimizer.step()
        return float(norm)


def build_supervised(group: LearnerGroup, tiny_folder: Path) -> None:
    group.build_supervised(model=str(tiny_folder), media=MEDIA, total_steps=STEPS, seed=0)


def build_policy(
    group: LearnerGroup, tiny_folder: Path, *, updates: int = 1, grpo: GRPOConfig = GRPO
) -> None:
    group.build_policy(
        model=str(tiny_folder),
        media=MEDIA,
        total_steps=STEPS,
        seed=0,
        grpo=dataclasses.replace(grpo, updates_per_step=updates),
        sampling=SamplingConfig(temperature=TEMPERATURE, max_tokens=16),
    )


def build_contrastive(group: LearnerGroup, tiny_folder: Path, **changes: object) -> None:
    group.build_contrastive(
        model=str(tiny_folder),
        media=MEDIA,
        total_steps=STEPS,
        seed=0,
        temperature=CONTRAST_TEMPERATURE,
        **changes,
    )


def buckets(group: LearnerGroup) -> Iterator[Bucket]:
    """Publish the group's weights to a store of their own and yield what lies there.

    The store lives until the last bucket was used: the learner frees what a dead store had borrowed
    from it, even where the store had just lent it on.
    """
    store = ray.remote(WeightStore).options(num_cpus=0).remote()
    group.announce(1, store)
    group.publish(1, store)
    for index in count():
        bucket = ray.get(store.bucket.remote(1, index, 0.0))
        if bucket is None:
            return
        yield bucket


def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
    """Return what engines get, adapters merged."""
    found: dict[str, torch.Tensor] = {}
    for bucket in buckets(group):
        for parcel in ray.get(bucket.parcels[0]):
            if isinstance(parcel, Adapter):
                base = found.pop(base_name(parcel.name))
                parts = (base, parcel.down.tensor(), parcel.up.tensor())
                found[parcel.name] = merge(*parts, parcel.scale)
            elif parcel.name in bucket.checksums:
                found[parcel.name] = parcel.tensor().clone()
    return found


def supervised_steps(plain: Plain, rows: list[TrainSample]) -> list[dict[str, float]]:
    """Return what plain PyTorch measures in each step, by metric."""
    found = []
    for batch in batches(rows):
        tokens = sum(len(row.response_ids) for row in batch)
        loss = -sum(plain.picked(plain.logits(row), row).sum() for row in batch) / tokens
        found.append({"supervised/loss": loss.item(), "supervised/grad_norm": plain.step(loss)})
    return found


@pytest.fixture(scope="module")
def plain_supervised(tiny_folder, encoder, pictures) -> list[dict[str, float]]:
    return supervised_steps(Plain(tiny_folder, encoder, pictures), samples(encoder, pictures))


def follows(metrics: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    """Return whether a step measured what plain PyTorch does."""
    return all(
        metrics[name] == pytest.approx(value, rel=1e-3)
        if name.endswith("grad_norm")
        else metrics[name] == pytest.approx(value, abs=1e-4 if "logprob" in name else 1e-5)
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("zero_stage", "offload"),
    [
        (0, "none"),
        extended(1, "none"),
        (2, "none"),
        (3, "none"),
        extended(2, "optimizer"),
        extended(3, "parameters"),
    ],
)
@ONE_AND_TWO_RANKS
def test_supervised_training_follows_plain_adamw(
    group, zero_stage, offload, plain_supervised, tiny_folder, encoder, pictures
):
    configure(group, zero_stage=zero_stage, offload=offload)
    build_supervised(group, tiny_folder)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    for batch, expected in zip(batches(rows), plain_supervised, strict=True):
        metrics = group.train_supervised(batch, shared).metrics
        assert follows(metrics, expected), (metrics, expected)
    measured = group.evaluate_supervised(rows, shared)
    assert measured["eval/loss"] < plain_supervised[-1]["supervised/loss"]


@pytest.mark.extended
@pytest.mark.parametrize(("zero_stage", "offload"), [(1, "none"), (3, "parameters")])
def test_adapters_alone_train_and_leave_the_learner_merged(
    group, zero_stage, offload, tiny_folder, encoder, pictures, tmp_path
):
    configure(group, zero_stage=zero_stage, offload=offload, lora=LORA, **ONE_BATCH)
    build_supervised(group, tiny_folder)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    plain = Plain(tiny_folder, encoder, pictures, LORA)
    for batch, expected in zip(batches(rows), supervised_steps(plain, rows), strict=True):
        metrics = group.train_supervised(batch, shared).metrics
        assert follows(metrics, expected), (metrics, expected)
    initial, found = load_file(tiny_folder / "model.safetensors"), weights(group)
    assert found.keys() == initial.keys()
    for weight in stored_weights(plain.net):
        trained = len(weight.parts) > 1
        assert torch.equal(found[weight.name], initial[weight.name]) != trained
        torch.testing.assert_close(found[weight.name], weight.merged(), atol=1e-4, rtol=0)
    measured = group.evaluate_supervised(rows, shared)["eval/loss"]
    group.export(tmp_path / "export")
    exported = Plain(tmp_path / "export", encoder, pictures)
    with torch.no_grad():
        total = sum(exported.picked(exported.logits(row), row).sum() for row in rows)
    tokens = sum(len(row.response_ids) for row in rows)
    assert -total.item() / tokens == pytest.approx(measured, abs=1e-5)
    for name, tensor in weights(group).items():
        assert torch.equal(tensor, found[name])
        assert torch.equal(exported.net.state_dict()[name], tensor)


@pytest.mark.extended
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_reference_of_adapters_is_the_initial_model(
    group, zero_stage, tiny_folder, encoder, pictures
):
    configure(group, zero_stage=zero_stage, lora=LORA, **ONE_BATCH)
    build_policy(group, tiny_folder)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    initial = group.score_policy(rows, shared)
    first, second = (group.train_policy(rows, shared).metrics["policy/kl"] for _ in range(2))
    assert first == 0.0 < second
    for key, scores in group.score_policy(rows, shared).items():
        np.testing.assert_array_equal(scores.reference, initial[key].own)
        assert np.abs(scores.own - initial[key].own).max() > 1e-4


LINEAR = dataclasses.replace(CONFIG.optimizer, schedule="linear")


@pytest.fixture(scope="module")
def plain_policy(tiny_folder, encoder, pictures) -> Callable[[int], list[dict[str, float]]]:
    """Return what gives, for so many updates a step, what plain PyTorch measures in each step.

    The learning rate falls from step to step where there are several.
    """

    def logprobs(model: Plain, row: TrainSample) -> torch.Tensor:
        logits = model.logits(row).clone()
        logits[:, encoder.banned_ids()] = -torch.inf
        return model.picked(logits / TEMPERATURE, row)

    @functools.cache
    def measured(updates: int) -> list[dict[str, float]]:
        plain, initial = (Plain(tiny_folder, encoder, pictures) for _ in range(2))
        found = []
        for step, rows in enumerate(batches(samples(encoder, pictures))):
            lr = LR if updates == 1 else LR * (1 - 0.9 * step / STEPS)
            plain.optimizer.param_groups[0]["lr"] = lr
            with torch.no_grad():
                gaps = [logprobs(plain, row) - torch.from_numpy(row.logprobs) for row in rows]
            losses, norms, kl_sum = [], [], 0.0
            for part in range(updates):
                some = rows[len(rows) * part // updates : len(rows) * (part + 1) // updates]
                total = torch.zeros(())
                for row in some:
                    new = logprobs(plain, row)
                    with torch.no_grad():
                        away = logprobs(initial, row) - new
                    away = away.detach() + new.detach() - new  # gradient through the policy only
                    ratio = torch.exp(new - torch.from_numpy(row.logprobs))
                    gain = torch.minimum(
                        ratio * row.advantage,
                        ratio.clamp(1 - GRPO.clip_low, 1 + GRPO.clip_high) * row.advantage,
                    )
                    if row.advantage < 0:
                        gain = gain.clamp(min=GRPO.dual_clip * row.advantage)
                    kl = torch.exp(away) - away - 1
                    total = total + (GRPO.kl_coef * kl - gain).sum()
                    kl_sum += kl.sum().item()
                loss = total / sum(len(row.response_ids) for row in some)
                losses.append(loss.item())
                norms.append(plain.step(loss))
            found.append(
                {
                    "policy/loss": float(np.mean(losses)),
                    "policy/kl": kl_sum / sum(len(row.response_ids) for row in rows),
                    "policy/grad_norm": float(np.mean(norms)),
                    "policy/lr": lr,
                    "sync/logprob_max_abs_diff": torch.cat(gaps).abs().max().item(),
                    "parity/max": torch.cat(gaps).abs().max().item(),
                    "parity/mean": torch.cat(gaps).abs().mean().item(),
                }
            )
        return found

    return measured


@pytest.mark.parametrize("zero_stage", [0, extended(1), 2, 3])
@ONE_AND_TWO_RANKS
def test_policy_training_follows_plain_adamw(
    group, zero_stage, plain_policy, tiny_folder, encoder, pictures
):
    configure(group, zero_stage=zero_stage)
    build_policy(group, tiny_folder)
    shared = share_pictures(pictures)
    for batch, expected in zip(batches(samples(encoder, pictures)), plain_policy(1), strict=True):
        metrics = group.train_policy(batch, shared).metrics
        assert follows(metrics, expected), (metrics, expected)


@pytest.mark.parametrize("zero_stage", [extended(0), 2, extended(3)])
def test_two_updates_a_step_follow_plain_adamw(
    group, zero_stage, plain_policy, tiny_folder, encoder, pictures
):
    configure(group, zero_stage=zero_stage, optimizer=LINEAR)
    build_policy(group, tiny_folder, updates=2)
    shared = share_pictures(pictures)
    for batch, expected in zip(batches(samples(encoder, pictures)), plain_policy(2), strict=True):
        metrics = group.train_policy(batch, shared).metrics
        assert follows(metrics, expected), (metrics, expected)
        assert metrics["policy/lr"] == pytest.approx(expected["policy/lr"])


def test_policy_training_drops_nothing_where_the_model_would(group, encoder, tmp_path):
    words = len(encoder.tokenizer)
    sizes = {"vocab_size": words, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    net = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    net.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    configure(group)
    build_policy(group, tmp_path)
    rng = np.random.default_rng(0)
    bare = [
        TrainSample(
            key=f"s{index}",
            content=("find it",),
            prompt_ids=rng.integers(20, 300, 5),
            response_ids=rng.integers(20, 300, 4 + index),
            advantage=1.0,
        )
        for index in range(4)
    ]
    shared = share_pictures({})
    scores = group.score_policy(bare, shared)
    rows = [dataclasses.replace(one, logprobs=scores[one.key].own) for one in bare]
    metrics = group.train_policy(rows, shared).metrics
    assert metrics["sync/logprob_max_abs_diff"] < 1e-5
    assert metrics["policy/kl"] < 1e-9


@pytest.mark.extended
def test_a_step_of_which_one_update_is_broken_takes_the_other(
    group, tiny_folder, encoder, pictures
):
    configure(group)
    build_policy(group, tiny_folder, updates=2)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    before = weights(group)
    broken = [dataclasses.replace(rows[0], advantage=float("nan")), *rows[1:]]
    report = group.train_policy(broken, shared)
    assert report.metrics["policy/skipped_steps"] == 1.0
    assert rows[0].key in report.broken
    assert {*report.broken} <= {row.key for row in rows[:3]}
    after = weights(group)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_traces_without_a_gradient_count_in_the_mean_and_take_no_pass(
    group, tiny_folder, encoder, pictures
):
    configure(group)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    # A pass over those with picture tokens would miss the pictures.
    alike = [
        dataclasses.replace(row, key=f"alike-{row.key}", advantage=0.0, content=("text",))
        for row in rows
    ]
    found = []
    for batch in (rows, [*alike, *rows]):
        build_policy(group, tiny_folder, grpo=dataclasses.replace(GRPO, kl="none"))
        found.append(group.train_policy(batch, shared).metrics)
    alone, diluted = found
    for name in ("policy/loss", "policy/grad_norm"):
        assert diluted[name] == pytest.approx(alone[name] / 2, rel=1e-6)
    for name in ("train/tokens", "policy/entropy", "policy/clip_fraction"):
        assert diluted[name] == alone[name]
    before = group.score_policy(rows, shared)
    assert group.train_policy(alike, shared).metrics["policy/skipped_steps"] == 1
    for key, scores in group.score_policy(rows, shared).items():
        np.testing.assert_array_equal(scores.own, before[key].own)


def contrast_rows() -> list[ContrastPair]:
    one, two, three, four, five, six = contents()
    return [
        ContrastPair(query=one, target=("red star",), target_key="red star"),
        ContrastPair(query=two, target=("red star",), target_key="red star", negatives=(five,)),
        ContrastPair(query=three, target=("a star",), target_key="star"),
        ContrastPair(query=four, target=one, target_key="a", negatives=(three, ("blue",))),
        ContrastPair(query=five, target=("green",), target_key="green"),
        ContrastPair(query=six, target=four, target_key="b"),
    ]


def plain_contrast(
    plain: Plain, rows: list[ContrastPair], temperature: torch.Tensor, dimensions: tuple
) -> torch.Tensor:
    def vector(content: Content) -> torch.Tensor:
        ids = plain.encoder.embed(content, plain.pictures).expanded
        return plain.hidden(content, ids)[-1]

    queries = [vector(row.query) for row in rows]
    targets = [vector(row.target) for row in rows]
    negatives = [[vector(content) for content in row.negatives] for row in rows]
    total = torch.zeros(())
    for size in dimensions:

        def closeness(one: torch.Tensor, other: torch.Tensor, size: int = size) -> torch.Tensor:
            return torch.cosine_similarity(one[:size], other[:size], dim=0)

        for i, row in enumerate(rows):
            others = [j for j in range(len(rows)) if j == i or rows[j].target_key != row.target_key]
            own = others.index(i)
            forward = [closeness(queries[i], targets[j]) for j in others]
            forward += [closeness(queries[i], negative) for negative in negatives[i]]
            backward = [closeness(targets[i], queries[j]) for j in others]
            for scores in (forward, backward):
                logits = torch.stack(scores) / temperature
                total = total - torch.log_softmax(logits, 0)[own]
    return total / (2 * len(rows) * len(dimensions))


@pytest.fixture(scope="module")
def plain_contrastive(tiny_folder, encoder, pictures) -> Callable:
    """Return what gives, learned temperature or not, what plain PyTorch measures in each step, by
    metric, and a vector after the last.
    """

    @functools.cache
    def measured(learned: bool) -> tuple[list[dict[str, float]], np.ndarray]:
        plain = Plain(tiny_folder, encoder, pictures)
        heat = Temperature(CONTRAST_TEMPERATURE, learned=learned)
        if learned:
            plain.train_also(heat.raw)
        dimensions = (*(DIMENSIONS if learned else ()), 128)
        found = []
        for rows in batches(contrast_rows()):
            temperature = heat(torch.zeros(1))
            loss = plain_contrast(plain, rows, temperature, dimensions)
            found.append(
                {
                    "contrast/loss": loss.item(),
                    "contrast/grad_norm": plain.step(loss),
                    "contrast/temperature": temperature.item(),
                }
            )
        ids = encoder.embed(contents()[3], pictures).expanded
        with torch.no_grad():
            vector = torch.nn.functional.normalize(plain.hidden(contents()[3], ids)[-1], dim=0)
        return found, vector.numpy()

    return measured


@pytest.mark.parametrize(
    ("zero_stage", "micro_batch_tokens", "learned"),
    [
        extended(0, 100, False),
        (1, 100, False),
        extended(1, 10_000, False),
        extended(2, 100, True),
        extended(3, 200, False),
        (3, 10_000, True),
    ],
)
@ONE_AND_TWO_RANKS
def test_contrastive_training_follows_plain_adamw(
    group, zero_stage, micro_batch_tokens, learned, plain_contrastive, tiny_folder, pictures
):
    configure(group, zero_stage=zero_stage, micro_batch_tokens=micro_batch_tokens)
    dimensions = DIMENSIONS if learned else ()
    build_contrastive(group, tiny_folder, learn_temperature=learned, dimensions=dimensions)
    shared = share_pictures(pictures)
    steps, vector = plain_contrastive(learned)
    for batch, expected in zip(batches(contrast_rows()), steps, strict=True):
        metrics = group.train_contrastive(batch, shared).metrics
        assert follows(metrics, expected), (metrics, expected)
    np.testing.assert_allclose(group.embed(contents(), shared)[3], vector, atol=1e-3)
    assert weights(group).keys() == load_file(tiny_folder / "model.safetensors").keys()


@pytest.mark.extended
def test_a_learned_temperature_resumes_bit_identically(group, tiny_folder, pictures, tmp_path):
    configure(group, zero_stage=2, micro_batch_tokens=10_000)
    shared = share_pictures(pictures)
    build_contrastive(group, tiny_folder, learn_temperature=True)
    group.train_contrastive(contrast_rows(), shared)
    group.save(tmp_path / "learner")
    straight = group.train_contrastive(contrast_rows(), shared).metrics
    build_contrastive(group, tiny_folder, learn_temperature=True)
    group.load(tmp_path / "learner")
    assert group.train_contrastive(contrast_rows(), shared).metrics == straight
    assert straight["contrast/temperature"] != pytest.approx(CONTRAST_TEMPERATURE, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [extended(0), extended(2), 3])
def test_published_weights_are_the_models_bits(group, zero_stage, tiny_folder):
    configure(group, zero_stage=zero_stage)
    build_supervised(group, tiny_folder)
    expected = load_file(tiny_folder / "model.safetensors")
    found = weights(group)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


def places(group: LearnerGroup) -> dict[str, ray.ObjectRef]:
    """Publish the group's weights and return where each tensor lies."""
    return {name: bucket.parcels[0] for bucket in buckets(group) for name in bucket.checksums}


@pytest.mark.extended
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_frozen_weights_are_put_once(group, zero_stage, tiny_folder, encoder, pictures):
    configure(group, zero_stage=zero_stage, freeze_vision=True, **ONE_BATCH)
    build_supervised(group, tiny_folder)
    first = places(group)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    for _ in range(2):
        group.train_supervised(rows, shared)
    second = places(group)
    assert second.keys() == first.keys()
    kept = {name for name, place in second.items() if place == first[name]}
    assert kept == {name for name in first if "visual." in name}


@pytest.mark.extended
def test_after_a_failed_publication_everything_is_put_anew(group, tiny_folder):
    configure(group, freeze_vision=True)
    build_supervised(group, tiny_folder)
    first = places(group)
    refusing = ray.remote(WeightStore).options(num_cpus=0).remote()  # it awaits nothing
    with pytest.raises(WeightSyncError, match=r"version 1 was not published: .*not in the weight"):
        group.publish(1, refusing)
    assert group.running
    second = places(group)
    assert second.keys() == first.keys()
    assert not set(second.values()) & set(first.values())
    kept = {name for name, place in places(group).items() if place == second[name]}
    assert kept == {name for name in first if "visual." in name}


DROPPING = dataclasses.replace(LORA, dropout=0.3)


@pytest.mark.parametrize(
    "changes",
    [
        extended({"zero_stage": 0}),
        extended({"zero_stage": 1}),
        {"zero_stage": 2},
        extended({"zero_stage": 3}),
        extended({"zero_stage": 2, "lora": DROPPING}),
        {"zero_stage": 3, "lora": DROPPING, "offload": "parameters", **ONE_BATCH},
    ],
    ids=["0", "1", "2", "3", "lora-2", "lora-offload-3"],
)
def test_resume_is_bit_identical(group, changes, tiny_folder, encoder, pictures, tmp_path):
    configure(group, **changes)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    build_supervised(group, tiny_folder)
    group.train_supervised(rows, shared)
    group.save(tmp_path / "part" / "learner")
    straight = [group.train_supervised(rows, shared).metrics for _ in range(2)]
    kept = weights(group)
    build_supervised(group, tiny_folder)
    assert group.load(tmp_path / "part" / "learner") == 1
    resumed = [group.train_supervised(rows, shared).metrics for _ in range(2)]
    assert resumed == straight
    for name, tensor in weights(group).items():
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize("zero_stage", [extended(2), 3])
def test_the_exported_folder_holds_the_model(
    group, zero_stage, tiny_folder, encoder, pictures, tmp_path
):
    configure(group, zero_stage=zero_stage)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    build_supervised(group, tiny_folder)
    group.train_supervised(rows, shared)
    expected = group.evaluate_supervised(rows, shared)["eval/loss"]
    group.export(tmp_path / "out" / "export")
    exported = tmp_path / "out" / "export"
    assert {path.name for path in exported.iterdir()} == {
        path.name for path in tiny_folder.iterdir()
    }
    other = ChatEncoder(AutoProcessor.from_pretrained(exported), MEDIA)
    plain = Plain(exported, other, pictures)
    with torch.no_grad():
        total = sum(plain.picked(plain.logits(row), row).sum() for row in rows)
    tokens = sum(len(row.response_ids) for row in rows)
    assert -total.item() / tokens == pytest.approx(expected, abs=1e-5)
    for name, tensor in weights(group).items():
        assert torch.equal(plain.net.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "zero_stage",
    [extended(0), extended(1), 2, extended(3)],
)
def test_a_step_with_a_broken_gradient_is_skipped(
    group, zero_stage, tiny_folder, encoder, pictures
):
    configure(group, zero_stage=zero_stage)
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    build_policy(group, tiny_folder)
    before = weights(group)
    broken = [dataclasses.replace(rows[0], advantage=float("nan")), *rows[1:]]
    report = group.train_policy(broken, shared)
    assert report.metrics["policy/skipped_steps"] == 1.0
    assert rows[0].key in report.broken
    assert len(report.broken) < len(rows)
    for name, tensor in weights(group).items():
        assert torch.equal(tensor, before[name])
    report = group.train_policy(rows, shared)
    assert report.broken == ()
    metrics = report.metrics
    assert metrics["policy/skipped_steps"] == 0.0
    assert np.isfinite(metrics["policy/loss"])


@pytest.mark.extended
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_bf16_trains_with_checkpointing_and_frozen_vision(
    group, zero_stage, tiny_folder, encoder, pictures
):
    configure(
        group, zero_stage=zero_stage, bf16=True, gradient_checkpointing=True, freeze_vision=True
    )
    rows, shared = samples(encoder, pictures), share_pictures(pictures)
    build_supervised(group, tiny_folder)
    before = weights(group)
    losses = [group.train_supervised(rows, shared).metrics["supervised/loss"] for _ in range(STEPS)]
    assert losses[-1] < losses[0]
    after = weights(group)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, tensor in after.items():
        if "visual." in name:
            assert torch.equal(tensor, before[name])


@pytest.mark.extended
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_adapters_train_in_bf16_with_checkpointing(
    group, zero_stage, tiny_folder, encoder, pictures
):
    settings = {"bf16": True, "gradient_checkpointing": True, "lora": LORA, **ONE_BATCH}
    optimizer = dataclasses.replace(CONFIG.optimizer, lr=3e-3)
    configure(group, zero_stage=zero_stage, optimizer=optimizer, **settings)
    build_contrastive(group, tiny_folder)
    before, shared = weights(group), share_pictures(pictures)
    losses = [
        group.train_contrastive(contrast_rows(), shared).metrics["contrast/loss"] for _ in range(3)
    ]
    assert losses[-1] < losses[0]
    after = weights(group)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any(name.endswith("attn.qkv.weight") for name in changed)
    assert any(name.endswith("self_attn.q_proj.weight") for name in changed)
