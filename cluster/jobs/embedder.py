"""Contrastive training of the Embedder on item + trace + evidence, both sides.

Example: python -m cluster.jobs.embedder configs/demo/embedder.yaml
"""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cluster.jobs.command import run_job
from cluster.learner_group import LearnerGroup, learner_role
from cluster.picture_retry import read_patiently
from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.run.checkpoints import Checkpoints
from cluster.run.model_card import embedder_card
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stage_loop import FeedState, train_stage
from cluster.run.tracking import Tracker
from cluster.session import session
from configs.schema import EmbedderConfig
from data.durable import sync_tree
from data.embed_inputs import INPUT_FORM, embed_content
from data.errors import NothingToTrainOn
from data.media.frames import frames_only
from data.model.chat import load_encoder
from data.model.emb_token import with_emb_token
from data.model.model_folder import check_embedder
from data.model.sentence_transformer import prompts_of, write_sentence_transformer
from data.prompts import pictures_of, uris_shown
from data.relevance import Relevance
from data.rows.row_formats import ANSWER_KNOWN
from data.sets.feed import PairFeed, held_out_pairs
from data.sets.fingerprints import model_fingerprint, pairs_fingerprint, texts_fingerprint
from data.sets.load_sets import known_right, load_sets
from data.stores.traced_sets import traces_in_use, with_stored_traces
from data.types import Content, ContrastPair, Evidence, Item, Pair, Side
from evaluation.metrics import held_out_metrics

BASE_FOLDER = "base"
"""Of the run folder: the model where it lacks an `<emb>` token."""
MAX_POOR_DRAWS = 20
"""Batches in a row without usable pairs: more is no bad luck."""
TOLD, LEAK = 0.5, 0.3
"""A warning comes from this share of traces that hold the answer, and this gain in hit@1, on."""
log = logging.getLogger(__name__)
ContrastiveBatch = tuple[list[ContrastPair], SharedPictures]


def roles(config: EmbedderConfig) -> list[Role]:
    """Return what the job asks Ray for."""
    return [learner_role(config.learner)]


def main(config: EmbedderConfig) -> int:
    """Train, stop on held-out hit@1, export; go on from the last checkpoint."""
    folder = RunFolder(config, job="embedder")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    data = config.data
    load_encoder(config.model, data.media)  # refuses limits that do not fit it
    train, held_out_sets = (
        with_stored_traces(load_sets(sets, limits=data), sets, config)
        for sets in (data.train, data.eval)
    )
    check_embedder(config.model, [*train, *held_out_sets])
    inputs = {
        "data.train": pairs_fingerprint(data.train, train),
        "data.eval": pairs_fingerprint(data.eval, held_out_sets),
        "model": model_fingerprint(config.model),
    }
    if config.store:
        in_use = traces_in_use([*train, *held_out_sets])
        inputs["store"] = {"traces in use": texts_fingerprint(in_use)}
    Checkpoints(folder).check_inputs(
        inputs,
        arithmetic="what the Embedder reads, and which targets are right for a query",
    )
    held_out = held_out_pairs(held_out_sets, config.evaluation.samples)
    if knowing := sum(pair.answer_known for pair in held_out):
        log.info(
            "%d of %d held-out pairs have traces that know the answer (%s): hit@1 is measured "
            "without these",
            knowing,
            len(held_out),
            ANSWER_KNOWN,
        )
    relevance = known_right([*train, *held_out_sets])

    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with (
        connected,
        Tracker(folder.path, job="embedder", given=config.run.dir),
        closing(Decoder()) as decoder,
    ):

        def batches_from(state: FeedState | None) -> Iterator[tuple[ContrastiveBatch, FeedState]]:
            feed = PairFeed(
                train,
                {settings.name: settings.weight for settings in data.train},
                batch=config.batch // config.sub_batches,
                seed=config.run.seed,
            )
            if state is not None:
                feed.restore(state)
            return contrastive_batches(feed, config, relevance, decoder)

        model = with_emb_token(config.model, folder.path / BASE_FOLDER)
        group = LearnerGroup(config.learner)
        group.build_contrastive(
            model=model,
            media=data.media,
            total_steps=config.steps,
            seed=config.run.seed,
            temperature=config.temperature,
            learn_temperature=config.learn_temperature,
            dimensions=config.dimensions,
        )
        held_out, pictures = with_pictures(held_out, config, decoder)
        facts = train_stage(
            group,
            batches=batches_from,
            train=lambda batch: group.train_contrastive(*batch),
            measure=lambda: held_out_hit_at_1(group, held_out, pictures, config, relevance),
            steps=config.steps,
            checkpoint_every=config.checkpoint_every,
            evaluation=config.evaluation,
            stop=config.stop,
            folder=folder,
        )
        group.close()
    warn_of_leak(held_out, facts)
    export = folder.path / "export"
    prompts = prompts_of(held_out)
    write_sentence_transformer(export, data.media, dimensions=config.dimensions, prompts=prompts)
    write_readme(export, config, facts, prompts)
    sync_tree(export)
    folder.finish(**facts, input_form=INPUT_FORM, video=data.media.video)
    return 0


