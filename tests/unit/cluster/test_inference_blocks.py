"""Blocks of requests with their pictures, decoded in this process."""

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from cluster.inference import Blocks, in_blocks
from configs.common import MediaConfig
from data.types import EmbedRequest, Kind, Picture
from tests.builders import write_picture
from tests.shared_pictures import DecoderHere


def request(folder: Path, number: int) -> EmbedRequest:
    """Return the request to embed one picture, which is broken where ``number`` is 3."""
    path = write_picture(folder / f"{number}.png")
    if number == 3:
        path.write_bytes(b"broken")
    return EmbedRequest(key=f"{number}", content=(Picture(str(path), Kind.IMAGE), "text"))


def test_requests_are_made_while_they_are_read_and_broken_pictures_are_told_once(tmp_path):
    console, made = Console(file=io.StringIO(), width=300), []
    blocks = Blocks(DecoderHere(), MediaConfig(), 2, console)

    def requests() -> Iterator[EmbedRequest]:
        for number in range(9):
            made.append(number)
            yield request(tmp_path, number)

    for _ in range(2):
        made.clear()
        seen = 0
        for block, pictures in blocks.of("vectors", requests(), 9):
            seen += len(block)
            # The block in hand, and one that is decoded meanwhile.
            assert len(made) <= seen + 2
            uris = {r.content[0].uri for r in block}
            assert pictures.sizes.keys() == {uri for uri in uris if not uri.endswith("3.png")}
        assert seen == 9
    assert list(blocks.failed) == [f"{tmp_path}/3.png"]
    assert console.file.getvalue().count("left out:") == 1


def test_a_block_that_holds_too_much_is_halved_and_one_picture_that_does_is_left_out(tmp_path):
    sizes = [(10, 10)] * 4 + [(40, 30)] + [(10, 10)] * 3
    requests = [
        EmbedRequest(
            key=f"{number}",
            content=(Picture(str(write_picture(tmp_path / f"{number}.png", *size)), Kind.IMAGE),),
        )
        for number, size in enumerate(sizes)
    ]
    console = Console(file=io.StringIO(), width=400)
    limits = MediaConfig(max_step_bytes=3 * 300)  # three of the small ones
    blocks = Blocks(DecoderHere(), limits, 8, console)
    seen = list(blocks.of("vectors", requests, len(requests)))
    assert [[request.key for request in block] for block, _ in seen] == [
        *(["0", "1"], ["2", "3"], ["4"], ["5"], ["6", "7"])
    ]
    assert [len(pictures.sizes) for _, pictures in seen] == [2, 2, 0, 1, 2]
    assert list(blocks.failed) == [f"{tmp_path}/4.png"]
    assert "max_step_bytes=900" in console.file.getvalue()


def test_the_last_block_may_be_smaller():
    assert list(in_blocks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_blocks([], 2)) == []
