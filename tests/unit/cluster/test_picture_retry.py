"""Pictures that cannot be read for a while, and those that cannot be read at all."""

import pytest

from cluster.picture_retry import FEW, PAUSES_S, read_patiently
from data.errors import NothingToTrainOn

URIS = [f"/data/{index}.png" for index in range(2 * FEW)]


def reader(*failures):
    """Return a function that fails for as many files as each call's number says."""
    left = list(failures)

    def read(uris):
        bad = left.pop(0) if len(left) > 1 else left[0]
        return f"read, {bad} failed", dict.fromkeys(uris[:bad], "stale file handle")

    return read


def test_pictures_that_come_back_are_read_after_pauses():
    pauses = []
    found, failed = read_patiently(URIS, reader(2 * FEW, FEW, 1), pauses.append)
    assert (found, len(failed)) == ("read, 1 failed", 1)
    assert pauses == list(PAUSES_S[:2])


def test_pictures_that_stay_away_end_the_run_with_the_reasons_and_what_to_do():
    pauses = []
    with pytest.raises(NothingToTrainOn) as caught:
        read_patiently(URIS, reader(FEW), pauses.append)
    assert pauses == list(PAUSES_S)
    assert f"{FEW} of {2 * FEW} pictures could not be read (stale file handle;" in str(caught.value)
    assert "folders in data" in str(caught.value)


@pytest.mark.parametrize(("files", "bad"), [(2 * FEW, FEW - 1), (FEW - 1, FEW - 1), (0, 0)])
def test_broken_pictures_that_are_few_are_not_waited_for(files, bad):
    pauses = []
    assert len(read_patiently(URIS[:files], reader(bad), pauses.append)[1]) == bad
    assert pauses == []
