"""Picture files by the names that rows give them: inside the root, looked at once, copies known."""

import os
from pathlib import Path

import pytest

from configs.common import MediaConfig
from data.errors import DataError
from data.media.pictures import load_picture
from data.rows.picture_paths import KnownFiles, PictureFiles
from tests.builders import write_picture
from tests.inputs.media_files import write_pdf, write_video


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
    with pytest.raises(DataError, match=r"here: .*(leaves it|not found|found the folder)"):
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
    assert files.path("two.png", where="here") == str(linked / "two.png")
    with pytest.raises(DataError, match=r"'gone\.png' not found"):
        files.path("gone.png", where="here")
    with pytest.raises(DataError, match="leaves it"):
        files.path("more/../f00d", where="here")


def test_links_are_followed_under_a_root_that_is_a_link(linked, tmp_path):
    (tmp_path / "here").symlink_to(linked)
    files = PictureFiles(tmp_path / "here", follow_links=True)
    assert files.path("one.png", where="here") == str(linked / "one.png")
    assert files.path(str(tmp_path / "here/one.png"), where="here") == f"{tmp_path}/here/one.png"


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
    assert files.names() == {"a.png": True, "lost.png": False}


@pytest.mark.parametrize("name", ["a.pdf", "a.pdf#page=1", "./a.pdf", "link.pdf#page=01"])
def test_the_only_page_of_a_pdf_has_one_address(root, name):
    path = write_pdf(root / "a.pdf")
    (root / "link.pdf").symlink_to(path)
    files = PictureFiles(root)
    assert files.path("a.pdf", where="here") == f"{path}#page=1"
    assert files.path(name, where="here") == f"{path}#page=1"


def test_a_pdf_whose_real_name_has_no_ending_is_a_pdf_by_the_name_of_its_link(root):
    write_pdf(root / "blobs/f00d")
    (root / "a.pdf").symlink_to("blobs/f00d")
    assert PictureFiles(root).path("a.pdf", where="here") == f"{root}/blobs/f00d#page=1"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.pdf", r"one of its 3 pages, found none; .*'#page=1' to '#page=3'"),
        ("a.pdf#page=0", "a page from 1 to 3, found '#page=0'"),
        ("a.pdf#page=4", "a page from 1 to 3, found '#page=4'"),
        ("a.png#page=1", r"a\.png: .*expected a PDF, found a PNG; only PDFs have pages"),
        ("b.pdf#page=1", r"file 'b\.pdf' not found"),
        ("a.pdf#page=two", r"'a\.pdf#page=two' not found .*written '#page=3'"),
        ("https://a.b/c.png", "found the address 'https://a.b/c.png'; download the file"),
        (".", r"expected a picture file, found the folder '\.'"),
        ("../c.pdf#page=1", "leaves it"),
        ("a.mp4#frame=5", "a frame from 0 to 4, found '#frame=5'"),
        ("a.png#frame=0", r"a\.png: not a readable video"),
        ("a.pdf#frame=0", r"a\.pdf: not a readable video"),
        ("a\0.pdf#page=1", "not a usable path"),
    ],
)
def test_a_place_that_a_file_does_not_have_is_refused(root, name, words):
    write_pdf(root / "a.pdf", 3)
    write_pdf(root.parent / "c.pdf", 3)
    write_video(root / "a.mp4", 5)
    write_picture(root / "a.png")
    files = PictureFiles(root)
    files.path("a.pdf#page=1", where="here")
    with pytest.raises(DataError, match=f"^here: .*{words}"):
        files.path(name, where="here")


def test_a_broken_video_is_opened_once(root):
    (root / "a.mp4").write_bytes(b"broken")
    files = PictureFiles(root)
    for _ in range(2):  # the second time it would be found to be whole
        with pytest.raises(DataError, match=r"here: .*a\.mp4: not a readable video"):
            files.frame_count(f"{root}/a.mp4", where="here")
        write_video(root / "a.mp4", 3)


def test_a_file_whose_name_looks_like_an_address_is_that_file(root):
    for name in ("a.png#page=2", "b#1.png", "c#frame=0"):
        path = write_picture(root / "picture.png", width=30 + len(name)).rename(root / name)
        uri = PictureFiles(root).path(name, where="here")
        assert uri == str(path)
        assert load_picture(uri, MediaConfig()).shape[1] == 30 + len(name)


def test_pdfs_and_videos_above_the_limit_are_not_opened(root):
    files = PictureFiles(root, max_file_bytes=10)
    (root / "a.pdf").write_bytes(b"x" * 11)
    (root / "a.mp4").write_bytes(b"y" * 11)
    for name in ("a.pdf", "a.mp4#frame=0"):
        with pytest.raises(DataError, match=r"here: .*11 bytes, more than data\.media\.max_file"):
            files.path(name, where="here")


def test_the_pictures_of_a_folder_are_in_natural_order(root):
    names = ["frame_1.png", "frame_2.JPG", "frame_10.png", "frame_10b.png", "frame_11.png"]
    for name in reversed(names):
        write_picture(root / "v/a.mp4" / name)
    for name in (".hidden.png", "._frame_1.png", "list.txt"):
        (root / "v/a.mp4" / name).touch()
    (root / "v/a.mp4/more").mkdir()
    files = PictureFiles(root)
    assert files.folder("v/a.mp4/", where="here") == [f"v/a.mp4/{name}" for name in names]
    assert files.folder("v/a.mp4/list.txt", where="here") is None
    assert files.folder("v/b", where="here") is None
    with pytest.raises(DataError, match=r"here: .*no picture in 'v'; name the folder that holds"):
        files.folder("v", where="here")


def test_a_folder_stays_inside_the_root(linked):
    write_picture(linked.parent / "out/a.png")
    with pytest.raises(DataError, match=r"here: .*leaves it"):
        PictureFiles(linked).folder("../out", where="here")
    with pytest.raises(DataError, match=r"here: .*follow_links: true"):
        PictureFiles(linked).folder("more", where="here")
    files = PictureFiles(linked, follow_links=True)
    assert files.folder("more", where="here") == ["more/a.png"]


def test_a_folder_whose_names_are_no_text_is_refused(root):
    write_picture(root / "a/b.png")
    os.rename(root / "a/b.png", os.fsencode(root / "a") + b"/\xff.png")
    with pytest.raises(DataError, match=r"here: expected names of files in UTF-8 in 'a'"):
        PictureFiles(root).folder("a", where="here")


def test_files_that_are_known_are_not_looked_at_again(root):
    write_pdf(root / "a.pdf", 3)
    known = KnownFiles({f"{root}/b.pdf": f"{root}/a.pdf"}, {f"{root}/a.pdf": 3}, lambda _: 0.0)
    (root / "a.pdf").unlink()
    files = PictureFiles(root, known=known)
    assert files.path("b.pdf#page=2", where="here") == f"{root}/a.pdf#page=2"
    assert files.path("lost.png", where="here") == f"{root}/lost.png"
    with pytest.raises(DataError, match="leaves it"):
        files.path("../a.png", where="here")
