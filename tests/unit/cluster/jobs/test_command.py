"""How a job starts: settings, dry run, exit codes."""

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import fsspec
import pytest

from cluster.jobs.command import Repeats, run_job
from cluster.placement import Role
from cluster.run.stopping import Interrupted
from configs.errors import ConfigError
from configs.schema import EmbedderConfig, EvaluateConfig, ReportConfig, WarmStartConfig
from data.errors import (
    ActorLost,
    CheckpointError,
    DataError,
    DivergedError,
    NothingToTrainOn,
    ParityError,
    StopRequested,
    WeightSyncError,
)
from data.types import Kind
from tests.builders import TRACES, write_beir, write_picture
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[4]
TEXT = """
run: {dir: runs/x}
model: models/m
data: {train: [{name: birds, path: birds.json, root: pictures}]}
"""
ROW = {"qry": "what?", "qry_image_path": "a.png", "pos_text": "a finch"}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBED_RL_ROOT", raising=False)
    (tmp_path / "job.yaml").write_text(TEXT)
    return "job.yaml"


def never(config):
    raise AssertionError("the job must not start")


def test_a_job_gets_its_settings_and_gives_its_exit_code(path):
    seen = []

    def main(config):
        seen.append(config)
        return 5

    assert run_job(WarmStartConfig, main, argv=[path, "steps=3", "run.seed=4"]) == 5
    assert (seen[0].steps, seen[0].run.seed) == (3, 4)


def test_a_job_runs_in_the_project_root(path, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("EMBED_RL_ROOT", str(home))

    def main(config):
        return int(Path.cwd() == home)

    assert run_job(WarmStartConfig, main, argv=[path]) == 1
    assert Path(os.getcwd()) == home


def test_wrong_settings_end_with_two_before_the_job_starts(path, capsys):
    assert run_job(WarmStartConfig, never, argv=[path, "steps=0", "stepz=1"]) == 2
    error = capsys.readouterr().err
    assert "steps: expected more than 0" in error
    assert "stepz" in error
    assert error.endswith("\nexit code 2\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (DataError("why"), 2),
        (ActorLost("why"), 1),
        (NothingToTrainOn("why"), 4),
        (WeightSyncError("why"), 5),
        (ParityError("why"), 6),
        (CheckpointError("why"), 1),
        (DivergedError("why"), 1),
        (StopRequested("why"), 3),
        (Interrupted("why"), 3),
    ],
)
def test_expected_failures_end_with_a_message_and_their_code(path, capsys, error, code):
    def main(config):
        raise error

    assert run_job(WarmStartConfig, main, argv=[path]) == code
    assert capsys.readouterr().err.endswith(f"why\nexit code {code}\n")


def test_a_failure_of_rays_ends_with_what_to_do_and_without_a_traceback(path, capsys):
    from ray.exceptions import ObjectStoreFullError

    def main(config):
        raise ObjectStoreFullError("4 GB asked")

    assert run_job(WarmStartConfig, main, argv=[path]) == 1
    error = capsys.readouterr().err
    assert "give it more memory (ray start --object-store-memory=BYTES" in error
    assert error.endswith("exit code 1\n")


def test_defects_are_not_hidden(path):
    def main(config):
        raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        run_job(WarmStartConfig, main, argv=[path])


def test_a_warning_that_repeats_is_shown_ever_more_rarely_with_the_count(capsys):
    console = logging.StreamHandler(sys.stdout)
    console.addFilter(Repeats())
    log = logging.getLogger("a_test_of_repeats")
    log.addHandler(console)
    for step in range(9):
        log.warning("%s is slow", "node a")
        log.warning("step %d: %s", step, "alarm", extra={"same": "alarm"})
    log.warning("node b is slow")
    for _ in range(3):
        log.error("a defect")
    lines = capsys.readouterr().out.splitlines()
    assert [lines.pop() for _ in range(3)] == ["a defect"] * 3
    told = [f" ({count} such warnings so far)" for count in (2, 4, 8)]
    assert lines[::2] == [f"node a is slow{more}" for more in ("", *told)] + ["node b is slow"]
    alarms = zip((0, 1, 3, 7), ("", *told), strict=True)
    assert lines[1::2] == [f"step {step}: alarm{more}" for step, more in alarms]


