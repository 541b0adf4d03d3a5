"""Rows of training and evaluation files to pairs; every refusal names file, row and field.

Formats, a row of each in `data/README.md`: `mmeb` (MMEB-train), `llavahound` (LLaVA-Hound, for
video), `mmeb_eval` (MMEB-V2 image rows, gold at index 0), `colpali` (the training sets of ViDoRe
and VisRAG), `beir` (queries, corpus and qrels; each qrel is a row) and `caption` (LLaVA-style,
supervised only). All may have an `id`, and an `error`, with which a row is refused. All but the
last may have `label` (targets of a set with the same one are equal), `query_cot`, `pos_cot`,
`cot_knows_answer`, `qry_evidence` and `pos_evidence`.

Texts are normalised here and nowhere else: an item's text is what models read, and its identity.
"""

import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from configs.common import DataSetConfig
from data.containers.addresses import parse_address
from data.containers.video_files import FRAME_RATE
from data.containers.video_files import SUFFIXES as VIDEO_SUFFIXES
from data.cues import CUE_KEYS, parse_evidence
from data.errors import DataError, RowError, TCoTError
from data.media.frames import sample_frames
from data.rows.beir_rows import CORPUS, IDS, MAX_GRADE, QUERIES
from data.rows.picture_paths import PictureFiles
from data.rows.row_files import PictureCell
from data.rows.rows import FileRow
from data.tcot import parse
from data.types import Cues, Item, Kind, Pair, Side

T = TypeVar("T")
BLANK_VIDEO = ["images/blank.jpg"]
UNITS = {
    Kind.TEXT: "text_keywords is a list of words",
    Kind.IMAGE: "a box is [x1, y1, x2, y2] in thousandths of the picture's width and height",
    Kind.PAGE: "a box is [x1, y1, x2, y2] in thousandths of the page's width and height",
    Kind.VIDEO: "key_frames is a list of frames, counted from 1 among all that the row names, or "
    "among all of its video file",
}
"""What `qry_evidence` and `pos_evidence` hold."""
SAMPLED_BOXES = 256
"""True boxes of a set that are looked at for their unit."""
_FIELDS = {
    "mmeb": ("'qry' or 'qry_image_path'", "'pos_text' or 'pos_image_path'"),
    "llavahound": ("'qry'", "'pos'"),
    "mmeb_eval": ("'qry_text' or 'qry_img_path'", "'tgt_text' or 'tgt_img_path'"),
    "colpali": ("'query'", "'image'"),
    "beir": ("'query'", "'image' or 'text'"),
}
"""Where each format's query and target stand."""
PICTURE_FIELDS = {
    "mmeb": ("qry_image_path", "pos_image_path", "neg_image_path"),
    "llavahound": ("qry.video", "pos.video", ""),
    "mmeb_eval": ("qry_img_path", "tgt_img_path", "tgt_img_path"),
    "colpali": ("", "image", ""),
    "beir": ("", "corpus.image", "corpus.image"),
    "caption": ("image", "", ""),
}
"""Where each format's pictures stand: of the query, of the target, of other targets."""
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
    | {"qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"}
    | {"qry_inst", "pos_inst"},
    "llavahound": _PAIR_FIELDS | {"dataset_name", "qry", "pos"} | {"video", "conversations"},
    "mmeb_eval": _PAIR_FIELDS
    | {"qry_inst", "qry_text", "qry_img_path", "tgt_inst", "tgt_text", "tgt_img_path"},
    "colpali": _PAIR_FIELDS
    | {"query", "image", "image_filename", "answer", "source", "options", "page"}
    | {"model", "prompt", "answer_type"},
    "beir": _PAIR_FIELDS | {"query-id", "corpus-id", "score", "answer"} | {"queries", "corpus"},
    "caption": frozenset(("id", "image", "conversations", "error")),
}
_NO_TEXT = frozenset(("qry_evidence", "pos_evidence", ANSWER_KNOWN))
JSON_FIELDS = {
    "mmeb": _NO_TEXT,
    "llavahound": _NO_TEXT | {"qry", "pos"} | {"video", "conversations"},
    "mmeb_eval": _NO_TEXT | {"tgt_text", "tgt_img_path"},
    "colpali": _NO_TEXT,
    "beir": _NO_TEXT,
    "caption": frozenset(("image", "conversations")),
}
"""Fields of each format that are no text: in a table their cells may hold JSON."""
KIND_OF_FORMAT = {"llavahound": Kind.VIDEO, "colpali": Kind.PAGE, "beir": Kind.PAGE}
"""What single media are in formats where it is not the set's `kind`."""
_SIDES = ("qry", "pos")
"""The two parts of a `llavahound` row."""
_TELLING_FIELDS = (
    ("beir", {"query-id"}),
    ("beir", {"corpus-id"}),
    ("llavahound", {"video", "conversations"}),
    ("mmeb_eval", {"tgt_text"}),
    ("mmeb_eval", {"tgt_img_path"}),
    ("mmeb", {"pos_text"}),
    ("mmeb", {"pos_image_path"}),
    ("caption", {"conversations"}),
    ("colpali", {"query", "image"}),
)
"""Fields that only rows of a format have, the first that fit count."""
_MEND = "mend or remove the row"
_PLACEHOLDER = re.compile(r"<\|image_\d+\|>|<video>|<image>")

