"""Content to what a model reads: token ids, pictures and videos, by the model's chat template.

One encoder serves rollout, reward, contrastive and supervised training and evaluation, so that
all of them give a model identical token ids and pixels.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from configs.common import MediaConfig
from configs.reward import Pooling
from data.embed_inputs import SUFFIX, instruction_as_text, media_first
from data.engine.arguments import VIDEO_AS_IT_IS
from data.errors import ConfigError, DataError
from data.media.sizes import fit, fit_video, fitted_size
from data.model.model_folder import load_processor, sees_pictures
from data.tcot import TAG_TEXTS
from data.types import (
    Content,
    Instruction,
    ItemText,
    Picture,
    Pictures,
    Video,
    Visual,
    pictures_in,
    visuals_in,
)

log = logging.getLogger(__name__)

EMB_TOKEN = "<emb>"
VISION_START, VISION_END, VIDEO_TOKEN = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
VISION_TOKENS = (VISION_START, VISION_END, "<|image_pad|>", VIDEO_TOKEN)
MARKUP = (*VISION_TOKENS, EMB_TOKEN, "<|im_start|>", "<|endoftext|>")
"""Tokens that are never sampled, unless one of them ends a turn."""
PUNCTUATION = frozenset(".,:;!?")
MERGED_FRAMES = 2
"""Frames of a video that a model sees as one, with one time."""
TICKS = 1000
"""Engines take a time as a frame's number at so many frames a second; at 1000 the number is
milliseconds."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A video in a prompt."""

    frames: np.ndarray
    """uint8 [T, H, W, 3], T even."""
    ticks: list[int]
    """When each of them is shown, in milliseconds (`TICKS` a second)."""

    def metadata(self) -> dict[str, Any]:
        """Return what tells vLLM and transformers the times, and to take all frames."""
        return {
            "fps": float(TICKS),
            "frames_indices": list(self.ticks),
            "total_num_frames": max(self.ticks) + 1,
            "duration": max(self.ticks) / TICKS,
            "video_backend": "own",
            "do_sample_frames": False,
        }


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in the two forms that engines take."""

    ids: list[int]
    """One token per picture and video, as vLLM wants it (it expands them itself)."""
    expanded: list[int]
    """As many picture tokens as the vision tower emits, and the times of videos, as transformers
    wants it."""
    images: list[Image.Image]
    clips: list[Clip] = field(default_factory=list)
    cut: int = 0
    """Tokens at the end that did not fit and are left out."""

    def multi_modal_data(self) -> dict[str, Any]:
        """Return the pictures and videos as vLLM takes them; empty: none."""
        videos = [(clip.frames, clip.metadata()) for clip in self.clips]
        return {name: data for name, data in (("image", self.images), ("video", videos)) if data}


def load_encoder(folder: str, limits: MediaConfig) -> "TextEncoder":
    """Return the encoder of the folder's model: a `ChatEncoder` where it sees pictures.

    Raises:
        ConfigError: ``limits`` or the processor do not fit (`ChatEncoder`).
        DataError: the folder is incomplete.
    """
    processor = load_processor(folder)
    return ChatEncoder(processor, limits) if sees_pictures(folder) else TextEncoder(processor)


class TextEncoder:
    """Turns content into prompts for one model that reads text only.

    Args:
        tokenizer: the model folder's own Hugging Face tokenizer.
    """

    sees_pictures = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.cut_texts = 0
        """How many item texts were cut, each as often as it was read."""
        added = tokenizer.added_tokens_decoder.values()
        special = {EMB_TOKEN, *VISION_TOKENS, *(str(token) for token in added if token.special)}
        special -= TAG_TEXTS  # some tokenizers hold them as special ones; a trace is made of them
        self._special = re.compile("|".join(map(re.escape, sorted(special))))

    def encode(self, content: Content, pictures: Pictures, *, tail: str = "") -> EncodedPrompt:
        """Return the prompt of one user turn, open for the assistant, plus ``tail``.

        Raises:
            ConfigError: the model has no chat template.
            DataError: a picture was not loaded, the model cannot be shown each once, or an item's
                text is too long for a tokenizer that cannot say where to cut.
        """
        text = self.text(content) + tail
        return self._prompt(
            self.tokenizer.encode(text, add_special_tokens=False), content, pictures
        )

    def prompt_ids(self, content: Content, sizes: Mapping[str, tuple[int, int]]) -> list[int]:
        """Return `encode(content, pictures).expanded` without pixels.

        ``sizes``: (height, width) of each decoded file by uri, in pixels.

        Raises:
            ConfigError, DataError: as `encode`.
        """
        ids = self.tokenizer.encode(self.text(content), add_special_tokens=False)
        return self._expanded(ids, content, sizes)

    def embed(
        self,
        content: Content,
        pictures: Pictures,
        *,
        pooling: Pooling = "emb_token",
        instruction: str = "",
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        """Return what the Embedder reads, in the form that it was trained on.

        `emb_token`: the user's turn and after it `<emb>`, where the Embedder pools. Any other
        pooling: the content without our own suffix, with the special tokens that the tokenizer
        adds by itself. A model that sees pictures gets it as the user's turn, the item's media
        before its texts, after the instruction as system message (as Qwen3-VL-Embedding's own code
        does); a text-only one as plain text right after the instruction, without pictures. Beyond
        ``max_tokens`` the latter's item text is cut further, so that the trace stays whole; what
        still does not fit is cut at the end.

        An instruction in the content itself is the system message in the place of ``instruction``;
        with `emb_token`, and for a text-only model, it begins the text.

        Raises:
            ConfigError: `emb_token` is asked for and the model has no such token.
            DataError: as `encode`.
        """
        ids, read, cut = self._embed_ids(content, pooling, instruction, max_tokens)
        return replace(self._prompt(ids, read, pictures), cut=cut)

    def embed_length(
        self,
        content: Content,
        sizes: Mapping[str, tuple[int, int]],
        *,
        pooling: Pooling = "emb_token",
        instruction: str = "",
        max_tokens: int | None = None,
    ) -> int:
        """Return how many tokens `embed` gives, `len(embed(...).expanded)`, without pixels.

        ``sizes`` as for `prompt_ids`, the rest as for `embed`.

        Raises:
            ConfigError, DataError: as `embed`.
        """
        ids, read, _ = self._embed_ids(content, pooling, instruction, max_tokens)
        return len(self._expanded(ids, read, sizes))

    def check_pooling(self, pooling: Pooling) -> None:
        """Refuse to pool at a token that the model does not have.

        Raises:
            ConfigError: `emb_token` is asked for and the model has no such token.
        """
        if pooling == "emb_token" and EMB_TOKEN not in self._markup_ids:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no {EMB_TOKEN} token, so this "
                "is no Embedder of ours; use a folder that the job `embedder` exported, or set "
                "reward.pooling to what the model was trained with (last, cls or mean)"
            )

    def shown(self, content: Content) -> Content:
        """Return the parts of an Embedder's input that this model can read."""
        return tuple(part for part in content if isinstance(part, str))

    def text(self, content: Content, *, system: str = "") -> str:
        """Return the chat-rendered prompt, open for the assistant's answer; item texts are cut.

        Raises:
            ConfigError: the model has no chat template.
            DataError: a text-only model would have to be shown a picture.
        """
        turns = [{"role": "system", "content": self._parts((system,))}] if system else []
        turns.append({"role": "user", "content": self._parts(self._cut(content))})
        return self._render(turns)

    def response_ids(self, text: str) -> list[int]:
        """Return the tokens of an assistant turn, closed by the end-of-turn token."""
        ids = self.tokenizer.encode(self._plain(text), add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def banned_ids(self) -> list[int]:
        """Return tokens that must never be sampled: pictures, padding, turn starts, `<emb>`."""
        return sorted(set(self._markup_ids.values()) - {self.tokenizer.eos_token_id})

    @cached_property
    def _markup_ids(self) -> dict[str, int]:
        """Ids of `MARKUP`, as far as the tokenizer has it.

        Once: it builds its whole dictionary for every call, which takes tens of milliseconds.
        """
        vocabulary = self.tokenizer.get_vocab()
        return {word: vocabulary[word] for word in MARKUP if word in vocabulary}

    def _parts(self, content: Content) -> Any:
        """Return a turn's content in the form that the chat template takes."""
        unseen = next(pictures_in(content), None)
        if unseen is not None:
            raise DataError(f"{unseen.uri}: a text-only model cannot be shown a picture")
        return self._plain("".join(content))

    def _render(self, turns: list[dict[str, Any]]) -> str:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: expected a chat template, found none; use a model "
                "trained to follow instructions, or put its chat_template.jinja into the folder"
            )
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _embed_ids(
        self, content: Content, pooling: Pooling, instruction: str, max_tokens: int | None
    ) -> tuple[list[int], Content, int]:
        """Return the tokens that an Embedder reads, not yet expanded, what they are of, and the
        number of those that were cut.
        """
        content = self.shown(content)
        if pooling != "emb_token":
            return self._bare_ids(content, instruction, max_tokens)
        self.check_pooling(pooling)
        content = instruction_as_text(content)
        text = self.text(content) + EMB_TOKEN
        return self.tokenizer.encode(text, add_special_tokens=False), content, 0

    def _bare_ids(
        self, content: Content, instruction: str, max_tokens: int | None
    ) -> tuple[list[int], Content, int]:
        def told(over: int = 0) -> str:
            content_texts = _without_suffix(self._cut(instruction_as_text(content), over))
            return instruction + self._plain("".join(content_texts))

        ids = kept = self.tokenizer.encode(told())
        if max_tokens is not None and len(ids) > max_tokens:
            text = told(len(ids) - max_tokens)
            ids = self.tokenizer.encode(text)
            kept = self.tokenizer.encode(text, truncation=True, max_length=max_tokens)
        return kept, content, len(ids) - len(kept)

    def _prompt(self, ids: list[int], content: Content, pictures: Pictures) -> EncodedPrompt:
        return EncodedPrompt(ids=ids, expanded=ids, images=[])

    def _expanded(
        self, ids: list[int], content: Content, sizes: Mapping[str, tuple[int, int]]
    ) -> list[int]:
        return ids

    def _cut(self, content: Content, over: int = 0) -> Content:
        """Return the content with item texts cut to their limit, and by ``over`` more tokens."""
        return tuple(
            part[: part.own.start]
            + self._cut_text(part[part.own], part.most, over)
            + part[part.own.stop :]
            if isinstance(part, ItemText)
            else part
            for part in content
        )

    def _cut_text(self, text: str, most: int, over: int) -> str:
        """Return the first ``most`` tokens of a text, without the last ``over`` of them."""
        tokens = self._count(text)
        room = max(0, min(tokens, most or tokens) - over)
        if tokens <= room:
            return text
        name = self.tokenizer.name_or_path
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{name}: expected at most {room} tokens in an item's text, found {tokens}, and "
                "its tokenizer (one without tokenizer.json) cannot say where to cut; shorten the "
                "text, or set data.item_tokens=0"
            )
        self.cut_texts += 1
        if self.cut_texts.bit_count() == 1:  # 1, 2, 4, 8, ...: a run must not drown in lines
            log.warning(
                "%s: %d item texts so far were longer than data.item_tokens=%d, or than what a "
                "trace leaves of the model's length, and lost their end; the last has %d tokens",
                *(name, self.cut_texts, most, tokens),
            )
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [0, *(end for _, end in read["offset_mapping"][:room])]
        # Cut inside a letter or a word, what remains may be more tokens than it was.
        return next(text[:end] for end in reversed(ends) if self._count(text[:end]) <= room)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> str:
        """Return text without spelled-out special tokens: data must not pose as pictures or turns.

        A blank stands in, so that what is left and right of it cannot join to another one.
        """
        return self._special.sub(" ", text)


