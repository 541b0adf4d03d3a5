"""Videos as models read them: one size, an even number of frames, their times; half the tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.common import DataSetConfig, MediaConfig
from data.demo.model import build_processor, train_tokenizer
from data.demo.world import FILES, demo_corpus, write_world
from data.embed_inputs import embed_content
from data.engine.arguments import VIDEO_AS_IT_IS
from data.errors import ConfigError, DataError
from data.media.frames import frames_only, sample_frames
from data.media.pictures import load_pictures
from data.media.sizes import fit_video, video_limits
from data.model.chat import ChatEncoder, stamps
from data.sets.load_sets import load_set
from data.types import Kind, Picture, Video, pictures_in, visuals_in

LIMITS = MediaConfig(
    image_min_pixels=1024,
    image_max_pixels=16384,
    page_min_pixels=1024,
    page_max_pixels=16384,
    frame_min_pixels=1024,
    frame_max_pixels=16384,
    crop_min_pixels=1024,
    crop_max_pixels=1024,
)


@pytest.fixture(scope="module")
def processor():
    return build_processor(train_tokenizer(demo_corpus()))


@pytest.fixture(scope="module")
def encoder(processor):
    return ChatEncoder(processor, LIMITS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Return the demo's held-out clips, by how they are shown."""
    root = tmp_path_factory.mktemp("world")
    write_world(root, seed=0, train_scenes=10, heldout_scenes=20, on_target=1.0)
    config = DataSetConfig(
        name="clips",
        path=str(root / f"heldout/{FILES['clips']}.json"),
        root=str(root),
        format="llavahound",
    )
    return {
        form: [pair.query for pair in load_set(config, video=form).pairs]
        for form in ("video", "frames")
    }


def decoded(content):
    shown = list(pictures_in(content))
    pictures, failed = load_pictures(
        {picture.uri for picture in shown}, LIMITS, frames=frames_only(shown)
    )
    assert not failed
    return pictures


def sizes_of(content):
    return {uri: pixels.shape[:2] for uri, pixels in decoded(content).items()}


def test_the_demos_clips_have_the_tokens_and_pixels_of_the_models_own_processor(
    encoder, processor, clips
) -> None:
    assert clips["video"]
    for item in clips["video"]:
        content = embed_content(item, "", item_tokens=0, max_frames=8)
        prompt = encoder.encode(content, decoded(content))
        [clip] = prompt.clips
        metadata = {k: v for k, v in clip.metadata().items() if k != "do_sample_frames"}
        made = processor(
            text=[encoder.text(content)],
            videos=[clip.frames],
            video_metadata=[metadata],
            return_tensors="pt",
            **VIDEO_AS_IT_IS,
        )
        assert made["input_ids"][0].tolist() == prompt.expanded
        assert encoder.prompt_ids(content, sizes_of(content)) == prompt.expanded
        for name, values in encoder.clip_pixels(prompt.clips).items():
            assert torch.equal(values, made[name])
        assert stamps(clip.ticks) == ["<0.2 seconds>", "<1.2 seconds>"]


def test_a_clip_as_a_video_has_half_the_vision_tokens_of_its_frames(encoder, clips, capsys) -> None:
    vision: dict[str, float] = {}
    for form, items in clips.items():
        prompts = []
        for item in items:
            content = embed_content(item, "", item_tokens=0, max_frames=8)
            prompts.append(encoder.encode(content, decoded(content)).expanded)
        seen = (encoder.image_token_id, encoder.video_token_id)
        vision[form] = np.mean([sum(token in seen for token in prompt) for prompt in prompts])
        with capsys.disabled():
            tokens = np.mean([len(prompt) for prompt in prompts])
            print(f"\n{form}: {vision[form]:.1f} vision tokens a clip, {tokens:.1f} in all", end="")
    assert vision["video"] <= 0.55 * vision["frames"]


@given(st.integers(0, 90), st.integers(1, 70))
def test_frames_come_in_pairs_with_both_ends_and_none_twice(count, most) -> None:
    frames = sample_frames(range(count), most, paired=True)
    assert list(frames) == sorted(set(frames))
    assert len(frames) == min(count, most, 1) or len(frames) % 2 == 0
    assert len(frames) >= min(count, most) - 1
    if len(frames) > 1:
        assert (frames[0], frames[-1]) == (0, count - 1)


