"""Mutated archives: they are unpacked inside their folder, or refused by an error of ours.

For longer: raise `FILES`.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from configs.common import DataSetConfig
from data.errors import DataError
from data.rows.archives import MEDIA, STORE, unpack_archives
from tests.fuzz_pictures import mutations

FILES = 600
MEMBERS = {
    "a.png": b"one" * 99,
    "b/c.mp4": bytes(range(256)) * 4,
    "b/" + "long/" * 30 + "d.jpg": b"",
    "notes.txt": b"text",
}


def tar_seeds() -> dict[str, bytes]:
    """Return whole tar archives by name, one for each form of headers."""
    files = {}
    forms = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for name, form in forms.items():
        buffer = io.BytesIO()
        facts = {"comment": "facts", "path": "a.png"} if name == "pax" else None
        with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=facts) as file:
            for member, content in MEMBERS.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        files[f"{name}.tar"] = buffer.getvalue()
    return files


def zip_seeds() -> dict[str, bytes]:
    """Return whole zip archives by name, one for each usual compression."""
    files = {}
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            for member, content in MEMBERS.items():
                file.writestr(member, content)
        files[f"{name}.zip"] = buffer.getvalue()
    return files


def mended(content: bytes) -> bytes:
    """Return a tar archive whose headers have right checksums, so that they are read."""
    blocks = bytearray(content)
    for place in range(0, len(blocks) - 511, 512):
        if blocks[place + 257 : place + 262] == b"ustar":
            blocks[place + 148 : place + 156] = b" " * 8
            total = sum(blocks[place : place + 512])
            blocks[place + 148 : place + 156] = b"%06o\0 " % total
    return bytes(blocks)


def damaged() -> Iterator[tuple[str, bytes]]:
    """Yield damaged archives: zip, tar, tar with right checksums, and these in gzip."""
    rng = np.random.default_rng(0)
    packed = {f"{name}.gz": gzip.compress(whole) for name, whole in tar_seeds().items()}
    yield from islice(mutations(zip_seeds(), rng), FILES)
    yield from islice(mutations(packed, rng), FILES // 4)
    for name, content in islice(mutations(tar_seeds(), rng), FILES):
        kind = rng.integers(4)
        tar = content if kind == 0 else mended(content)
        yield (f"{name}.gz", gzip.compress(tar)) if kind == 3 else (name, tar)


def test_whole_archives_are_unpacked(tmp_path):
    for name, content in (tar_seeds() | zip_seeds()).items():
        root = tmp_path / name
        root.mkdir()
        (root / name).write_bytes(content)
        unpack_archives(DataSetConfig(name="set", path="", root=str(root), unpack=["*.*"]))
        assert {str(path.relative_to(root)) for path in files(root)} >= {"a.png", name}


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not path.is_dir()]


def test_mutated_archives_are_unpacked_or_refused_by_an_error_of_ours(tmp_path):
    refused = 0
    for index, (name, content) in enumerate(damaged()):
        root = tmp_path / str(index) / "root"
        root.mkdir(parents=True)
        archive = root / name
        archive.write_bytes(content)
        config = DataSetConfig(name="set", path="", root=str(root), unpack=["*.*"])
        try:
            unpack_archives(config)
        except DataError as error:
            refused += 1
            said = str(error)
            said.encode()
            assert said.startswith(f"{archive}: ")
            assert len(said) < 2000
        assert files(tmp_path / str(index)) == files(root)
        assert not list((root / STORE).rglob("*.part"))
        for path in files(root):
            assert not path.is_symlink()
            assert path == archive or STORE in path.parts or path.suffix.lower() in MEDIA
    assert refused > FILES
