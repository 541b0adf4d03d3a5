"""Figures of data sets: rows set aside, media that cannot be decoded, sizes, repeated content.

The job `check_data` has all media decoded by `decode_group`, wherever that runs; the rest works on
what came back, which holds no pixels.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from statistics import median
from typing import Any

import numpy as np

from configs.common import DataSetConfig, MediaConfig
from data.errors import DataError
from data.media.frames import frames_only
from data.media.perceptual_hash import perceptual_hash
from data.media.pictures import decode_each, decoded_together, is_one_colour
from data.prompts import pictures_of, visuals_of
from data.rows.row_formats import PICTURE_FIELDS
from data.sets.load_sets import LoadedSet
from data.token_cost import content_cost
from data.types import Item, Kind, Pair, Side, pictures_in

EXAMPLES = 5
"""Repeated contents that are listed as examples."""
PLACES = 3
"""Places of each that are listed."""
SHOWN_TEXT = 200
"""Characters of an example."""


@dataclass(frozen=True, slots=True)
class Medium:
    """What decoding a picture, a frame or a page gave."""

    height: int = 0
    width: int = 0
    digest: str = ""
    """Equal for pictures of equal size and pixels."""
    one_colour: bool = False
    perceptual_hash: str = ""
    """In hexadecimal digits; empty for a blank picture."""
    reason: str = ""
    """Why it cannot be decoded; empty where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSet:
    """A data set as it was read, before its media are decoded."""

    settings: DataSetConfig
    held_out: bool
    loaded: LoadedSet
    problems: tuple[str, ...]
    """Why a job would refuse the set."""


