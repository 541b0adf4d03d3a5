"""Traces and vectors of many items: from the stores, else from engines, block by block.

Each block is in the store before the next one begins: a kill loses at most the block at hand.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
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
from data.stores.traces import StoredTrace, Subject, TraceStore
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
    keys = [subject.key for subject, _ in asked]
    recipe = reasoner_recipe(model, rollout, blocks.media, templates=templates, seed=None)
    traces = TraceStore(store / "traces", recipe)
    missing = set(traces.missing(keys))
    blocks.console.print(
        f"reasoning about {len(keys)} items with {model}; {len(keys) - len(missing)} traces are in "
        f"{traces.folder} ...",
        highlight=False,
    )
    if missing:
        pool = RolloutPool(model, rollout, blocks.media)
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
            made = [
                StoredTrace(of=subjects[t.key.group.pair_id], text=t.text, finish=t.finish)
                for t in trajectories
            ]
            made += [
                StoredTrace(of=subjects[t.key.group.pair_id], failed=f"{t.reason} {t.detail}")
                for t in dropped
            ]
            traces.add(made, made_by=made_by)
        pool.close()
        why = Counter(traces.failures(list(missing)).values())
        for reason, count in why.most_common(SHOWN_REASONS):
            blocks.console.print(f"{count} traces failed: {reason}", highlight=False)
    return traces.traces(
        keys,
        most_missing=most_missing,
        remedy="start the job again, which tries these once more, or raise max_missing_traces",
    )


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
            made, failed = pool.embed(block, pictures)
            if made:
                vectors.add(list(made), np.stack(list(made.values())))
            if failed:
                vectors.add_failed(failed)
        pool.close()
        why = Counter(vectors.failures(list(missing)).values())
        for reason, count in why.most_common(SHOWN_REASONS):
            blocks.console.print(f"{count} contents not embedded: {reason}", highlight=False)
    absent = set(vectors.missing(keys))
    there = [key for key in keys if key not in absent]
    return dict(zip(there, vectors.rows(there), strict=True)) if there else {}
