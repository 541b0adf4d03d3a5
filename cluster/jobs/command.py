"""How every job starts: read settings, refuse what is wrong, dry-run, run, exit code.

Exit codes: 0 done, 1 failed, 2 the settings or the data cannot be used, 3 stopped on request,
4 nothing to train on, 5 weights or log-probabilities of engines and learner disagree.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cluster.jobs.settings_help import JobParser
from cluster.run.stopping import EXIT_CODE, Interrupted, interruptible, leave_in_time
from configs.errors import ConfigError
from configs.load import load, to_yaml
from configs.schema import EvaluateConfig, RuleTracesConfig
from data.errors import (
    ClusterError,
    DataError,
    EmbedRLError,
    NothingToTrainOn,
    StopRequested,
    WeightSyncError,
)
from data.model.model_folder import check_folder
from data.sets.load_sets import files_of, load_set, log_bad_rows, repeated_names, set_problems

CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 2,
    StopRequested: EXIT_CODE,
    Interrupted: EXIT_CODE,
    NothingToTrainOn: 4,
    WeightSyncError: 5,
    EmbedRLError: 1,
}
"""Of the errors that end a job on purpose; the first that fits."""
NO_GPU = "Setting accelerator to CPU"
log = logging.getLogger(__name__)
PREFLIGHT_ROWS = 1000
"""Rows of each data set that a dry run reads."""
T = TypeVar("T")


def run_job(
    cls: type[T],
    main: Callable[[T], int],
    *,
    roles: Callable[[T], Sequence[Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a job's ``main`` on the settings named on the command line; return its exit code."""
    try:
        with interruptible():
            code = _run(cls, main, roles=roles, argv=argv)
    except tuple(CODES) as error:
        code = print_end(error, next(c for kind, c in CODES.items() if isinstance(error, kind)))
    except Exception as error:
        from cluster.faults import explain  # loads Ray, which some jobs do without

        if (reason := explain(error)) is None:
            leave_in_time(1)
            raise
        log.debug("the job failed", exc_info=True)
        code = print_end(ClusterError(reason), 1)
    leave_in_time(code)
    return code


def _run(
    cls: type[T],
    main: Callable[[T], int],
    *,
    roles: Callable[[T], Sequence[Any]] | None,
    argv: Sequence[str] | None,
) -> int:
    # Intermixed: overrides may stand on both sides of an option.
    arguments = JobParser(cls).parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for noisy in ("alembic", "httpx", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # transformers loads DeepSpeed, which then looks for a GPU; this process needs none.
    logging.getLogger("DeepSpeed").addFilter(lambda record: NO_GPU not in str(record.msg))
    config = load(cls, arguments.config, arguments.overrides)
    from cluster.run.run_folder import project_root

    os.chdir(project_root())
    if arguments.dry_run:
        return dry_run(config, roles(config) if roles else ())
    log.info("run folder %s", config.run.dir)
    return main(config)


def print_end(error: BaseException, code: int) -> int:
    """Print the error and the exit code, and return it; Ray does not tell that of a stopped job."""
    print(f"\n{error}\nexit code {code}", file=sys.stderr)
    return code


def dry_run(config: Any, roles: Sequence[Any]) -> int:
    """Print resolved settings, the resource plan and the data sets, whose first rows are read.

    Raises:
        DataError: the job could not start with this run folder, these data sets and models.
    """
    print("# settings\n" + to_yaml(config))
    print("# resources")
    for role in roles:
        print(role)
    total = [sum(r.actors * getattr(r, unit) for r in roles) for unit in ("cpus", "gpus")]
    print(f"in all: {total[0]:g} CPU, {total[1]:g} GPU")
    print("# run folder")
    problems = _folder_problems(config)
    print("# data sets")
    problems += [*_set_problems(config), *_model_problems(config)]
    if problems:
        raise DataError("\n".join(problems))
    return 0


def _folder_problems(config: Any) -> list[str]:
    """Print what the run folder holds; return why the job could not start in it."""
    from cluster.run.run_folder import state_of

    try:
        print(state_of(config))
    except ConfigError as error:
        return [str(error)]
    return []


def _set_problems(config: Any) -> list[str]:
    """Print each data set that the job reads; return why it could not start with them."""
    data = getattr(config, "data", None)
    if data is None:
        return []
    train = [] if isinstance(config, EvaluateConfig) else data.train
    held_out = [] if isinstance(config, RuleTracesConfig) else data.eval
    problems = [*repeated_names(train), *repeated_names(held_out)]
    for settings in [*train, *held_out]:
        kind = {"llavahound": "video", "colpali": "page"}.get(settings.format, settings.kind)
        line = (
            f"{settings.name}: {settings.path} "
            f"({settings.format}, {kind}, weight {settings.weight:g})"
        )
        most = min(settings.limit or PREFLIGHT_ROWS, PREFLIGHT_ROWS)
        few = replace(settings, limit=most)
        try:
            files = files_of(settings, max_file_bytes=data.media.max_file_bytes)
            loaded = load_set(
                few, max_frames=data.media.max_frames, video=data.media.video, files=files
            )
        except DataError as error:
            print(f"{line}: cannot be read")
            problems.append(str(error))
            continue
        there, asked = files.found()
        pictures = f"{there / asked:.0%} of {asked} pictures found" if asked else "no pictures"
        print(
            f"{line}: {loaded.rows} rows; of the first {loaded.read}: {len(loaded.pairs)} pairs, "
            f"{len(loaded.bad_rows)} rows set aside, {pictures}"
        )
        log_bad_rows(loaded)
        problems += set_problems(loaded, settings, max_bad_rows=data.max_bad_rows)
    return problems


def _model_problems(config: Any) -> list[str]:
    """Return which of the job's models are not there or not complete."""
    from cluster.run.run_folder import MODEL_FOLDERS

    reward = getattr(config, "reward", None)
    parts = [config, reward, getattr(reward, "judge", None)]
    sections = ["", "reward.", "reward.judge."]
    keys: dict[str, list[str]] = {}
    for part, section in zip(parts, sections, strict=True):
        for name in MODEL_FOLDERS:
            if folder := getattr(part, name, ""):
                keys.setdefault(folder, []).append(section + name)
    problems = []
    for folder, named in keys.items():
        try:
            check_folder(folder)
        except DataError as error:
            problems.append(f"{' and '.join(named)}: {error}")
    return problems
