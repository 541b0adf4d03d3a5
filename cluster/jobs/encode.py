"""A folder of pictures, videos and PDFs, or a file of rows, to vectors that `search` looks through.

Example: python -m cluster.jobs.encode configs/demo/encode.yaml
"""

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from cluster.inference import (
    KEYS_AT_ONCE,
    TraceSource,
    VectorSource,
    check_models,
    embedder_input,
    encoded_item,
    engine_roles,
    in_blocks,
    opened_blocks,
    reasoner_input,
)
from cluster.jobs.command import run_job
from cluster.placement import Role
from cluster.run.quarantine import QUARANTINE, QUARANTINE_FILE
from cluster.run.run_folder import RunFolder, settled, write_atomically
from cluster.run.stage_loop import plain_console
from configs.load import to_yaml
from configs.schema import EncodeConfig, SearchConfig
from data.errors import DataError
from data.sets.items import NamedItem, SavedItems, SetAside, items_root, read_items
from data.stores.encoded import ENCODED_FOLDER, EncodedItem, encoded_table
from data.stores.facts import embedder_facts
from data.stores.keys import files_remembered
from data.stores.parts import FACTS
from data.stores.traces import Subject, TraceStore
from data.stores.vectors import VectorStore
from data.types import Content, EmbedRequest, Side

SEARCH_FILE = "search.yaml"
"""Settings of `search` for what this run has encoded; the query is missing."""
NO_TRACE = "trace"
NO_VECTOR = "vector"
"""Fields of items that engines failed on."""
REASONS_SHOWN = 3


def roles(config: EncodeConfig) -> list[Role]:
    """Return what the job asks Ray for: its pools run one after the other."""
    return engine_roles(config.reward, config.rollout if config.reasoner else None)


@files_remembered()
def main(config: EncodeConfig) -> int:
    """Write `encoded/`, `quarantine.parquet` and `search.yaml`."""
    folder = RunFolder(config, job="encode")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    console = plain_console()
    aside: list[SetAside] = []
    # What was read of the input, so that it is read once and never whole in memory.
    with TemporaryDirectory(prefix="items-", suffix=".part", dir=folder.path) as temporary:
        items = SavedItems(Path(temporary) / "items.parquet", config.data.media.video == "video")
        items.save(usable_items(config, aside))
        console.print(
            f"{config.input}: {len(items)} items, {len(aside)} set aside", highlight=False
        )
        if not len(items):
            raise DataError(f"{config.input}: expected items, found none of use{reasons_of(aside)}")
        check_models(config, [config.reasoner] if config.reasoner else [], [items])
        count, dimensions = encode(config, folder, items, aside)
    folder.write_json(f"{ENCODED_FOLDER}/{FACTS}", facts_of(config, count, dimensions))
    write_atomically(folder.path / SEARCH_FILE, to_yaml(search_settings(config, folder)))
    rows = [{"data_set": config.input} | asdict(entry) for entry in aside]
    folder.write_table(QUARANTINE_FILE, pa.Table.from_pylist(rows, schema=QUARANTINE))
    where = f" in {QUARANTINE_FILE}{reasons_of(aside)}" if aside else ""
    console.print(
        f"{count} vectors of {dimensions} dimensions are in {folder.path / ENCODED_FOLDER}; "
        f"{len(aside)} items or files are set aside{where}\n"
        f"to search: python -m cluster.jobs.search {folder.path / SEARCH_FILE} text='...'",
        highlight=False,
        soft_wrap=True,
    )
    folder.finish(items=count, set_aside=len(aside))
    return 0


