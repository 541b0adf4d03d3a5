"""Pictures of the report: evidence drawn on pictures, frame strips, thumbnails, data URIs."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from configs.common import MediaConfig
from data.errors import DataError
from data.media.pictures import load_picture
from data.types import Box

TRACE_COLOUR = "#d0218a"
"""What the trace points at: solid. The truth is dashed black and white: seen on any colour."""
_DASH = 8
_DASH_LINE = 3
_LINE = 5
_PAPER = "#f1f3f5"
_INK = "#495057"
_GAP = 8
_FONT = 20
_LABEL = 28
_SHARP_BELOW = 256
"""Smaller pictures are enlarged without blur, so that small drawings stay crisp."""


def load_image(uri: str, limits: MediaConfig) -> Image.Image | None:
    """Return the picture, or None where it can no longer be read."""
    try:
        return Image.fromarray(load_picture(uri, limits))
    except DataError:
        return None


def resize_to(image: Image.Image, *, width: int, height: int) -> Image.Image:
    """Return the picture at the largest size within the limits, aspect kept."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    sharp = scale > 1 and max(image.size) < _SHARP_BELOW
    return image.resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)


def placeholder(text: str, *, width: int, height: int) -> Image.Image:
    """Return a plain tile that says what cannot be shown."""
    tile = Image.new("RGB", (width, height), _PAPER)
    ImageDraw.Draw(tile).text(
        (width / 2, height / 2), text, fill=_INK, anchor="mm", font=ImageFont.load_default(_FONT)
    )
    return tile


def draw_boxes(
    image: Image.Image, *, boxes: Sequence[Box], truth: Sequence[Box], width: int, height: int
) -> Image.Image:
    """Return the picture within ``width`` x ``height``, with both kinds of boxes drawn on it."""
    canvas = resize_to(image, width=width, height=height)
    draw = ImageDraw.Draw(canvas)
    for box in boxes:
        _frame(draw, _pixels(box, canvas))
    for box in truth:
        # Inset, so that both show where they agree.
        _dashes(draw, _pixels(box, canvas, inset=_LINE + 1))
    return canvas


def draw_strip(
    frames: Sequence[Image.Image],
    *,
    key_frames: Sequence[int],
    truth: Sequence[int],
    width: int,
    per_row: int = 4,
) -> Image.Image:
    """Return numbered frames in rows; key frames framed solid, true frames dashed inside.

    Args:
        frames: the shown frames in order, at least one.
        key_frames: 0-based indices that the trace names.
        truth: 0-based indices of the true frames.
        width: of the strip in pixels.
        per_row: frames beside each other at most.
    """
    columns = min(per_row, len(frames))
    side = (width - _GAP * (columns - 1)) // columns
    thumbs = [resize_to(frame, width=side, height=side) for frame in frames]
    tall = max(thumb.height for thumb in thumbs)
    rows = -(-len(frames) // columns)
    strip = Image.new("RGB", (width, rows * (tall + _LABEL) + (rows - 1) * _GAP), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(_FONT)
    for index, thumb in enumerate(thumbs):
        left = (index % columns) * (side + _GAP)
        top = (index // columns) * (tall + _LABEL + _GAP)
        strip.paste(thumb, (left, top))
        edge = (left, top, left + thumb.width - 1, top + thumb.height - 1)
        chosen = index in key_frames
        if chosen:
            _frame(draw, edge, inside=True)
        if index in truth:
            _dashes(
                draw, tuple(e + d * (_LINE + 2) for e, d in zip(edge, (1, 1, -1, -1), strict=True))
            )
        draw.text(
            (left + thumb.width / 2, top + tall + _LABEL / 2),
            f"{index + 1}  key" if chosen else str(index + 1),
            fill=TRACE_COLOUR if chosen else _INK,
            anchor="mm",
            font=font,
        )
    return strip


def thumbnail(images: Sequence[Image.Image], *, side: int) -> Image.Image:
    """Return one square-bounded picture; a clip shows its first, middle and last frame stacked."""
    if len(images) == 1:
        return resize_to(images[0], width=side, height=side)
    picked = [images[0], images[len(images) // 2], images[-1]]
    part = (side - 2 * 2) // 3
    thumbs = [resize_to(image, width=part, height=side) for image in picked]
    sheet = Image.new("RGB", (side, max(thumb.height for thumb in thumbs)), "white")
    for column, thumb in enumerate(thumbs):
        sheet.paste(thumb, (column * (part + 2), 0))
    return sheet


def data_uri(image: Image.Image) -> str:
    """Return the picture as a data URI: PNG or JPEG, whichever is shorter."""
    best = ""
    for form, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        uri = f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if not best or len(uri) < len(best):
            best = uri
    return best


def _pixels(box: Box, image: Image.Image, *, inset: int = 0) -> tuple[int, int, int, int]:
    left, right = round(box.x1 * image.width) + inset, round(box.x2 * image.width) - 1 - inset
    top, bottom = round(box.y1 * image.height) + inset, round(box.y2 * image.height) - 1 - inset
    return left, top, max(left, right), max(top, bottom)


def _frame(
    draw: ImageDraw.ImageDraw, edge: tuple[int, int, int, int], *, inside: bool = False
) -> None:
    """Draw a solid rectangle with a white edge, so that it stands out on any picture."""
    left, top, right, bottom = edge
    if not inside:
        draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), outline="white", width=2)
    draw.rectangle(edge, outline=TRACE_COLOUR, width=_LINE)


def _dashes(draw: ImageDraw.ImageDraw, edge: tuple[int, ...]) -> None:
    """Draw a dashed black and white rectangle."""
    left, top, right, bottom = edge
    if right <= left or bottom <= top:
        return
    draw.rectangle((left, top, right, bottom), outline="white", width=_DASH_LINE)
    thick = _DASH_LINE - 1
    for start in range(left, right + 1, 2 * _DASH):
        end = min(start + _DASH, right)
        draw.rectangle((start, top, end, top + thick), fill="black")
        draw.rectangle((start, bottom - thick, end, bottom), fill="black")
    for start in range(top, bottom + 1, 2 * _DASH):
        end = min(start + _DASH, bottom)
        draw.rectangle((left, start, left + thick, end), fill="black")
        draw.rectangle((right - thick, start, right, end), fill="black")
