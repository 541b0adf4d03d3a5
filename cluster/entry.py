"""How every job starts: read settings, refuse what is wrong, dry-run, run, exit code.

Exit codes: 0 done, 1 failed, 2 the settings or the data cannot be used, 3 stopped on request.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from configs.errors import ConfigError
from configs.load import load, to_yaml
from data.errors import DataError, EmbedRLError, StopRequested

log = logging.getLogger(__name__)
T = TypeVar("T")


def run_job(
    cls: type[T],
    main: Callable[[T], int],
    *,
    roles: Callable[[T], Sequence[Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a job's ``main`` on the settings named on the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=(cls.__doc__ or "").strip())
    parser.add_argument("config", help="YAML file under configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, plan and data; start nothing"
    )
    # Intermixed: overrides may stand on both sides of an option.
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for noisy in ("alembic", "httpx", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config = load(cls, arguments.config, arguments.overrides)
        from cluster.run_folder import project_root

        os.chdir(project_root())
        if arguments.dry_run:
            return dry_run(config, roles(config) if roles else ())
        log.info("run folder %s", config.run.dir)
        return main(config)
    except (ConfigError, DataError) as error:
        return print_end(error, 2)
    except StopRequested as error:
        return print_end(error, 3)
    except EmbedRLError as error:
        return print_end(error, 1)


def print_end(error: Exception, code: int) -> int:
    """Print the error and the exit code, and return it; Ray does not tell that of a stopped job."""
    print(f"\n{error}\nexit code {code}", file=sys.stderr)
    return code


def dry_run(config: Any, roles: Sequence[Any]) -> int:
    """Print resolved settings, the resource plan and the data sets."""
    print("# settings\n" + to_yaml(config))
    print("# resources")
    for role in roles:
        print(role)
    total = [sum(r.actors * getattr(r, unit) for r in roles) for unit in ("cpus", "gpus")]
    print(f"in all: {total[0]:g} CPU, {total[1]:g} GPU")
    print("# data sets")
    data = getattr(config, "data", None)
    for one in [*data.train, *data.eval] if data else []:
        size = f"{Path(one.path).stat().st_size} bytes" if Path(one.path).is_file() else "not there"
        print(f"{one.name}: {one.path} ({one.format}, {one.kind}, weight {one.weight:g}, {size})")
    return 0
