"""Rows of training and evaluation files to pairs; every refusal names file, row and field.

Formats (spec, section 5): `mmeb` (MMEB-train JSON), `llavahound` (LLaVA-Hound JSON for video),
`mmeb_eval` (MMEB-V2 image rows, JSON lines, gold at index 0) and `caption` (LLaVA-style JSON,
supervised only). All but the last may carry these optional columns: `id`, `label` (targets with
the same label are right for each other), `query_cot`, `pos_cot`, `cot_knows_answer`,
`qry_evidence`, `pos_evidence`.

Texts are normalised here and nowhere else: an item's text is what models read, and its identity.
"""

import logging
import re
import reprlib
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from configs.schema import DataConfig, DataSetConfig, MediaConfig
from data.cues import CUE_KEYS, parse_evidence
from data.errors import DataError, TCoTError
from data.files import PictureFiles
from data.media import sample_frames
from data.row_files import Row, read_rows
from data.tcot import parse
from data.types import Cues, Item, Kind, Pair, Side

log = logging.getLogger(__name__)

BLANK_VIDEO = ["images/blank.jpg"]
BAR_AFTER_S = 3.0
"""Sets that take longer to read show a progress bar."""
LISTED = 20
"""Rows set aside whose reasons are logged one by one."""
UNITS = {
    Kind.TEXT: "text_keywords is a list of words",
    Kind.IMAGE: "a box is [x1, y1, x2, y2] in thousandths of the picture's width and height",
    Kind.PAGE: "a box is [x1, y1, x2, y2] in thousandths of the page's width and height",
    Kind.VIDEO: "key_frames is a list of frames, counted from 1 among all that the row names",
}
"""What `qry_evidence` and `pos_evidence` hold."""
SAMPLED_BOXES = 256
"""True boxes of a set that are looked at for their unit."""
TELLING_BOXES = 16
"""Boxes from which on it is more than chance that all of them look like pixels."""
TELLING_SIZE = 640
"""Pictures of more pixels a side hold most boxes in thousandths, too."""
_FIELDS = {
    "mmeb": ("'qry' or 'qry_image_path'", "'pos_text' or 'pos_image_path'"),
    "llavahound": ("'qry'", "'pos'"),
    "mmeb_eval": ("'qry_text' or 'qry_img_path'", "'tgt_text' or 'tgt_img_path'"),
}
"""Where each format's query and target stand."""
ANSWER_KNOWN = "cot_knows_answer"
"""True where whoever wrote a row's traces knew both sides of the pair."""
_PAIR_FIELDS = frozenset(
    (
        *("id", "label", "query_cot", "pos_cot", ANSWER_KNOWN),
        *("qry_evidence", "pos_evidence", "error"),
    )
)
KNOWN_FIELDS = {
    "mmeb": _PAIR_FIELDS
    | {"qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"},
    "llavahound": _PAIR_FIELDS | {"dataset_name", "qry", "pos"},
    "mmeb_eval": _PAIR_FIELDS
    | {"qry_inst", "qry_text", "qry_img_path", "tgt_inst", "tgt_text", "tgt_img_path"},
    "caption": frozenset(("id", "image", "conversations", "error")),
}
_PLACEHOLDER = re.compile(r"<\|image_\d+\|>|<video>|<image>")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """A data set's usable pairs and what was set aside."""

    name: str
    pairs: tuple[Pair, ...]
    bad_rows: tuple[BadRow, ...]
    rows: int = 0
    """Rows of the file, beyond the set's limit as well."""
    read: int = 0
    """Rows that were read of them."""
    unknown_fields: Mapping[str, int] = field(default_factory=dict)
    """Rows by the field in them that the format does not know."""


def load_set(
    config: DataSetConfig,
    *,
    max_frames: int = MediaConfig.max_frames,
    files: PictureFiles | None = None,
) -> LoadedSet:
    """Read one data set; bad rows are set aside with a reason, a bad file is refused.

    Traces must be right for ``max_frames`` shown frames of a video. ``files`` are those under the
    set's root, where another set knows them already.

    Raises:
        DataError: the file is missing or not JSON of rows.
    """
    rows = read_rows(Path(config.path))
    some = rows[: config.limit] if config.limit else rows
    files = files or files_of(config)
    copies = len(files.copies)
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    unknown: Counter[str] = Counter()
    boxes: list[_TrueBoxes] = []
    ids = _Ids()
    for index, row in enumerate(_with_bar(some, f"reading {config.name}")):
        where = f"{config.path} row {index + 1}"
        unknown.update(row.keys() - KNOWN_FIELDS[config.format])
        reader = _RowReader(row, where, config, index, files, max_frames, boxes)
        try:
            reader.refuse_error()
            pairs += ids.unique(_READERS[config.format](reader), where)
        except DataError as error:
            bad.append(BadRow(where, str(error)))
    ids.tell(config.name)
    _hint_at_units(config.name, boxes)
    _tell_of_copies(config.name, files, copies)
    return LoadedSet(
        name=config.name,
        pairs=tuple(pairs),
        bad_rows=tuple(bad),
        rows=len(rows),
        read=len(some),
        unknown_fields={} if config.extra_fields == "ignore" else dict(unknown),
    )


