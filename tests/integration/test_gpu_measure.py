"""The program of `make gpu` on a tiny model and a CPU, on a machine without vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(["vllm", "ray", "mlflow", "omegaconf"]))
runpy.run_module("tests.gpu.measure", run_name="__main__", alter_sys=True)
"""


@pytest.mark.extended
def test_every_part_runs_and_what_is_lacking_is_said(tmp_path):
    path = tmp_path / "benchmarks.md"
    arguments = ["--device", "cpu", "--tiny", "--output", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    text = path.read_text()
    assert "Lacked: vllm: its log-probabilities are not compared" in text
    assert text.count("Lacked: ") == 1
    for task in ("policy", "supervised", "contrastive"):
        for loop in ("bare PyTorch", "learner's parts, no DeepSpeed", "learner on DeepSpeed"):
            assert f"| {task} | {loop} | " in text
    for part in ("The card", "Tiny model", "Log-probabilities and", "Parameters to the host"):
        assert f"### {part}" in text


@pytest.mark.extended
def test_a_machine_without_a_gpu_is_told_so():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.measure"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "no GPU that torch can use: nothing was measured" in done.stderr
