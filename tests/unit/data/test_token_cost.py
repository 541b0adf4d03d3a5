"""What contents cost, by hand."""

from configs.common import MediaConfig
from data.prompts import join_texts, own_text
from data.token_cost import STAMP_TOKENS, content_cost
from data.types import Box, Item, Kind, Picture, Video

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


def test_an_item_text_costs_what_is_read_of_it() -> None:
    def cost(item_tokens: int) -> float:
        text = join_texts("x" * 40, own_text(Item(text="y" * 400), item_tokens), "z" * 20)
        return content_cost((text,), SIZES, MEDIA)

    assert [cost(tokens) for tokens in (0, 30, 99, 100, 101)] == [115, 45, 114, 115, 115]


def test_a_video_costs_half_of_its_frames_and_its_times_by_hand() -> None:
    media = MediaConfig(frame_min_pixels=1024, frame_max_pixels=4096, video_total_pixels=16 * 1024)

    def cost(name: str, count: int) -> float:
        frames = (Picture(name, Kind.VIDEO),) * count
        return content_cost((Video(frames, tuple(map(float, range(count)))),), SIZES, media)

    assert cost("a", 4) == 2 * (4 + STAMP_TOKENS)
    assert cost("wide", 4) == 2 * (4 + STAMP_TOKENS)
    assert cost("wide", 8) == 4 * (2 + STAMP_TOKENS)  # the total leaves each frame 2048 pixels
    assert cost("a", 1) == 4 + STAMP_TOKENS
