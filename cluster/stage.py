"""The loop that supervised and contrastive training share: prefetch, step, measure, stop, log."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.run_folder import BROKEN_FILE, RunFolder
from cluster.tracking import Tracker
from configs.schema import EvalConfig, StopConfig
from data.types import StepReport
from learner.streak import BrokenStreak

Batch = TypeVar("Batch")
log = logging.getLogger(__name__)
LINE_EVERY = 25
SHOWN = {
    "supervised/loss",
    "contrast/loss",
    "contrast/accuracy",
    "eval/loss",
    "eval/token_accuracy",
    "eval/exact",
    "eval/hit_at_1",
    "eval/hit_at_1_no_trace",
    "time/train_s",
}


def progress_bar(console: Console) -> Progress:
    """Return the progress bar of a long job."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches, building the next one while the current one is trained on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, batches)
        while True:
            try:
                batch = future.result()
            except StopIteration:
                return
            future = pool.submit(next, batches)
            yield batch


def train_stage(
    name: str,
    *,
    batches: Iterator[Batch],
    train: Callable[[Batch], StepReport],
    measure: Callable[[], dict[str, float]],
    steps: int,
    evaluation: EvalConfig,
    stop: StopConfig,
    folder: RunFolder,
    tracker: Tracker,
) -> dict[str, float]:
    """Train until the watched metric is reached or the steps are used up.

    Returns the last measured metrics with `steps` and, where a metric is watched, `reached`.
    """
    console = Console()
    folder.keep_metrics_until(-1)  # a stage that was cut off starts over
    streak = BrokenStreak(folder.path / BROKEN_FILE)
    measured: dict[str, float] = {}
    reached = False
    step = 0
    feed = prefetched(batches)
    with progress_bar(console) as bar:
        task = bar.add_task(name, total=steps)
        for step in range(1, steps + 1):
            started = time.perf_counter()
            report = train(next(feed))
            metrics = dict(report.metrics)
            trained = time.perf_counter()
            if evaluation.every and (step % evaluation.every == 0 or step == steps):
                measured = measure()
                metrics |= measured
            metrics["time/train_s"] = trained - started
            metrics["time/eval_s"] = time.perf_counter() - trained
            metrics["time/step_s"] = time.perf_counter() - started
            folder.log_metrics(step, metrics)
            tracker.log(step, metrics)
            streak.record(report.broken)
            bar.advance(task)
            if step % LINE_EVERY == 0 or step == 1 or measured.keys() & metrics.keys():
                shown = " ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k in SHOWN)
                console.print(f"{name} step {step}: {shown}", highlight=False)
            reached = bool(stop.metric) and measured.get(stop.metric, float("-inf")) >= (
                stop.at_least
            )
            if reached and step >= stop.min_steps:
                break
    if stop.metric and not reached:
        log.warning(
            "%s: %s is %s after %d steps, below stop.at_least=%g; later stages start weaker",
            name,
            stop.metric,
            measured.get(stop.metric, "not measured"),
            step,
            stop.at_least,
        )
    facts = {**measured, "steps": float(step)}
    if stop.metric:
        facts["reached"] = float(reached)
    return facts
