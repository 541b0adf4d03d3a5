"""The files of MMEB-V2's leaderboard: `<set>_score.json` of each set, and a JSON of a model.

Their layout is that of TIGER-AI-Lab/VLM2Vec, `experiments/report_score_v2.py`. The numbers are
those with ties against the system. A model's file goes to `scores/` of the space
TIGER-Lab/MMEB-Leaderboard.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.schema import LeaderboardConfig
from data.errors import DataError
from evaluation.measure import METRICS
from evaluation.scores.set_result import SetResult

COUNTS = ("num_pred", "num_data")
FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Names of sets and models, which become names of files."""
DATA_SOURCE = "Self-Reported"
"""The leaderboard's word for scores that the model's authors measured."""


def set_scores(result: SetResult) -> dict[str, float | int]:
    """Return what `<set>_score.json` holds: METRICS from 0 to 1, `num_pred` and `num_data`."""
    scores = result.scores()
    return {metric: scores[metric] for metric in METRICS} | {
        "num_pred": len(result.query_ids),
        "num_data": result.num_data,
    }


def save_set_scores(result: SetResult, folder: Path) -> Path:
    """Write `<set>_score.json` into a folder and return its path."""
    return _save(set_scores(result), folder, f"{result.name}_score")


def leaderboard_entry(
    results: Sequence[SetResult],
    model: LeaderboardConfig,
    *,
    dimensions: int,
    max_tokens: int,
    modalities: Mapping[str, Sequence[str]],
    generated: str,
) -> dict[str, Any]:
    """Return a model's file for the leaderboard, checked.

    Args:
        results: one of each set.
        model: what the leaderboard says of it.
        dimensions: of its vectors.
        max_tokens: that it reads of an item.
        modalities: the sets that the leaderboard has, by `image`, `video` and `visdoc`; the two
            page sets are `ViDoSeek-page-fixed` and `MMLongBench-page-fixed`.
        generated: when the file is made, an ISO date.

    Raises:
        DataError: see `check_entry`; or a result is of no set of the leaderboard.
    """
    by_name = {result.name: result for result in results}
    known = {name for names in modalities.values() for name in names}
    if len(by_name) < len(results) or set(by_name) - known:
        raise DataError(
            f"leaderboard: expected one result of each of its {len(known)} sets, found "
            f"{len(results)} of {len(by_name)} sets; not among its sets: "
            f"{', '.join(sorted(set(by_name) - known)) or 'none'}; leave these out"
        )
    entry = {
        "metadata": {
            **asdict(model),
            "embedding_dimension": dimensions,
            "max_length_tokens": max_tokens,
            "data_source": DATA_SOURCE,
            "report_generated_date": generated,
        },
        "metrics": {
            modality: {name: set_scores(by_name[name]) for name in names if name in by_name}
            for modality, names in modalities.items()
        },
    }
    check_entry(entry, modalities=modalities)
    return entry


def check_entry(entry: Mapping[str, Any], *, modalities: Mapping[str, Sequence[str]]) -> None:
    """Refuse a model's file that the leaderboard could not rank.

    Raises:
        DataError: a set or a metric is missing, a metric is not from 0 to 1, or not all queries of
            a set were ranked; the message names all of these.
    """
    problems = []
    for modality, names in modalities.items():
        sets = entry["metrics"].get(modality, {})
        missing = [name for name in names if name not in sets]
        if missing:
            problems.append(f"{modality}: no set {', '.join(missing)}")
        for name in names:
            if name in sets:
                problems += [f"{modality}/{name}: {what}" for what in _problems(sets[name])]
    if problems:
        raise DataError(
            f"leaderboard: expected all {sum(map(len, modalities.values()))} sets, each with "
            f"{len(METRICS)} metrics from 0 to 1 of all its queries; measure again what is wrong "
            "here:\n  " + "\n  ".join(problems)
        )


def save_entry(entry: Mapping[str, Any], folder: Path) -> Path:
    """Write a model's checked file, `<model_name>.json`, into a folder and return its path."""
    return _save(entry, folder, entry["metadata"]["model_name"])


def _problems(scores: Mapping[str, Any]) -> list[str]:
    missing = [key for key in (*METRICS, *COUNTS) if key not in scores]
    problems = [f"no {', '.join(missing)}"] if missing else []
    problems += [
        f"{metric} is {scores[metric]}, expected 0 to 1"
        for metric in METRICS
        if metric in scores and not 0 <= scores[metric] <= 1
    ]
    counts = [scores.get(count) for count in COUNTS]
    if None not in counts and counts[0] != counts[1]:
        problems.append(f"{counts[0]} of {counts[1]} queries were ranked")
    return problems


def _save(content: Mapping[str, Any], folder: Path, name: str) -> Path:
    if not FILE_NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot be the name of a file in {folder}; expected letters, digits, and "
            "'_', '-' or '.' after the first: rename the set or the model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", encoding="utf-8")
    return path
