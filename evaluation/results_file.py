"""An evaluation on disk: `evaluation.json` (metrics) and `evaluation.parquet` (every query)."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.sets.hardness import RANKS
from data.types import Box, Cues, Item, Kind
from evaluation.adaptive.figures import AdaptiveFigures, AtThreshold, CurvePoint, Saving
from evaluation.costs import Speed, TraceFigures
from evaluation.metrics import MEASURES, Estimate
from evaluation.runner import Evaluation, QueryResult, Retrieved, VariantResult
from evaluation.scores.comparisons import Comparison
from evaluation.scores.paired import Difference

RESULTS_FILE = "evaluation.json"
QUERIES_FILE = RANKS

_ITEM = pa.struct(
    [
        ("text", pa.string()),
        ("kind", pa.string()),
        ("uris", pa.list_(pa.string())),
        ("instruction", pa.string()),
    ]
)
_CUES = pa.struct(
    [
        ("keywords", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.struct([(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")]))),
        ("key_frames", pa.list_(pa.int32())),
    ]
)
_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("source", pa.string()),
        ("pair_id", pa.string()),
        ("query", _ITEM),
        ("target", _ITEM),
        ("shown", pa.list_(pa.string())),
        ("truth", _CUES),
        ("trace", pa.string()),
        ("valid", pa.bool_()),
        ("on_target", pa.bool_()),
        ("retrieved", pa.list_(pa.struct([("item", _ITEM), ("right", pa.bool_())]))),
        ("rank", pa.int32()),
        ("candidates", pa.int32()),
        ("chance", pa.float64()),
        ("metrics", pa.struct([(name, pa.float64()) for name in MEASURES])),
        ("excluded", pa.string()),
    ]
)


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write both files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(query) for query in evaluation.queries]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / QUERIES_FILE)
    results = {
        "results": [asdict(result) for result in evaluation.results],
        "differences": [asdict(comparison) for comparison in evaluation.differences],
        "reasoning": [asdict(figures) for figures in evaluation.reasoning],
        "speed": asdict(evaluation.speed),
        "adaptive": asdict(evaluation.adaptive) if evaluation.adaptive else None,
    }
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def load_evaluation(folder: Path) -> Evaluation:
    """Return what `save_evaluation` wrote.

    Raises:
        DataError: a file is missing.
    """
    for name in (RESULTS_FILE, QUERIES_FILE):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name} not found; expected a run folder of `evaluate`: run that job "
                "first or correct the path"
            )
    written = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    rows = pq.read_table(folder / QUERIES_FILE).to_pylist()
    return Evaluation(
        results=tuple(_result(row) for row in written["results"]),
        queries=tuple(_query(row) for row in rows),
        # Older evaluations have none of these.
        differences=tuple(_comparison(row) for row in written.get("differences", ())),
        reasoning=tuple(TraceFigures(**row) for row in written.get("reasoning", ())),
        speed=Speed(**written.get("speed", {})),
        adaptive=_adaptive(written.get("adaptive")),
    )


def _result(row: dict[str, Any]) -> VariantResult:
    metrics = {name: Estimate(**estimate) for name, estimate in row["metrics"].items()}
    return VariantResult(**{**row, "metrics": metrics})


def _comparison(row: dict[str, Any]) -> Comparison:
    return Comparison(**{**row, "difference": Difference(**row["difference"])})


def _adaptive(row: dict[str, Any] | None) -> AdaptiveFigures | None:
    if row is None:
        return None
    row = _with_estimates(row)
    return AdaptiveFigures(
        **{
            **row,
            "points": tuple(CurvePoint(**_with_estimates(point)) for point in row["points"]),
            "saving": Saving(**_with_estimates(row["saving"])),
            "at_threshold": AtThreshold(**_with_estimates(row["at_threshold"])),
        }
    )


def _with_estimates(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its estimates made from what `asdict` made of them."""
    names = {field.name for field in fields(Estimate)}
    return {
        name: Estimate(**value) if isinstance(value, dict) and set(value) == names else value
        for name, value in row.items()
    }


def _query(row: dict[str, Any]) -> QueryResult:
    return QueryResult(
        **{
            **row,
            "query": _item(row["query"]),
            "target": _item(row["target"]),
            "shown": tuple(row["shown"]),
            "truth": _cues(row["truth"]),
            "retrieved": tuple(
                Retrieved(item=_item(candidate["item"]), right=candidate["right"])
                for candidate in row["retrieved"]
            ),
        }
    )


def _item(row: dict[str, Any]) -> Item:
    return Item(
        text=row["text"],
        kind=Kind(row["kind"]),
        uris=tuple(row["uris"]),
        instruction=row.get("instruction", ""),  # older evaluations have none
    )


def _cues(row: dict[str, Any]) -> Cues:
    return Cues(
        keywords=tuple(row["keywords"]),
        boxes=tuple(Box(**box) for box in row["boxes"]),
        key_frames=tuple(row["key_frames"]),
    )