@pytest.fixture
def birds(path, tmp_path):
    """Write what the job needs: rows, a picture, a model's files; return a writer of rows."""
    write_picture(tmp_path / "pictures" / "a.png")
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "models/m").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models/m" / name).write_text("{}")

    def write(rows):
        (tmp_path / "birds.json").write_text(json.dumps(rows))

    write([{**ROW, "pos_cot": TRACES[Kind.TEXT]}] * 3)
    return write


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_dry_run_prints_settings_plan_and_data_wherever_it_is_asked_for(
    path, birds, capsys, place
):
    argv = [path, "steps=3", "run.seed=4"]
    argv.insert(place, "--dry-run")

    def roles(config):
        return [Role("learner", 2, 1.5, 0.5), Role("rollout", 1, 1, 0)]

    assert run_job(WarmStartConfig, never, roles=roles, argv=argv) == 0
    out = capsys.readouterr().out
    assert "steps: 3" in out
    assert "seed: 4" in out
    assert "learner: 2 x (1.5 CPU, 0.5 GPU)" in out
    assert "in all: 4 CPU, 1 GPU" in out
    assert (
        "birds: birds.json (mmeb, image, weight 1): 3 rows; of the first 3: 3 pairs, 0 rows set "
        "aside, 100% of 1 pictures found"
    ) in out


def test_a_dry_run_reads_only_the_first_rows_and_counts_all(path, birds, capsys):
    birds([{"qry": f"{i}", "pos_text": "t"} for i in range(1500)])
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == 0
    assert "1500 rows; of the first 1000: 1000 pairs, 0 rows set aside, no pictures" in (
        capsys.readouterr().out
    )


def test_a_dry_run_tells_what_the_pictures_of_a_set_are(path, birds, capsys):
    talk = {"conversations": [{"from": "human", "value": "q"}]}
    trace = TRACES[Kind.TEXT]
    birds([{"qry": {**talk, "video": ["a.png"]}, "pos": talk, "pos_cot": trace}])
    argv = [
        path,
        "--dry-run",
        "data.train=[{name: birds, path: birds.json, root: pictures, format: llavahound}]",
    ]
    assert run_job(WarmStartConfig, never, argv=argv) == 0
    assert "birds.json (llavahound, video, weight 1)" in capsys.readouterr().out


def test_a_dry_run_tells_how_large_a_set_of_queries_and_corpus_is(
    path, birds, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "tables"))
    corpus = {"corpus-id": [1, 2, 3], "text": ["a finch", "a wren", "an owl"]}
    qrels = {"query-id": [1, 1], "corpus-id": [1, 2], "score": [1, 2]}
    write_beir(tmp_path, {"query-id": [1, 2], "query": ["who?", "what?"]}, corpus, qrels)
    (tmp_path / "job.yaml").write_text("{run: {dir: runs/e}, reward: {model: models/m}}")
    sets = "data.eval=[{name: b, path: beir, root: pictures, format: beir}]"
    assert run_job(EvaluateConfig, never, argv=[path, "--dry-run", sets]) == 0
    assert (
        "  in all 2 queries, 3 corpus entries, 2 qrels above 0 for 1 queries, 2.00 right entries a "
        "query\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "printed", "error"),
    [
        ([], "0 rows", "birds.json holds no row"),
        (5, "1 rows set aside", "expected an object, found int"),
        ([ROW] * 3 + [{**ROW, "qry_image_path": "b.png"}], "50% of 2 pictures found", "1 of 4"),
        ([{**ROW, "query_image": "a.png"}], "1 pairs", "near 'qry_image_path'"),
    ],
)
def test_a_dry_run_ends_with_two_where_the_data_would_stop_the_job(
    path, birds, capsys, rows, printed, error
):
    birds(rows)
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == 2
    seen = capsys.readouterr()
    assert printed in seen.out
    assert error in seen.err
    assert seen.err.endswith("exit code 2\n")


