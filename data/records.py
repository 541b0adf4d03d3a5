"""Rows of training and evaluation files to pairs; every refusal names file, row and field.

Formats (spec, section 5): `mmeb` (MMEB-train JSON), `llavahound` (LLaVA-Hound JSON for video),
`mmeb_eval` (MMEB-V2 image rows, JSON lines, gold at index 0) and `caption` (LLaVA-style JSON,
supervised only). All but the last may carry these optional columns: `id`, `label` (targets with
the same label are right for each other), `query_cot`, `pos_cot`, `qry_evidence`, `pos_evidence`.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import DataSetConfig
from data.cues import parse_evidence
from data.errors import DataError
from data.media import resolve
from data.tcot import MAX_CHARS
from data.types import Cues, Item, Kind, Pair, Side

log = logging.getLogger(__name__)

BLANK_VIDEO = ["images/blank.jpg"]
_FIELDS = {
    "mmeb": ("'qry' or 'qry_image_path'", "'pos_text' or 'pos_image_path'"),
    "llavahound": ("'qry'", "'pos'"),
    "mmeb_eval": ("'qry_text' or 'qry_img_path'", "'tgt_text' or 'tgt_img_path'"),
}
"""Where each format's query and target stand."""
_PLACEHOLDER = re.compile(r"<\|image_\d+\|>|<video>|<image>")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """A data set's usable pairs and what was quarantined."""

    name: str
    pairs: tuple[Pair, ...]
    bad_rows: tuple[BadRow, ...]


def load_set(config: DataSetConfig) -> LoadedSet:
    """Read one data set; bad rows are quarantined with a reason, a bad file is refused.

    Raises:
        DataError: the file is missing or not JSON of rows.
    """
    rows = read_rows(Path(config.path))
    if config.limit:
        rows = rows[: config.limit]
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data set '{config.name}': root folder {root} not found; set its `root`")
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for index, row in enumerate(rows):
        where = f"{config.path} row {index + 1}"
        try:
            pair = _READERS[config.format](_RowReader(row, root, where, config, index))
        except DataError as error:
            bad.append(BadRow(where, str(error)))
            continue
        seen[pair.pair_id] += 1
        if seen[pair.pair_id] > 1:
            bad.append(BadRow(where, f"{where}, field 'id': duplicate id '{pair.pair_id}'"))
            continue
        pairs.append(pair)
    return LoadedSet(name=config.name, pairs=tuple(pairs), bad_rows=tuple(bad))


def load_sets(configs: list[DataSetConfig], *, max_bad_rows: float) -> list[LoadedSet]:
    """Read several data sets; rows that are set aside are logged with their reasons.

    Raises:
        DataError: a file is unreadable, a set is empty, or more than ``max_bad_rows`` of its
            rows are bad; the message lists the first of them.
    """
    loaded: list[LoadedSet] = []
    problems: list[str] = []
    for config in configs:
        try:
            one = load_set(config)
        except DataError as error:
            problems.append(str(error))
            continue
        for bad in one.bad_rows:
            log.warning("quarantined: %s", bad.reason)
        total = len(one.pairs) + len(one.bad_rows)
        if not total:
            problems.append(f"data set '{one.name}': {config.path} holds no row")
        elif not one.pairs or len(one.bad_rows) > max_bad_rows * total:
            shown = "\n    ".join(bad.reason for bad in one.bad_rows[:5])
            problems.append(
                f"data set '{one.name}': {len(one.bad_rows)} of {total} rows are bad, more than "
                f"data.max_bad_rows={max_bad_rows}; mend the file or raise the limit:\n    {shown}"
            )
        loaded.append(one)
    names = Counter(config.name for config in configs)
    problems += [f"data set name '{n}' is used {k} times" for n, k in names.items() if k > 1]
    if problems:
        raise DataError("\n".join(problems))
    return loaded


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON array or JSON-lines file.

    Raises:
        DataError: missing file, malformed JSON (with line and column), or rows that are no objects.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: file not found; check the data set's `path`") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the data set's `path`") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = []
            # Not splitlines: JSON strings may hold other line separators as they are.
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append(_json_line(path, number, line))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {error.lineno} column {error.colno}: malformed JSON ({error.msg})"
        ) from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: malformed JSON ({error})") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path} row {index + 1}: expected an object, found {type(row).__name__}"
            )
    return rows


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number} column {error.colno}: malformed JSON ({error.msg})"
        ) from error


