"""Item + trace to what the Embedder reads; the only builder, used by training, reward, evaluation.

Embed-RL's Embedders were trained on this order (supplement B.3):

1. the item: its pictures, its instruction, its text; a video, or its frames, come last
2. the trace up to the end of its thinking part
3. the crops or key frames that it points at
4. the rest of the trace
5. the fixed suffix

Nothing stands between the texts. For other Embedders see `media_first`.
"""

from functools import lru_cache

from data.cues import evidence_pictures
from data.errors import TCoTError
from data.prompts import join_texts, own_text, pictures_of, visuals_of
from data.tcot import parse, split_thinking
from data.types import Content, Evidence, Instruction, Item, Kind, Picture, Visual

INPUT_FORM = 2
"""Written beside an Embedder's export: one trained on another form reads what it never saw."""
SUFFIX = "Summarize the above content in one word:"


def embed_content(
    item: Item,
    trace: str | None,
    *,
    max_frames: int,
    item_tokens: int,
    evidence: Evidence = Evidence.FULL,
) -> Content:
    """Return the Embedder's user turn for an item.

    A ``trace`` of None or "" leaves the item alone, as Evidence.NONE does. A trace that does not
    parse is given as text, without evidence: what it points at is unknown. Of the item's own text
    the Embedder reads ``item_tokens`` tokens at most; 0: all.
    """
    shown, head = pictures_of(item, max_frames), _head(item, max_frames, item_tokens)
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


@lru_cache(1 << 12)
def _head(item: Item, max_frames: int, item_tokens: int) -> Content:
    """Return what an Embedder reads before a trace, which all siblings of a group share."""
    seen = visuals_of(item, max_frames)
    text = (Instruction(item.instruction), own_text(item, item_tokens))
    return (*text, *seen) if item.kind is Kind.VIDEO else (*seen, *text)


def media_first(content: Content) -> Content:
    """Return an Embedder's input with the frames of a video before instruction and text.

    Other Embedders were trained on an item's videos, then its pictures, then its texts
    (Qwen3-VL-Embedding's `format_model_input`). A trace, which none of them was trained on, keeps
    its crops and frames where it points at them.
    """
    media = [i for i, part in enumerate(content) if not isinstance(part, str)]
    first = media[0] if media else 0
    end = next((i for i in range(first, len(content)) if isinstance(content[i], str)), first)
    return _joined(*content[first:end], *content[:first], *content[end:])


def instruction_as_text(content: Content) -> Content:
    """Return a content in which the instruction is the beginning of the text that follows it."""
    return _joined(*(f"{part} " if isinstance(part, Instruction) else part for part in content))


def _joined(*parts: str | Visual) -> Content:
    """Return the parts with texts that follow each other made one, as a chat template shows them.

    What data spells across two of them is then seen where special tokens are taken out. An
    instruction stays apart.
    """
    content: list[str | Visual] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str) and not isinstance(part, Instruction):
            if part:
                texts.append(part)
        elif part:
            if texts:
                content.append(join_texts(*texts))
                texts = []
            content.append(part)
    if texts:
        content.append(join_texts(*texts))
    return tuple(content)
