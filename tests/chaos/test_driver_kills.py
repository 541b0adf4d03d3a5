"""20 random kill -9 of the driver, each followed by the same command."""

import json
import random
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.chaos.running import CONFIG, accounts_close, groups_by_step, running

KILLS, STEPS, ROWS = 20, 44, 20
SETTINGS = (
    f"steps={STEPS}",
    "pairs=4",
    "siblings=4",
    "checkpoint_every=1",
    "evaluation.every=0",
    "grpo.refill=2",
)


def first_difference(one: list[dict], other: list[dict]) -> dict[str, object]:
    """Return the first step whose rewards or losses are not those of the other run, and which.

    What is refilled follows from the rewards, so that equal prompts ask for equal bits in all
    that comes before them.
    """
    for mine, theirs in zip(one, other, strict=False):
        names = [name for name in mine if name.startswith(("reward/", "policy/"))]
        if found := [name for name in names if mine[name] != theirs.get(name)]:
            return {"step": mine["step"], "metrics": found}
    return {}


@pytest.mark.timeout(7200)
def test_a_driver_that_is_killed_again_and_again_trains_the_same_prompts(
    models: Path, tmp_path: Path
) -> None:
    config = OmegaConf.load(CONFIG)
    for one in config.data.train:
        one.limit = ROWS  # several epochs in 44 steps
    OmegaConf.save(config, tmp_path / "rl.yaml")
    with running(tmp_path / "rl.yaml", tmp_path / "straight", *SETTINGS) as job:
        assert job.finish(1800) == 0
        straight = job.steps()

    rng = random.Random(0)
    folder = tmp_path / "killed"
    moments = []
    done = 0
    while len(moments) < KILLS:
        with running(tmp_path / "rl.yaml", folder, *SETTINGS) as job:
            # Now and then before the first step, else one to three steps later.
            ahead = rng.choice((0, 1, 2, 3))
            if ahead:
                assert job.wait_for_step(min(done + ahead, STEPS - 1))
                time.sleep(rng.uniform(0.0, 1.0))
            else:
                time.sleep(rng.uniform(1.0, 25.0))
            assert job.process.poll() is None
            job.kill()
            done = max([0, *(int(one["step"]) for one in job.steps())])
            moments.append(done)
    with running(tmp_path / "rl.yaml", folder, *SETTINGS) as job:
        assert job.finish(1800) == 0, (tmp_path / "killed.log").read_text()[-4000:]
        steps = job.steps()

    print(
        json.dumps(
            {"killed after step": moments, "differs from": first_difference(straight, steps)}
        )
    )
    assert [one["step"] for one in steps] == [one["step"] for one in straight]
    assert accounts_close(steps)
    for trained in (False, True):
        expected = groups_by_step(tmp_path / "straight", trained=trained)
        assert groups_by_step(folder, trained=trained) == expected
    pairs = [key for keys in groups_by_step(folder, trained=False).values() for key in keys]
    assert len(pairs) == len(set(pairs))
    # More prompts than the sets hold: epochs ended.
    assert len(pairs) > 2 * ROWS * len(config.data.train)
