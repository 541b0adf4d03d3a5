"""`evaluate` and `encode`, killed five times among their blocks: nothing stored is made again."""

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.stores.encoded import ENCODED_FOLDER
from tests.answered_requests import answered_requests, write_site
from tests.chaos.running import REPOSITORY, Life, family, running

KILLS = 5
ITEMS = 20_000
BLOCK = 128
ROLES = {
    "engine": ("EngineCore",),
    "actor of an engine": ("EmbedderActor", "RolloutActor"),
    "decoder": ("SideProcessActor",),
    "driver": ("cluster.jobs",),
}
"""What a process of a role is called; any other is Ray's own."""


@contextmanager
def cpu_seconds(job: Life, into: dict[str, float]) -> Iterator[None]:
    """Add up the CPU seconds of a job's processes by role; a last half second may be missed."""
    spent: dict[psutil.Process, tuple[str, float]] = {}
    done = Event()

    def look() -> None:
        while not done.wait(0.5):
            for process in [psutil.Process(job.process.pid), *family(job.process.pid)]:
                try:
                    line, times = " ".join(process.cmdline()), process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                role = next(
                    (r for r, names in ROLES.items() if any(n in line for n in names)), "ray"
                )
                spent[process] = role, times.user + times.system

    watch = Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()
        for role, seconds in spent.values():
            into[role] = into.get(role, 0.0) + seconds


def stored(store: Path) -> dict[Path, list[str]]:
    """Return the keys in a folder of stores, by the store that holds them."""
    keys: dict[Path, list[str]] = defaultdict(list)
    for part in sorted(store.glob("*/*/*.parquet")):
        keys[part.parent.relative_to(store)] += pq.read_table(part, columns=["key"])[
            "key"
        ].to_pylist()
    return keys


def parts_of(store: Path) -> int:
    return len(list(store.glob("*/*/*.parquet")))


def killed_job(
    job: str, config: Path, folder: Path, store: Path, path: Path, *settings: str
) -> None:
    """Run a job that is killed five times, each time some blocks further on, to its end."""
    rng = random.Random(0)
    for _ in range(KILLS):
        with running(config, folder, *settings, job=job, path=str(path)) as life:
            parts = parts_of(store) + rng.choice((1, 2, 5))
            assert life.wait_for(f"part {parts}", lambda most=parts: parts_of(store) >= most)
            time.sleep(rng.uniform(0.0, 1.0))
            assert life.process.poll() is None
            life.kill()
    with running(config, folder, *settings, job=job, path=str(path)) as life:
        assert life.finish(3000) == 0, folder.with_suffix(".log").read_text()[-4000:]


def check_requests(store: Path, path: Path) -> dict[str, int]:
    """Fail where a key is stored twice, or where a kill has cost more than a block."""
    keys = stored(store)
    assert all(len(of_store) == len(set(of_store)) for of_store in keys.values())
    rows = sum(map(len, keys.values()))
    answered = sum(map(len, answered_requests(path).values()))
    assert 0 <= answered - rows <= KILLS * BLOCK
    return {"rows in the stores": rows, "requests answered by engines": answered}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a folder whose modules count what engines have answered."""
    return write_site(tmp_path / "site")


def evaluation_of(folder: Path) -> dict[str, Any]:
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["speed"]  # no two runs have it alike
    return evaluation


@pytest.mark.timeout(3600)
def test_an_evaluation_in_blocks_that_is_killed_again_and_again(
    models: Path, tmp_path: Path, path: Path
) -> None:
    config = REPOSITORY / "configs/demo/evaluate.yaml"
    pictures = set()
    for rows in (models / "data/world/heldout").glob("*.json"):
        text = rows.read_text()
        pictures |= {p for p in (models / "data/world/images").rglob("*.png") if p.name in text}
    decoded = sum(3 * w * h for w, h in (Image.open(p).size for p in pictures))
    ceiling = decoded // 4
    settings = (f"block={BLOCK}", f"data.media.max_step_bytes={ceiling}")
    with running(config, tmp_path / "straight", *settings, job="evaluate") as life:
        assert life.finish(3000) == 0
    folder = tmp_path / "killed"
    killed_job("evaluate", config, folder, folder / "store", path, *settings)
    assert evaluation_of(folder) == evaluation_of(tmp_path / "straight")
    figures = check_requests(folder / "store", path)
    print(json.dumps({"decoded bytes": decoded, "ceiling": ceiling, "kills": KILLS, **figures}))


@pytest.mark.timeout(3600)
def test_encode_of_20_000_items_that_is_killed_again_and_again(
    models: Path, tmp_path: Path, path: Path
) -> None:
    config = REPOSITORY / "configs/demo/encode.yaml"
    input_ = write_items(models / "data/world/images", tmp_path / "items")
    settings = (f"input={input_}", "reasoner=''", f"block={BLOCK}")
    cpu: dict[str, float] = {}
    begun = time.perf_counter()
    with (
        running(config, tmp_path / "straight", *settings, job="encode") as life,
        cpu_seconds(life, cpu),
    ):
        assert life.finish(3000) == 0
    seconds = time.perf_counter() - begun
    folder = tmp_path / "killed"
    killed_job("encode", config, folder, folder / "store", path, *settings)
    straight, again = (vectors_of(tmp_path / name) for name in ("straight", "killed"))
    assert straight.keys() == again.keys()
    assert len(straight) == ITEMS
    apart = max(float(np.abs(straight[key] - again[key]).max()) for key in straight)
    assert apart < 1e-5
    figures = check_requests(folder / "store", path)
    per_item = {role: round(1000 * spent / ITEMS, 3) for role, spent in sorted(cpu.items())}
    print(
        json.dumps(
            {"kills": KILLS, "seconds": seconds, "largest difference": apart, **figures}
            | {"CPU ms an item": per_item}
        )
    )


def write_items(images: Path, folder: Path) -> Path:
    """Draw 20,000 pictures that differ, from the demo's by turning and shifting, as PNG files."""
    folder.mkdir()
    pictures = sorted(images.rglob("*.png"))
    for index in range(ITEMS):
        turns, place = divmod(index, len(pictures))
        picture = Image.open(pictures[place])
        name = f"{index:05d}.png"
        np_picture = np.roll(np.asarray(picture), 32 * turns, axis=1)
        Image.fromarray(np_picture).save(folder / name)
    return folder


def vectors_of(folder: Path) -> dict[str, np.ndarray]:
    vectors = {}
    for part in sorted((folder / ENCODED_FOLDER).glob("*.parquet")):
        table = pq.read_table(part, columns=["id", "vector"])
        rows = zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True)
        for item_id, vector in rows:
            assert item_id not in vectors
            vectors[item_id] = np.asarray(vector, dtype=np.float32)
    return vectors
