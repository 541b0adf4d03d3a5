"""Held-out retrieval of two Reasoners with one frozen Embedder: no trace, text, text + evidence.

Example: python -m cluster.jobs.evaluate configs/demo/evaluate.yaml
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from cluster.jobs.command import run_job
from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stage_loop import plain_console, prefetched, progress_bar
from cluster.run.tracking import Tracker
from cluster.session import session
from configs.schema import EvaluateConfig
from data.errors import DataError
from data.model.chat import load_encoder
from data.model.model_folder import check_embedder, check_reasoner, warn_older_input
from data.sets.load_sets import load_sets
from data.stores.facts import embedder_facts, reasoner_recipe
from data.stores.traces import StoredTrace, Subject, TraceStore
from data.stores.vectors import VectorStore
from data.types import (
    Content,
    EmbedRequest,
    GenerationRequest,
    GroupKey,
    Side,
    TrajectoryKey,
)
from evaluation.benchmarks.load import load_benchmark
from evaluation.report.console_tables import print_table
from evaluation.report.headline_table import headline_metrics, title_of
from evaluation.report.score_table import print_scores
from evaluation.results_file import RESULTS_FILE, save_evaluation
from evaluation.runner import Settings, evaluate, variants_of
from evaluation.scores.leaderboard import ModelEntry
from evaluation.scores.set_result import SetResult
from evaluation.sets import sets_of_pairs
from evaluation.suite_results import (
    save_leaderboard,
    save_suite,
    suite_metrics,
    suite_results,
    suite_table,
)

RequestT = TypeVar("RequestT")


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
    loaded = load_sets(data.eval, limits=data) if data.eval else []
    sets = sets_of_pairs(
        [pair for loaded_set in loaded for pair in loaded_set.pairs],
        {loaded_set.name: loaded_set.distractors.values() for loaded_set in loaded},
    )
    suites = list(dict.fromkeys(benchmark.suite for benchmark in config.benchmarks))
    for benchmark in config.benchmarks:
        sets += load_benchmark(benchmark, data.media)
    named = {"warm_start": config.warm_start, "eg_rl": config.eg_rl}
    reasoners = {name: model for name, model in named.items() if model}
    for model in reasoners.values():
        check_reasoner(model, sets)
    load_encoder(config.reward.model, data.media).check_pooling(config.reward.pooling)
    warn_older_input(config.reward.model)
    check_embedder(config.reward.model, sets)
    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with (
        connected,
        Tracker(folder.path, job="evaluate", given=config.run.dir) as tracker,
        closing(Decoder()) as decoder,
    ):
        blocks = Blocks(decoder, config, console)

        result = evaluate(
            sets,
            reasoners={
                name: partial(
                    greedy_traces, model=model, config=config, blocks=blocks, folder=folder
                )
                for name, model in reasoners.items()
            },
            embed=partial(embed, config=config, blocks=blocks, folder=folder),
            settings=Settings(
                templates=data.templates,
                max_frames=data.media.max_frames,
                item_tokens=data.item_tokens,
                resamples=config.bootstrap,
                seed=config.run.seed,
            ),
        )
        folder.keep_until(-1)  # of an evaluation that was killed
        metrics = headline_metrics(result)
        save_evaluation(result, folder.path)
        for suite in suites:
            metrics |= suite_metrics(result, suite)
            save_suite(result, suite, folder.path)
        folder.log_metrics(0, metrics)
        tracker.log_file(folder.path / RESULTS_FILE)
    print_table(result, console)
    variant = variants_of(reasoners)[-1].name
    for suite in suites:
        if results := suite_results(result, suite, variant):
            console.print(f"{suite}, {title_of(variant)}:", highlight=False)
            print_scores(suite_table(results, suite), console)
    if config.leaderboard.model_name:
        results = suite_results(result, "mmeb_v2", variant)
        console.print(leaderboard_line(results, config, result.dimensions, folder), highlight=False)
    folder.finish(queries=len({(query.source, query.pair_id) for query in result.queries}))
    return 0


def leaderboard_line(
    results: Sequence[SetResult], config: EvaluateConfig, dimensions: int, folder: RunFolder
) -> str:
    """Write the leaderboard's file, and return the line that says where it is, or why it is not."""
    entry = ModelEntry(
        **asdict(config.leaderboard),
        embedding_dimension=dimensions,
        max_length_tokens=config.reward.engine.max_model_len,
    )
    try:
        return f"for the leaderboard: {save_leaderboard(results, entry, folder.path)}"
    except DataError as error:  # all figures are saved already
        return f"no file for the leaderboard: {error}"


