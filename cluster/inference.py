"""Traces and vectors of many items: from the stores, else from engines, block by block.

A block is committed to the store before the next one begins, so a job that is killed loses one.
What is asked for may be made while it is read, so that no more than two blocks are in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from cluster.run.stage_loop import prefetched, progress_bar
from configs.common import MediaConfig, RolloutConfig
from configs.reward import RewardConfig
from data.stores.facts import embedder_facts, reasoner_recipe
from data.stores.traces import StoredTrace, Subject, TraceStore
from data.stores.vectors import VectorStore
from data.types import Content, EmbedRequest, GenerationRequest, GroupKey, Side, TrajectoryKey

T = TypeVar("T")
RequestT = TypeVar("RequestT", GenerationRequest, EmbedRequest)
KEYS_AT_ONCE = 4096
"""Keys that are looked for in a store together."""


def engine_roles(reward: RewardConfig, rollout: RolloutConfig | None) -> list[Role]:
    """Return what a job asks Ray for whose pools run one after the other: the larger counts.

    ``rollout`` is None where no traces are made.
    """
    pools = {"rollout": rollout.pool} if rollout else {}
    pools["reward"] = reward.pool
    most = max(
        pools,
        key=lambda name: (
            pools[name].actors * pools[name].gpus,
            pools[name].actors * pools[name].cpus,
        ),
    )
    return [Role(most, pools[most].actors, pools[most].cpus, pools[most].gpus)]


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
    recipe = reasoner_recipe(model, rollout, blocks.media, templates=templates, seed=None)
    traces = TraceStore(store / "traces", recipe)
    count, missing = 0, set[str]()
    for block in in_blocks(asked, KEYS_AT_ONCE):
        count += len(block)
        missing.update(traces.missing(subject.key for subject, _ in block))
    blocks.console.print(
        f"reasoning about {count} items with {model}; {count - len(missing)} traces are in "
        f"{traces.folder} ...",
        highlight=False,
    )
    if not missing:
        return traces
    subjects: dict[str, Subject] = {}
    """Of the requests that engines were not done with yet."""

    def requests() -> Iterator[GenerationRequest]:
        waiting = set(missing)
        for index, (subject, content) in enumerate(asked):
            if subject.key in waiting:
                waiting.remove(subject.key)
                subjects[subject.key] = subject
                key = TrajectoryKey(GroupKey(index, subject.key, Side.QUERY), 0)
                yield GenerationRequest(key=key, content=content, seed=0, greedy=True)

    pool = RolloutPool(model, rollout, blocks.media)
    pool.ready()
    for block, pictures in blocks.of("traces", requests(), len(missing)):
        trajectories, dropped = pool.generate(block, pictures)
        made = [
            StoredTrace(of=subjects[t.key.group.pair_id], text=t.text, finish=t.finish)
            for t in trajectories
        ]
        made += [
            StoredTrace(of=subjects[t.key.group.pair_id], failed=f"{t.reason} {t.detail}")
            for t in dropped
        ]
        traces.add(made, made_by=made_by)
        for request in block:
            del subjects[request.key.group.pair_id]
    pool.close()
    return traces


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
    facts = embedder_facts(reward, blocks.media)
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

    pool = RewardPool(reward, blocks.media)
    pool.ready()
    for block, pictures in blocks.of("vectors", asked(), len(missing)):
        made, failed = pool.embed(block, pictures)
        if made:
            vectors.add(list(made), np.stack(list(made.values())))
        if failed:
            vectors.add_failed(failed)
        for key, reason in failed.items():
            blocks.console.print(f"not embedded: {key}: {reason}", highlight=False)
    pool.close()
    return vectors
