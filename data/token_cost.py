"""Estimates how many tokens a content or a picture costs a model that reads it."""

from collections.abc import Mapping

from configs.common import MediaConfig
from data.media.sizes import crop_pixels, limits_of
from data.types import Content, ItemText, Picture

CHARS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 32 * 32
"""Qwen3-VL: patches of 16 x 16 pixels, 2 x 2 of them merged into a token."""


def content_cost(
    content: Content, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that content.

    ``sizes`` holds (height, width) of the decoded files by uri; a picture that is not among them
    counts as the smallest.
    """
    return sum(
        _text_cost(part) if isinstance(part, str) else picture_cost(part, sizes, limits)
        for part in content
    )


def _text_cost(text: str) -> float:
    unread = 0.0
    if isinstance(text, ItemText) and text.most:
        unread = max(0.0, len(text[text.own]) / CHARS_PER_TOKEN - text.most)
    return len(text) / CHARS_PER_TOKEN - unread


def picture_cost(
    picture: Picture, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that picture; as `content_cost`."""
    left, top, right, bottom = crop_pixels(picture.box, *sizes.get(picture.uri, (0, 0)))
    least, most = limits_of(picture, limits)
    return min(max((right - left) * (bottom - top), least), most) / PIXELS_PER_TOKEN
