"""Item + trace to what the Embedder reads; the only builder, used by training, reward, evaluation.

Order (spec, section 2.3 and 3): the item's pictures, its text, the trace's thinking part, the
evidence pictures, the rest of the trace, the fixed suffix.
"""

from data.cues import evidence_pictures
from data.errors import TCoTError
from data.prompts import pictures_of
from data.tcot import parse, split_thinking
from data.types import Content, Evidence, Item, Picture

SUFFIX = "\nSummarize the above content in one word:"


def embed_content(
    item: Item, trace: str | None, *, max_frames: int, evidence: Evidence = Evidence.FULL
) -> Content:
    """Return the Embedder's user turn for an item.

    A ``trace`` of None or "" leaves the item alone, as Evidence.NONE does. A trace that does not
    parse is given as text, without evidence: what it points at is unknown.
    """
    shown = pictures_of(item, max_frames)
    if not trace or evidence is Evidence.NONE:
        return (*shown, item.text + SUFFIX)
    pointed: tuple[Picture, ...] = ()
    if evidence is Evidence.FULL:
        try:
            parsed = parse(trace, kind=item.kind, num_frames=len(shown))
            pointed = evidence_pictures(shown, parsed.cues)
        except TCoTError:
            pointed = ()
    before, after = split_thinking(trace)
    return (*shown, f"{item.text}\n{before}", *pointed, after + SUFFIX)
