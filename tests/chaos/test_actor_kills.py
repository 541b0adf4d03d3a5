"""30 steps of the demo with a random kill -9 every 3 steps, beside 30 undisturbed ones."""

import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.running import CONFIG, ROLES, accounts_close, groups_by_step, running

STEPS, EVERY, SAMPLES = 30, 3, 200
SETTINGS = (
    f"steps={STEPS}",
    f"checkpoint_every={EVERY}",
    f"evaluation.every={STEPS}",
    f"evaluation.samples={SAMPLES}",
    "max_staleness=1",
    "rollout.pool.actors=2",
    "rollout.pool.cpus=0.25",
)
NOISES = 2.5
"""Standard deviations of the difference of two hit@1, by the number of queries, by which the run
may be worse; a run that learned more has lost nothing."""


@pytest.mark.timeout(3600)
def test_a_run_under_fire_ends_without_help_and_learns_as_much(
    models: Path, tmp_path: Path
) -> None:
    with running(CONFIG, tmp_path / "straight", *SETTINGS) as job:
        assert job.finish(1800) == 0
        straight = job.steps()

    rng = random.Random(0)
    killed = []
    with running(CONFIG, tmp_path / "killed", *SETTINGS) as job:
        for step in range(EVERY, STEPS, EVERY):
            if not job.wait_for_step(step):
                break
            role = list(ROLES)[len(killed) % len(ROLES)]
            time.sleep(rng.uniform(0.0, 2.0))  # anywhere in a step
            if job.kill_one(role, rng):
                killed.append((step, role))
        assert job.finish(1800) == 0, (tmp_path / "killed.log").read_text()[-4000:]
        steps = job.steps()

    assert len(killed) == len(range(EVERY, STEPS, EVERY))
    assert {role for _, role in killed} == set(ROLES)
    for some, folder in ((straight, "straight"), (steps, "killed")):
        assert [one["step"] for one in some] == list(range(1, STEPS + 1))
        assert accounts_close(some)
        groups = [
            key
            for keys in groups_by_step(tmp_path / folder, trained=False).values()
            for key in keys
        ]
        assert len(groups) == len(set(groups))
    hits = [some[-1]["eval/hit_at_1"] for some in (straight, steps)]
    print(
        json.dumps(
            {
                "killed": killed,
                "hit@1 undisturbed, killed": hits,
                "lost": {
                    role: sum(one[f"pool/{role}/lost"] for one in steps)
                    for role in ("rollout", "reward")
                },
                "dropped undisturbed, killed": [reasons(some) for some in (straight, steps)],
            },
            indent=1,
        )
    )
    p = sum(hits) / 2
    assert hits[0] - hits[1] < NOISES * math.sqrt(2 * p * (1 - p) / SAMPLES)


def reasons(steps: list[dict[str, float]]) -> Counter[str]:
    """Return how many traces were dropped, by reason."""
    found: Counter[str] = Counter()
    for one in steps:
        found.update({name: n for name, n in one.items() if name.startswith("dropped/")})
    return found
