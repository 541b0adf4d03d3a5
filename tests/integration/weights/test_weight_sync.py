"""Weights from the store into a real engine: bit-equal, tied head included, failures refused."""

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText

from data.engine.arguments import engine_arguments, set_engine_environment
from data.errors import WeightSyncError
from data.types import DroppedTrajectory
from data.weights.parcels import Whole, merge
from learner.rank.lora import UnmergedWeight
from rollout.actor import RolloutActor
from rollout.vllm_engine import STALE_WAIT_S
from tests.inputs import published
from tests.inputs.published import layout
from tests.integration.conftest import (
    ENGINE,
    MEDIA,
    NAMESPACE,
    SAMPLING,
    STORE,
    Call,
    store_address,
)
from tests.integration.reference import logprobs, request
from tests.marks import extended
from tests.patience import PATIENCE_S

Buckets = list[list[Whole]]


@pytest.fixture(scope="module")
def other_model(tiny_folder: Path) -> torch.nn.Module:
    """Return the tiny model with every parameter moved, norms and biases too."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
            parameter.view(-1)[0] = -0.0
            parameter.view(-1)[1] = 1e-40
    return model


@pytest.fixture(scope="module", autouse=True)
def _first_weights_afterwards(reasoner, publish, tiny_model) -> Iterator[None]:
    """Leave the shared engine as other tests expect it."""
    yield
    assert reasoner.pull_weights(publish(tiny_model)).mismatched == ()


def _stale_wait(reasoner, seconds: float) -> None:
    """Set for how long requests wait for good weights after a pull that failed."""

    def change(_: object) -> None:
        from rollout import vllm_engine

        vllm_engine.STALE_WAIT_S = seconds

    ray.get(reasoner.actor.__ray_call__.remote(change))


@pytest.fixture
def impatient(reasoner) -> Iterator[None]:
    """Let the engine's requests fail soon after a pull that failed."""
    _stale_wait(reasoner, 0.2)
    yield
    _stale_wait(reasoner, STALE_WAIT_S)


def _largest_difference(reasoner, model, encoder, contents, pictures) -> float:
    worst = 0.0
    for content in contents.values():
        (trace,) = reasoner.generate([request(content, greedy=True)], pictures)
        prompt = encoder.encode(content, pictures)
        expected = logprobs(model, encoder, prompt, trace.response_ids)
        worst = max(worst, float(np.abs(trace.logprobs - expected).max()))
    return worst


def test_new_weights_arrive_bit_equal_and_are_served(
    reasoner, publish, other_model, tiny_model, encoder, contents, pictures
) -> None:
    # The pictures are in the engine's caches with features of the old vision tower.
    before = reasoner.generate([request(contents["image"], greedy=True)], pictures)[0]
    for model in (other_model, tiny_model, other_model):
        version = publish(model)
        report = reasoner.pull_weights(version)
        assert report.mismatched == ()
        assert report.version == version
        assert report.tensors == len(list(model.named_parameters()))
        assert report.bytes == sum(4 * p.numel() for p in model.parameters())
        assert report.seconds > 0
        assert _largest_difference(reasoner, model, encoder, contents, pictures) < 1e-3
    trace = reasoner.generate([request(contents["image"], greedy=True)], pictures)[0]
    assert (trace.min_version, trace.max_version) == (version, version)
    assert trace.response_ids.tolist() != before.response_ids.tolist()


def test_only_what_changed_travels_with_the_rest_of_its_module(
    reasoner, publish, other_model, encoder, contents, pictures
) -> None:
    assert reasoner.pull_weights(publish(other_model)).mismatched == ()
    assert reasoner.pull_weights(publish(other_model)).bytes == 0
    changed = copy.deepcopy(other_model)
    weights = dict(changed.named_parameters())
    layer = "model.language_model.layers.1"
    with torch.no_grad():
        weights[f"{layer}.self_attn.k_proj.weight"][0] += 0.5
        weights[f"{layer}.input_layernorm.weight"] *= 1.5
    report = reasoner.pull_weights(publish(changed))
    fused = [f"self_attn.{part}_proj.weight" for part in "qkv"]
    expected = [weights[f"{layer}.{leaf}"] for leaf in (*fused, "input_layernorm.weight")]
    assert report.bytes == sum(tensor.nbytes for tensor in expected)
    assert report.mismatched == ()
    assert report.tensors == len(weights)
    assert _largest_difference(reasoner, changed, encoder, contents, pictures) < 1e-3


