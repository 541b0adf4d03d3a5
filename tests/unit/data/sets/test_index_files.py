"""The index of a set: read once in several processes, kept, and made anew when it is not right."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.sets.index_files
import data.sets.load_sets
import data.sets.open_sets
import data.sets.scan
from configs.common import DataConfig, DataSetConfig
from data.errors import DataError
from data.relevance import Relevance
from data.sets.fingerprints import pairs_fingerprint
from data.sets.load_sets import known_right, load_set, load_sets
from data.sets.open_sets import any_usable
from data.sets.scan import PairReader, scan_rows
from data.types import Side
from tests.builders import loaded_set, write_picture, write_set
from tests.inputs.deadly_rows import CountedRows, DeadlyRows, UnsentRows
from tests.inputs.media_files import write_pdf, write_video
from tests.patience import PATIENCE_S


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep the index of every set, however small, in a folder of this test."""
    monkeypatch.setenv("EMBED_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data.sets.open_sets, "LARGE", 0)
    monkeypatch.setattr(data.sets.open_sets, "KEPT_FROM", 0)
    return tmp_path / "cache/indexes"


@pytest.fixture
def config(tmp_path) -> DataSetConfig:
    """A set with pictures, copies, a page, a negative, equal ids, traces and a bad row."""
    root = tmp_path / "root"
    for name, width in (("a.png", 40), ("b.png", 50)):
        write_picture(root / name, width)
    (root / "c.png").write_bytes((root / "a.png").read_bytes())
    write_pdf(root / "d.pdf", 3)
    picture = {"qry": "what?", "qry_image_path": "a.png", "pos_text": "a star"}
    return write_set(
        tmp_path,
        [
            {**picture, "id": "x", "label": "star"},
            {**picture, "id": "x", "label": "star"},
            {**picture, "id": "x", "qry_image_path": "c.png", "neg_text": "a moon"},
            {**picture, "qry_image_path": "d.pdf#page=2", "colour": "red"},
            {**picture, "qry_image_path": "late.png"},
            {"colour": "blue", "qry": "text", "pos_text": "a moon", "pos_image_path": "b.png"},
        ],
    )


def facts(loaded) -> dict[str, object]:
    names = ("rows", "read", "bad_rows", "media_named", "media_usable", "copies", "files")
    names += ("unknown_fields", "first_unknown")
    return {name: getattr(loaded, name) for name in names}


@pytest.mark.parametrize("processes", [False, True])
def test_a_kept_index_gives_the_pairs_of_the_rows(config, cache, monkeypatch, processes):
    plain = load_set(replace(config, limit=10))
    if processes:
        monkeypatch.setattr(data.sets.scan, "IN_ONE_PROCESS", 0)
        monkeypatch.setattr(data.sets.scan, "CHUNK", 2)
    built = load_set(config)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(data.sets.open_sets, "scan_rows", scan_only_bad_rows)
    kept = load_set(config)
    assert [*plain.pairs] == [*built.pairs] == [*kept.pairs] == [kept.pairs[n] for n in range(4)]
    assert [pair.pair_id for pair in kept.pairs] == ["x", "x-2", "set-3", "set-5"]
    assert facts(plain) == facts(built) == facts(kept)
    assert [bad.index for bad in kept.bad_rows] == [1, 4]
    assert kept.first_unknown == {"colour": [3, 5]}
    assert kept.pairs[1].query == kept.pairs[0].query  # by the first of two copies
    assert pairs_fingerprint([config], [plain]) == pairs_fingerprint([config], [kept])


def scan_none(*_, **__):
    raise AssertionError("rows are read again")


def scan_only_bad_rows(reader, in_use, done, *, deadly):
    assert list(in_use) == [4]
    return scan_rows(reader, in_use, done, deadly=deadly)


@pytest.mark.usefixtures("cache")
def test_what_is_right_follows_from_the_index_as_from_the_pairs(config):
    for _ in range(2):
        loaded = load_set(config)
        pairs = [*loaded.pairs]
        by_pairs, by_index = Relevance(pairs), known_right([loaded])
        assert (by_index.right_among(pairs) == by_pairs.right_among(pairs)).all()
        shadow = loaded_set(name="set", pairs=pairs)
        assert (loaded.table.numbers() == shadow.table.numbers()).all()
        assert list(loaded.table.with_trace(Side.QUERY)) == [False] * 4
        assert set(loaded.shown_uris()) == set(shadow.shown_uris())


@pytest.mark.usefixtures("cache")
def test_a_row_that_can_be_used_by_now_is_used(config, monkeypatch):
    assert len(load_set(config).pairs) == 4
    write_picture(Path(config.root) / "late.png", 60)
    assert len(load_set(config).pairs) == 5
    monkeypatch.setattr(data.sets.open_sets, "scan_rows", scan_none)
    assert len(load_set(config).pairs) == 5


@pytest.mark.usefixtures("cache")
def test_changed_rows_and_settings_have_an_index_of_their_own(config):
    assert len(load_set(config).pairs) == 4
    assert len(load_set(replace(config, limit=1)).pairs) == 1
    rows = json.loads(Path(config.path).read_text())
    Path(config.path).write_text(json.dumps(rows[:3]))
    assert len(load_set(config).pairs) == 2


def to_parquet(config: DataSetConfig) -> DataSetConfig:
    path = Path(config.path).with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(json.loads(Path(config.path).read_text())), path)
    return replace(config, path=str(path))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", [lambda config: config, to_parquet])
