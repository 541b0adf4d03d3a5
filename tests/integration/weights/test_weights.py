"""Versions through a real store: streamed, as deltas, with adapters; failures and their mends."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import ray
import torch
from ray.exceptions import ObjectStoreFullError
from torch import nn

from cluster.weights.store import WeightStore
from data.errors import WeightSyncError
from data.weights.parcels import merge
from learner.rank.lora import UnmergedWeight
from rollout.weights.transfer import Receiver
from tests.inputs.published import layout, publish, publisher
from tests.patience import PATIENCE_S

SIZES = (300, 200, 100, 50)


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Linear(*pair) for pair in itertools.pairwise(SIZES))
    return nn.ModuleDict({"layers": nn.Sequential(*layers)}).bfloat16()


def train(model: nn.Module, seed: int) -> None:
    """Change 2 % of the elements of what is trained."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one += (torch.rand(one.shape, generator=noise) < 0.02) * 0.5
                one.view(-1)[0] += 1


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def pull(receiver: Receiver, store, version: int) -> dict:
    receiver.pull(store, version, PATIENCE_S)
    report = receiver.compare()
    assert report["mismatched"] == []
    return report


@pytest.fixture
def store(local_ray):
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(WeightStore).options(**options).remote()
    yield actor
    ray.kill(actor)


def test_frozen_tensors_travel_once(store):
    sent, model = make_model(0), make_model(1)
    sent["layers"][0].requires_grad_(False)
    receiver, own = Receiver(model, "bfloat16"), publisher()
    publish(own, 1, store, sent, first=True)
    assert pull(receiver, store, 1)["bytes"] == sum(one.nbytes for one in sent.parameters())
    for version in (2, 3, 4):
        train(sent, version)
        put = publish(own, version, store, sent).bytes
        report = pull(receiver, store, version)
        trained = sum(one.nbytes for one in sent.parameters() if one.requires_grad)
        assert (put, report["bytes"], report["delta"]) == (trained, trained, False)
        assert same(model, sent)


def test_deltas_are_small_and_lossless_and_late_engines_catch_up(store):
    sent = make_model(0)
    own = publisher(delta=True, snapshot_every=4)
    whole = sum(one.nbytes for one in sent.parameters())
    early, late = (Receiver(make_model(1), "bfloat16") for _ in range(2))
    snapshots = []
    for version in range(1, 7):
        train(sent, version)
        published = publish(own, version, store, sent, first=version == 1)
        report = pull(early, store, version)
        assert report["delta"] == published.delta
        assert report["bytes"] == published.bytes
        if published.delta:
            assert published.bytes < 0.06 * whole
        else:
            snapshots.append(version)
        assert same(early._model, sent)
        if version in (3, 6):
            assert pull(late, store, version)["bytes"] > whole  # a snapshot and deltas
            assert same(late._model, sent)
    assert snapshots == [1, 5]


def test_deltas_that_grow_are_followed_by_a_snapshot(store):
    sent, own = make_model(0), publisher(delta=True)
    found = []
    for version in range(1, 5):
        with torch.no_grad():
            for one in sent.parameters():
                one += 1
        found.append(publish(own, version, store, sent, first=version == 1).delta)
    assert found == [False, True, False, True]


def test_after_a_failed_pull_everything_is_fetched(store):
    sent, model = make_model(0), make_model(1)
    receiver, own = Receiver(model, "bfloat16"), publisher(delta=True)
    publish(own, 1, store, sent, first=True)
    pull(receiver, store, 1)
    with pytest.raises(WeightSyncError, match="version 9 is not in the weight store"):
        receiver.pull(store, 9, PATIENCE_S)
    train(sent, 2)
    publish(own, 2, store, sent)
    assert not pull(receiver, store, 2)["delta"]
    assert same(model, sent)


