"""The published forms of MMEB-V2's texts: VLM2Vec's and Qwen3-VL-Embedding's.

VLM2Vec writes a query's instruction before its text, and a text of its own beside a target's media.
Embed-RL was measured in this form; its code takes away white space at both ends of a text, and so
does this file. Qwen3-VL-Embedding keeps the instruction apart, leaves texts as the rows have them,
and has no instruction for targets.
"""

import re
import unicodedata

from data.types import Item, Kind

VLM2VEC = "vlm2vec"
_PLACEHOLDER = re.compile(r"<\|image_\d+\|>")


def without_placeholder(text: str) -> str:
    """Return a text without the marks of pictures, which are shown beside it."""
    return _PLACEHOLDER.sub("", text)


def joined_lines(text: str) -> str:
    """Return a text as VLM2Vec writes those of images: no blank before the end of a line."""
    return text.replace(" \n", "\n")


def query_item(
    prompts: str,
    instruction: str,
    text: str,
    *,
    glued: str,
    kind: Kind = Kind.TEXT,
    uris: tuple[str, ...] = (),
    times: tuple[float, ...] = (),
) -> Item:
    """Return a query. ``glued``: instruction and text as VLM2Vec makes one text of them."""
    if prompts == VLM2VEC:
        return Item(text=glued.strip(), kind=kind, uris=uris, times=times)
    apart = instruction.strip()
    if apart and not unicodedata.category(apart[-1]).startswith("P"):
        apart += "."
    return Item(text=text, instruction=apart, kind=kind, uris=uris, times=times)


def sought_after(instruction: str, text: str) -> str:
    """Return instruction and text as VLM2Vec joins them where a query is a text that seeks."""
    return f"{instruction.removesuffix('.')}: {text}"


def target_item(
    prompts: str,
    *,
    vlm2vec: str,
    text: str = "",
    kind: Kind = Kind.TEXT,
    uris: tuple[str, ...] = (),
    times: tuple[float, ...] = (),
) -> Item:
    """Return a candidate. ``vlm2vec``: its text in VLM2Vec's form, ``text``: in the other."""
    shown = vlm2vec.strip() if prompts == VLM2VEC else text
    return Item(text=shown, kind=kind, uris=uris, times=times)
