"""Traces and vectors of many items: from the stores, else from engines, block by block.

Each block is in the store before the next one begins: a kill loses at most the block at hand.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from cluster.pictures import Decoder, SharedPictures
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.run.stage_loop import prefetched, progress_bar
from configs.common import MediaConfig, RolloutConfig
from configs.reward import RewardConfig
from data.stores.facts import embedder_facts, reasoner_recipe
from data.stores.traces import StoredTrace, Subject, TraceCost, TraceStore
from data.stores.vectors import VectorStore
from data.types import Content, EmbedRequest, GenerationRequest, GroupKey, Side, TrajectoryKey

RequestT = TypeVar("RequestT")
SHOWN_REASONS = 5


class Blocks:
    """Cuts what engines are asked into blocks, whose pictures are decoded while those of the block
    before are read; shows how far it is.
    """

    def __init__(self, decoder: Decoder, media: MediaConfig, size: int, console: Console) -> None:
        self._decoder, self.media, self._size, self.console = decoder, media, size, console
        self._left_out: set[str] = set()
        """Reasons that were shown: a picture can be in several blocks."""

    def of(
        self, what: str, requests: Sequence[RequestT], contents: Sequence[Content]
    ) -> Iterator[tuple[Sequence[RequestT], SharedPictures]]:
        """Yield block after block with its pictures."""
        with progress_bar(self.console) as bar:
            task = bar.add_task(what, total=len(requests))
            shared = self._decoder.share_blocks(requests, contents, self.media, block=self._size)
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
    rollout: RolloutConfig,
    templates: str,
    blocks: Blocks,
    store: Path,
    most_missing: float,
    made_by: str,
) -> dict[str, str]:
    """Return one greedy trace per subject: from the store, else from engines that live for this
    call only. Those that failed are left out; they are tried again by the next call.

    Args:
        asked: what to reason about, with what the Reasoner reads.
        model: folder of the Reasoner.
        rollout: its engines.
        templates: of ``asked``.
        blocks: decodes the pictures.
        store: folder of stores.
        most_missing: largest share that may have failed.
        made_by: the job and its run, for people who look into the store.

    Raises:
        DataError: a larger share failed.
    """
    greedy = _trace_store(model, rollout, blocks.media, templates, store, seed=None)
    by_seed = {None: greedy}
    _write_missing(asked, by_seed, model=model, rollout=rollout, blocks=blocks, made_by=made_by)
    return _read(asked, greedy, most_missing)


def sampled_traces(
    asked: list[tuple[Subject, Content]],
    *,
    samples: int,
    model: str,
    rollout: RolloutConfig,
    templates: str,
    blocks: Blocks,
    store: Path,
    most_missing: float,
    made_by: str,
) -> list[dict[str, str]]:
    """Return ``samples`` traces per subject, by seed from 0 on, sampled at the temperature of
    ``rollout``; otherwise as `greedy_traces`. ``most_missing`` is a share of the traces of a seed.

    Raises:
        DataError: of a seed, a larger share failed.
    """
    by_seed = {
        seed: _trace_store(model, rollout, blocks.media, templates, store, seed=seed)
        for seed in range(samples)
    }
    _write_missing(asked, by_seed, model=model, rollout=rollout, blocks=blocks, made_by=made_by)
    return [_read(asked, of_seed, most_missing) for of_seed in by_seed.values()]


def trace_cost(
    keys: Sequence[str],
    *,
    model: str,
    rollout: RolloutConfig,
    templates: str,
    media: MediaConfig,
    store: Path,
) -> TraceCost:
    """Return what the greedy traces of keys cost when they were written, in whatever run.

    Raises:
        DataError: a part of the store cannot be read.
    """
    return _trace_store(model, rollout, media, templates, store, seed=None).cost(keys)


def trace_tokens(
    keys: Sequence[str],
    *,
    model: str,
    rollout: RolloutConfig,
    templates: str,
    media: MediaConfig,
    store: Path,
) -> dict[str, int]:
    """Return the generated tokens of the greedy traces of keys, of which they are known.

    Raises:
        DataError: a part of the store cannot be read.
    """
    return _trace_store(model, rollout, media, templates, store, seed=None).tokens(keys)


def _trace_store(
    model: str,
    rollout: RolloutConfig,
    media: MediaConfig,
    templates: str,
    store: Path,
    *,
    seed: int | None,
) -> TraceStore:
    recipe = reasoner_recipe(model, rollout, media, templates=templates, seed=seed)
    return TraceStore(store / "traces", recipe)


def _read(
    asked: list[tuple[Subject, Content]], traces: TraceStore, most_missing: float
) -> dict[str, str]:
    return traces.traces(
        [subject.key for subject, _ in asked],
        most_missing=most_missing,
        remedy="start the job again, which tries these once more, or raise max_missing_traces",
    )


def _write_missing(
    asked: list[tuple[Subject, Content]],
    by_seed: Mapping[int | None, TraceStore],
    *,
    model: str,
    rollout: RolloutConfig,
    blocks: Blocks,
    made_by: str,
) -> None:
    """Have engines write the traces that are missing; the seed None stands for greedy ones.

    The samples of a subject follow each other, so that engines read its prompt once.
    """
    keys = [subject.key for subject, _ in asked]
    missing = {seed: set(traces.missing(keys)) for seed, traces in by_seed.items()}
    for seed, traces in by_seed.items():
        blocks.console.print(
            f"reasoning about {len(keys)} items with {model}; {len(keys) - len(missing[seed])} "
            f"traces are in {traces.folder} ...",
            highlight=False,
        )
    requests = [
        GenerationRequest(
            key=TrajectoryKey(GroupKey(index, subject.key, Side.QUERY), seed or 0),
            content=content,
            seed=seed or 0,
            greedy=seed is None,
        )
        for index, (subject, content) in enumerate(asked)
        for seed in by_seed
        if subject.key in missing[seed]
    ]
    if not requests:
        return
    pool = RolloutPool(model, rollout, blocks.media)
    pool.ready()
    subjects = {subject.key: subject for subject, _ in asked}
    for block, pictures in blocks.of("traces", requests, [r.content for r in requests]):
        begun = time.perf_counter()
        trajectories, dropped = pool.generate(block, pictures)
        wall_ms = 1000 * (time.perf_counter() - begun) / len(block)
        for seed, traces in by_seed.items():
            made = [
                StoredTrace(
                    of=subjects[t.key.group.pair_id],
                    text=t.text,
                    finish=t.finish,
                    tokens=len(t.response_ids),
                    wall_ms=wall_ms,
                )
                for t in trajectories
                if t.key.sibling == (seed or 0)
            ]
            made += [
                StoredTrace(of=subjects[t.key.group.pair_id], failed=f"{t.reason} {t.detail}")
                for t in dropped
                if t.key.sibling == (seed or 0)
            ]
            traces.add(made, made_by=made_by)
    pool.close()
    why: Counter[str] = Counter()
    for seed, traces in by_seed.items():
        why.update(traces.failures(list(missing[seed])).values())
    for reason, count in why.most_common(SHOWN_REASONS):
        blocks.console.print(f"{count} traces failed: {reason}", highlight=False)


def embed(
    requests: Sequence[EmbedRequest],
    *,
    reward: RewardConfig,
    blocks: Blocks,
    store: Path,
    memory_bytes: int,
) -> dict[str, np.ndarray]:
    """Return the unit vector [D] of each request: from the store, else from Embedders that live for
    this call only. Those that failed are left out; they are tried again by the next call.

    ``store`` is the folder of stores. Vectors of more than ``memory_bytes`` are mapped from a file.
    """
    keys = [request.key for request in requests]
    facts = embedder_facts(reward, blocks.media)
    vectors = VectorStore(store / "vectors", facts, memory_bytes=memory_bytes)
    missing = set(vectors.missing(keys))
    blocks.console.print(
        f"embedding {len(keys)} contents; {len(keys) - len(missing)} vectors are in "
        f"{vectors.folder} ...",
        highlight=False,
    )
    if missing:
        pool = RewardPool(reward, blocks.media)
        pool.ready()
        asked = [request for request in requests if request.key in missing]
        for block, pictures in blocks.of("vectors", asked, [r.content for r in asked]):
            begun = time.perf_counter()
            made, failed = pool.embed(block, pictures)
            wall_ms = 1000 * (time.perf_counter() - begun) / len(block)
            if made:
                vectors.add(list(made), np.stack(list(made.values())), wall_ms=wall_ms)
            if failed:
                vectors.add_failed(failed)
        pool.close()
        why = Counter(vectors.failures(list(missing)).values())
        for reason, count in why.most_common(SHOWN_REASONS):
            blocks.console.print(f"{count} contents not embedded: {reason}", highlight=False)
    absent = set(vectors.missing(keys))
    there = [key for key in keys if key not in absent]
    return dict(zip(there, vectors.rows(there), strict=True)) if there else {}


def contents_per_second(
    keys: Sequence[str], *, reward: RewardConfig, media: MediaConfig, store: Path
) -> float | None:
    """Return how many contents a second Embedders read when the vectors of keys were made, in
    whatever run; None: it is known of none of them.

    Raises:
        DataError: a part of the store cannot be read.
    """
    facts = embedder_facts(reward, media)
    wall_ms = VectorStore(store / "vectors", facts, memory_bytes=0).wall_ms(keys)
    return 1000 / wall_ms if wall_ms else None
