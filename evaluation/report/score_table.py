"""The table of a benchmark on the console: our scores beside published ones."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.scores.published import ScoreRow, ScoreTable


def print_scores(scores: ScoreTable, console: Console) -> None:
    """Print a line of each set and of each mean, in percent, and where the others come from.

    The benchmark's own order of ties is there only where ties change a score by 0.05 or more. A
    line has no gain where we ranked a part of the queries: the published score is over all.
    """
    table = Table(
        title="Benchmark, in percent",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("data set", overflow="fold")
    table.add_column("metric")
    tied = any(abs(row.score - row.benchmark_order) >= 0.05 for row in scores.rows)
    for name in ("n", "ours", *(["benchmark\norder"] if tied else [])):
        table.add_column(name, justify="right")
    for model in scores.published:
        table.add_column(Text(model.model), justify="right")
        table.add_column("gain", justify="right")
    for index, row in enumerate(scores.rows):
        if index and not row.metric and scores.rows[index - 1].metric:
            table.add_section()
        table.add_row(*_cells(row, tied))
    console.print(table)
    if any(row.queries < row.num_data for row in scores.rows):
        console.print("no gain where only a part of the queries was ranked", highlight=False)
    for model in scores.published:
        console.print(Text(f"{model.model}: {model.source}; {model.settings}"))


def _cells(row: ScoreRow, tied: bool) -> list[str | Text]:
    """Return a line; queries that were not ranked show as `ranked/all`."""
    ranked = str(row.queries)
    if row.queries < row.num_data:
        ranked += f"/{row.num_data}"
    cells: list[str | Text] = [Text(row.name), row.metric or f"{row.sets} sets", ranked]
    cells.append(f"{row.score:.1f}")
    if tied:
        cells.append(f"{row.benchmark_order:.1f}")
    for score in row.published:
        compared = score is not None and row.queries == row.num_data
        cells.append("-" if score is None else f"{score:.1f}")
        cells.append(f"{row.score - score:+.1f}" if compared else "-")
    return cells
