"""Files decoded by a process beside the driver: pixels, reasons, and a decoder that crashes."""

from pathlib import Path

import pytest
import ray

from cluster.pictures import share_files
from configs.schema import MediaConfig
from data.errors import ClusterError
from data.media import load_picture
from tests.builders import write_picture
from tests.workers import Crashing

pytestmark = pytest.mark.usefixtures("local_ray")


def test_files_come_decoded_with_sizes_and_reasons(tmp_path: Path) -> None:
    wide = str(write_picture(tmp_path / "wide.png", 40, 30))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    shared, failed = share_files([wide, str(broken), wide], MediaConfig())
    found = ray.get(shared.ref)
    assert list(found) == [wide]
    assert (found[wide] == load_picture(wide, MediaConfig())).all()
    assert shared.sizes == {wide: (30, 40)}
    assert list(failed) == [str(broken)]


def test_no_files_are_no_pictures() -> None:
    shared, failed = share_files([], MediaConfig())
    assert (ray.get(shared.ref), shared.sizes, failed) == ({}, {}, {})


def test_a_decoder_that_crashes_leaves_the_driver_alive(tmp_path: Path) -> None:
    wide = str(write_picture(tmp_path / "wide.png"))
    with pytest.raises(ClusterError, match=r"decoder failed while decoding 1 pictures, .*wide"):
        share_files([wide], Crashing(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "xxx"
    assert share_files([wide], MediaConfig())[1] == {}
