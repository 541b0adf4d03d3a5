"""Vectors on disk: whole after a kill, by several writers, read without all being in memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.stores.keys import content_key, files_remembered
from data.stores.parts import ABANDONED_S, KeyedParts
from data.stores.vectors import VectorStore
from data.types import Instruction, Kind, Picture
from tests.inputs.vector_writer import WIDTH, key_of, store_in, vectors_of
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[4]
KEYS = [key_of(number) for number in range(6)]


def filled(root: Path, *numbers: int) -> VectorStore:
    store = store_in(root)
    store.add([key_of(number) for number in numbers], vectors_of(numbers))
    return store


def parts_of(store: VectorStore) -> list[Path]:
    return sorted(store.folder.glob("*.parquet"))


def writer(root: Path, contents: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.inputs.vector_writer", str(root), str(contents)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        # It waits where nobody reads what it says, so that it cannot be done before it is killed.
        pipesize=4096,
        text=True,
    )


def test_vectors_come_back_in_the_order_of_the_keys_from_a_new_process_too(tmp_path) -> None:
    filled(tmp_path, 0, 1, 2)
    filled(tmp_path, 4, 3)
    store = store_in(tmp_path)
    assert store.missing([*KEYS[::-1], KEYS[5]]) == [KEYS[5]]
    rows = store.rows([KEYS[number] for number in (3, 0, 4, 0)])
    assert rows.dtype == np.float32
    assert np.array_equal(rows, vectors_of([3, 0, 4, 0]))


def test_parts_tell_the_time_of_a_content_and_older_ones_are_read(tmp_path) -> None:
    store = filled(tmp_path, 0, 1)
    [part] = parts_of(store)
    pq.write_table(pq.read_table(part).drop_columns(["wall_ms"]), part)
    store = store_in(tmp_path)
    assert store.wall_ms(KEYS[:2]) is None
    store.add(KEYS[2:5], vectors_of([2, 3, 4]), wall_ms=2.0)
    store.add(KEYS[5:], vectors_of([5]), wall_ms=6.0)
    assert store.wall_ms(KEYS) == pytest.approx(3.0)
    assert np.array_equal(store.rows(KEYS), vectors_of(range(6)))


def test_other_facts_have_another_folder(tmp_path) -> None:
    filled(tmp_path, 0)
    other = VectorStore(tmp_path, {"model": "b"}, memory_bytes=0)
    assert other.missing(KEYS[:1]) == KEYS[:1]
    assert other.folder.parent == tmp_path


@settings(max_examples=30)
@given(
    parts=st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=6),
    wanted=st.lists(st.integers(0, 60), min_size=1, max_size=30),
)
def test_any_parts_hold_what_was_added(tmp_path_factory, parts, wanted) -> None:
    root = tmp_path_factory.mktemp("store")
    for numbers in parts:
        filled(root, *numbers)
    store, there = store_in(root), set().union(*parts)
    keys = [key_of(number) for number in wanted]
    absent = [key_of(number) for number in dict.fromkeys(wanted) if number not in there]
    assert store.missing(keys) == absent
    kept = [number for number in wanted if number in there]
    if kept:
        rows = store.rows([key_of(number) for number in kept])
        assert np.array_equal(rows, vectors_of(kept))


def test_above_the_limit_rows_are_mapped_from_a_file_that_leaves_nothing(tmp_path) -> None:
    filled(tmp_path, *range(6))
    store = VectorStore(tmp_path, {"model": "a"}, memory_bytes=4 * 6 * WIDTH - 1)
    rows = store.rows(KEYS)
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows, vectors_of(range(6)))
    assert not isinstance(store.rows(KEYS[:5]), np.memmap)
    assert len(list(store.folder.iterdir())) == 2  # the part, and the facts


def test_a_part_of_several_groups_is_read_group_by_group(tmp_path) -> None:
    parts = KeyedParts(tmp_path, {}, pa.schema([("number", pa.int64())]))
    columns = {"key": KEYS, "number": list(range(6))}
    parts.write(columns, group_rows=4)
    parts.look()
    keys = [KEYS[number] for number in (5, 0, 3, 0)]
    read = list(parts.read(parts.places(keys), ["number"]))
    assert [(numbers.tolist(), table["number"].to_pylist()) for numbers, table in read] == [
        ([1, 3, 2], [0, 0, 3]),
        ([0], [5]),
    ]


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_cut_part_is_named_and_not_read(tmp_path, kept) -> None:
    filled(tmp_path, 0, 1)
    store = filled(tmp_path, 2)
    cut = parts_of(store)[0]
    content = cut.read_bytes()
    cut.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    again = store_in(tmp_path)
    assert again.missing(KEYS[:3]) == KEYS[:2]
    assert list(again.set_aside) == [cut.name]
    again.add(KEYS[:2], vectors_of([0, 1]))
    assert np.array_equal(again.rows(KEYS[:3]), vectors_of([0, 1, 2]))


def test_a_foreign_part_is_named_and_not_read(tmp_path) -> None:
    other = VectorStore(tmp_path, {"model": "b"}, memory_bytes=0)
    other.add(KEYS[:1], vectors_of([7]))
    store = filled(tmp_path, 1)
    parts_of(other)[0].rename(store.folder / "other.parquet")
    pq.write_table(pa.table({"key": KEYS[:1]}), store.folder / "table.parquet")
    (store.folder / "notes.txt").write_text("no part")
    again = store_in(tmp_path)
    assert again.missing(KEYS[:2]) == KEYS[:1]
    assert sorted(again.set_aside) == ["other.parquet", "table.parquet"]
    assert "table of another model" in again.set_aside["other.parquet"]


def test_a_part_that_is_damaged_later_is_told_by_its_checksum(tmp_path) -> None:
    store = filled(tmp_path, *range(6))
    store.missing(KEYS)
    [part] = parts_of(store)
    content = bytearray(part.read_bytes())
    place = content.index(vectors_of([3]).tobytes())
    content[place] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=f"{part.name}: expected the part .* delete it"):
        store.rows(KEYS)


def test_what_a_kill_left_is_no_part_and_goes_after_a_day(tmp_path) -> None:
    store = filled(tmp_path, 0)
    content = parts_of(store)[0].read_bytes()
    recent, old = (store.folder / f"{name}.unfinished" for name in ("recent", "old"))
    for file in (recent, old):
        file.write_bytes(content)
    os.utime(old, (0, old.stat().st_mtime - 2 * ABANDONED_S))
    filled(tmp_path, 1)
    assert recent.exists()
    assert not old.exists()
    assert not store_in(tmp_path).set_aside


def test_a_failure_is_no_vector_and_is_tried_again(tmp_path) -> None:
    store = filled(tmp_path, 0)
    store.add_failed({KEYS[1]: "picture is broken", KEYS[2]: "too long"})
    store.add_failed({KEYS[2]: "engine died"})
    again = store_in(tmp_path)
    assert again.missing(KEYS[:3]) == KEYS[1:3]
    assert again.failures(KEYS) == {KEYS[1]: "picture is broken", KEYS[2]: "engine died"}
    with pytest.raises(DataError, match="found 2 keys, 1 of them without"):
        again.rows(KEYS[:2])
    again.add(KEYS[1:2], vectors_of([1]))
    again.add_failed({KEYS[1]: "a later try"})
    assert again.missing(KEYS[:3]) == KEYS[2:3]
    assert again.failures(KEYS) == {KEYS[2]: "engine died"}
    assert np.array_equal(again.rows(KEYS[:2]), vectors_of([0, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_means_nothing_is_no_vector(tmp_path, value) -> None:
    with pytest.raises(DataError, match=f"{KEYS[1]}: expected a finite vector that is not zero"):
        store_in(tmp_path).add(KEYS[:2], np.array([[1.0, 2.0], [value, value]]))
    assert not list(tmp_path.iterdir())


def test_vectors_of_two_sizes_are_refused(tmp_path) -> None:
    filled(tmp_path, 0)
    with pytest.raises(DataError, match=f"expected vectors of {WIDTH} dimensions .* found 3"):
        store_in(tmp_path).add(KEYS[1:2], np.ones((1, 3)))


@pytest.mark.parametrize("key", ["", "short", "z" * 32, "\u00e9" * 32])
def test_other_texts_are_no_keys(tmp_path, key) -> None:
    with pytest.raises(DataError, match="expected keys as `content_key` makes them"):
        filled(tmp_path, 0).missing([KEYS[0], key])
    with pytest.raises(DataError, match="expected keys as `content_key` makes them"):
        store_in(tmp_path).add([key], vectors_of([0]))
    assert len(parts_of(store_in(tmp_path))) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a folder that can be read"):
        filled(tmp_path / "file", 0, 1)
    with pytest.raises(DataError, match="1 rows cannot be written there"):
        store_in(tmp_path / "file").add_failed({KEYS[0]: "why"})


def test_two_processes_lose_no_row(tmp_path) -> None:
    writers = [writer(tmp_path, contents) for contents in (200, 300)]
    for process in writers:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    store = store_in(tmp_path)
    keys = [key_of(number) for number in range(300)]
    assert store.missing(keys) == []
    assert np.array_equal(store.rows(keys), vectors_of(range(300)))


def test_after_kills_nothing_that_was_kept_is_asked_for_again(tmp_path) -> None:
    contents, kept = 2000, set()
    for lines in (21, 45, 90, 22, 61):
        process = writer(tmp_path, contents)
        said = [process.stdout.readline().split() for _ in range(lines)]
        process.kill()
        said += [line.split() for line in process.communicate(timeout=PATIENCE_S)[0].splitlines()]
        said = [line for line in said if len(line) == 2]  # the last one may be cut
        assert not kept & {int(number) for word, number in said if word == "asked"}
        kept |= {int(number) for word, number in said if word == "kept"}
        store = store_in(tmp_path)
        numbers = sorted(kept)
        assert np.array_equal(store.rows([key_of(n) for n in numbers]), vectors_of(numbers))
        # The part that was being committed may be there or not; it is whole.
        missing = set(store.missing([key_of(n) for n in range(contents)]))
        there = [n for n in range(contents) if key_of(n) not in missing]
        assert np.array_equal(store.rows([key_of(n) for n in there]), vectors_of(there))
        assert len(there) % 20 == 0
        assert not store.set_aside
    assert len(kept) < contents


def test_a_key_follows_from_all_that_a_model_reads(tmp_path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    text, picture = "a star", Picture(str(file), Kind.IMAGE)
    contents = [
        (text,),
        (Instruction(text),),
        (text, ""),
        (picture, text),
        (text, picture),
        (Picture(str(file), Kind.PAGE), text),
        (Picture(str(tmp_path / "b.png"), Kind.IMAGE), text),
    ]
    keys = {content_key(content) for content in contents}
    assert len(keys) == len(contents)
    assert content_key(contents[3]) in keys
    file.write_bytes(b"12")
    assert content_key(contents[3]) not in keys


def test_a_job_looks_at_each_file_once_and_the_next_job_sees_what_changed(tmp_path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    content = (Picture(str(file), Kind.IMAGE), "a star")
    with files_remembered():
        key = content_key(content)
        file.write_bytes(b"12")
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(content_key, content).result() == key
    with files_remembered():
        assert content_key(content) != key