@dataclass(slots=True)
class _Places:
    """Where a content is: how often, and the first places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.first) < PLACES:
            self.first.append(place)


Contents = dict[str, dict[Hashable, _Places]]
"""The contents of a set by what they are: `pictures` by their pixels (of a video by those of all
frames that are shown), `query_texts` and `target_texts` of items without pictures."""


def media_groups(
    pairs: Iterable[Pair], max_frames: int, distractors: Iterable[Item] = ()
) -> list[dict[str, list[Any]]]:
    """Return the media that pairs and distractors show, in groups that are decoded at once.

    A group has `uris`, and `as_frame`: whether each is shown as a frame of a video only.
    """
    items = (item for pair in pairs for _, item in _items(pair))
    shown = {
        picture for item in chain(items, distractors) for picture in pictures_of(item, max_frames)
    }
    frames = frames_only(shown)
    groups = decoded_together(sorted({picture.uri for picture in shown}))
    return [{"uris": uris, "as_frame": [uri in frames for uri in uris]} for uris in groups]


def decode_group(group: Mapping[str, Sequence[Any]], limits: MediaConfig) -> list[dict[str, Any]]:
    """Decode one of `media_groups`; return a row each: `uri` and the fields of its `Medium`."""
    uris = [str(uri) for uri in group["uris"]]
    frames = {uri for uri, as_frame in zip(uris, group["as_frame"], strict=True) if as_frame}
    return [
        {"uri": uri, **asdict(_medium(result))}
        for uri, result in decode_each(uris, limits, frames=frames)
    ]


def set_aside(
    checked: CheckedSet, media: Mapping[str, Medium], max_frames: int
) -> Iterator[dict[str, Any]]:
    """Yield what was set aside, rows first: `data_set`, `file`, `row` (from 1), `field`, `reason`.

    The field is empty where the reason names none. Each row that shows a broken medium gets an
    entry.
    """
    loaded = checked.loaded
    for bad in (*loaded.unranked, *loaded.bad_rows):
        yield _entry(loaded, bad.index, bad.field, bad.reason)
    fields = PICTURE_FIELDS[checked.settings.format]
    told: set[tuple[int, str, str]] = set()
    for row, place, item in _rows_items(loaded):
        for picture in pictures_of(item, max_frames):
            key = (row, fields[place], picture.uri)
            if (reason := media[picture.uri].reason) and key not in told:
                told.add(key)
                yield _entry(loaded, row, fields[place], reason)


def readable_pairs(
    loaded: LoadedSet, media: Mapping[str, Medium], max_frames: int
) -> Sequence[Pair]:
    """Return the pairs of which all media can be decoded."""
    return [
        pair
        for pair in loaded.pairs
        if not any(
            media[picture.uri].reason
            for _, item in _items(pair)
            for picture in pictures_of(item, max_frames)
        )
    ]


def describe_set(
    checked: CheckedSet, media: Mapping[str, Medium], contents: Contents, limits: MediaConfig
) -> dict[str, Any]:
    """Return the figures of a set, as `check.json` has them."""
    loaded = checked.loaded
    bad = loaded.bad_rows
    shown = {
        picture.uri
        for _, _, item in _rows_items(loaded)
        for picture in pictures_of(item, limits.max_frames)
    }
    sizes = {uri: (media[uri].height, media[uri].width) for uri in shown if not media[uri].reason}
    return {
        "name": loaded.name,
        "held_out": checked.held_out,
        "path": checked.settings.path,
        "rows": loaded.rows,
        "rows_read": loaded.read,
        "rows_unranked": len(loaded.unranked),
        "rows_set_aside": len(bad),
        "rows_set_aside_by_field": dict(Counter(row.field for row in bad).most_common()),
        "pairs": len(loaded.pairs),
        "distractors": len(loaded.distractors),
        "pairs_set_aside": len(loaded.pairs)
        - len(readable_pairs(loaded, media, limits.max_frames)),
        "media": {
            "named": loaded.media_named,
            "usable": loaded.media_usable,
            "copies": loaded.copies,
            "shown": len(shown),
            "set_aside": len(shown) - len(sizes),
            "one_colour": sum(media[uri].one_colour for uri in shown),
        },
        "kinds": {
            side.value: dict(Counter(pair.item(side).kind.value for pair in loaded.pairs))
            for side in Side
        },
        "tokens": {
            side.value: _spread([_tokens(pair.item(side), sizes, limits) for pair in loaded.pairs])
            for side in Side
        },
        "twice": {name: _repeats(places) for name, places in contents.items()},
        "problems": list(checked.problems),
    }


def contents_of(loaded: LoadedSet, media: Mapping[str, Medium], max_frames: int) -> Contents:
    """Return what a set contains, for `describe_set` and `leaks`.

    Pictures count by their addresses: one that several rows name is there once.
    """
    contents: Contents = {"pictures": {}, "query_texts": {}, "target_texts": {}}
    seen: set[tuple[str, ...]] = set()
    for _, _, item in _rows_items(loaded):
        uris = tuple(picture.uri for picture in pictures_of(item, max_frames))
        if uris and uris not in seen and not any(media[uri].reason for uri in uris):
            seen.add(uris)
            key = tuple(media[uri].digest for uri in uris)
            contents["pictures"].setdefault(key, _Places()).add(uris[0])
    for pair in loaded.pairs:
        for side in Side:
            item = pair.item(side)
            if item.kind is Kind.TEXT and item.instructed_text():
                # The same text with another instruction is another query, but the same target.
                text = item.instructed_text() if side is Side.QUERY else item.text
                places = contents[f"{side}_texts"].setdefault(text, _Places())
                places.add("{} row {}".format(*loaded.place(pair.row)))
    return contents


def leaks(sets: Sequence[tuple[CheckedSet, Contents]]) -> list[dict[str, Any]]:
    """Return what held-out sets share with training sets: count and first examples, by content."""
    shared = []
    for train, its_contents in sets:
        for held_out, contents in sets:
            if train.held_out or not held_out.held_out:
                continue
            for name, places in contents.items():
                both = [key for key in places if key in its_contents[name]]
                if both:
                    shared.append(
                        {
                            "train": train.loaded.name,
                            "held_out": held_out.loaded.name,
                            "what": name,
                            "count": len(both),
                            "examples": [
                                {
                                    "text": _text(key),
                                    "train": its_contents[name][key].first,
                                    "held_out": places[key].first,
                                }
                                for key in both[:EXAMPLES]
                            ],
                        }
                    )
    return shared


def _medium(result: np.ndarray | DataError) -> Medium:
    if isinstance(result, DataError):
        return Medium(reason=str(result))
    height, width, _ = result.shape
    digest = hashlib.blake2b(f"{height} {width} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(result))
    return Medium(
        height=height,
        width=width,
        digest=digest.hexdigest(),
        one_colour=is_one_colour(result),
        perceptual_hash=perceptual_hash(result).hex(),
    )


def _items(pair: Pair) -> Iterator[tuple[int, Item]]:
    """Yield what a pair shows, with its place in `PICTURE_FIELDS`; the gold candidate once."""
    yield 0, pair.query
    yield 1, pair.target
    for item in (*pair.hard_negatives, *pair.candidates):
        if item is not pair.target:
            yield 2, item


def _rows_items(loaded: LoadedSet) -> Iterator[tuple[int, int, Item]]:
    """Yield what a set shows, with its row and its place in `PICTURE_FIELDS`."""
    for pair in loaded.pairs:
        for place, item in _items(pair):
            yield pair.row, place, item
    for row, item in loaded.distractors.items():
        yield row, 2, item


def _entry(loaded: LoadedSet, index: int, field: str, reason: str) -> dict[str, Any]:
    file, row = loaded.place(index)
    return {"data_set": loaded.name, "file": file, "row": row, "field": field, "reason": reason}


def _tokens(item: Item, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig) -> float | None:
    """Return about how many tokens an item costs, None where a medium of it is broken."""
    content = (*visuals_of(item, limits.max_frames), item.instructed_text())
    if any(picture.uri not in sizes for picture in pictures_in(content)):
        return None
    return content_cost(content, sizes, limits)


def _spread(values: Iterable[float | None]) -> dict[str, int]:
    """Return the least, the median and the most, rounded; nothing where there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {"min": round(min(known)), "median": round(median(known)), "max": round(max(known))}


def _repeats(places: Mapping[Hashable, _Places]) -> dict[str, Any]:
    """Return how many contents repeat an earlier one, and the first examples."""
    repeated = [(key, place) for key, place in places.items() if place.count > 1]
    return {
        "count": sum(place.count - 1 for _, place in repeated),
        "examples": [{"text": _text(key), "at": place.first} for key, place in repeated[:EXAMPLES]],
    }


def _text(key: Hashable) -> str:
    """Return an example's text, empty for pictures."""
    return key[:SHOWN_TEXT] if isinstance(key, str) else ""