def load_sets(configs: list[DataSetConfig], *, limits: DataConfig) -> list[LoadedSet]:
    """Read several data sets; rows that are set aside are logged with their reasons.

    Raises:
        DataError: a file is unreadable, a set is empty, or more than ``limits.max_bad_rows`` of
            its rows are bad or have a field that nobody knows; the message lists the first.
    """
    loaded: list[LoadedSet] = []
    problems: list[str] = []
    roots: dict[tuple[str, bool], PictureFiles] = {}
    for config in configs:
        key = (config.root, config.follow_links)
        try:
            roots[key] = roots.get(key) or files_of(config)
            one = load_set(config, max_frames=limits.media.max_frames, files=roots[key])
        except DataError as error:
            problems.append(str(error))
            continue
        log_bad_rows(one)
        problems += set_problems(one, config, max_bad_rows=limits.max_bad_rows)
        loaded.append(one)
    problems += repeated_names(configs)
    if problems:
        raise DataError("\n".join(problems))
    return loaded


def files_of(config: DataSetConfig) -> PictureFiles:
    """Return the picture files under a set's root.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data set '{config.name}': root folder {root} not found; set its `root`")
    return PictureFiles(root, follow_links=config.follow_links)


def repeated_names(configs: list[DataSetConfig]) -> list[str]:
    """Return what is wrong with the sets' names: they identify the sets."""
    names = Counter(config.name for config in configs)
    return [f"data set name '{n}' is used {k} times" for n, k in names.items() if k > 1]


def log_bad_rows(one: LoadedSet) -> None:
    """Log why rows were set aside, and how many."""
    for bad in one.bad_rows[:LISTED]:
        log.warning("quarantined: %s", bad.reason)
    if one.bad_rows:
        log.warning(
            "data set '%s': %d of %d rows set aside%s",
            one.name,
            len(one.bad_rows),
            one.read,
            f", the first {LISTED} listed" if len(one.bad_rows) > LISTED else "",
        )


def set_problems(one: LoadedSet, config: DataSetConfig, *, max_bad_rows: float) -> list[str]:
    """Return why a set cannot be used; its unknown fields are logged where it can."""
    if not one.read:
        return [f"data set '{one.name}': {config.path} holds no row"]
    problems = []
    if not one.pairs or len(one.bad_rows) > max_bad_rows * one.read:
        shown = "\n    ".join(bad.reason for bad in one.bad_rows[:5])
        limit = (
            f"more than data.max_bad_rows={max_bad_rows}; mend the file or raise the limit"
            if one.pairs
            else "so none is left; mend the file"
        )
        problems.append(
            f"data set '{one.name}': {len(one.bad_rows)} of {one.read} rows are bad, {limit}:"
            f"\n    {shown}"
        )
    if one.unknown_fields:
        known = KNOWN_FIELDS[config.format]
        most = sorted(one.unknown_fields.items(), key=lambda entry: (-entry[1], entry[0]))
        named = "; ".join(
            f"{name[:80]!a} in {count} of {one.read} rows" + _nearest(name, known)
            for name, count in most[:5]
        )
        more = f"; and {len(most) - 5} others" if len(most) > 5 else ""
        text = f"data set '{one.name}': fields that format '{config.format}' does not know: "
        if most[0][1] > max_bad_rows * one.read:
            problems.append(
                f"{text}{named}{more}; rename them, or set the set's extra_fields: ignore where "
                "they are there on purpose"
            )
        else:
            log.warning("%s%s%s; they are ignored", text, named, more)
    return problems


def _nearest(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name[:80], sorted(known), n=1)
    return f" (near '{near[0]}')" if near else ""


