"""Archives as they are published are unpacked once; what is broken or malicious is named."""

import gzip
import io
import multiprocessing
import os
import socket
import stat
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.common import DataConfig, DataSetConfig
from data.errors import DataError
from data.rows import archives
from data.rows.archives import unpack_archives, waiting_archives
from data.sets.load_sets import load_set, load_sets
from tests.builders import write_set
from tests.patience import PATIENCE_S


@pytest.fixture
def root(tmp_path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def picture(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tar_bytes(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                file.addfile(info)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def unpacking(root: Path, *unpack: str) -> DataSetConfig:
    return DataSetConfig(name="set", path="rows.json", root=str(root), unpack=list(unpack))


def refusal(root: Path, *unpack: str) -> str:
    with pytest.raises(DataError) as caught:
        unpack_archives(unpacking(root, *unpack))
    said = str(caught.value)
    said.encode()
    return said


def files_in(root: Path) -> set[str]:
    """Return the files under a root, without the folder for markers."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != archives.STORE}


def test_rows_find_the_pictures_of_mmeb_trains_zip_files(tmp_path):
    row = {"qry": "what?", "qry_image_path": "images/ChartQA/Train/1.png", "pos_text": "5"}
    config = write_set(tmp_path, [row], unpack=["images_zip/*.zip -> images"])
    root = Path(config.root)
    write_zip(root / "images_zip/ChartQA.zip", {"ChartQA/Train/1.png": picture()})
    write_zip(root / "images_zip/A-OKVQA.zip", {"A-OKVQA/": b"", "A-OKVQA/Train/2.JPG": b"2"})
    (loaded,) = load_sets([config], limits=DataConfig())
    assert loaded.pairs[0].query.uris == (str(root / "images/ChartQA/Train/1.png"),)
    assert (root / "images/A-OKVQA/Train/2.JPG").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("ending", "mode"),
    [("tar.gz", "w:gz"), ("tar", "w"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")],
)
def test_rows_find_the_frames_of_llava_hounds_chunks(tmp_path, ending, mode):
    row = {
        "qry": {"conversations": [{"from": "human", "value": "what?"}], "video": "llavahound/v_1"},
        "pos": {"conversations": [{"from": "gpt", "value": "a ball"}]},
    }
    entry = f"train_300k/chunk_*.{ending} -> llavahound"
    config = write_set(tmp_path, [row], format="llavahound", unpack=[entry])
    for number in range(2):
        frames = {f"./v_{number}/c01_000{n}.jpeg": picture(10 * n + number) for n in (1, 2)}
        content = tar_bytes(frames, mode)
        write(Path(config.root) / f"train_300k/chunk_{number}.{ending}", content)
    (pair,) = load_set(config).pairs
    assert [Path(uri).name for uri in pair.query.uris] == ["c01_0001.jpeg", "c01_0002.jpeg"]


@pytest.mark.parametrize("dash", ["-", "."])
def test_parts_of_mmeb_v2_are_read_as_one_archive(root, dash):
    content = tar_bytes({f"video_qa/NExTQA/7/{n:04d}.jpeg": os.urandom(999) for n in range(9)})
    size = -(-len(content) // 5)
    for number in range(5):
        part = content[number * size : (number + 1) * size]
        write(root / f"frames/video_qa.tar.gz{dash}{number:02d}", part)
    entry = f"frames/video_qa.tar.gz{dash}* -> frames"
    unpack_archives(unpacking(root, entry))
    assert len(list((root / "frames/video_qa/NExTQA/7").iterdir())) == 9
    assert not waiting_archives(unpacking(root, entry))
    (root / f"frames/video_qa.tar.gz{dash}02").unlink()
    assert "number 2 is missing; download it" in refusal(root, entry)


def test_an_archive_is_unpacked_again_only_if_it_has_changed(root):
    path = write_zip(root / "a.zip", {"a.png": b"1"})
    config = unpacking(root, "a.zip")
    unpack_archives(config)
    (root / "a.png").write_bytes(b"mine")
    unpack_archives(config)
    assert (root / "a.png").read_bytes() == b"mine"
    write_zip(path, {"a.png": b"22"})
    assert [archive.name for archive in waiting_archives(config)] == ["a.zip"]
    unpack_archives(config)
    assert (root / "a.png").read_bytes() == b"22"


def test_an_archive_may_be_deleted_once_it_is_unpacked(root):
    write_zip(root / "zips/[a].zip", {"a.png": b"1"})
    config = unpacking(root, "zips/*.zip -> images/new")
    unpack_archives(config)
    (root / "zips/[a].zip").unlink()
    unpack_archives(config)
    assert files_in(root) == {"images/new/a.png"}
    assert "found none" in refusal(root, "zips/*.zip")


def test_sets_may_unpack_one_archive_into_two_folders(root):
    write_zip(root / "a.zip", {"a.png": b"1"})
    entries = ("a.zip", "a.zip -> b", "a.zip -> b/c")
    unpack_archives(unpacking(root, *entries))
    assert files_in(root) == {"a.zip", "a.png", "b/a.png", "b/c/a.png"}
    assert not waiting_archives(unpacking(root, *entries))


def test_only_media_are_unpacked(root):
    names = ["a.PNG", "b.mp4", "c.pdf", "d.py", "e.json", "__MACOSX/._a.png", ".f.png", "png"]
    write_zip(root / "a.zip", dict.fromkeys(names, b"1"))
    write(root / "b.tar", tar_bytes(dict.fromkeys([*names, "g.webp"], b"1" * 999), "w"))
    unpack_archives(unpacking(root, "a.zip", "b.tar -> b"))
    media = {"a.PNG", "b.mp4", "c.pdf"}
    assert files_in(root) == {
        "a.zip",
        "b.tar",
        *media,
        *(f"b/{name}" for name in media),
        "b/g.webp",
    }
    write_zip(root / "text.zip", {"a.txt": b"1"})
    assert "found no file whose name ends like one" in refusal(root, "text.zip")


def test_a_killed_unpacking_begins_again_and_leaves_no_half_file(root):
    write(root / "a.tar", tar_bytes({f"{n}.png": bytes([n]) * 99999 for n in range(9)}, "w"))
    whole = (root / "a.tar").read_bytes()
    (root / "a.tar").write_bytes(whole[: len(whole) // 2])
    assert "a.tar" in refusal(root, "a.tar")
    for path in root.glob("*.png"):
        assert path.stat().st_size == 99999
    leftover = write(root / archives.STORE / "gone-1.part", b"half")
    (root / "a.tar").write_bytes(whole)
    unpack_archives(unpacking(root, "a.tar"))
    assert len(list(root.glob("*.png"))) == 9
    assert not leftover.exists()


def unpack_and_tell(config: DataSetConfig, ready: Any, told: Any) -> None:
    ready.wait()
    unpack_archives(config)
    told.put(sorted(files_in(Path(config.root))))


def test_two_jobs_at_once_unpack_one_archive_without_harm(root):
    write_zip(root / "a.zip", {f"{n}.png": bytes([n]) * 9999 for n in range(200)})
    config = unpacking(root, "a.zip")
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(2), spawn.Queue()
    jobs = [spawn.Process(target=unpack_and_tell, args=(config, ready, told)) for _ in range(2)]
    for job in jobs:
        job.start()
    assert told.get(timeout=PATIENCE_S) == told.get(timeout=PATIENCE_S)
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    assert len(files_in(root)) == 201
    assert not list((root / archives.STORE).glob("*.part"))


def test_a_job_waits_for_another_that_unpacks(root):
    write_zip(root / "a.zip", {"a.png": b"1"})
    (root / archives.STORE).mkdir()
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(2), spawn.Queue()
    job = spawn.Process(target=unpack_and_tell, args=(unpacking(root, "a.zip"), ready, told))
    with archives.locked(root / archives.STORE / "lock") as alone:
        assert alone
        job.start()
        ready.wait()
        unpacked = files_in(root)
        write_zip(root / "a.zip", {"b.png": b"1"})
    assert unpacked == {"a.zip"}
    assert told.get(timeout=PATIENCE_S) == ["a.zip", "b.png"]
    job.join()


def link(kind: bytes = tarfile.SYMTYPE, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"/tmp/a.png": b"1"}, "'/tmp/a.png' leads out of the folder"),
        ({"../a.png": b"1"}, "'../a.png' leads out of the folder"),
        ({"b/../../a.png": b"1"}, "leads out of the folder"),
        ({"../notes.txt": b"1"}, "leads out of the folder"),
        ({"a.png": link()}, "'a.png' is a link, a device"),
        ({"b": link(target="..")}, "'b' is a link, a device"),
        ({"a.png": link(tarfile.LNKTYPE)}, "'a.png' is a link, a device"),
        ({"a.png": link(tarfile.CHRTYPE)}, "'a.png' is a link, a device"),
        ({"a.png": link(tarfile.FIFOTYPE)}, "'a.png' is a link, a device"),
        ({"a.png": link(tarfile.GNUTYPE_SPARSE)}, "expected"),
    ],
)
def test_members_of_tar_that_lead_out_or_are_no_plain_files_are_refused(root, members, words):
    write(root / "a.tar.gz", tar_bytes({"good.png": b"1", **members}))
    said = refusal(root, "a.tar.gz -> images")
    assert said.startswith(f"{root}/a.tar.gz: ")
    assert words in said
    assert files_in(root) <= {"a.tar.gz", "images/good.png"}
    assert files_in(root.parent) == {f"root/{name}" for name in files_in(root)} | {
        name for name in files_in(root.parent) if archives.STORE in name
    }


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("/tmp/a.png", 0o644, "leads out of the folder"),
        ("../a.png", 0o644, "leads out of the folder"),
        ("a.png", stat.S_IFLNK | 0o777, "'a.png' is a link, a device"),
        ("a.png", stat.S_IFBLK | 0o777, "'a.png' is a link, a device"),
    ],
)
def test_members_of_zip_that_lead_out_or_are_no_plain_files_are_refused(root, name, mode, words):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(root / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    assert words in refusal(root, "a.zip -> images")
    assert files_in(root) == {"a.zip"}


def test_a_zip_member_with_a_password_is_named(root):
    content = bytearray(write_zip(root / "a.zip", {"a.png": b"1"}).read_bytes())
    for start, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + place] |= 1
    (root / "a.zip").write_bytes(content)
    assert "member 'a.png' needs a password" in refusal(root, "a.zip")


def test_a_folder_that_is_a_link_out_of_the_root_takes_no_files(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "images").symlink_to(tmp_path / "elsewhere")
    write_zip(root / "a.zip", {"a.png": b"1"})
    write(root / "a.tar", tar_bytes({"a.png": b"1"}, "w"))
    for entry in ("a.zip -> images", "a.tar -> images", "a.zip -> images/new"):
        assert "is a link that leads out of the root" in refusal(root, entry)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_that_unpacks_to_far_too_much_is_refused(root, name, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1 << 16)
    members = {f"{n}.png": bytes(1 << 16) for n in range(40)}
    if name == "a.zip":
        with zipfile.ZipFile(root / name, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in members.items():
                file.writestr(member, content)
    elif name == "a.tar.gz":
        write(root / name, tar_bytes(members))
    else:
        write(root / name, tar_bytes(members, "w"))
        unpack_archives(unpacking(root, name))  # as large as it is in the archive
        return
    assert "unpacks to more than" in refusal(root, name)


def test_a_huge_header_is_not_read_into_memory(root):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(2 << 20)
    write(root / "a.tar.gz", gzip.compress(content))
    assert f"expected at most {1 << 20} bytes that describe a member" in refusal(root, "a.tar.gz")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_that_is_cut_off_anywhere_is_told_to_be_downloaded_again(root, name):
    members = {f"{n}.png": os.urandom(700) for n in range(3)}
    write_zip(root / "a.zip", members)
    write(root / "a.tar", tar_bytes(members, "w"))
    write(root / "a.tar.gz", tar_bytes(members))
    whole = (root / name).read_bytes()
    # Zeros fill the end of a tar archive; without them it counts as whole.
    end = 3 * 3 * 512 + 512 if name == "a.tar" else len(whole)
    for size in [*range(600, end, 97), end - 1, *range(512, end, 512)]:
        (root / name).write_bytes(whole[:size])
        said = refusal(root, name)
        assert "download it again" in said, size
    (root / name).write_bytes(whole)
    unpack_archives(unpacking(root, name))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, Linux's full disk")
def test_a_full_disk_is_named_with_what_to_do(root):
    write_zip(root / "a.zip", {"a.png": b"1"})
    (root / archives.STORE).mkdir()
    part = root / archives.STORE / f"{socket.gethostname()}-{os.getpid()}.part"
    part.symlink_to("/dev/full")
    said = refusal(root, "a.zip")
    assert f"no room left in {root} to unpack it" in said
    assert "move the set to a larger disk" in said
    assert not part.is_symlink()
    unpack_archives(unpacking(root, "a.zip"))


def test_what_is_no_archive_is_named_by_its_kind(root):
    write(root / "a.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "found a git-lfs pointer; run `git lfs pull`" in refusal(root, "*.zip")
    write(root / "a.zip", b"<!DOCTYPE html><html>")
    assert "found an HTML page" in refusal(root, "*.zip")
    write(root / "a.tar.gz", gzip.compress(b"no tar archive" * 99))
    assert "expected a whole zip or tar archive" in refusal(root, "*.tar.gz")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("/data/*.zip", "expected '<pattern>' or '<pattern> -> <folder>'"),
        ("../*.zip", "with paths inside the root"),
        ("a.zip -> ..", "with paths inside the root"),
        ("a.zip -> /data", "with paths inside the root"),
        ("", "expected a pattern such as"),
        ("zips/*.zip", "expected archives as 'zips/*.zip'"),
    ],
)
def test_an_entry_that_leads_out_or_names_nothing_is_refused(root, entry, words):
    said = refusal(root, entry)
    assert said.startswith("data set 'set', unpack: ")
    assert words in said


def test_a_root_that_cannot_be_written_is_named(root):
    write_zip(root / "a.zip", {"a.png": b"1"})
    (root / archives.STORE / "lock").mkdir(parents=True)
    assert f"the folder {root} cannot be written" in refusal(root, "a.zip")


def test_a_member_in_the_place_of_a_folder_is_named(root):
    (root / "a.png").mkdir()
    write_zip(root / "a.zip", {"a.png": b"1"})
    assert "a.zip: cannot be unpacked" in refusal(root, "a.zip")
    write_zip(root / "a.zip", {"b.png": b"1", "b.png/c.png": b"1"})
    assert "a.zip: cannot be unpacked" in refusal(root, "a.zip")


def test_zip_sizes_that_lie_do_not_get_past_the_limit(root, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1 << 16)
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(1 << 22))
    content = (root / "a.zip").read_bytes()
    (root / "a.zip").write_bytes(content.replace(struct.pack("<L", 1 << 22), struct.pack("<L", 9)))
    assert refusal(root, "a.zip")
    assert not (root / "a.png").exists()


def test_a_job_that_is_killed_leaves_only_whole_files(root):
    members = {f"{n}.png": bytes([n % 251]) * 50_000 for n in range(2000)}
    write(root / "a.tar", tar_bytes(members, "w"))
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(2), spawn.Queue()
    job = spawn.Process(target=unpack_and_tell, args=(unpacking(root, "a.tar"), ready, told))
    job.start()
    ready.wait()
    while job.is_alive() and not (root / "0.png").exists():
        time.sleep(0.01)
    job.kill()
    job.join()
    assert {path.stat().st_size for path in root.glob("*.png")} == {50_000}
    unpack_archives(unpacking(root, "a.tar"))
    assert {path.name for path in root.glob("*.png")} == members.keys()
    assert not list((root / archives.STORE).glob("*.part"))
