"""What the Reasoner is asked: (kind, side, task) to prompt content, from template files.

Templates are text files with `$text` where the item's own text goes, `$answer` where the right
answer is known, and `$frames`, the number of a video's frames, and `$shown`, how they are shown.
Their version is a hash of the whole set, recorded with every trace.
"""

import hashlib
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import resources
from string import Template

from data.errors import DataError
from data.media.frames import sample_frames
from data.types import Content, Item, ItemText, Kind, Pair, Picture, Side, Video, Visual

AS_FRAMES = "The {frames} pictures are frames of one video, in order of time."
AS_VIDEO = "The video shows {frames} frames, in order of time, two at each time stamp."


def reasoner_content(
    pair: Pair,
    side: Side,
    *,
    templates: str,
    max_frames: int,
    item_tokens: int,
    answer: str = "",
) -> Content:
    """Return the user turn that asks for a trace of one side of a pair: pictures, then text.

    The other side never shows, unless the caller gives it as ``answer``; only its kind chooses
    between the text templates.
    """
    return item_content(
        pair.item(side),
        side,
        templates=templates,
        max_frames=max_frames,
        item_tokens=item_tokens,
        seeks_video=side is Side.QUERY and pair.target.kind is Kind.VIDEO,
        answer=answer,
    )


def item_content(
    item: Item,
    side: Side,
    *,
    templates: str,
    max_frames: int,
    item_tokens: int,
    seeks_video: bool = False,
    answer: str = "",
) -> Content:
    """Return the user turn that asks for a trace of one item (Embed-RL, appendix F).

    ``answer`` is what the right target says, for a teacher who may know it; empty: unknown. Of the
    item's own text a model reads ``item_tokens`` tokens at most; 0: all.

    Raises:
        DataError: the set has no prompt for this; only queries of `full` can know the answer.
    """
    name = f"{side}_{item.kind}"
    if item.kind is Kind.TEXT and seeks_video:
        name = "query_text_for_video"
    if answer:
        name += "_with_answer"
    prompts = load_templates(templates)
    if name not in prompts:
        raise DataError(
            f"expected a prompt '{name}' in the template set '{templates}', found none; use the "
            "set 'full', and give the answer to queries only"
        )
    frames = min(len(item.uris), max_frames)
    shown, answer = (AS_VIDEO if item.times else AS_FRAMES).format(frames=frames), answer.strip()
    before, after = (
        Template(part).substitute(frames=frames, shown=shown, answer=answer)
        for part in prompts[name].template.split("$text")
    )
    # The instruction, with the blank that parts it from a text.
    instruction = item.instructed_text().removesuffix(item.text)
    text = join_texts(before, instruction, own_text(item, item_tokens), after)
    return (*visuals_of(item, max_frames), text)


def own_text(item: Item, item_tokens: int) -> ItemText:
    """Return an item's own text, of which ``item_tokens`` tokens are read at most; 0: all."""
    return ItemText(item.text, slice(0, len(item.text)), item_tokens)


def join_texts(*texts: str) -> str:
    """Return the texts as one; where an item's own text was among them, the one text says where."""
    whole, start = "".join(texts), 0
    for text in texts:
        if isinstance(text, ItemText):
            own = slice(start + text.own.start, start + text.own.stop)
            return ItemText(whole, own, text.most)
        start += len(text)
    return whole


def filter_content(task: str, query_trace: str, target_trace: str) -> Content:
    """Return the user turn that asks whether a pair is wrong (Embed-RL's relevance filter).

    The answer is one word: Yes = clearly unrelated or contradictory, No = keep the pair.
    """
    text = load_templates("full")["filter"].substitute(
        task=task.strip(), query_trace=query_trace.strip(), target_trace=target_trace.strip()
    )
    return (text,)


@lru_cache(1 << 12)
def pictures_of(item: Item, max_frames: int) -> tuple[Picture, ...]:
    """Return the pictures that an item shows, frames sampled to the limit.

    Remembered, so that siblings show the same objects: what is shared is pickled once.
    """
    uris = sample_frames(item.uris, max_frames) if item.kind is Kind.VIDEO else item.uris
    return tuple(Picture(uri, item.kind) for uri in uris)


@lru_cache(1 << 12)
def visuals_of(item: Item, max_frames: int) -> tuple[Visual, ...]:
    """Return what a model sees of an item: its pictures, or its frames as one video.

    Remembered as `pictures_of` is.
    """
    pictures = pictures_of(item, max_frames)
    return (Video(pictures, sample_frames(item.times, max_frames)),) if item.times else pictures


def uris_shown(items: Iterable[Item], max_frames: int) -> set[str]:
    """Return the files that the items show: frames beyond the limit are never decoded."""
    return {picture.uri for item in items for picture in pictures_of(item, max_frames)}


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
