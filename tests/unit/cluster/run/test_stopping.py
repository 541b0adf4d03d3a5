"""Signals end a job with the exit code of a stopped one, in every part of its life."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.run.stopping import Interrupted, interruptible
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[4]
SIGNALS = [signal.SIGTERM, signal.SIGINT]


def started(tmp_path, *command, **modules):
    """Return a process that finds these modules' texts first, once it has printed `now`."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    process = subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line == "now\n":
            return process
    raise AssertionError(f"it ended with {process.wait()}")


def ended(process):
    """Return what a process printed, and its exit code."""
    printed, _ = process.communicate(timeout=PATIENCE_S)
    return printed, process.returncode


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("job", ["rl", "evaluate", "demo_data"])
def test_a_job_that_still_imports_ends_as_stopped(tmp_path, job, number):
    imported = "print('now')\nimport signal\nwhile True: signal.pause()"
    process = started(tmp_path, "-m", f"cluster.jobs.{job}", "x.yaml", argparse=imported)
    process.send_signal(number)
    printed, code = ended(process)
    assert code == 3
    assert printed.endswith("exit code 3\n")


JOB = """
    import signal, sys, threading
    from cluster.jobs.command import run_job
    from cluster.run.stopping import StopRequest
    from configs.schema import DemoDataConfig

    def starts(config):
        try:
            print("now")
            while True: signal.pause()
        finally:
            print("cleaned up")

    def hangs_at_its_end(config):
        try:
            starts(config)
        finally:
            print("now")
            while True: signal.pause()

    def trains(config):
        with StopRequest() as request:
            print("now")
            while not request.made: threading.Event().wait(0.1)
            print("step ended")
            request.obey(1, 2)

    if __name__ == "__main__":
        sys.exit(run_job(DemoDataConfig, globals()[sys.argv.pop(1)]))
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("main", "said"), [("starts", "cleaned up"), ("trains", "step ended")])
def test_a_job_that_runs_ends_as_stopped_after_what_must_be_done(tmp_path, main, said, number):
    (tmp_path / "job.yaml").write_text(f"run: {{dir: {tmp_path}/run}}\n")
    process = started(tmp_path, "-m", "held_job", main, f"{tmp_path}/job.yaml", held_job=JOB)
    process.send_signal(number)
    printed, code = ended(process)
    assert code == 3
    assert f"{number.name}: the job" in printed
    assert said in printed
    assert "Traceback" not in printed
    assert printed.endswith("exit code 3\n")


def test_a_second_signal_ends_a_job_whose_end_hangs(tmp_path):
    (tmp_path / "job.yaml").write_text(f"run: {{dir: {tmp_path}/run}}\n")
    command = ("-m", "held_job", "hangs_at_its_end", f"{tmp_path}/job.yaml")
    process = started(tmp_path, *command, held_job=JOB)
    process.send_signal(signal.SIGINT)
    assert "now\n" in process.stdout
    process.send_signal(signal.SIGTERM)
    printed, code = ended(process)
    assert code == 3
    assert printed.endswith("SIGTERM: ended at once\nexit code 3\n")


LEAVES = """
    import sys, threading
    from cluster.run import stopping
    from cluster.jobs.command import run_job
    from configs.schema import DemoDataConfig

    def main(config):
        threading.Thread(target=threading.Event().wait).start()  # which nothing ends
        print("now")
        return 0

    if __name__ == "__main__":
        stopping.take_over()
        stopping.EXIT_TIMEOUT_S = 0.1
        sys.exit(run_job(DemoDataConfig, main))
"""


def test_a_job_whose_threads_hang_leaves_with_its_code(tmp_path):
    (tmp_path / "job.yaml").write_text(f"run: {{dir: {tmp_path}/run}}\n")
    process = started(tmp_path, "-m", "held_job", f"{tmp_path}/job.yaml", held_job=LEAVES)
    assert ended(process)[1] == 0


def test_handlers_are_as_before_when_a_job_has_ended_in_a_process_of_others():
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_a_library_makes_of_a_signal_is_a_stop_all_the_same():
    def swallows():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise AttributeError("half built")

    with pytest.raises(Interrupted, match="stopped on request"), interruptible():
        swallows()


LOGS = """
    import logging, os, signal, sys, threading

    from cluster.jobs.command import run_job
    from cluster.run import stopping
    from configs.schema import DemoDataConfig

    class Stopped(logging.Handler):
        def emit(self, record):
            logging._acquireLock()  # as any call of logging may hold it where a signal comes
            os.kill(os.getpid(), signal.SIGTERM)
            print("written")
            logging._releaseLock()

    def main(config):
        log = logging.getLogger("x")
        log.addHandler(Stopped())
        try:
            log.warning("x")
            threading.Event().wait()
        finally:
            other = threading.Thread(target=logging.getLogger("y").isEnabledFor, args=[10])
            other.start()
            other.join()
            print("free")

    if __name__ == "__main__":
        stopping.take_over()
        sys.exit(run_job(DemoDataConfig, main))
"""


def test_a_signal_that_meets_logging_stops_the_job_after_it(tmp_path):
    (tmp_path / "job.yaml").write_text(f"run: {{dir: {tmp_path}/run}}\n")
    (tmp_path / "logs.py").write_text(textwrap.dedent(LOGS))
    job = subprocess.run(
        [sys.executable, "-m", "logs", f"{tmp_path}/job.yaml"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert job.returncode == 3, job.stderr
    assert job.stdout.split() == ["written", "free"]
