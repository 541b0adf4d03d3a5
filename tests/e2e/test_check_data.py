"""The job `check_data` through its command, on sets with some bad rows of every kind."""

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from configs.common import DataSetConfig
from data.sets.load_sets import load_set
from tests.chaos.running import metrics_of
from tests.e2e.jobs import REPOSITORY, run
from tests.inputs.bad_rows import (
    BAD,
    MAX_BAD_ROWS,
    ROWS,
    SITE,
    assert_all_are_named,
    write_bad_rows,
)
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which jobs run, with a `sitecustomize`."""
    home = tmp_path_factory.mktemp("check")
    (home / "sitecustomize.py").write_text(SITE)
    return home


@pytest.fixture(scope="module")
def data_sets(home: Path) -> dict[str, DataSetConfig]:
    """Return sets 5 % of whose rows are bad, and write the job's settings."""
    sets = write_bad_rows(home)
    training = [asdict(own) for name, own in sets.items() if name != "heldout"]
    data = {"train": training, "eval": [asdict(sets["heldout"])], "max_bad_rows": MAX_BAD_ROWS}
    settings = {"run": {"dir": "runs/check"}, "data": data}
    (home / "check.yaml").write_text(yaml.safe_dump(settings))
    return sets


def command(home: Path, *changes: str) -> list[str]:
    return [sys.executable, "-m", "cluster.jobs.check_data", str(home / "check.yaml"), *changes]


@pytest.fixture(scope="module")
def printed(home: Path, data_sets: dict[str, DataSetConfig]) -> str:
    """Return what the job printed, which has ended well."""
    return run(*command(home), home=home, PYTHONPATH=f"{home}{os.pathsep}.")


def test_every_bad_row_is_named_with_its_field_and_the_reason(
    home: Path, data_sets: dict[str, DataSetConfig], printed: str
) -> None:
    assert_all_are_named(home / "runs/check/quarantine.parquet", data_sets)


def test_reading_leaves_the_good_rows(data_sets: dict[str, DataSetConfig], printed: str) -> None:
    for name, own in data_sets.items():
        refused = {row - 1 for (bad, row), kind in BAD.items() if bad == name and not kind.decoded}
        rows = [pair.row for pair in load_set(own).pairs]
        assert rows == [row for row in range(ROWS[name]) if row not in refused]


def test_the_figures_count_media_and_name_what_is_there_twice(home: Path, printed: str) -> None:
    summary = json.loads((home / "runs/check/check.json").read_text())
    sets = {entry["name"]: entry for entry in summary["sets"]}
    signs, clips, heldout = (sets[name] for name in ("signs", "clips", "heldout"))
    assert (signs["rows"], signs["rows_set_aside"], signs["pairs_set_aside"]) == (400, 16, 5)
    counts = {
        "named": 398,
        "usable": 389,
        "copies": 0,
        "shown": 384,
        "set_aside": 5,
        "one_colour": 1,
    }
    assert signs["media"] == counts
    assert clips["media"]["set_aside"] == 0 < clips["media"]["one_colour"]
    assert clips["kinds"] == {"query": {"video": 76}, "target": {"text": 76}}
    assert sets["table"]["media"]["set_aside"] == 1
    assert heldout["tokens"]["query"]["min"] > 100
    assert signs["twice"]["pictures"] == {
        "count": 1,
        "examples": [{"text": "", "at": [f"{home}/root/{n}.png" for n in (1, 2)]}],
    }
    shared = {leak["what"]: leak for leak in summary["leaks"]}
    assert shared.keys() == {"pictures", "target_texts"}
    assert [leak["count"] for leak in shared.values()] == [1, 1]
    assert shared["target_texts"]["examples"][0]["text"] == "sign 40"
    assert "training set 'signs' and held-out set 'heldout' have in common: 1 pictures" in printed


