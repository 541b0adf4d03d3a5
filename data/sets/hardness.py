"""How hard the pairs of a set were in a run: by the plain embedding's ranks, or by its traces.

An `evaluate` run ranked the right target of each query, embedded without a trace. An `rl` run has
scored traces; the mean of their accuracy is the pair's success rate so far. `data.sets.subsets`
chooses rows by it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

RANKS, TRACES = "evaluation.parquet", "trajectories"
"""What is looked for in a run folder, the first that is there."""
PLAIN = "no_cot"
"""The variant of an evaluation that reads no trace."""


def is_run(hardest_by: str) -> bool:
    """Return whether a set's `hardest_by` names a run folder, and no column."""
    return "/" in hardest_by


def files_of_run(run: str) -> list[Path]:
    """Return the files of a run in which `ease_of_pairs` looks."""
    folder = Path(run)
    ranks = folder / RANKS
    return [ranks] if ranks.is_file() else sorted((folder / TRACES).glob("*.parquet"))


def ease_of_pairs(run: str, source: str) -> Mapping[str, float]:
    """Return how easy the pairs of the data set ``source`` were, by `Pair.pair_id`.

    It is the plain embedding's rank with a minus before it, or the share of right traces.

    Raises:
        DataError: the folder is of no such run, or no pair of the set was met in it.
    """
    folder = Path(run)
    try:
        ease = (
            _of_ranks(folder, source) if (folder / RANKS).is_file() else _of_traces(folder, source)
        )
    except (OSError, ValueError, KeyError) as error:  # also what pyarrow raises
        raise DataError(
            f"data set '{source}', hardest_by: {run}: expected {RANKS} of an evaluate run or "
            f"{TRACES}/ of an rl run, cannot read that ({type(error).__name__}: {error}); name the "
            "folder of such a run (a name with a '/' is a folder: rename a column that has one)"
        ) from error
    if not ease:
        raise DataError(
            f"data set '{source}', hardest_by: {run}: expected pairs of this set, found none; the "
            "set must have had the same name in that run"
        )
    return ease


def _of_ranks(folder: Path, source: str) -> dict[str, float]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(folder / RANKS, columns=["pair_id", "source", "variant", "rank"])
    own = pc.and_(pc.equal(table["source"], source), pc.equal(table["variant"], PLAIN))
    table = table.filter(pc.and_(own, pc.is_valid(table["rank"])))
    return _mapping(table["pair_id"], pc.negate(table["rank"]))


def _of_traces(folder: Path, source: str) -> dict[str, float]:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    traces = ds.dataset(folder / TRACES, format="parquet").to_table(
        columns=["pair", "rank/accuracy"],
        filter=(pc.field("source") == source) & pc.field("rank/accuracy").is_valid(),
    )
    rates = traces.group_by("pair").aggregate([("rank/accuracy", "mean")])
    return _mapping(rates["pair"], rates["rank/accuracy_mean"])


def _mapping(ids: "pa.ChunkedArray", values: "pa.ChunkedArray") -> dict[str, float]:
    return dict(zip(ids.to_pylist(), map(float, values.to_pylist()), strict=True))