def _with_bar(rows: list[Row], what: str) -> Iterator[Row]:
    """Yield the rows; a progress bar shows once they take longer than seconds."""
    began, bar = time.monotonic(), None
    with ExitStack() as stack:
        for index, row in enumerate(rows):
            yield row
            if bar is None and time.monotonic() - began > BAR_AFTER_S:
                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                task = bar.add_task(what, total=len(rows))
            if bar is not None:
                bar.update(task, completed=index + 1)


class _Ids:
    """Keeps ids unique in a set: of rows that share one, only equal ones are left out."""

    def __init__(self) -> None:
        self._first: dict[str, Pair] = {}
        self._said: dict[str, set[Pair]] = {}
        """What the pairs of an id say, where there are several."""
        self._renamed: list[str] = []

    def unique(self, pairs: tuple[Pair, ...], where: str) -> list[Pair]:
        """Return a row's pairs, the row's number behind ids that other pairs of the set have.

        Raises:
            DataError: rows before say all of it under the same id.
        """
        fresh = [pair for pair in pairs if self._is_fresh(pair)]
        if not fresh:
            raise DataError(
                f"{where}, field 'id': duplicate: a row before says the same under id "
                f"'{pairs[0].pair_id[:80]}'; remove one"
            )
        kept = []
        for pair in fresh:
            unique = pair
            while unique.pair_id in self._first:
                unique = replace(unique, pair_id=f"{unique.pair_id}-{pair.row}")
            if unique is not pair:
                self._renamed.append(unique.pair_id)
            self._first[unique.pair_id] = unique
            kept.append(unique)
        return kept

    def _is_fresh(self, pair: Pair) -> bool:
        first = self._first.get(pair.pair_id)
        if first is None:
            return True
        said = self._said.setdefault(pair.pair_id, {_said(first)})
        before = len(said)
        said.add(_said(pair))
        return len(said) > before

    def tell(self, name: str) -> None:
        """Log once how many rows got another id."""
        if self._renamed:
            log.warning(
                "data set '%s': %d rows share their id with a row that says something else; their "
                "row number was put behind it, as in '%s'",
                name,
                len(self._renamed),
                self._renamed[0][:80],
            )


def _said(pair: Pair) -> Pair:
    """Return what a pair says, whatever its id and its place are."""
    return replace(pair, pair_id="", row=0)


def _tell_of_copies(name: str, files: PictureFiles, before: int) -> None:
    """Log how many picture files are copies of others, of those found since ``before``."""
    copies = list(files.copies.items())[before:]
    if copies:
        copy, first = copies[0]
        log.warning(
            "data set '%s': %d picture files have the same bytes as an earlier one (%s is %s); "
            "each counts as that one",
            name,
            len(copies),
            copy,
            first,
        )


_TrueBoxes = tuple[list[float], str]
"""Numbers of an item's true boxes as the row has them, and the picture."""


def _hint_at_units(name: str, boxes: list[_TrueBoxes]) -> None:
    """Warn where all boxes of a set look as if they were in another unit than thousandths."""
    numbers = [number for some, _ in boxes for number in some]
    unit = ""
    if numbers and max(numbers) <= 1:
        unit = "shares of the picture from 0 to 1"
    elif numbers and _within_pictures(boxes):
        unit = "pixels"
    if unit:
        log.warning(
            "data set '%s': its first %d true boxes look like %s; %s",
            name,
            len(numbers) // 4,
            unit,
            UNITS[Kind.IMAGE],
        )