def encode(
    config: EncodeConfig, folder: RunFolder, items: SavedItems, aside: list[SetAside]
) -> tuple[int, int]:
    """Reason, embed and write the parts; return the number of vectors and their dimensions.

    Raises:
        DataError: too many items have no trace, or none has a vector.
    """
    store = Path(config.store) if config.store else folder.path / "store"
    with opened_blocks(config, roles(config), folder, size=config.block) as blocks:
        subjects, traces = Subjects(items, config), None
        if config.reasoner:
            source = TraceSource(
                model=config.reasoner,
                rollout=config.rollout,
                templates=config.data.templates,
                blocks=blocks,
                store=store,
                made_by=f"encode {folder.path}",
            )
            traces = source.filled(subjects)
            refuse_missing(subjects, traces, blocks.failed, config.max_missing_traces)
        inputs = Inputs(subjects, traces)
        vectors = VectorSource.of(
            reward=config.reward, blocks=blocks, store=store, memory_bytes=config.vector_bytes
        ).filled(inputs)
    count, dimensions = write_parts(folder, inputs, vectors, blocks.failed, aside)
    if not count:
        raise DataError(
            f"{config.input}: expected vectors of {len(items)} items, found none{reasons_of(aside)}"
        )
    return count, dimensions


def usable_items(config: EncodeConfig, aside: list[SetAside]) -> Iterator[NamedItem]:
    """Yield the items of the input, and add to ``aside`` what cannot be used of it."""
    source = Path(config.input)
    root = items_root(source, config.root)
    for entry in read_items(source, root=root, media=config.data.media):
        if isinstance(entry, SetAside):
            aside.append(entry)
        else:
            yield entry


@dataclass(frozen=True)
class Subjects:
    """What the Reasoner is asked about each item, made anew each time that it is gone through."""

    items: Iterable[NamedItem]
    config: EncodeConfig

    def of(self, named: NamedItem) -> tuple[Subject, Content]:
        """Return what a trace of an item is of, and what the Reasoner reads."""
        config = self.config
        return reasoner_input(named.item, Side(config.side), config.data, task="encode")

    def __iter__(self) -> Iterator[tuple[Subject, Content]]:
        for named in self.items:
            yield self.of(named)


@dataclass(frozen=True)
class Traced:
    """An item with its trace, and what the Embedder reads."""

    named: NamedItem
    trace: str = ""
    request: EmbedRequest | None = None
    """None: it has no trace, though it should."""
    why: str = ""
    """Why it has none."""


@dataclass(frozen=True)
class Inputs:
    """What the Embedder reads of each item, made anew each time that it is gone through."""

    subjects: Subjects
    traces: TraceStore | None
    """None: items are embedded without traces."""

    def blocks(self) -> Iterator[list[Traced]]:
        """Yield the items with their traces, some at a time, in order."""
        for block in in_blocks(self.subjects.items, self.subjects.config.block):
            yield self._without(block) if self.traces is None else self._with(block, self.traces)

    def __iter__(self) -> Iterator[EmbedRequest]:
        for block in self.blocks():
            yield from (traced.request for traced in block if traced.request)

    def _without(self, block: Sequence[NamedItem]) -> list[Traced]:
        return [Traced(named, request=self._request(named, "")) for named in block]

    def _with(self, block: Sequence[NamedItem], traces: TraceStore) -> list[Traced]:
        keys = [self.subjects.of(named)[0].key for named in block]
        said = traces.traces(keys, most_missing=1.0, remedy="")
        why = traces.failures([key for key in keys if key not in said])
        return [
            Traced(named, said[key], self._request(named, said[key]))
            if key in said
            else Traced(named, why=why.get(key, ""))
            for named, key in zip(block, keys, strict=True)
        ]

    def _request(self, named: NamedItem, trace: str) -> EmbedRequest:
        config = self.subjects.config
        evidence = config.reward.evidence
        return embedder_input(named.item, trace, config.data, evidence=evidence)


