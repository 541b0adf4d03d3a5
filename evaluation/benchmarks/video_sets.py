"""The video sets of MMEB-V2 but for questions: classification, retrieval, moments."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from data.errors import DataError
from data.rows.picture_paths import natural_order
from data.rows.row_formats import RowReader
from data.rows.trace_files import row_name
from data.types import Item
from evaluation.benchmarks.reading import NOTHING, SetReader, filled, unlike
from evaluation.benchmarks.tables import video_labels
from evaluation.benchmarks.texts import query_item, sought_after, target_item

log = logging.getLogger(__name__)
LABELS_SHOWN = 5
"""Labels that a message names."""
CLIP_OF_TEXT = "Find the clip that corresponds to the given text."
CLIP_OF_PICTURE = "Select the video clip that aligns with the given text and image."
CLIP_OF_VIDEO = "Find the clip that corresponds to the given sentence and video segment."
"""Instructions of MomentSeeker, by what the query shows beside its text."""
_QUERY, _RIGHT = "query", "positive"
"""Folders of a moment set's video: its own frames, and how those of the right clips begin."""


def read_classes(reader: SetReader) -> None:
    """A video is ranked over all labels of the set; a candidate's key is its text.

    Labels of rows that the published list lacks are candidates too; they are counted and named.
    """
    rows = list(reader.rows(reader.places[0], "video_id", "pos_text"))
    labels = [filled(row, "pos_text") for row in rows]
    listed = video_labels(reader.benchmark_set.name)
    known = set(listed)
    unlisted = Counter(label for label in labels if label not in known)
    if unlisted:
        more = ", ..." if len(unlisted) > LABELS_SHOWN else ""
        log.warning(
            "%s: %d rows have a label that is not in the published list, %d labels in all: %s%s; "
            "each is one more candidate, so scores may not be comparable; check the rows",
            reader.benchmark_set.name,
            unlisted.total(),
            len(unlisted),
            ", ".join(ascii(label[:80]) for label in list(unlisted)[:LABELS_SHOWN]),
            more,
        )
    _add_labels(reader, (*listed, *labels))
    for row, label in zip(rows, labels, strict=True):
        item = _class_query(reader, row)
        named = row_name(row.row, ("video_id",))
        reader.add_query(reader.row_id(), item, {label: 1}, (), row.where, named=named)


def read_own_classes(reader: SetReader) -> None:
    """A video is ranked over the labels in its row, the right one among them."""
    for row in reader.rows(reader.places[0], "video_id", "pos_text", "neg_text"):
        label, labels = filled(row, "pos_text"), row.texts("neg_text")
        if label not in labels:
            raise unlike(row, "neg_text", f"the label {label[:80]!a} among the others", labels)
        _add_labels(reader, labels)
        item = _class_query(reader, row)
        named = row_name(row.row, ("video_id",))
        reader.add_query(reader.row_id(), item, {label: 1}, labels, row.where, named=named)


def read_captions(
    reader: SetReader, *, name: str, text: str, first: bool = False, stem: bool = False
) -> None:
    """Captions that seek their video among all of the set; a candidate's key is its name.

    ``name``, ``text``: the fields of the video's name and of its caption. ``first``: the field has
    a list of captions, of which the first counts. ``stem``: the name is that of a video file.
    """
    benchmark_set = reader.benchmark_set
    for row in reader.rows(reader.places[0], name, text):
        key = filled(row, name)
        if stem:
            key = _stem(key)
        texts = row.texts(text) if first else [filled(row, text)]
        if not texts:
            raise unlike(row, text, "captions", "none")
        if key not in reader.candidates:
            reader.candidates[key] = _clip(reader, row, key)
        glued = sought_after(benchmark_set.instruction, texts[0])
        item = query_item(reader.prompts, benchmark_set.instruction, texts[0], glued=glued)
        named = row_name(row.row, (text,))
        reader.add_query(reader.row_id(), item, {key: 1}, (), row.where, named=named)