def test_a_file_that_changes_under_a_job_gives_no_other_rows(config, monkeypatch, form):
    monkeypatch.setattr(time, "sleep", pytest.fail)  # trying again does not help
    config = form(config)
    loaded = load_set(config)
    first = loaded.pairs[0]
    assert loaded.pairs[0] == first
    path = Path(config.path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"rows\.\w+: expected the file as it was .* start the job"):
        loaded.pairs[0]
    path.write_bytes(content)
    loaded = load_set(config)
    assert loaded.pairs[0] == first
    other = path.with_suffix(".new")
    other.write_bytes(content + b"\n")
    other.replace(path)
    with pytest.raises(DataError, match=r"rows\.\w+: expected the file as it was"):
        loaded.pairs[0]
    path.unlink()
    monkeypatch.setattr(data.sets.load_sets, "PAUSES_S", ())
    with pytest.raises(DataError, match=r"rows\.\w+: cannot be read .* see that the file is there"):
        loaded.pairs[0]


@pytest.mark.parametrize("form", [lambda config: config, to_parquet])
def test_a_file_that_changes_while_it_is_read_leaves_no_index(config, cache, monkeypatch, form):
    config = form(config)
    real = data.sets.open_sets.scan_rows

    def scan(reader, in_use, done):
        known = real(reader, in_use, done)
        os.utime(config.path, (1, 1))
        return known

    monkeypatch.setattr(data.sets.open_sets, "scan_rows", scan)
    with pytest.raises(DataError, match=r"expected its files of path, traces, .* as"):
        load_set(config)
    assert not cache.exists()