def _within_pictures(boxes: list[_TrueBoxes]) -> bool:
    """Return whether many boxes all lie within the sizes of their small pictures."""
    seen = 0
    for numbers, uri in boxes:
        try:
            # Headers of the formats that data sets are made of: nothing is decoded.
            with Image.open(uri, formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
        except Exception:  # whatever a decoder raises: this is only a hint
            continue
        if max(width, height) > TELLING_SIZE:
            continue
        if max(numbers[::2]) > width or max(numbers[1::2]) > height:
            return False
        seen += len(numbers) // 4
        if seen >= TELLING_BOXES:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _RowReader:
    """One row with what is needed to name it in an error."""

    row: Row
    where: str
    config: DataSetConfig
    index: int
    files: PictureFiles
    max_frames: int
    boxes: list[_TrueBoxes]
    """True boxes of the whole set, added to."""

    def text(self, field: str, *, of: Row | None = None) -> str:
        value = (self.row if of is None else of).get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(field, "text", value)
        return self.whole(field, value)

    def whole(self, field: str, value: str) -> str:
        """Return a text that UTF-8 can write; JSON can spell half an emoji, `"\\ud83d"`."""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.where}, field '{field}': expected text, found half a character ({error}); "
                "mend the text"
            ) from error
        return value

    def name(self, field: str) -> str:
        """Return a text or whole number that names something."""
        value = self.row.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise self.wrong(field, "text or a whole number", value)
        return self.text(field)

    def flag(self, field: str) -> bool:
        """Return true or false, absent: false."""
        value = self.row.get(field)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(field, "true or false", value)
        return bool(value)

    def trace(self, field: str, item: Item) -> str:
        """Return a written trace that the grammar can use; others would be trained on as texts."""
        text = self.text(field)
        if not text.strip():
            return ""
        try:
            parse(text, kind=item.kind, num_frames=min(len(item.uris), self.max_frames))
        except TCoTError as error:
            raise DataError(
                f"{self.where}, field '{field}': not a usable trace: {error}; have it written "
                "again or empty the field"
            ) from error
        return text

    def refuse_error(self) -> None:
        """Refuse a row that its maker marked as failed."""
        value = self.row.get("error")
        if value:
            raise DataError(
                f"{self.where}, field 'error': expected none, found {reprlib.repr(value)}; make "
                "the row again or remove it"
            )

    def wrong(self, field: str, expected: str, value: Any) -> DataError:
        return DataError(
            f"{self.where}, field '{field}': expected {expected}, found {type(value).__name__}"
        )

    def texts(self, field: str, *, of: Row | None = None) -> list[str]:
        """Return a list of texts; absent ones are empty."""
        value = (self.row if of is None else of).get(field)
        if not isinstance(value, list) or not all(isinstance(one, str | None) for one in value):
            raise self.wrong(field, "a list of texts", value)
        return [self.whole(field, one or "") for one in value]

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

    def rounds(self, of: Row) -> list[tuple[str, str]]:
        """Return what human and gpt say, round by round; one that is silent: empty."""
        turns = of.get("conversations") or []
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise self.wrong("conversations", "a list of turns {from, value}", turns)
        rounds: list[tuple[str, str]] = []
        last = ""
        for turn in turns:
            speaker, said = self.text("from", of=turn), self.text("value", of=turn)
            if speaker not in ("human", "gpt") or speaker == last:
                raise DataError(
                    f"{self.where}, field 'conversations': expected turns {{from, value}} of "
                    f"'human' and 'gpt' one after the other, found {speaker[:40]!a} after "
                    f"'{last or 'nothing'}'; rewrite the turns"
                )
            if speaker == "human":
                rounds.append((said, ""))
            else:
                rounds[-1:] = [(rounds[-1][0] if last else "", said)]
            last = speaker
        return rounds

    def one_round(self, side: str, of: Row) -> tuple[str, str]:
        """Return what human and gpt say in a part with a single round, or none."""
        rounds = self.rounds(of)
        if len(rounds) > 1:
            raise DataError(
                f"{self.where}, field '{side}.conversations': expected one round of a human and a "
                f"gpt turn, found {len(rounds)}; write a row for each"
            )
        return rounds[0] if rounds else ("", "")

    def pair_id(self) -> str:
        return self.name("id") or f"{self.config.name}-{self.index}"

    def path(self, name: str, field: str) -> str:
        if not name:
            raise DataError(f"{self.where}, field '{field}': expected a path, found empty text")
        return self.files.path(name, where=f"{self.where}, field '{field}'")

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
            if not item.text and not item.uris:
                raise DataError(
                    f"{self.where}, field {fields}: the {side} is empty: no text and no picture"
                )
        return Pair(
            pair_id=self.pair_id(),
            source=self.config.name,
            row=self.index,
            query=query,
            target=target,
            label=clean(self.name("label")),
            query_trace=self.trace("query_cot", query),
            target_trace=self.trace("pos_cot", target),
            answer_known=self.flag(ANSWER_KNOWN),
            query_evidence=self.evidence("qry_evidence", query),
            target_evidence=self.evidence("pos_evidence", target),
            **more,
        )

    def evidence(self, field: str, item: Item) -> Cues:
        """Return the true evidence, key frames by their place among the frames that are shown."""
        value = self.row.get(field)
        if not value:
            return Cues()
        self._collect_boxes(value, item)
        try:
            cues = parse_evidence(value, kind=item.kind, num_frames=len(item.uris))
        except DataError as error:
            raise DataError(
                f"{self.where}, field '{field}': {error}; {UNITS[item.kind]}"
            ) from error
        if not cues.key_frames:
            return cues
        shown = sample_frames(tuple(range(len(item.uris))), self.max_frames)
        nearest = {
            min(range(len(shown)), key=lambda place: abs(shown[place] - frame))
            for frame in cues.key_frames
        }
        return replace(cues, key_frames=tuple(sorted(nearest)))

    def _collect_boxes(self, value: Any, item: Item) -> None:
        """Remember boxes of four numbers, whatever their unit is."""
        if item.kind not in (Kind.IMAGE, Kind.PAGE) or not isinstance(value, dict):
            return
        entry = value.get(CUE_KEYS[item.kind])
        some = (
            entry if isinstance(entry, list) and entry and isinstance(entry[0], list) else [entry]
        )
        for box in some:
            if isinstance(box, list) and len(box) == 4 and len(self.boxes) < SAMPLED_BOXES:
                numbers = [n for n in box if isinstance(n, int | float) and n == n]
                if len(numbers) == 4:
                    self.boxes.append((numbers, item.uris[0]))


