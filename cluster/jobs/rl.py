"""Embedder-guided RL of the Reasoner, from a warm-started model to an exported one.

Example: ray job submit --working-dir . -- python -m cluster.jobs.rl configs/demo/rl.yaml
"""

import logging
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import ray
from rich.console import Console

from cluster.jobs.command import run_job
from cluster.learner_group import LearnerGroup, learner_role
from cluster.pictures import Decoder
from cluster.placement import Role, driver_node
from cluster.pools.judge import JudgePool
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.pools.scaling import TARGETS, PoolScaler, PoolTargets
from cluster.rl.held_out import measure_held_out
from cluster.rl.parity import check_parity
from cluster.rl.ranker import Ranker
from cluster.rl.scoring import Scorer
from cluster.rl.step import Pipeline
from cluster.run.checkpoints import Checkpoints
from cluster.run.divergence import BrokenStreak
from cluster.run.empty_steps import EmptyStreak
from cluster.run.folder import BROKEN_FILE, RunFolder, settled
from cluster.run.loop import export_best, plain_console, progress_bar
from cluster.run.recovery import Restarts, keep_training
from cluster.run.stopping import StopRequest
from cluster.run.tracking import Tracker
from cluster.session import session, spare_collections
from cluster.weights.store import WeightStore
from configs.schema import RLConfig
from data.model.chat import load_encoder
from data.model.folder import check_folder, check_reasoner, warn_embedder_ignores, warn_older_input
from data.sets.feed import PairFeed, held_out_pairs
from data.sets.fingerprints import model_fingerprint, pairs_fingerprint
from data.sets.records import load_sets
from data.sets.relevance import Relevance
from data.types import Pair
from rollout.actor import StoreAddress

log = logging.getLogger(__name__)
STORE = "weights"


def roles(config: RLConfig) -> list[Role]:
    """Return what the job asks Ray for."""
    pools = {"rollout": config.rollout.pool, "reward": config.reward.pool}
    if config.reward.second_model:
        pools["second"] = config.reward.pool
    if config.reward.judge.model:
        pools["judge"] = config.reward.judge.pool
    return [
        *(Role(name, pool.actors, pool.cpus, pool.gpus) for name, pool in pools.items()),
        learner_role(config.learner),
    ]


