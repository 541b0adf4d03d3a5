"""All jobs of the demo in order, small, as the processes a user starts, on one Ray head.

RL runs through `ray job` and is stopped on its way; others are interfered with while they are held.
"""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.run.run_folder import RUN_ID_FILE
from data.stores.traces import TRACE_FOLDER, held_out_stores
from tests.chaos.running import family, metrics_of, named
from tests.e2e.held_rl import HELD_FILE
from tests.e2e.jobs import Job, job_command, job_env, run
from tests.e2e.ray_nodes import Head, ray_head, ray_node
from tests.inputs.media_files import write_pdf
from tests.patience import PATIENCE_S
from tests.tiny_model import write_tiny_sentence_bert

# Longer than others': the first test waits for all jobs up to RL.
pytestmark = [pytest.mark.extended, pytest.mark.timeout(1800)]
STEPS, PAIRS, SIBLINGS = 6, 4, 2
SIGHT = job_command("warm_start", "sight", "steps=4", "evaluation.every=2", "evaluation.samples=8")
EMBEDDER = job_command(
    "embedder", "embedder", "steps=4", "evaluation.every=2", "evaluation.samples=16"
)
WARM_START = job_command(
    "warm_start",
    "warm_start",
    # Not from `grounding`, which is the job of `sight` with other data.
    "model=runs/demo/sight/export",
    *("steps=4", "evaluation.every=2", "evaluation.samples=8"),
)
RL = (
    *(f"steps={STEPS}", f"pairs={PAIRS}", f"siblings={SIBLINGS}", "checkpoint_every=2"),
    *(f"evaluation.every={STEPS}", "evaluation.samples=8", "reward.gate_by_format=false"),
)
REASONER = ("reasoner=runs/demo/warm_start/export",)
PICTURES = 7
STAGES = ("data", "sight", "embedder", "warm_start", "rl", "evaluate")


def held_command(*settings: str) -> list[str]:
    """Return the command of `rl` that holds where HOLD_AFTER says."""
    return [sys.executable, "-m", "tests.e2e.held_rl", "configs/demo/rl.yaml", *RL, *settings]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Return the head that all jobs share."""
    with ray_head(tmp_path_factory.mktemp("head"), cpus=4) as head:
        yield head


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """Return a folder in which every job before RL has run."""
    home = tmp_path_factory.mktemp("demo")
    run(*job_command("demo_data", "data", "train_scenes=160", "heldout_scenes=40"), home=home)
    for command in (SIGHT, EMBEDDER, WARM_START):
        run(*command, home=home, **head.env)
    return home


@dataclass(frozen=True)
class Stopped:
    """What `ray job stop` has left of a run that was held after its first step."""

    answer: str
    printed: str
    steps: list[float]
    checkpoints: list[str]
    status: str
    """MLflow's."""
    exported: bool


@pytest.fixture(scope="module")
def stopped(home: Path, head: Head) -> Stopped:
    folder = home / "runs/demo/rl"
    with head.submitted("stopped", *held_command(), home=home, HOLD_AFTER="1") as job:
        job.wait_until((folder / HELD_FILE).exists, "it was held after its first step")
        answer = head.job("stop", "stopped", home=home)
        job.finish()
    return Stopped(
        answer=answer,
        printed=head.job("logs", "stopped", home=home),
        steps=[one["step"] for one in metrics_of(folder)],
        checkpoints=[one.parent.name for one in folder.glob("checkpoints/*/loop.json")],
        status=mlflow_run(home, "demo/rl").info.status,
        exported=(folder / "export").exists(),
    )


@pytest.fixture(scope="module")
def resumed(home: Path, head: Head, stopped: Stopped) -> str:
    """Return what the submission printed that went on after the stop, to the end."""
    # A variable that the job sets too: the user's counts, and is no reason for Ray to refuse it.
    loud = {"VLLM_LOGGING_LEVEL": "INFO"}
    with head.submitted("resumed", *job_command("rl", "rl", *RL), home=home, **loud) as job:
        return job.finish()


@pytest.fixture(scope="module")
def demo(home: Path, head: Head, resumed: str) -> Path:
    """Return the folder in which every job of the demo has run."""
    run(*job_command("evaluate", "evaluate", "bootstrap=50"), home=home, **head.env)
    stages = ",".join(f"runs/demo/{stage}" for stage in STAGES)
    run(*job_command("report", "report", "gallery=4", f"stages=[{stages}]"), home=home)
    return home