@dataclass(frozen=True, slots=True)
class _RowReader:
    """One row with what is needed to name it in an error."""

    row: Row
    root: Path
    where: str
    config: DataSetConfig
    index: int

    def text(self, field: str, *, of: Row | None = None) -> str:
        value = (self.row if of is None else of).get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(field, "text", value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.where}, field '{field}': expected text, found half a character ({error})"
            ) from error
        return value

    def trace(self, field: str) -> str:
        """Return a written trace; one of megabytes would not fit into any batch."""
        text = self.text(field)
        if len(text) > MAX_CHARS:
            raise DataError(
                f"{self.where}, field '{field}': expected at most {MAX_CHARS} characters, found "
                f"{len(text)}"
            )
        return text

    def wrong(self, field: str, expected: str, value: Any) -> DataError:
        return DataError(
            f"{self.where}, field '{field}': expected {expected}, found {type(value).__name__}"
        )

    def texts(self, field: str, *, of: Row | None = None) -> list[str]:
        """Return a list of texts; absent ones are empty."""
        value = (self.row if of is None else of).get(field)
        if not isinstance(value, list) or not all(isinstance(one, str | None) for one in value):
            raise self.wrong(field, "a list of texts", value)
        return [one or "" for one in value]

    def paths(self, field: str, *, of: Row) -> list[str]:
        """Return a list of picture paths; absent: none.

        A list of none is refused: it says that there is a video, and one without frames.
        """
        if of.get(field) in (None, ""):
            return []
        paths = self.texts(field, of=of)
        if not paths:
            raise DataError(
                f"{self.where}, field '{field}': expected paths, found an empty list; leave the "
                "field out where there is no picture"
            )
        return paths

    def turns(self, of: Row) -> dict[str, str]:
        """Return the text of each speaker's last turn."""
        turns = of.get("conversations") or []
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise self.wrong("conversations", "a list of turns {from, value}", turns)
        return {self.text("from", of=turn): self.text("value", of=turn) for turn in turns}

    def pair_id(self) -> str:
        given = self.row.get("id")
        if given is None or given == "":
            return f"{self.config.name}-{self.index}"
        if isinstance(given, bool) or not isinstance(given, str | int):
            raise self.wrong("id", "text or a whole number", given)
        return str(given)

    def path(self, name: str, field: str) -> str:
        if not name:
            raise DataError(f"{self.where}, field '{field}': expected a path, found empty text")
        return resolve(self.root, name, where=f"{self.where}, field '{field}'")

    def picture_item(self, text: str, name: str, field: str) -> Item:
        """Return a text item, or a picture item where a path is given."""
        text = clean(text)
        if not name:
            return Item(text=text)
        return Item(text=text, kind=Kind(self.config.kind), uris=(self.path(name, field),))

    def pair(self, query: Item, target: Item, **more: Any) -> Pair:
        for side, item, fields in zip(
            Side, (query, target), _FIELDS[self.config.format], strict=True
        ):
            if not item.text.strip() and not item.uris:
                raise DataError(
                    f"{self.where}, field {fields}: the {side} is empty: no text and no picture"
                )
        return Pair(
            pair_id=self.pair_id(),
            source=self.config.name,
            row=self.index,
            query=query,
            target=target,
            label=self.text("label"),
            query_trace=self.trace("query_cot"),
            target_trace=self.trace("pos_cot"),
            query_evidence=self.evidence("qry_evidence", query),
            target_evidence=self.evidence("pos_evidence", target),
            **more,
        )

    def evidence(self, field: str, item: Item) -> Cues:
        value = self.row.get(field)
        if not value:
            return Cues()
        try:
            return parse_evidence(value, kind=item.kind, num_frames=len(item.uris))
        except DataError as error:
            raise DataError(f"{self.where}, field '{field}': {error}") from error


