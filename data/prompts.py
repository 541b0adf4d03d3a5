"""What the Reasoner is asked: (kind, side, task) to prompt content, from template files.

Templates are text files with `$text` where the item's own text goes. Their version is a hash of
the whole set and is recorded with every trace.
"""

import hashlib
from functools import cache
from importlib import resources
from string import Template

from data.media import sample_frames
from data.types import Content, Item, Kind, Pair, Picture, Side


def reasoner_content(pair: Pair, side: Side, *, templates: str, max_frames: int) -> Content:
    """Return the user turn that asks for a trace of one side of a pair: pictures, then text.

    The other side never shows; only its kind chooses between the text templates.
    """
    item = pair.item(side)
    seeks_video = side is Side.QUERY and pair.target.kind is Kind.VIDEO
    return item_content(
        item, side, templates=templates, max_frames=max_frames, seeks_video=seeks_video
    )


def item_content(
    item: Item, side: Side, *, templates: str, max_frames: int, seeks_video: bool = False
) -> Content:
    """Return the user turn that asks for a trace of one item."""
    name = f"{side}_{item.kind}"
    if item.kind is Kind.TEXT and seeks_video:
        name = "query_text_for_video"
    text = load_templates(templates)[name].substitute(
        text=item.text.strip(), frames=min(len(item.uris), max_frames)
    )
    return (*pictures_of(item, max_frames), text)


def pictures_of(item: Item, max_frames: int) -> tuple[Picture, ...]:
    """Return the pictures that an item shows, frames sampled to the limit."""
    uris = sample_frames(item.uris, max_frames) if item.kind is Kind.VIDEO else item.uris
    return tuple(Picture(uri, item.kind) for uri in uris)


@cache
def load_templates(name: str) -> dict[str, Template]:
    """Return the templates of one set by name."""
    folder = resources.files("data") / "templates" / name
    return {
        entry.name.removesuffix(".txt"): Template(entry.read_text(encoding="utf-8").strip("\n"))
        for entry in folder.iterdir()
        if entry.name.endswith(".txt")
    }


@cache
def templates_version(name: str) -> str:
    """Return `<set>-<hash>`: changes whenever any prompt of the set changes."""
    texts = sorted((key, template.template) for key, template in load_templates(name).items())
    return f"{name}-{hashlib.sha256(repr(texts).encode()).hexdigest()[:8]}"


@cache
def judge_template() -> Template:
    """Return the judge's question, with `$trace`, `$candidates` and `$count` to fill in."""
    file = resources.files("data") / "templates" / "judge.txt"
    return Template(file.read_text(encoding="utf-8").strip("\n"))
