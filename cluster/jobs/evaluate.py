"""Held-out retrieval of two Reasoners with one frozen Embedder: no trace, text, text + evidence.

Example: python -m cluster.jobs.evaluate configs/demo/evaluate.yaml
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
from rich.console import Console

from cluster.jobs.command import run_job
from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stage_loop import plain_console
from cluster.run.tracking import Tracker
from cluster.session import session
from configs.schema import EvaluateConfig
from data.media.frames import frames_only
from data.model.chat import load_encoder
from data.model.model_folder import check_embedder, check_reasoner, warn_older_input
from data.prompts import pictures_of
from data.sets.load_sets import LoadedSet, load_sets
from data.types import (
    Content,
    EmbedRequest,
    GenerationRequest,
    GroupKey,
    Picture,
    Side,
    TrajectoryKey,
)
from evaluation.report.console_tables import print_table
from evaluation.report.headline_table import headline_metrics
from evaluation.results_file import RESULTS_FILE, save_evaluation
from evaluation.runner import Reason, Settings, evaluate


def roles(config: EvaluateConfig) -> list[Role]:
    """Return what the job asks Ray for: pools that run one after the other, the larger counts."""
    pools = {"rollout": config.rollout.pool, "reward": config.reward.pool}
    most = max(
        pools,
        key=lambda name: (
            pools[name].actors * pools[name].gpus,
            pools[name].actors * pools[name].cpus,
        ),
    )
    return [Role(most, pools[most].actors, pools[most].cpus, pools[most].gpus)]


def main(config: EvaluateConfig) -> int:
    """Reason, embed, rank; write the results and print the table."""
    folder = RunFolder(config, job="evaluate")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    console = plain_console()
    data = config.data
    loaded = load_sets(data.eval, limits=data)
    for reasoner in (config.warm_start, config.eg_rl):
        check_reasoner(reasoner, loaded)
    load_encoder(config.reward.model, data.media).check_pooling(config.reward.pooling)
    warn_older_input(config.reward.model)
    check_embedder(config.reward.model, loaded)
    pairs = [pair for loaded_set in loaded for pair in loaded_set.pairs]
    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with (
        connected,
        Tracker(folder.path, job="evaluate", given=config.run.dir) as tracker,
        closing(Decoder()) as decoder,
    ):
        shown = shown_by(loaded, data.media.max_frames)
        uris = {picture.uri for picture in shown}
        pictures, failed = decoder.share(uris, data.media, frames=frames_only(shown))
        for reason in failed.values():
            console.print(f"left out: {reason}", highlight=False)
        embedder: list[RewardPool] = []

        def reason_with(model: str) -> Reason:
            def reason(prompts: list[tuple[str, Content]]) -> Mapping[str, str]:
                return greedy_traces(prompts, model, config, pictures, console)

            return reason

        def embed(requests: list[EmbedRequest]) -> Mapping[str, np.ndarray]:
            # Started at the first call, when the Reasoners' engines have made room.
            if not embedder:
                console.print("embedding ...")
                embedder.append(RewardPool(config.reward, data.media))
                embedder[0].ready()
            vectors, unembedded = embedder[0].embed(requests, pictures)
            for key, reason in unembedded.items():
                console.print(f"not embedded: {key}: {reason}", highlight=False)
            return vectors

        result = evaluate(
            pairs,
            reasoners={
                "warm_start": reason_with(config.warm_start),
                "eg_rl": reason_with(config.eg_rl),
            },
            embed=embed,
            settings=Settings(
                templates=data.templates,
                max_frames=data.media.max_frames,
                item_tokens=data.item_tokens,
                resamples=config.bootstrap,
                seed=config.run.seed,
            ),
            distractors={data_set.name: data_set.distractors.values() for data_set in loaded},
        )
        for pool in embedder:
            pool.close()
        folder.keep_until(-1)  # of an evaluation that was killed
        folder.log_metrics(0, headline_metrics(result))
        save_evaluation(result, folder.path)
        tracker.log_file(folder.path / RESULTS_FILE)
    print_table(result, console)
    folder.finish(queries=len({(query.source, query.pair_id) for query in result.queries}))
    return 0


def greedy_traces(
    prompts: list[tuple[str, Content]],
    model: str,
    config: EvaluateConfig,
    pictures: SharedPictures,
    console: Console,
) -> dict[str, str]:
    """Return one greedy trace per prompt, from engines that live for this call only."""
    console.print(f"reasoning about {len(prompts)} items with {model} ...", highlight=False)
    pool = RolloutPool(model, config.rollout, config.data.media)
    pool.ready()
    requests = [
        GenerationRequest(
            key=TrajectoryKey(GroupKey(index, key, Side.QUERY), 0),
            content=content,
            seed=0,
            greedy=True,
        )
        for index, (key, content) in enumerate(prompts)
    ]
    trajectories, dropped = pool.generate(requests, pictures)
    pool.close()
    for trajectory in dropped[:5]:
        console.print(
            f"failed: {trajectory.key}: {trajectory.reason} {trajectory.detail}", highlight=False
        )
    return {trajectory.key.group.pair_id: trajectory.text for trajectory in trajectories}


def shown_by(sets: Sequence[LoadedSet], max_frames: int) -> set[Picture]:
    """Return every picture that the pairs of sets, their candidates and distractors show."""
    pairs = (pair for data_set in sets for pair in data_set.pairs)
    items = [item for p in pairs for item in (p.query, p.target, *p.candidates)]
    items += [item for data_set in sets for item in data_set.distractors.values()]
    return {picture for item in items for picture in pictures_of(item, max_frames)}


if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, main, roles=roles))