def main(config: RLConfig) -> int:
    """Run all steps and export; go on from the last checkpoint, also after losing the learner."""
    folder = RunFolder(config, job="rl")
    if folder.finished:
        print(f"{folder.path}: already finished; delete the folder to run it again")
        return 0
    config = settled(config)
    data = config.data
    train = load_sets(data.train, limits=data)
    held_out_sets = load_sets(data.eval, limits=data)
    check_reasoner(config.reasoner, [*train, *held_out_sets])
    load_encoder(config.reward.model, data.media).check_pooling(config.reward.pooling)
    warn_older_input(config.reward.model)
    warn_embedder_ignores(config.reward.model, [*train, *held_out_sets])
    if config.reward.second_model:
        load_encoder(config.reward.second_model, data.media).check_pooling(config.reward.pooling)
    if config.reward.judge.model:
        check_folder(config.reward.judge.model)
    Checkpoints(folder).check_inputs(
        {
            "data.train": pairs_fingerprint(data.train, train),
            "data.eval": pairs_fingerprint(data.eval, held_out_sets),
            "reasoner": model_fingerprint(config.reasoner),
            "reward.model": model_fingerprint(config.reward.model),
            "reward.second_model": model_fingerprint(config.reward.second_model),
            "reward.judge.model": model_fingerprint(config.reward.judge.model),
        },
        arithmetic="what a step's loss is the mean of, and which targets are right for a query",
    )
    held_out = held_out_pairs(held_out_sets, config.evaluation.samples)
    relevance = Relevance(pair for one in (*train, *held_out_sets) for pair in one.pairs)
    namespace = str(folder.path.absolute())
    nodes_timeout_s = config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with connected, Tracker(folder.path, job="rl", given=config.run.dir), ExitStack() as stack:
        # Both start again empty: weights are published again, sizes stay as they are. They lie
        # on the driver's node, so that no other node takes them along.
        here = {"scheduling_strategy": driver_node(), "num_cpus": 0}
        lasting = {**here, "max_restarts": -1, "max_task_retries": -1}
        store = ray.remote(WeightStore).options(name=STORE, **lasting).remote()
        learner = LearnerGroup(config.learner, config.weights)
        stack.callback(learner.close)
        address = StoreAddress(
            ray_address=ray.get_runtime_context().gcs_address,
            namespace=namespace,
            actor_name=STORE,
        )
        rollout = RolloutPool(config.reasoner, config.rollout, data.media, store=address)
        stack.callback(rollout.close)
        reward = RewardPool(config.reward, data.media)
        stack.callback(reward.close)
        second = judge = None
        if config.reward.second_model:
            other = replace(config.reward, model=config.reward.second_model)
            second = RewardPool(other, data.media, role="second")
            stack.callback(second.close)
        if config.reward.judge.model:
            judge = JudgePool(config.reward.judge)
            stack.callback(judge.close)
        decoder, ranker = Decoder(), Ranker()
        stack.callback(decoder.close)
        stack.callback(ranker.close)
        learner.build_policy(
            model=config.reasoner,
            media=data.media,
            total_steps=config.steps,
            seed=config.run.seed,
            grpo=config.grpo,
            sampling=config.rollout.sampling,
        )
        some = (rollout, reward, second, judge)
        pools = {pool.role.name: pool for pool in some if pool is not None}
        targets = ray.remote(PoolTargets).options(name=TARGETS, **lasting).remote(tuple(pools))
        policies = {
            "rollout": config.rollout.pool,
            "reward": config.reward.pool,
            "second": config.reward.pool,
            "judge": config.reward.judge.pool,
        }
        scaler = PoolScaler(pools, policies, targets)
        log.info("waiting for the engines of %s to load", ", ".join(pools))
        for pool in pools.values():
            pool.ready()
        log.info("%s: all engines are ready; RAY_ADDRESS=%s", folder.path, address.ray_address)
        spare_collections()

        def attempt(restarts: Restarts) -> tuple[int, int]:
            ray.get(store.clear.remote(), timeout=config.learner.timeout_s)
            pipeline = Pipeline(
                config,
                feed=PairFeed(
                    train,
                    {one.name: one.weight for one in data.train},
                    batch=config.pairs,
                    seed=config.run.seed,
                ),
                rollout=rollout,
                scorer=Scorer(
                    config.reward,
                    embedder=reward,
                    judge=judge,
                    second=second,
                    max_frames=data.media.max_frames,
                    compute=ranker.standings,
                    relevance=relevance,
                ),
                decoder=decoder,
                learner=learner,
                store=store,
            )
            with closing(pipeline):
                done = train_loop(
                    config,
                    pipeline,
                    folder,
                    held_out=held_out,
                    restarts=restarts,
                    scaler=scaler,
                    request=request,
                )
            exported = export_best(learner, folder, done=done)
            return done, exported

        with StopRequest() as request:
            steps, exported = keep_training(learner, attempt)
    folder.finish(steps=steps, exported_step=exported)
    print(
        f"{folder.path}: done; the trained Reasoner, as it was after step {exported}, is in "
        f"{folder.path / 'export'}"
    )
    return 0


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
        record(folder, 0, measure_held_out(held_out, pipeline.collector), console)
    with progress_bar(console) as bar:
        task = bar.add_task("EG-RL", total=config.steps, completed=done)
        for step in range(done + 1, config.steps + 1):
            result = pipeline.step()
            metrics = result.metrics | scaler.step() | {"learner/restarts": float(restarts.count)}
            if every and (step % every == 0 or step == config.steps):
                began = time.perf_counter()
                metrics |= measure_held_out(held_out, pipeline.collector)
                metrics["time/eval_s"] = time.perf_counter() - began
                metrics["time/step_s"] += metrics["time/eval_s"]
            folder.write_trajectories(step, result.rows)
            record(folder, step, metrics, console)
            streak.record(result.broken)
            check_parity(
                result.metrics, broken=bool(result.broken), tolerance=config.logprob_tolerance
            )
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
            if stop:
                request.obey(step, config.steps)
            bar.advance(task)
    return max(done, config.steps)


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