@pytest.mark.parametrize(
    ("rows", "traced", "code"), [(3, 0, 2), (3, 1, 0), (1500, 0, 0)], ids=["bare", "traced", "many"]
)
def test_a_dry_run_says_how_many_pairs_have_traces(path, birds, capsys, rows, traced, code):
    trace = {"pos_cot": TRACES[Kind.TEXT]}
    birds([{"qry": f"{i}", "pos_text": "t", **(trace if i < traced else {})} for i in range(rows)])
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == code
    seen = capsys.readouterr()
    assert f"no pictures, {traced or 'none'} with a trace" in seen.out
    refused = "data.train: expected rows with a written trace (query_cot or pos_cot; caption in"
    assert (refused in seen.err) == (code == 2)
    assert run_job(EmbedderConfig, never, argv=[path, "--dry-run", "run.dir=runs/e"]) == 0
    assert f"no pictures, {traced or 'none'} with a trace" in capsys.readouterr().out


def test_a_dry_run_counts_the_traces_of_a_store_instead(path, birds, capsys, tmp_path):
    birds([{"qry": "what?", "pos_text": "a finch", "pos_cot": TRACES[Kind.TEXT]}])
    (tmp_path / "reasoner").mkdir()
    (tmp_path / "reasoner/model.safetensors").write_bytes(b"weights")
    argv = [path, "--dry-run", "store=store", "reasoner=reasoner"]
    assert run_job(EmbedderConfig, never, argv=argv) == 2
    assert "found 2 missing; have the job `evaluate` write them" in capsys.readouterr().err
    run_job(EmbedderConfig, never, argv=[*argv, "max_missing_traces=1"])
    seen = capsys.readouterr()
    assert "no pictures, none with a trace" in seen.out
    assert "missing; have the job" not in seen.err


def test_a_dry_run_of_a_report_names_the_files_of_runs_there_and_missing(path, capsys, tmp_path):
    (tmp_path / "job.yaml").write_text("{run: {dir: runs/r}, evaluate: e, rl: r, stages: [r]}")
    files = ["e/evaluation.json", "e/evaluation.parquet", "r/metrics.jsonl", "r/stage.json"]
    keys = ["evaluate", "evaluate", "rl", "stages"]
    for there, (file, key) in enumerate(zip(files, keys, strict=True)):
        assert run_job(ReportConfig, never, argv=[path, "--dry-run"]) == 2
        seen = capsys.readouterr()
        states = ["there"] * there + ["missing"] * (4 - there)
        for named, name, state in zip(keys, files, states, strict=True):
            assert f"{named}: {name}: {state}\n" in seen.out
        assert seen.err.count("not found; run the job that writes it first") == 4 - there
        assert f"{key}: {file} not found" in seen.err
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert run_job(ReportConfig, never, argv=[path, "--dry-run"]) == 0


