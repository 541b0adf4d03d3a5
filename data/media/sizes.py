"""The size at which a model reads a picture or a video, and the pixels of a crop.

Sizes are chosen here, in multiples of the model's factor and within the config's limits, so that
every engine sees the same pixels; the models' own processors must not resize again.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from PIL import Image

from configs.common import MediaConfig
from data.errors import DataError
from data.types import Box, Kind, Picture, Pictures, Video, Visual

T = TypeVar("T")
MIN_CROP_PIXELS = 4
"""Thinner crops are widened to this around their centre."""
MAX_ASPECT = 100
"""Flatter pictures are stretched to this: Qwen-VL processors refuse a side 200 times the other."""


def target_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return (height, width) in multiples of ``factor`` with an area within the limits.

    The aspect is kept as far as the factor allows (the rule Qwen-VL processors use). Limits
    between which no multiple of the factor's square lies are missed by as little as that rule does.
    """
    height, width = max(height, width // MAX_ASPECT), max(width, height // MAX_ASPECT)
    rows = max(factor, round(height / factor) * factor)
    columns = max(factor, round(width / factor) * factor)
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    if not min_pixels <= rows * columns <= max_pixels:
        return _nearest_size(rows, columns, factor, min_pixels, max_pixels)
    return rows, columns


def _nearest_size(
    rows: int, columns: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the size within the limits whose aspect is nearest, else the size as it is.

    The rule rounds each side for itself: very flat pictures and narrow limits escape it.
    """
    least, most = -(-min_pixels // factor**2), max_pixels // factor**2
    sizes = [
        (high, wide)
        for high in range(1, most + 1)
        for wide in {max(-(-least // high), 1), most // high}
        if least <= high * wide <= most
    ]
    if not sizes:
        return rows, columns
    high, wide = min(sizes, key=lambda size: abs(math.log(size[0] * columns / (size[1] * rows))))
    return high * factor, wide * factor


def limits_of(picture: Picture, limits: MediaConfig) -> tuple[int, int]:
    """Return (min, max) pixels for that picture."""
    if picture.box is not None:
        return limits.crop_min_pixels, limits.crop_max_pixels
    if picture.kind is Kind.VIDEO:
        return limits.frame_min_pixels, limits.frame_max_pixels
    if picture.kind is Kind.PAGE:
        return limits.page_min_pixels, limits.page_max_pixels
    return limits.image_min_pixels, limits.image_max_pixels


def video_limits(video: Video, limits: MediaConfig) -> tuple[int, int]:
    """Return (min, max) pixels for each frame of that video."""
    return frame_limits(len(video.frames), limits)


def frame_limits(frames: int, limits: MediaConfig) -> tuple[int, int]:
    """Return (min, max) pixels for each of so many frames of a video.

    All frames together stay within the video's total. Where a frame's share of it is small, half
    of the share is the minimum: between the two lies a size of about the frame's own aspect.
    """
    share = max(2, limits.video_total_pixels // max(2, frames))
    return min(limits.frame_min_pixels, share // 2), min(limits.frame_max_pixels, share)


def crop_pixels(box: Box | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the crop's (left, top, right, bottom) in pixels, at least MIN_CROP_PIXELS a side."""
    if box is None:
        return 0, 0, width, height
    left, right = _span(box.x1, box.x2, width)
    top, bottom = _span(box.y1, box.y2, height)
    return left, top, right, bottom


def _span(start: float, end: float, size: int) -> tuple[int, int]:
    first, last = round(start * size), round(end * size)
    short = min(MIN_CROP_PIXELS, size) - (last - first)
    if short > 0:
        first = max(0, min(first - short // 2, size - min(MIN_CROP_PIXELS, size)))
        last = first + min(MIN_CROP_PIXELS, size)
    return first, last


def fitted_size(
    visual: Visual, sizes: Mapping[str, tuple[int, int]], limits: MediaConfig, *, factor: int
) -> tuple[int, int]:
    """Return the (height, width) that a model reads of a picture, or of each frame of a video.

    ``sizes`` holds (height, width) of the decoded files by uri. All frames of a video get one size,
    which suits the first of them.

    Raises:
        DataError: the file was not loaded.
    """
    if isinstance(visual, Video):
        height, width = _loaded(visual.frames[0].uri, sizes)
        least, most = video_limits(visual, limits)
    else:
        left, top, right, bottom = crop_pixels(visual.box, *_loaded(visual.uri, sizes))
        height, width = bottom - top, right - left
        least, most = limits_of(visual, limits)
    return target_size(height, width, factor=factor, min_pixels=least, max_pixels=most)


def fit(picture: Picture, pictures: Pictures, limits: MediaConfig, *, factor: int) -> Image.Image:
    """Return the picture (or its crop) at the size a model reads.

    Raises:
        DataError: the file was not loaded.
    """
    pixels = _loaded(picture.uri, pictures)
    left, top, right, bottom = crop_pixels(picture.box, *pixels.shape[:2])
    rows, columns = fitted_size(picture, {picture.uri: pixels.shape[:2]}, limits, factor=factor)
    return _resized(Image.fromarray(pixels[top:bottom, left:right]), rows, columns)


def fit_video(video: Video, pictures: Pictures, limits: MediaConfig, *, factor: int) -> np.ndarray:
    """Return the video's frames at the size a model reads, uint8 [T, H, W, 3], T even.

    A video of one frame is a video that shows it twice.

    Raises:
        DataError: a frame was not loaded.
    """
    frames = {frame.uri: _loaded(frame.uri, pictures) for frame in video.frames}
    sizes = {uri: pixels.shape[:2] for uri, pixels in frames.items()}
    rows, columns = fitted_size(video, sizes, limits, factor=factor)
    images = [Image.fromarray(frames[frame.uri]) for frame in video.frames]
    shown = [np.asarray(_resized(image, rows, columns)) for image in images]
    return np.stack(shown if len(shown) > 1 else 2 * shown)


def _loaded(uri: str, by_uri: Mapping[str, T]) -> T:
    if uri not in by_uri:
        raise DataError(f"{uri}: picture was not loaded for this step")
    return by_uri[uri]


def _resized(image: Image.Image, rows: int, columns: int) -> Image.Image:
    if (image.height, image.width) == (rows, columns):
        return image
    return image.resize((columns, rows), Image.Resampling.BICUBIC)
