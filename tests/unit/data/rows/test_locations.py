"""Sets on the hub and in object stores: what is in a cache is read, what is missing is named."""

import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.common import COMMON_CHECKS, DataConfig, DataSetConfig
from data.errors import DataError, NotFetched
from data.rows import locations
from data.rows.locations import linked_folder, local_set
from data.rows.picture_paths import PictureFiles
from data.sets.fingerprints import pairs_fingerprint
from data.sets.load_sets import load_set, load_sets
from tests.builders import write_picture

REVISION, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
REPO = f"hf://datasets/TIGER-Lab/MMEB-train@{REVISION}"
ROW = '{"qry": "what?", "qry_image_path": "images/a.png", "pos_text": "a dog"}'


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A hub's cache with one revision of one data set, as huggingface_hub lays it out."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = cache / "datasets--TIGER-Lab--MMEB-train"
    picture = write_picture(tmp_path / "a.png").read_bytes()
    table = tmp_path / "part.parquet"
    pq.write_table(pa.table({"qry": ["q"], "pos_text": ["t"], "qry_image_path": [picture]}), table)
    files = {
        "rows.jsonl": ROW.encode(),
        "images/a.png": picture,
        "ChartQA/original-00000-of-00001.parquet": table.read_bytes(),
    }
    (repo / "blobs").mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        (repo / "blobs" / f"b{number}").write_bytes(content)
        link = repo / "snapshots" / REVISION / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repo / "blobs" / f"b{number}", link.parent))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    return repo


@pytest.fixture
def store(tmp_path, monkeypatch) -> Any:
    """fsspec's file system in memory, and an empty cache for its files."""
    monkeypatch.setenv("EMBED_RL_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


class Faulty(MemoryFileSystem):
    """The file system in memory under another scheme, for faults."""

    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace(f"{cls.protocol}://", "memory://"))


def hub_set(path: str = f"{REPO}/rows.jsonl", root: str = REPO, **changes: Any) -> DataSetConfig:
    return DataSetConfig(name="set", path=path, root=root, **changes)


def refusal(config: DataSetConfig, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        local_set(config, **settings)
    return str(caught.value)


def test_a_set_on_disk_stays_as_it_is(tmp_path):
    config = DataSetConfig(name="set", path="datasets/rows@2.json", root="datasets/a::b")
    assert local_set(config) == config
    assert local_set(replace(config, path="file:///data/rows.json")).path == "/data/rows.json"


def test_rows_and_pictures_of_a_pinned_revision_come_from_the_hubs_cache(hub):
    (loaded,) = load_sets([hub_set()], limits=DataConfig())
    (pair,) = loaded.pairs
    assert pair.query.uris == (str(hub / "snapshots" / REVISION / "images/a.png"),)
    assert loaded.place(0) == (f"{REPO}/rows.jsonl", 1)


def test_tables_of_the_hub_are_named_as_the_set_names_them(hub, table_cache):
    loaded = load_set(hub_set(path=f"{REPO}/ChartQA"))
    (pair,) = loaded.pairs
    assert pair.query.uris[0].endswith("#row=0&column=qry_image_path")
    assert loaded.files == (f"{REPO}/ChartQA/original-00000-of-00001.parquet",)
    (bad,) = load_set(hub_set(path=f"{REPO}/ChartQA", format="colpali")).bad_rows
    assert bad.reason.startswith(f"{REPO}/ChartQA/original-00000-of-00001.parquet row 1")


def test_only_links_into_the_hubs_blobs_are_followed_without_follow_links(hub, tmp_path):
    snapshot = hub / "snapshots" / REVISION
    (snapshot / "images/out.png").symlink_to(write_picture(tmp_path / "secret.png"))
    files = PictureFiles(snapshot, links_to=linked_folder(hub_set()))
    assert files.path("images/a.png", where="here")
    with pytest.raises(DataError, match=r"is a link to .*follow_links: true"):
        files.path("images/out.png", where="here")
    on_disk = DataSetConfig(name="set", path="", root=str(snapshot))
    assert linked_folder(on_disk) is None
    with pytest.raises(DataError, match="follow_links: true"):
        PictureFiles(snapshot).path("images/a.png", where="here")


def test_a_set_has_the_same_fingerprint_on_the_hub_and_on_disk(hub):
    there = hub_set()
    snapshot = hub / "snapshots" / REVISION
    here = hub_set(str(snapshot / "rows.jsonl"), str(snapshot), follow_links=True)
    assert pairs_fingerprint([there], [load_set(there)]) == pairs_fingerprint(
        [here], [load_set(here)]
    )


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/TIGER-Lab/MMEB-train/rows.jsonl",
        "hf://datasets/TIGER-Lab/MMEB-train@main/rows.jsonl",
        f"hf://datasets/TIGER-Lab/MMEB-train@{REVISION[:12]}/rows.jsonl",
        f"hf://datasets/MMEB-train@{REVISION}/rows.jsonl",
        f"hf://TIGER-Lab/model@{REVISION}/rows.jsonl",
        f"{REPO}/../../refs/main",
    ],
)
def test_an_address_of_the_hub_without_a_pinned_revision_is_refused(hub, address):
    said = refusal(hub_set(path=address))
    assert said.startswith("data set 'set', path: expected hf://datasets/<org>/<name>@<revision of")
    assert "/<file or folder>" in said
    assert (f"('main' is {REVISION} in the hub's cache)" in said) == (
        address.startswith(
            ("hf://datasets/TIGER-Lab/MMEB-train/", "hf://datasets/TIGER-Lab/MMEB-train@main")
        )
    )