def test_a_dry_run_names_all_that_is_missing(path, capsys, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "birds.json: file not found" in error
    assert "model: models/m: expected a model folder" in error


def test_a_dry_run_names_the_job_that_makes_a_missing_model(path, birds, capsys):
    settings = [path, "--dry-run", "model=runs/first/export"]
    assert run_job(WarmStartConfig, never, argv=settings) == 2
    assert "run the job first whose run.dir is runs/first\n" in capsys.readouterr().err


def test_a_dry_run_names_the_rivals_that_cannot_be_loaded(path, birds, capsys, tmp_path):
    text = TEXT.replace("model:", "warm_start:").replace("train", "eval")
    (tmp_path / "job.yaml").write_text(f"{text}reward: {{model: models/m}}\n")
    (tmp_path / "bare").mkdir()
    rivals = "rivals=[{name: a, model: bare}, {name: b, model: lost, library: vllm}]"
    assert run_job(EvaluateConfig, never, argv=[path, "--dry-run", rivals]) == 2
    error = capsys.readouterr().err
    assert "rivals[0].model: bare/modules.json: expected the list of a model's modules" in error
    assert "rivals[1].model: lost: expected a model folder, found none" in error


def test_a_dry_run_names_pixel_limits_that_a_model_does_not_take(path, birds, capsys, tmp_path):
    write_tiny_model(tmp_path / "models/sees")
    argv = [path, "--dry-run", "model=models/sees", "data.media.crop_min_pixels=900"]
    assert run_job(WarmStartConfig, never, argv=argv) == 2
    error = capsys.readouterr().err
    assert "model: pixel limits must lie in the model processor's own range [1024, " in error
    assert "found data.media.crop_min_pixels=900: change them" in error
    assert run_job(WarmStartConfig, never, argv=argv[:-1]) == 0


def test_a_dry_run_refuses_the_run_folder_of_another_run(path, birds, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/resolved.yaml").write_text("batch: 77\n")
    (tmp_path / "run/metrics.jsonl").touch()
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run", "run.dir=run"]) == 2
    assert "holds a run with other settings (batch: there 77, now" in capsys.readouterr().err


def test_a_dry_run_looks_only_at_sets_that_the_job_reads(path, birds, capsys, tmp_path):
    some = TEXT.replace("model:", "warm_start:").replace("birds", "lost")
    (tmp_path / "job.yaml").write_text(f"{some}eg_rl: models/m\nreward: {{model: models/m}}\n")
    read = "data.eval=[{name: birds, path: birds.json, root: pictures}]"
    assert run_job(EvaluateConfig, never, argv=[path, "--dry-run", read]) == 0
    out = capsys.readouterr().out.split("# data sets")[1]
    assert "birds: birds.json" in out
    assert "lost" not in out
    gate = "adaptive.train=[{name: more, path: missing.json, root: pictures}]"
    assert run_job(EvaluateConfig, never, argv=[path, "--dry-run", read, gate]) == 2
    assert "more: missing.json" in capsys.readouterr().out


@pytest.mark.parametrize(("offline", "code"), [("false", 0), ("true", 2)])
def test_a_dry_run_fetches_nothing(path, birds, capsys, monkeypatch, tmp_path, offline, code):
    monkeypatch.setenv("EMBED_RL_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe_file("/birds.json", (tmp_path / "birds.json").read_bytes())
    sets = "data.train=[{name: birds, path: 'memory://birds.json', root: pictures}]"
    argv = [path, "--dry-run", sets, f"data.offline={offline}"]
    assert run_job(WarmStartConfig, never, argv=argv) == code
    seen = capsys.readouterr()
    assert ("not looked at; the job fetches it first" in seen.out) == (code == 0)
    assert ("set data.offline: false to fetch it" in seen.err) == (code == 2)
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_unpacks_nothing(path, birds, capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures/more.zip", "w") as file:
        file.write(tmp_path / "pictures/a.png", "b.png")
    sets = "data.train=[{name: birds, path: birds.json, root: pictures, unpack: ['*.zip']}]"
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run", sets]) == 0
    assert "not looked at; the job unpacks archives first" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "pictures")) == ["a.png", "more.zip"]


def test_a_dry_run_leaves_no_folder_behind(path, birds, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run_job(WarmStartConfig, never, argv=[path, "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_are_checked_without_what_takes_seconds_to_load():
    jobs = [path.stem for path in (ROOT / "cluster/jobs").glob("[a-z]*.py")]
    slow = ["torch", "transformers", "deepspeed", "peft", "vllm", "mlflow", "av", "pypdfium2"]
    code = f"""
import importlib, sys
for job in {jobs}:
    importlib.import_module(f"cluster.jobs.{{job}}")
print(*sorted(sys.modules.keys() & set({slow})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "rl" in jobs
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("package", "pools", "key"),
    [
        ("vllm-0.32.0", "", "rollout.pool.gpus"),
        ("vllm-0.32.0", "rollout.pool.gpus=1", "reward.pool.gpus"),
        ("vllm-0.32.0+cpu", "", None),
        ("vllm-0.32.0", "rollout.pool.gpus=1 reward.pool.gpus=1", None),
    ],
)
def test_a_cuda_build_of_vllm_starts_no_engine_without_a_gpu(
    path, tmp_path, monkeypatch, capsys, package, pools, key
):
    (tmp_path / f"{package}.dist-info").mkdir()
    version = package.partition("-")[2]
    (tmp_path / f"{package}.dist-info/METADATA").write_text(f"Name: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = TEXT.replace("model:", "warm_start:").replace("train", "eval")
    (tmp_path / "job.yaml").write_text(f"{text}reward: {{model: models/m}}\n")
    code = run_job(EvaluateConfig, lambda config: 7, argv=[path, *pools.split()])
    assert code == (2 if key else 7)
    if key:
        error = capsys.readouterr().err
        assert f"{key}: the installed vLLM is its CUDA build" in error
        assert "make ENGINE=cpu" in error
