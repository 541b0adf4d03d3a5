"""Draw the demo's small world, its teacher traces, and the tiny random model to start from.

Example: python -m cluster.jobs.demo_data configs/demo/data.yaml run.seed=1
"""

import sys

from cluster.jobs.command import run_job
from cluster.run.run_folder import RunFolder
from configs.schema import DemoDataConfig
from data.demo.world import demo_corpus, write_world


def main(config: DemoDataConfig) -> int:
    """Write `world/` and `model/` into the run folder."""
    folder = RunFolder(config, job="demo_data")
    if folder.finished:
        print(folder.finished_line)
        return 0
    rows = write_world(
        folder.path / "world",
        seed=config.run.seed,
        train_scenes=config.train_scenes,
        heldout_scenes=config.heldout_scenes,
        on_target=config.on_target,
    )
    for name, count in rows.items():
        print(f"{name}: {count} rows")
    # Here and not above: it loads torch and transformers, and settings are checked without them.
    from data.demo.model import write_tiny_model

    write_tiny_model(folder.path / "model", demo_corpus(), seed=config.run.seed)
    folder.finish(rows=sum(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(DemoDataConfig, main))