def test_a_revision_that_is_not_in_the_cache_is_told_with_those_that_are(hub):
    said = refusal(hub_set(path=f"hf://datasets/TIGER-Lab/MMEB-train@{OTHER}/rows.jsonl"))
    assert f"(there: {REVISION})" in said
    assert f"`hf download TIGER-Lab/MMEB-train --repo-type dataset --revision {OTHER}`" in said
    with pytest.raises(NotFetched, match="no revision of this data set"):
        local_set(hub_set(path=f"hf://datasets/a/b@{OTHER}/rows.jsonl"))


def test_a_file_that_the_revision_lacks_is_told_with_its_neighbours(hub):
    said = refusal(hub_set(path=f"{REPO}/images/b.json"))
    assert "expected 'images/b.json'" in said
    assert "found only a.png in images/" in said
    said = refusal(hub_set(root=f"{REPO}/pictures"))
    assert said.startswith("data set 'set', root: expected 'pictures'")
    assert "ChartQA, images, rows.jsonl" in said
    (hub / "blobs/b0").unlink()
    assert "which is not in the hub's cache; delete" in refusal(hub_set())


def test_without_a_network_it_is_said_that_nothing_can_be_fetched(hub):
    shutil.rmtree(hub / "snapshots")
    said = refusal(hub_set(), offline=False)
    assert "the hub cannot be reached" in said
    assert "HF_HUB_OFFLINE" in said


def test_of_a_root_with_archives_only_these_are_wanted(hub):
    snapshot = hub / "snapshots" / REVISION
    with zipfile.ZipFile(hub / "blobs/zip", "w") as file:
        file.write(snapshot / "images/a.png", "new/a.png")
    (snapshot / "images_zip").mkdir()
    (snapshot / "images_zip/ChartQA.zip").symlink_to("../../../blobs/zip")
    names = ("rows.jsonl", "images_zip/ChartQA.zip", "images_zip/A-OKVQA.zip")
    facts = {"format_version": 1, "files": {n: {"size": 1, "blob_id": "0"} for n in names}}
    (hub / "trees").mkdir()
    (hub / "trees" / f"{REVISION}.json").write_text(json.dumps(facts))
    config = hub_set(unpack=["images_zip/ChartQA.zip -> images"])
    assert load_set(config, offline=False).pairs
    assert (snapshot / "images/new/a.png").is_file()
    said = refusal(replace(config, unpack=[]), offline=False)
    assert "root: revision" in said
    assert "is not whole in the hub's cache" in said
    assert load_set(replace(config, unpack=[])).pairs


def test_what_is_in_the_cache_needs_no_network_even_if_it_may_be_fetched(hub):
    assert local_set(hub_set(), offline=False) == local_set(hub_set())


def test_a_root_is_a_folder_or_on_the_hub(store):
    said = refusal(DataSetConfig(name="set", path="rows.json", root="s3://bucket/pictures"))
    assert "root: expected a folder on disk or hf://datasets/" in said
    assert "mount it as a folder, or copy it" in said


def url_set(path: str, root: Path) -> DataSetConfig:
    write_picture(root / "images/a.png")
    return DataSetConfig(name="set", path=path, root=str(root))


def test_a_file_of_an_object_store_is_fetched_once_and_then_read_offline(store, tmp_path):
    store.pipe_file("/bucket/rows.jsonl", ROW.encode())
    config = url_set("memory://bucket/rows.jsonl", tmp_path)
    assert "set data.offline: false" in refusal(config)
    (loaded,) = load_sets([config], limits=DataConfig(offline=False))
    assert loaded.files == ("memory://bucket/rows.jsonl",)
    store.rm_file("/bucket/rows.jsonl")
    assert [*load_set(config).pairs] == [*loaded.pairs]
    assert local_set(config, offline=False).path.endswith("/rows.jsonl")


