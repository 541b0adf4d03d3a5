"""The T-CoT grammar: `<thinking>` with one JSON cue, then `<rethink>`, then `<answer>`.

Units are normalised here and nowhere else: boxes 0-1000 in text become 0-1, frames counted from 1
in text become 0-based. One parser serves both uses: its `repairs` are empty exactly when the
text is strictly valid (format reward), and a repaired trace is still usable as input.
"""

import json
import re
from typing import Any

from data.errors import TCoTError
from data.types import Box, Cues, Kind, TCoT

CUE_KEYS = {
    Kind.TEXT: "text_keywords",
    Kind.IMAGE: "bbox_2d",
    Kind.PAGE: "bbox_2d",
    Kind.VIDEO: "key_frames",
}
TAGS = ("thinking", "rethink", "answer")
MAX_BOXES = 4
WHOLE_PICTURE = 0.95
"""A box over this share of the picture points at nothing."""
SAME_BOX_IOU = 0.8
MIN_BOX_SIDE = 0.01

# A part never runs over its own tags: a policy that repeats them without end would otherwise
# cost minutes of backtracking.
_PARTS = re.compile(
    r"\s*".join(rf"<{tag}>(?P<{tag}>(?:(?!</?{tag}>).)*+)</{tag}>" for tag in TAGS), re.DOTALL
)
_ANY_TAG = re.compile(r"</?(?:thinking|rethink|answer)>")


def parse(text: str, *, kind: Kind, num_frames: int = 0) -> TCoT:
    """Return the trace in ``text`` for an item of that kind showing ``num_frames`` frames.

    Whatever can be mended is mended and named in ``repairs``; a trace without repairs is strictly
    valid: each tag once, in order, nothing outside, every part non-empty, one JSON cue of the
    kind's key with everything in range.

    Raises:
        TCoTError: the three parts or a usable cue are missing.
    """
    match = _PARTS.search(text)
    if match is None:
        missing = [tag for tag in TAGS if f"<{tag}>" not in text or f"</{tag}>" not in text]
        found = f"missing {', '.join(missing)}" if missing else "not one after another"
        raise TCoTError(f"expected <thinking>, <rethink>, <answer> in this order; {found}")
    repairs: list[str] = []
    if (text[: match.start()] + text[match.end() :]).strip():
        repairs.append("text outside the tags")
    if len(_ANY_TAG.findall(text)) != 2 * len(TAGS):
        repairs.append("repeated tag")
    prose, cue = _split_cue(match["thinking"], repairs)
    cues = _read_cue(cue, kind, num_frames, repairs)
    for tag, part in (
        ("thinking", prose),
        ("rethink", match["rethink"]),
        ("answer", match["answer"]),
    ):
        if not part.strip():
            repairs.append(f"empty {tag}")
    return TCoT(
        thinking=prose,
        rethink=match["rethink"],
        answer=match["answer"],
        cues=cues,
        repairs=tuple(repairs),
    )


def render(trace: TCoT, *, kind: Kind) -> str:
    """Return the text of a trace; `parse` of it gives the trace back (boxes to 1/1000)."""
    cue = {CUE_KEYS[kind]: _cue_value(trace.cues, kind)}
    return (
        f"<thinking>{trace.thinking}{json.dumps(cue, ensure_ascii=False)}</thinking>"
        f"<rethink>{trace.rethink}</rethink><answer>{trace.answer}</answer>"
    )


def parse_evidence(value: Any, *, kind: Kind, num_frames: int) -> Cues:
    """Return the true evidence written in a row, in the grammar's own cue form.

    Raises:
        TCoTError: not an object with the kind's key, or anything in it needs a repair.
    """
    if not isinstance(value, dict):
        raise TCoTError(f"expected an object like {{'{CUE_KEYS[kind]}': [...]}}, found {value!r}")
    repairs: list[str] = []
    cues = _read_cue({key: [entry] for key, entry in value.items()}, kind, num_frames, repairs)
    if repairs:
        raise TCoTError(f"{'; '.join(repairs)} in {value!r}")
    return cues


def split_thinking(text: str) -> tuple[str, str]:
    """Return the text up to the end of the thinking part, and the rest: evidence goes between."""
    end = text.find("</thinking>")
    if end < 0:
        return text, ""
    end += len("</thinking>")
    return text[:end], text[end:]