def mlflow_run(home: Path, name: str) -> Any:
    """Return the one run of a name."""
    client = mlflow_client(home)
    experiment = client.get_experiment_by_name("embed-rl")
    assert experiment.artifact_location == (home / "runs/mlflow-artifacts").as_uri()
    [found] = client.search_runs([experiment.experiment_id], f"run_name = '{name}'")
    return found


def mlflow_client(home: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{home / 'runs/mlflow.db'}")


def test_ray_job_stop_leaves_a_checkpoint_of_the_step_under_way(stopped: Stopped) -> None:
    assert "Job 'stopped' was stopped" in stopped.answer
    assert stopped.steps == [0, 1]
    assert stopped.checkpoints == ["step-000001"]
    assert stopped.status == "KILLED"
    assert not stopped.exported
    assert stopped.printed.rstrip().endswith("exit code 3")


def test_the_same_submission_goes_on_after_a_stop(home: Path, resumed: str) -> None:
    newest = (home / "runs/demo/rl/checkpoints/step-000001").resolve()
    assert f"resumed after step 1 from {newest}" in resumed
    assert "all engines are ready" in resumed
    assert "SIGTERM received" not in resumed  # what Ray says of an engine that it sees crash
    run_info = mlflow_run(home, "demo/rl").info
    history = mlflow_client(home).get_metric_history(run_info.run_id, "reward/total")
    assert [one.step for one in history] == list(range(1, STEPS + 1))
    assert run_info.status == "FINISHED"


def test_summary_and_report_are_complete(demo: Path) -> None:
    summary = json.loads((demo / "runs/demo/summary.json").read_text())
    assert set(summary["hit_at_1"]) == {
        "no_cot",
        "warm_start_text",
        "warm_start",
        "eg_rl_text",
        "eg_rl",
    }
    assert set(summary["valid"]) == set(summary["on_target"]) == {"warm_start", "eg_rl"}
    assert set(summary["seconds"]) == set(STAGES)
    assert summary["steps"] == STEPS
    page = (demo / "runs/demo/report.html").read_text()
    assert "data:image/" in page
    assert "<svg" in page or "data:image/png" in page
    kept = held_out_stores(demo / "runs/demo/rl" / TRACE_FOLDER)
    assert list(kept) == [0, STEPS]
    assert all(store.all() for store in kept.values())
    assert "The same item over time" in page


def test_an_evaluation_that_is_killed_goes_on_and_makes_nothing_twice(
    demo: Path, head: Head
) -> None:
    folder = demo / "runs/demo/killed-evaluate"
    command = job_command(
        "evaluate", "evaluate", "bootstrap=50", "block=40", "run.dir=runs/demo/killed-evaluate"
    )

    def parts(store: str) -> list[Path]:
        return list(folder.glob(f"store/{store}/*/*.parquet"))

    for store in ("traces", "vectors"):
        with Job(*command, folder=demo, env=job_env(demo, **head.env)) as job:
            job.wait_until(lambda store=store: len(parts(store)) > 2, f"some {store} were stored")
    run(*command, home=demo, **head.env)
    for store in ("traces", "vectors"):
        by_folder: dict[Path, list[str]] = {}
        for part in parts(store):
            rows = pq.read_table(part, columns=["key", "failed"])
            by_folder.setdefault(part.parent, []).extend(rows["key"].to_pylist())
        assert len(by_folder) == {"traces": 2, "vectors": 1}[store]
        assert all(len(keys) == len(set(keys)) for keys in by_folder.values())
    straight, killed = (evaluation_in(demo / "runs/demo/evaluate"), evaluation_in(folder))
    for evaluation in (straight, killed):
        speed = evaluation.pop("speed")  # no two runs have it alike
        assert speed["contents_per_second"] > 0
        assert all(wall_ms > 0 for wall_ms in speed["wall_ms"].values())
    assert straight == killed
    assert all(figures["tokens"] > 1 for figures in straight["reasoning"])


def test_controls_are_measured_beside_the_same_variants(demo: Path, head: Head) -> None:
    command = job_command(
        *("evaluate", "evaluate", "bootstrap=50", "run.dir=runs/demo/controls"),
        *("controls=[other_trace,samples]", "samples=2", "store=runs/demo/evaluate/store"),
    )
    run(*command, home=demo, **head.env)
    plain, controls = (evaluation_in(demo / f"runs/demo/{n}") for n in ("evaluate", "controls"))
    added = [result for result in controls["results"] if result not in plain["results"]]
    assert {result["variant"] for result in added} == {
        f"{name}_{control}" for name in ("warm_start", "eg_rl") for control in ("other", "samples")
    }
    assert all(result["queries"] for result in added if not result["source"])
    assert len(controls["results"]) == len(plain["results"]) + len(added)
    assert plain["reasoning"] == controls["reasoning"]
    assert len(controls["differences"]) == len(plain["differences"]) + 4


def test_rivals_are_measured_beside_ours(demo: Path, head: Head) -> None:
    export = "runs/demo/embedder/export"
    write_tiny_sentence_bert(demo / "runs/bert")
    more = "pool: {cpus: 1}, engine: {dtype: float32, max_model_len: 512, max_num_seqs: 128}"
    rivals = (
        f"{{name: itself, model: {export}, {more}}}",
        f"{{name: served, model: {export}, library: vllm, {more}}}",
        f"{{name: words, model: runs/bert/model, {more}}}",
    )
    command = job_command(
        *("evaluate", "evaluate", "bootstrap=50", "run.dir=runs/demo/rivals", "warm_start=''"),
        *("eg_rl=''", "store=runs/demo/evaluate/store", f"rivals=[{', '.join(rivals)}]"),
    )
    assert "rival" in run(*command, home=demo, **head.env)
    # A set without any item that a model can read has no metrics.
    results: dict[str, dict[str, Any]] = {}
    for result in evaluation_in(demo / "runs/demo/rivals")["results"]:
        name = result.pop("variant").removesuffix("_rival")
        results.setdefault(name, {})[f"{result['source']}/{result['kind']}"] = result
    assert list(results) == ["no_cot", "itself", "served", "words"]
    assert results["served"] == results["no_cot"]
    assert results["itself"] == results["no_cot"]
    assert results["words"]["find/"]["queries"] == 0
    [ours, queries, targets] = (
        vectors_in(demo / "runs/demo/evaluate/store", library, side)
        for library, side in ((False, None), (True, "query"), (True, "target"))
    )
    for key, vector in (queries | targets).items():
        assert abs(ours[key] - vector).max() < 1e-3


def vectors_in(store: Path, library: bool, side: str | None) -> dict[str, np.ndarray]:
    """Return the vectors as wide as the Embedder's of all folders with such facts."""
    vectors = {}
    for file in store.glob("vectors/*/facts.json"):
        facts = json.loads(file.read_text())
        if ("library" in facts, facts.get("side")) == (library, side):
            for part in file.parent.glob("*.parquet"):
                rows = pq.read_table(part, columns=["key", "vector"]).to_pylist()
                vectors |= {r["key"]: np.array(r["vector"]) for r in rows if r["vector"]}
    return {key: vector for key, vector in vectors.items() if len(vector) > 32}


def evaluation_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_the_export_of_the_embedder_is_one_of_sentence_transformers(demo: Path) -> None:
    from sentence_transformers import SentenceTransformer

    export = demo / "runs/demo/embedder/export"
    vectors = SentenceTransformer(str(export), device="cpu").encode(["a red star", "a blue one"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert abs(vectors[0] - vectors[1]).max() > 1e-3
    assert "| all queries |" in (export / "README.md").read_text()


@pytest.fixture(scope="module")
def encoded(home: Path, head: Head) -> Path:
    """Return the run folder of `encode` on pictures, a PDF and bad files; it was killed once."""
    media, folder = home / "media", home / "runs/demo/encode"
    objects = sorted((home / "runs/demo/data/world/images/objects").glob("*.png"))[:PICTURES]
    for number, picture in enumerate(objects):
        (media / "shapes").mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, media / f"shapes/{number}.png")
    write_pdf(media / "report.pdf", pages=2, size=(128, 128))
    (media / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (media / "notes.txt").write_text("no picture")
    command = job_command("encode", "encode", f"input={media}", *REASONER, "block=1")
    with Job(*command, folder=home, env=job_env(home, **head.env)) as job:
        job.wait_until(lambda: len(parts_of(folder, "vectors")) > 1, "some vectors were stored")
    run(*command, home=home, **head.env)
    return folder


def parts_of(folder: Path, store: str) -> list[Path]:
    return list(folder.glob(f"store/{store}/*/*.parquet"))


def similar(encoded: Path, searched: Path) -> list[tuple[str, float]]:
    """Return the items by their similarity to the one query that was embedded in ``searched``."""
    [query] = pq.read_table(parts_of(searched, "vectors"))["vector"].to_pylist()
    rows = pq.read_table(sorted((encoded / "encoded").glob("part-*.parquet")))
    similarities = np.array(rows["vector"].to_pylist()) @ np.array(query)
    named = zip(rows["id"].to_pylist(), similarities.tolist(), strict=True)
    return sorted(named, key=lambda pair: -pair[1])


def test_encode_that_is_killed_goes_on_and_makes_nothing_twice(encoded: Path) -> None:
    files = sorted((encoded / "encoded").glob("part-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    pages = [f"report.pdf#page={page}" for page in (1, 2)]
    assert [row["id"] for row in rows] == [*pages, *(f"shapes/{n}.png" for n in range(PICTURES))]
    assert all(row["trace"] for row in rows)
    assert np.allclose(np.linalg.norm([row["vector"] for row in rows], axis=1), 1, atol=1e-4)
    facts = json.loads((encoded / "encoded/facts.json").read_text())
    assert (facts["count"], facts["dimensions"]) == (len(rows), len(rows[0]["vector"]))
    aside = pq.read_table(encoded / "quarantine.parquet").to_pylist()
    assert sorted(row["file"] for row in aside) == ["broken.png", "notes.txt"]
    assert "broken.png" in next(row["reason"] for row in aside if row["file"] == "broken.png")
    for store in ("traces", "vectors"):
        parts = [
            pq.read_table(part, columns=["key", "failed"]) for part in parts_of(encoded, store)
        ]
        made = [row["key"] for part in parts for row in part.to_pylist() if row["failed"] is None]
        assert len(made) == len(set(made)) == len(rows)


def test_a_search_by_text_finds_the_nearest_items_and_writes_a_page(
    home: Path, head: Head, encoded: Path
) -> None:
    command = [sys.executable, "-m", "cluster.jobs.search", str(encoded / "search.yaml"), "k=4"]
    printed = run(*command, "text=find a red star", home=home, **head.env)
    expected = [name for name, _ in similar(encoded, encoded / "search")][:4]
    page = (encoded / "search/search.html").read_text()
    assert re.findall(r"<h3>\d+\. (.+?)</h3>", page) == expected
    assert page.count("data:image/") == 4
    assert "similarity" in printed


def test_a_search_by_picture_without_a_trace_through_an_index(
    home: Path, head: Head, encoded: Path
) -> None:
    picture = home / "media/shapes/0.png"
    by_picture = (f"image={picture}", "text=''", "reasoner=''", "index=hnsw")
    command = job_command("search", "search", *by_picture)
    printed = run(*command, home=home, **head.env)
    assert "reasoning about" not in printed
    assert (
        "index-hnsw.faiss; of the 10 vectors nearest to an encoded one it finds 100.0%" in printed
    )
    page = (home / "runs/demo/search/search.html").read_text()
    expected = [name for name, _ in similar(encoded, home / "runs/demo/search")]
    assert re.findall(r"<h3>\d+\. (.+?)</h3>", page) == expected[:10]
    refused = run(*command, "reward.pooling=last", home=home, exit_code=2, **head.env)
    assert "pooling: there 'emb_token', now 'last'" in refused


def test_mlflow_holds_every_training_job_and_the_report(demo: Path) -> None:
    for name in ("demo/sight", "demo/embedder", "demo/warm_start"):
        assert mlflow_run(demo, name).info.status == "FINISHED"
    client, run_id = mlflow_client(demo), mlflow_run(demo, "demo/rl").info.run_id
    held = {one.path for one in client.list_artifacts(run_id)}
    assert {"resolved.yaml", "report.html", "summary.json", "plots"} <= held
    assert client.list_artifacts(run_id, "plots")


def traces(folder: Path, step: int) -> list[tuple[str, str]]:
    rows = pq.read_table(folder / f"trajectories/step-{step:06d}.parquet").to_pylist()
    return sorted((row["key"], row["text"]) for row in rows)


def serials(folder: Path) -> list[int]:
    """Return the numbers of the groups that a run has trained on, each step's once."""
    groups = [{key.rsplit("/", 2)[0] for key, _ in traces(folder, n + 1)} for n in range(STEPS)]
    return [int(key.split("/")[0].removeprefix("g=")) for some in groups for key in some]


def kill_rank(host: int) -> None:
    """Kill one of the learner ranks that a process has started, and wait until it is dead."""
    rank = next(one for one in family(host) if named(one, "LearnerRank"))
    rank.kill()
    rank.wait(PATIENCE_S)


def test_rl_that_loses_a_rank_is_stopped_and_killed_ends_as_if_it_had_not_been(
    home: Path, head: Head, resumed: str
) -> None:
    straight, folder = home / "runs/demo/rl", home / "runs/demo/killed"
    held = folder / HELD_FILE
    command = held_command("run.dir=runs/demo/killed")

    # Its last checkpoint is that of step 2, so its new ranks do step 3 again.
    with Job(*command, folder=home, env=job_env(home, HOLD_AFTER="3")) as job:
        job.wait_until(held.exists, "it was held after step 3")
        kill_rank(job.process.pid)
        held.unlink()
        job.wait_until(held.exists, "it was held after step 3 again")
        job.process.terminate()
        assert job.finish(exit_code=3).endswith("exit code 3\n")
    assert [one["step"] for one in metrics_of(folder)] == [0, 1, 2, 3]
    assert (folder / "checkpoints/step-000003/loop.json").is_file()
    assert not (folder / "export").exists()

    # On a cluster, where the actors of a killed driver are gone after a while.
    with Job(*command, folder=home, env=job_env(home, HOLD_AFTER="5", **head.env)) as job:
        job.wait_until(held.exists, "it was held after step 5")
    held.unlink()
    printed = run(*job_command("rl", "rl", *RL, "run.dir=runs/demo/killed"), home=home, **head.env)
    assert "resumed after step 4" in printed

    found, expected = metrics_of(folder), metrics_of(straight)
    assert [one["step"] for one in found] == list(range(STEPS + 1))
    assert [one["learner/restarts"] for one in found[1:]] == [0, 0, 1, 0, 0, 0]
    for step in range(1, STEPS + 1):
        assert traces(folder, step) == traces(straight, step)
        for name in ("version", "reward/total", "policy/kl", "policy/grad_norm"):
            assert math.isclose(found[step][name], expected[step][name], rel_tol=1e-3, abs_tol=1e-6)


def test_a_node_that_goes_away_is_survived_ahead_of_the_learner(home: Path, head: Head) -> None:
    folder = home / "runs/demo/nodes"
    held = folder / HELD_FILE
    command = held_command(
        *("run.dir=runs/demo/nodes", "evaluation.every=0", "max_staleness=1"),
        # The engines find room on the two further nodes only, learner and Embedder on the head.
        *("rollout.pool.actors=2", "rollout.pool.cpus=1", "rollout.pool.gpus=1"),
        *("learner.cpus=1", "reward.pool.cpus=2"),
    )
    with (
        ray_node(head) as lost,
        ray_node(head),
        Job(*command, folder=home, env=job_env(home, HOLD_AFTER="2", **head.env)) as job,
    ):
        job.wait_until(held.exists, "it was held after step 2")
        lost.kill()
        held.unlink()
        job.finish()
    steps = metrics_of(folder)
    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    assert max(one["staleness/max"] for one in steps) == 1
    assert all(one["sync/logprob_max_abs_diff"] < 1e-3 for one in steps)
    assert sum(one["pool/rollout/lost"] for one in steps) == 1
    assert steps[0]["pool/rollout/actors"] == 2
    assert steps[-1]["pool/rollout/actors"] == 1
    for one in steps:
        assert one["traces/issued"] == one["traces/trained"] + one["dropped/total"]
    assert sorted(serials(folder)) == list(range(STEPS * PAIRS))


def test_a_finished_job_says_so_and_another_config_is_refused(home: Path) -> None:
    assert "already finished" in run(*SIGHT, home=home)
    refused = run(*SIGHT, "batch=4", home=home, exit_code=2)
    assert "batch: there 16, now 4" in refused


def test_a_job_that_no_cluster_takes_leaves_no_mlflow_run(home: Path) -> None:
    command = job_command("rl", "rl", *RL, "run.dir=runs/demo/refused", "run.nodes_timeout_s=0")
    refused = run(*command, home=home, exit_code=1, RAY_ADDRESS="127.0.0.1:1")
    assert "expected a Ray cluster at RAY_ADDRESS=127.0.0.1:1" in refused
    folder = home / "runs/demo/refused"
    assert folder.is_dir()
    assert not (folder / RUN_ID_FILE).exists()


def test_a_job_with_another_token_than_the_clusters_is_told_which_to_copy(
    home: Path, head: Head, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    command = job_command("rl", "rl", *RL, "run.dir=runs/demo/unknown")
    other = {**head.env, "RAY_AUTH_TOKEN_PATH": str(token)}
    refused = run(*command, home=home, exit_code=1, **other)
    assert "copy its head's ~/.ray/auth_token to this machine" in refused
    assert "Traceback" not in refused
