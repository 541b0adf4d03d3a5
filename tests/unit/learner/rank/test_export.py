"""The exported folder: readable as the umask says, complete or not there."""

import os
import resource

import pytest
from torch import nn

from data.errors import CheckpointError
from learner.rank.export import export_folder


class Net(nn.Module):
    """Writes its weights as safetensors does: for their owner alone."""

    bytes = 10

    def save_pretrained(self, folder, state_dict):
        (folder / "model.safetensors").write_bytes(b"w" * self.bytes)
        (folder / "model.safetensors").chmod(0o600)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.json").chmod(0o600)
    (folder / "model.safetensors").write_text("old")
    return folder


@pytest.mark.parametrize(
    ("umask", "folders", "files"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)]
)
def test_who_may_read_an_export_is_what_the_umask_says(source, tmp_path, umask, folders, files):
    before = os.umask(umask)
    try:
        export_folder(Net(), [], source=source, folder=tmp_path / "run/export")
    finally:
        os.umask(before)
    export = tmp_path / "run/export"
    assert export.stat().st_mode & 0o777 == folders
    modes = {path.name: path.stat().st_mode & 0o777 for path in export.iterdir()}
    assert modes == {"model.safetensors": files, "tokenizer.json": files}
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_an_export_that_finds_no_room_says_so_and_leaves_the_one_before(source, tmp_path):
    export_folder(Net(), [], source=source, folder=tmp_path / "run/export")
    large = Net()
    large.bytes = 1 << 20
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"export: the model could not be .*too large"):
            export_folder(large, [], source=source, folder=tmp_path / "run/export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run/export/model.safetensors").stat().st_size == Net.bytes
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["export"]
