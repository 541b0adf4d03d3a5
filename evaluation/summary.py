"""What the report and `summary.json` are made from: run folders read, figures picked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.prompts import pictures_of
from data.stores.facts import MAX_FRAMES
from data.stores.traces import TRACE_FOLDER, Subject, held_out_stores
from evaluation.metrics import OVER_SETS
from evaluation.results_file import QUERIES_FILE, RESULTS_FILE, load_evaluation
from evaluation.runner import Evaluation
from evaluation.variants import TEXT_SUFFIX

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One job that ran."""

    name: str
    """Its run folder's name."""
    job: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutItem:
    """A held-out item of the rl run, with what the policy wrote about it in training."""

    of: Subject
    shown: tuple[str, ...]
    """Pictures that the policy saw, in order; frame numbers count these."""
    traces: dict[int, str] = field(default_factory=dict)
    """By the step after which the policy wrote it; 0: before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Everything a report shows."""

    evaluation: Evaluation
    records: tuple[Mapping[str, float], ...]
    """The rl run's metrics, one per step."""
    stages: tuple[Stage, ...]
    held_out: tuple[HeldOutItem, ...] = ()
    """Of the rl run; older runs have kept none."""

    def steps(self) -> int:
        """Return how many RL steps were trained; step 0 is the measurement before the first."""
        return len({record["step"] for record in self.records} - {0})


def load_runs(*, evaluate: Path, rl: Path, stages: Sequence[Path]) -> Runs:
    """Return what the run folders hold.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    return Runs(
        evaluation=load_evaluation(evaluate),
        records=tuple(load_metrics(rl / METRICS_FILE)),
        stages=tuple(load_stage(folder) for folder in stages),
        held_out=load_held_out(rl),
    )


def load_held_out(rl: Path) -> tuple[HeldOutItem, ...]:
    """Return the held-out items of which an rl run has kept traces.

    Raises:
        DataError: they cannot be read.
    """
    items: dict[str, HeldOutItem] = {}
    for step, store in held_out_stores(rl / TRACE_FOLDER).items():
        for trace in store.all():
            of = trace.of
            if of.key not in items:
                pictures = pictures_of(of.item, store.recipe.more[MAX_FRAMES])
                shown = tuple(picture.uri for picture in pictures)
                items[of.key] = HeldOutItem(of=of, shown=shown)
            items[of.key].traces[step] = trace.text
    return tuple(items.values())


def run_files(*, evaluate: Path, rl: Path, stages: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the files that `load_runs` reads, each with the setting that names its folder."""
    return [
        ("evaluate", evaluate / RESULTS_FILE),
        ("evaluate", evaluate / QUERIES_FILE),
        ("rl", rl / METRICS_FILE),
        *(("stages", folder / STAGE_FILE) for folder in stages),
    ]


def load_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file; each names its step."""
    records = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            records.append(_parse(line, f"{path}, line {number}", "step"))
    return records


def load_stage(folder: Path) -> Stage:
    """Return what a job wrote about itself when it ended."""
    path = folder / STAGE_FILE
    stage = _parse(_read(path), str(path), "job", "seconds")
    return Stage(name=folder.name, job=str(stage["job"]), seconds=float(stage["seconds"]))


def build_summary(runs: Runs) -> dict[str, Any]:
    """Return `summary.json`; a figure that could not be measured is None.

    `hit_at_1` is the mean over all queries, `hit_at_1_over_sets` the mean of the data sets' means.
    `queries` counts the ranked queries of the variant that ranked fewest.
    """
    overall = runs.evaluation.overall()
    reasoners = [name for name in overall if name + TEXT_SUFFIX in overall]
    return {
        "hit_at_1": {
            name: result.metrics["hit_at_1"].mean if result.metrics else None
            for name, result in overall.items()
        },
        f"hit_at_1{OVER_SETS}": {
            name: means.get("hit_at_1") for name, means in runs.evaluation.over_sets().items()
        },
        "valid": {name: overall[name].valid for name in reasoners},
        "on_target": {name: overall[name].on_target for name in reasoners},
        "seconds": {stage.name: stage.seconds for stage in runs.stages},
        "steps": runs.steps(),
        "queries": min((result.queries for result in overall.values()), default=0),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} not found; run the job that writes it first, or correct the folder"
        ) from error


def _parse(text: str, where: str, *fields: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: expected a JSON object, found {text[:60]!r} ({error})"
        ) from error
    missing = [name for name in fields if not isinstance(record, dict) or name not in record]
    if missing:
        raise DataError(f"{where}: expected a JSON object with {', '.join(fields)}; no {missing}")
    return record
