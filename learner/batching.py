"""Samples to padded micro-batches: which rank computes what, and the tensors it computes with.

Shape suffixes: B = rows, L = padded length, T = response tokens of all rows, laid end to end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.chat import ChatEncoder, TextEncoder
from data.errors import DataError
from data.media import fit
from data.types import EmbedRequest, Picture, Pictures, TrainSample


@dataclass(frozen=True, slots=True)
class Patches:
    """One picture as the vision tower reads it."""

    values: Tensor
    """float32 [patches, channels]."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of a micro-batch: all its tokens, and its pictures in order."""

    key: str
    ids: np.ndarray
    pictures: tuple[Picture, ...]
    num_response: int = 0
    """Tokens at the end that carry loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A padded micro-batch. Rows beyond the given ones are fillers without loss."""

    inputs: dict[str, Tensor]
    """What the model's forward takes."""
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
    start: int
    end: int
    merge: int
    """Patches merged into one token, per side."""
    channels: int
    """Values of one patch."""


def plan_micro_batches(
    lengths: Sequence[int], *, ranks: int, budget_tokens: int
) -> list[list[list[int]]]:
    """Return sample indices by [rank][micro-batch]: every rank has equally many micro-batches.

    A micro-batch costs its rows times its longest row and stays within ``budget_tokens``; a longer
    sequence goes alone. Rows of similar length share a micro-batch, and the dearest one is as
    cheap as the number of micro-batches allows. Some may be empty. The plan depends on the
    lengths only.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    ordered = [lengths[index] for index in order]
    rounds = -(-len(_cut(ordered, budget_tokens)) // ranks)
    low, high = 1, budget_tokens
    while low < high:  # the least cost limit that still fits into the same number of rounds
        middle = (low + high) // 2
        if len(_cut(ordered, middle)) <= rounds * ranks:
            high = middle
        else:
            low = middle + 1
    sizes = _cut(ordered, high)
    chunks: list[list[int]] = []
    start = 0
    for size in sizes:
        chunks.append(order[start : start + size])
        start += size
    chunks += [[] for _ in range(rounds * ranks - len(chunks))]
    cost = [len(chunk) * lengths[chunk[0]] if chunk else 0 for chunk in chunks]
    by_cost = sorted(range(len(chunks)), key=lambda index: (-cost[index], index))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for turn in range(rounds):
        # Within a round costs are alike, so ranks wait little for each other; the rank with the
        # least work so far takes the dearest.
        idle = sorted(range(ranks), key=lambda rank: (load[rank], rank))
        for rank, index in zip(idle, by_cost[turn * ranks : (turn + 1) * ranks], strict=True):
            plan[rank].append(chunks[index])
            load[rank] += cost[index]
    return plan


def _cut(ordered: Sequence[int], limit: int) -> list[int]:
    """Return the sizes of the fewest consecutive runs whose padded tokens stay within limit."""
    sizes: list[int] = []
    longest = 0
    for length in ordered:  # descending: the first of a run is its longest
        if sizes and (sizes[-1] + 1) * longest <= limit:
            sizes[-1] += 1
        else:
            sizes.append(1)
            longest = length
    return sizes


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
        pictures=tuple(part for part in sample.content if isinstance(part, Picture)),
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
        pictures=tuple(part for part in request.content if isinstance(part, Picture)),
    )


def process_pictures(
    wanted: Iterable[Picture], pictures: Pictures, encoder: TextEncoder
) -> dict[Picture, Patches]:
    """Return the patches of each distinct picture: siblings share theirs.

    A text-only model has been shown none.

    Raises:
        DataError: a picture was not loaded.
    """
    distinct = list(dict.fromkeys(wanted))
    if not distinct or not isinstance(encoder, ChatEncoder):
        return {}
    pixels = encoder.pixels(
        [fit(picture, pictures, encoder.limits, factor=encoder.factor) for picture in distinct]
    )
    grids = [(int(t), int(h), int(w)) for t, h, w in pixels["image_grid_thw"].tolist()]
    values = torch.split(pixels["pixel_values"], [t * h * w for t, h, w in grids])
    return {
        picture: Patches(part, grid)
        for picture, part, grid in zip(distinct, values, grids, strict=True)
    }


def collate(rows: Sequence[Row], patches: Mapping[Picture, Patches], tokens: TextTokens) -> Batch:
    """Return the rows padded on the right; ``tokens`` says whether the model sees pictures.

    Where it does, every batch shows the vision tower at least one picture: without one, a filler
    row with a blank picture is added. Ranks whose batches differ in what they run would otherwise
    reduce other gradients than their neighbours (ZeRO 1, 2) or wait for ever (ZeRO 3). For the
    same reason a text-only model gets a filler row where there is no row at all.

    Raises:
        DataError: a row's picture tokens do not match its pictures.
    """
    ids = [row.ids for row in rows]
    shown: list[Patches] = []
    if isinstance(tokens, VisionTokens):
        for row in rows:
            _check_pictures(row, patches, tokens)
        shown = [patches[picture] for row in rows for picture in row.pictures]
        if not shown:
            ids = [*ids, np.array([tokens.start, tokens.image, tokens.end])]
            side = tokens.merge
            shown = [Patches(torch.zeros(side * side, tokens.channels), (1, side, side))]
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
    if isinstance(tokens, VisionTokens):
        inputs |= {
            "mm_token_type_ids": torch.from_numpy((input_ids == tokens.image).astype(np.int64)),
            "pixel_values": torch.cat([part.values for part in shown]),
            "image_grid_thw": torch.tensor([part.grid for part in shown]),
        }
    return Batch(
        inputs=inputs,
        last_B=torch.tensor([len(row.ids) - 1 for row in rows], dtype=torch.long),
        rows_T=torch.from_numpy(index_T.astype(np.int64)),
        columns_T=torch.from_numpy(columns_T),
        targets_T=torch.from_numpy(input_ids[index_T, columns_T + 1]),
    )


def _check_pictures(row: Row, patches: Mapping[Picture, Patches], tokens: VisionTokens) -> None:
    """Refuse a row whose picture tokens and vision features would not match one to one."""
    expected = sum(int(np.prod(patches[p].grid)) // tokens.merge**2 for p in row.pictures)
    found = int((row.ids == tokens.image).sum())
    if found != expected:
        raise DataError(
            f"{row.key}: expected {expected} picture tokens for its {len(row.pictures)} pictures, "
            f"found {found} in prompt and response; the prompt was expanded with other pixel "
            "limits, or picture tokens were not banned in sampling"
        )
