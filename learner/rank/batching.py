"""Samples to padded micro-batches: the tensors that a rank computes with.

A picture here may be a video, which the vision tower reads as one.

Shape suffixes: B = rows, L = padded length, T = response tokens of all rows, laid end to end.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.media.sizes import fit
from data.model.chat import ChatEncoder, TextEncoder
from data.types import EmbedRequest, Picture, Pictures, TrainSample, Video, Visual, visuals_in
from learner.micro_batches import RowCost

VIDEO_TYPE = 2
"""What Qwen-VL's position code calls a video's token; a picture's is 1, others are 0."""


@dataclass(frozen=True, slots=True)
class Patches:
    """One picture or video as the vision tower reads it."""

    values: Tensor
    """float32 [patches, channels]."""
    grid: tuple[int, int, int]
    """Frames (of a video merged ones), rows and columns of patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of a micro-batch: all its tokens, and its pictures in order."""

    key: str
    ids: np.ndarray
    pictures: tuple[Visual, ...]
    num_response: int = 0
    """Tokens at the end that carry loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The pictures of a micro-batch, each distinct one once: siblings share theirs."""

    values: Tensor
    """float32 [patches, channels]."""
    grid: Tensor
    """Frames, rows and columns of patches of each, [pictures, 3]."""
    shown: Tensor
    """Which of them the rows show as pictures, row after row in order."""
    shown_videos: Tensor
    """Which of them the rows show as videos."""

    def to(self, device: torch.device) -> "Vision":
        """Return them on that device."""
        return Vision(
            values=self.values.to(device),
            grid=self.grid.to(device),
            shown=self.shown.to(device),
            shown_videos=self.shown_videos.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A padded micro-batch. Rows beyond the given ones are fillers without loss."""

    inputs: dict[str, Tensor]
    """What the model's forward takes, pixels left out."""
    vision: Vision | None
    """None: the model sees no pictures."""
    last_B: Tensor
    """Index of each given row's last token."""
    rows_T: Tensor
    columns_T: Tensor
    """Where the hidden state that predicts each response token lies."""
    targets_T: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on that device."""
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            vision=None if self.vision is None else self.vision.to(device),
            last_B=self.last_B.to(device),
            rows_T=self.rows_T.to(device),
            columns_T=self.columns_T.to(device),
            targets_T=self.targets_T.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTokens:
    """What collation must know of a text-only model's tokens."""

    pad: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTokens(TextTokens):
    """What collation must know of the tokens of a model that sees pictures."""

    image: int
    video: int | None = None
    """None: the model sees no videos."""
    start: int
    end: int
    merge: int
    """Patches merged into one token, per side."""
    channels: int
    """Values of one patch."""


def train_row(sample: TrainSample) -> Row:
    """Return the row of a training sample.

    Raises:
        DataError: the sample has no prompt or no response.
    """
    if len(sample.prompt_ids) == 0 or len(sample.response_ids) == 0:
        raise DataError(
            f"{sample.key}: expected at least one prompt and one response token, found "
            f"{len(sample.prompt_ids)} and {len(sample.response_ids)}; drop the sample"
        )
    return Row(
        key=sample.key,
        ids=np.concatenate([sample.prompt_ids, sample.response_ids]),
        pictures=visuals_in(sample.content),
        num_response=len(sample.response_ids),
    )


def embed_row(request: EmbedRequest, pictures: Pictures, encoder: ChatEncoder) -> Row:
    """Return the row of an input to embed; its last token is where the Embedder pools.

    Raises:
        ConfigError: the model has no `<emb>` token.
        DataError: a picture was not loaded.
    """
    return Row(
        key=request.key,
        ids=np.array(encoder.embed(request.content, pictures).expanded),
        pictures=visuals_in(request.content),
    )


def process_pictures(
    wanted: Iterable[Visual], pictures: Pictures, encoder: TextEncoder
) -> dict[Visual, Patches]:
    """Return the patches of each distinct picture and video: siblings share theirs.

    A text-only model has been shown none.

    Raises:
        DataError: a picture was not loaded.
    """
    distinct = dict.fromkeys(wanted)
    if not isinstance(encoder, ChatEncoder):
        return {}
    patches: dict[Visual, Patches] = {}
    if images := [visual for visual in distinct if isinstance(visual, Picture)]:
        pixels = encoder.pixels(
            [fit(picture, pictures, encoder.limits, factor=encoder.factor) for picture in images]
        )
        patches |= _split(images, pixels["pixel_values"], pixels["image_grid_thw"])
    if videos := [visual for visual in distinct if isinstance(visual, Video)]:
        pixels = encoder.clip_pixels([encoder.clip(video, pictures) for video in videos])
        patches |= _split(videos, pixels["pixel_values_videos"], pixels["video_grid_thw"])
    return patches


def _split(visuals: Sequence[Visual], values: Tensor, grid: Tensor) -> dict[Visual, Patches]:
    """Return each one's part of ``values`` [patches, channels]; ``grid`` as in `Vision`."""
    grids = [(int(t), int(h), int(w)) for t, h, w in grid.tolist()]
    parts = torch.split(values, [math.prod(sides) for sides in grids])
    return {
        visual: Patches(part, sides)
        for visual, part, sides in zip(visuals, parts, grids, strict=True)
    }


def row_cost(row: Row, patches: Mapping[Visual, Patches], tokens: TextTokens) -> RowCost:
    """Return what planning must know of a row; pictures cost a model that sees them."""
    pictures: dict[Visual, int] = {}
    if isinstance(tokens, VisionTokens):
        pictures = {p: _merged(patches[p], tokens) for p in row.pictures}
    return RowCost(tokens=len(row.ids), pictures=pictures)


def collate(rows: Sequence[Row], patches: Mapping[Visual, Patches], tokens: TextTokens) -> Batch:
    """Return the rows padded on the right; ``tokens`` says whether the model sees pictures.

    Where it does, every batch shows the vision tower at least one picture: without one, a filler
    row with a blank picture is added. Ranks whose batches differ in what they run would otherwise
    reduce other gradients than their neighbours (ZeRO 1, 2) or wait for ever (ZeRO 3). For the
    same reason a text-only model gets a filler row where there is no row at all.

    Raises:
        DataError: a row's picture tokens do not match its pictures.
    """
    ids = [row.ids for row in rows]
    vision = None
    if isinstance(tokens, VisionTokens):
        for row in rows:
            _check_pictures(row, patches, tokens)
        vision = _vision([picture for row in rows for picture in row.pictures], patches)
        if vision is None:
            ids = [*ids, np.array([tokens.start, tokens.image, tokens.end])]
            vision = _blank(tokens)
    elif not ids:
        ids = [np.array([tokens.pad])]
    length = max(len(row) for row in ids)
    input_ids = np.full((len(ids), length), tokens.pad, dtype=np.int64)
    attention = np.zeros((len(ids), length), dtype=np.int64)
    for index, row in enumerate(ids):
        input_ids[index, : len(row)] = row
        attention[index, : len(row)] = 1
    columns = [np.arange(len(r.ids) - r.num_response, len(r.ids)) - 1 for r in rows]
    index_T = np.repeat(np.arange(len(rows)), [row.num_response for row in rows])
    columns_T = np.concatenate([*columns, np.zeros(0, dtype=np.int64)])
    inputs = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
    }
    if vision is not None:
        types = (input_ids == tokens.image).astype(np.int64)
        if len(vision.shown):
            inputs["image_grid_thw"] = vision.grid[vision.shown]
        if len(vision.shown_videos):
            types[input_ids == tokens.video] = VIDEO_TYPE
            inputs["video_grid_thw"] = vision.grid[vision.shown_videos]
        inputs["mm_token_type_ids"] = torch.from_numpy(types)
    return Batch(
        inputs=inputs,
        vision=vision,
        last_B=torch.tensor([len(row.ids) - 1 for row in rows], dtype=torch.long),
        rows_T=torch.from_numpy(index_T.astype(np.int64)),
        columns_T=torch.from_numpy(columns_T),
        targets_T=torch.from_numpy(input_ids[index_T, columns_T + 1]),
    )


