"""How every job starts: read settings, refuse what is wrong, dry-run, run, exit code.

Exit codes: 0 done, 1 failed, 2 the settings or the data cannot be used, 3 stopped on request,
4 nothing to train on, 5 weights of engines and learner disagree, 6 their log-probabilities do.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cluster.memory_plan import plan_lines
from cluster.run.settings_help import JobParser
from cluster.run.stopping import EXIT_CODE, Interrupted, interruptible, leave_in_time
from configs.common import BENCHMARK_SETS, BenchmarkConfig, MediaConfig
from configs.errors import ConfigError
from configs.load import load, to_yaml
from configs.schema import (
    EmbedderConfig,
    EncodeConfig,
    EvaluateConfig,
    ReportConfig,
    RivalConfig,
    RuleTracesConfig,
    SearchConfig,
    ServeConfig,
    WarmStartConfig,
    engines_of,
)
from data.engine.arguments import check_engines
from data.errors import (
    ClusterError,
    DataError,
    EmbedRLError,
    NotFetched,
    NothingToTrainOn,
    NotUnpacked,
    ParityError,
    StopRequested,
    WeightSyncError,
)
from data.model.model_folder import check_folder, sees_pictures
from data.rows.row_formats import KIND_OF_FORMAT
from data.rows.trace_files import published_files
from data.sets.load_sets import (
    LoadedSet,
    load_each,
    log_bad_rows,
    no_traces,
    repeated_names,
    set_problems,
)
from data.stores.traced_sets import with_stored_traces

CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 2,
    StopRequested: EXIT_CODE,
    Interrupted: EXIT_CODE,
    NothingToTrainOn: 4,
    WeightSyncError: 5,
    ParityError: 6,
    EmbedRLError: 1,
}
"""Of the errors that end a job on purpose; the first that fits."""
NO_GPU = "Setting accelerator to CPU"
log = logging.getLogger(__name__)
PREFLIGHT_ROWS = 1000
"""Rows of each data set, or items of an input, that a dry run reads."""
JUDGE = "reward.judge."
"""The judge's settings; it reads texts only."""
SHOWN_ASIDE = 3
"""Items set aside that a dry run names."""
T = TypeVar("T")


