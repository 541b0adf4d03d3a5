"""What an evaluation of a benchmark leaves behind: scores beside published ones, and its files."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from configs.schema import LeaderboardConfig
from evaluation.benchmarks.tables import benchmark_suite
from evaluation.runner import Evaluation
from evaluation.scores.aggregates import aggregate
from evaluation.scores.leaderboard import leaderboard_entry, save_entry, save_set_scores
from evaluation.scores.published import Published, ScoreTable, score_table
from evaluation.scores.set_result import SetResult

SCORES_FOLDER = "scores"


def suite_results(evaluation: Evaluation, suite: str, variant: str) -> list[SetResult]:
    """Return the results of a suite's sets in which a query was ranked, in one variant."""
    return [result for result in evaluation.set_results.get(variant, ()) if result.suite == suite]


def suite_table(
    results: Sequence[SetResult],
    suite: str,
    rivals: Mapping[str, Sequence[SetResult]] = MappingProxyType({}),
) -> ScoreTable:
    """Return our scores of a suite beside those of ``rivals``, by name, and the published ones.

    Raises:
        DataError: there is no result.
    """
    table = benchmark_suite(suite)
    published = [
        Published(
            model=model,
            source=table.published_source,
            settings=table.published_settings,
            scores={name: data_set.published[model] for name, data_set in table.sets.items()},
        )
        for model in table.published_models
    ]
    measured = [
        Published(
            model=name,
            source="measured here",
            settings="without traces",
            scores={result.name: 100 * result.scores()[result.metric] for result in theirs},
        )
        for name, theirs in rivals.items()
    ]
    return score_table(results, [*measured, *published])


def suite_metrics(evaluation: Evaluation, suite: str) -> dict[str, float]:
    """Return the means over sets, from 0 to 1: `<variant>/<suite>/<group>`, `all` among them."""
    metrics = {}
    for variant in evaluation.set_results:
        results = suite_results(evaluation, suite, variant)
        if results:
            scores = {result.name: result.scores()[result.metric] for result in results}
            groups = {result.name: result.groups for result in results}
            for group, mean in aggregate(scores, groups).items():
                metrics[f"{variant}/{suite}/{group}"] = mean.score
    return metrics


def save_suite(evaluation: Evaluation, suite: str, folder: Path) -> None:
    """Write `scores/<variant>/<set>_score.json` for each variant and set, as MMEB-V2 does."""
    for variant in evaluation.set_results:
        for result in suite_results(evaluation, suite, variant):
            save_set_scores(result, folder / SCORES_FOLDER / variant)


def save_leaderboard(
    results: Sequence[SetResult],
    model: LeaderboardConfig,
    folder: Path,
    *,
    dimensions: int,
    max_tokens: int,
) -> Path:
    """Write MMEB-V2's file of a model and return its path; see `leaderboard_entry`.

    Raises:
        DataError: a set or a query is missing.
    """
    modalities: dict[str, list[str]] = {}
    for name, data_set in benchmark_suite("mmeb_v2").sets.items():
        modalities.setdefault(data_set.groups[0], []).append(name)
    generated = datetime.now(UTC).date().isoformat()
    entry = leaderboard_entry(
        results,
        model,
        dimensions=dimensions,
        max_tokens=max_tokens,
        modalities=modalities,
        generated=generated,
    )
    return save_entry(entry, folder / SCORES_FOLDER)
