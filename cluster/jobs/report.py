"""Job `report`: report.html, summary.json and the table from the runs of one experiment."""

import json
import logging
import sys
from pathlib import Path

from rich.console import Console

from cluster.entry import run_job
from configs.schema import ReportConfig
from evaluation.report import build_report, print_table
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
    print_table(runs.evaluation, Console())
    log.info("wrote %s and %s", folder / REPORT_FILE, folder / SUMMARY_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(run_job(ReportConfig, main))