def write_readme(
    export: Path,
    config: EmbedderConfig,
    measured: Mapping[str, float] = MappingProxyType({}),
    prompts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the model card beside the weights; the rest is as `embedder_card` has it."""
    (export / "README.md").write_text(embedder_card(config, measured, prompts), encoding="utf-8")


def contrastive_batches(
    feed: PairFeed, config: EmbedderConfig, relevance: Relevance, decoder: Decoder
) -> Iterator[tuple[ContrastiveBatch, FeedState]]:
    """Yield contrastive batches: each side with its trace and evidence, or with less by chance.

    With each batch comes the feed's position after the batch. ``relevance`` says which targets are
    right for which queries.

    Raises:
        NothingToTrainOn: draw after draw, too few pairs have readable pictures to give every rank
            one.
    """
    traces = negatives_traces(feed)
    poor = 0
    while poor < MAX_POOR_DRAWS:
        rng = np.random.default_rng([config.run.seed, 1, feed.batches])
        drawn = feed.next_pairs_of(config.sub_batches)
        pairs, pictures = with_pictures(drawn, config, decoder)
        if len(pairs) < config.learner.ranks:
            poor += 1
            continue
        poor = 0
        rows = [
            make_row(pair, rng, config, traces, pictures.sizes.keys(), relevance) for pair in pairs
        ]
        rows = with_known_right(rows, relevance.right_among(pairs))
        yield (rows, pictures), feed.state()
    raise NothingToTrainOn(
        f"data.train: {MAX_POOR_DRAWS} batches in a row had fewer than learner.ranks="
        f"{config.learner.ranks} pairs with readable pictures; the reasons are logged above"
    )


def negatives_traces(feed: PairFeed) -> dict[str, str]:
    """Return the written traces of the sets' hard negatives, by `Item.key`: other rows' targets."""
    tables = [data_set.table for data_set in feed.sets.values()]
    wanted = np.concatenate([table.negatives.numbers() for table in tables])
    traces: dict[str, str] = {}
    for data_set, table in zip(feed.sets.values(), tables, strict=True):
        met = np.isin(table.targets.numbers(), wanted) & table.with_trace(Side.TARGET)
        for place in np.flatnonzero(met).tolist():
            pair = data_set.pairs[place]
            traces[pair.target.key()] = pair.target_trace
    return traces


def make_row(
    pair: Pair,
    rng: np.random.Generator,
    config: EmbedderConfig,
    traces: Mapping[str, str],
    decoded: Set[str],
    relevance: Relevance,
) -> ContrastPair:
    """Return a pair's row; each side's trace or evidence is dropped by chance.

    Hard negatives are shown in the form of the target. A hard negative is left out if it is right
    by ``relevance``, if it lacks a trace though the target has one, or if a picture is broken: not
    among the files that were ``decoded``.
    """
    most, tokens = config.data.media.max_frames, config.data.item_tokens
    query, target = (draw_evidence(rng, config) for _ in Side)

    def content(item: Item, trace: str, evidence: Evidence) -> Content:
        return embed_content(item, trace, max_frames=most, item_tokens=tokens, evidence=evidence)

    bare = target is Evidence.NONE or not pair.target_trace
    usable = [
        item
        for item in pair.hard_negatives[: config.hard_negatives]
        if not relevance.right([pair.key(Side.QUERY)], [item.key()])
        and (bare or item.key() in traces)
        and uris_shown([item], most) <= decoded
    ]
    return ContrastPair(
        query=content(pair.query, pair.query_trace, query),
        target=content(pair.target, pair.target_trace, target),
        target_key=pair.target.key(),
        negatives=tuple(
            content(item, "" if bare else traces[item.key()], target) for item in usable
        ),
    )


def with_known_right(rows: list[ContrastPair], right: np.ndarray) -> list[ContrastPair]:
    """Return the rows with the targets that are right for their queries, boolean [B, B]."""
    keys = [row.target_key for row in rows]
    known = (dict.fromkeys(keys[j] for j in np.flatnonzero(columns)) for columns in right)
    return [
        replace(row, right=tuple(right_keys)) for row, right_keys in zip(rows, known, strict=True)
    ]


def draw_evidence(rng: np.random.Generator, config: EmbedderConfig) -> Evidence:
    """Return by chance how much of its trace an item is embedded with."""
    bare, text_only = rng.random(2) < (config.trace_dropout, config.evidence_dropout)
    return Evidence.NONE if bare else Evidence.TEXT if text_only else Evidence.FULL


def with_pictures(
    pairs: list[Pair], config: EmbedderConfig, decoder: Decoder
) -> tuple[list[Pair], SharedPictures]:
    """Return the pairs whose pictures can be decoded, and these; what cannot be is reported.

    A pair stays where only a hard negative's picture is broken.
    """
    most = config.data.media.max_frames
    shown = [uris_shown((pair.query, pair.target), most) for pair in pairs]
    beside = [uris_shown(pair.hard_negatives[: config.hard_negatives], most) for pair in pairs]
    items = (
        item
        for pair in pairs
        for item in (pair.query, pair.target, *pair.hard_negatives[: config.hard_negatives])
    )
    frames = frames_only(picture for item in items for picture in pictures_of(item, most))
    uris = set().union(*shown, *beside)
    share = partial(decoder.share, limits=config.data.media, frames=frames)
    pictures, failed = read_patiently(uris, share, time.sleep)
    for reason in failed.values():
        print(f"set aside: {reason}", file=sys.stderr)
    kept = [pair for pair, uris in zip(pairs, shown, strict=True) if not uris & failed.keys()]
    return kept, pictures


def held_out_hit_at_1(
    group: LearnerGroup,
    pairs: list[Pair],
    pictures: SharedPictures,
    config: EmbedderConfig,
    relevance: Relevance,
) -> dict[str, float]:
    """Return held-out hit@1 without traces and with the written traces, by leading dimensions too.

    Traces whose writer knew the answer are left out. See `held_out_metrics`.
    """
    if not pairs:  # there is nothing to embed
        return held_out_metrics("eval/hit_at_1", [], {}, {}, relevance=relevance)
    metrics: dict[str, float] = {}
    for name, evidence in (
        ("eval/hit_at_1_no_trace", Evidence.NONE),
        ("eval/hit_at_1", Evidence.FULL),
    ):
        vectors: dict[Side, dict[str, np.ndarray]] = {}
        for side in Side:
            contents = {
                pair.key(side): embed_content(
                    pair.item(side),
                    "" if pair.answer_known else pair.trace(side),
                    max_frames=config.data.media.max_frames,
                    item_tokens=config.data.item_tokens,
                    evidence=evidence,
                )
                for pair in pairs
            }
            rows = group.embed(list(contents.values()), pictures)
            vectors[side] = dict(zip(contents, rows, strict=True))
        metrics |= held_out_metrics(
            name, pairs, vectors[Side.QUERY], vectors[Side.TARGET], relevance=relevance
        )
        for size in config.dimensions if evidence is Evidence.FULL else ():
            cut = {
                side: {key: row[:size] for key, row in rows.items()}
                for side, rows in vectors.items()
            }
            metrics |= held_out_metrics(
                f"{name}_dim_{size}", pairs, cut[Side.QUERY], cut[Side.TARGET], relevance=relevance
            )
    return metrics


def warn_of_leak(pairs: Sequence[Pair], found: Mapping[str, float]) -> None:
    """Warn where held-out traces seem to know the answers: most hold them, and they raise hit@1."""
    told = [
        pair.target.text.casefold() in pair.query_trace.casefold()
        for pair in pairs
        if pair.query_trace and pair.target.text and not pair.answer_known
    ]
    with_traces, without = (found.get(f"eval/hit_at_1{name}", 0.0) for name in ("", "_no_trace"))
    if told and np.mean(told) >= TOLD and with_traces - without >= LEAK:
        log.warning(
            "eval/hit_at_1 is %.2f with the written traces and %.2f without, and %.0f %% of the "
            "held-out queries' traces hold their target's text: where their writer knew the "
            "answers, say so in the rows ('%s': true), and hit@1 is measured without them",
            with_traces,
            without,
            100 * np.mean(told),
            ANSWER_KNOWN,
        )


if __name__ == "__main__":
    sys.exit(run_job(EmbedderConfig, main, roles=roles))
