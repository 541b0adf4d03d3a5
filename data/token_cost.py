"""Estimates how many tokens a content or a picture costs a model that reads it."""

from collections.abc import Mapping

from configs.common import MediaConfig
from data.media.sizes import crop_pixels, limits_of
from data.types import Content, Picture

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
        len(part) / CHARS_PER_TOKEN if isinstance(part, str) else picture_cost(part, sizes, limits)
        for part in content
    )


def picture_cost(
    picture: Picture, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that picture; as `content_cost`."""
    left, top, right, bottom = crop_pixels(picture.box, *sizes.get(picture.uri, (0, 0)))
    least, most = limits_of(picture, limits)
    return min(max((right - left) * (bottom - top), least), most) / PIXELS_PER_TOKEN
