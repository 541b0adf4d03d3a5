"""What a cue is: its JSON value to `Cues` and back, its limits, and the pictures it points at.

Units are normalised here and nowhere else: boxes 0-1000 in JSON become 0-1, frames counted from 1
become 0-based; pixels come only at the crop (`data.media`). Everything mended or dropped is named,
once per occurrence and without values, so that names can be counted.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.errors import TCoTError
from data.types import Box, Cues, Kind, Picture

CUE_KEYS = {
    Kind.TEXT: "text_keywords",
    Kind.IMAGE: "bbox_2d",
    Kind.PAGE: "bbox_2d",
    Kind.VIDEO: "key_frames",
}
MAX_BOXES = 4
"""Crops of one picture at most: each costs the Embedder as many tokens as a picture may have."""
WHOLE_PICTURE = 0.95
"""A box over this share of the picture points at nothing."""
SAME_BOX_IOU = 0.8
MIN_BOX_SIDE = 0.01
_DIGITS = re.compile(r"\s*-?\d{1,6}(\.\d{1,6})?\s*")


def read_cues(
    values: Mapping[str, Sequence[Any]], *, kind: Kind, num_frames: int, repairs: list[str]
) -> Cues:
    """Return the cues of an item of that kind showing ``num_frames`` frames.

    ``values`` holds by key of the JSON object all values given to it: more than one where the key
    was repeated. What is mended or dropped is added to ``repairs``: nothing where the object has
    the kind's key alone with everything in range.

    Raises:
        TCoTError: the kind's key is missing, or nothing under it is usable.
    """
    key = CUE_KEYS[kind]
    if key not in values:
        keys = ", ".join(f"{name[:40]!r}" for name in sorted(values)[:5])
        raise TCoTError(
            f"expected the evidence key '{key}' for {kind}, found [{keys}]",
            repairs=(*repairs, "refused: no evidence key of the kind"),
        )
    if len(values) > 1:
        repairs.append("other keys beside the evidence")
    if len(values[key]) > 1:
        repairs.append("duplicate key merged")
    if kind is Kind.TEXT:
        cues = Cues(keywords=_keywords(values[key], repairs))
    elif kind is Kind.VIDEO:
        cues = Cues(key_frames=_frames(values[key], num_frames, repairs))
    else:
        cues = Cues(boxes=_boxes(values[key], repairs))
    if not cues:
        raise TCoTError(
            f"'{key}' holds nothing usable ({'; '.join(dict.fromkeys(repairs)) or 'empty'})",
            repairs=(*repairs, "refused: nothing usable"),
        )
    return cues


def parse_evidence(value: Any, *, kind: Kind, num_frames: int) -> Cues:
    """Return the true evidence written in a row, in the grammar's own cue form.

    Raises:
        TCoTError: not an object with the kind's key, or anything in it needs a repair.
    """
    if not isinstance(value, dict):
        raise TCoTError(f"expected an object like {{'{CUE_KEYS[kind]}': [...]}}, found {value!r}")
    repairs: list[str] = []
    values = {key: [entry] for key, entry in value.items()}
    cues = read_cues(values, kind=kind, num_frames=num_frames, repairs=repairs)
    if repairs:
        raise TCoTError(f"{'; '.join(dict.fromkeys(repairs))} in {value!r}")
    return cues


def render_cues(cues: Cues, *, kind: Kind) -> str:
    """Return the JSON object of the cues; reading it gives them back (boxes to 1/1000)."""
    value: list[Any]
    if kind is Kind.TEXT:
        value = list(cues.keywords)
    elif kind is Kind.VIDEO:
        value = [frame + 1 for frame in cues.key_frames]
    else:
        value = [[round(1000 * side) for side in (b.x1, b.y1, b.x2, b.y2)] for b in cues.boxes]
        value = value[0] if len(value) == 1 else value
    # Escaped, so that a keyword that spells a tag does not end the part it stands in.
    return json.dumps({CUE_KEYS[kind]: value}, ensure_ascii=False).replace("<", "\\u003c")


def evidence_pictures(shown: Sequence[Picture], cues: Cues) -> tuple[Picture, ...]:
    """Return the key frames or crops that cues read for ``shown`` point at; keywords stay text."""
    frames = (shown[frame] for frame in cues.key_frames)
    crops = (Picture(picture.uri, picture.kind, box) for picture in shown[:1] for box in cues.boxes)
    return (*frames, *crops)


def _keywords(values: Sequence[Any], repairs: list[str]) -> tuple[str, ...]:
    words: dict[str, None] = {}
    for value in values:
        if not isinstance(value, list):
            repairs.append("keyword not in a list")
        for word in value if isinstance(value, list) else [value]:
            if not _is_word(word):
                repairs.append("keyword dropped: not a word")
            elif word in words:
                repairs.append("keyword dropped: repeated")
            else:
                words[word] = None
    return tuple(words)


def _is_word(value: Any) -> bool:
    """Return whether a value is text with something in it that UTF-8 can write.

    JSON can spell half an emoji, `"\\ud83d"`, which no file and no tokenizer takes.
    """
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any, repairs: list[str]) -> float | None:
    """Return a finite number, reading digits in a string; None where there is none."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        repairs.append("number written as text")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -1e6 < value < 1e6:
        return None
    return float(value)


