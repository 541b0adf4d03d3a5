"""Retrieval with one frozen Embedder, on held-out sets and benchmarks: without a trace, with each
Reasoner's text, with text + evidence.

Example: python -m cluster.jobs.evaluate configs/demo/evaluate.yaml
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from rich.console import Console

from cluster.inference import (
    TraceSource,
    VectorSource,
    check_models,
    engine_roles,
    opened_blocks,
)
from cluster.jobs.command import run_job
from cluster.placement import Role
from cluster.rivals import check_rivals, embed_with_rival
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stage_loop import plain_console
from cluster.run.tracking import Tracker
from configs.common import DataConfig, DataSetConfig
from configs.schema import EvaluateConfig
from data.errors import DataError
from data.rows.trace_files import published_files, read_published_traces
from data.sets.load_sets import load_sets
from data.stores.facts import published_recipe
from data.stores.keys import files_remembered
from data.stores.traces import Subject, TraceStore
from data.types import Content
from evaluation.adaptive.effects import trace_effects
from evaluation.adaptive.gate import adaptive_figures
from evaluation.benchmarks.load import load_benchmark
from evaluation.costs import Costs
from evaluation.report.console_tables import print_table
from evaluation.report.headline_table import headline_metrics, title_of
from evaluation.report.score_table import print_scores
from evaluation.results_file import RESULTS_FILE, save_evaluation
from evaluation.runner import Reason, Settings, evaluate, named_subjects
from evaluation.scores.set_result import SetResult
from evaluation.sets import EvaluationSet, sets_of_pairs
from evaluation.suite_results import (
    save_leaderboard,
    save_suite,
    suite_metrics,
    suite_results,
    suite_table,
)
from evaluation.variants import PUBLISHED, RIVAL_SUFFIX, variants_of


def roles(config: EvaluateConfig) -> list[Role]:
    """Return what the job asks Ray for: its pools run one after the other."""
    reasons = config.warm_start or config.eg_rl
    rivals = {f"rival {rival.name}": rival.pool for rival in config.rivals}
    return engine_roles(config.reward, config.rollout if reasons else None, rivals)


@files_remembered()
def main(config: EvaluateConfig) -> int:
    """Reason, embed, rank; write the results and print the table."""
    folder = RunFolder(config, job="evaluate")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    console = plain_console()
    data = config.data
    sets = ranked_sets(data.eval, data)
    gate_sets = ranked_sets(config.adaptive.train, data)
    suites = list(dict.fromkeys(benchmark.suite for benchmark in config.benchmarks))
    for benchmark in config.benchmarks:
        sets += load_benchmark(benchmark, data.media)
    named = {"warm_start": config.warm_start, "eg_rl": config.eg_rl}
    reasoners = {name: model for name, model in named.items() if model}
    paths = config.published_traces
    files = published_files(paths, [data_set.name for data_set in sets]) if paths else {}
    check_models(config, reasoners.values(), [*sets, *gate_sets])
    check_rivals(config.rivals, data.media, sets)
    store = Path(config.store) if config.store else folder.path / "store"
    settings = Settings(
        templates=data.templates,
        max_frames=data.media.max_frames,
        item_tokens=data.item_tokens,
        resamples=config.bootstrap,
        seed=config.run.seed,
        controls=tuple(config.controls),
    )
    with (
        opened_blocks(config, roles(config), folder, size=config.block) as blocks,
        Tracker(folder.path, job="evaluate", given=config.run.dir) as tracker,
    ):
        sources = {
            name: TraceSource(
                model=model,
                rollout=config.rollout,
                templates=data.templates,
                blocks=blocks,
                store=store,
                made_by=f"evaluate {folder.path}",
                most_missing=config.max_missing_traces,
            )
            for name, model in reasoners.items()
        }
        greedy: dict[str, Reason] = {name: source.greedy for name, source in sources.items()}
        if files:
            published = published_traces(sets, files, settings, config, store, console)
            greedy = {PUBLISHED: published, **greedy}
        keeping = {"blocks": blocks, "store": store, "memory_bytes": config.vector_bytes}
        vectors = VectorSource.of(config.reward, **keeping)
        result = evaluate(
            sets,
            reasoners=greedy,
            samplers={
                name: partial(source.sampled, samples=config.samples)
                for name, source in sources.items()
            },
            embed=vectors.embed,
            rivals={
                rival.name: partial(embed_with_rival, rival=rival, **keeping)
                for rival in config.rivals
            },
            costs=Costs(
                traces={name: source.stored().cost for name, source in sources.items()},
                contents_per_second=vectors.per_second,
            ),
            settings=settings,
        )
        if gate_sets:
            name, source = list(sources.items())[-1]
            effects = trace_effects(
                [gate_sets, sets],
                reason=source.greedy,
                embed=vectors.embed,
                tokens=source.stored().tokens,
                settings=settings,
            )
            figures = adaptive_figures(
                *effects, reasoner=name, resamples=config.bootstrap, seed=config.run.seed
            )
            result = replace(result, adaptive=figures)
        folder.keep_until(-1)  # of an evaluation that was killed
        metrics = headline_metrics(result)
        save_evaluation(result, folder.path)
        for suite in suites:
            metrics |= suite_metrics(result, suite)
            save_suite(result, suite, folder.path)
        folder.log_metrics(0, metrics)
        tracker.log_file(folder.path / RESULTS_FILE)
    print_table(result, console)
    variant = variants_of(greedy)[-1].name
    for suite in suites:
        if results := suite_results(result, suite, variant):
            console.print(f"{suite}, {title_of(variant)}:", highlight=False)
            rivals = {
                title_of(name): suite_results(result, suite, name)
                for name in (rival.name + RIVAL_SUFFIX for rival in config.rivals)
            }
            print_scores(suite_table(results, suite, rivals), console)
    if config.leaderboard.model_name:
        results = suite_results(result, "mmeb_v2", variant)
        console.print(leaderboard_line(results, config, result.dimensions, folder), highlight=False)
    folder.finish(queries=len({(query.source, query.pair_id) for query in result.queries}))
    return 0


def published_traces(
    sets: Sequence[EvaluationSet],
    files: Mapping[str, Sequence[Path]],
    settings: Settings,
    config: EvaluateConfig,
    store: Path,
    console: Console,
) -> Reason:
    """Take published traces over into the store; return what gives them as a Reasoner would.

    Args:
        sets: whose queries and candidates have them.
        files: of each set, by its name.
        settings: what Reasoners would read, which the keys follow from.
        config: names the files, and says which share may be missing.
        store: folder of stores.
        console: gets the share of each set's queries and candidates that has a trace.

    Raises:
        DataError: a file cannot be read.
    """
    recipe = published_recipe(chain.from_iterable(files.values()))
    traces = TraceStore(store / "traces", recipe)
    for data_set in sets:
        of_set = files.get(data_set.name, ())
        subjects = named_subjects(data_set, settings)
        made_by = f"published files, taken over by evaluate {config.run.dir}"
        traces.take_over(subjects, read_published_traces(of_set), made_by=made_by)
        keys = {subject.of.key for subject in subjects}
        console.print(
            f"published traces of {data_set.name}: coverage {traces.coverage(keys):.3f} of "
            f"{len(keys)} queries and candidates, from {len(of_set)} files",
            highlight=False,
        )

    def published(asked: list[tuple[Subject, Content]]) -> Mapping[str, str]:
        return traces.traces(
            [subject.key for subject, _ in asked],
            most_missing=config.max_missing_traces,
            remedy="add files to published_traces, leave sets out, or raise max_missing_traces",
        )

    return published


def ranked_sets(configs: list[DataSetConfig], data: DataConfig) -> list[EvaluationSet]:
    """Return what is ranked of data sets; ``data`` has their limits."""
    loaded = load_sets(configs, limits=data) if configs else []
    return sets_of_pairs(
        [pair for loaded_set in loaded for pair in loaded_set.pairs],
        {loaded_set.name: loaded_set.distractors.values() for loaded_set in loaded},
    )


def leaderboard_line(
    results: Sequence[SetResult], config: EvaluateConfig, dimensions: int, folder: RunFolder
) -> str:
    """Write the leaderboard's file, and return the line that says where it is, or why it is not."""
    try:
        path = save_leaderboard(
            results,
            config.leaderboard,
            folder.path,
            dimensions=dimensions,
            max_tokens=config.reward.engine.max_model_len,
        )
        return f"for the leaderboard: {path}"
    except DataError as error:  # all figures are saved already
        return f"no file for the leaderboard: {error}"


if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, main, roles=roles))