@lru_cache(1 << 14)
def clean(text: str) -> str:
    """Return a text as models read it: without picture placeholders and blanks at its ends.

    Line ends become one character and letters composed ones (NFC): tokenizers of the Qwen family
    do the latter themselves, and files of different systems differ in nothing else.
    """
    text = _PLACEHOLDER.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text).strip()


def _read_mmeb(reader: _RowReader) -> tuple[Pair, ...]:
    query = reader.picture_item(reader.text("qry"), reader.text("qry_image_path"), "qry_image_path")
    target = reader.picture_item(
        reader.text("pos_text"), reader.text("pos_image_path"), "pos_image_path"
    )
    negative = reader.picture_item(
        reader.text("neg_text"), reader.text("neg_image_path"), "neg_image_path"
    )
    negatives = (negative,) if negative.text or negative.uris else ()
    return (reader.pair(query, target, hard_negatives=negatives),)


def _read_llavahound(reader: _RowReader) -> tuple[Pair, ...]:
    """Video side: its human turn and frames. Text side: its gpt turn, which is the content."""
    items: dict[str, Item] = {}
    for side in ("qry", "pos"):
        part = reader.row.get(side)
        if not isinstance(part, dict):
            raise DataError(
                f"{reader.where}, field '{side}': expected an object with conversations, found "
                f"{type(part).__name__}"
            )
        human, gpt = reader.one_round(side, part)
        frames = reader.paths("video", of=part)
        if frames and frames != BLANK_VIDEO:
            uris = tuple(reader.path(frame, f"{side}.video") for frame in frames)
            items[side] = Item(text=clean(human), kind=Kind.VIDEO, uris=uris)
        else:
            items[side] = Item(text=clean(gpt) or clean(human))
    return (reader.pair(items["qry"], items["pos"]),)


def _read_mmeb_eval(reader: _RowReader) -> tuple[Pair, ...]:
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
        if not clean(text) and not path:
            raise DataError(
                f"{reader.where}, field 'tgt_text[{index}]': empty: no text and no picture"
            )
    return (reader.pair(query, candidates[0], candidates=candidates),)


def _read_caption(reader: _RowReader) -> tuple[Pair, ...]:
    """Return a pair for each round: its question on the picture, without the rounds before."""
    rounds = reader.rounds(reader.row) or [("", "")]
    if not all(gpt.strip() for _, gpt in rounds):
        raise DataError(
            f"{reader.where}, field 'conversations': expected a gpt turn in each round, found none"
        )
    image = reader.row.get("image")
    names = [image] if image and isinstance(image, str) else reader.paths("image", of=reader.row)
    uris = tuple(reader.path(reader.whole("image", name), "image") for name in names)
    kind = Kind.TEXT if not uris else Kind.VIDEO if len(uris) > 1 else Kind(reader.config.kind)
    pair_id = reader.pair_id()
    return tuple(
        Pair(
            pair_id=pair_id if len(rounds) == 1 else f"{pair_id}-round-{number}",
            source=reader.config.name,
            row=reader.index,
            query=Item(text=clean(human), kind=kind, uris=uris),
            target=Item(text=""),
            query_trace=gpt,
        )
        for number, (human, gpt) in enumerate(rounds, start=1)
    )


_READERS: dict[str, Callable[[_RowReader], tuple[Pair, ...]]] = {
    "mmeb": _read_mmeb,
    "llavahound": _read_llavahound,
    "mmeb_eval": _read_mmeb_eval,
    "caption": _read_caption,
}
