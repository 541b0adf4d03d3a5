"""Set-up: the torchvision mend, the constraints file, the Makefile's installer and help."""

import configparser
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.setup import mend_torchvision

ROOT = Path(__file__).parents[2]
TARGETS = ["demo", "test", "test-all", "lint", "unit", "integration", "e2e", "coverage", "chaos"]
TARGETS += ["soak", "gpu", "bench", "doctor", "submit", "mlflow", "clean"]

# Stand-ins with the one property that matters: torchvision needs two schemas to import.
FAKE_TORCH = """
class Library:
    def __init__(self, name, kind): self.name = name
    def define(self, schema): declared.add(f"{self.name}::{schema.split('(')[0]}")
declared = set()
class library: pass
library.Library = Library
class version: cuda = None
"""
FAKE_TORCHVISION = """
import torch
if torch.declared != {"torchvision::nms", "torchvision::qnms"}:
    raise RuntimeError("operator torchvision::nms does not exist")
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("setup") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture
def python(venv):
    """An interpreter whose site-packages is empty, as (executable, site-packages)."""
    site_packages = next(venv.glob("lib/python*/site-packages"))
    shutil.rmtree(site_packages)
    site_packages.mkdir()
    return str(venv / "bin" / "python"), site_packages


def install(site_packages, **modules):
    for name, source in modules.items():
        (site_packages / f"{name}.py").write_text(source)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".py", ".pth"))


def run(python, code):
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)


def test_mismatched_torchvision_imports_after_the_mend_in_every_new_process(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision=FAKE_TORCHVISION)
    assert "nms does not exist" in run(executable, "import torchvision").stderr
    assert mend_torchvision.mend(executable, site_packages) == "torchvision mended for this torch"
    assert run(executable, "import torchvision").returncode == 0


def test_mend_is_idempotent(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision=FAKE_TORCHVISION)
    mend_torchvision.mend(executable, site_packages)
    before = files(site_packages)
    assert mend_torchvision.mend(executable, site_packages) == "torchvision already mended"
    assert files(site_packages) == before


def test_nothing_is_written_where_torchvision_imports(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision="")
    assert "nothing to mend" in mend_torchvision.mend(executable, site_packages)
    assert files(site_packages) == ["torch.py", "torchvision.py"]


def test_nothing_is_written_where_torchvision_is_absent(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH)
    assert "not installed" in mend_torchvision.mend(executable, site_packages)
    assert files(site_packages) == ["torch.py"]


def test_mend_leaves_when_a_proper_torchvision_arrives(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision=FAKE_TORCHVISION)
    mend_torchvision.mend(executable, site_packages)
    install(site_packages, torchvision="")
    shutil.rmtree(site_packages / "__pycache__", ignore_errors=True)
    assert "mend removed" in mend_torchvision.mend(executable, site_packages)
    assert files(site_packages) == ["torch.py", "torchvision.py"]


def test_torchvision_that_fails_for_another_reason_is_refused_and_left_alone(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision="raise OSError('no disk')")
    with pytest.raises(RuntimeError, match="no disk"):
        mend_torchvision.mend(executable, site_packages)
    assert files(site_packages) == ["torch.py", "torchvision.py"]


def test_broken_torch_is_named_before_torchvision(python):
    executable, site_packages = python
    install(site_packages, torch="raise OSError('libtorch')", torchvision="")
    with pytest.raises(RuntimeError, match=r"torch itself does not import.*libtorch"):
        mend_torchvision.mend(executable, site_packages)


def test_hook_imports_no_torch_at_start_and_none_for_a_mere_question(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision=FAKE_TORCHVISION)
    mend_torchvision.mend(executable, site_packages)
    code = (
        "import sys, importlib.util as u; u.find_spec('torchvision'); print('torch' in sys.modules)"
    )
    assert run(executable, code).stdout == "False\n"


def test_hook_steps_aside_after_the_first_import(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchvision=FAKE_TORCHVISION)
    mend_torchvision.mend(executable, site_packages)
    code = "import sys, torchvision; print([type(f).__name__ for f in sys.meta_path])"
    assert "TorchvisionFinder" not in run(executable, code).stdout


def test_probe_tells_missing_from_broken(python):
    executable, site_packages = python
    install(site_packages, torch=FAKE_TORCH, torchaudio="raise OSError('_torchaudio.so')")
    found = mend_torchvision.probe_imports(
        executable, ("torchaudio", "torchcodec"), with_hook=False
    )
    expected = {"torch": "ok", "torchaudio": "OSError: _torchaudio.so", "torchcodec": "missing"}
    assert found == {**expected, "cuda": ""}


def test_probe_of_a_process_that_dies_says_with_what_status(python):
    executable, site_packages = python
    install(site_packages, torch="import os; os._exit(7)")
    with pytest.raises(RuntimeError, match="torchaudio ended the process with status 7"):
        mend_torchvision.probe_imports(executable, ("torchaudio",), with_hook=False)


def test_nothing_is_uninstalled_beside_a_cuda_torch(python):
    executable, site_packages = python
    cuda_torch = FAKE_TORCH.replace("cuda = None", "cuda = '13.0'")
    install(site_packages, torch=cuda_torch, triton="", torchaudio="raise OSError('broken')")
    assert mend_torchvision.remove_unneeded(executable) == ()


def test_constraints_pin_every_requirement_to_one_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split("\n")
    for extra in setup["options.extras_require"].values():
        wanted += extra.split("\n")
    names = {re.split(r"[ \[<>=]", line)[0] for line in wanted if line}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = [name.lower().replace("_", "-") for name, _ in pins]
    assert names <= set(pinned)
    assert len(pinned) == len(set(pinned))
    # A local label (+cpu) would shut out the other extra.
    assert not [version for _, version in pins if "+" in version]


def test_make_alone_lists_every_target_once():
    run = subprocess.run(["make", "-C", ROOT, "-s"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in run.stdout.splitlines()] == TARGETS


@pytest.mark.parametrize(
    ("uv", "asked", "said", "installer"),
    [
        ("echo uv 1.0", (), "with uv, cpu", "uv -q pip install --python"),
        ("echo uv 1.0", ("UV=",), "with pip, cpu", "-m pip "),
        # What a version manager leaves behind for a program of another Python.
        ("exit 127", (), "with pip, cpu", "-m pip "),
    ],
)
def test_set_up_installs_with_uv_where_it_answers_else_pip(tmp_path, uv, asked, said, installer):
    (tmp_path / "uv").write_text(f"#!/bin/sh\n{uv}\n")
    (tmp_path / "uv").chmod(0o755)
    plan = subprocess.run(
        ["make", "-C", ROOT, "-n", "-B", ".venv/.ready", "ENGINE=cpu", *asked],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said in plan
    packages = [line for line in plan.splitlines() if " install" in line]
    assert packages
    for line in packages:
        assert line.count(" install ") == line.count(installer)
        # The CPU build of torch comes without what it asks for: the constraints hold for all else.
        calls = line.split(" install ")[1:]
        assert all("-c constraints.txt" in call or "--no-deps torch==" in call for call in calls)


def test_every_package_folder_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tops = [name.removesuffix("*") for name in setup["options.packages.find"]["include"].split()]
    files = [path for top in tops for path in (ROOT / top).rglob("*.py")]
    assert files
    # A folder without this file is no package: it would not be installed.
    assert [path for path in files if not (path.parent / "__init__.py").is_file()] == []


def make_demo(root, seed):
    """Run `make demo` without a stage."""
    settings = (f"SEED={seed}", "DEMO=", f"PY={sys.executable}", "-o", ".venv/.ready")
    return subprocess.run(
        ["make", "-C", ROOT, "-s", "demo", *settings],
        env={**os.environ, "EMBED_RL_ROOT": str(root), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_demo_beside_a_running_one_is_refused_and_moves_no_link(tmp_path):
    assert make_demo(tmp_path, 0).returncode == 0
    with (tmp_path / "runs/demo.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the running one's shell holds it
        second = make_demo(tmp_path, 1)
    assert second.returncode != 0
    assert "another make demo runs" in second.stdout
    assert os.readlink(tmp_path / "runs/demo") == "demo-seed0"
    assert make_demo(tmp_path, 1).returncode == 0
    assert os.readlink(tmp_path / "runs/demo") == "demo-seed1"


@pytest.mark.parametrize(("engine", "added"), [("gpu", "configs/demo/one_gpu.yaml "), ("cpu", "")])
def test_the_demo_runs_on_one_gpu_where_there_is_one(engine, added):
    plan = subprocess.run(
        ["make", "-C", ROOT, "-n", "demo", f"ENGINE={engine}", "-o", ".venv/.ready"],
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [command] = [line for line in plan.splitlines() if "-m cluster.jobs." in line]
    assert " ".join(command.split()).endswith(f".yaml {added}run.seed=0 || exit 1; \\")