def test_of_a_folder_of_an_object_store_the_parquet_files_are_fetched(store, tmp_path, table_cache):
    for number in range(3):
        with store.open(f"/bucket/rows/part-{number}.parquet", "wb") as file:
            pq.write_table(pa.table({"qry": [f"q{number}"], "pos_text": ["t"]}), file)
    store.pipe_file("/bucket/rows/readme.md", b"text")
    loaded = load_set(url_set("memory://bucket/rows", tmp_path), offline=False)
    assert [pair.query.text for pair in loaded.pairs] == ["q0", "q1", "q2"]
    assert loaded.place(2) == ("memory://bucket/rows/part-2.parquet", 1)
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 3
    assert not list((tmp_path / "cache").rglob("*.md"))


def test_a_copy_that_was_tampered_with_is_named(store, tmp_path):
    store.pipe_file("/bucket/rows.jsonl", ROW.encode())
    config = url_set("memory://bucket/rows.jsonl", tmp_path)
    copy = Path(local_set(config, offline=False).path)
    copy.unlink()
    assert f"expected one file or folder in {copy.parent}, found 0; delete" in refusal(config)


def test_a_file_that_comes_short_is_refused_and_leaves_nothing(store, tmp_path):
    class Cut(Faulty):
        protocol = "cut"

        def get_file(self, rpath: str, lpath: str, **settings: Any) -> None:
            super().get_file(rpath, lpath, **settings)
            os.truncate(lpath, 3)

    fsspec.register_implementation("cut", Cut, clobber=True)
    store.pipe_file("/bucket/rows.jsonl", ROW.encode())
    said = refusal(url_set("cut://bucket/rows.jsonl", tmp_path), offline=False)
    assert f"expected {len(ROW)} bytes of /bucket/rows.jsonl, 3 came" in said
    assert [path.suffix for path in (tmp_path / "cache/files").iterdir()] == [".lock"]


def test_what_a_killed_job_has_left_in_the_cache_is_removed(store, tmp_path):
    store.pipe_file("/bucket/rows.jsonl", ROW.encode())
    config = url_set("memory://bucket/rows.jsonl", tmp_path)
    whole = Path(local_set(config, offline=False).path).parent
    leftover = whole.with_name(f"{whole.name}.abc.part")
    whole.rename(leftover)
    assert refusal(config)
    local_set(config, offline=False)
    assert whole.is_dir()
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("memory://bucket/gone.jsonl", "memory://bucket/gone.jsonl: file not found"),
        ("http://127.0.0.1:9/rows.jsonl", "cannot be fetched into"),
        ("nowhere://bucket/rows.jsonl", "Protocol not known: nowhere"),
        ("abfs://box/rows.jsonl", "needs a package that is not installed (Install adlfs"),
    ],
)
def test_what_cannot_be_fetched_is_named_with_what_to_do(store, tmp_path, address, words):
    assert words in refusal(url_set(address, tmp_path), offline=False)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://me:hunter2@host/rows.json",
        "s3://key:hunter2@bucket/rows.json",
        "https://host/rows.json?token=hunter2",
        "simplecache::ftp://me:hunter2@host/rows.json",
    ],
)
def test_an_address_with_a_secret_is_refused_and_the_secret_is_not_repeated(
    store, tmp_path, address
):
    said = refusal(url_set(address, tmp_path), offline=False)
    assert "hunter2" not in said
    assert "for s3:// AWS_ACCESS_KEY_ID" in said
    (problem,) = COMMON_CHECKS[DataSetConfig](url_set(address, tmp_path))
    assert problem.startswith("path: set 'set' has an address with a password")
    assert "hunter2" not in problem


def test_messages_of_clients_are_repeated_without_secrets(tmp_path):
    error = OSError("403 for https://me:hunter2@host/a?sig=hunter2 with hf_hunter2")
    said = str(locations._not_fetched("memory://a", error, tmp_path, "EMBED_RL_CACHE"))
    assert "hunter2" not in said
    assert "403 for https://...@host/a" in said


def test_a_cache_that_cannot_be_written_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBED_RL_CACHE", __file__)
    said = refusal(url_set("memory://bucket/rows.jsonl", tmp_path), offline=False)
    assert "EMBED_RL_CACHE names another folder" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, Linux's full disk")
def test_a_full_disk_is_told_with_the_variable_that_names_another(store, tmp_path):
    class Full(Faulty):
        protocol = "full"

        def get_file(self, rpath: str, lpath: str, **settings: Any) -> None:
            super().get_file(rpath, "/dev/full", **settings)

    fsspec.register_implementation("full", Full, clobber=True)
    store.pipe_file("/bucket/rows.jsonl", ROW.encode() * 1000)
    said = refusal(url_set("full://bucket/rows.jsonl", tmp_path), offline=False)
    assert "no room left in" in said
    assert "set EMBED_RL_CACHE to a folder on a larger disk" in said
