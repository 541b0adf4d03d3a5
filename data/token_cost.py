"""Estimates how many tokens a content, a picture or a video costs a model that reads it."""

from collections.abc import Mapping

from configs.common import MediaConfig
from data.media.sizes import crop_pixels, limits_of, video_limits
from data.types import Content, ItemText, Picture, Visual

CHARS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 32 * 32
"""Qwen3-VL: patches of 16 x 16 pixels, 2 x 2 of them merged into a token; of a video's frames two
by two."""
STAMP_TOKENS = 9
"""Qwen3-VL: `<12.3 seconds>` before each two frames of a video, and a token on each side of them.
"""


def content_cost(
    content: Content, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    """Return about how many tokens a model reads for that content.

    ``sizes`` holds (height, width) of the decoded files by uri; a picture that is not among them
    counts as the smallest.
    """
    return sum(
        _text_cost(part) if isinstance(part, str) else visual_cost(part, sizes, limits)
        for part in content
    )


def _text_cost(text: str) -> float:
    unread = 0.0
    if isinstance(text, ItemText) and text.most:
        unread = max(0.0, len(text[text.own]) / CHARS_PER_TOKEN - text.most)
    return len(text) / CHARS_PER_TOKEN - unread


def visual_cost(visual: Visual, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig) -> float:
    """Return about how many tokens a model reads for a picture or video; as `content_cost`."""
    if isinstance(visual, Picture):
        return _picture_cost(visual, sizes, limits)
    height, width = sizes.get(visual.frames[0].uri, (0, 0))
    least, most = video_limits(visual, limits)
    pixels = min(max(height * width, least), most)
    return -(-len(visual.frames) // 2) * (pixels / PIXELS_PER_TOKEN + STAMP_TOKENS)


def _picture_cost(
    picture: Picture, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig
) -> float:
    left, top, right, bottom = crop_pixels(picture.box, *sizes.get(picture.uri, (0, 0)))
    least, most = limits_of(picture, limits)
    return min(max((right - left) * (bottom - top), least), most) / PIXELS_PER_TOKEN
