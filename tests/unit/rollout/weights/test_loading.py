"""Parcels into a plain model: written, patched, merged; damage shows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import WeightSyncError
from data.weights.checksum import tensor_checksum
from data.weights.delta import Changes, as_units, find_changes
from data.weights.parcels import Adapter, Delta, adapted_checksum, base_name, merge, whole
from data.weights.types import ParamSpec
from rollout.weights.loading import Loading, ModelState


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30))
    return nn.ModuleDict({"layers": layers}).bfloat16()


def layout(model: nn.Module, **changes: bool) -> tuple[ParamSpec, ...]:
    return tuple(
        ParamSpec(name, "bfloat16", tuple(one.shape), **changes)
        for name, one in model.named_parameters()
    )


def manifest(model: nn.Module) -> dict[str, int]:
    return {name: tensor_checksum(one) for name, one in model.named_parameters()}


def begin(
    model: nn.Module, before: ModelState, *, patching: bool = False, **changes: bool
) -> Loading:
    return Loading(
        model, layout(model, **changes), dtype="bfloat16", before=before, patching=patching
    )


def load_whole(model: nn.Module, sent: nn.Module, **changes: bool) -> ModelState:
    loading = begin(model, ModelState(), **changes)
    for name, one in sent.named_parameters():
        loading.take(whole(name, one), manifest(sent)[name])
    assert loading.lacking(manifest(sent)) == []
    loading.finish(None)
    assert loading.compare() == []
    return loading.state(1)


def moved(model: nn.Module) -> nn.Module:
    """Return a copy in which a few elements of each tensor are others."""
    new = make_model(0)
    new.load_state_dict(model.state_dict())
    with torch.no_grad():
        for one in new.parameters():
            one.view(-1)[:: max(2, one.numel() // 3)] += 0.5
    return new


def deltas(old: nn.Module, new: nn.Module) -> list[Delta]:
    news = dict(new.named_parameters())
    found = []
    for name, one in old.named_parameters():
        held = one.detach().clone()
        changes, _ = find_changes(as_units(held), as_units(news[name]))
        found.append(Delta(name, tensor_checksum(one), changes))
    return found


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a.view(torch.int16), b.view(torch.int16))
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_changes_are_patched_into_the_memory_that_is_there() -> None:
    model, sent = make_model(1), make_model(2)
    state = load_whole(model, sent, patched=True)
    memory = [one.data_ptr() for one in model.parameters()]
    new = moved(sent)
    loading = begin(model, state, patching=True, patched=True)
    for parcel in deltas(sent, new):
        loading.take(parcel, manifest(new)[parcel.name])
    loading.finish(None)
    assert loading.compare() == []
    assert same_bits(model, new)
    assert memory == [one.data_ptr() for one in model.parameters()]


def test_a_snapshot_and_the_changes_after_it_load_in_one_pull() -> None:
    model, sent = make_model(1), make_model(2)
    new = moved(sent)
    loading = begin(model, ModelState(), patched=True)
    for name, one in sent.named_parameters():
        loading.take(whole(name, one), manifest(sent)[name])
    for parcel in deltas(sent, new):
        loading.take(parcel, manifest(new)[parcel.name])
    assert loading.lacking(manifest(new)) == []
    loading.finish(None)
    assert loading.compare() == []
    assert same_bits(model, new)


def test_a_second_snapshot_in_one_pull_is_compared_too() -> None:
    model, sent = make_model(1), make_model(2)
    new = moved(sent)
    loading = begin(model, ModelState())
    for version in (sent, new):
        for name, one in version.named_parameters():
            good = manifest(version)[name]
            damaged = version is new and name == "layers.0.weight"
            loading.take(whole(name, one + 1 if damaged else one), good)
    loading.finish(None)
    assert loading.compare() == ["layers.0.weight"]


@pytest.mark.parametrize("part", ["gaps", "bits"])
def test_damaged_changes_are_found(part: str) -> None:
    model, sent = make_model(1), make_model(2)
    state = load_whole(model, sent, patched=True)
    new = moved(sent)
    first, *_ = deltas(sent, new)
    damaged = getattr(first.changes, part).copy()
    damaged[0] ^= 1
    loading = begin(model, state, patching=True, patched=True)
    loading.take(
        replace(first, changes=replace(first.changes, **{part: damaged})),
        manifest(new)[first.name],
    )
    loading.finish(None)
    assert loading.compare() == [first.name]
    load_whole(model, new)
    assert same_bits(model, new)


def test_changes_of_another_version_are_refused() -> None:
    model, sent = make_model(1), make_model(2)
    state = load_whole(model, sent, patched=True)
    nothing = Changes(np.empty(0, np.uint8), np.empty(0, np.uint16))
    name = "layers.0.weight"
    loading = begin(model, state, patching=True, patched=True)
    with pytest.raises(WeightSyncError, match="changes came of another version"):
        loading.take(Delta(name, 5, nothing), 5)


def test_memory_that_changed_by_itself_is_found_under_a_patch() -> None:
    model, sent = make_model(1), make_model(2)
    state = load_whole(model, sent, patched=True)
    new = moved(sent)
    with torch.no_grad():
        model["layers"][0].weight.view(-1)[0] += 1  # an element that the patch writes
    loading = begin(model, state, patching=True, patched=True)
    for parcel in deltas(sent, new):
        loading.take(parcel, manifest(new)[parcel.name])
    loading.finish(None)
    assert loading.compare() == ["layers.0.weight"]


def test_a_flipped_bit_of_a_whole_tensor_is_found() -> None:
    model, sent = make_model(1), make_model(2)
    loading = begin(model, ModelState())
    for name, one in sent.named_parameters():
        parcel = whole(name, one.detach().clone())
        if name == "layers.1.bias":
            parcel.bits[-1] ^= 1
        loading.take(parcel, manifest(sent)[name])
    loading.finish(None)
    assert loading.compare() == ["layers.1.bias"]


def test_a_missing_tensor_is_named() -> None:
    model, sent = make_model(1), make_model(2)
    loading = begin(model, ModelState())
    for name, one in sent.named_parameters():
        if name != "layers.0.bias":
            loading.take(whole(name, one), manifest(sent)[name])
    with pytest.raises(WeightSyncError, match=r"lack 1 tensors .* first layers.0.bias"):
        loading.lacking(manifest(sent))


@pytest.mark.parametrize("damage", [False, True])
def test_adapters_are_merged_where_they_arrive(damage: bool) -> None:
    model, sent = make_model(1), make_model(2)
    name = "layers.0.weight"
    weight = sent.get_parameter(name).detach()
    down, up = torch.randn(4, 40), torch.randn(30, 4)
    sums = manifest(sent)
    sums[name] = adapted_checksum(sums[name], tensor_checksum(down), tensor_checksum(up))
    specs = tuple(replace(one, adapted=one.name == name) for one in layout(model))
    loading = Loading(model, specs, dtype="bfloat16", before=ModelState(), patching=False)
    for other, one in sent.named_parameters():
        key = base_name(other) if other == name else other
        loading.take(whole(key, one), tensor_checksum(one))
    if damage:
        up = up + 1
    loading.take(Adapter(name, whole(name, down), whole(name, up), 0.5), sums[name])
    assert loading.lacking(sums) == []
    loading.finish(None)
    assert loading.compare() == ([name] if damage else [])
    assert torch.equal(model.get_parameter(name), merge(weight, down, up, 0.5))
