"""What `--help` of a job prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs.command import run_job
from cluster.run.settings_help import JOBS, format_settings, print_help, settings_of
from configs.load import to_flat
from configs.schema import ReportConfig, RLConfig

ROOT = Path(__file__).resolve().parents[4]
EVERY_JOB = pytest.mark.parametrize("job", JOBS)


def never(config):
    raise AssertionError("the job must not start")


@EVERY_JOB
def test_every_setting_is_listed_and_says_what_it_means(job):
    settings = list(settings_of(JOBS[job]))
    keys = [setting.key for setting in settings]
    assert to_flat(JOBS[job]()).keys() <= set(keys)
    assert len(keys) == len(set(keys))
    assert [setting.key for setting in settings if not setting.meaning.strip()] == []


@EVERY_JOB
def test_the_help_of_a_job_shows_its_settings_and_ends_with_zero(job, capsys):
    with pytest.raises(SystemExit) as end:
        run_job(JOBS[job], never, argv=["a.yaml", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for key in to_flat(JOBS[job]()):
        assert re.search(rf"^{re.escape(key)}: .*\n +\S", shown, re.MULTILINE), key
    assert f"usage: python -m cluster.jobs.{job}" in shown
    assert "--dry-run" in shown


def test_the_help_that_needs_no_job_is_the_same(capsys):
    with pytest.raises(SystemExit) as end:
        print_help("cluster.jobs.report")
    assert end.value.code == 0
    early = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_job(ReportConfig, never, argv=["-h"])
    assert capsys.readouterr().out == early


def test_modules_without_settings_keep_their_own_help(capsys):
    print_help("cluster.jobs.doctor")
    assert capsys.readouterr().out == ""


def test_jobs_are_listed_with_the_settings_that_they_run_on():
    started = {}
    for path in (ROOT / "cluster/jobs").glob("*.py"):
        if match := re.search(r"sys\.exit\(run_job\((\w+)", path.read_text()):
            started[path.stem] = match[1]
    assert started == {job: cls.__name__ for job, cls in JOBS.items()}


def test_types_choices_defaults_and_presets_are_shown():
    shown = format_settings(RLConfig, width=100)
    for line in (
        "run.dir: str, required",
        "run.seed: int = 0",
        "learner.bf16: bool = true",
        "learner.zero_stage: 0 | 1 | 2 | 3 = 2",
        'learner.lora.modules: list of str = ["*_proj"]',
        "data.train: list of sections = []",
        "data.train[].kind: image | page = image",
        'reward.preset: "" | paper | code = ""',
        "learner.*",
    ):
        assert f"\n{line}\n" in shown
    assert "at once: reward.preset, grpo.preset." in shown
    assert "Presets" not in format_settings(ReportConfig, width=100)


@EVERY_JOB
def test_lines_fit_the_width(job):
    assert max(map(len, format_settings(JOBS[job], width=60).splitlines())) <= 60


def test_help_is_printed_before_anything_that_takes_seconds_is_loaded():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cluster.jobs.rl", "a.yaml", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\ngrpo.clip_low: float = 0.2\n" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "configs.schema" in loaded
    assert loaded & {"ray", "torch", "transformers", "mlflow", "numpy", "omegaconf"} == set()
