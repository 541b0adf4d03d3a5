"""The T-CoT grammar: `<thinking>` with one JSON cue, then `<rethink>`, then `<answer>`.

One parser serves both uses: its `repairs` are empty exactly when the text is strictly valid
(format reward), and a repaired trace is still usable as input. What a cue is: `data.cues`.
"""

import json
import re
from functools import lru_cache
from itertools import islice
from typing import Any

from data.cues import read_cues, render_cues
from data.errors import TCoTError
from data.types import Kind, TCoT

TAGS = ("thinking", "rethink", "answer")
TAG_TEXTS = frozenset(text for tag in TAGS for text in (f"<{tag}>", f"</{tag}>"))
MAX_CHARS = 1 << 16
"""Longer texts are no traces: the 2,048 tokens that are sampled hold about 10,000 characters."""
REMEMBERED = 1 << 13
"""Traces parsed last: from format reward to monitors a scoring round asks for each five times."""
MAX_CUE_STARTS = 8
"""Braces tried as the cue's first: each try may read the whole text before it fails."""

# A part never runs over its own tags: a policy that repeats them without end would otherwise
# cost minutes of backtracking. What holds no "<" is skipped at once. No possessive quantifiers:
# Python before 3.11.5 fails on them inside a group.
_PARTS = re.compile(
    r"\s*".join(rf"<{tag}>(?P<{tag}>[^<]*(?:<(?!/?{tag}>)[^<]*)*)</{tag}>" for tag in TAGS)
)
_ANY_TAG = re.compile(r"</?(?:thinking|rethink|answer)>")


def parse(text: str, *, kind: Kind, num_frames: int = 0) -> TCoT:
    """Return the trace in ``text`` for an item of that kind showing ``num_frames`` frames.

    Whatever can be mended is mended and named in ``repairs``; a trace without repairs is strictly
    valid: each tag once, in order, nothing outside, every part non-empty, one JSON cue of the
    kind's key with everything in range (the prompts in `templates/` ask for it). Time is linear
    in the text.

    Raises:
        TCoTError: the text is too long, or the three parts or a usable cue are missing.
    """
    outcome = _remembered(text, kind, num_frames)
    if isinstance(outcome, TCoT):
        return outcome
    message, repairs = outcome
    raise TCoTError(message, repairs=repairs)


@lru_cache(REMEMBERED)
def _remembered(text: str, kind: Kind, num_frames: int) -> TCoT | tuple[str, tuple[str, ...]]:
    """Return the trace, or message and repairs of the error: an error itself keeps its frames."""
    try:
        return _parse(text, kind, num_frames)
    except TCoTError as error:
        return str(error), error.repairs


def _parse(text: str, kind: Kind, num_frames: int) -> TCoT:
    if len(text) > MAX_CHARS:
        raise TCoTError(
            f"expected a trace of at most {MAX_CHARS} characters, found {len(text)}",
            repairs=("refused: too long",),
        )
    match = _PARTS.search(text)
    if match is None:
        missing = [tag for tag in TAGS if f"<{tag}>" not in text or f"</{tag}>" not in text]
        problem = f"missing {', '.join(missing)}" if missing else "not one after another"
        raise TCoTError(
            f"expected <thinking>, <rethink>, <answer> in this order; {problem}",
            repairs=("refused: a part is missing",),
        )
    repairs: list[str] = []
    if text[: match.start()].strip() or text[match.end() :].strip():
        repairs.append("text outside the tags")
    if len(_ANY_TAG.findall(text)) != 2 * len(TAGS):
        repairs.append("repeated tag")
    prose, values = _split_cue(match["thinking"], repairs)
    cues = read_cues(values, kind=kind, num_frames=num_frames, repairs=repairs)
    for tag, part in zip(TAGS, (prose, match["rethink"], match["answer"]), strict=True):
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
    """Return the text of a trace; `parse` of it gives the trace back (boxes to 1/1000).

    The parts must hold no tags of the grammar, and the thinking part no braces.
    """
    return (
        f"<thinking>{trace.thinking}{render_cues(trace.cues, kind=kind)}</thinking>"
        f"<rethink>{trace.rethink}</rethink><answer>{trace.answer}</answer>"
    )


def faults(text: str, *, kind: Kind, num_frames: int = 0) -> tuple[str, ...]:
    """Return the names of all that `parse` mends, drops or refuses; none = strictly valid."""
    try:
        return parse(text, kind=kind, num_frames=num_frames).repairs
    except TCoTError as error:
        return error.repairs


def split_thinking(text: str) -> tuple[str, str]:
    """Return the text up to the end of the thinking part, and the rest: evidence goes between."""
    end = text.find("</thinking>")
    if end < 0:
        return text, ""
    end += len("</thinking>")
    return text[:end], text[end:]


def _split_cue(thinking: str, repairs: list[str]) -> tuple[str, dict[str, list[Any]]]:
    """Return the prose around the first JSON object, and its keys with all values given to each."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend(found)
        return dict(found)

    decoder = json.JSONDecoder(object_pairs_hook=keep, parse_constant=lambda name: name)
    for brace in islice(re.finditer(r"\{", thinking), MAX_CUE_STARTS):
        start = brace.start()
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
    raise TCoTError(
        "expected one JSON object with the evidence inside <thinking>, found none",
        repairs=(*repairs, "refused: no JSON object"),
    )
