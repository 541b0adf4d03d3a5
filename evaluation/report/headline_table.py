"""The table of an evaluation: a line for each variant. The page and the console show it."""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.metrics import MEASURES, OVER_SETS, Estimate
from evaluation.report.gallery import REASONERS
from evaluation.report.plots import colour_of
from evaluation.runner import Evaluation, VariantResult
from evaluation.variants import (
    CONTROL_SUFFIXES,
    NO_COT,
    OTHER_TRACE,
    RIVAL_SUFFIX,
    SAMPLES,
    TEXT_SUFFIX,
)

_WHAT_BY_SUFFIX = {
    TEXT_SUFFIX: "text only",
    CONTROL_SUFFIXES[OTHER_TRACE]: "another row's trace",
    CONTROL_SUFFIXES[SAMPLES]: "mean of samples",
    RIVAL_SUFFIX: "rival",
}
_ALL_OF_IT = "text + evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadlineRow:
    """One line of the headline table."""

    title: str
    colour: str
    best: bool
    result: VariantResult
    metrics: tuple[Estimate | None, ...]
    excluded: str


def title_of(variant: str) -> str:
    """Return a variant's name as readers see it."""
    if variant == NO_COT:
        return "No T-CoT"
    for suffix, what in _WHAT_BY_SUFFIX.items():
        if variant.endswith(suffix):
            reasoner = variant.removesuffix(suffix)
            return f"{REASONERS.get(reasoner, reasoner)}, {what}"
    return f"{REASONERS.get(variant, variant)}, {_ALL_OF_IT}"


def short_title_of(variant: str) -> str:
    """Return the name without what is usual: the text and evidence of the item's own trace."""
    return title_of(variant).removesuffix(f", {_ALL_OF_IT}")


def headline(overall: Mapping[str, VariantResult]) -> list[HeadlineRow]:
    """Return the lines of the table, the best hit@1 marked."""
    means = [result.metrics["hit_at_1"].mean for result in overall.values() if result.metrics]
    rows = []
    for name, result in overall.items():
        metrics = tuple(result.metrics.get(metric) for metric in MEASURES)
        excluded = [f"{count} x {reason}" for reason, count in result.excluded.items()]
        if result.candidates_excluded:
            excluded.append(f"{result.candidates_excluded} candidates")
        rows.append(
            HeadlineRow(
                title=title_of(name),
                colour=colour_of(name),
                best=bool(result.metrics) and result.metrics["hit_at_1"].mean == max(means),
                result=result,
                metrics=metrics,
                excluded="; ".join(excluded),
            )
        )
    return rows


def headline_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the means of the headline table.

    `<variant>/<metric>` is the mean over all queries, `<variant>/<metric>_over_sets` the mean of
    the data sets' means.
    """
    over_queries = {
        f"{name}/{metric}": estimate.mean
        for name, result in evaluation.overall().items()
        for metric, estimate in result.metrics.items()
    }
    return over_queries | {
        f"{name}/{metric}{OVER_SETS}": mean
        for name, means in evaluation.over_sets().items()
        for metric, mean in means.items()
    }
