"""Give the pools of a running job other sizes; it starts or drains actors while it goes on.

Example: python -m cluster.jobs.scale runs/demo/rl rollout=3 reward=2
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.pools.pool_scaler import TARGETS, TARGETS_TIMEOUT_S
from cluster.run.run_folder import project_root
from cluster.session import check_listening, join_ray
from configs.errors import ConfigError
from data.errors import ClusterError
from evaluation.summary import STAGE_FILE

ANSWER_TIMEOUT_S = 2 * TARGETS_TIMEOUT_S
"""To join the cluster and to ask the job. A Ray that ends meanwhile keeps `ray.init` waiting."""


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the job that runs in a folder how many actors it shall have; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.jobs.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="run folder of the job, as in its settings")
    parser.add_argument("counts", nargs="+", metavar="pool=count")
    arguments = parser.parse_args(argv)
    try:
        counts = dict(map(_count, arguments.counts))
        os.chdir(project_root())
        with _answered_in_time(arguments.run):
            ask(Path(arguments.run), counts)
    except (ClusterError, ConfigError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(
        f"{arguments.run}: asked for {' '.join(arguments.counts)}; after the step under way the "
        "job's log says what is ready, and what waits for which CPUs or GPUs"
    )
    return 0


def ask(run: Path, counts: dict[str, int]) -> None:
    """Send wanted sizes to the job that runs in a folder.

    Raises:
        ClusterError: no such job is on the cluster, or it has no such pool.
        ConfigError: RAY_ADDRESS is a dashboard's.
    """
    namespace = str(run.resolve())  # as the job's own
    if (run / STAGE_FILE).is_file():
        raise ClusterError(
            f"expected a job that runs in {namespace}, found one that has finished: it has no "
            "pools any more"
        )
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        check_listening(address)
        join_ray(address, namespace=namespace, logging_level=logging.ERROR)
        try:
            targets = ray.get_actor(TARGETS)
            ray.get(targets.ask.remote(counts), timeout=TARGETS_TIMEOUT_S)
        finally:
            ray.shutdown()
    except ConfigError:  # is a ValueError too, and says already what is wrong
        raise
    except (ConnectionError, ValueError) as error:
        raise ClusterError(
            f"expected a job that runs in {namespace} on the Ray cluster of RAY_ADDRESS={address}, "
            "found none; name the folder as the job's run.dir, and the cluster by RAY_ADDRESS: the "
            f"job logs it as its engines are ready ({error})"
        ) from error
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise ClusterError(f"{namespace}: the job did not answer: {error}") from error


@contextmanager
def _answered_in_time(run: str) -> Iterator[None]:
    """End this process with a message if what is inside does not end in ANSWER_TIMEOUT_S."""

    def end() -> None:
        print(
            f"\n{run}: no answer of the job's Ray in {ANSWER_TIMEOUT_S:g} s; the job may "
            "just have ended: see its log. If it runs on, set RAY_ADDRESS to the address that the "
            "log names, and try again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # no exception reaches the main thread, which waits inside of Ray

    timer = threading.Timer(ANSWER_TIMEOUT_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _count(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not count.isdecimal():
        raise ClusterError(f"expected pool=count with a whole number, found {text}")
    return name, int(count)


if __name__ == "__main__":
    sys.exit(main())