class Blocks:
    """Cuts what engines are asked into blocks, whose pictures are decoded while those of the block
    before are read; shows how far it is.
    """

    def __init__(self, decoder: Decoder, config: EvaluateConfig, console: Console) -> None:
        self._decoder, self._config, self.console = decoder, config, console
        self._left_out: set[str] = set()
        """Reasons that were shown: a picture can be in several blocks."""

    def of(
        self, what: str, requests: Sequence[RequestT], contents: Sequence[Content]
    ) -> Iterator[tuple[Sequence[RequestT], SharedPictures]]:
        """Yield block after block with its pictures."""
        media, size = self._config.data.media, self._config.block
        with progress_bar(self.console) as bar:
            task = bar.add_task(what, total=len(requests))
            shared = self._decoder.share_blocks(requests, contents, media, block=size)
            for block, pictures, failed in prefetched(shared):
                for reason in failed.values():
                    if reason not in self._left_out:
                        self.console.print(f"left out: {reason}", highlight=False)
                self._left_out |= set(failed.values())
                yield block, pictures
                bar.advance(task, len(block))


def greedy_traces(
    asked: list[tuple[Subject, Content]],
    *,
    model: str,
    config: EvaluateConfig,
    blocks: Blocks,
    folder: RunFolder,
) -> dict[str, str]:
    """Return one greedy trace per subject: from the store, else from engines that live for this
    call only.

    Raises:
        DataError: more traces failed than `max_missing_traces` allows.
    """
    media, keys = config.data.media, [subject.key for subject, _ in asked]
    recipe = reasoner_recipe(
        model, config.rollout, media, templates=config.data.templates, seed=None
    )
    store = TraceStore(store_root(config, folder) / "traces", recipe)
    missing = set(store.missing(keys))
    blocks.console.print(
        f"reasoning about {len(keys)} items with {model}; {len(keys) - len(missing)} traces are in "
        f"{store.folder} ...",
        highlight=False,
    )
    if missing:
        pool = RolloutPool(model, config.rollout, media)
        pool.ready()
        subjects = {subject.key: subject for subject, _ in asked}
        requests = [
            GenerationRequest(
                key=TrajectoryKey(GroupKey(index, subject.key, Side.QUERY), 0),
                content=content,
                seed=0,
                greedy=True,
            )
            for index, (subject, content) in enumerate(asked)
            if subject.key in missing
        ]
        for block, pictures in blocks.of("traces", requests, [r.content for r in requests]):
            trajectories, dropped = pool.generate(block, pictures)
            traces = [
                StoredTrace(of=subjects[t.key.group.pair_id], text=t.text, finish=t.finish)
                for t in trajectories
            ]
            traces += [
                StoredTrace(of=subjects[t.key.group.pair_id], failed=f"{t.reason} {t.detail}")
                for t in dropped
            ]
            store.add(traces, made_by=f"evaluate {folder.path}")
        pool.close()
    return store.traces(
        keys,
        most_missing=config.max_missing_traces,
        remedy="start the job again, which tries these once more, or raise max_missing_traces",
    )


def embed(
    requests: list[EmbedRequest], *, config: EvaluateConfig, blocks: Blocks, folder: RunFolder
) -> dict[str, np.ndarray]:
    """Return the vector of each request: from the store, else from Embedders that live for this
    call only.
    """
    media, keys = config.data.media, [request.key for request in requests]
    store = VectorStore(
        store_root(config, folder) / "vectors",
        embedder_facts(config.reward, media),
        memory_bytes=config.vector_bytes,
    )
    missing = set(store.missing(keys))
    blocks.console.print(
        f"embedding {len(keys)} contents; {len(keys) - len(missing)} vectors are in "
        f"{store.folder} ...",
        highlight=False,
    )
    if missing:
        pool = RewardPool(config.reward, media)
        pool.ready()
        asked = [request for request in requests if request.key in missing]
        for block, pictures in blocks.of("vectors", asked, [r.content for r in asked]):
            vectors, failed = pool.embed(block, pictures)
            if vectors:
                store.add(list(vectors), np.stack(list(vectors.values())))
            if failed:
                store.add_failed(failed)
            for key, reason in failed.items():
                blocks.console.print(f"not embedded: {key}: {reason}", highlight=False)
        pool.close()
    absent = set(store.missing(keys))
    there = [key for key in keys if key not in absent]
    return dict(zip(there, store.rows(there), strict=True)) if there else {}


def store_root(config: EvaluateConfig, folder: RunFolder) -> Path:
    """Return the folder of the stores."""
    return Path(config.store) if config.store else folder.path / "store"


if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, main, roles=roles))
