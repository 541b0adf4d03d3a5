"""Picture files that count as one: the first that the sets name, whatever holds the pictures."""

import os
import shutil

import pytest

import data.sets.picture_copies
from data.rows.picture_paths import PictureFiles
from data.sets.picture_copies import Copies, find_copies
from data.sets.scan import picture_table
from tests.builders import write_picture
from tests.inputs.media_files import write_pdf


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def compare(root, *sets, follow_links=False) -> Copies:
    """Return the copies among sets of names, paths without the root."""
    tables = []
    for names in sets:
        files = PictureFiles(root, follow_links=follow_links)
        uris = [files.path(name, where="x") for name in names]
        tables.append(picture_table(dict.fromkeys(uris, True), files))
    copies = find_copies(tables)

    def short(paths):
        return {os.path.relpath(a, root): os.path.relpath(b, root) for a, b in paths.items()}

    return Copies(
        first=short(copies.first),
        copies=tuple(map(short, copies.copies)),
        uncompared=copies.uncompared,
    )


def test_files_of_equal_bytes_are_the_first_of_them(root):
    first = write_picture(root / "a.png")
    write_picture(root / "other.png", width=50)
    for name in ("b.png", "c.png", "d.png"):
        shutil.copy(first, root / name)
    found = compare(root, ["b.png", "other.png", "a.png", "c.png"], ["c.png", "d.png"])
    assert found.first == {"a.png": "b.png", "c.png": "b.png", "d.png": "b.png"}
    # Each copy is told of with the set that names it first.
    assert found.copies == ({"a.png": "b.png", "c.png": "b.png"}, {"d.png": "b.png"})


def test_files_of_one_size_and_other_bytes_are_different(root):
    for index in range(3):
        (root / str(index)).write_bytes(bytes([index] * 100))
    assert compare(root, ["0", "1", "2"]).first == {}


def test_no_more_than_a_budget_of_bytes_is_read(root, monkeypatch):
    monkeypatch.setattr(data.sets.picture_copies, "COMPARED_BYTES", 250)
    for index in range(4):
        (root / str(index)).write_bytes(b"x" * 100)
    found = compare(root, ["0", "1"], ["2", "3"])
    assert found.first == {"1": "0"}
    assert found.uncompared == (0, 2)


def test_links_to_one_file_are_that_file_and_no_copies(tmp_path, root):
    blob = write_picture(tmp_path / "blobs/f00d.png")
    for name in ("one.png", "two.png"):
        (root / name).symlink_to(blob)
    shutil.copy(blob, root / "three.png")
    found = compare(root, ["one.png", "three.png", "two.png"], follow_links=True)
    assert found.first == {"three.png": "one.png", "two.png": "one.png"}
    assert found.copies == ({"three.png": "one.png"},)


def test_pages_of_equal_files_are_those_of_the_first(root):
    write_pdf(root / "a.pdf", 3)
    shutil.copy(root / "a.pdf", root / "b.pdf")
    names = ["a.pdf#page=2", "b.pdf#page=2", "b.pdf#page=3"]
    files = PictureFiles(root)
    uris = [files.path(name, where="x") for name in names]
    table = picture_table(dict.fromkeys(uris, True), files)
    first = find_copies([table]).first
    assert first == {f"{root}/b.pdf": f"{root}/a.pdf"}
    pages = [f"{root}/a.pdf#page={page}" for page in (2, 2, 3)]
    assert list(table.renamed(first).uris) == pages


def test_nothing_is_compared_where_there_is_nothing(root):
    assert compare(root) == Copies(first={}, copies=(), uncompared=())
    assert compare(root, [], []) == Copies(first={}, copies=({}, {}), uncompared=(0, 0))