class ChatEncoder(TextEncoder):
    """Turns content into prompts for one model of the Qwen-VL family.

    Args:
        processor: the model folder's own Hugging Face processor.
        limits: pixel limits; they must lie inside what the processor leaves unresized.

    Raises:
        ConfigError: the limits do not, or the processor cuts pictures in another way.
    """

    sees_pictures = True

    def __init__(self, processor: Any, limits: MediaConfig) -> None:
        super().__init__(processor.tokenizer)
        self.processor = processor
        self.limits = limits
        image_processor = processor.image_processor
        if not hasattr(image_processor, "merge_size"):
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: expected a picture processor of the Qwen-VL family"
                f" (patch_size and merge_size), found {type(image_processor).__name__}; use a "
                "Qwen-VL model, or a text-only one with data sets of texts"
            )
        self.merge = int(image_processor.merge_size)
        self.factor = int(image_processor.patch_size) * self.merge
        self.image_token = processor.image_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        _check_limits(limits, image_processor.size)

    @property
    def video_token_id(self) -> int | None:
        """Id of the token that stands for a video; None: the tokenizer has none."""
        return self._markup_ids.get(VIDEO_TOKEN)

    def shown(self, content: Content) -> Content:
        """Return the parts of an Embedder's input that this model can read: all."""
        return content

    def _parts(self, content: Content) -> Any:
        return [
            {"type": "text", "text": self._plain(part)}
            if isinstance(part, str)
            else {"type": "video" if isinstance(part, Video) else "image"}
            for part in content
        ]

    def _render(self, turns: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _bare_ids(
        self, content: Content, instruction: str, max_tokens: int | None
    ) -> tuple[list[int], Content, int]:
        content = _without_suffix(self._cut(media_first(content)))
        own = [part.strip() for part in content if isinstance(part, Instruction)]
        if own:
            # Its end is marked, as Qwen3-VL-Embedding's own code does.
            instruction = own[0] if own[0][-1:] in PUNCTUATION else f"{own[0]}."
        shown = tuple(part for part in content if not isinstance(part, Instruction))
        text = self.text(shown, system=instruction)
        return self.tokenizer.encode(text), shown, 0

    def _prompt(self, ids: list[int], content: Content, pictures: Pictures) -> EncodedPrompt:
        visuals = visuals_in(content)
        images = [
            fit(visual, pictures, self.limits, factor=self.factor)
            for visual in visuals
            if isinstance(visual, Picture)
        ]
        clips = [self.clip(visual, pictures) for visual in visuals if isinstance(visual, Video)]
        shown = {picture.uri for picture in pictures_in(content)}
        expanded = self._expanded(ids, content, {uri: pictures[uri].shape[:2] for uri in shown})
        return EncodedPrompt(ids=ids, expanded=expanded, images=images, clips=clips)

    def clip(self, video: Video, pictures: Pictures) -> Clip:
        """Return a video as the model sees it.

        Raises:
            ConfigError: the model sees no videos, or not as Qwen3-VL does.
            DataError: a frame was not loaded.
        """
        self._check_video_processor()
        frames = fit_video(video, pictures, self.limits, factor=self.factor)
        return Clip(frames, _ticks(video))

    def _expanded(
        self, ids: list[int], content: Content, sizes: Mapping[str, tuple[int, int]]
    ) -> list[int]:
        """Return ``ids`` with each picture token repeated once per merged vision patch.

        A video's token becomes for each two of its frames their time, and their patches' tokens
        between the tokens that begin and end a picture.

        Raises:
            ConfigError: as `clip`.
            DataError: not one picture token per picture, or not one video token per video; or a
                picture was not loaded.
        """
        visuals = visuals_in(content)
        images = [visual for visual in visuals if isinstance(visual, Picture)]
        videos = [visual for visual in visuals if isinstance(visual, Video)]
        self._check_count(ids, self.image_token_id, self.image_token, images)
        self._check_count(ids, self.video_token_id, VIDEO_TOKEN, videos)
        if videos:
            self._check_video_processor()
        shown_images, shown_videos = iter(images), iter(videos)
        expanded: list[int] = []
        for token in ids:
            if token == self.image_token_id:
                expanded += [token] * self._patches(next(shown_images), sizes)
            elif token == self.video_token_id:
                expanded += self._video_ids(next(shown_videos), sizes)
            else:
                expanded.append(token)
        return expanded

    def _check_count(
        self, ids: list[int], token_id: int | None, token: str, visuals: Sequence[Any]
    ) -> None:
        if ids.count(token_id) != len(visuals):
            raise DataError(
                f"expected {len(visuals)} {token} in the prompt, found {ids.count(token_id)}: the "
                "model's chat template must show each picture and each video once"
            )

    def _patches(self, visual: Visual, sizes: Mapping[str, tuple[int, int]]) -> int:
        """Return how many merged patches a picture has, or each two frames of a video."""
        height, width = fitted_size(visual, sizes, self.limits, factor=self.factor)
        return (height // self.factor) * (width // self.factor)

    def _video_ids(self, video: Video, sizes: Mapping[str, tuple[int, int]]) -> list[int]:
        start, end = (self._markup_ids[token] for token in (VISION_START, VISION_END))
        count = self._patches(video, sizes)
        patches = [start, *[self._markup_ids[VIDEO_TOKEN]] * count, end]
        ids: list[int] = []
        for stamp in stamps(_ticks(video)):
            ids += [*self.tokenizer.encode(stamp, add_special_tokens=False), *patches]
        return ids

    def _check_video_processor(self) -> None:
        processor = getattr(self.processor, "video_processor", None)
        ours = (self.factor // self.merge, self.merge, MERGED_FRAMES)
        theirs = tuple(
            getattr(processor, name, None)
            for name in ("patch_size", "merge_size", "temporal_patch_size")
        )
        if theirs != ours or self.video_token_id is None:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: expected a video processor as Qwen3-VL has it "
                f"(patch_size, merge_size and temporal_patch_size {ours}), found {theirs}; set "
                "data.media.video=frames"
            )

    def pixels(self, images: list[Image.Image]) -> dict[str, Any]:
        """Return ``pixel_values`` [patches, channels] and ``image_grid_thw`` [images, 3]."""
        batch = self.processor.image_processor(
            images=[np.asarray(image) for image in images], return_tensors="pt", do_resize=False
        )
        return {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}

    def clip_pixels(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """Return ``pixel_values_videos`` [patches, channels] and ``video_grid_thw`` [videos, 3]."""
        batch = self.processor.video_processor(
            videos=[clip.frames for clip in clips], return_tensors="pt", **VIDEO_AS_IT_IS
        )
        return {name: batch[name] for name in ("pixel_values_videos", "video_grid_thw")}


def _ticks(video: Video) -> list[int]:
    """Return the times of the frames that a model sees, in `TICKS` to a second.

    A single frame counts twice, as in `fit_video`.
    """
    ticks = [round(seconds * TICKS) for seconds in video.times]
    return ticks if len(ticks) > 1 else 2 * ticks


def stamps(ticks: Sequence[int]) -> list[str]:
    """Return what the model reads before each two frames: when they are shown, on average."""
    seconds = [tick / TICKS for tick in ticks]
    pairs = zip(seconds[::MERGED_FRAMES], seconds[1::MERGED_FRAMES], strict=True)
    return [f"<{(first + last) / 2:.1f} seconds>" for first, last in pairs]


def _without_suffix(content: Content) -> Content:
    return tuple(
        part.removesuffix(SUFFIX) if isinstance(part, str) and part.endswith(SUFFIX) else part
        for part in content
    )


def _check_limits(limits: MediaConfig, size: Any) -> None:
    """Refuse limits that the model's processor would resize again behind our back."""
    least, most = int(size["shortest_edge"]), int(size["longest_edge"])
    wrong = [
        f"data.media.{name}={getattr(limits, name)}"
        for name in vars(limits)
        if name.endswith("_pixels")
        and name not in ("max_decode_pixels", "video_total_pixels")
        and not least <= getattr(limits, name) <= most
    ]
    if wrong:
        raise ConfigError(
            f"pixel limits must lie in the model processor's own range [{least}, {most}]; "
            f"found {', '.join(wrong)}: change them, or the model's preprocessor_config.json"
        )
