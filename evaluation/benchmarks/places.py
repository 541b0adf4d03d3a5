"""Where the rows and the media of a set are on disk: the first of the places that are possible."""

from glob import escape
from pathlib import Path

from configs.common import BenchmarkConfig, DataSetConfig, is_address
from data.errors import DataError
from data.rows.locations import cached_revision, local_set
from evaluation.benchmarks.tables import BenchmarkSet
from evaluation.benchmarks.uvrb_sets import FILES

_ENDINGS = (".jsonl", ".json", ".parquet", "")


def row_places(benchmark_set: BenchmarkSet, config: BenchmarkConfig) -> tuple[Path, ...]:
    """Return the files or folders of a set's rows: one, or one a part.

    Raises:
        DataError: one is not there; the message says where it was looked for.
    """
    return tuple(_first(stems, benchmark_set) for stems in _stems(benchmark_set, config))


def media_folder(benchmark_set: BenchmarkSet, config: BenchmarkConfig) -> Path:
    """Return the folder of a set's media; where none is there, the last of the possible ones."""
    root = Path(config.root)
    folders = [root / name for name in benchmark_set.media]
    if config.suite == "uvrb":
        names = (benchmark_set.name, benchmark_set.name.replace("-", "_"))
        folders = [root / "UVRB_extracted" / name / "UVRB" / name for name in names]
        folders += [root / name / "UVRB" / name for name in names]
        folders += [root / name for name in names[::-1]]
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def _stems(benchmark_set: BenchmarkSet, config: BenchmarkConfig) -> list[list[Path]]:
    """Return where the rows may be, without the ending of a file, for each part of them."""
    if config.suite == "uvrb":
        folder = media_folder(benchmark_set, config)
        return [[folder / "jsonl" / name] for name in FILES]
    if not config.rows:
        return _hub_stems(benchmark_set)
    rows = Path(_folder_of(config.rows) if is_address(config.rows) else config.rows)
    places = [rows / benchmark_set.offline, rows / benchmark_set.name]
    if len(benchmark_set.configs) > 1:
        return [[place / part for place in places] for part in benchmark_set.configs]
    return [places]


def _hub_stems(benchmark_set: BenchmarkSet) -> list[list[Path]]:
    """Return where the rows may be in the hub's cache of the set's own repository."""
    repo = benchmark_set.repo
    revision = cached_revision(repo)
    if not revision:
        raise DataError(
            f"expected the rows in the hub's cache, found no data set {repo} there; run "
            f"`hf download {repo} --repo-type dataset`, or say in `rows` where they are"
        )
    folder = Path(_folder_of(f"hf://datasets/{repo}@{revision}"))
    if "visdoc" in benchmark_set.groups:
        return [[folder]]  # queries, corpus and qrels are looked for in it
    return [
        [
            folder / part / benchmark_set.split,
            folder / "data" / part / benchmark_set.split,
            folder / "json" / part,
            folder / "data" / part,
            folder / part,
        ]
        for part in benchmark_set.configs or ("",)
    ]


def _folder_of(address: str) -> str:
    """Return the folder on disk of an address; nothing is fetched."""
    return local_set(DataSetConfig(name="rows", path=address, root=address)).root


def _first(stems: list[Path], benchmark_set: BenchmarkSet) -> Path:
    for stem in stems:
        for ending in _ENDINGS:
            path = Path(f"{stem}{ending}")
            if path.is_file() or (not ending and (path.is_dir() or _has_shards(path))):
                return path
    repo = benchmark_set.repo
    source = f"get them from the hub's data set {repo}" if repo else "unpack the set"
    raise DataError(
        f"expected rows in {' or in '.join(map(str, stems))} (.jsonl, .json, .parquet or a folder "
        f"of parquet files), found none; {source}"
    )


def _has_shards(path: Path) -> bool:
    """Return whether parquet files beside a path are parts of it: `<path>-00000-of-00001...`."""
    return any(path.parent.glob(f"{escape(path.name)}-*-of-*.parquet"))
