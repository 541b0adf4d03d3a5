"""What contents cost, by hand."""

from configs.common import MediaConfig
from data.token_cost import content_cost
from data.types import Box, Kind, Picture

MEDIA = MediaConfig(
    image_min_pixels=1024,
    image_max_pixels=8 * 1024,
    crop_min_pixels=2 * 1024,
    crop_max_pixels=4 * 1024,
)
SIZES = {"a": (64, 64), "wide": (1024, 1024)}


def test_the_cost_of_a_content_by_hand() -> None:
    content = (
        "x" * 40,
        Picture("a", Kind.IMAGE),
        Picture("wide", Kind.IMAGE),
        Picture("a", Kind.IMAGE, Box(0.0, 0.0, 0.5, 0.5)),
        Picture("wide", Kind.IMAGE, Box(0.0, 0.0, 1.0, 0.5)),
        Picture("missing", Kind.IMAGE),
    )
    # 40 characters; 64 x 64; cut to the image limit; raised to and cut to the crop's limits; least.
    assert content_cost(content, SIZES, MEDIA) == 10 + 4 + 8 + 2 + 4 + 1
    assert content_cost((), SIZES, MEDIA) == 0
