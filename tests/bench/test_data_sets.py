"""A set of a million rows with shared pictures: its index, its first batch, its order.

`EMBED_RL_BENCH_ROWS` makes the set smaller. What is measured runs in processes of their own
(`set_process.py`). Ranks and engines read no sets, which `make lint` checks.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.bench.record import REPEATS, record
from tests.builders import write_picture

ROWS = int(os.environ.get("EMBED_RL_BENCH_ROWS", "1_000_000"))
ROOT = Path(__file__).resolve().parents[2]
PICTURES = 1_000
SHARDS = 4
CPU_MS, FIRST_BATCH_S, LIMIT_MB = 2.0, 5.0, 500.0
KILLED_AT = (0.2, 0.5, 0.8)
"""Shares of the rows that are read when the job is killed."""


class BigSet:
    """A set on disk, and a cache of its own in which its index is built."""

    def __init__(self, folder: Path, rows: Path) -> None:
        self.folder, self.rows = folder, rows

    def run(self, what: str, *more: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
        """Run a measurement in a fresh process."""
        caches = {"EMBED_RL_CACHE": str(self.folder / cache), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [
                *(sys.executable, "-m", "tests.bench.parts.set_process"),
                *(what, str(self.rows), str(self.folder / "root"), *more),
            ],
            cwd=ROOT,
            env=os.environ | caches | {"HF_DATASETS_CACHE": str(self.folder / "arrow")},
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, what: str, cache: str = "cache") -> dict[str, Any]:
        """Return what a measurement printed."""
        ended = self.run(what, cache=cache)
        assert ended.returncode == 0
        return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["rows.json", "shards"])
def big_set(request: pytest.FixtureRequest) -> Iterator[BigSet]:
    """Yield the set as a JSON array, then as a folder of parquet files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(PICTURES):
            size = 40 + number % 50, 40 + number // 50
            write_picture(folder / f"root/images/{number}.png", *size)
        write_rows(folder / request.param)
        yield BigSet(folder, folder / request.param)


def write_rows(path: Path) -> None:
    """Write rows of about a thousand bytes, each with one of the shared pictures."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(5_000)]
    texts = [" ".join(rng.choices(words, k=70)) for _ in range(5_000)]
    rows = (
        {
            "qry": f"what is shown here, {number}? {rng.choice(texts)}",
            "qry_image_path": f"images/{rng.randrange(PICTURES)}.png",
            "pos_text": f"{rng.choice(texts)} {rng.choice(words)} {number}",
            "pos_image_path": "",
        }
        for number in range(ROWS)
    )
    if path.suffix == ".json":
        with path.open("w") as file:
            file.writelines(
                f"{',' if number else '['}{json.dumps(row)}\n" for number, row in enumerate(rows)
            )
            file.write("]\n")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir()
    size = -(-ROWS // SHARDS)
    for shard in range(SHARDS):
        count = min(size, ROWS - shard * size)
        part = pa.Table.from_pylist([next(rows) for _ in range(count)])
        pq.write_table(part, path / f"train-{shard:05d}-of-{SHARDS:05d}.parquet")


@pytest.mark.timeout(7200)
def test_an_index_is_built_opened_and_gives_the_same_order_after_kills(big_set: BigSet) -> None:
    kind = "JSON" if big_set.rows.suffix else "parquet"
    name = f"{ROWS:,} rows of {kind}"
    builds = [big_set.measure("build")]
    order = big_set.measure("order")
    assert len(order["same"]) == 20
    assert all(order["same"])
    for share in KILLED_AT:
        killed = big_set.run("killed", str(share), cache=f"killed-{share}")
        assert killed.returncode == -SIGKILL
        assert not list((big_set.folder / f"killed-{share}").rglob("facts.json"))
        builds.append(big_set.measure("build", cache=f"killed-{share}"))
        assert big_set.measure("order", cache=f"killed-{share}") == order
    draws, alone = [], []
    big_set.measure("alone")  # it unpacks the files into its cache
    for _ in range(REPEATS):
        draws.append(big_set.measure("draw"))
        alone.append(big_set.measure("alone"))
    record(
        f"{name}, CPU of building",
        [1000 * build["cpu_s"] / ROWS for build in builds],
        [CPU_MS] * len(builds),
        target=CPU_MS,
        target_of="ours",
        unit="ms a row",
        least=len(builds),
    )
    record(
        f"{name}, first batch / datasets",
        [draw["first_batch_s"] for draw in draws],
        [measured["first_batch_s"] for measured in alone],
        target=FIRST_BATCH_S,
        target_of="ours",
    )
    for part, runs in (("driver", builds), ("worker", builds), ("opened", draws), ("drawn", draws)):
        record(
            f"{name}, memory {part}",
            [run[f"{part}_mb"] for run in runs],
            [LIMIT_MB] * len(runs),
            target=LIMIT_MB,
            target_of="ours",
            unit="MB",
            least=len(runs),
        )
