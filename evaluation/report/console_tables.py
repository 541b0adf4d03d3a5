"""The tables that are printed on the console after an evaluation."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.metrics import MEASURES, Estimate
from evaluation.report.ablation import AblationRow, ablation
from evaluation.report.headline_table import HeadlineRow, headline
from evaluation.runner import Evaluation, VariantResult


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Print the headline table, hit@1 by data set and the ablation of the evidence.

    They fit 80 columns.
    """
    rows = headline(evaluation.overall())
    console.print(_variant_table(rows, evaluation))
    console.print(_set_table(rows, evaluation))
    kinds = ablation(evaluation)
    if kinds:
        console.print(_ablation_table(kinds))


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


def _interval(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.low:.2f}-{estimate.high:.2f}"
