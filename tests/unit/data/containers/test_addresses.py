"""Addresses of pictures: the file, and the place in it."""

import pytest

from data.containers.addresses import Address, file_of, parse_address


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/d/a.png", Address(path="/d/a.png")),
        ("/d/a#1.png", Address(path="/d/a#1.png")),
        ("/d/r.pdf#page=3", Address(path="/d/r.pdf", page=3)),
        ("/d/c.mp4#frame=0", Address(path="/d/c.mp4", frame=0)),
        ("/d/a#page=1#frame=2", Address(path="/d/a#page=1", frame=2)),
        ("/d/p.parquet#row=7&column=image", Address(path="/d/p.parquet", row=7, column="image")),
        ("/d/r.pdf#page=three", Address(path="/d/r.pdf#page=three")),
        ("/d/r.pdf#page=\u0663", Address(path="/d/r.pdf#page=\u0663")),
        ("/d/r.pdf#page=" + "1" * 5000, Address(path="/d/r.pdf#page=" + "1" * 5000)),
        ("/d/r\0.pdf#page=3", Address(path="/d/r\0.pdf", page=3)),
        ("/d/r.pdf#page=3\n", Address(path="/d/r.pdf#page=3\n")),
    ],
)
def test_a_uri_names_a_file_and_a_place_in_it(uri, address):
    assert parse_address(uri) == address
    assert file_of(uri) == address.path


def test_a_file_that_exists_by_the_whole_name_has_no_place_in_it(tmp_path):
    path = tmp_path / "a.pdf#page=3"
    assert parse_address(str(path)).page == 3
    path.touch()
    assert parse_address(str(path)) == Address(path=str(path))
