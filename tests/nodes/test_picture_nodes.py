"""On a cluster of several nodes each decodes its share; needs a process without a Ray."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.pictures import LEAST_GROUPS, Decoder, SharedPictures
from configs.common import MediaConfig
from data.errors import DataError
from data.media.pictures import load_pictures
from tests.builders import write_picture
from tests.nodes.conftest import STORE_BYTES
from tests.patience import PATIENCE_S
from tests.workers import CrashesAt, ReadableAt, gathered, node_of

ROOT = Path(__file__).resolve().parents[2]
COUNT = 3 * LEAST_GROUPS
HIGH, WIDE = 300, 400
"""Large enough that a share is no part of the answer to a call, but an object in a node's store."""


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Any]:
    """Give the cluster a second node that the first one knows of; return what removes it."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(address=cluster.address, runtime_env={"env_vars": variables})
    place = NodeAffinitySchedulingStrategy(node.node_id, soft=True)
    probe = ray.remote(node_of).options(num_cpus=0, scheduling_strategy=place)
    deadline = time.monotonic() + PATIENCE_S
    while ray.get(probe.remote(), timeout=PATIENCE_S) != node.node_id:
        assert time.monotonic() < deadline
    yield node
    ray.shutdown()


@pytest.fixture
def decoder(second: Any) -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return files of different pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    return [
        str(write_picture(folder / f"{index:02d}.png", WIDE + index, HIGH))
        for index in range(COUNT)
    ]


def check_pixels(shared: SharedPictures, uris: list[str]) -> None:
    """Fail where what a call gets is not what the files hold."""
    reader = ray.remote(gathered).options(num_cpus=0)
    pictures = ray.get(reader.remote(*shared.refs), timeout=PATIENCE_S)
    expected, _ = load_pictures(uris, MediaConfig())
    assert pictures.keys() == shared.sizes.keys() == expected.keys()
    for uri, pixels in expected.items():
        assert (pictures[uri] == pixels).all()
        assert shared.sizes[uri] == pixels.shape[:2]


def test_each_node_decodes_its_share_and_what_is_lost_with_one_is_decoded_again(
    cluster: Cluster, second: Any, decoder: Decoder, uris: list[str]
) -> None:
    shared, failed = decoder.share(uris, MediaConfig())
    assert failed == {}
    places = [place["node_ids"] for place in get_object_locations(list(shared.refs)).values()]
    here = ray.get_runtime_context().get_node_id()
    assert sorted(places) == sorted([[here], [second.node_id]])
    cluster.remove_node(second)
    check_pixels(shared, uris)
    again, _ = decoder.share(uris, MediaConfig())
    check_pixels(again, uris)


def test_few_pictures_are_decoded_beside_the_driver(decoder: Decoder, uris: list[str]) -> None:
    shared, _ = decoder.share(uris[: 2 * LEAST_GROUPS - 1], MediaConfig())
    assert len(shared.refs) == 1


def test_what_another_node_lacks_is_decoded_beside_the_driver(
    decoder: Decoder, uris: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = ReadableAt(ray.get_runtime_context().get_node_id())
    gone = str(tmp_path / "gone.png")
    shared, failed = decoder.share([*uris, gone], MediaConfig(max_file_bytes=limit))
    check_pixels(shared, uris)
    assert failed == {gone: f"{gone}: picture not found"}
    assert "are the folders in data on all nodes?" in caplog.text


def test_a_file_that_ends_every_process_is_named(
    decoder: Decoder, uris: list[str], tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly.png"
    deadly.write_bytes(b"of a size of its own")
    limit = CrashesAt(deadly.stat().st_size, tmp_path / "log")
    shared, failed = decoder.share([*uris, str(deadly)], MediaConfig(max_file_bytes=limit))
    check_pixels(shared, uris)
    assert list(failed) == [str(deadly)]


def test_too_many_bytes_in_all_are_refused(decoder: Decoder, uris: list[str]) -> None:
    shared, _ = decoder.share(uris, MediaConfig())
    total = sum(3 * height * width for height, width in shared.sizes.values())
    decoder.share(uris, MediaConfig(max_step_bytes=total))
    with pytest.raises(DataError, match=f"found {COUNT} of {total} bytes"):
        decoder.share(uris, MediaConfig(max_step_bytes=total - 1))
