"""Picture files by the names that rows give them: inside the root, looked at once, copies known."""

import shutil
from pathlib import Path

import pytest

import data.sets.files
from data.errors import DataError
from data.sets.files import PictureFiles
from tests.builders import write_picture


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_a_path_inside_the_root_is_resolved(root):
    path = write_picture(root / "a" / "b.png")
    files = PictureFiles(root)
    for name in ("a/b.png", "./a/b.png", "a/../a/b.png", str(path)):
        assert files.path(name, where="here") == str(path)


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "{outside}", "."])
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_path_that_leaves_the_root_is_refused(root, name, follow_links):
    outside = write_picture(root.parent / "out.png")
    files = PictureFiles(root, follow_links=follow_links)
    with pytest.raises(DataError, match=r"here: .*(leaves it|not found)"):
        files.path(name.format(outside=outside), where="here")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "loop/a.png", ""])
def test_a_path_that_is_none_is_refused_by_name(root, name):
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(DataError, match="here: "):
        PictureFiles(root).path(name, where="here")


@pytest.fixture
def linked(tmp_path, root):
    """Links in the root as hub caches make them: to a file, to a folder, two to one file."""
    blobs = tmp_path / "blobs"
    write_picture(blobs / "f00d.png").rename(blobs / "f00d")
    write_picture(blobs / "more" / "a.png", width=50)
    (root / "one.png").symlink_to(blobs / "f00d")
    (root / "two.png").symlink_to("../blobs/f00d")
    (root / "more").symlink_to(blobs / "more")
    (root / "gone.png").symlink_to(blobs / "gone")
    return root


@pytest.mark.parametrize("name", ["one.png", "more/a.png"])
def test_a_link_out_of_the_root_is_told_from_a_path_out_of_it(linked, name):
    with pytest.raises(DataError, match=r"is a link to .*blobs.*local_dir.*follow_links: true"):
        PictureFiles(linked).path(name, where="here")


def test_links_are_followed_where_the_set_says_so_and_keep_their_place_in_the_root(linked):
    files = PictureFiles(linked, follow_links=True)
    assert files.path("one.png", where="here") == str(linked / "one.png")
    assert files.path("more/a.png", where="here") == str(linked / "more/a.png")
    assert files.path("two.png", where="here") == str(linked / "one.png")
    assert not files.copies
    with pytest.raises(DataError, match=r"'gone\.png' not found"):
        files.path("gone.png", where="here")
    with pytest.raises(DataError, match="leaves it"):
        files.path("more/../f00d", where="here")


def test_links_are_followed_under_a_root_that_is_a_link(linked, tmp_path):
    (tmp_path / "here").symlink_to(linked)
    files = PictureFiles(tmp_path / "here", follow_links=True)
    assert files.path("one.png", where="here") == str(linked / "one.png")
    assert files.path(str(tmp_path / "here/one.png"), where="here") == str(linked / "one.png")


def test_each_name_is_looked_at_once(root, monkeypatch):
    write_picture(root / "a.png")
    looked = []
    resolve = Path.resolve
    files = PictureFiles(root)
    monkeypatch.setattr(Path, "resolve", lambda self: looked.append(self) or resolve(self))
    for _ in range(100):
        files.path("a.png", where="here")
        with pytest.raises(DataError, match="not found"):
            files.path("lost.png", where="here")
    assert looked == [root / "a.png", root / "lost.png"]
    assert files.found() == (1, 2)


def test_files_of_equal_bytes_are_the_first_of_them(root):
    first = write_picture(root / "a.png")
    write_picture(root / "other.png", width=50)
    for name in ("b.png", "c.png"):
        shutil.copy(first, root / name)
    files = PictureFiles(root)
    found = [files.path(name, where="x") for name in ("a.png", "other.png", "b.png", "c.png")]
    assert found == [str(first), str(root / "other.png"), str(first), str(first)]
    assert files.copies == {str(root / name): str(first) for name in ("b.png", "c.png")}


def test_files_of_one_size_and_other_bytes_are_different(root):
    names = ["a.png", "b.png", "c.png"]
    for index, name in enumerate(names):
        (root / name).write_bytes(bytes([index] * 100))
    files = PictureFiles(root)
    assert [files.path(name, where="x") for name in names] == [str(root / one) for one in names]
    assert not files.copies


def test_no_more_than_a_budget_of_bytes_is_read_to_find_copies(root, monkeypatch):
    monkeypatch.setattr(data.sets.files, "COMPARED_BYTES", 250)
    for index in range(4):
        (root / str(index)).write_bytes(b"x" * 100)
    files = PictureFiles(root)
    found = [files.path(str(index), where="x") for index in range(4)]
    assert found == [str(root / name) for name in ("0", "0", "2", "3")]
    assert (files.compared, files.uncompared) == (200, 2)