def refuse_missing(
    subjects: Iterable[tuple[Subject, Content]],
    traces: TraceStore,
    failed: Mapping[str, str],
    most: float,
) -> None:
    """Refuse to go on where too many items have no trace.

    Items with pictures that ``failed`` says cannot be decoded do not count: they are set aside.

    Raises:
        DataError: a larger share than ``most`` has none.
    """
    count, missing = 0, 0
    reasons: Counter[str] = Counter()
    for block in in_blocks(subjects, KEYS_AT_ONCE):
        keys = [s.key for s, _ in block if not any(uri in failed for uri in s.item.uris)]
        absent = traces.missing(keys)
        count, missing = count + len(keys), missing + len(absent)
        reasons.update(traces.failures(absent).values())
    if missing > most * count:
        why = "; ".join(f"{n} failed: {reason}" for reason, n in reasons.most_common(REASONS_SHOWN))
        raise DataError(
            f"{traces.folder}: expected traces of {count} items, of which a share of {most:g} may "
            f"be missing, found {missing} missing; {why}; start the job again, which tries these "
            "once more, or raise max_missing_traces"
        )


def write_parts(
    folder: RunFolder,
    inputs: Inputs,
    vectors: VectorStore,
    failed: Mapping[str, str],
    aside: list[SetAside],
) -> tuple[int, int]:
    """Write the items that have a vector, in order; return their number and the dimensions.

    What has none is added to ``aside``, with its picture's reason where that is one.
    """
    count = dimensions = part = 0
    # Of a run that was killed; the input may hold less now.
    shutil.rmtree(folder.path / ENCODED_FOLDER, ignore_errors=True)
    for block in inputs.blocks():
        keys = [traced.request.key for traced in block if traced.request]
        absent = set(vectors.missing(keys))
        why = vectors.failures(list(absent))
        items: list[EncodedItem] = []
        used: list[str] = []
        for traced in block:
            picture = next((failed[u] for u in traced.named.item.uris if u in failed), "")
            if traced.request is None:
                aside.append(traced.named.aside(picture or traced.why, "" if picture else NO_TRACE))
            elif traced.request.key in absent:
                reason = picture or why.get(traced.request.key, "")
                aside.append(traced.named.aside(reason, "" if picture else NO_VECTOR))
            else:
                named = traced.named
                items.append(
                    encoded_item(named.item, traced.trace, item_id=named.item_id, file=named.file)
                )
                used.append(traced.request.key)
        if items:
            rows = vectors.rows(used)
            name = f"{ENCODED_FOLDER}/part-{part:05d}.parquet"
            folder.write_table(name, encoded_table(items, rows))
            count, dimensions, part = count + len(items), rows.shape[1], part + 1
    return count, dimensions


def facts_of(config: EncodeConfig, count: int, dimensions: int) -> dict[str, object]:
    """Return what `facts.json` holds."""
    return {
        "model": config.reward.model,
        "embedder": embedder_facts(config.reward, config.data.media),
        "reasoner": config.reasoner,
        "evidence": config.reward.evidence,
        "side": config.side,
        "templates": config.data.templates,
        "item_tokens": config.data.item_tokens,
        "max_frames": config.data.media.max_frames,
        "dimensions": dimensions,
        "count": count,
    }


def search_settings(config: EncodeConfig, folder: RunFolder) -> SearchConfig:
    """Return settings that search the run's items with its models, an actor of each."""
    rollout, reward = config.rollout, config.reward
    return SearchConfig(
        run=replace(config.run, dir=str(folder.path / "search")),
        encoded=str(folder.path),
        data=config.data,
        reasoner=config.reasoner,
        rollout=replace(rollout, pool=replace(rollout.pool, actors=1)),
        reward=replace(reward, pool=replace(reward.pool, actors=1)),
    )


def reasons_of(aside: Sequence[SetAside]) -> str:
    """Return the first reasons for a message, nothing where there is none."""
    shown = "".join(f"\n  {entry.reason}" for entry in aside[:REASONS_SHOWN])
    more = len(aside) - REASONS_SHOWN
    return (f":{shown}" if shown else "") + (f"\n  and {more} more" if more > 0 else "")


if __name__ == "__main__":
    sys.exit(run_job(EncodeConfig, main, roles=roles))