def _vision(shown: Sequence[Visual], patches: Mapping[Visual, Patches]) -> Vision | None:
    """Return what the vision tower must read; None where no picture is shown."""
    index = {picture: i for i, picture in enumerate(dict.fromkeys(shown))}
    if not index:
        return None
    places = [(picture, index[picture]) for picture in shown]
    return Vision(
        values=torch.cat([patches[picture].values for picture in index]),
        grid=torch.tensor([patches[picture].grid for picture in index]),
        shown=torch.tensor([i for p, i in places if isinstance(p, Picture)], dtype=torch.long),
        shown_videos=torch.tensor([i for p, i in places if isinstance(p, Video)], dtype=torch.long),
    )


def _blank(tokens: VisionTokens) -> Vision:
    """Return one blank picture of one token."""
    side = tokens.merge
    return Vision(
        values=torch.zeros(side * side, tokens.channels),
        grid=torch.tensor([[1, side, side]]),
        shown=torch.tensor([0]),
        shown_videos=torch.tensor([], dtype=torch.long),
    )


def _check_pictures(row: Row, patches: Mapping[Visual, Patches], tokens: VisionTokens) -> None:
    """Refuse a row whose picture tokens and vision features would not match one to one."""
    for kind, name, token in ((Picture, "picture", tokens.image), (Video, "video", tokens.video)):
        visuals = [visual for visual in row.pictures if isinstance(visual, kind)]
        expected = sum(_merged(patches[visual], tokens) for visual in visuals)
        count = 0 if token is None else int((row.ids == token).sum())
        if count != expected:
            raise DataError(
                f"{row.key}: expected {expected} {name} tokens for its {len(visuals)} {name}s, "
                f"found {count} in prompt and response; the prompt was expanded with other pixel "
                f"limits, or {name} tokens were not banned in sampling"
            )


def _merged(patches: Patches, tokens: VisionTokens) -> int:
    """Return how many tokens the vision tower makes of a picture."""
    return math.prod(patches.grid) // tokens.merge**2