def clean(text: str) -> str:
    """Return the text without picture placeholders."""
    return _PLACEHOLDER.sub("", text).strip("\n")


def _read_mmeb(reader: _RowReader) -> Pair:
    query = reader.picture_item(reader.text("qry"), reader.text("qry_image_path"), "qry_image_path")
    target = reader.picture_item(
        reader.text("pos_text"), reader.text("pos_image_path"), "pos_image_path"
    )
    negative_text, negative_path = reader.text("neg_text"), reader.text("neg_image_path")
    negatives = ()
    if negative_path or negative_text.strip():
        negatives = (reader.picture_item(negative_text, negative_path, "neg_image_path"),)
    return reader.pair(query, target, hard_negatives=negatives)


def _read_llavahound(reader: _RowReader) -> Pair:
    """Video side: its human turn and frames. Text side: its gpt turn, which is the content."""
    items: dict[str, Item] = {}
    for side in ("qry", "pos"):
        part = reader.row.get(side)
        if not isinstance(part, dict):
            raise DataError(
                f"{reader.where}, field '{side}': expected an object with conversations"
            )
        turns = reader.turns(part)
        frames = reader.paths("video", of=part)
        if frames and frames != BLANK_VIDEO:
            uris = tuple(reader.path(frame, f"{side}.video") for frame in frames)
            items[side] = Item(text=clean(turns.get("human", "")), kind=Kind.VIDEO, uris=uris)
        else:
            text = turns.get("gpt", "").strip() or turns.get("human", "")
            items[side] = Item(text=clean(text))
    return reader.pair(items["qry"], items["pos"])


def _read_mmeb_eval(reader: _RowReader) -> Pair:
    query_text = " ".join(p for p in (reader.text("qry_inst"), reader.text("qry_text")) if p)
    query = reader.picture_item(query_text, reader.text("qry_img_path"), "qry_img_path")
    texts, paths = reader.texts("tgt_text"), reader.texts("tgt_img_path")
    if len(texts) != len(paths):
        raise DataError(
            f"{reader.where}, fields 'tgt_text' and 'tgt_img_path': expected lists of one length, "
            f"found {len(texts)} and {len(paths)}"
        )
    instruction = reader.text("tgt_inst")
    candidates = tuple(
        reader.picture_item(
            " ".join(part for part in (instruction, text) if part), path, "tgt_img_path"
        )
        for text, path in zip(texts, paths, strict=True)
    )
    if not candidates:
        raise DataError(f"{reader.where}, field 'tgt_text': no candidate")
    for index, (text, path) in enumerate(zip(texts, paths, strict=True)):
        if not clean(text).strip() and not path:
            raise DataError(
                f"{reader.where}, field 'tgt_text[{index}]': empty: no text and no picture"
            )
    return reader.pair(query, candidates[0], candidates=candidates)


def _read_caption(reader: _RowReader) -> Pair:
    turns = reader.turns(reader.row)
    if not turns.get("gpt", "").strip():
        raise DataError(f"{reader.where}, field 'conversations': expected a gpt turn, found none")
    image = reader.row.get("image")
    names = [image] if image and isinstance(image, str) else reader.paths("image", of=reader.row)
    uris = tuple(reader.path(name, "image") for name in names)
    kind = Kind.TEXT if not uris else Kind.VIDEO if len(uris) > 1 else Kind(reader.config.kind)
    query = Item(text=clean(turns.get("human", "")), kind=kind, uris=uris)
    return Pair(
        pair_id=reader.pair_id(),
        source=reader.config.name,
        row=reader.index,
        query=query,
        target=Item(text=""),
        query_trace=turns["gpt"],
    )


_READERS: dict[str, Callable[[_RowReader], Pair]] = {
    "mmeb": _read_mmeb,
    "llavahound": _read_llavahound,
    "mmeb_eval": _read_mmeb_eval,
    "caption": _read_caption,
}
