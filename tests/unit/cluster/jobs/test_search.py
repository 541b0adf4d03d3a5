"""The job `search` around its engines: queries, refusals, the table."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.jobs.command import run_job
from cluster.jobs.search import built_index, main, query_item, recall_of, roles, table_of
from configs.common import RunConfig
from configs.errors import ConfigError
from configs.load import load
from configs.schema import SearchConfig, problems
from data.errors import DataError
from data.stores.encoded import EncodedItem, EncodedParts, encoded_table
from data.stores.vector_index import VectorIndex
from data.types import Cues, Kind
from tests.builders import write_picture
from tests.inputs.media_files import write_pdf, write_video

DEMO = Path(__file__).resolve().parents[4] / "configs/demo/search.yaml"


HIT = EncodedItem(
    item_id="[red]a[/red]",
    file="a.png",
    text="",
    kind=Kind.IMAGE,
    uris=(),
    trace=" ".join(f"word{number}" for number in range(20)),
    cues=Cues(),
)


def config(**changes) -> SearchConfig:
    return SearchConfig(run=RunConfig(dir="runs/x"), encoded="runs/e", **changes)


def test_a_query_is_a_text_a_medium_or_both(tmp_path):
    write_picture(tmp_path / "a.png")
    write_pdf(tmp_path / "a.pdf", pages=2)
    write_video(tmp_path / "a.mp4")
    text = query_item(config(text="a star", instruction="find it"))
    assert (text.kind, text.instructed_text()) == (Kind.TEXT, "find it a star")
    both = query_item(config(text="the same in red", image=str(tmp_path / "a.png")))
    assert (both.kind, both.text) == (Kind.IMAGE, "the same in red")
    page = query_item(config(page=str(tmp_path / "a.pdf#page=2")))
    assert (page.kind, page.uris) == (Kind.PAGE, (f"{tmp_path}/a.pdf#page=2",))
    video = query_item(config(video=str(tmp_path / "a.mp4")))
    assert (video.kind, len(video.uris)) == (Kind.VIDEO, 8)


def test_a_query_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the query, field 'image': file 'b\.png' not found"):
        query_item(config(image=str(tmp_path / "b.png")))
    (tmp_path / "c.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"the query, field 'video': .*not a readable video"):
        query_item(config(video=str(tmp_path / "c.mp4")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "text: expected a query in text, image, video or page, found none"),
        ({"image": "a", "page": "b"}, "page: expected one of image, video and page"),
        ({"text": "a", "k": 0}, "k: "),
        ({"text": "a", "rescore": 0}, "rescore: "),
        ({"text": "a", "probes": 3}, "probes: only index=ivf has lists, found index=exact"),
    ],
)
def test_an_impossible_search_is_refused(changes, said):
    assert any(problem.startswith(said) for problem in problems(config(**changes)))
    assert problems(config(text="a", page="b")) == []
    assert problems(config(text="a", index="ivf", probes=3)) == []


def test_a_search_reads_no_data_sets(tmp_path):
    entry = "{name: a, path: a.json, root: r}"
    with pytest.raises(ConfigError, match="data: expected no data sets under train and eval"):
        load(SearchConfig, DEMO, [f"data.eval=[{entry}]"])


def test_pools_are_those_of_the_models_that_are_named():
    both, bare = (load(SearchConfig, DEMO, [f"reasoner={name}"]) for name in ("models/r", "''"))
    assert [role.name for role in roles(both)] == ["rollout"]
    assert [role.name for role in roles(bare)] == ["reward"]


def test_a_folder_without_encoded_items_is_refused_before_anything_starts(tmp_path, capsys):
    path = tmp_path / "run"
    argv = [str(DEMO), f"encoded={tmp_path}", f"run.dir={path}"]
    assert run_job(SearchConfig, main, argv=argv) == 2
    assert "name the run folder of a job `encode` that has ended" in capsys.readouterr().err
    assert not path.exists()
    assert run_job(SearchConfig, main, roles=roles, argv=[*argv, "--dry-run"]) == 2
    assert "# encoded items" in capsys.readouterr().out


def test_an_index_is_built_once_and_tells_what_it_finds(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    pq.write_table(encoded_table([HIT] * 300, rows), tmp_path / "part-00000.parquet")
    facts = {"count": 300, "model": "m", "embedder": {}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    parts, said = EncodedParts(tmp_path), []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=200)
        index = built_index(config(index="flat"), parts, console)
        said.append(console.file.getvalue())
    assert "300/300" in said[0]
    assert f"wrote {tmp_path}/index-flat.faiss; of the 10 vectors nearest" in said[0]
    assert "it finds 100.0%" in said[0]
    assert said[1] == ""
    bits = VectorIndex(parts, "binary", rescore=1)
    list(bits.build())
    assert 0.1 < recall_of(bits, parts) < recall_of(index, parts) == 1.0


def test_the_table_has_a_line_for_each_hit_and_no_markup():
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of([(0.5, HIT), (0.25, HIT)]))
    lines = console.file.getvalue().splitlines()
    shown = [line for line in lines if "0.5000" in line or "0.2500" in line]
    assert [line.split()[:4] for line in shown] == [
        ["1", "0.5000", "[red]a[/red]", "a.png"],
        ["2", "0.2500", "[red]a[/red]", "a.png"],
    ]
    assert "word11 ..." in shown[0]
    assert "word12" not in shown[0]