@given(
    st.integers(1, 32).map(lambda half: 2 * half),
    st.integers(16, 400),
    st.integers(16, 400),
    st.integers(32 * 32, 1 << 18),
)
def test_frames_get_one_size_within_the_limits_of_a_frame_and_of_all(
    count, height, width, share
) -> None:
    total = count * share
    limits = MediaConfig(frame_min_pixels=4096, frame_max_pixels=65536, video_total_pixels=total)
    video = Video((Picture("a", Kind.VIDEO),) * count, tuple(map(float, range(count))))
    least, most = video_limits(video, limits)
    assert 1 <= least <= most <= 65536
    frames = fit_video(video, {"a": np.zeros((height, width, 3), np.uint8)}, limits, factor=32)
    assert frames.shape[0] == count
    assert frames.shape[1] % 32 == frames.shape[2] % 32 == 0
    assert frames[..., 0].size <= total
    assert frames[0, ..., 0].size <= 65536


def test_frames_of_other_sizes_take_the_size_of_the_first() -> None:
    pictures = {"a": np.zeros((64, 96, 3), np.uint8), "b": np.full((100, 40, 3), 9, np.uint8)}
    video = Video((Picture("a", Kind.VIDEO), Picture("b", Kind.VIDEO)), (0.0, 1.0))
    frames = fit_video(video, pictures, LIMITS, factor=32)
    assert frames.shape == (2, 64, 96, 3)
    assert (frames[0].max(), frames[1].min()) == (0, 9)
    with pytest.raises(DataError, match="lost: picture was not loaded"):
        fit_video(replace(video, frames=(Picture("lost", Kind.VIDEO),)), {}, LIMITS, factor=32)


def test_a_video_of_one_frame_shows_it_twice_at_its_time(encoder) -> None:
    video = Video((Picture("a", Kind.VIDEO),), (3.25,))
    prompt = encoder.encode((video,), {"a": np.zeros((64, 64, 3), np.uint8)})
    [clip] = prompt.clips
    assert (clip.frames.shape, clip.ticks) == ((2, 64, 64, 3), [3250, 3250])
    assert prompt.expanded.count(encoder.video_token_id) == 4


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 500], ["<0.2 seconds>"]),
        ([0, 40, 1280, 1320], ["<0.0 seconds>", "<1.3 seconds>"]),
        ([3_600_000, 3_600_100], ["<3600.1 seconds>"]),
    ],
)
def test_two_frames_have_the_mean_of_their_times(ticks, texts) -> None:
    assert stamps(ticks) == texts


def test_a_text_that_spells_a_video_is_none(encoder) -> None:
    prompt = encoder.encode(("a <|video_pad|> b",), {})
    assert encoder.video_token_id not in prompt.expanded


def test_a_processor_without_videos_is_refused_when_it_is_shown_one(processor, encoder) -> None:
    video = Video((Picture("a", Kind.VIDEO),), (0.0,))
    blind = build_processor(processor.tokenizer)
    blind.video_processor = None
    with pytest.raises(ConfigError, match=r"set data\.media\.video=frames"):
        ChatEncoder(blind, LIMITS).encode((video,), {"a": np.zeros((32, 32, 3), np.uint8)})
    template = replace_video(encoder.processor.chat_template)
    untold = build_processor(processor.tokenizer)
    untold.chat_template = template
    with pytest.raises(DataError, match=r"expected 1 <\|video_pad\|> in the prompt, found 0"):
        ChatEncoder(untold, LIMITS).encode((video,), {"a": np.zeros((32, 32, 3), np.uint8)})


def replace_video(template: str) -> str:
    """Return a chat template that leaves videos out."""
    shown = "<|vision_start|><|video_pad|><|vision_end|>"
    assert shown in template
    return template.replace(shown, "")


def test_a_key_frame_beside_its_video_stays_a_picture(encoder, clips) -> None:
    item = clips["video"][0]
    trace = '<thinking>late{"key_frames": [2]}</thinking><rethink>yes</rethink><answer>it</answer>'
    content = embed_content(item, trace, item_tokens=0, max_frames=8)
    video, frame = visuals_in(content)
    assert video.frames[1] == frame
    prompt = encoder.encode(content, decoded(content))
    assert (len(prompt.clips), len(prompt.images)) == (1, 1)
    assert set(prompt.multi_modal_data()) == {"image", "video"}
    tokens = prompt.expanded
    assert tokens.index(encoder.video_token_id) < tokens.index(encoder.image_token_id)
