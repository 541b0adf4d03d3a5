"""A benchmark on disk as sets to rank; what is missing is told before anything starts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.common import BENCHMARK_PROMPTS, BenchmarkConfig, MediaConfig
from data.errors import DataError
from evaluation.benchmarks import (
    image_sets,
    page_sets,
    question_sets,
    uvrb_sets,
    video_sets,
)
from evaluation.benchmarks.places import media_folder, row_places
from evaluation.benchmarks.reading import SetReader
from evaluation.benchmarks.tables import BenchmarkSet, Suite, benchmark_suite
from evaluation.sets import EvaluationSet

log = logging.getLogger(__name__)

PARSERS: dict[str, Callable[[SetReader], None]] = {
    **image_sets.PARSERS,
    **video_sets.PARSERS,
    **question_sets.PARSERS,
    **page_sets.PARSERS,
    **uvrb_sets.PARSERS,
}
"""What reads the rows of a set, by the name in the suite's table."""
SHOWN = 3
"""Absent files that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProblem:
    """Why a set cannot be measured; a share of its files would change its numbers."""

    name: str
    reasons: tuple[str, ...] = ()
    """What is wrong with rows and folders, each with what to do."""
    absent: int = 0
    """Pictures and folders of frames that rows name and that are not there."""
    first: tuple[str, ...] = ()
    """The first few of these, under `folder`."""
    folder: str = ""
    """Where the media of the set are looked for."""
    source: str = ""
    """What brings them."""

    def __str__(self) -> str:
        reasons = list(self.reasons)
        if self.absent:
            more = ", ..." if self.absent > len(self.first) else ""
            reasons.append(
                f"{self.absent} pictures or folders of frames (ending in /) are not in "
                f"{self.folder}: {', '.join(self.first)}{more}; {self.source}"
            )
        return f"{self.name}: {'; '.join(reasons)}"


def load_benchmark(config: BenchmarkConfig, media: MediaConfig) -> list[EvaluationSet]:
    """Return the sets of a benchmark. Pictures are not decoded.

    Raises:
        DataError: sets cannot be measured; the one message has a line for each, with what to do.
    """
    read = _read_all(config, media)
    if problems := [result for result in read if isinstance(result, SetProblem)]:
        raise _refused(config, problems)
    sets = [result for result in read if isinstance(result, EvaluationSet)]
    for data_set in sets:
        published = benchmark_suite(config.suite).sets[data_set.name].queries
        if published and len(data_set.queries) != published:
            log.warning(
                "%s: %d queries, published results have %d; scores may not be comparable",
                *(data_set.name, len(data_set.queries), published),
            )
    return sets


def benchmark_problems(config: BenchmarkConfig, media: MediaConfig) -> list[SetProblem]:
    """Return what keeps sets of a benchmark from being measured; empty: nothing does.

    Raises:
        DataError: the folder of the media is not there.
    """
    return [result for result in _read_all(config, media) if isinstance(result, SetProblem)]


def _read_all(config: BenchmarkConfig, media: MediaConfig) -> list[EvaluationSet | SetProblem]:
    if not Path(config.root).is_dir():
        suite = benchmark_suite(config.suite)
        raise DataError(
            f"{config.root}: expected the folder of {config.suite}'s media, found none; get the "
            f"hub's data set {suite.media_repo}, unpack it there, or correct `root`"
        )
    return [_read(benchmark_set, config, media) for benchmark_set in _chosen(config)]


def _chosen(config: BenchmarkConfig) -> list[BenchmarkSet]:
    sets = benchmark_suite(config.suite).sets
    return [sets[name] for name in config.sets or sets]


def _refused(config: BenchmarkConfig, problems: list[SetProblem]) -> DataError:
    lines = "\n  ".join(map(str, problems))
    return DataError(
        f"benchmark {config.suite}: {len(problems)} of {len(_chosen(config))} sets cannot be "
        f"measured; complete them, or leave them out of `sets`:\n  {lines}"
    )


def _read(
    benchmark_set: BenchmarkSet, config: BenchmarkConfig, media: MediaConfig
) -> EvaluationSet | SetProblem:
    suite, folder = benchmark_suite(config.suite), media_folder(benchmark_set, config)
    source = _source(suite, benchmark_set)
    reasons: list[str] = []
    reader: SetReader | None = None
    # Pages may be in the rows as well.
    if not folder.is_dir() and "visdoc" not in benchmark_set.groups:
        reasons.append(f"expected the folder {folder}, found none; {source}")
    try:
        places = row_places(benchmark_set, config)
        if not reasons:
            prompts = config.prompts or BENCHMARK_PROMPTS[config.suite][0]
            reader = SetReader(
                benchmark_set,
                places=places,
                folder=folder,
                prompts=prompts,
                limits=media,
                follow_links=config.follow_links,
            )
            PARSERS[benchmark_set.parser](reader)
            if not reader.absent:
                return reader.made()
    except (DataError, OSError) as error:
        reasons.append(str(error))
    absent = tuple(reader.absent) if reader else ()
    return SetProblem(
        name=benchmark_set.name,
        reasons=tuple(reasons),
        absent=len(absent),
        first=absent[:SHOWN],
        folder=str(folder),
        source=source,
    )


def _source(suite: Suite, benchmark_set: BenchmarkSet) -> str:
    archive = f"unpack {benchmark_set.archive or benchmark_set.name}"
    return f"{archive} of the hub's data set {suite.media_repo}"
