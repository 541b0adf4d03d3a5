"""The job `check_data` on Ray Data: what comes back, and files that end the process."""

from pathlib import Path

import pytest

from cluster.jobs.check_data import decode_all
from configs.common import MediaConfig
from data.checks.set_figures import media_groups
from data.media.perceptual_hash import HASH_BYTES
from data.types import Item, Kind
from tests.builders import make_pair, write_picture
from tests.inputs.media_files import write_video
from tests.workers import CrashesAt

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_file_that_ends_its_process_is_the_only_one_that_is_broken(tmp_path: Path) -> None:
    good = [str(write_picture(tmp_path / f"{width}.png", width, 30)) for width in (40, 50)]
    frames = tuple(f"{write_video(tmp_path / 'a.mp4')}#frame={frame}" for frame in (0, 9))
    deadly = tmp_path / "deadly.png"
    deadly.write_bytes(b"of a size of its own")
    items = [Item(text="", kind=Kind.IMAGE, uris=(uri,)) for uri in (*good, str(deadly))]
    items.append(Item(text="", kind=Kind.VIDEO, uris=frames))
    pairs = [make_pair(str(number), query=item) for number, item in enumerate(items)]
    limit = CrashesAt(deadly.stat().st_size, tmp_path / "log")
    media = decode_all(media_groups(pairs, 8), MediaConfig(max_file_bytes=limit))
    assert media.keys() == {*good, *frames, str(deadly)}
    broken = {uri: medium.reason for uri, medium in media.items() if medium.reason}
    assert broken.keys() == {str(deadly)}
    assert "found that the process which decodes it ended each time" in broken[str(deadly)]
    assert [(media[uri].height, media[uri].width) for uri in good] == [(30, 40), (30, 50)]
    assert {(media[uri].height, media[uri].width) for uri in frames} == {(48, 64)}
    assert len({medium.digest for medium in media.values()}) == 5
    assert {len(media[uri].perceptual_hash) for uri in good} == {2 * HASH_BYTES}
    assert {media[uri].perceptual_hash for uri in frames} == {""}  # each is of one colour
