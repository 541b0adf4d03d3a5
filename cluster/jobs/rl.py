"""Embedder-guided RL of the Reasoner, from a warm-started model to an exported one.

Example: ray job submit --working-dir . -- python -m cluster.jobs.rl configs/demo/rl.yaml
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing

import ray
from rich.console import Console

from cluster.jobs.command import run_job
from cluster.pools.pool_scaler import PoolScaler
from cluster.rl.actors import Actors, open_actors, roles
from cluster.rl.held_out import measure_held_out
from cluster.rl.logprob_parity import check_parity
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from cluster.run.checkpoints import Checkpoints
from cluster.run.divergence import BrokenStreak
from cluster.run.empty_steps import EmptyStreak
from cluster.run.model_card import measured_at, reasoner_card
from cluster.run.recovery import Restarts, keep_training
from cluster.run.run_folder import BROKEN_FILE, RunFolder, settled
from cluster.run.stage_loop import export_best, plain_console, progress_bar
from cluster.run.stopping import StopRequest
from cluster.run.tracking import Tracker
from cluster.session import session, spare_collections
from configs.schema import RLConfig
from data.errors import ParityError
from data.model.chat import load_encoder
from data.model.model_folder import (
    check_embedder,
    check_folder,
    check_reasoner,
    warn_older_input,
)
from data.relevance import Relevance
from data.sets.feed import PairFeed, held_out_pairs
from data.sets.fingerprints import model_fingerprint, pairs_fingerprint
from data.sets.load_sets import LoadedSet, known_right, load_sets
from data.stores.facts import held_out_recipe
from data.stores.traces import TRACE_FOLDER, TraceStore
from data.types import Pair

log = logging.getLogger(__name__)


def main(config: RLConfig) -> int:
    """Run all steps and export; go on from the last checkpoint, also after losing the learner."""
    folder = RunFolder(config, job="rl")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    train = load_sets(config.data.train, limits=config.data)
    held_out_sets = load_sets(config.data.eval, limits=config.data)
    check_models(config, [*train, *held_out_sets])
    check_inputs(config, folder, train, held_out_sets)
    held_out = held_out_pairs(held_out_sets, config.evaluation.samples)
    relevance = known_right([*train, *held_out_sets])
    namespace = str(folder.path.absolute())
    with (
        session(roles(config), namespace=namespace, nodes_timeout_s=config.run.nodes_timeout_s),
        Tracker(folder.path, job="rl", given=config.run.dir),
        open_actors(config, namespace=namespace) as actors,
    ):
        ray_address = actors.address.ray_address
        log.info("%s: all engines are ready; RAY_ADDRESS=%s", folder.path, ray_address)
        spare_collections()

        def attempt(restarts: Restarts) -> tuple[int, int]:
            with closing(new_pipeline(config, actors, train, relevance)) as pipeline:
                done = train_loop(
                    config,
                    pipeline,
                    folder,
                    held_out=held_out,
                    restarts=restarts,
                    scaler=actors.scaler,
                    request=request,
                )
            exported = export_best(actors.learner, folder, done=done)
            return done, exported

        with StopRequest() as request:
            steps, exported = keep_training(actors.learner, attempt)
    measured = measured_at(folder.metrics_path, exported)
    card = reasoner_card(config, measured, step=exported)
    (folder.path / "export" / "README.md").write_text(card, encoding="utf-8")
    folder.finish(steps=steps, exported_step=exported)
    print(
        f"{folder.path}: done; the trained Reasoner, as it was after step {exported}, is in "
        f"{folder.path / 'export'}"
    )
    return 0


def check_models(config: RLConfig, sets: Sequence[LoadedSet]) -> None:
    """Refuse models that cannot do what the settings and the data sets ask of them.

    Raises:
        DataError: a model is missing or incomplete, or a set shows pictures to a text model.
        ConfigError: an Embedder cannot pool as `reward.pooling` says.
    """
    media, reward = config.data.media, config.reward
    check_reasoner(config.reasoner, sets)
    load_encoder(reward.model, media).check_pooling(reward.pooling)
    warn_older_input(reward.model)
    check_embedder(reward.model, sets)
    if reward.second_model:
        load_encoder(reward.second_model, media).check_pooling(reward.pooling)
        check_embedder(reward.second_model, sets)
    if reward.judge.model:
        check_folder(reward.judge.model)


def check_inputs(
    config: RLConfig, folder: RunFolder, train: Sequence[LoadedSet], held_out: Sequence[LoadedSet]
) -> None:
    """Refuse to go on from a checkpoint that was made with other data or models.

    Raises:
        ConfigError: see `Checkpoints.check_inputs`.
    """
    Checkpoints(folder).check_inputs(
        {
            "data.train": pairs_fingerprint(config.data.train, train),
            "data.eval": pairs_fingerprint(config.data.eval, held_out),
            "reasoner": model_fingerprint(config.reasoner),
            "reward.model": model_fingerprint(config.reward.model),
            "reward.second_model": model_fingerprint(config.reward.second_model),
            "reward.judge.model": model_fingerprint(config.reward.judge.model),
        },
        arithmetic="what a step's loss is the mean of, and which targets are right for a query",
    )


def new_pipeline(
    config: RLConfig, actors: Actors, train: Sequence[LoadedSet], relevance: Relevance
) -> Pipeline:
    """Return a pipeline before its first step, over a weight store without versions."""
    ray.get(actors.store.clear.remote(), timeout=config.learner.timeout_s)
    return Pipeline(
        config,
        feed=PairFeed(
            train,
            {settings.name: settings.weight for settings in config.data.train},
            batch=config.pairs,
            seed=config.run.seed,
        ),
        rollout=actors.rollout,
        scorer=Scorer(
            config.reward,
            embedder=actors.reward,
            judge=actors.judge,
            second=actors.second,
            max_frames=config.data.media.max_frames,
            item_tokens=config.data.item_tokens,
            compute=actors.ranker.rank_sides,
            relevance=relevance,
        ),
        decoder=actors.decoder,
        learner=actors.learner,
        store=actors.store,
    )


def train_loop(
    config: RLConfig,
    pipeline: Pipeline,
    folder: RunFolder,
    *,
    held_out: list[Pair],
    restarts: Restarts,
    scaler: PoolScaler,
    request: StopRequest,
) -> int:
    """Run the steps that the last checkpoint leaves; log, measure, checkpoint; return how many are
    done in all.

    Raises:
        StopRequested: SIGTERM or SIGINT came; a checkpoint was written.
        NothingToTrainOn: step after step trained nothing.
        ParityError: engines and learner compute different things; a checkpoint was written.
    """
    checkpoints = Checkpoints(folder)
    last = checkpoints.resume(config.steps)
    if last:
        with checkpoints.reading(last):
            pipeline.load(last.path, last.state)
    done = last.step if last else 0
    pipeline.sync()
    console = plain_console()
    streak = BrokenStreak(folder.path / BROKEN_FILE)
    empty = EmptyStreak(trained=done > 0)
    due = False
    every = config.evaluation.every
    if every and not done:
        record(folder, 0, measure(config, pipeline, folder, held_out, step=0), console)
    with progress_bar(console) as bar:
        task = bar.add_task("EG-RL", total=config.steps, completed=done)
        for step in range(done + 1, config.steps + 1):
            result = pipeline.step()
            metrics = result.metrics | scaler.step() | {"learner/restarts": float(restarts.count)}
            if every and (step % every == 0 or step == config.steps):
                began = time.perf_counter()
                metrics |= measure(config, pipeline, folder, held_out, step=step)
                metrics["time/eval_s"] = time.perf_counter() - began
                metrics["time/step_s"] += metrics["time/eval_s"]
            folder.write_trajectories(step, result.rows)
            record(folder, step, metrics, console)
            streak.record(result.broken)
            try:
                check_parity(result.metrics, broken=bool(result.broken), limits=config.parity)
            except ParityError as error:
                folder.settle_metrics()
                checkpoints.save(step, pipeline.save, state=pipeline.state(), metrics=metrics)
                raise ParityError(f"{error}. The same command goes on after step {step}") from None
            final = step == config.steps
            if not result.broken:
                trained = metrics["traces/trained"] + metrics["group/replayed"]
                empty.record(trained, metrics, result.examples, last=final)
            stop = request.made
            due = due or step % config.checkpoint_every == 0
            # What an empty step passed over is drawn again, should it be one of those that end
            # the run: the checkpoint waits for a step that trains.
            if final or stop or (due and not empty.steps):
                due = False
                folder.settle_metrics()
                checkpoints.save(step, pipeline.save, state=pipeline.state(), metrics=metrics)
            restarts.completed(step)
            bar.advance(task)
            if stop:
                request.obey(step, config.steps)
    return max(done, config.steps)


def measure(
    config: RLConfig, pipeline: Pipeline, folder: RunFolder, held_out: list[Pair], *, step: int
) -> dict[str, float]:
    """Return held-out hit@1 after a step; its traces are kept in the run's store."""
    recipe = held_out_recipe(
        pipeline.weights_digest,
        config.rollout,
        config.data.media,
        templates=config.data.templates,
        step=step,
        version=pipeline.version,
    )
    return measure_held_out(
        held_out,
        pipeline.collector,
        traces=TraceStore(folder.path / TRACE_FOLDER, recipe),
        made_by=f"rl {folder.path}: after step {step}, version {pipeline.version}",
    )


def record(folder: RunFolder, step: int, metrics: dict[str, float], console: Console) -> None:
    """Write one step's metrics, and its line to the console."""
    folder.log_metrics(step, metrics)
    shown = [
        ("reward", "reward/total"),
        ("format", "reward/format"),
        ("acc", "rank/accuracy"),
        ("hit@1", "eval/hit_at_1"),
        ("kl", "policy/kl"),
        ("stale", "staleness/max"),
        ("seconds", "time/step_s"),
    ]
    parts = [f"{name} {metrics[key]:.3g}" for name, key in shown if key in metrics]
    console.print(f"step {step}: " + " ".join(parts), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_job(RLConfig, main, roles=roles))
