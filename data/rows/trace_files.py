"""Traces in files beside a set's rows, as Embed-RL's code writes them for benchmarks.

Told apart by what they hold; `<D>` is the name of a benchmark's set:
  <D>_query.json       a list, of each query `query-id` and `query_cot`      (format `beir`)
  <D>_corpus.json      a list, of each page `corpus-id` and `corpus_cot`     (format `beir`)
  <D>_corpus_cot.json  {"text": {candidate: trace}, "image": {path: trace}}  (format `mmeb_eval`)
  <D>_corpus_cot.json  a list, of each candidate of a video set `corpus_content`, its text or its
                       path, and `corpus_cot`               (no format: `read_published_traces`)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.rows.rows import FileRow

_LISTS = {"query-id": "query_cot", "corpus-id": "corpus_cot"}
"""The trace's field in a list, by the field that says what it is of."""
_OF_VIDEOS = {"corpus_content": "corpus_cot"}
"""The same, in files whose items no row names."""
_OBJECT = ("text", "image")


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
        traces = {"query_cot": query, "pos_cot": target}
        return row | {name: trace for name, trace in traces.items() if trace and not row.get(name)}

    def trace(self, kind: str, value: Any) -> str:
        """Return the trace of what a field names by a value; empty: none."""
        return self.traces.get(kind, {}).get(_key(value), "")


def read_traces(paths: Sequence[str]) -> TraceFiles:
    """Return the traces in files that belong to a set's rows; an empty one is none.

    Raises:
        DataError: a file cannot be read, or is none of the first three kinds.
    """
    return _read(paths, _LISTS)


def read_published_traces(paths: Sequence[str]) -> TraceFiles:
    """Return the traces in files of any kind; an empty one is none.

    Raises:
        DataError: a file cannot be read, or is none of the kinds.
    """
    return _read(paths, _LISTS | _OF_VIDEOS)


def _read(paths: Sequence[str], lists: Mapping[str, str]) -> TraceFiles:
    files = TraceFiles()
    for name in paths:
        for kind, key, trace in _entries(Path(name), lists):
            if isinstance(trace, str) and trace.strip():
                files.traces.setdefault(kind, {}).setdefault(_key(key), trace)
    if paths and not files.traces:
        raise DataError(
            f"{paths[0]}: expected traces, found none in any of the set's `traces`; have them "
            "written, or leave the key out"
        )
    return files


def _entries(path: Path, lists: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    """Return what names an item, its value, and the trace, of each entry of a file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check the set's `traces`") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected traces as JSON, found a file that cannot be read ({error}); check "
            "the set's `traces`"
        ) from error
    if isinstance(content, dict) and content.keys() <= set(_OBJECT):
        parts = [(kind, part) for kind, part in content.items() if isinstance(part, dict)]
        if len(parts) == len(content):
            return [(kind, key, trace) for kind, part in parts for key, trace in part.items()]
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        for kind, trace in lists.items():
            if all(kind in entry and trace in entry for entry in content):
                return [(kind, entry[kind], entry[trace]) for entry in content]
    raise DataError(
        f"{path}: expected a list of objects with query-id and query_cot or with corpus-id and "
        "corpus_cot, or an object {text: {...}, image: {...}}, found something else; name files "
        "of traces in the set's `traces`, and rows in its `path`"
    )


def _key(value: Any) -> str:
    """Return what names an item as text: parts of one set may write an id as a number."""
    return str(value).strip()


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None
