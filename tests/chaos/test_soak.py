"""500 steps of a small demo: memory stays flat, and nothing is left behind."""

import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from tests.chaos.running import CONFIG, ROLES, accounts_close, family, running

STEPS, ROWS = 500, 40
"""Rows of a data set: an epoch is over in the first quarter of the steps, because engines remember
the pictures they have met, up to a gigabyte, and should have met all of them then."""
GROWTH = 1.05
SETTINGS = (
    f"steps={STEPS}",
    "pairs=4",
    "siblings=4",
    "checkpoint_every=100",
    "evaluation.every=100",
    "evaluation.samples=20",
    "max_staleness=1",
)
LOOK_S = 2.0
SHARED = Path("/dev/shm")


@pytest.mark.timeout(7200)
def test_memory_stays_flat_over_500_steps_and_nothing_is_left(models: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(CONFIG)
    for one in config.data.train:
        one.limit = ROWS
    OmegaConf.save(config, tmp_path / "rl.yaml")
    before = {path.name for path in SHARED.iterdir()}
    used: dict[str, list[tuple[int, int]]] = defaultdict(list)
    with running(tmp_path / "rl.yaml", tmp_path / "soak", *SETTINGS) as job:
        assert job.wait_for_step(1)
        started = {one.pid: one for one in family(job.process.pid)}
        while job.process.poll() is None:
            step = int(max(one["step"] for one in job.steps()))
            for role, size in memory(job).items():
                used[role].append((step, size))
            started |= {one.pid: one for one in family(job.process.pid)}
            time.sleep(LOOK_S)
        assert job.process.returncode == 0, (tmp_path / "soak.log").read_text()[-4000:]
        assert accounts_close(job.steps())
    left = psutil.wait_procs(list(started.values()), timeout=60)[1]
    growth = {}
    for role, sizes in used.items():
        early = [size for step, size in sizes if STEPS // 4 <= step < STEPS // 2]
        late = [size for step, size in sizes if step >= 3 * STEPS // 4]
        growth[role] = float(np.median(late) / np.median(early))
    megabytes = {
        role: [
            round(np.median([s for step, s in some if at <= step < at + 50]) / 1e6)
            for at in range(0, STEPS, 50)
        ]
        for role, some in used.items()
    }
    print(json.dumps({"last / second quarter": growth, "MB by 50 steps": megabytes}))
    assert not [one.cmdline() for one in left]
    assert {path.name for path in SHARED.iterdir()} <= before
    assert not {role: ratio for role, ratio in growth.items() if ratio > GROWTH}


def memory(job) -> dict[str, int]:
    """Return the bytes that each part holds for itself, and those of the object store."""
    parts = {"driver": [psutil.Process(job.process.pid)]}
    parts |= {role: job.processes(role) for role in ROLES}
    sizes = {}
    for role, processes in parts.items():
        try:
            infos = [one.memory_info() for one in processes]
        except psutil.NoSuchProcess:
            continue
        if infos:
            sizes[role] = sum(one.rss - one.shared for one in infos)
    raylets = [one for one in family(job.process.pid) if one.name() == "raylet"]
    if raylets:
        sizes["object store"] = raylets[0].memory_info().shared
    return sizes
