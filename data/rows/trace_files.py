"""Traces in files beside a set's rows, as Embed-RL's code writes them for benchmarks.

Told apart by what they hold; `<D>` is the name of a benchmark's set:
  <D>_query.json       a list, of each query `query-id` and `query_cot`      (format `beir`)
  <D>_corpus.json      a list, of each page `corpus-id` and `corpus_cot`     (format `beir`)
  <D>_corpus_cot.json  {"text": {candidate: trace}, "image": {path: trace}}  (format `mmeb_eval`)
  <D>_corpus_cot.json  a list, of each candidate of a video set `corpus_content`, its text or its
                       path, and `corpus_cot`                                (no format)
  <D>.json             a list, the rows of an image set with `query_cot`     (no format)
  <D>_query_cot.json   the same, of a video set                              (no format)
`read_published_traces` reads all of them, `read_traces` the first three.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.rows.rows import FileRow

_LISTS = {"query-id": "query_cot", "corpus-id": "corpus_cot"}
"""The trace's field in a list, by the field that says what it is of."""
_OF_VIDEOS = {"corpus_content": "corpus_cot"}
"""The same, in files whose items no row names."""
_QUERY_TRACE = "query_cot"
ROW_FIELDS = (
    ("qry_text", "qry_img_path"),
    ("video_id",),
    ("caption",),
    ("enCap",),
    ("sentence",),
    ("query", "video_path"),
    ("query", "input_frames"),
    ("subset", "question", "video"),
    ("question", "video"),
    ("question", "videoID"),
    ("question", "video_idx"),
    ("question", "video_name"),
)
"""Fields of rows that together say what a query is, where no id does."""
_OBJECT = ("text", "image")
_ENDINGS = ("_query_cot", "_corpus_cot", "_query", "_corpus", "")
"""Of the names of files, behind the name of the set."""
_FIXED = "-fixed"
"""Ends the names of sets whose files were published under the name before."""


@dataclass(frozen=True, slots=True)
class TraceFiles:
    """Traces by the field that names their item, and by its value."""

    traces: dict[str, dict[str, str]] = field(default_factory=dict)

    def added_to(self, row: FileRow) -> FileRow:
        """Return a row with the traces of its query and its gold target, where it has none."""
        if not self.traces:
            return row
        text, path = (_first(row.get(name)) for name in ("tgt_text", "tgt_img_path"))
        query = self.trace("query-id", row.get("query-id"))
        target = self.trace("corpus-id", row.get("corpus-id"))
        target = target or (self.trace("image", path) if path else self.trace("text", text))
        traces = {_QUERY_TRACE: query, "pos_cot": target}
        return row | {name: trace for name, trace in traces.items() if trace and not row.get(name)}

    def trace(self, kind: str, value: Any) -> str:
        """Return the trace of what a field names by a value; empty: none."""
        return self.traces.get(kind, {}).get(_key(value), "")


def row_name(row: FileRow, fields: Sequence[str]) -> tuple[str, str]:
    """Return what names the query of a row in files of traces: kind and value for `trace`.

    Of a list the first entry counts.
    """
    if len(fields) == 1 and fields[0] in _LISTS:
        return fields[0], _key(row.get(fields[0]))
    values = [row.get(name) for name in fields]
    values = [_first(value) if isinstance(value, list) else value for value in values]
    texts = ["" if value is None else _key(value) for value in values]
    return "+".join(fields), json.dumps(texts)


def read_traces(paths: Sequence[str]) -> TraceFiles:
    """Return the traces in files that belong to a set's rows; an empty one is none.

    Raises:
        DataError: a file cannot be read, or is none of the first three kinds.
    """
    files = _read(map(Path, paths), _LISTS, (), "the set's `traces`")
    if paths and not files.traces:
        raise DataError(
            f"{paths[0]}: expected traces, found none in any of the set's `traces`; have them "
            "written, or leave the key out"
        )
    return files


def read_published_traces(paths: Collection[Path]) -> TraceFiles:
    """Return the traces in a set's files of any kind; an empty one is none.

    Raises:
        DataError: a file cannot be read, or is none of the kinds.
    """
    return _read(paths, _LISTS | _OF_VIDEOS, ROW_FIELDS, "`published_traces`")


def published_files(paths: Sequence[str], sets: Collection[str]) -> dict[str, list[Path]]:
    """Return the files of traces of each set, by the names of the files.

    Args:
        paths: files, and folders that are looked through with their sub-folders; there the files of
            other sets are passed over.
        sets: names of sets; those without a file are left out.

    Raises:
        DataError: a path is not there, a file is named of which no set is asked for, or there is
            none of any of the sets.
    """
    by_name = {name.removesuffix(_FIXED): name for name in sets} | {name: name for name in sets}
    files: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: file or folder not found; correct `published_traces`")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            stem = file.name.removesuffix(".json")
            names = [stem.removesuffix(ending) for ending in _ENDINGS if stem.endswith(ending)]
            of = next((by_name[name] for name in names if name in by_name), "")
            if of:
                files.setdefault(of, []).append(file)
            elif file == path:
                raise DataError(
                    f"{path}: expected the name of a set that is measured and one of "
                    f"{', '.join(f'{ending}.json' for ending in _ENDINGS)}, found another name; "
                    "rename the file, or remove it from `published_traces`"
                )
    if not files:
        raise DataError(
            f"{paths[0]}: expected files such as {next(iter(sets))}_corpus_cot.json in "
            "`published_traces`, found none of any set that is measured; correct the paths"
        )
    return files


def _read(
    paths: "Collection[Path] | map[Path]",
    lists: Mapping[str, str],
    rows: Sequence[Sequence[str]],
    setting: str,
) -> TraceFiles:
    files = TraceFiles()
    for path in paths:
        for kind, key, trace in _entries(path, lists, rows, setting):
            if isinstance(trace, str) and trace.strip():
                files.traces.setdefault(kind, {}).setdefault(_key(key), trace)
    return files


def _entries(
    path: Path, lists: Mapping[str, str], rows: Sequence[Sequence[str]], setting: str
) -> list[tuple[str, Any, Any]]:
    """Return what names an item, its value, and the trace, of each entry of a file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check {setting}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected traces as JSON, found a file that cannot be read ({error}); check "
            f"{setting}"
        ) from error
    if isinstance(content, dict) and content.keys() <= set(_OBJECT):
        parts = [(kind, part) for kind, part in content.items() if isinstance(part, dict)]
        if len(parts) == len(content):
            return [(kind, key, trace) for kind, part in parts for key, trace in part.items()]
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        for kind, trace in lists.items():
            if all(kind in entry and trace in entry for entry in content):
                return [(kind, entry[kind], entry[trace]) for entry in content]
        if all(_QUERY_TRACE in entry for entry in content):
            named = [f for f in rows if all(name in entry for entry in content for name in f)]
            if named:
                return [
                    (*row_name(entry, fields), entry[_QUERY_TRACE])
                    for fields in named
                    for entry in content
                ]
    more = ", or the rows of an image or a video set with query_cot" if rows else ""
    raise DataError(
        f"{path}: expected a list of objects with query-id and query_cot or with corpus-id and "
        f"corpus_cot, or an object {{text: {{...}}, image: {{...}}}}{more}, found something else; "
        f"name files of traces in {setting}, and rows in the set's `path`"
    )


def _key(value: Any) -> str:
    """Return what names an item as text: parts of one set may write an id as a number."""
    return str(value).strip()


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None
