"""The budget of `make test`: what counts, and that a run beyond it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.meter import CpuMeter, cost_lines

ROOT = Path(__file__).parents[2]
BURNING = """
import time
while time.process_time() < 0.5: pass
print("done", flush=True)
input()
"""


def test_processes_count_also_when_they_have_ended():
    meter = CpuMeter()
    before = meter.seconds()
    command = [sys.executable, "-S", "-c", BURNING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        meter.read()
        child.communicate(b"\n")
    meter.read()
    assert meter.seconds() - before > 0.4  # the system counts in hundredths


def test_costs_are_summed_by_folder_and_the_rest_is_named():
    lines = cost_lines({"a/b/test_x.py::one": 60.0, "a/b/test_y.py::two[/]": 30.0}, total_s=120.0)
    assert "   1.50  a/b" in lines
    assert "   0.50  collecting, starting, stopping" in lines
    assert lines[-2:] == ["   1.00  a/b/test_x.py::one", "   0.50  a/b/test_y.py::two[/]"]


@pytest.mark.parametrize(("limit", "exit_code"), [(0, 1), (1000, 0)])
def test_a_run_fails_that_costs_more_than_its_limit(limit, exit_code):
    test = "tests/unit/test_bench_record.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "--core-minutes", str(limit), test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == exit_code
    assert (f"expected at most {limit} core-minutes" in done.stdout) == bool(exit_code)
    assert "failed" not in done.stdout
