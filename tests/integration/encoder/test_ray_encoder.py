"""An Encoder with engines on Ray gives the same vectors."""

from pathlib import Path

import numpy as np
import pytest

from cluster.ray_encoder import encoder_on_ray
from data.errors import DataError
from data.types import Side
from tests.integration.encoder.asked import CONFIG, cases, pool_traces, pool_vectors

pytestmark = pytest.mark.extended


def test_vectors_and_traces_are_those_of_the_jobs(
    tiny_folder: Path, tmp_path: Path, rollout_pool, reward_pool
) -> None:
    asked = cases(tmp_path).values()
    items, given = [case.item for case in asked], [case.given for case in asked]
    with encoder_on_ray(tiny_folder, tiny_folder, CONFIG) as encoder:
        vectors, traces = encoder.encode_query(given, return_traces=True)
        assert traces == pool_traces(rollout_pool, items, Side.QUERY)
        np.testing.assert_allclose(vectors, pool_vectors(reward_pool, items, traces), atol=1e-5)
        bare = pool_vectors(reward_pool, items, [""] * len(items))
        np.testing.assert_allclose(encoder.encode(given, trace="none"), bare, atol=1e-5)
        with pytest.raises(DataError, match=r"input 1: .*not a readable picture"):
            encoder.encode(["red", {"image": b"none"}])
        assert encoder.healthy()
    assert not encoder.healthy()
