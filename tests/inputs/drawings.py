"""Drawings for tests, each of its own, and what happens to copies of them."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance


def draw(seed: int, side: int = 320) -> Image.Image:
    """Return a drawing of eight coloured shapes on a light ground."""
    random = np.random.default_rng(seed)
    ground = tuple(int(level) for level in random.integers(190, 240, 3))
    image = Image.new("RGB", (side, side * 3 // 4), ground)
    pen = ImageDraw.Draw(image)
    for number in range(8):
        x, y = (int(place) for place in random.integers(0, (side * 3 // 4, side // 2)))
        width, height = (int(size) for size in random.integers(side // 8, side // 2, 2))
        colour = tuple(int(level) for level in random.integers(0, 200, 3))
        shape = pen.ellipse if number % 2 else pen.rectangle
        shape((x, y, x + width, y + height), fill=colour)
    return image


def as_jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    """Return a picture as it comes out of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def without_border(image: Image.Image) -> Image.Image:
    """Return a picture without a hundredth of its width and height at each border."""
    width, height = image.size
    x, y = round(width / 100), round(height / 100)
    return image.crop((x, y, width - x, height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": as_jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "cropped by 2 %": without_border,
    "brightened by 15 %": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darkened by 15 %": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
}
"""What copies of a picture go through and still look alike."""
