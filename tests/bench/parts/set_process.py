"""What is measured of a data set in a process of its own: a fresh one has the memory of no other.

Prints a line of JSON: `python -m tests.bench.parts.set_process <what> <rows> <root> [<share>]`.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import data.sets.open_sets
from configs.common import DataConfig, DataSetConfig
from data.sets.feed import PairFeed
from data.sets.load_sets import LoadedSet, known_right, load_sets

BATCH = 64
DRAWN, NEXT, PLACES = 200, 50, 20
"""Batches that are drawn; batches that are compared after a resume; places of a resume."""
LOOK_S = 0.1
"""Between two looks at the memory."""


def anonymous_mb(process: int) -> float:
    """Return the memory of a process that no file holds, in MB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    [line] = [line for line in status.splitlines() if line.startswith("RssAnon")] or ["RssAnon 0"]
    return int(line.split()[1]) * 1024 / 1e6


class Peaks:
    """The most memory that this process, and the largest of its children, had so far."""

    def __init__(self) -> None:
        self.own = self.largest_child = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            children = [anonymous_mb(child.pid) for child in me.children(recursive=True)]
            self.own = max(self.own, anonymous_mb(me.pid))
            self.largest_child = max(self.largest_child, *children, 0.0)
            time.sleep(LOOK_S)


def load(rows: str, root: str) -> LoadedSet:
    """Return the set."""
    config = DataSetConfig(name="set", path=rows, root=root)
    [loaded] = load_sets([config], limits=DataConfig())
    return loaded


def new_feed(loaded: LoadedSet) -> PairFeed:
    """Return what draws the set's pairs."""
    return PairFeed([loaded], {"set": 1.0}, batch=BATCH, seed=0)


def build(rows: str, root: str, base: float) -> dict[str, Any]:
    """Read all rows; return CPU seconds of all processes, and memory above the base."""
    peaks = Peaks()
    began = time.perf_counter()
    loaded = load(rows, root)
    seconds = time.perf_counter() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "rows": loaded.read,
        "seconds": seconds,
        "cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "driver_mb": peaks.own - base,
        "worker_mb": peaks.largest_child,
    }


def build_until_killed(rows: str, root: str, share: float) -> None:
    """Read rows until that share of them is read, then die."""
    scan_rows = data.sets.open_sets.scan_rows

    def scan(reader: Any, in_use: Sequence[int], done: Callable[[int], object]) -> Any:
        read = 0

        def count(more: int) -> None:
            nonlocal read
            read += more
            if read >= share * len(in_use):
                os.kill(os.getpid(), signal.SIGKILL)

        return scan_rows(reader, in_use, count)

    data.sets.open_sets.scan_rows = scan
    load(rows, root)


def draw(rows: str, root: str, base: float) -> dict[str, Any]:
    """Open a built index and draw; return seconds to the first batch, memory above the base."""
    began = time.perf_counter()
    loaded = load(rows, root)
    opened_mb = anonymous_mb(os.getpid()) - base
    feed = new_feed(loaded)
    feed.next()
    first_batch_s = time.perf_counter() - began
    relevance = known_right([loaded])
    for _ in range(DRAWN):
        relevance.right_among(feed.next())
    return {
        "first_batch_s": first_batch_s,
        "opened_mb": opened_mb,
        "drawn_mb": anonymous_mb(os.getpid()) - base,
    }


def order(rows: str, root: str) -> dict[str, Any]:
    """Return the ids of the first batches, and whether those after resumes are the same."""
    loaded = load(rows, root)
    feed = new_feed(loaded)
    states, ids = [], []
    for _ in range(DRAWN + NEXT):
        states.append(feed.state())
        ids.append([pair.pair_id for pair in feed.next()])
    same = []
    for place in np.random.default_rng(0).choice(DRAWN, PLACES, replace=False).tolist():
        resumed = new_feed(loaded)
        resumed.restore(json.loads(json.dumps(states[place])))
        after = [[pair.pair_id for pair in resumed.next()] for _ in range(NEXT)]
        same.append(after == ids[place : place + NEXT])
    return {"ids": ids, "same": same}


def alone(rows: str) -> dict[str, Any]:
    """Return the seconds until `datasets` has the first batch of shuffled rows."""
    import datasets

    began = time.perf_counter()
    kind = "json" if rows.endswith(".json") else "parquet"
    files = [rows] if kind == "json" else sorted(map(str, Path(rows).glob("*.parquet")))
    shuffled = datasets.load_dataset(kind, data_files=files, split="train").shuffle(seed=0)
    batch = shuffled[:BATCH]
    assert len(batch["qry"]) == BATCH
    return {"first_batch_s": time.perf_counter() - began}


def main(what: str, rows: str, root: str, share: str = "1") -> None:
    """Print what was measured."""
    # The base has all that is imported later.
    import pyarrow.parquet  # noqa: F401

    if what == "alone" or not rows.endswith(".json"):
        import datasets  # noqa: F401

    base = anonymous_mb(os.getpid())
    if what == "killed":
        build_until_killed(rows, root, float(share))
    measured = {
        "build": lambda: build(rows, root, base),
        "draw": lambda: draw(rows, root, base),
        "order": lambda: order(rows, root),
        "alone": lambda: alone(rows),
    }[what]()
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
