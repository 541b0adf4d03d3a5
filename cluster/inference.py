"""Traces and vectors of many items: from the stores, else from engines, block by block.

Each block is in the store before the next one begins: a kill loses at most the block at hand.
What is asked for may be made while it is read, so that no more than two blocks are in memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.pools.reward import EmbedderPool, RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.run.stage_loop import prefetched, progress_bar
from configs.common import MediaConfig, PoolConfig, RolloutConfig
from configs.reward import RewardConfig
from data.stores.facts import embedder_facts, reasoner_recipe
from data.stores.traces import StoredTrace, Subject, TraceCost, TraceStore
from data.stores.vectors import VectorStore
from data.types import Content, EmbedRequest, GenerationRequest, GroupKey, Side, TrajectoryKey

T = TypeVar("T")
RequestT = TypeVar("RequestT", GenerationRequest, EmbedRequest)
KEYS_AT_ONCE = 4096
"""Keys that are looked for in a store together."""
SHOWN_REASONS = 5


def engine_roles(
    reward: RewardConfig,
    rollout: RolloutConfig | None,
    rivals: Mapping[str, PoolConfig] = MappingProxyType({}),
) -> list[Role]:
    """Return what a job asks Ray for whose pools run one after the other: the largest counts.

    ``rollout`` is None where no traces are made. ``rivals`` are pools of other Embedders by name.
    """
    pools = {"rollout": rollout.pool} if rollout else {}
    pools |= {"reward": reward.pool, **rivals}
    turns = [Role(name, pool.actors, pool.cpus, pool.gpus) for name, pool in pools.items()]
    most = max(turns, key=lambda role: (role.actors * role.gpus, role.actors * role.cpus))
    return [replace(most, turns=tuple(turns))]


def in_blocks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield ``size`` values after another; the last block may be smaller."""
    rest = iter(values)
    while block := list(islice(rest, size)):
        yield block


class Blocks:
    """Cuts what engines are asked into blocks, whose pictures are decoded while those of the block
    before are read; shows how far it is.
    """

    def __init__(self, decoder: Decoder, media: MediaConfig, size: int, console: Console) -> None:
        self._decoder, self.media, self._size, self.console = decoder, media, size, console
        self.failed: dict[str, str] = {}
        """Why pictures could not be decoded, by their uris."""

    def of(
        self, what: str, requests: Iterable[RequestT], total: int
    ) -> Iterator[tuple[Sequence[RequestT], SharedPictures]]:
        """Yield block after block with its pictures; another thread goes through ``requests``."""
        with progress_bar(self.console) as bar:
            task = bar.add_task(what, total=total)
            for block, pictures, failed in prefetched(self._shared(requests)):
                # A picture can be in several blocks.
                new = {reason: None for uri, reason in failed.items() if uri not in self.failed}
                for reason in new:
                    self.console.print(f"left out: {reason}", highlight=False)
                self.failed.update(failed)
                yield block, pictures
                bar.advance(task, len(block))

    def _shared(
        self, requests: Iterable[RequestT]
    ) -> Iterator[tuple[Sequence[RequestT], SharedPictures, Mapping[str, str]]]:
        for block in in_blocks(requests, self._size):
            contents = [request.content for request in block]
            yield from self._decoder.share_blocks(block, contents, self.media, block=self._size)


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
    traces = store_traces(
        asked,
        model=model,
        rollout=rollout,
        templates=templates,
        blocks=blocks,
        store=store,
        made_by=made_by,
    )
    return _read(asked, traces, most_missing)


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


def store_traces(
    asked: Iterable[tuple[Subject, Content]],
    *,
    model: str,
    rollout: RolloutConfig,
    templates: str,
    blocks: Blocks,
    store: Path,
    made_by: str,
) -> TraceStore:
    """Return the store with one greedy trace per subject: what it lacked was made by engines that
    live for this call only. Those that failed are missing.

    Args:
        asked: see `greedy_traces`; gone through twice, so no iterator.
        model: see `greedy_traces`, as all that follow.
    """
    traces = _trace_store(model, rollout, blocks.media, templates, store, seed=None)
    by_seed = {None: traces}
    _write_missing(asked, by_seed, model=model, rollout=rollout, blocks=blocks, made_by=made_by)
    return traces


