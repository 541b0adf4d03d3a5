"""The report: one HTML file with table, curves, monitors, tasks and a gallery of traces.

Everything is inside the file: style, plots, pictures. Texts from data and models are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.metrics import MEASURES, OVER_SETS, Estimate
from evaluation.report import drawing
from evaluation.report.ablation import AblationRow, ablation
from evaluation.report.gallery import AFTER, BEFORE, REASONERS, build_card, choose_queries
from evaluation.report.html import render
from evaluation.report.monitor_rows import monitor_rows
from evaluation.report.plots import COLOURS, GREY, plot_curves, plot_evidence, plot_tasks
from evaluation.runner import (
    NO_COT,
    OVERALL,
    TEXT_SUFFIX,
    Evaluation,
    VariantResult,
)
from evaluation.summary import Runs

DEMO_JOB = "demo_data"
"""The job whose teacher is biased on purpose; the report says so where it ran."""


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
    reasoner = variant.removesuffix(TEXT_SUFFIX)
    what = "text only" if variant.endswith(TEXT_SUFFIX) else "text + evidence"
    return f"{REASONERS.get(reasoner, reasoner)}, {what}"


def draw_plots(runs: Runs) -> dict[str, str]:
    """Return the report's plots by name, SVG as data URIs; empty where there is nothing to show."""
    variants = {name: title_of(name) for name in runs.evaluation.overall()}
    tasks = _by_task(runs.evaluation.results)
    kinds = ablation(runs.evaluation)
    return {
        "curves": plot_curves(runs.records) if runs.records else "",
        "tasks": plot_tasks(tasks, variants) if tasks else "",
        "evidence": plot_evidence(_means(kinds), REASONERS) if kinds else "",
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
    return render(
        "report.html.j2",
        title=title,
        rows=headline(overall),
        over_sets=runs.evaluation.over_sets(),
        sets=len(runs.evaluation.by_set()),
        metrics=("hit@1", "hit@5", "nDCG@5"),
        before=overall.get(BEFORE),
        after=overall.get(AFTER),
        steps=runs.steps(),
        stages=runs.stages,
        seconds=sum(stage.seconds for stage in runs.stages),
        biased_teacher=any(stage.job == DEMO_JOB for stage in runs.stages),
        **plots,
        monitors=monitors,
        alarms=sum(len(row.alarms) for row in monitors),
        kinds=ablation(runs.evaluation),
        cards=[
            build_card(results)
            for results in choose_queries(runs.evaluation.queries, max_cards, seed)
        ],
        trace_colour=drawing.TRACE_COLOUR,
    )


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
                colour=COLOURS.get(name, GREY),
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


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Print the headline table, hit@1 by data set and the ablation of the evidence.

    They fit 80 columns.
    """
    rows = headline(evaluation.overall())
    console.print(_console_table(rows, evaluation))
    console.print(_set_table(rows, evaluation))
    kinds = ablation(evaluation)
    if kinds:
        console.print(_ablation_table(kinds))


def _console_table(rows: Sequence[HeadlineRow], evaluation: Evaluation) -> Table:
    """Return each variant's means over all queries, and over the data sets where there are more."""
    sets = evaluation.by_set()
    left_out = [f"{row.title}: left out {row.excluded}" for row in rows if row.excluded]
    table = _table("Held-out retrieval", caption="\n".join(left_out))
    table.add_column("variant", no_wrap=True)
    for name in ("hit@1", "95 %", "hit@5", "nDCG@5"):
        table.add_column(name, justify="right", no_wrap=True)
    # A column where nothing is known says nothing.
    shares = {
        title: values
        for title, values in (
            ("valid", [row.result.valid for row in rows]),
            ("target", [row.result.on_target for row in rows]),
        )
        if any(value is not None for value in values)
    }
    for name in (*shares, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(sets) > 1:
        table.add_row("all queries alike", style="dim")
    for index, row in enumerate(rows):
        first, *others = row.metrics
        table.add_row(
            row.title,
            _number(first.mean if first else None),
            _interval(first),
            *(_number(estimate.mean if estimate else None) for estimate in others),
            *(_number(values[index]) for values in shares.values()),
            str(row.result.queries),
            style="bold" if row.best else "",
        )
    if len(sets) > 1:
        table.add_section()
        table.add_row("all data sets alike", style="dim")
        over_sets = evaluation.over_sets()
        for row in rows:
            variant = row.result.variant
            first_mean, *means = (_number(over_sets[variant].get(name)) for name in MEASURES)
            ranked = sum(bool(results[variant].metrics) for results in sets.values())
            unknown = [""] * len(shares)
            table.add_row(row.title, first_mean, "", *means, *unknown, f"{ranked} sets")
    return table


def _set_table(rows: Sequence[HeadlineRow], evaluation: Evaluation) -> Table:
    """Return hit@1 of each variant by data set, beside that of candidates in any order."""
    sets = evaluation.by_set()
    table = _table("Held-out hit@1 by data set", caption="")
    table.add_column("data set", overflow="fold")
    short = [row.title.replace(", text only", "\ntext").replace(", text +", "\n+") for row in rows]
    for name in ("chance", *short, "n"):
        table.add_column(name, justify="right")

    def add(title: str, results: Mapping[str, VariantResult]) -> None:
        row_results = [results[row.result.variant] for row in rows]
        hits = [
            result.metrics["hit_at_1"].mean if result.metrics else None for result in row_results
        ]
        number = str(min(result.queries for result in row_results))
        table.add_row(Text(title), _number(_chance(results)), *map(_number, hits), number)

    for source, results in sets.items():
        add(source, results)
    if len(sets) > 1:
        table.add_section()
        add("all queries", evaluation.overall())
        known = [chance for chance in map(_chance, sets.values()) if chance is not None]
        over_sets = evaluation.over_sets()
        table.add_row(
            "mean over sets",
            _number(sum(known) / len(known) if known else None),
            *(_number(over_sets[row.result.variant].get("hit_at_1")) for row in rows),
        )
    return table


def _chance(results: Mapping[str, VariantResult]) -> float | None:
    """Return hit@1 of candidates in any order, by the first variant that ranked a query."""
    return next((result.chance for result in results.values() if result.chance is not None), None)


def _ablation_table(rows: Sequence[AblationRow]) -> Table:
    table = _table("Held-out hit@1 by kind of task: what the evidence adds", caption="")
    table.add_column("task", no_wrap=True)
    table.add_column("Reasoner", no_wrap=True)
    for name in ("text only", "95 %", "text + evidence", "95 %", "gain", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.kind,
            row.title,
            _number(row.text.mean),
            _interval(row.text),
            _number(row.evidence.mean),
            _interval(row.evidence),
            f"{row.gain:+.3f}",
            str(row.queries),
        )
    return table


def _table(title: str, *, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption or None,
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.low:.2f}-{found.high:.2f}"


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
