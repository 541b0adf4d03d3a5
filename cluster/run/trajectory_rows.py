"""The rows of `trajectories/step-NNNNNN.parquet`: every trace of a step, dropped ones too."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import pyarrow as pa

from data.prompts import templates_version
from data.types import (
    Content,
    DroppedTrajectory,
    Pair,
    ScoredTrajectory,
    Trajectory,
    TrajectoryKey,
    pictures_in,
)

NO_SPREAD = "no_spread"
"""Siblings that were all paid alike: there is nothing to learn from them. They have advantage 0 in
the step's loss, or null where other groups took their place in it."""
BROKEN = "broken_step"
"""Traces of a step that was skipped, its loss or gradient being NaN or infinite; also where that
was one of its updates only (`grpo.updates_per_step`)."""

_REWARD_COLUMNS = (
    "reward/total",
    "reward/format",
    "reward/outcome",
    "reward/process",
    "reward/gain",
    "reward/length",
    "rank/accuracy",
    "rank/margin",
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "pair", "side", "source", "prompt")),
        ("pictures", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("templates", "text", "finish")),
        *((name, pa.int64()) for name in ("tokens", "min_version", "max_version")),
        *((name, pa.float64()) for name in _REWARD_COLUMNS),
        ("rank/gold", pa.int64()),
        ("advantage", pa.float64()),
        ("retrieved", pa.list_(pa.string())),
        ("candidates/id", pa.string()),
        ("candidates/size", pa.int64()),
        ("judge/shown", pa.list_(pa.string())),
        ("judge/answer", pa.string()),
        ("dropped", pa.string()),
    ]
)
"""Fixed, so that all steps read as one data set; what a trace does not have is null."""


def trajectory_rows(
    trajectories: Sequence[Trajectory],
    scored: Sequence[ScoredTrajectory],
    dropped: Sequence[DroppedTrajectory],
    *,
    pairs: Mapping[int, Pair],
    contents: Mapping[TrajectoryKey, Content],
    advantages: Mapping[TrajectoryKey, float],
    taught: Set[TrajectoryKey],
    broken: bool,
    templates: str,
) -> list[dict[str, Any]]:
    """Return one row per trace that was asked for; keys as in SCHEMA.

    ``advantages`` are of the traces in the step's loss; ``taught`` are the traces of groups with
    spread. The column `dropped` is null where the trace was trained; a ``broken`` step trained no
    trace.
    """
    sampled = {trace.key: trace for trace in trajectories}
    version = templates_version(templates)

    def start(key: TrajectoryKey) -> dict[str, Any]:
        group = key.group
        row: dict[str, Any] = {
            "key": str(key),
            "pair": group.pair_id,
            "side": str(group.side),
            "source": pairs[group.serial].source,
            "templates": version,
        }
        if key in contents:
            row["prompt"] = "\n".join(part for part in contents[key] if isinstance(part, str))
            row["pictures"] = [picture.uri for picture in pictures_in(contents[key])]
        if key in sampled:
            trace = sampled[key]
            row |= {
                "text": trace.text,
                "tokens": len(trace.response_ids),
                "finish": trace.finish,
                "min_version": trace.min_version,
                "max_version": trace.max_version,
            }
        return row

    rows = [
        {
            **start(key),
            **_paid(trace),
            "advantage": advantages.get(key),
            "dropped": NO_SPREAD if key not in taught else BROKEN if broken else None,
        }
        for trace in scored
        for key in [trace.trajectory.key]
    ]
    rows += [
        {
            **start(trace.key),
            "dropped": f"{trace.reason}: {trace.detail}" if trace.detail else trace.reason,
        }
        for trace in dropped
    ]
    return rows


def _paid(one: ScoredTrajectory) -> dict[str, Any]:
    parts = one.parts
    return {
        "reward/total": parts.total,
        "reward/format": parts.format,
        "reward/outcome": parts.outcome,
        "reward/process": parts.process,
        "reward/gain": parts.gain,
        "reward/length": parts.length,
        "rank/accuracy": parts.accuracy,
        "rank/margin": parts.margin,
        "rank/gold": parts.rank,
        "retrieved": list(one.retrieved),
        "candidates/id": one.candidates_id,
        "candidates/size": one.candidates_size,
        "judge/shown": list(one.judgement.shown) if one.judgement else None,
        "judge/answer": one.judgement.answer if one.judgement else None,
    }