def test_an_index_that_was_not_completed_is_made_anew(config, cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.sets.index_files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        load_set(config)
    monkeypatch.undo()
    monkeypatch.setenv("EMBED_RL_CACHE", str(cache.parent))
    monkeypatch.setattr(data.sets.open_sets, "LARGE", 0)
    monkeypatch.setattr(data.sets.open_sets, "KEPT_FROM", 0)
    assert len(load_set(config).pairs) == 4
    [folder] = cache.iterdir()
    for content in (b"{", b""):
        for name in ("facts.json", "pairs.parquet", "spans.npy"):
            (folder / name).write_bytes(content)
            assert len(load_set(config).pairs) == 4
            assert (folder / name).read_bytes() != content


def test_what_a_killed_job_wrote_of_an_index_is_removed_a_day_later(config, cache):
    older, fresh = cache / "a-1.part", cache / "b-2.part"
    for part in (older, fresh):
        part.mkdir(parents=True)
    os.utime(older, (1, 1))
    load_set(config)
    assert not older.exists()
    assert fresh.exists()


def test_a_cache_that_cannot_be_written_is_named(config, cache):
    cache.parent.write_text("a file")
    with pytest.raises(DataError, match=r"cache/indexes: the index .* set EMBED_RL_CACHE to"):
        load_set(config)


def reader_of(rows) -> PairReader:
    config = DataSetConfig(name="set", path="rows", root="/")
    return PairReader(rows=rows, config=config, written_path="rows", max_frames=8, max_file_bytes=1)


@pytest.fixture
def processes(monkeypatch):
    """Read every set, however small, in several processes."""
    monkeypatch.setattr(data.sets.scan, "IN_ONE_PROCESS", 0)
    monkeypatch.setattr(data.sets.scan, "CHUNK", 2)


@pytest.mark.usefixtures("processes")
def test_rows_that_end_their_process_are_set_aside():
    deadly = 1, 5, 13
    counted: list[int] = []
    scan = scan_rows(reader_of(DeadlyRows(14, *deadly)), range(14), counted.append)
    assert scan.pairs.rows.tolist() == [number for number in range(14) if number not in deadly]
    assert [bad.index for bad in scan.bad_rows] == [*deadly]
    assert all(bad.deadly for bad in scan.bad_rows)
    reason = scan.bad_rows[1].reason
    assert reason.startswith("rows row 6: a file that it names ends the process")
    assert sum(counted) == 14


@pytest.mark.usefixtures("processes")
def test_a_row_may_end_its_process_while_another_is_started():
    rows = DeadlyRows(14, 0)
    rows.ballast = bytes(1 << 20)  # more than a pipe takes: the start waits until it is read
    bad_rows = scan_rows(reader_of(rows), range(14), lambda _: None).bad_rows
    assert [bad.index for bad in bad_rows] == [0]


def test_rows_that_ended_their_process_do_not_end_the_next_job(monkeypatch):
    rows = DeadlyRows(14, 1, 5)
    rows.pytest = 0  # they would end this process, too
    reader = reader_of(rows)
    with monkeypatch.context() as patch:
        patch.setattr(data.sets.scan, "IN_ONE_PROCESS", 0)
        bad_rows = scan_rows(reader, range(14), lambda _: None).bad_rows
    assert not any_usable(reader, bad_rows)
    rows.deadly = ()
    assert any_usable(reader, bad_rows)


@pytest.mark.usefixtures("processes")
def test_no_row_is_to_blame_where_no_process_can_be_started():
    with pytest.raises(DataError, match=r"'set': the processes .* free memory"):
        scan_rows(reader_of(UnsentRows(4)), range(4), lambda _: None)


@pytest.mark.usefixtures("processes")
def test_who_stops_a_job_does_not_wait_for_all_rows(tmp_path):
    rows = 20_000

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_rows(reader_of(CountedRows(rows, tmp_path / "log")), range(rows), stop)
    assert (tmp_path / "log").stat().st_size < rows


SCAN = """
import multiprocessing, os, signal
import data.sets.scan
from data.sets.scan import scan_rows
from tests.inputs.deadly_rows import DeadlyRows
from tests.unit.data.sets.test_index_files import reader_of

def end(_):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

print("a script")
data.sets.scan.IN_ONE_PROCESS = 0
data.sets.scan.CHUNK = 1
scan = scan_rows(reader_of(DeadlyRows(1_000)), range(1_000), WITH)
print(len(scan.pairs))
"""


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    # It is read to its end: a process that stays has the pipe, too.
    return subprocess.run(
        [sys.executable, str(folder / "script.py")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )


def test_a_killed_job_leaves_no_process(tmp_path):
    ended = run_script(tmp_path, SCAN.replace("WITH", "end"))
    assert ended.returncode == -SIGKILL
    _, children = ended.stdout.splitlines()
    assert children


def test_processes_that_read_rows_do_not_run_the_job_itself(tmp_path):
    ended = run_script(tmp_path, SCAN.replace("WITH", "lambda _: None"))
    assert ended.stdout == "a script\n1000\n"


@pytest.mark.usefixtures("cache", "processes")
def test_tables_are_read_in_several_processes(tmp_path):
    rows = [{"qry": f"q {number}", "pos_text": "t"} for number in range(5)]
    config = write_set(tmp_path, rows)
    expected = [*load_set(config).pairs]
    assert [*load_set(to_parquet(config)).pairs] == expected


def test_frames_of_a_video_are_those_of_the_rows_first_reading(tmp_path):
    write_video(tmp_path / "root/a.mp4", 9)
    row = {
        "qry": {"conversations": [{"from": "human", "value": "q"}], "video": "a.mp4"},
        "pos": {"conversations": [{"from": "gpt", "value": "t"}]},
    }
    [loaded] = load_sets([write_set(tmp_path, [row], format="llavahound")], limits=DataConfig())
    expected = loaded.pairs[0]
    os.remove(tmp_path / "root/a.mp4")  # whoever decodes it says that it is gone
    assert loaded.pairs[0] == expected