def _frames(values: Sequence[Any], num_frames: int, repairs: list[str]) -> tuple[int, ...]:
    frames: set[int] = set()
    for value in values:
        if not isinstance(value, list):
            repairs.append("frame not in a list")
        for entry in value if isinstance(value, list) else [value]:
            number = _number(entry, repairs)
            if number is None or number != int(number):
                repairs.append("frame dropped: not a whole number")
            elif not 1 <= number <= num_frames:
                repairs.append("frame dropped: out of range")
            elif int(number) - 1 in frames:
                repairs.append("frame dropped: repeated")
            else:
                frames.add(int(number) - 1)
    return tuple(sorted(frames))


def _boxes(values: Sequence[Any], repairs: list[str]) -> tuple[Box, ...]:
    """Return at most MAX_BOXES boxes that do not overlap, in order; a merged one comes last."""
    kept: list[Box] = []
    for entry in _box_entries(values, repairs):
        box = _box(entry, repairs)
        if box is None:
            continue
        # A grown box may reach the next one.
        while (near := next((k for k in kept if k.iou(box) >= SAME_BOX_IOU), None)) is not None:
            repairs.append("box merged: overlaps another")
            kept.remove(near)
            box = _around(near, box)
        if box.area() >= WHOLE_PICTURE:
            repairs.append("box dropped: the whole picture")
        elif len(kept) == MAX_BOXES:
            repairs.append("box dropped: too many")
        else:
            kept.append(box)
    return tuple(kept)


def _box_entries(values: Sequence[Any], repairs: list[str]) -> Iterator[Any]:
    """Yield what should be one box each, from a flat box, a list of boxes, or a list too deep."""
    for value in values:
        # A flat [x1, y1, x2, y2] and a list of such lists are both the grammar's.
        if not isinstance(value, list) or (value and not any(isinstance(v, list) for v in value)):
            yield value
            continue
        for entry in value:
            if isinstance(entry, list) and entry and all(isinstance(e, list) for e in entry):
                repairs.append("boxes nested too deep")
                yield from entry
            else:
                yield entry


def _box(entry: Any, repairs: list[str]) -> Box | None:
    numbers: list[float | None] = [None]
    if isinstance(entry, list) and len(entry) == 4:
        numbers = [_number(side, repairs) for side in entry]
    if None in numbers:
        repairs.append("box dropped: not four numbers")
        return None
    x1, y1, x2, y2 = (number / 1000 for number in numbers if number is not None)
    if x1 > x2 or y1 > y2:
        repairs.append("box mended: corners swapped")
        x1, x2 = min(x1, x2), max(x1, x2)
        y1, y2 = min(y1, y2), max(y1, y2)
    if x1 < 0 or y1 < 0 or x2 > 1 or y2 > 1:
        repairs.append("box mended: outside the picture")
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)
    # Rounded: 0.69 - 0.68 is a hair under 0.01.
    if round(x2 - x1, 9) < MIN_BOX_SIDE or round(y2 - y1, 9) < MIN_BOX_SIDE:
        repairs.append("box dropped: too thin")
        return None
    box = Box(x1, y1, x2, y2)
    if box.area() >= WHOLE_PICTURE:
        repairs.append("box dropped: the whole picture")
        return None
    return box


def _around(one: Box, other: Box) -> Box:
    return Box(
        min(one.x1, other.x1),
        min(one.y1, other.y1),
        max(one.x2, other.x2),
        max(one.y2, other.y2),
    )