def _name(suffix: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(suffix)


@pytest.mark.parametrize(
    "suffix",
    [
        "language_model.embed_tokens.weight",
        "layers.1.self_attn.k_proj.weight",
        "merger.linear_fc2.bias",
        *(
            extended(suffix)
            for suffix in (
                "layers.2.mlp.up_proj.weight",
                "layers.3.self_attn.q_norm.weight",
                "blocks.0.attn.qkv.weight",
                "patch_embed.proj.weight",
            )
        ),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_one_changed_bit_is_found_and_the_engine_refuses_until_a_good_pull(
    suffix, reasoner, publish, other_model, tiny_model, encoder, contents, pictures
) -> None:
    def flip(buckets: Buckets) -> None:
        (data,) = [e.bits for bucket in buckets for e in bucket if e.name.endswith(suffix)]
        data[-4] ^= 1  # the lowest bit of the last number

    assert reasoner.pull_weights(publish(tiny_model)).mismatched == ()  # so all is fetched
    report = reasoner.pull_weights(publish(other_model, flip))
    (name,) = {name for name, _ in other_model.named_parameters() if name.endswith(suffix)}
    tied = {"lm_head.weight"} if name.endswith("embed_tokens.weight") else set()
    assert set(report.mismatched) == {name} | tied
    with pytest.raises(WeightSyncError, match="differ from what the learner sent"):
        reasoner.generate([request(contents["text"])], pictures)

    assert reasoner.pull_weights(publish(other_model)).mismatched == ()
    (trace,) = reasoner.generate([request(contents["text"], greedy=True)], pictures)
    prompt = encoder.encode(contents["text"], pictures)
    expected = logprobs(other_model, encoder, prompt, trace.response_ids)
    assert np.abs(trace.logprobs - expected).max() < 1e-3


def _drop_one(buckets: Buckets) -> None:
    buckets[2].pop(3)


def _reshape_one(buckets: Buckets) -> None:
    one = buckets[2][3]
    buckets[2][3] = replace(one, shape=(*one.shape, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_drop_one, "the buckets lack 1 tensors"), (_reshape_one, "does not fit the version's list")],
)
@pytest.mark.usefixtures("impatient")
def test_a_failed_pull_leaves_an_engine_that_refuses_and_recovers(
    damage, message, reasoner, publish, other_model, tiny_model, encoder, contents, pictures
) -> None:
    assert reasoner.pull_weights(publish(tiny_model)).mismatched == ()  # so all is fetched
    with pytest.raises(WeightSyncError, match=message):
        reasoner.pull_weights(publish(other_model, damage))
    with pytest.raises(WeightSyncError, match="the engine serves nothing"):
        reasoner.generate([request(contents["text"])], pictures)
    assert reasoner.pull_weights(publish(other_model)).mismatched == ()
    assert _largest_difference(reasoner, other_model, encoder, contents, pictures) < 1e-3


def test_a_request_waits_for_good_weights_after_a_pull_that_failed(
    reasoner, publish, other_model, tiny_model, contents, pictures
) -> None:
    assert reasoner.pull_weights(publish(tiny_model)).mismatched == ()  # so all is fetched
    with pytest.raises(WeightSyncError, match="the buckets lack 1 tensors"):
        reasoner.pull_weights(publish(other_model, _drop_one))
    waiting = reasoner.actor.generate.remote([request(contents["text"])], pictures)
    assert not ray.wait([waiting], timeout=1)[0]
    good = publish(other_model)
    assert reasoner.pull_weights(good).mismatched == ()
    (trace,) = ray.get(waiting, timeout=PATIENCE_S)
    assert (trace.min_version, trace.max_version) == (good, good)


def test_an_engine_that_holds_a_version_waits_for_it_to_be_published_again(
    reasoner, store, publish, other_model
) -> None:
    held = publish(other_model)
    assert reasoner.pull_weights(held).mismatched == ()
    manifest = ray.get(store.actor.manifest.remote(held, 0.0))
    ray.get(store.actor.announce.remote(held, again=True))
    ray.get(store.actor.open.remote(held, layout(other_model)))
    pull = reasoner.actor.pull_weights.remote(held)
    assert not ray.wait([pull], timeout=1)[0]
    ray.get(store.actor.complete.remote(held, manifest))
    report = ray.get(pull, timeout=PATIENCE_S)
    assert (report.mismatched, report.bytes) == ((), 0)


def test_an_unknown_version_is_refused(reasoner, publish, other_model) -> None:
    with pytest.raises(WeightSyncError, match="version 100000 is not in the weight store"):
        reasoner.pull_weights(100000)
    assert reasoner.pull_weights(publish(other_model)).mismatched == ()


def test_a_list_without_a_parameter_is_refused(reasoner, publish, other_model) -> None:
    version = publish(other_model)
    short = [
        spec
        for spec in layout(other_model)
        if not spec.name.endswith("layers.0.mlp.up_proj.weight")
    ]
    partial = publish(other_model, specs=short)
    with pytest.raises(WeightSyncError, match=r"1 parameters .* first .*gate_up_proj.weight"):
        reasoner.pull_weights(partial)
    assert reasoner.pull_weights(version).mismatched == ()


def test_a_pull_under_running_requests_loses_none(
    reasoner, publish, other_model, tiny_model, contents, pictures
) -> None:
    assert reasoner.pull_weights(publish(tiny_model)).mismatched == ()
    version = publish(other_model)
    asked = [request(contents["image"], sibling=i, seed=i) for i in range(32)]
    running = reasoner.actor.generate.remote(asked, pictures)
    assert reasoner.pull_weights(version).mismatched == ()
    traces = ray.get(running, timeout=PATIENCE_S)
    assert {str(trace.key) for trace in traces} == {str(r.key) for r in asked}
    assert [one.detail for one in traces if isinstance(one, DroppedTrajectory)] == []
    assert all(trace.min_version <= trace.max_version <= version for trace in traces)


@pytest.mark.parametrize(("pulls", "kept"), [(1, True), (0, False)])
def test_a_prompt_that_new_weights_came_across_is_read_again(
    reasoner, contents, pictures, pulls, kept
) -> None:
    def refuse_once(actor: Any) -> None:
        engine = actor._engine
        sound = engine._llm.generate

        def generate(*_: object) -> None:
            engine._llm.generate = sound
            engine._pulls += pulls
            raise ValueError("expected a cached item")

        engine._llm.generate = generate

    ray.get(reasoner.actor.__ray_call__.remote(refuse_once))
    [trace] = reasoner.generate([request(contents["image"])], pictures)
    assert isinstance(trace, DroppedTrajectory) is not kept


def test_deltas_arrive_bit_equal_in_packed_matrices_too(
    reasoner, store, versions, other_model, encoder, contents, pictures
) -> None:
    sent, own = copy.deepcopy(other_model), published.publisher(delta=True)
    noise = torch.Generator().manual_seed(2)
    for turn in range(3):
        with torch.no_grad():
            for one in sent.parameters():
                one += (torch.rand(one.shape, generator=noise) < 0.02) * 0.1
        version = next(versions)
        put = published.publish(own, version, store.actor, sent, first=turn == 0)
        report = reasoner.pull_weights(version)
        assert report.mismatched == ()
        assert report.delta == put.delta == (turn > 0)
        assert report.bytes == put.bytes
    assert put.bytes < 0.1 * sum(one.nbytes for one in sent.parameters())
    assert _largest_difference(reasoner, sent, encoder, contents, pictures) < 1e-3


def test_adapters_alone_travel_and_are_merged_into_what_the_engine_computes_with(
    reasoner, store, versions, other_model, encoder, contents, pictures
) -> None:
    # Plain copies that a run with deltas left in the engine are of no use to one with adapters.
    version = next(versions)
    published.publish(
        published.publisher(delta=True), version, store.actor, other_model, first=True
    )
    assert reasoner.pull_weights(version).mismatched == ()
    base, own = copy.deepcopy(other_model), published.publisher()
    with torch.no_grad():
        for one in base.parameters():
            one *= 1.5
    endings = ("layers.1.self_attn.q_proj.weight", "mlp.down_proj.weight", "attn.qkv.weight")
    adapted = {name for name, _ in base.named_parameters() if name.endswith(endings)}
    noise = torch.Generator().manual_seed(3)
    specs = [
        replace(spec, adapted=spec.name in adapted, trained=spec.name in adapted)
        for spec in layout(base)
    ]
    merged = copy.deepcopy(base)
    for first in (True, False):
        weights = []
        for (name, one), to in zip(base.named_parameters(), merged.parameters(), strict=True):
            factors = ()
            if name in adapted:
                shapes = ((4, one.shape[1]), (one.shape[0], 4))
                factors = tuple(0.2 * torch.randn(shape, generator=noise) for shape in shapes)
                to.data.copy_(merge(one.detach(), *factors, 0.5))
            if first or factors:
                weights.append(UnmergedWeight(name, one.detach() if first else None, factors, 0.5))
        version = next(versions)
        ray.get(store.actor.announce.remote(version))
        put = own.publish(version, store.actor, specs, weights)
        report = reasoner.pull_weights(version)
        assert (put.error, report.mismatched) == ("", ())
        assert _largest_difference(reasoner, merged, encoder, contents, pictures) < 1e-3
    assert put.bytes == sum(factor.nbytes for one in weights for factor in one.factors)
    # The engine also takes the frozen parts of packed matrices from its node's store once more.
    assert put.bytes <= report.bytes < 0.1 * sum(one.nbytes for one in base.parameters())


@pytest.mark.extended
def test_the_ranks_of_a_tensor_parallel_engine_hold_their_parts(
    store, publish, other_model, tiny_model, tiny_folder, encoder, contents, pictures
) -> None:
    publish(tiny_model)
    options = {
        "name": "parallel",
        "model": str(tiny_folder),
        "engine": replace(ENGINE, tensor_parallel=2),
        "sampling": SAMPLING,
        "media": MEDIA,
        "store": store_address(),
    }
    with closing(Call(ray.remote(RolloutActor).options(num_cpus=0).remote(**options))) as engine:
        engine.ready()
        for model in (tiny_model, other_model):
            report = engine.pull_weights(publish(model))
            assert report.mismatched == ()
            assert _largest_difference(engine, model, encoder, contents, pictures) < 1e-3


@ray.remote(num_cpus=0, max_calls=1)
def tamper_with_held_weights(folder: str, version: int) -> dict[str, list[str]]:
    """Return what the comparison finds after each change made inside an engine, by change."""
    set_engine_environment(ENGINE)
    from vllm import LLM
    from vllm.config import set_current_vllm_config

    from rollout.weights.tensor_map import plain_parameter
    from rollout.weights.transfer import RayObjectsEngine, transfer_config

    llm = LLM(**engine_arguments(folder, ENGINE, max_pictures=1), runner="generate")
    worker = llm.llm_engine.model_executor.driver_worker.worker
    model = worker.get_model()
    engine = RayObjectsEngine(transfer_config(), worker.vllm_config, worker.device, model)
    engine.store = ray.get_actor(STORE, namespace=NAMESPACE)
    found: dict[str, list[str]] = {}

    def compare(change: str) -> None:
        engine.finish_weight_update()
        found[change] = engine.report["mismatched"]

    def repack(name: str, weight: torch.Tensor) -> None:
        """Pack another matrix; the module's plain weight, where it has one, stays as it is."""
        module = model.get_submodule(name)
        kept = module.weight
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        module.quant_method.process_weights_after_loading(module)
        module.weight = kept

    with set_current_vllm_config(worker.vllm_config), torch.no_grad():
        engine.start_weight_update()
        engine.update_weights({"version": version})
        compare("nothing")
        head = model.language_model.lm_head.weight.clone()
        repack("language_model.lm_head", head + 1)
        compare("packed head is old")
        repack("language_model.lm_head", head)
        fused = "language_model.model.layers.1.self_attn.qkv_proj"
        rows = model.config.text_config.hidden_size
        matrix = plain_parameter(model.get_submodule(fused), "weight").clone()
        changed = matrix.clone()
        changed[rows] = matrix[rows + 1]
        repack(fused, changed)
        compare("one row of keys is another")
        repack(fused, matrix)
        norm = model.language_model.model.norm.weight
        norm[:2] = norm[:2].flip(0).clone()
        compare("two numbers of a norm changed places")
    return found


@pytest.mark.extended
def test_what_the_engine_holds_is_compared_not_only_what_arrived(
    local_ray, publish, other_model, tiny_folder
) -> None:
    task = tamper_with_held_weights.remote(str(tiny_folder), publish(other_model))
    keys = "model.language_model.layers.1.self_attn.k_proj.weight"
    norm = "model.language_model.norm.weight"
    assert ray.get(task, timeout=PATIENCE_S) == {
        "nothing": [],
        "packed head is old": ["lm_head.weight"],
        "one row of keys is another": [keys],
        "two numbers of a norm changed places": [norm],
    }
