"""Job `report`: report.html, summary.json and the table from the runs of one experiment.

All of it, the plots as files too, is attached to the MLflow run of `rl`.
"""

import base64
import json
import logging
import sys
from pathlib import Path

from cluster.jobs.command import run_job
from cluster.run.stage_loop import plain_console
from cluster.run.tracking import attach_files
from configs.schema import ReportConfig
from evaluation.report.console_tables import print_table
from evaluation.report.page import build_report, draw_plots
from evaluation.summary import build_summary, load_runs

log = logging.getLogger(__name__)

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
PLOTS = "plots"


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
    plots = draw_plots(runs)
    html = build_report(
        runs,
        plots=plots,
        title=config.run.experiment,
        max_cards=config.gallery,
        seed=config.run.seed,
    )
    (folder / REPORT_FILE).write_text(html, encoding="utf-8")
    files = {folder / REPORT_FILE: "", folder / SUMMARY_FILE: ""}
    (folder / PLOTS).mkdir(exist_ok=True)
    for name, uri in plots.items():
        if uri:
            path = folder / PLOTS / f"{name}.svg"
            path.write_bytes(base64.b64decode(uri.partition(",")[2]))
            files[path] = PLOTS
    attach_files(Path(config.rl), files)
    print_table(runs.evaluation, plain_console())
    log.info("wrote %s and %s", folder / REPORT_FILE, folder / SUMMARY_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(run_job(ReportConfig, main))
