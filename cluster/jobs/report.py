"""Job `report`: report.html, summary.json and the table from the runs of one experiment."""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.entry import run_job
from configs.schema import ReportConfig
from evaluation.report import build_report, headline
from evaluation.runner import VariantResult
from evaluation.summary import build_summary, load_runs

log = logging.getLogger(__name__)

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"


def main(config: ReportConfig) -> int:
    """Write the report and the summary into the run folder; print the table."""
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = load_runs(
        evaluate=Path(config.evaluate),
        rl=Path(config.rl),
        stages=[Path(stage) for stage in config.stages],
    )
    summary = json.dumps(build_summary(runs), indent=2, allow_nan=False)
    (folder / SUMMARY_FILE).write_text(summary + "\n", encoding="utf-8")
    html = build_report(
        runs, title=config.run.experiment, cards=config.gallery, seed=config.run.seed
    )
    (folder / REPORT_FILE).write_text(html, encoding="utf-8")
    Console().print(build_table(runs.overall()))
    log.info("wrote %s and %s", folder / REPORT_FILE, folder / SUMMARY_FILE)
    return 0


def build_table(overall: Mapping[str, VariantResult]) -> Table:
    """Return the headline table for the console; it fits 80 columns."""
    rows = headline(overall)
    left_out = [f"{row.title}: left out {row.excluded}" for row in rows if row.excluded]
    table = Table(
        title="Held-out retrieval",
        caption="\n".join(left_out) or None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    for name in ("hit@1", "95 %", "hit@5", "nDCG@5", "valid", "target", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        first, *others = row.metrics
        table.add_row(
            row.title,
            _number(first and first.mean),
            f"{first.low:.2f}-{first.high:.2f}" if first else "-",
            *(_number(found and found.mean) for found in others),
            _number(row.result.valid),
            _number(row.result.on_target),
            str(row.result.queries),
            style="bold" if row.best else "",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(run_job(ReportConfig, main))
