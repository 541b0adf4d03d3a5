"""Item + trace to what the Embedder reads; the only builder, used by training, reward, evaluation.

Order (spec, section 2.3 and 3): the item's pictures, its text, the trace's thinking part, the
evidence pictures, the rest of the trace, the fixed suffix.
"""

from data.errors import TCoTError
from data.prompts import pictures_of
from data.tcot import parse, split_thinking
from data.types import Content, Item, Kind, Picture, TCoT

SUFFIX = "\nSummarize the above content in one word:"


def embed_content(
    item: Item, trace: str | None, *, max_frames: int, evidence: bool = True
) -> Content:
    """Return the Embedder's user turn for an item.

    ``trace`` None or empty: the item alone. ``evidence`` False: the trace's text only. A trace
    that does not parse is given as text, without evidence: what it points at is unknown.
    """
    shown = pictures_of(item, max_frames)
    if not trace:
        return (*shown, item.text.strip() + SUFFIX)
    pointed: tuple[Picture, ...] = ()
    if evidence:
        try:
            pointed = evidence_pictures(shown, parse(trace, kind=item.kind, num_frames=len(shown)))
        except TCoTError:
            pointed = ()
    before, after = split_thinking(trace)
    return (*shown, f"{item.text.strip()}\n{before}", *pointed, after + SUFFIX)


def evidence_pictures(shown: tuple[Picture, ...], trace: TCoT) -> tuple[Picture, ...]:
    """Return the crops or key frames that a trace points at; keywords stay text."""
    if not shown or shown[0].kind is Kind.TEXT:
        return ()
    if shown[0].kind is Kind.VIDEO:
        return tuple(shown[frame] for frame in trace.cues.key_frames if frame < len(shown))
    return tuple(Picture(shown[0].uri, shown[0].kind, box) for box in trace.cues.boxes)