def read_moments(reader: SetReader) -> None:
    """A text and a whole video seek a clip among those of the video; a key is a clip's folder."""
    benchmark_set = reader.benchmark_set
    for row in reader.rows(reader.places[0], "query", "video_path"):
        text, video = filled(row, "query"), _stem(filled(row, "video_path"))
        whole = reader.video(f"{video}/{_QUERY}", row.where)
        item = query_item(
            reader.prompts,
            benchmark_set.instruction,
            text,
            glued=sought_after(benchmark_set.instruction, text),
            **whole._asdict(),
        )
        keys = [f"{video}/{clip}" for clip in _clips(reader, video, row)]
        for key in keys:
            if key not in reader.candidates:
                reader.candidates[key] = _clip(reader, row, key)
        right = [key for key in keys if key.startswith(f"{video}/{_RIGHT}")]
        if keys and not right:
            raise unlike(row, "video_path", f"a clip '{_RIGHT}...' in the folder '{video}'", keys)
        if keys:
            grades = dict.fromkeys(right, 1)
            named = row_name(row.row, ("query", "video_path"))
            reader.add_query(reader.row_id(), item, grades, keys, row.where, named=named)


def read_moment_seeker(reader: SetReader) -> None:
    """A text, alone or with a picture or a video, seeks clips; a key is a clip's folder."""
    needed = ("query", "input_frames", "positive_frames", "negative_frames")
    for row in reader.rows(reader.places[0], *needed):
        text, beside = row.text("query"), row.text("input_frames")
        if beside.endswith(".mp4"):
            instruction, shown = CLIP_OF_VIDEO, reader.video(_frames_of(beside), row.where)
        elif beside.endswith(".jpg"):
            instruction, shown = CLIP_OF_PICTURE, reader.picture(f"query_{beside}", row.where)
        elif beside:
            raise unlike(row, "input_frames", "a name of a .jpg or .mp4 file", beside)
        else:
            instruction, shown = CLIP_OF_TEXT, NOTHING
        glued = sought_after(instruction, text)
        item = query_item(reader.prompts, instruction, text, glued=glued, **shown._asdict())
        positive, negative = (_paths(row, f"{kind}_frames") for kind in ("positive", "negative"))
        paths = {_frames_of(path): path for path in (*positive, *negative)}
        keys = list(paths)
        for key, path in paths.items():
            if key not in reader.candidates:
                reader.candidates[key] = _clip(reader, row, key)
                reader.names[key] = path
        grades = {_frames_of(path): 1 for path in positive}
        named = row_name(row.row, ("query", "input_frames"))
        reader.add_query(reader.row_id(), item, grades, keys, row.where, named=named)


def _add_labels(reader: SetReader, labels: Iterable[str]) -> None:
    for label in labels:
        if label not in reader.candidates:
            reader.candidates[label] = target_item(reader.prompts, vlm2vec=label, text=label)


def _class_query(reader: SetReader, row: RowReader) -> Item:
    instruction = reader.benchmark_set.instruction
    shown = reader.video(filled(row, "video_id"), row.where)
    return query_item(reader.prompts, instruction, "", glued=instruction, **shown._asdict())


def _clip(reader: SetReader, row: RowReader, name: str) -> Item:
    shown = reader.video(name, row.where)
    return target_item(reader.prompts, vlm2vec=reader.benchmark_set.target_text, **shown._asdict())


def _clips(reader: SetReader, video: str, row: RowReader) -> list[str]:
    """Return the names of the folders of a video's clips in natural order."""
    folder = reader.files.base / video
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []  # the video's own frames are noted as absent
    except ValueError as error:
        raise unlike(row, "video_path", "the name of a folder", video) from error
    clips = sorted((name for name in names if name != _QUERY), key=natural_order)
    if not clips:
        raise DataError(
            f"{row.where}: expected folders of clips in {folder}, found none; unpack "
            f"{reader.benchmark_set.archive} again"
        )
    return clips


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _frames_of(path: str) -> str:
    """Return the folder of the frames of a video file of MomentSeeker."""
    return "video_frames/" + path.replace("/", "_").split(".mp4")[0]


def _paths(row: RowReader, field: str) -> list[str]:
    value = row.row.get(field)
    entries = value if isinstance(value, list) else [value]
    paths = [entry.get("output_path") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(path, str) and path for path in paths):
        raise unlike(row, field, "a list of objects with 'output_path'", value)
    return [row.whole(field, path) for path in paths]


PARSERS: dict[str, Callable[[SetReader], None]] = {
    "video_classification": read_classes,
    "ssv2": read_own_classes,
    "msrvtt": partial(read_captions, name="video_id", text="caption"),
    "msvd": partial(read_captions, name="video_id", text="caption", first=True),
    "didemo": partial(read_captions, name="video", text="caption", stem=True),
    "vatex": partial(read_captions, name="videoID", text="enCap", first=True),
    "youcook2": partial(read_captions, name="id", text="sentence"),
    "moment_retrieval": read_moments,
    "momentseeker": read_moment_seeker,
}