TrueBoxes = tuple[list[float], str]
"""Numbers of an item's true boxes as the row has them, and the picture."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """One row with what is needed to name it in an error; `pairs` is what it says."""

    row: FileRow
    where: str
    config: DataSetConfig
    index: int
    files: PictureFiles
    max_frames: int
    boxes: list[TrueBoxes]
    """True boxes of the whole set, added to."""
    as_video: bool = True
    """Whether a model sees a video as one, not as separate pictures."""
    whole_videos: set[str] = field(default_factory=set)
    """Video files that the row names whole, by their paths."""
    field_prefix: str = ""
    """Put before each field's name in messages: `qry.` if ``row`` is the part `qry` of a row."""

    def pairs(self) -> tuple[Pair, ...]:
        """Return the row's pairs: one, but for captions of several rounds.

        Raises:
            DataError: the row cannot be used; the message names file, row and field.
        """
        self.refuse_error()
        return tuple(self._timed_pair(pair) for pair in _READERS[self.config.format](self))

    def shown(self, frames: Sequence[T]) -> tuple[T, ...]:
        """Return those of a video's frames that are shown."""
        return sample_frames(frames, self.max_frames, paired=self.as_video)

    def _timed_pair(self, pair: Pair) -> Pair:
        """Return a pair whose videos are shown as such: each with its frames' times."""
        items = (pair.query, pair.target, *pair.hard_negatives, *pair.candidates)
        if not self.as_video or all(item.kind is not Kind.VIDEO for item in items):
            return pair
        return replace(
            pair,
            query=self.timed(pair.query),
            target=self.timed(pair.target),
            hard_negatives=tuple(map(self.timed, pair.hard_negatives)),
            candidates=tuple(map(self.timed, pair.candidates)),
        )

    def timed(self, item: Item) -> Item:
        """Return an item with what is shown of its video and when, where a model sees it as one."""
        if item.kind is not Kind.VIDEO or not self.as_video:
            return item
        uris = self.shown(item.uris)
        return replace(item, uris=uris, times=self._times(uris))

    def _times(self, uris: tuple[str, ...]) -> tuple[float, ...]:
        """Return when frames are shown; frames that are no file's have no times of their own."""
        addresses = [parse_address(uri) for uri in uris]
        numbers = [address.frame for address in addresses if address.frame is not None]
        if len(numbers) < len(uris) or len({address.path for address in addresses}) > 1:
            return tuple(place / FRAME_RATE for place in range(len(uris)))
        return self.files.frame_times(addresses[0].path, numbers, where=self.where)

    def text(self, field: str, *, of: FileRow | None = None) -> str:
        value = (self.row if of is None else of).get(field)
        if value is None:
            return ""
        if not isinstance(value, str) or isinstance(value, PictureCell):
            raise self.wrong(field, "text", value)
        return self.whole(field, value)

    def read(self, text: str) -> str:
        """Return an item's text as models read it."""
        return clean(text, raw=self.config.raw_text)

    def picture(self, field: str) -> str:
        """Return the path of a picture, or the address of its cell; empty: none."""
        value = self.row.get(field)
        return value if isinstance(value, PictureCell) else self.text(field)

    def whole(self, field: str, value: str) -> str:
        """Return a text that UTF-8 can write; JSON can spell half an emoji, `"\\ud83d"`."""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.refused(
                field, f"expected text, found half a character ({error}); mend the text"
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
            parse(text, kind=item.kind, num_frames=len(self.shown(item.uris)))
        except TCoTError as error:
            raise self.refused(
                field, f"not a usable trace: {error}; have it written again or empty the field"
            ) from error
        return text

    def refused(self, field: str, text: str) -> RowError:
        """Return the error that blames a field, which has no quotes around its name."""
        field = self.field_prefix + field
        return RowError(f"{self.where}, field '{field}': {text}", field)

    @contextmanager
    def blaming(self, field: str) -> Iterator[str]:
        """Yield "<file> row <n>, field '<field>'", for messages.

        Raises:
            RowError: of this field, in place of a `DataError` that is raised inside.
        """
        field = self.field_prefix + field
        try:
            yield f"{self.where}, field '{field}'"
        except DataError as error:
            raise RowError(str(error), field) from error

    def refuse_error(self) -> None:
        """Refuse a row that its maker marked as failed."""
        value = self.row.get("error")
        if value:
            raise self.refused(
                "error",
                f"expected none, found {reprlib.repr(value)}; make the row again or remove it",
            )

    def wrong(self, field: str, expected: str, value: Any) -> RowError:
        kind = "bytes" if isinstance(value, PictureCell) else type(value).__name__
        return self.refused(field, f"expected {expected}, found {kind}; {_MEND}")

    def texts(self, field: str) -> list[str]:
        """Return a list of texts; absent ones are empty."""
        value = self.row.get(field)
        if not isinstance(value, list) or not all(isinstance(line, str | None) for line in value):
            raise self.wrong(field, "a list of texts", value)
        return [self.whole(field, line or "") for line in value]

    def paths(self, field: str) -> list[str]:
        """Return a list of picture paths; absent: none.

        A list of none is refused: it says that there is a video, and one without frames. A text is
        the path of a video file or of a folder of frames.
        """
        value = self.row.get(field)
        if value in (None, ""):
            return []
        if not isinstance(value, list | str):
            raise self.wrong(field, "a path or a list of paths", value)
        if isinstance(value, str):
            name = self.whole(field, value)
            if not _is_video_file(name) and self.folder(name, field) is None:
                raise self.refused(
                    field,
                    f"expected a video file ({', '.join(sorted(VIDEO_SUFFIXES))}), a folder of "
                    f"frames or a list of texts, found str '{name[:200]}', which is none of these; "
                    "check the path and the set's root",
                )
            return [name]
        paths = self.texts(field)
        if not paths:
            raise self.refused(
                field,
                "expected paths, found an empty list; leave the field out where there is no "
                "picture",
            )
        return paths

    def rounds(self) -> list[tuple[str, str]]:
        """Return what human and gpt say, round by round; one that is silent: empty."""
        turns = self.row.get("conversations") or []
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise self.wrong("conversations", "a list of turns {from, value}", turns)
        rounds: list[tuple[str, str]] = []
        last = ""
        for turn in turns:
            speaker, said = self.text("from", of=turn), self.text("value", of=turn)
            if speaker not in ("human", "gpt") or speaker == last:
                raise self.refused(
                    "conversations",
                    "expected turns {from, value} of 'human' and 'gpt' one after the other, found "
                    f"{speaker[:40]!a} after '{last or 'nothing'}'; rewrite the turns",
                )
            if speaker == "human":
                rounds.append((said, ""))
            else:
                rounds[-1:] = [(rounds[-1][0] if last else "", said)]
            last = speaker
        return rounds

    def one_round(self) -> tuple[str, str]:
        """Return what human and gpt say in conversations of a single round, or none."""
        rounds = self.rounds()
        if len(rounds) > 1:
            raise self.refused(
                "conversations",
                f"expected one round of a human and a gpt turn, found {len(rounds)}; write a row "
                "for each",
            )
        return rounds[0] if rounds else ("", "")

    def pair_id(self) -> str:
        return self.name("id") or f"{self.config.name}-{self.index}"

    def path(self, name: str, field: str) -> str:
        if not name:
            raise self.refused(field, f"expected a path, found empty text; {_MEND}")
        with self.blaming(field) as where:
            if isinstance(name, PictureCell):
                return self.files.cell(name, where=where)
            return self.files.path(name, where=where)

    def folder(self, name: str, field: str) -> list[str] | None:
        """Return the names of a folder's picture files; None: ``name`` is no folder."""
        with self.blaming(field) as where:
            return self.files.folder(name, where=where)

    def frame_count(self, path: str, field: str) -> int:
        """Return how many frames a video file has."""
        with self.blaming(field) as where:
            return self.files.frame_count(path, where=where)

    def picture_item(
        self, text: str, name: str, field: str, kind: Kind | None = None, *, inst: str = ""
    ) -> Item:
        """Return a text item, or a picture item where a path is given; its kind is the set's.

        ``inst`` is the field of its instruction, if the format has one.
        """
        text, instruction = self.read(text), clean(self.text(inst)) if inst else ""
        if not name:
            return Item(text=text, instruction=instruction)
        kind = kind or Kind(self.config.kind)
        uris = (self.path(name, field),)
        return Item(text=text, kind=kind, uris=uris, instruction=instruction)

    def frames(self, names: list[str], field: str) -> tuple[str, ...]:
        """Return the frames that names stand for: pictures, a folder of them, or a video file.

        Of a video file these are the frames that are shown, at most ``max_frames``.
        """
        if len(names) == 1 and names[0]:
            folder = self.folder(names[0], field)
            if folder is None and _is_video_file(names[0]):
                path = self.path(names[0], field)
                self.whole_videos.add(path)
                numbers = range(self.frame_count(path, field))
                return tuple(f"{path}#frame={n}" for n in self.shown(numbers))
            names = folder or names
        elif videos := [name for name in names if _is_video_file(name)]:
            raise self.refused(
                field,
                f"expected pictures or one video file, found {len(names)} paths with "
                f"'{videos[0][:200]}' among them; name the video alone, or frames of it as in "
                "'a.mp4#frame=0'",
            )
        return tuple(self.path(name, field) for name in names)

    def pair(self, query: Item, target: Item, **more: Any) -> Pair:
        for side, item, fields in zip(
            Side, (query, target), _FIELDS[self.config.format], strict=True
        ):
            if not item.instructed_text() and not item.uris:
                raise RowError(
                    f"{self.where}, field {fields}: the {side} is empty: no text and no "
                    f"picture; {_MEND}",
                    fields.replace("'", ""),
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
            frames, shown = self._numbers(item, field)
            cues = parse_evidence(value, kind=item.kind, num_frames=frames)
        except DataError as error:
            raise self.refused(field, f"{error}; {UNITS[item.kind]}") from error
        if not cues.key_frames:
            return cues
        nearest = {
            min(range(len(shown)), key=lambda place: abs(shown[place] - frame))
            for frame in cues.key_frames
        }
        return replace(cues, key_frames=tuple(sorted(nearest)))

    def _numbers(self, item: Item, field: str) -> tuple[int, tuple[int, ...]]:
        """Return how many frames key frames may name, and the numbers of those shown, from 0.

        Where the row names a video file, they are the file's; frames that the row names one by one
        are numbered in its order.
        """
        addresses = [parse_address(uri) for uri in item.uris]
        numbers = tuple(a.frame for a in addresses if a.frame is not None)
        paths = {address.path for address in addresses}
        if len(paths) == 1 and paths <= self.whole_videos:
            return self.frame_count(paths.pop(), field), numbers
        frames = len(item.uris)
        return frames, self.shown(range(frames))

    def _collect_boxes(self, value: Any, item: Item) -> None:
        """Remember boxes of four numbers, whatever their unit is."""
        if item.kind not in (Kind.IMAGE, Kind.PAGE) or not isinstance(value, dict):
            return
        entry = value.get(CUE_KEYS[item.kind])
        boxes = (
            entry if isinstance(entry, list) and entry and isinstance(entry[0], list) else [entry]
        )
        for box in boxes:
            if isinstance(box, list) and len(box) == 4 and len(self.boxes) < SAMPLED_BOXES:
                numbers = [n for n in box if isinstance(n, int | float) and n == n]
                if len(numbers) == 4:
                    self.boxes.append((numbers, item.uris[0]))


def _is_video_file(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def format_told(row: FileRow) -> str:
    """Return the format that a row plainly has; empty: it may be any."""
    sides = [part for side in _SIDES if isinstance(part := row.get(side), dict)]
    if any("conversations" in part for part in sides):
        return "llavahound"
    return next((form for form, names in _TELLING_FIELDS if names <= row.keys()), "")


@lru_cache(1 << 14)
def clean(text: str, *, raw: bool = False) -> str:
    """Return a text as models read it: without picture placeholders and blanks at its ends.

    Line ends become one character and letters composed ones (NFC): tokenizers of the Qwen family
    do the latter themselves, and files of different systems differ in nothing else. ``raw`` leaves
    the white space of a text alone, unless the text is nothing else.
    """
    text = unicodedata.normalize("NFC", _PLACEHOLDER.sub("", text))
    bare = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return text if raw and bare else bare


def _read_mmeb(reader: RowReader) -> tuple[Pair, ...]:
    query = reader.picture_item(
        reader.text("qry"), reader.picture("qry_image_path"), "qry_image_path", inst="qry_inst"
    )
    target = reader.picture_item(
        reader.text("pos_text"),
        reader.picture("pos_image_path"),
        "pos_image_path",
        inst="pos_inst",
    )
    negative = reader.picture_item(
        reader.text("neg_text"),
        reader.picture("neg_image_path"),
        "neg_image_path",
        inst="pos_inst",
    )
    negatives = (negative,) if negative.text or negative.uris else ()
    return (reader.pair(query, target, hard_negatives=negatives),)


def _read_llavahound(reader: RowReader) -> tuple[Pair, ...]:
    """Video side: its human turn and frames. Text side: its gpt turn, which is the content.

    A row without sides is one of LLaVA-Hound's own: a video with a question and its answer.
    """
    if reader.row.get("conversations") is not None:
        human, gpt = reader.one_round()
        names = reader.paths("video")
        if not names:
            raise reader.refused(
                "video", f"expected a path or a list of paths, found none; {_MEND}"
            )
        uris = reader.frames(names, "video")
        query = Item(text=reader.read(human), kind=Kind.VIDEO, uris=uris)
        return (reader.pair(query, Item(text=reader.read(gpt))),)
    items: dict[str, Item] = {}
    for side in _SIDES:
        part = reader.row.get(side)
        if not isinstance(part, dict):
            raise reader.wrong(side, "an object with conversations", part)
        of_side = replace(reader, row=part, field_prefix=f"{side}.")
        human, gpt = of_side.one_round()
        frames = of_side.paths("video")
        if frames and frames != BLANK_VIDEO:
            uris = of_side.frames(frames, "video")
            items[side] = Item(text=reader.read(human), kind=Kind.VIDEO, uris=uris)
        else:
            items[side] = Item(text=reader.read(gpt) or reader.read(human))
    return (reader.pair(items["qry"], items["pos"]),)


def _read_mmeb_eval(reader: RowReader) -> tuple[Pair, ...]:
    query = reader.picture_item(
        reader.text("qry_text"), reader.picture("qry_img_path"), "qry_img_path", inst="qry_inst"
    )
    texts, paths = reader.texts("tgt_text"), reader.texts("tgt_img_path")
    if len(texts) != len(paths):
        raise RowError(
            f"{reader.where}, fields 'tgt_text' and 'tgt_img_path': expected lists of one length, "
            f"found {len(texts)} and {len(paths)}; {_MEND}",
            "tgt_text and tgt_img_path",
        )
    candidates = tuple(
        reader.picture_item(text, path, "tgt_img_path", inst="tgt_inst")
        for text, path in zip(texts, paths, strict=True)
    )
    if not candidates:
        raise reader.refused("tgt_text", f"no candidate; {_MEND}")
    for index, (text, path) in enumerate(zip(texts, paths, strict=True)):
        if not clean(text) and not path:
            raise reader.refused(
                "tgt_text", f"entry {index}: empty: no text and no picture; {_MEND}"
            )
    return (reader.pair(query, candidates[0], candidates=candidates),)


def _read_colpali(reader: RowReader) -> tuple[Pair, ...]:
    """Return the query and its page; pages with the same file name and source are equal."""
    query = Item(text=reader.read(reader.text("query")))
    page = reader.picture_item("", reader.picture("image"), "image", Kind.PAGE)
    pair = reader.pair(query, page)
    file, source = reader.text("image_filename"), reader.text("source")
    return (replace(pair, label=pair.label or (file and clean(f"{source}/{file}"))),)


def _read_beir(reader: RowReader) -> tuple[Pair, ...]:
    score = reader.row.get("score")
    if not isinstance(score, int | float) or not 0 < score <= MAX_GRADE:
        raise reader.refused(
            "score",
            f"expected a number above 0 and up to {MAX_GRADE}, found {reprlib.repr(score)}; mend "
            "or remove the row",
        )
    for part, column in IDS.items():
        if part not in reader.row:
            raise reader.refused(
                column,
                f"expected the id of a row in the set's {part}, found "
                f"{reprlib.repr(reader.row.get(column))}; remove the row, or add what it names",
            )
    query = Item(text=reader.read(reader.text("query", of=reader.row[QUERIES])))
    entry = f"{reader.where}, corpus-id {reprlib.repr(reader.row[IDS[CORPUS]])}"
    page = corpus_item(replace(reader, row=reader.row[CORPUS], where=entry))
    query_id = reader.name(IDS[QUERIES])
    return (reader.pair(query, page, query_id=query_id, grade=max(1, round(score))),)


def corpus_item(entry: RowReader) -> Item:
    """Return what a row of a corpus shows: its picture, which is a page, and title and text.

    Raises:
        DataError: it cannot be used, or is empty; the message names file, row and field.
    """
    text = " ".join(filter(None, (entry.read(entry.text(name)) for name in ("title", "text"))))
    item = entry.picture_item(text, entry.picture("image"), "image", Kind.PAGE)
    if not item.text and not item.uris:
        fields = _FIELDS["beir"][1]
        raise RowError(
            f"{entry.where}, field {fields}: the entry is empty: no text and no picture; "
            "mend or remove it",
            fields.replace("'", ""),
        )
    return item


def _read_caption(reader: RowReader) -> tuple[Pair, ...]:
    """Return a pair for each round: its question on the picture, without the rounds before."""
    rounds = reader.rounds() or [("", "")]
    if not all(gpt.strip() for _, gpt in rounds):
        raise reader.refused(
            "conversations", f"expected a gpt turn in each round, found none; {_MEND}"
        )
    image = reader.row.get("image")
    if image and isinstance(image, str):
        names = [reader.whole("image", image)]
    else:
        names = reader.paths("image")
    uris = reader.frames(names, "image")
    kind = Kind.TEXT if not uris else Kind.VIDEO if len(uris) > 1 else Kind(reader.config.kind)
    pair_id = reader.pair_id()
    return tuple(
        Pair(
            pair_id=pair_id if len(rounds) == 1 else f"{pair_id}-round-{number}",
            source=reader.config.name,
            row=reader.index,
            query=Item(text=reader.read(human), kind=kind, uris=uris),
            target=Item(text=""),
            query_trace=gpt,
        )
        for number, (human, gpt) in enumerate(rounds, start=1)
    )


_READERS: dict[str, Callable[[RowReader], tuple[Pair, ...]]] = {
    "mmeb": _read_mmeb,
    "llavahound": _read_llavahound,
    "mmeb_eval": _read_mmeb_eval,
    "colpali": _read_colpali,
    "beir": _read_beir,
    "caption": _read_caption,
}
