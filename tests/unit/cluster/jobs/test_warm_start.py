"""The warm start's batches: every row once an epoch, in an order that can be gone on with."""

from itertools import islice

import pytest

from cluster.jobs.warm_start import encode, supervised_batches
from configs.common import RunConfig
from configs.schema import WarmStartConfig
from data.types import Kind, Picture
from tests.builders import WITHOUT_AN_ITEM, write_picture
from tests.shared_pictures import DecoderHere

CONFIG = WarmStartConfig(run=RunConfig(dir="run"), model="m", batch=3)
ROWS = [(f"row{i}", ("prompt",), "response") for i in range(10)]


class Encoder:
    """Encodes every text as the same tokens."""

    def prompt_ids(self, content, sizes):
        return [1, 2]

    def response_ids(self, text):
        return [3]


def test_a_row_with_a_broken_picture_is_left_out_and_the_others_stay(tmp_path, capsys):
    good = str(write_picture(tmp_path / "good.png"))
    shown = {"good": good, "bad": str(WITHOUT_AN_ITEM)}
    rows = [(key, (Picture(uri, Kind.IMAGE), "name it"), "r") for key, uri in shown.items()]
    samples, pictures = encode(
        [*rows, ("text", ("prompt",), "r")], Encoder(), CONFIG, DecoderHere()
    )
    assert [sample.key for sample in samples] == ["good", "text"]
    assert set(pictures.sizes) == {good}
    assert f"set aside: bad: {WITHOUT_AN_ITEM}: not a readable" in capsys.readouterr().err


def keys(some):
    return [[sample.key for sample in samples] for (samples, _), _ in some]


def test_an_epoch_holds_every_row_at_most_once_and_the_next_is_in_another_order():
    drawn = [
        key
        for batch in keys(islice(supervised_batches(ROWS, Encoder(), CONFIG, DecoderHere()), 6))
        for key in batch
    ]
    first, second = drawn[:9], drawn[9:]
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


@pytest.mark.parametrize("done", [1, 3, 4])
def test_batches_go_on_where_a_checkpoint_stopped(done):
    straight = list(islice(supervised_batches(ROWS, Encoder(), CONFIG, DecoderHere()), 7))
    _, state = straight[done - 1]
    resumed = islice(supervised_batches(ROWS, Encoder(), CONFIG, DecoderHere(), state), 7 - done)
    assert keys(resumed) == keys(straight[done:])
