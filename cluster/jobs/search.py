"""The encoded items that are nearest to one query: a table, and a page with pictures and traces.

Example: python -m cluster.jobs.search configs/demo/search.yaml text='a red star'
"""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.inference import Blocks, embed, engine_roles, store_traces
from cluster.jobs.command import run_job
from cluster.pictures import Decoder
from cluster.placement import Role
from cluster.run.run_folder import SETTINGS_FILE, RunFolder, settled, write_atomically
from cluster.run.stage_loop import plain_console
from cluster.session import session
from configs.schema import SearchConfig
from data.embed_inputs import embed_content
from data.errors import DataError
from data.model.chat import load_encoder
from data.model.model_folder import check_embedder, check_reasoner
from data.prompts import item_content
from data.sets.items import MEDIA_FIELDS, read_item
from data.stores.encoded import ENCODED_FOLDER, EncodedItem, EncodedParts
from data.stores.keys import content_key
from data.stores.traces import Subject
from data.types import Cues, EmbedRequest, Evidence, Item, Side
from evaluation.evidence import parse_trace
from evaluation.report.search_page import build_search_page
from evaluation.search import search
from evaluation.sets import EvaluationSet
from evaluation.summary import STAGE_FILE

PAGE_FILE = "search.html"
TRACE_WORDS = 12
"""Words of a trace in the table."""
VECTOR_BYTES = 1 << 20
"""Of the query's vector; it stays in memory."""


def roles(config: SearchConfig) -> list[Role]:
    """Return what the job asks Ray for: its pools run one after the other."""
    return engine_roles(config.reward, config.rollout if config.reasoner else None)


def main(config: SearchConfig) -> int:
    """Embed the query, print the table and write `search.html`."""
    parts = EncodedParts(Path(config.encoded) / ENCODED_FOLDER)
    parts.check_embedder(config.reward, config.data.media)
    item = query_item(config)
    # One folder serves query after query; what was made for a query is kept in its store.
    for name in (STAGE_FILE, SETTINGS_FILE):
        (Path(config.run.dir) / name).unlink(missing_ok=True)
    folder = RunFolder(config, job="search")
    query, vector = embedded_query(item, settled(config), folder)
    nearest = search(vector[None], parts.vectors(), config.k)
    items = parts.items(nearest.indices[0].tolist())
    hits = list(zip(nearest.similarities[0].tolist(), items, strict=True))
    page = build_search_page(
        query,
        hits,
        title=f"Search: {query.text or query.file}"[:200],
        count=len(parts),
        limits=config.data.media,
    )
    write_atomically(folder.path / PAGE_FILE, page)
    console = plain_console()
    console.print(table_of(hits))
    console.print(f"wrote {folder.path / PAGE_FILE}", highlight=False, soft_wrap=True)
    folder.finish(items=len(parts), hits=len(hits))
    return 0


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
    seen = EvaluationSet(name="the query", queries=(), candidates={key: item})
    if config.reasoner:
        check_reasoner(config.reasoner, [seen])
    load_encoder(config.reward.model, data.media).check_pooling(config.reward.pooling)
    check_embedder(config.reward.model, [seen])
    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    trace, store = "", folder.path / "store"
    with connected, closing(Decoder()) as decoder:
        blocks = Blocks(decoder, data.media, 1, plain_console())
        if config.reasoner:
            asked = item_content(
                item,
                Side.QUERY,
                templates=data.templates,
                max_frames=data.media.max_frames,
                item_tokens=data.item_tokens,
            )
            subject = Subject(key=content_key(asked), item=item, side=Side.QUERY, task="search")
            traces = store_traces(
                [(subject, asked)],
                model=config.reasoner,
                rollout=config.rollout,
                templates=data.templates,
                blocks=blocks,
                store=store,
                made_by=f"search {folder.path}",
            )
            remedy = "start the job again, or search without a trace: reasoner=''"
            trace = traces.traces([subject.key], most_missing=0, remedy=remedy)[subject.key]
        content = embed_content(
            item,
            trace,
            max_frames=data.media.max_frames,
            item_tokens=data.item_tokens,
            evidence=Evidence(config.reward.evidence),
        )
        request = EmbedRequest(key=content_key(content), content=content)
        vectors = embed(
            [request], reward=config.reward, blocks=blocks, store=store, memory_bytes=VECTOR_BYTES
        )
    if request.key not in vectors:
        raise DataError(
            "the query: expected a vector, found that it could not be embedded; the reason is "
            "above: mend the query, or start the job again"
        )
    parsed = parse_trace(trace, kind=item.kind, num_frames=len(item.uris)) if trace else None
    query = EncodedItem(
        item_id=key,
        file=config.image or config.video or config.page,
        text=item.instructed_text(),
        kind=item.kind,
        uris=item.uris,
        trace=trace,
        cues=parsed.cues if parsed else Cues(),
    )
    return query, vectors[request.key]


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
