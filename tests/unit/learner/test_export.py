"""Weight buckets: order, limits, exact bits."""

import numpy as np
import pytest
import torch

from data.checksum import tensor_checksum
from learner.export import restore, spec_of, weight_buckets


def tensors() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        ("a", torch.randn(4, 4).bfloat16()),
        ("b", torch.randn(3)),
        ("scalar", torch.tensor(2.5)),
        ("turned", torch.randn(2, 5).T),
        ("large", torch.randn(100)),
    ]


@pytest.mark.parametrize("limit", [1, 60, 1 << 20])
def test_buckets_keep_order_and_bits_within_the_limit(limit):
    named = tensors()
    buckets = list(weight_buckets(named, limit))
    flat = [entry for bucket in buckets for entry in bucket]
    assert [name for name, *_ in flat] == [name for name, _ in named]
    for (_, dtype, shape, raw), (_, tensor) in zip(flat, named, strict=True):
        assert raw.dtype == np.uint8
        assert raw.ndim == 1
        assert torch.equal(restore(dtype, shape, raw), tensor)
    for bucket in buckets:
        assert len(bucket) == 1 or sum(raw.nbytes for *_, raw in bucket) <= limit


def test_views_share_memory_with_the_model():
    tensor = torch.zeros(4)
    [[(_, _, _, raw)]] = list(weight_buckets([("a", tensor)]))
    tensor.fill_(1.0)
    assert restore("float32", (4,), raw).tolist() == [1.0] * 4


def test_a_spec_describes_its_tensor():
    for name, tensor in tensors():
        spec = spec_of(name, tensor)
        assert (spec.name, spec.shape) == (name, tuple(tensor.shape))
        assert getattr(torch, spec.dtype) is tensor.dtype
        assert spec.checksum == tensor_checksum(tensor)
