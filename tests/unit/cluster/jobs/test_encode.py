"""The job `encode` around its engines, of which stores of traces and vectors take the place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.jobs.command import run_job
from cluster.jobs.encode import (
    ENCODED_FOLDER,
    Inputs,
    Subjects,
    main,
    refuse_missing,
    roles,
    search_settings,
    usable_items,
    write_parts,
)
from cluster.run.run_folder import RunFolder
from configs.common import DataConfig, RunConfig
from configs.errors import ConfigError
from configs.load import load, to_yaml
from configs.reward import RewardConfig
from configs.schema import EncodeConfig, SearchConfig
from data.errors import DataError
from data.sets.items import SavedItems, SetAside
from data.stores.facts import TraceRecipe
from data.stores.traces import StoredTrace, TraceStore
from data.stores.vectors import VectorStore
from tests.builders import TRACES, write_picture
from tests.inputs.media_files import write_pdf

WIDTH = 4


@pytest.fixture
def config(tmp_path: Path) -> EncodeConfig:
    """Five pictures and a PDF of two pages in a folder, in blocks of three."""
    folder = tmp_path / "media"
    for number in range(5):
        write_picture(folder / f"{number}.png")
    write_pdf(folder / "a.pdf", pages=2)
    return EncodeConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        input=str(folder),
        data=DataConfig(templates="brief"),
        reward=RewardConfig(model="m", evidence="text+evidence"),
        block=3,
    )


def saved(config: EncodeConfig, tmp_path: Path) -> tuple[SavedItems, list[SetAside]]:
    aside: list[SetAside] = []
    items = SavedItems(tmp_path / "items.parquet", as_video=True)
    items.save(usable_items(config, aside))
    return items, aside


def traces_of(subjects: Subjects, root: Path, absent: tuple[str, ...] = ()) -> TraceStore:
    """Return a store with a trace of each item, but for the failed ones of the files ``absent``."""
    store = TraceStore(root, TraceRecipe(model="m", templates="brief", temperature=0.0))
    store.add(
        [
            StoredTrace(of=subject, failed="too long")
            if subject.item.uris[0].endswith(absent)
            else StoredTrace(of=subject, text=TRACES[subject.item.kind])
            for subject, _ in subjects
        ],
        made_by="a test",
    )
    return store


def vectors_of(inputs: Inputs, root: Path, failed: tuple[str, ...] = ()) -> VectorStore:
    """Return a store with a vector of each request, but for those of the files ``failed``."""
    store = VectorStore(root, {"model": "m"}, memory_bytes=1 << 20)
    keys = [request.key for request in inputs if not request.content[0].uri.endswith(failed)]
    rows = np.eye(len(keys), WIDTH, dtype=np.float32) + 0.1
    store.add(keys, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    reasons = {r.key: "NaN" for r in inputs if r.content[0].uri.endswith(failed)}
    store.add_failed(reasons)
    return store


def parts_in(config: EncodeConfig) -> list[dict]:
    """Return the rows of all parts in order, each with the number of its part."""
    files = sorted((Path(config.run.dir) / ENCODED_FOLDER).glob("part-*.parquet"))
    return [
        {"part": number} | row
        for number, file in enumerate(files)
        for row in pq.read_table(file).to_pylist()
    ]


def test_parts_hold_the_items_in_order_with_traces_evidence_and_vectors(config, tmp_path):
    items, aside = saved(config, tmp_path)
    subjects = Subjects(items, config)
    inputs = Inputs(subjects, traces_of(subjects, tmp_path / "traces"))
    vectors = vectors_of(inputs, tmp_path / "vectors")
    folder = RunFolder(config, job="encode")
    assert write_parts(folder, inputs, vectors, {}, aside) == (7, WIDTH)
    rows = parts_in(config)
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "a.pdf#page=1", "a.pdf#page=2"]
    assert [row["id"] for row in rows] == names
    assert [row["part"] for row in rows] == [0, 0, 0, 1, 1, 1, 2]
    assert [row["kind"] for row in rows] == ["image"] * 5 + ["page"] * 2
    assert rows[0]["boxes"] == [[0.1, 0.2, 0.5, 0.6]]
    assert rows[0]["trace"].startswith("<thinking>left")
    expected = vectors.rows([request.key for request in inputs])
    assert np.array_equal([row["vector"] for row in rows], expected)
    assert aside == []


def test_parts_written_again_are_the_same_files_and_older_ones_are_gone(config, tmp_path):
    items, aside = saved(config, tmp_path)
    inputs = Inputs(Subjects(items, config), None)
    vectors = vectors_of(inputs, tmp_path / "vectors")
    folder = RunFolder(config, job="encode")
    written = []
    for _ in range(2):
        write_parts(folder, inputs, vectors, {}, aside)
        encoded = Path(config.run.dir) / ENCODED_FOLDER
        written.append({file.name: file.read_bytes() for file in encoded.iterdir()})
        (encoded / "part-00009.parquet").write_bytes(b"of a longer input")
    assert written[0] == written[1]
    assert sorted(written[0]) == [f"part-{number:05d}.parquet" for number in range(3)]


def test_without_a_reasoner_items_have_no_trace_and_crops_are_not_read(config, tmp_path):
    items, _ = saved(config, tmp_path)
    bare = list(Inputs(Subjects(items, config), None))
    assert len(bare) == 7
    assert all(sum(not isinstance(part, str) for part in r.content) == 1 for r in bare)
    subjects = Subjects(items, config)
    traces = traces_of(subjects, tmp_path / "traces")
    full = list(Inputs(subjects, traces))
    assert all(sum(not isinstance(part, str) for part in r.content) == 2 for r in full)
    text = replace(config, reward=replace(config.reward, evidence="text"))
    said = list(Inputs(Subjects(items, text), traces))
    assert all(sum(not isinstance(part, str) for part in r.content) == 1 for r in said)
    assert not {r.key for r in bare} & {r.key for r in said}


def test_what_has_no_trace_no_vector_or_no_picture_is_set_aside_with_its_reason(config, tmp_path):
    items, aside = saved(config, tmp_path)
    subjects = Subjects(items, config)
    traces = traces_of(subjects, tmp_path / "traces", absent=("1.png", "2.png"))
    inputs = Inputs(subjects, traces)
    vectors = vectors_of(inputs, tmp_path / "vectors", failed=("3.png", "page=1"))
    uris = {entry.item_id: entry.item.uris[0] for entry in items}
    failed = {uris[name]: f"{name} is broken" for name in ("2.png", "3.png")}
    folder = RunFolder(config, job="encode")
    assert write_parts(folder, inputs, vectors, failed, aside) == (3, WIDTH)
    assert [row["id"] for row in parts_in(config)] == ["0.png", "4.png", "a.pdf#page=2"]
    assert [(entry.file, entry.field, entry.reason) for entry in aside] == [
        ("1.png", "trace", "too long"),
        ("2.png", "", "2.png is broken"),
        ("3.png", "", "3.png is broken"),
        ("a.pdf", "vector", "NaN"),
    ]


def test_too_many_missing_traces_end_the_job_but_broken_pictures_do_not_count(config, tmp_path):
    items, _ = saved(config, tmp_path)
    subjects = Subjects(items, config)
    traces = traces_of(subjects, tmp_path / "traces", absent=("1.png", "2.png"))
    refuse_missing(subjects, traces, {}, 2 / 7)
    with pytest.raises(DataError, match="found 2 missing; 2 failed: too long"):
        refuse_missing(subjects, traces, {}, 0.25)
    uris = {entry.item_id: entry.item.uris[0] for entry in items}
    refuse_missing(subjects, traces, {uris[name]: "broken" for name in ("1.png", "2.png")}, 0.0)


def test_an_input_without_any_item_is_refused_before_engines_start(config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"none of use:\n.*ending '\.txt'"):
        main(replace(config, input=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="none: expected a model folder"):
        main(replace(config, reasoner="none"))  # of the same run folder, though settings differ


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        (["a.png", "b.txt"], "of the first 2 items 1 are set aside"),
        (["b.txt"], "of the first 1 items 1 are set aside"),
    ],
)
def test_a_dry_run_looks_at_the_first_items(tmp_path, capsys, files, printed):
    for name in files:
        if name.endswith(".png"):
            write_picture(tmp_path / "media" / name)
        else:
            (tmp_path / "media").mkdir(exist_ok=True)
            (tmp_path / "media" / name).write_text("hello")
    (tmp_path / "encode.yaml").write_text(
        f"{{run: {{dir: {tmp_path}/run}}, input: {tmp_path}/media, reward: {{model: none}}}}"
    )
    argv = [str(tmp_path / "encode.yaml"), "--dry-run"]
    assert run_job(EncodeConfig, main, roles=roles, argv=argv) == 2
    seen = capsys.readouterr()
    assert printed in seen.out
    assert "b.txt: expected the name of a picture" in seen.out
    assert ("found none of use" in seen.err) == (files == ["b.txt"])
    assert "reward.model: none: expected a model folder" in seen.err


def test_the_settings_for_a_search_need_only_a_query(config, tmp_path):
    pool = replace(config.reward.pool, actors=8)
    folder = RunFolder(config, job="encode")
    many = replace(config, reasoner="r", reward=replace(config.reward, pool=pool))
    path = tmp_path / "search.yaml"
    path.write_text(to_yaml(search_settings(many, folder)))
    with pytest.raises(ConfigError, match="text: expected a query"):
        load(SearchConfig, path)
    loaded = load(SearchConfig, path, ["text=a red star"])
    assert (loaded.encoded, loaded.run.dir) == (str(folder.path), f"{folder.path}/search")
    assert (loaded.reasoner, loaded.reward) == ("r", config.reward)
    assert loaded.data == config.data
