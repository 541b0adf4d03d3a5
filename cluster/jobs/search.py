"""The encoded items that are nearest to one query: a table, and a page with pictures and traces.

Example: python -m cluster.jobs.search configs/demo/search.yaml text='a red star'
"""

import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.inference import (
    TraceSource,
    VectorSource,
    check_models,
    embedder_input,
    encoded_item,
    engine_roles,
    opened_blocks,
    reasoner_input,
)
from cluster.jobs.command import run_job
from cluster.placement import Role
from cluster.run.run_folder import SETTINGS_FILE, RunFolder, settled, write_atomically
from cluster.run.stage_loop import plain_console, progress_bar
from configs.schema import SearchConfig
from data.errors import DataError
from data.sets.items import MEDIA_FIELDS, read_item
from data.stores.encoded import ENCODED_FOLDER, EncodedItem, EncodedParts
from data.stores.vector_index import VectorIndex
from data.types import Item, Side
from evaluation.report.search_page import build_search_page
from evaluation.search import search
from evaluation.sets import EvaluationSet
from evaluation.summary import STAGE_FILE

PAGE_FILE = "search.html"
TRACE_WORDS = 12
"""Words of a trace in the table."""
VECTOR_BYTES = 1 << 20
"""Of the query's vector; it stays in memory."""
RECALL_AT, RECALL_QUERIES = 10, 100
"""Neighbours, and vectors whose neighbours are looked for, when a new index is measured."""


def roles(config: SearchConfig) -> list[Role]:
    """Return what the job asks Ray for: its pools run one after the other."""
    return engine_roles(config.reward, config.rollout if config.reasoner else None)


def main(config: SearchConfig) -> int:
    """Embed the query, print the table and write `search.html`."""
    parts = EncodedParts(Path(config.encoded) / ENCODED_FOLDER)
    parts.check_embedder(config.reward, config.data.media)
    console = plain_console()
    item = query_item(config)
    seen = EvaluationSet(name="the query", queries=(), candidates={"query": item})
    check_models(config, [config.reasoner] if config.reasoner else [], [seen])
    forget_last_query(Path(config.run.dir))
    folder = RunFolder(config, job="search")
    index = None if config.index == "exact" else built_index(config, parts, console)
    query, vector = embedded_query(item, settled(config), folder)
    if index is None:
        nearest = search(vector[None], parts.vectors(), config.k)
        indices, similarities = nearest.indices[0], nearest.similarities[0]
    else:
        [indices], [similarities] = index.search(vector[None], config.k)
    there = indices >= 0
    items = parts.items(indices[there].tolist())
    hits = list(zip(similarities[there].tolist(), items, strict=True))
    page = build_search_page(
        query,
        hits,
        title=f"Search: {query.text or query.file}"[:200],
        count=len(parts),
        limits=config.data.media,
    )
    write_atomically(folder.path / PAGE_FILE, page)
    console.print(table_of(hits))
    console.print(f"wrote {folder.path / PAGE_FILE}", highlight=False, soft_wrap=True)
    folder.finish(items=len(parts), hits=len(hits))
    return 0


def built_index(config: SearchConfig, parts: EncodedParts, console: Console) -> VectorIndex:
    """Return the index that the settings name; where there is none of these parts, build it and
    print what share of the nearest vectors it finds.

    Raises:
        ConfigError: FAISS is not installed.
        DataError: it cannot be built.
    """
    index = VectorIndex(parts, config.index, probes=config.probes, rescore=config.rescore)
    if not index.is_built:
        with progress_bar(console) as bar:
            task = bar.add_task(f"index {config.index}", total=len(parts))
            for count in index.build():
                bar.advance(task, count)
        console.print(
            f"wrote {index.path}; of the {RECALL_AT} vectors nearest to an encoded one it finds "
            f"{recall_of(index, parts):.1%}",
            highlight=False,
            soft_wrap=True,
        )
    return index


def recall_of(index: VectorIndex, parts: EncodedParts) -> float:
    """Return what share of the vectors nearest to encoded ones, spread over all, an index finds.

    A vector is not counted among its own neighbours.
    """
    count = len(parts)
    asked = np.unique(np.linspace(0, count - 1, min(count, RECALL_QUERIES)).astype(np.int64))
    queries = parts.rows(asked)
    expected = search(queries, parts.vectors(), RECALL_AT + 1).indices.tolist()
    found, _ = index.search(queries, RECALL_AT + 1)
    shares = [
        len(near.intersection(row)) / len(near)
        for itself, row, of_query in zip(asked.tolist(), found.tolist(), expected, strict=True)
        if (near := set(of_query) - {itself})
    ]
    return float(np.mean(shares)) if shares else 1.0


def forget_last_query(folder: Path) -> None:
    """Let a folder of searches take another query. What was made for the last one stays in its
    store; folders of other jobs stay as they are, and are refused later.
    """
    settings = folder / SETTINGS_FILE
    if settings.is_file() and "encoded" in OmegaConf.load(settings):  # of no other job
        for name in (STAGE_FILE, SETTINGS_FILE):
            (folder / name).unlink(missing_ok=True)


def query_item(config: SearchConfig) -> Item:
    """Return the item that is sought.

    Raises:
        DataError: its file is not there, or is none of its kind.
    """
    row = {"text": config.text, "instruction": config.instruction}
    root = Path()
    for name in MEDIA_FIELDS:
        if path := getattr(config, name):
            root, row[name] = Path(path).parent, Path(path).name
    return read_item(row, root=root, media=config.data.media)


def embedded_query(
    item: Item, config: SearchConfig, folder: RunFolder
) -> tuple[EncodedItem, np.ndarray]:
    """Return the query with its trace, and its unit vector, float32 [D].

    Raises:
        DataError: a model cannot read it, or gave no trace or vector.
    """
    data, key = config.data, "query"
    trace, store = "", folder.path / "store"
    with opened_blocks(config, roles(config), folder, size=1) as blocks:
        if config.reasoner:
            source = TraceSource(
                model=config.reasoner,
                rollout=config.rollout,
                templates=data.templates,
                blocks=blocks,
                store=store,
                made_by=f"search {folder.path}",
            )
            asked = reasoner_input(item, Side.QUERY, data, task="search")
            remedy = "start the job again, or search without a trace: reasoner=''"
            traces = source.filled([asked])
            [trace] = traces.traces([asked[0].key], most_missing=0, remedy=remedy).values()
        request = embedder_input(item, trace, data, evidence=config.reward.evidence)
        vectors = VectorSource.of(
            reward=config.reward, blocks=blocks, store=store, memory_bytes=VECTOR_BYTES
        ).embed([request])
    if request.key not in vectors:
        raise DataError(
            "the query: expected a vector, found that it could not be embedded; the reason is "
            "above: mend the query, or start the job again"
        )
    file = config.image or config.video or config.page
    return encoded_item(item, trace, item_id=key, file=file), vectors[request.key]


def table_of(hits: list[tuple[float, EncodedItem]]) -> Table:
    """Return the table that the job prints: a line for each hit, best first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("similarity", justify="right")
    for column in ("id", "file", "trace"):
        table.add_column(column, overflow="fold")
    for rank, (similarity, item) in enumerate(hits, start=1):
        words = item.trace.split()
        said = " ".join(words[:TRACE_WORDS]) + (" ..." if len(words) > TRACE_WORDS else "")
        cells = (str(rank), f"{similarity:.4f}", item.item_id, item.file, said)
        table.add_row(*map(Text, cells))
    return table


if __name__ == "__main__":
    sys.exit(run_job(SearchConfig, main, roles=roles))
