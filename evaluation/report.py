"""The report: one HTML file with table, curves, tasks and a gallery of traces.

Everything is inside the file: style, plots, pictures. Texts from data and models are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

from evaluation import gallery
from evaluation.cards import AFTER, BEFORE, REASONERS, build_card, choose
from evaluation.metrics import MEASURES, Estimate
from evaluation.plots import COLOURS, GREY, plot_curves, plot_evidence, plot_tasks
from evaluation.runner import (
    NO_COT,
    OVERALL,
    TEXT_SUFFIX,
    Evaluation,
    QueryResult,
    VariantResult,
)
from evaluation.summary import Runs

DEMO_JOB = "demo_data"
"""The job whose teacher is biased on purpose; the report says so where it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
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


def build_report(runs: Runs, *, title: str, cards: int, seed: int) -> str:
    """Return the HTML of the report.

    Args:
        runs: what to show.
        title: heading of the page.
        cards: queries in the gallery at most.
        seed: draws them.
    """
    environment = Environment(
        loader=PackageLoader("evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    overall = runs.evaluation.overall()
    variants = {name: title_of(name) for name in overall}
    tasks = _by_task(runs.evaluation.results)
    kinds = _by_kind(runs.evaluation.queries)
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=headline(overall),
        metrics=("hit@1", "hit@5", "nDCG@5"),
        before=overall.get(BEFORE),
        after=overall.get(AFTER),
        no_cot=overall.get(NO_COT),
        steps=runs.steps(),
        stages=runs.stages,
        seconds=sum(stage.seconds for stage in runs.stages),
        biased_teacher=any(stage.job == DEMO_JOB for stage in runs.stages),
        curves=plot_curves(runs.records) if runs.records else "",
        tasks=plot_tasks(tasks, variants) if tasks else "",
        evidence=plot_evidence(kinds, REASONERS) if kinds else "",
        cards=[build_card(pair) for pair in choose(runs.evaluation.queries, cards, seed)],
        trace_colour=gallery.TRACE_COLOUR,
    )


def headline(overall: Mapping[str, VariantResult]) -> list[Row]:
    """Return the lines of the table, the best hit@1 marked."""
    means = [found.metrics["hit_at_1"].mean for found in overall.values() if found.metrics]
    rows = []
    for name, result in overall.items():
        metrics = tuple(result.metrics.get(metric) for metric in MEASURES)
        excluded = [f"{count} x {reason}" for reason, count in result.excluded.items()]
        if result.candidates_excluded:
            excluded.append(f"{result.candidates_excluded} candidates")
        rows.append(
            Row(
                title=title_of(name),
                colour=COLOURS.get(name, GREY),
                best=bool(result.metrics) and result.metrics["hit_at_1"].mean == max(means),
                result=result,
                metrics=metrics,
                excluded="; ".join(excluded),
            )
        )
    return rows


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Print the headline table; it fits 80 columns."""
    rows = headline(evaluation.overall())
    left_out = [f"{row.title}: left out {row.excluded}" for row in rows if row.excluded]
    table = Table(
        title="Held-out retrieval",
        caption="\n".join(left_out) or None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    for name in ("hit@1", "95 %", "hit@5", "nDCG@5", "valid", "target", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        first, *others = row.metrics
        table.add_row(
            row.title,
            _number(first.mean if first else None),
            f"{first.low:.2f}-{first.high:.2f}" if first else "-",
            *(_number(found.mean if found else None) for found in others),
            _number(row.result.valid),
            _number(row.result.on_target),
            str(row.result.queries),
            style="bold" if row.best else "",
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _by_task(results: Sequence[VariantResult]) -> dict[str, dict[str, Estimate]]:
    """Return hit@1 as {data set: {variant: estimate}}, those without a ranked query left out."""
    tasks: dict[str, dict[str, Estimate]] = {}
    for result in results:
        if result.source != OVERALL and result.metrics:
            tasks.setdefault(result.source, {})[result.variant] = result.metrics["hit_at_1"]
    return tasks


def _by_kind(
    queries: Sequence[QueryResult],
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return hit@1 as {kind of query: {reasoner: (text only, text + evidence)}}."""
    hits: dict[str, dict[str, list[float]]] = {}
    for query in queries:
        if query.metrics is not None:
            of_kind = hits.setdefault(query.query.kind, {})
            of_kind.setdefault(query.variant, []).append(query.metrics["hit_at_1"])
    means = {
        kind: {variant: sum(found) / len(found) for variant, found in variants.items()}
        for kind, variants in hits.items()
    }
    return {
        kind: {
            name: (found[name + TEXT_SUFFIX], found[name])
            for name in REASONERS
            if name in found and name + TEXT_SUFFIX in found
        }
        for kind, found in means.items()
    }
