"""Item + trace to what the Embedder reads; the only builder, used by training, reward, evaluation.

Published Embedders were trained on this order (Embed-RL, supplement B.3):

1. the item: its pictures, its instruction, its text; a video, or its frames, come last
2. the trace up to the end of its thinking part
3. the crops or key frames that it points at
4. the rest of the trace
5. the fixed suffix

Nothing stands between the texts.
"""

from data.cues import evidence_pictures
from data.errors import TCoTError
from data.prompts import pictures_of, visuals_of
from data.tcot import parse, split_thinking
from data.types import Content, Evidence, Instruction, Item, Kind, Picture, Visual

INPUT_FORM = 2
"""Written beside an Embedder's export: one trained on another form reads what it never saw."""
SUFFIX = "Summarize the above content in one word:"


def embed_content(
    item: Item, trace: str | None, *, max_frames: int, evidence: Evidence = Evidence.FULL
) -> Content:
    """Return the Embedder's user turn for an item.

    A ``trace`` of None or "" leaves the item alone, as Evidence.NONE does. A trace that does not
    parse is given as text, without evidence: what it points at is unknown.
    """
    shown, seen = pictures_of(item, max_frames), visuals_of(item, max_frames)
    text = (Instruction(item.instruction), item.text)
    head = (*text, *seen) if item.kind is Kind.VIDEO else (*seen, *text)
    if not trace or evidence is Evidence.NONE:
        return _joined(*head, SUFFIX)
    pointed: tuple[Picture, ...] = ()
    if evidence is Evidence.FULL:
        try:
            parsed = parse(trace, kind=item.kind, num_frames=len(shown))
            pointed = evidence_pictures(shown, parsed.cues)
        except TCoTError:
            pointed = ()
    before, after = split_thinking(trace)
    return _joined(*head, before, *pointed, after, SUFFIX)


def instruction_as_text(content: Content) -> Content:
    """Return a content in which the instruction is the beginning of the text that follows it."""
    return _joined(*(f"{part} " if isinstance(part, Instruction) else part for part in content))


def _joined(*parts: str | Visual) -> Content:
    """Return the parts with texts that follow each other made one, as a chat template shows them.

    What data spells across two of them is then seen where special tokens are taken out. An
    instruction stays apart.
    """
    content: list[str | Visual] = []
    for part in parts:
        if content and _is_text(part) and _is_text(content[-1]):
            content[-1] += part
        elif part != "":
            content.append(part)
    return tuple(content)


def _is_text(part: str | Visual) -> bool:
    return isinstance(part, str) and not isinstance(part, Instruction)
