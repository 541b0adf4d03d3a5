"""Small objects with sane defaults: a test overrides only what it is about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from configs.common import DataSetConfig
from data.sets.index import PairTable, Texts
from data.sets.load_sets import LoadedSet
from data.types import (
    GroupKey,
    Item,
    Kind,
    Pair,
    RewardParts,
    ScoredTrajectory,
    Side,
    Trajectory,
    TrajectoryKey,
)

TRACES = {
    Kind.TEXT: '<thinking>a dog{"text_keywords": ["dog"]}</thinking>'
    "<rethink>yes</rethink><answer>a dog</answer>",
    Kind.IMAGE: '<thinking>left{"bbox_2d": [100, 200, 500, 600]}</thinking>'
    "<rethink>yes</rethink><answer>a dog</answer>",
    Kind.PAGE: '<thinking>top{"bbox_2d": [[0, 0, 1000, 200]]}</thinking>'
    "<rethink>yes</rethink><answer>a title</answer>",
    Kind.VIDEO: '<thinking>late{"key_frames": [2, 3]}</thinking>'
    "<rethink>yes</rethink><answer>a jump</answer>",
}
"""A strictly valid trace of each kind; the video's needs 3 frames."""
WITHOUT_AN_ITEM = Path(__file__).parent / "unit/data/media/broken_pictures/without_an_item.avif"
"""A damaged picture whose decoder raises RuntimeError."""


def make_pair(name: str = "p", **changes: Any) -> Pair:
    """Return a pair of texts."""
    settings: dict[str, Any] = {
        "pair_id": name,
        "source": "set",
        "query": Item(text=f"query {name}"),
        "target": Item(text=f"target {name}"),
        **changes,
    }
    return Pair(**settings)


def make_trajectory(
    serial: int, side: Side, sibling: int = 0, *, text: str = TRACES[Kind.TEXT]
) -> Trajectory:
    """Return a finished trace of two tokens."""
    return Trajectory(
        key=TrajectoryKey(GroupKey(serial, f"p{serial}", side), sibling),
        prompt_ids=np.array([1, 2]),
        response_ids=np.array([3, 4]),
        logprobs=np.zeros(2, dtype=np.float32),
        text=text,
        finish="stop",
        min_version=0,
        max_version=0,
    )


def make_scored(trajectory: Trajectory, **parts: float) -> ScoredTrajectory:
    """Return a trace that was ranked first and paid for it, unless ``parts`` say otherwise."""
    settings = {
        "format": 1.0,
        "outcome": 0.3,
        "accuracy": 1.0,
        "margin": 0.3,
        "rank": 1,
        "process": 0.0,
        "gain": 0.0,
        "length": 0.0,
        "total": 0.35,
        **parts,
    }
    return ScoredTrajectory(
        trajectory=trajectory,
        parts=RewardParts(**settings),
        retrieved=(),
        candidates_id="round",
        candidates_size=2,
    )


def write_picture(path: Path, width: int = 40, height: int = 30) -> Path:
    """Write a picture whose pixels tell their place: red = column, green = row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)[None, :] % 256
    pixels[..., 1] = np.arange(height)[:, None] % 256
    Image.fromarray(pixels).save(path)
    return path


def write_beir(
    folder: Path, queries: Any, corpus: Any, qrels: Any, split: str = "test", **changes: Any
) -> DataSetConfig:
    """Write three tables as the hub has them, beside a picture root; return the set's settings.

    Each is a table, or columns.
    """
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    for part, content in (("queries", queries), ("corpus", corpus), ("qrels", qrels)):
        table = content if isinstance(content, pa.Table) else pa.table(content)
        file = folder / "beir" / part / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
    settings = {"name": "set", "path": str(folder / "beir"), "root": str(root), **changes}
    return DataSetConfig(format="beir", **settings)


def write_set(folder: Path, rows: Any, *, format: str = "mmeb", **changes: Any) -> DataSetConfig:
    """Write rows as a JSON array beside a picture root, and return the data set's settings."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    settings = {"name": "set", "path": str(path), "root": str(root), "format": format, **changes}
    return DataSetConfig(**settings)


def loaded_set(*, name: str, pairs: Sequence[Pair], **more: Any) -> LoadedSet:
    """Return a data set of pairs that no file holds."""
    shown = list(dict.fromkeys(uri for p in pairs for i in (p.query, p.target) for uri in i.uris))
    return LoadedSet(
        name=name,
        pairs=tuple(pairs),
        table=PairTable.of(pairs),
        uris=Texts(shown),
        shown=np.ones(len(shown), dtype=bool),
        **more,
    )