def _cue_value(cues: Cues, kind: Kind) -> list[Any]:
    if kind is Kind.TEXT:
        return list(cues.keywords)
    if kind is Kind.VIDEO:
        return [frame + 1 for frame in cues.key_frames]
    boxes = [[round(1000 * side) for side in (b.x1, b.y1, b.x2, b.y2)] for b in cues.boxes]
    return boxes[0] if len(boxes) == 1 else boxes


def _split_cue(thinking: str, repairs: list[str]) -> tuple[str, dict[str, list[Any]]]:
    """Return the prose around the first JSON object, and its keys with all values given to each."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend(found)
        return dict(found)

    decoder = json.JSONDecoder(object_pairs_hook=keep, parse_constant=lambda name: name)
    for start in (m.start() for m in re.finditer(r"\{", thinking)):
        pairs.clear()
        try:
            _, end = decoder.raw_decode(thinking, start)
        except (json.JSONDecodeError, RecursionError, ValueError):
            continue
        prose = thinking[:start] + thinking[end:]
        if "{" in prose or "}" in prose:
            repairs.append("more than one JSON object")
        values: dict[str, list[Any]] = {}
        for key, value in pairs:
            values.setdefault(key, []).append(value)
        return prose, values
    raise TCoTError("expected one JSON object with the evidence inside <thinking>, found none")


def _read_cue(cue: dict[str, list[Any]], kind: Kind, num_frames: int, repairs: list[str]) -> Cues:
    key = CUE_KEYS[kind]
    if key not in cue:
        raise TCoTError(f"expected the evidence key '{key}' for {kind}, found {sorted(cue)}")
    if len(cue) > 1:
        repairs.append("other keys beside the evidence")
    if len(cue[key]) > 1:
        repairs.append("duplicate key merged")
    if kind is Kind.TEXT:
        cues = Cues(keywords=_keywords(cue[key], repairs))
    elif kind is Kind.VIDEO:
        cues = Cues(key_frames=_frames(cue[key], num_frames, repairs))
    else:
        cues = Cues(boxes=_boxes(cue[key], repairs))
    if not cues:
        raise TCoTError(f"'{key}' holds nothing usable ({'; '.join(repairs) or 'empty'})")
    return cues


def _keywords(values: list[Any], repairs: list[str]) -> tuple[str, ...]:
    words: list[str] = []
    for value in values:
        if isinstance(value, str):
            repairs.append("keyword not in a list")
            value = [value]
        for word in value if isinstance(value, list) else [value]:
            if not isinstance(word, str) or not word.strip():
                repairs.append("keyword dropped: not a word")
            elif word in words:
                repairs.append("keyword dropped: repeated")
            else:
                words.append(word)
    return tuple(words)


def _number(value: Any, repairs: list[str]) -> float | None:
    """Return a finite number, reading digits in a string; None where there is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,6}(\.\d{1,6})?\s*", value):
        repairs.append("number written as text")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -1e6 < value < 1e6:
        return None
    return float(value)


def _frames(values: list[Any], num_frames: int, repairs: list[str]) -> tuple[int, ...]:
    frames: set[int] = set()
    for value in values:
        if not isinstance(value, list):
            repairs.append("frame not in a list")
            value = [value]
        for entry in value:
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


def _boxes(values: list[Any], repairs: list[str]) -> tuple[Box, ...]:
    found: list[Box] = []
    for value in values:
        # A flat [x1, y1, x2, y2] and a list of such lists are both the grammar's.
        flat = isinstance(value, list) and value and not isinstance(value[0], list)
        for entry in [value] if flat else (value if isinstance(value, list) else [value]):
            box = _box(entry, repairs)
            if box is not None:
                found.append(box)
    kept: list[Box] = []
    for box in found:
        near = next((k for k in kept if k.iou(box) >= SAME_BOX_IOU), None)
        if near is None:
            kept.append(box)
            continue
        repairs.append("box merged: overlaps another")
        kept[kept.index(near)] = Box(
            min(near.x1, box.x1), min(near.y1, box.y1), max(near.x2, box.x2), max(near.y2, box.y2)
        )
    if len(kept) > MAX_BOXES:
        repairs.append("box dropped: too many")
    return tuple(kept[:MAX_BOXES])


def _box(entry: Any, repairs: list[str]) -> Box | None:
    if not isinstance(entry, list) or len(entry) != 4:
        repairs.append("box dropped: not four numbers")
        return None
    numbers = [_number(side, repairs) for side in entry]
    if any(number is None for number in numbers):
        repairs.append("box dropped: not four numbers")
        return None
    x1, y1, x2, y2 = (float(number) / 1000 for number in numbers if number is not None)
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
