"""Rows that were hard in a run: by ranks without a trace, and by the share of right traces."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.sets.load_sets import load_set
from tests.builders import write_set


@pytest.fixture
def rows(tmp_path):
    """Return a set of six rows, the third and fourth with ids of their own, one of them twice."""

    def config(hardest_by, sample=2):
        texts = [{"qry": f"q {index}", "pos_text": f"t {index}"} for index in range(6)]
        for index in (2, 3, 4):
            texts[index]["id"] = "twice" if index < 4 else 4
        return write_set(tmp_path, texts, sample=sample, hardest_by=str(hardest_by))

    return config


@pytest.fixture
def evaluated(tmp_path):
    ranks = {"set-0": 3, "set-1": 9, "twice": 1, "twice-3": 7, "4": None, "set-5": 2}
    variants = (("no_cot", "set", 1), ("after", "set", -1), ("no_cot", "other", -1))
    lines = [
        {"variant": variant, "source": source, "pair_id": pair, "rank": rank and rank * factor}
        for pair, rank in ranks.items()
        for variant, source, factor in variants
    ]
    (tmp_path / "run").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "run/evaluation.parquet")
    return tmp_path / "run"


@pytest.fixture
def trained(tmp_path):
    steps = [
        [("set-0", "set", 1.0), ("set-1", "set", 0.0), ("twice", "set", 0.5), ("4", "set", None)],
        [("set-0", "set", 0.5), ("set-1", "set", 1.0), ("set-5", "other", 0.0)],
    ]
    (tmp_path / "run/trajectories").mkdir(parents=True)
    for number, step in enumerate(steps):
        columns = dict(
            zip(("pair", "source", "rank/accuracy"), zip(*step, strict=True), strict=True)
        )
        pq.write_table(
            pa.table({name: list(cells) for name, cells in columns.items()}),
            tmp_path / f"run/trajectories/step-{number}.parquet",
        )
    return tmp_path / "run"


def test_the_worst_ranks_without_a_trace_are_the_hardest(rows, evaluated, caplog):
    caplog.set_level(logging.WARNING)
    assert [pair.row for pair in load_set(rows(evaluated)).pairs] == [1, 3]
    assert [pair.row for pair in load_set(rows(evaluated, sample=9)).pairs] == [0, 1, 2, 3, 5]
    assert f"5 of 6 rows were met in {evaluated}; the hardest 2 are used" in caplog.text


def test_the_smallest_share_of_right_traces_is_the_hardest(rows, trained):
    assert [pair.row for pair in load_set(rows(trained, sample=1)).pairs] == [1]
    # Of equal shares the earlier row; pairs that were not met, or not scored, are not used.
    assert [pair.row for pair in load_set(rows(trained, sample=6)).pairs] == [0, 1, 2]


@pytest.mark.parametrize("run", ["runs/none", "{there}/evaluation.parquet"])
def test_a_folder_without_such_a_run_is_refused(rows, evaluated, run):
    with pytest.raises(DataError, match=r"expected evaluation\.parquet of an evaluate run or"):
        load_set(rows(run.format(there=evaluated)))


def test_a_run_on_other_rows_is_refused(rows, evaluated, trained):
    path = evaluated / "evaluation.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(
        DataError, match=r"set 'set', hardest_by: .*: expected pairs of this set, found none"
    ):
        load_set(rows(evaluated))
    path.unlink()
    for file in (trained / "trajectories").iterdir():
        table = pq.read_table(file)
        other = pa.array([f"other-{name}" for name in table["pair"].to_pylist()])
        pq.write_table(table.set_column(0, "pair", other), file)
    with pytest.raises(DataError, match="expected pairs of these rows, found 3 others"):
        load_set(rows(trained))
