"""The tables that are printed on the console after an evaluation."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.adaptive.figures import AdaptiveFigures
from evaluation.costs import Speed, TraceFigures
from evaluation.metrics import MEASURES, Estimate
from evaluation.report.ablation import AblationRow, ablation
from evaluation.report.adaptive_text import adaptive_sentences
from evaluation.report.gallery import REASONERS
from evaluation.report.headline_table import HeadlineRow, headline, short_title_of
from evaluation.runner import Evaluation, VariantResult
from evaluation.scores.comparisons import Comparison

SET_COLUMNS = 5
"""Variants beside each other: their names fit 80 columns."""
SHOWN_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Points of an adaptive trace's curve, as shares of always tracing's tokens."""


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Print the headline table, hit@1 by data set, the ablation of the evidence, which variants
    differ, what traces cost, and what an adaptive trace saves.

    They fit 80 columns.
    """
    rows = headline(evaluation.overall())
    console.print(_variant_table(rows, evaluation))
    for start in range(0, len(rows), SET_COLUMNS):
        console.print(_set_table(rows[start : start + SET_COLUMNS], evaluation))
    kinds = ablation(evaluation)
    if kinds:
        console.print(_ablation_table(kinds))
    if evaluation.differences:
        console.print(_difference_table(evaluation.differences))
    if evaluation.reasoning:
        console.print(_cost_table(evaluation.reasoning, evaluation.speed))
    if evaluation.speed.contents_per_second is not None:
        rate = evaluation.speed.contents_per_second
        console.print(f"The Embedder read {rate:.1f} contents per second.", highlight=False)
    if evaluation.adaptive is not None:
        console.print(_adaptive_table(evaluation.adaptive))
        for sentence in adaptive_sentences(evaluation.adaptive):
            console.print(sentence, highlight=False)


def _variant_table(rows: Sequence[HeadlineRow], evaluation: Evaluation) -> Table:
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
    short = [_column_title(row.title) for row in rows]
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


def _column_title(title: str) -> str:
    for long, short in (
        (", text only", "\ntext"),
        (", text +", "\n+"),
        (", another row's", "\nother's"),
        (", mean of", "\n"),
        (", rival", "\nrival"),
    ):
        title = title.replace(long, short)
    return title


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
            "-" if row.gain is None else f"{row.gain:+.3f}",
            str(row.queries),
        )
    return table


def _difference_table(differences: Sequence[Comparison]) -> Table:
    table = _table("Paired differences of the main metric, all data sets alike", caption="")
    table.add_column("first")
    table.add_column("against")
    for name in ("difference", "95 %", "p", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in differences:
        difference = comparison.difference
        table.add_row(
            short_title_of(comparison.first),
            short_title_of(comparison.second),
            f"{difference.mean:+.3f}",
            f"{difference.low:+.2f} to {difference.high:+.2f}",
            f"{difference.p_value:.3f}",
            str(difference.queries),
        )
    return table


def _cost_table(reasoning: Sequence[TraceFigures], speed: Speed) -> Table:
    table = _table(
        "Traces of queries and candidates",
        caption="ms: wall-clock of a block over its traces",
    )
    table.add_column("Reasoner", no_wrap=True)
    for name in ("with a trace", "not valid (all)", "tokens", "ms", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for figures in reasoning:
        table.add_row(
            REASONERS.get(figures.reasoner, figures.reasoner),
            _number(figures.coverage),
            _number(figures.invalid),
            _tenths(figures.tokens),
            _tenths(speed.wall_ms.get(figures.reasoner)),
            str(figures.items),
        )
    return table


def _adaptive_table(figures: AdaptiveFigures) -> Table:
    excluded = [f"left out: {count} x {reason}" for reason, count in figures.excluded.items()]
    table = _table(
        f"hit@1 if {REASONERS.get(figures.reasoner, figures.reasoner)} traces only some queries",
        caption="\n".join(excluded),
    )
    for name in ("tokens a query", "gate", "95 %", "random", "95 %", "oracle", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    last = len(figures.points) - 1
    for share in SHOWN_SHARES:
        point = figures.points[round(share * last)]
        ways = (point.gate, point.random, point.oracle)
        cells = [cell for way in ways for cell in (_number(way.mean), _interval(way))]
        table.add_row(_tenths(point.tokens), *cells)
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


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.low:.2f}-{estimate.high:.2f}"