class Repeats(logging.Filter):
    """Lets a warning that repeats pass at its 1st, 2nd, 4th, 8th, ... time, with the count.

    Warnings repeat if their texts are equal, or what they have as ``same`` in their `extra`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is shown; from the second time on its text tells the count."""
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        key = record.name, getattr(record, "same", text)
        self._counts[key] += 1
        if self._counts[key] > 1:
            record.msg, record.args = f"{text} ({self._counts[key]} such warnings so far)", ()
        return self._counts[key].bit_count() == 1


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
    console = logging.StreamHandler()
    console.addFilter(Repeats())
    line = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, handlers=[console])
    for noisy in ("alembic", "httpx", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # transformers loads DeepSpeed, which then looks for a GPU; this process needs none.
    logging.getLogger("DeepSpeed").addFilter(lambda record: NO_GPU not in str(record.msg))
    config = load(cls, arguments.config, arguments.overrides)
    check_engines(engines_of(config))
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
        DataError: the job could not start with this run folder, these runs, data sets and models.
    """
    print("# settings\n" + to_yaml(config))
    print("# resources")
    for role in roles:
        print(role)
    total = [sum(r.actors * getattr(r, unit) for r in roles) for unit in ("cpus", "gpus")]
    print(f"in all: {total[0]:g} CPU, {total[1]:g} GPU")
    for line in plan_lines(config):
        print(line)
    print("# run folder")
    problems = _folder_problems(config)
    if isinstance(config, ReportConfig):
        print("# runs")
        problems += _run_problems(config)
    if isinstance(config, EncodeConfig):
        print("# input")
        problems += _input_problems(config)
    if isinstance(config, SearchConfig):
        print("# encoded items")
        problems += _encoded_problems(config)
    if isinstance(config, ServeConfig):
        problems += _serving_problems(config)
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


def _run_problems(config: ReportConfig) -> list[str]:
    """Print which files of the runs are there; return which are not."""
    from evaluation.summary import run_files

    stages = [Path(stage) for stage in config.stages]
    problems = []
    for key, file in run_files(evaluate=Path(config.evaluate), rl=Path(config.rl), stages=stages):
        print(f"{key}: {file}: {'there' if file.is_file() else 'missing'}")
        if not file.is_file():
            problems.append(
                f"{key}: {file} not found; run the job that writes it first, or correct the folder"
            )
    return problems


def _input_problems(config: EncodeConfig) -> list[str]:
    """Print what the first items of the input are; return why the job could not start with it."""
    from data.sets.items import SetAside, items_root, read_items

    source = Path(config.input)
    entries = read_items(source, root=items_root(source, config.root), media=config.data.media)
    try:
        first = list(islice(entries, PREFLIGHT_ROWS))
    except DataError as error:
        print(f"{source}: cannot be read")
        return [str(error)]
    aside = [entry for entry in first if isinstance(entry, SetAside)]
    print(f"{source}: of the first {len(first)} items {len(aside)} are set aside")
    for entry in aside[:SHOWN_ASIDE]:
        print(f"  {entry.reason}")
    if len(aside) == len(first):
        return [f"{source}: expected items, found none of use; name another folder or file"]
    return []


def _encoded_problems(config: SearchConfig) -> list[str]:
    """Print how many encoded items there are; return why they cannot be searched."""
    from data.stores.encoded import ENCODED_FOLDER, EncodedParts
    from data.stores.vector_index import check_faiss

    try:
        parts = EncodedParts(Path(config.encoded) / ENCODED_FOLDER)
        print(f"{parts.folder}: {len(parts)} items")
        parts.check_embedder(config.reward, config.data.media)
        if config.index != "exact":
            check_faiss(config.index)
    except (DataError, ConfigError) as error:
        return [str(error)]
    return []


def _serving_problems(config: ServeConfig) -> list[str]:
    """Return why requests could not be served with these settings on this machine."""
    from cluster.serving.preflight import check_settings

    try:
        check_settings(config)
    except ConfigError as error:
        return [str(error)]
    return []


def _set_problems(config: Any) -> list[str]:
    """Print each data set that the job reads; return why it could not start with them."""
    data = getattr(config, "data", None)
    if data is None:
        return []
    benchmarks = config.benchmarks if isinstance(config, EvaluateConfig) else []
    train = config.adaptive.train if isinstance(config, EvaluateConfig) else data.train
    held_out = [] if isinstance(config, RuleTracesConfig) else data.eval
    problems = [*repeated_names(train), *repeated_names(held_out)]
    for benchmark in benchmarks:
        problems += _benchmark_problems(benchmark, data.media)
    if isinstance(config, EvaluateConfig) and config.published_traces:
        problems += _published_problems(config)
    learns = isinstance(config, WarmStartConfig | EmbedderConfig)
    # Split and name of sets without any trace, all rows of which were read.
    without_traces: set[tuple[str, str]] = set()
    splits = ["train"] * len(train) + ["eval"] * len(held_out)
    configs = [*train, *held_out]
    few = [replace(c, limit=min(c.limit or PREFLIGHT_ROWS, PREFLIGHT_ROWS)) for c in configs]
    read = load_each(few, media=data.media, offline=True, unpack=False)
    for split, settings, loaded in zip(splits, configs, read, strict=True):
        kind = KIND_OF_FORMAT.get(settings.format, settings.kind)
        line = (
            f"{settings.name}: {settings.path} "
            f"({settings.format}, {kind}, weight {settings.weight:g})"
        )
        if isinstance(loaded, NotUnpacked):
            print(f"{line}: not looked at; the job unpacks archives first")
            continue
        if isinstance(loaded, NotFetched) and not data.offline:
            print(f"{line}: not looked at; the job fetches it first")
            continue
        if isinstance(loaded, DataError):
            print(f"{line}: cannot be read")
            problems.append(str(loaded))
            continue
        if learns:
            try:
                [loaded] = with_stored_traces([loaded], [settings], config)
            except DataError as error:
                problems.append(str(error))
        there, asked = loaded.media_usable, loaded.media_named
        more = f"{len(loaded.distractors)} distractors, " if loaded.distractors else ""
        pictures = f"{there / asked:.0%} of {asked} pictures found" if asked else "no pictures"
        print(
            f"{line}: {loaded.rows} rows; of the first {loaded.read}: {len(loaded.pairs)} pairs, "
            f"{more}{len(loaded.bad_rows)} rows set aside, {pictures}"
            + (f", {_traced(loaded) or 'none'} with a trace" if learns else "")
        )
        if loaded.beir:
            print(f"  in all {loaded.beir}")
        log_bad_rows(loaded)
        problems += set_problems(loaded, settings, max_bad_rows=data.max_bad_rows)
        if loaded.read == loaded.rows and not _traced(loaded):
            without_traces.add((split, settings.name))
    if isinstance(config, WarmStartConfig):
        needed = {"train": train} | ({"eval": held_out} if config.evaluation.every else {})
        problems += [
            no_traces(split, (settings.name for settings in sets))
            for split, sets in needed.items()
            if without_traces.issuperset((split, settings.name) for settings in sets)
        ]
    return problems


def _traced(loaded: LoadedSet) -> int:
    return int((loaded.table.traces > 0).sum())


def _benchmark_problems(benchmark: BenchmarkConfig, media: MediaConfig) -> list[str]:
    """Print a benchmark; return why sets of it cannot be measured."""
    from evaluation.benchmarks.load import benchmark_problems

    sets = benchmark.sets or BENCHMARK_SETS[benchmark.suite]
    try:
        problems = [str(problem) for problem in benchmark_problems(benchmark, media)]
    except DataError as error:
        problems = [str(error)]
    print(f"{benchmark.suite}: {benchmark.root}: {len(sets)} sets, {len(problems)} problems")
    return problems


def _published_problems(config: EvaluateConfig) -> list[str]:
    """Print how many files of published traces there are; return why they cannot be used."""
    names = [name for b in config.benchmarks for name in b.sets or BENCHMARK_SETS[b.suite]]
    try:
        files = published_files(config.published_traces, names)
    except DataError as error:
        return [str(error)]
    count = sum(map(len, files.values()))
    print(f"published_traces: {count} files of {len(files)} of {len(names)} sets")
    return []


def _model_problems(config: Any) -> list[str]:
    """Return which of the job's models are not there, not complete, or do not take its pixels."""
    from cluster.run.run_folder import MODEL_FOLDERS

    reward, data = getattr(config, "reward", None), getattr(config, "data", None)
    parts = [config, reward, getattr(reward, "judge", None)]
    sections = ["", "reward.", JUDGE]
    keys: dict[str, list[str]] = {}
    for part, section in zip(parts, sections, strict=True):
        for name in MODEL_FOLDERS:
            if folder := getattr(part, name, ""):
                keys.setdefault(folder, []).append(section + name)
    problems = []
    for folder, named in keys.items():
        try:
            check_folder(folder)
            if data and sees_pictures(folder) and not all(key.startswith(JUDGE) for key in named):
                # Here and not above: it loads transformers.
                from data.model.chat import load_encoder

                load_encoder(folder, data.media)  # refuses limits that do not fit it
        except (DataError, ConfigError) as error:
            problems.append(f"{' and '.join(named)}: {error}")
    return problems + _rival_problems(config.rivals if isinstance(config, EvaluateConfig) else [])


def _rival_problems(rivals: Sequence[RivalConfig]) -> list[str]:
    """Return which other Embedders could not be loaded."""
    from data.model.rival_folder import check_rival

    problems = []
    for index, rival in enumerate(rivals):
        try:
            check_rival(rival)
        except (ConfigError, DataError) as error:
            problems.append(f"rivals[{index}].model: {error}")
    return problems
