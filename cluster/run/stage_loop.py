"""The loop that supervised and contrastive training share: prefetch, step, measure, stop, log,
checkpoint, go on.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.run.checkpoints import LEARNER_FOLDER, Checkpoints
from cluster.run.divergence import BrokenStreak
from cluster.run.empty_steps import EmptyStreak
from cluster.run.recovery import Restartable, Restarts, keep_training
from cluster.run.run_folder import BROKEN_FILE, RunFolder
from cluster.run.stopping import StopRequest
from configs.common import EvalConfig, StopConfig
from data.types import StepReport

BatchT = TypeVar("BatchT")
FeedState = Mapping[str, Any]
"""What a source of batches must know to go on after one of them; kept as JSON."""
log = logging.getLogger(__name__)
LINE_EVERY = 25
PRINTED_METRICS = {
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


def plain_console() -> Console:
    """Return a console that prints text as it is: data may hold what rich takes for markup."""
    return Console(markup=False, emoji=False)


def progress_bar(console: Console) -> Progress:
    """Return the progress bar of a long job."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


class StageLearner(Restartable, Protocol):
    """What a stage trains; `cluster.learner_group.LearnerGroup` is one."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""

    def load(self, folder: Path) -> int:
        """Continue from a checkpoint; return how many steps it had taken."""

    def export(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder."""


def prefetched(batches: Iterator[BatchT]) -> Generator[BatchT, None, None]:
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


def export_best(learner: StageLearner, folder: RunFolder, *, done: int) -> int:
    """Export the best checkpoint by held-out hit@1; where none was measured, the last step.

    Return the step whose weights were exported; ``done`` is the one that the learner is at.

    Raises:
        DamagedCheckpoint: the best was damaged and is set aside: call again, for the next best.
    """
    checkpoints = Checkpoints(folder)
    best = checkpoints.best()
    if best is not None and best.step != done:
        log.info("step %d has the best held-out hit@1, %.4g", best.step, best.score)
        with checkpoints.reading(best):
            learner.load(best.path / LEARNER_FOLDER)
        done = best.step
    log.info("writing %s as it was after step %d", folder.path / "export", done)
    learner.export(folder.path / "export")
    return done


def train_stage(
    learner: StageLearner,
    *,
    batches: Callable[[FeedState | None], Iterator[tuple[BatchT, FeedState]]],
    train: Callable[[BatchT], StepReport],
    measure: Callable[[], dict[str, float]],
    steps: int,
    checkpoint_every: int,
    evaluation: EvalConfig,
    stop: StopConfig,
    folder: RunFolder,
) -> dict[str, float]:
    """Train until the watched metric is reached or the steps are used up, and export.

    Goes on from the last checkpoint, also after losing the learner. ``batches`` yields batches from
    a state on (None: the start), each with the state after it.

    Returns the last measured metrics with `steps` and, where a metric is watched, `reached`.

    Raises:
        StopRequested: SIGTERM or SIGINT came; a checkpoint was written.
        NothingToTrainOn: step after step had nothing to train on.
    """
    name = folder.path.name
    console = plain_console()
    checkpoints = Checkpoints(folder)

    def reached(measured: Mapping[str, float]) -> bool:
        return bool(stop.metric) and measured.get(stop.metric, float("-inf")) >= stop.at_least

    def attempt(restarts: Restarts) -> dict[str, float]:
        last = checkpoints.resume(steps)
        step, state, measured = 0, None, {}
        if last:
            with checkpoints.reading(last):
                learner.load(last.path / LEARNER_FOLDER)
            step, state, measured = last.step, last.state["batches"], last.state["measured"]
        streak = BrokenStreak(folder.path / BROKEN_FILE)
        empty = EmptyStreak(trained=step > 0)
        due = False
        with (
            closing(prefetched(batches(state))) as feed,
            StopRequest() as request,
            progress_bar(console) as bar,
        ):
            task = bar.add_task(name, total=steps, completed=step)
            while step < steps and not (reached(measured) and step >= stop.min_steps):
                step += 1
                started = time.perf_counter()
                batch, state = next(feed)
                report = train(batch)
                metrics = {**report.metrics, "learner/restarts": float(restarts.count)}
                trained = time.perf_counter()
                if evaluation.every and (step % evaluation.every == 0 or step == steps):
                    measured = measure()
                    metrics |= measured
                metrics["time/train_s"] = trained - started
                metrics["time/eval_s"] = time.perf_counter() - trained
                metrics["time/step_s"] = time.perf_counter() - started
                folder.log_metrics(step, metrics)
                streak.record(report.broken)
                # Only a step without samples says 0: others need not count tokens.
                tokens = report.metrics.get("train/tokens", 1.0)
                empty.record(tokens, metrics, {}, last=step == steps)
                asked = request.made
                due = due or step % checkpoint_every == 0
                if step == steps or asked or (due and not empty.steps):
                    due = False
                    folder.settle_metrics()
                    checkpoints.save(
                        step,
                        lambda path: learner.save(path / LEARNER_FOLDER),
                        state={"batches": state, "measured": measured},
                        metrics=metrics,
                    )
                restarts.completed(step)
                bar.advance(task)
                if asked:
                    request.obey(step, steps)
                if step % LINE_EVERY == 0 or step == 1 or measured.keys() & metrics.keys():
                    shown = " ".join(
                        f"{name} {value:.4g}"
                        for name, value in metrics.items()
                        if name in PRINTED_METRICS
                    )
                    console.print(f"{name} step {step}: {shown}", highlight=False, soft_wrap=True)
        if reached(measured):
            reason = f"{stop.metric} {measured[stop.metric]:.4g} >= {stop.at_least:g}"
            console.print(f"{name}: done at step {step}: {reason}", highlight=False, soft_wrap=True)
        learner.export(folder.path / "export")
        return {**measured, "steps": float(step)}

    facts = keep_training(learner, attempt)
    if stop.metric:
        facts["reached"] = float(reached(facts))
        if not reached(facts):
            log.warning(
                "%s: %s is %s after %d steps, below stop.at_least=%g; later stages start weaker",
                name,
                stop.metric,
                facts.get(stop.metric, "not measured"),
                facts["steps"],
                stop.at_least,
            )
    return facts
