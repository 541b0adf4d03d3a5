"""The report: one HTML file with table, curves, monitors, tasks and a gallery of traces.

Everything is inside the file: style, plots, pictures. Texts from data and models are escaped.
"""

from collections.abc import Mapping, Sequence

from evaluation.metrics import Estimate
from evaluation.report import drawing
from evaluation.report.ablation import AblationRow, ablation
from evaluation.report.adaptive_text import adaptive_sentences
from evaluation.report.gallery import (
    AFTER,
    BEFORE,
    REASONERS,
    build_card,
    choose_queries,
    over_time,
)
from evaluation.report.headline_table import headline, short_title_of, title_of
from evaluation.report.html import render
from evaluation.report.monitor_rows import monitor_rows
from evaluation.report.plots import plot_adaptive, plot_curves, plot_evidence, plot_tasks
from evaluation.runner import (
    OVERALL,
    VariantResult,
)
from evaluation.summary import Runs
from evaluation.variants import CONTROL_SUFFIXES, RIVAL_SUFFIX

DEMO_JOB = "demo_data"
"""The job whose teacher is biased on purpose; the report says so where it ran."""
ITEMS_OVER_TIME = 4
"""Held-out items at most that are shown after more and more steps."""


def draw_plots(runs: Runs) -> dict[str, str]:
    """Return the report's plots by name, SVG as data URIs; empty where there is nothing to show."""
    variants = {name: title_of(name) for name in runs.evaluation.overall()}
    tasks = _by_task(runs.evaluation.results)
    kinds = ablation(runs.evaluation)
    compared = {row.reasoner for row in kinds}
    titles = {name: title for name, title in REASONERS.items() if name in compared}
    adaptive = runs.evaluation.adaptive
    return {
        "curves": plot_curves(runs.records) if runs.records else "",
        "tasks": plot_tasks(tasks, variants) if tasks else "",
        "evidence": plot_evidence(_means(kinds), titles) if kinds else "",
        "adaptive": plot_adaptive(adaptive) if adaptive else "",
    }


def build_report(
    runs: Runs, *, plots: Mapping[str, str], title: str, max_cards: int, seed: int
) -> str:
    """Return the HTML of the report.

    Args:
        runs: what to show.
        plots: what `draw_plots` made of them.
        title: heading of the page.
        max_cards: queries in the gallery at most.
        seed: draws them.
    """
    overall = runs.evaluation.overall()
    monitors = monitor_rows(runs.records)
    figures = runs.evaluation.adaptive
    return render(
        "report.html.j2",
        title=title,
        rows=headline(overall),
        over_sets=runs.evaluation.over_sets(),
        sets=len(runs.evaluation.by_set()),
        metrics=("hit@1", "hit@5", "nDCG@5"),
        controls=any(name.endswith(tuple(CONTROL_SUFFIXES.values())) for name in overall),
        rivals=any(name.endswith(RIVAL_SUFFIX) for name in overall),
        differences=runs.evaluation.differences,
        reasoning=runs.evaluation.reasoning,
        speed=runs.evaluation.speed,
        reasoners=REASONERS,
        short_title_of=short_title_of,
        before=overall.get(BEFORE),
        after=overall.get(AFTER),
        steps=runs.steps(),
        stages=runs.stages,
        seconds=sum(stage.seconds for stage in runs.stages),
        biased_teacher=any(stage.job == DEMO_JOB for stage in runs.stages),
        **plots,
        gate=figures,
        gate_sentences=adaptive_sentences(figures) if figures else (),
        monitors=monitors,
        alarms=sum(len(row.alarms) for row in monitors),
        kinds=ablation(runs.evaluation),
        cards=[
            build_card(results)
            for results in choose_queries(runs.evaluation.queries, max_cards, seed)
        ],
        time_cards=over_time(
            runs.held_out, runs.evaluation.queries, count=min(ITEMS_OVER_TIME, max_cards), seed=seed
        ),
        trace_colour=drawing.TRACE_COLOUR,
    )


def _by_task(results: Sequence[VariantResult]) -> dict[str, dict[str, Estimate]]:
    """Return hit@1 as {data set: {variant: estimate}}, those without a ranked query left out."""
    tasks: dict[str, dict[str, Estimate]] = {}
    for result in results:
        if result.source != OVERALL and result.metrics:
            tasks.setdefault(result.source, {})[result.variant] = result.metrics["hit_at_1"]
    return tasks


def _means(rows: Sequence[AblationRow]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return hit@1 as {kind of task: {reasoner: (text only, text + evidence)}}."""
    means: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        means.setdefault(row.kind, {})[row.reasoner] = (row.text.mean, row.evidence.mean)
    return means