def test_the_contact_sheet_shows_both_sides_of_pairs_of_every_set(home: Path, printed: str) -> None:
    sheet, heading, near = (
        (home / "runs/check/contact_sheet.html")
        .read_text()
        .partition('<h1 class="more">Near duplicates</h1>')
    )
    assert heading
    assert near.count("data:image/") == 2 * near.count('class="pair"') > 0
    assert sheet.count('class="pair"') == len(ROWS) * 16
    assert sheet.count("data:image/") == 4 * 16


def test_training_leaves_out_what_nearly_repeats_a_held_out_row(
    home: Path, data_sets: dict[str, DataSetConfig], printed: str
) -> None:
    path = home / "runs/check/near_duplicates.parquet"
    lines = pq.read_table(path).to_pylist()
    leaks = {(line["data_set"], line["row"], line["of_row"]) for line in lines}
    assert {("signs", 41, 4), ("signs", 61, 6)} <= leaks
    assert "data sets with leave_out: " in printed
    signs = data_sets["signs"]
    before = {pair.row for pair in load_set(signs).pairs}
    after = {pair.row for pair in load_set(replace(signs, leave_out=str(path))).pairs}
    named = {line["row"] - 1 for line in lines if line["data_set"] == "signs"}
    assert before - after == before & named
    assert 50 < len(after) < len(before)


def test_a_refused_set_ends_with_two(home: Path, printed: str) -> None:
    change = ["run.dir=runs/strict", "data.max_bad_rows=0.01"]
    refused = run(*command(home, *change), home=home, exit_code=2)
    assert "16 of 400 rows are bad, more than data.max_bad_rows=0.01" in refused
    assert (home / "runs/strict/quarantine.parquet").is_file()
    assert not (home / "runs/strict/stage.json").exists()


def trained(
    home: Path, sets: dict[str, DataSetConfig], job: str, *settings: str
) -> tuple[str, list[dict[str, float]]]:
    """Train a tiny model on the sets, with the demo's settings; return what was printed, and steps.

    ``settings`` may name the model's folder as `model`.
    """
    if not (home / "model").exists():
        write_tiny_model(home / "model")
    config = yaml.safe_load((REPOSITORY / f"configs/demo/{job}.yaml").read_text())
    rows = {name: asdict(own) for name, own in sets.items()}
    config["data"] |= {"eval": [rows.pop("heldout")], "train": list(rows.values())}
    (home / f"{job}.yaml").write_text(yaml.safe_dump(config))
    short = ("steps=4", "evaluation.every=4", "evaluation.samples=8")
    folder = (f"run.dir=runs/{job}", f"data.max_bad_rows={MAX_BAD_ROWS}")
    command = [sys.executable, "-m", f"cluster.jobs.{job}", str(home / f"{job}.yaml")]
    printed = run(*command, *settings, *short, *folder, home=home)
    steps = [step for step in metrics_of(home / f"runs/{job}") if step["step"]]
    assert len(steps) == 4
    assert "data set 'signs': 16 of 400 rows set aside" in printed
    return printed, steps


def test_embedder_trains_on_the_rest(home: Path, data_sets: dict[str, DataSetConfig]) -> None:
    settings = ("model=model", "batch=96", "sub_batches=4")
    printed, steps = trained(home, data_sets, "embedder", *settings)
    assert f"set aside: {home}/root/" in printed
    assert all(math.isfinite(step["contrast/loss"]) for step in steps)


def test_rl_trains_on_the_rest(home: Path, data_sets: dict[str, DataSetConfig]) -> None:
    models = ("reasoner=model", "reward.model=model", "reward.gate_by_format=false")
    sizes = ("pairs=24", "siblings=2", "checkpoint_every=4")
    _, steps = trained(home, data_sets, "rl", *models, *sizes)
    reasons = {name for step in steps for name in step if name.startswith("dropped/")}
    # A random model's traces are paid alike. Beside a bad picture the other side has no positive.
    expected = {"bad_picture", "no_positive", "no_spread", "total"}
    assert reasons == {f"dropped/{reason}" for reason in expected}
    for step in steps:
        assert step["traces/issued"] == step["traces/trained"] + step["dropped/total"]