def _write_missing(
    asked: Iterable[tuple[Subject, Content]],
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
    count = 0
    missing: dict[int | None, set[str]] = {seed: set() for seed in by_seed}
    for block in in_blocks(asked, KEYS_AT_ONCE):
        count += len(block)
        for seed, traces in by_seed.items():
            missing[seed].update(traces.missing(subject.key for subject, _ in block))
    for seed, traces in by_seed.items():
        blocks.console.print(
            f"reasoning about {count} items with {model}; {count - len(missing[seed])} traces are "
            f"in {traces.folder} ...",
            highlight=False,
        )
    total = sum(map(len, missing.values()))
    if not total:
        return
    subjects: dict[TrajectoryKey, Subject] = {}
    """Of the requests that engines are not done with yet."""

    def requests() -> Iterator[GenerationRequest]:
        waiting = {seed: set(keys) for seed, keys in missing.items()}
        for index, (subject, content) in enumerate(asked):
            for seed, keys in waiting.items():
                if subject.key in keys:
                    keys.remove(subject.key)
                    key = TrajectoryKey(GroupKey(index, subject.key, Side.QUERY), seed or 0)
                    subjects[key] = subject
                    yield GenerationRequest(
                        key=key, content=content, seed=seed or 0, greedy=seed is None
                    )

    pool = RolloutPool(model, rollout, blocks.media)
    pool.ready()
    for block, pictures in blocks.of("traces", requests(), total):
        begun = time.perf_counter()
        trajectories, dropped = pool.generate(block, pictures)
        wall_ms = 1000 * (time.perf_counter() - begun) / len(block)
        for seed, traces in by_seed.items():
            made = [
                StoredTrace(
                    of=subjects[t.key],
                    text=t.text,
                    finish=t.finish,
                    tokens=len(t.response_ids),
                    wall_ms=wall_ms,
                )
                for t in trajectories
                if t.key.sibling == (seed or 0)
            ]
            made += [
                StoredTrace(of=subjects[t.key], failed=f"{t.reason} {t.detail}")
                for t in dropped
                if t.key.sibling == (seed or 0)
            ]
            traces.add(made, made_by=made_by)
        for request in block:
            del subjects[request.key]
    pool.close()
    why: Counter[str] = Counter()
    for seed, traces in by_seed.items():
        why.update(traces.failures(list(missing[seed])).values())
    for reason, number in why.most_common(SHOWN_REASONS):
        blocks.console.print(f"{number} traces failed: {reason}", highlight=False)


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
    vectors = store_vectors(
        requests, reward=reward, blocks=blocks, store=store, memory_bytes=memory_bytes
    )
    return rows_of(vectors, requests)


def rows_of(vectors: VectorStore, requests: Sequence[EmbedRequest]) -> dict[str, np.ndarray]:
    """Return the vector [D] of each request that a store has one of."""
    keys = [request.key for request in requests]
    absent = set(vectors.missing(keys))
    there = [key for key in keys if key not in absent]
    return dict(zip(there, vectors.rows(there), strict=True)) if there else {}


def store_vectors(
    requests: Iterable[EmbedRequest],
    *,
    reward: RewardConfig,
    blocks: Blocks,
    store: Path,
    memory_bytes: int,
) -> VectorStore:
    """Return the store with the unit vector [D] of each request: what it lacked was made by
    Embedders that live for this call only. Those that failed are missing.

    ``requests`` are gone through twice, so they are no iterator; the rest as for `embed`.
    """
    return kept_vectors(
        requests,
        facts=embedder_facts(reward, blocks.media),
        open_pool=lambda: RewardPool(reward, blocks.media),
        blocks=blocks,
        store=store,
        memory_bytes=memory_bytes,
    )


def kept_vectors(
    requests: Iterable[EmbedRequest],
    *,
    facts: Mapping[str, Any],
    open_pool: Callable[[], EmbedderPool],
    blocks: Blocks,
    store: Path,
    memory_bytes: int,
) -> VectorStore:
    """Return the store of ``facts``, as `store_vectors`; ``open_pool`` makes what it lacks."""
    vectors = VectorStore(store / "vectors", facts, memory_bytes=memory_bytes)
    count, missing = 0, set[str]()
    for block in in_blocks(requests, KEYS_AT_ONCE):
        count += len(block)
        missing.update(vectors.missing([request.key for request in block]))
    blocks.console.print(
        f"embedding {count} contents; {count - len(missing)} vectors are in {vectors.folder} ...",
        highlight=False,
    )
    if not missing:
        return vectors

    def asked() -> Iterator[EmbedRequest]:
        waiting = set(missing)
        for request in requests:
            if request.key in waiting:
                waiting.remove(request.key)
                yield request

    pool = open_pool()
    pool.ready()
    for block, pictures in blocks.of("vectors", asked(), len(missing)):
        begun = time.perf_counter()
        made, failed = pool.embed(block, pictures)
        wall_ms = 1000 * (time.perf_counter() - begun) / len(block)
        if made:
            vectors.add(list(made), np.stack(list(made.values())), wall_ms=wall_ms)
        if failed:
            vectors.add_failed(failed)
    pool.close()
    why = Counter(vectors.failures(list(missing)).values())
    for reason, number in why.most_common(SHOWN_REASONS):
        blocks.console.print(f"{number} contents not embedded: {reason}", highlight=False)
    return vectors


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
