"""Traces and vectors of many items: from the stores, else from engines, block by block.

Each block is in the store before the next one begins: a kill loses at most the block at hand.
What is asked for may be made while it is read, so that no more than two blocks are in memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
from cluster.run.run_folder import RunFolder
from cluster.run.stage_loop import plain_console, prefetched, progress_bar
from cluster.session import session
from configs.common import DataConfig, MediaConfig, PoolConfig, RolloutConfig
from configs.reward import RewardConfig
from configs.schema import EncodeConfig, EvaluateConfig, SearchConfig
from data.embed_inputs import embed_content
from data.model.chat import load_encoder
from data.model.model_folder import ShownSet, check_embedder, check_reasoner, warn_older_input
from data.prompts import item_content
from data.stores.encoded import EncodedItem
from data.stores.facts import embedder_facts, reasoner_recipe
from data.stores.keys import content_key
from data.stores.traces import StoredTrace, Subject, TraceStore
from data.stores.vectors import VectorStore
from data.types import (
    Content,
    Cues,
    EmbedRequest,
    Evidence,
    GenerationRequest,
    GroupKey,
    Item,
    Side,
    TrajectoryKey,
)
from evaluation.evidence import parse_trace

T = TypeVar("T")
RequestT = TypeVar("RequestT", GenerationRequest, EmbedRequest)
KEYS_AT_ONCE = 4096
"""Keys that are looked for in a store together."""
SHOWN_REASONS = 5
InferenceConfig = EncodeConfig | EvaluateConfig | SearchConfig
"""Settings of the jobs that reason and embed."""


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


@contextmanager
def opened_blocks(
    config: InferenceConfig, roles: Sequence[Role], folder: RunFolder, *, size: int
) -> Iterator[Blocks]:
    """Connect to Ray and start the decoder, for as long as the context lasts.

    Args:
        config: settings of the job.
        roles: what it asks Ray for.
        folder: of its run.
        size: requests of a block.
    """
    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles, namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with connected, closing(Decoder()) as decoder:
        yield Blocks(decoder, config.data.media, size, plain_console())


def check_models(
    config: InferenceConfig, reasoners: Iterable[str], shown: Sequence[ShownSet]
) -> None:
    """Refuse models that are not there, or that cannot see what is shown.

    Raises:
        DataError: a model's folder is incomplete.
        ConfigError: a model cannot see what is shown, or is asked in another way.
    """
    for reasoner in reasoners:
        check_reasoner(reasoner, shown)
    reward = config.reward
    load_encoder(reward.model, config.data.media).check_pooling(reward.pooling)
    warn_older_input(reward.model)
    check_embedder(reward.model, shown)


def reasoner_input(
    item: Item, side: Side, data: DataConfig, *, task: str
) -> tuple[Subject, Content]:
    """Return what a trace of an item is of, and what the Reasoner reads."""
    content = item_content(
        item,
        side,
        templates=data.templates,
        max_frames=data.media.max_frames,
        item_tokens=data.item_tokens,
    )
    return Subject(key=content_key(content), item=item, side=side, task=task), content


def embedder_input(item: Item, trace: str, data: DataConfig, *, evidence: str) -> EmbedRequest:
    """Return what the Embedder reads of an item with its trace, "" where it has none.

    ``evidence`` is `reward.evidence`.
    """
    content = embed_content(
        item,
        trace,
        max_frames=data.media.max_frames,
        item_tokens=data.item_tokens,
        evidence=Evidence(evidence),
    )
    return EmbedRequest(key=content_key(content), content=content)


def encoded_item(item: Item, trace: str, *, item_id: str, file: str) -> EncodedItem:
    """Return what is kept of an item beside its vector."""
    parsed = parse_trace(trace, kind=item.kind, num_frames=len(item.uris)) if trace else None
    return EncodedItem(
        item_id=item_id,
        file=file,
        text=item.instructed_text(),
        kind=item.kind,
        uris=item.uris,
        trace=trace,
        cues=parsed.cues if parsed else Cues(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """Where the traces of one Reasoner come from: its store, else engines that live for one call.

    Traces that failed are missing; they are tried again by the next call.
    """

    model: str
    """Folder of the Reasoner."""
    rollout: RolloutConfig
    templates: str
    """Of what it is asked."""
    blocks: Blocks
    store: Path
    """Folder of stores."""
    made_by: str
    """The job and its run, for people who look into the store."""
    most_missing: float = 0.0
    """Largest share of the traces of one call, or of one seed, that may have failed."""

    def greedy(self, asked: Sequence[tuple[Subject, Content]]) -> dict[str, str]:
        """Return one greedy trace per subject, by its key; those that failed are left out.

        ``asked`` is what to reason about, with what the Reasoner reads.

        Raises:
            DataError: a larger share than `most_missing` failed.
        """
        return self._read(asked, self.filled(asked))

    def sampled(
        self, asked: Sequence[tuple[Subject, Content]], *, samples: int
    ) -> list[dict[str, str]]:
        """Return ``samples`` traces per subject, by seed from 0 on, sampled at the temperature of
        `rollout`; otherwise as `greedy`.

        Raises:
            DataError: of a seed, a larger share than `most_missing` failed.
        """
        by_seed = {seed: self.stored(seed) for seed in range(samples)}
        self._write_missing(asked, by_seed)
        return [self._read(asked, of_seed) for of_seed in by_seed.values()]

    def filled(self, asked: Iterable[tuple[Subject, Content]]) -> TraceStore:
        """Return the store with one greedy trace per subject, but for those that failed.

        ``asked`` as for `greedy`; it is gone through twice, so it is no iterator.
        """
        traces = self.stored()
        self._write_missing(asked, {None: traces})
        return traces

    def stored(self, seed: int | None = None) -> TraceStore:
        """Return the store as it is: of greedy traces, or of those that were sampled with a seed.

        Raises:
            DataError: the model's folder has no files.
        """
        recipe = reasoner_recipe(
            self.model, self.rollout, self.blocks.media, templates=self.templates, seed=seed
        )
        return TraceStore(self.store / "traces", recipe)

    def _read(self, asked: Sequence[tuple[Subject, Content]], traces: TraceStore) -> dict[str, str]:
        return traces.traces(
            [subject.key for subject, _ in asked],
            most_missing=self.most_missing,
            remedy="start the job again, which tries these once more, or raise max_missing_traces",
        )

    def _write_missing(
        self,
        asked: Iterable[tuple[Subject, Content]],
        by_seed: Mapping[int | None, TraceStore],
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
            self.blocks.console.print(
                f"reasoning about {count} items with {self.model}; {count - len(missing[seed])} "
                f"traces are in {traces.folder} ...",
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

        pool = RolloutPool(self.model, self.rollout, self.blocks.media)
        pool.ready()
        for block, pictures in self.blocks.of("traces", requests(), total):
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
                traces.add(made, made_by=self.made_by)
            for request in block:
                del subjects[request.key]
        pool.close()
        why: Counter[str] = Counter()
        for seed, traces in by_seed.items():
            why.update(traces.failures(list(missing[seed])).values())
        for reason, number in why.most_common(SHOWN_REASONS):
            self.blocks.console.print(f"{number} traces failed: {reason}", highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSource:
    """Where the vectors of one Embedder come from: their store, else actors that live for one call.

    Contents that failed have none; they are tried again by the next call.
    """

    facts: Mapping[str, Any]
    """What the vectors follow from beside the contents."""
    open_pool: Callable[[], EmbedderPool]
    """Starts the actors."""
    blocks: Blocks
    store: Path
    """Folder of stores."""
    memory_bytes: int
    """Vectors of more bytes are mapped from a file."""

    @classmethod
    def of(
        cls, reward: RewardConfig, *, blocks: Blocks, store: Path, memory_bytes: int
    ) -> "VectorSource":
        """Return the source of an Embedder on vLLM."""
        return cls(
            facts=embedder_facts(reward, blocks.media),
            open_pool=partial(RewardPool, reward, blocks.media),
            blocks=blocks,
            store=store,
            memory_bytes=memory_bytes,
        )

    def embed(self, requests: Sequence[EmbedRequest]) -> dict[str, np.ndarray]:
        """Return the unit vector [D] of each request by its key; those that failed are left out."""
        vectors = self.filled(requests)
        keys = [request.key for request in requests]
        absent = set(vectors.missing(keys))
        there = [key for key in keys if key not in absent]
        return dict(zip(there, vectors.rows(there), strict=True)) if there else {}

    def filled(self, requests: Iterable[EmbedRequest]) -> VectorStore:
        """Return the store with the unit vector [D] of each request, but for those that failed.

        ``requests`` are gone through twice, so they are no iterator.
        """
        vectors = self._stored()
        count, missing = 0, set[str]()
        for block in in_blocks(requests, KEYS_AT_ONCE):
            count += len(block)
            missing.update(vectors.missing([request.key for request in block]))
        self.blocks.console.print(
            f"embedding {count} contents; {count - len(missing)} vectors are in "
            f"{vectors.folder} ...",
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

        pool = self.open_pool()
        pool.ready()
        for block, pictures in self.blocks.of("vectors", asked(), len(missing)):
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
            self.blocks.console.print(f"{number} contents not embedded: {reason}", highlight=False)
        return vectors

    def per_second(self, keys: Sequence[str]) -> float | None:
        """Return how many contents a second Embedders read when the vectors of keys were made, in
        whatever run; None: it is known of none of them.

        Raises:
            DataError: a part of the store cannot be read.
        """
        wall_ms = self._stored().wall_ms(keys)
        return 1000 / wall_ms if wall_ms else None

    def _stored(self) -> VectorStore:
        return VectorStore(self.store / "vectors", self.facts, memory_bytes=self.memory_bytes)
