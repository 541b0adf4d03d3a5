"""Perceptual hashes: copies stay close, other pictures do not get close."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.demo.world import CELL, COLORS, GRID, SHAPES, Thing, draw_grid
from data.media.perceptual_hash import HASH_BYTES, perceptual_hash, similarity
from tests.inputs.drawings import CHANGES, as_jpeg, draw

SEEDS = range(40)


def hashes(images):
    """Return the hashes of pictures, uint8 [N, HASH_BYTES]."""
    return np.array([list(perceptual_hash(np.asarray(image))) for image in images], np.uint8)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_look_alike(change):
    before = hashes(map(draw, SEEDS))
    after = hashes(CHANGES[change](draw(seed)) for seed in SEEDS)
    alike = similarity(before, after)
    assert (alike > 0.8).all(), dict(zip(SEEDS, alike, strict=True))


def test_different_drawings_do_not_look_alike():
    own = hashes(map(draw, range(200)))
    first, second = np.triu_indices(len(own), 1)
    assert not similarity(own[first], own[second]).any()
    assert (similarity(own, own) == 1).all()


def test_the_same_shape_in_another_colour_is_another_picture():
    def heart(colour):
        image = Image.new("RGB", (200, 200), "white")
        ImageDraw.Draw(image).polygon([(100, 180), (20, 60), (100, 90), (180, 60)], fill=colour)
        return image

    red, blue, copy = hashes([heart("red"), heart("blue"), as_jpeg(heart("red"))])
    assert not similarity(red[None], blue[None]).any()
    assert similarity(red[None], copy[None]) > 0.8


@pytest.mark.parametrize("shape", SHAPES)
def test_small_shapes_that_differ_by_colour_alone_are_other_pictures(shape):
    def shown(*things):
        return Image.fromarray(draw_grid(things))

    alone = [shown(Thing(colour, shape, 5)) for colour in COLORS]
    other = Thing("blue", "star" if shape == "square" else "square", 14)
    beside = [shown(Thing(colour, shape, 3), other) for colour in COLORS]
    for images in (alone, beside):
        before = hashes(images)
        first, second = np.triu_indices(len(COLORS), 1)
        assert not similarity(before[first], before[second]).any()
        for change in CHANGES.keys() - {"cropped by 2 %"}:  # which moves small shapes too far
            assert (similarity(before, hashes(map(CHANGES[change], images))) > 0.8).all(), change


def test_a_small_shape_between_cells_keeps_its_colour():
    def circle(colour):
        image = Image.new("RGB", (GRID * CELL, GRID * CELL), "white")
        ImageDraw.Draw(image).ellipse([CELL - 8, CELL - 8, CELL + 8, CELL + 8], fill=colour)
        return image

    before = hashes(map(circle, COLORS.values()))
    after = hashes(as_jpeg(circle(colour)) for colour in COLORS.values())
    first, second = np.triu_indices(len(COLORS), 1)
    assert not similarity(before[first], before[second]).any()
    assert (similarity(before, after) > 0.8).all()


def test_a_grey_shape_and_a_coloured_one_of_its_brightness_are_two_pictures():
    red = Image.fromarray(draw_grid((Thing("red", "circle", 5),)))
    first, second = hashes([red, red.convert("L").convert("RGB")])
    assert not similarity(first[None], second[None]).any()


def test_a_hash_has_a_fixed_length_and_a_blank_picture_has_none():
    assert len(perceptual_hash(np.asarray(draw(0)))) == HASH_BYTES
    for size in ((1, 1), (300, 200)):
        assert perceptual_hash(np.full((*size, 3), 200, np.uint8)) == b""
    speck = np.full((2000, 2000, 3), 255, np.uint8)
    speck[700:704, 700:704] = 0
    noise = np.random.default_rng(0).integers(252, 256, (600, 400, 3), np.uint8)
    assert perceptual_hash(speck) == perceptual_hash(noise) == b""


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 5000), (3, 3)])
def test_pictures_of_any_shape_have_a_hash(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[-1, -1] = 255
    pixels[: (shape[0] + 1) // 2, : shape[1] // 2] = 255
    assert len(perceptual_hash(pixels)) in (0, HASH_BYTES)