def test_an_engine_pulls_while_the_learner_still_gathers(store):
    sent, model = make_model(0), make_model(1)
    receiver = Receiver(model, "bfloat16")
    names = [name for name, _ in sent.named_parameters()]
    arrived = threading.Event()
    took = receiver._fetch

    def fetch(loading, bucket, wanted):
        took(loading, bucket, wanted)
        if names[0] in bucket.checksums:
            arrived.set()

    receiver._fetch = fetch

    def weights():
        for name, one in sent.named_parameters():
            yield UnmergedWeight(name, one.detach(), (), 0.0)
            if name == names[0]:
                # The next tensor is gathered only when the engine has the first.
                assert arrived.wait(PATIENCE_S)

    ray.get(store.announce.remote(1))
    pulling = threading.Thread(target=receiver.pull, args=(store, 1, PATIENCE_S))
    pulling.start()
    own = publisher()
    own.bucket_bytes = 1
    assert own.publish(1, store, layout(sent), weights()).error == ""
    pulling.join(PATIENCE_S)
    assert receiver.compare()["mismatched"] == []
    assert same(model, sent)


def test_a_learner_that_fails_half_way_ends_the_pull_with_its_reason(store):
    sent = make_model(0)
    receiver = Receiver(make_model(1), "bfloat16")
    ray.get(store.announce.remote(1))
    ray.get(store.open.remote(1, layout(sent)))
    failing = threading.Timer(0.2, lambda: ray.get(store.fail.remote(1, "rank 1 died")))
    failing.start()
    with pytest.raises(WeightSyncError, match="rank 1 died"):
        receiver.pull(store, 1, PATIENCE_S)
    publish(publisher(), 2, store, sent, first=True)
    pull(receiver, store, 2)


def test_a_full_object_store_ends_the_pull_with_what_to_do(store, monkeypatch):
    model, own = make_model(0), publisher()
    own.bucket_bytes = 1
    put, puts = ray.put, []

    def full(value):
        puts.append(value)
        if len(puts) > 2:
            raise ObjectStoreFullError("full")
        return put(value)

    monkeypatch.setattr(ray, "put", full)
    ray.get(store.announce.remote(1))
    weights = [
        UnmergedWeight(name, one.detach(), (), 0.0) for name, one in model.named_parameters()
    ]
    published = own.publish(1, store, layout(model), weights)
    assert "--object-store-memory" in published.error
    with pytest.raises(WeightSyncError, match="--object-store-memory"):
        pull(Receiver(make_model(1), "bfloat16"), store, 1)
    monkeypatch.undo()
    publish(own, 2, store, model, first=True)
    other = make_model(1)
    pull(Receiver(other, "bfloat16"), store, 2)
    assert same(model, other)


def test_a_lost_store_is_filled_again(store):
    sent, model = make_model(0), make_model(1)
    sent["layers"][0].requires_grad_(False)
    receiver, own = Receiver(model, "bfloat16"), publisher(delta=True)
    publish(own, 1, store, sent, first=True)
    pull(receiver, store, 1)
    ray.kill(store, no_restart=False)
    deadline = time.monotonic() + PATIENCE_S
    while ray.get(store.latest.remote(), timeout=PATIENCE_S) is not None:  # not gone yet
        assert time.monotonic() < deadline
        time.sleep(0.1)
    train(sent, 2)
    lost = own.publish(2, store, layout(sent), [])
    assert "version 2 is not in the weight store, which holds nothing" in lost.error
    assert not publish(own, 2, store, sent).delta
    assert not pull(receiver, store, 2)["delta"]
    assert same(model, sent)


def test_of_adapted_weights_only_the_adapters_travel_again(store):
    sent, model = make_model(0), make_model(1)
    name = "layers.0.weight"
    weight = sent.get_parameter(name).detach()
    specs = tuple(
        replace(one, adapted=one.name == name, trained=one.name == name) for one in layout(sent)
    )
    receiver, own = Receiver(model, "bfloat16"), publisher()
    noise = torch.Generator().manual_seed(0)
    for version in (1, 2, 3):
        factors = (
            torch.randn(4, weight.shape[1], generator=noise),
            torch.randn(weight.shape[0], 4, generator=noise),
        )
        first = version == 1
        weights = [
            UnmergedWeight(other, one.detach(), factors if other == name else (), 0.5)
            if first
            else UnmergedWeight(other, None, factors, 0.5)
            for other, one in sent.named_parameters()
            if first or other == name
        ]
        ray.get(store.announce.remote(version))
        assert own.publish(version, store, specs, weights).error == ""
        report = pull(receiver, store, version)
        if not first:
            assert report["bytes"] == sum(one.nbytes for one in factors)
        assert torch.equal(model.get_parameter(name), merge(weight, *factors, 0.5))
