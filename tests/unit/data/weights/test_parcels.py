"""Parcels hold exact bits and share memory."""

import numpy as np
import pytest
import torch

from data.weights.parcels import adapted_checksum, merge, whole

TENSORS = {
    "bfloat16": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "scalar": torch.tensor(2.5),
    "turned": torch.arange(10.0).view(2, 5).T,
    "empty": torch.empty(0, 3),
    "bool": torch.tensor([True, False]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_parcel_holds_its_tensors_bits(name):
    parcel = whole(name, TENSORS[name])
    assert (parcel.name, parcel.bits.dtype, parcel.bits.ndim) == (name, np.uint8, 1)
    assert parcel.nbytes == TENSORS[name].nbytes
    assert parcel.tensor().dtype is TENSORS[name].dtype
    assert torch.equal(parcel.tensor(), TENSORS[name])


def test_a_parcel_shares_memory_with_the_model():
    tensor = torch.zeros(4)
    parcel = whole("a", tensor)
    tensor.fill_(1.0)
    assert parcel.tensor().tolist() == [1.0] * 4


def test_read_only_bits_are_read_without_a_warning(recwarn):
    parcel = whole("a", torch.ones(4))
    parcel.bits.flags.writeable = False
    assert parcel.tensor().tolist() == [1.0] * 4
    assert not recwarn.list


def test_a_merge_by_hand_rounds_once():
    weight = torch.tensor([[1.0, 2.0]]).bfloat16()
    down, up = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0039]])
    expected = (weight.float() + 2 * 0.0039).bfloat16()
    assert torch.equal(merge(weight, down, up, 2.0), expected)


def test_the_parts_of_an_adapter_cannot_change_places():
    assert len({adapted_checksum(*sums) for sums in ((1, 2, 3), (1, 3, 2), (2, 1, 3))}) == 3
