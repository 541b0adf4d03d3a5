"""A rank's checkpoints: refused where the disk has no room for them, or where they are damaged."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from configs.learner import LearnerConfig
from data.errors import CheckpointError, DamagedCheckpoint
from learner.rank import deepspeed_engine
from tests.patience import PATIENCE_S

WIDTH = 512
STATE = "state/mp_rank_00_model_states.pt"
OPTIMIZER = "state/zero_pp_rank_0_mp_rank_00_optim_states.pt"


class Head(nn.Module):
    """A model of one layer, and a loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows):
        return self.net(rows).square().mean()


@pytest.fixture(scope="module")
def group():
    """Enter a process group of this process alone."""
    before = dict(os.environ)
    rendezvous = deepspeed_engine.open_rendezvous("127.0.0.1", 1, PATIENCE_S)
    deepspeed_engine.join_group(
        rendezvous, rank=0, ranks=1, address="127.0.0.1", port=rendezvous.port, timeout_s=PATIENCE_S
    )
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def trained(group):
    """Return an engine that has taken a step, so that its optimiser has a state."""
    made = deepspeed_engine.TrainEngine(
        Head(), LearnerConfig(zero_stage=2, bf16=False), steps=9, seed=0
    )
    made.backward(made.forward(torch.ones(1, WIDTH, device=deepspeed_engine.device())), last=True)
    made.step()
    return made


@pytest.fixture
def small_disk(tmp_path):
    """Return the folder of a file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    try:
        subprocess.run(mount, capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"mounting a small file system takes root's rights and `mount`: {error}")
    yield folder
    subprocess.run(("umount", "--lazy", folder), check=True)


def test_a_disk_without_room_is_seen_before_a_byte_is_written(trained, small_disk):
    with pytest.raises(CheckpointError, match=r"expected 4 MB of free disk .*, found 1 MB"):
        trained.save(small_disk / "learner")
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_the_room_that_is_asked_for_is_what_a_checkpoint_takes(trained, tmp_path):
    trained.save(tmp_path / "learner")
    written = sum(path.stat().st_size for path in (tmp_path / "learner").rglob("*.pt"))
    assert trained.checkpoint_bytes() == pytest.approx(written, rel=0.05)


def test_a_write_that_the_system_refuses_ends_the_save_with_the_reason(trained, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WIDTH * WIDTH, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"rank 0 could not write it .* MB are free"):
            trained.save(tmp_path / "learner")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "learner").exists()


def test_a_folder_that_cannot_be_made_ends_the_save_with_the_reason(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not write it .*Not a directory.* MB are"):
        trained.save(tmp_path / "file/learner")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    """Change one bit in the middle of the largest tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [STATE, OPTIMIZER])
@pytest.mark.parametrize("damage", [cut, zero, flip])
def test_a_damaged_file_is_named(trained, tmp_path, name, damage):
    trained.save(tmp_path / "learner")
    damage(tmp_path / "learner" / name)
    with pytest.raises(DamagedCheckpoint, match=rf"{Path(name).name}: damaged"):
        trained.load(tmp_path / "learner")


@pytest.mark.parametrize("name", [STATE, OPTIMIZER])
def test_a_damaged_file_is_named_before_anything_is_converted(trained, tmp_path, name):
    trained.save(tmp_path / "learner")
    flip(tmp_path / "learner" / name)
    with pytest.raises(DamagedCheckpoint, match=rf"{Path(name).name}: damaged"):
        deepspeed_engine.convert_to_universal(tmp_path / "learner", workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["learner"]


@pytest.mark.parametrize("content", [None, "{"])
def test_a_checkpoint_without_its_shape_is_damaged(trained, tmp_path, content):
    trained.save(tmp_path / "learner")
    shape = tmp_path / "learner/learner.json"
    shape.unlink() if content is None else shape.write_text(content)
    with pytest.raises(DamagedCheckpoint, match="expected a complete checkpoint"):
        trained.load(tmp_path / "learner")


def test_an_undamaged_one_is_loaded(trained, tmp_path):
    trained.save(tmp_path / "learner")
    trained.load(tmp_path / "learner")
    assert trained.steps == 1
