"""Symmetric InfoNCE over the whole batch of all ranks.

Shape suffixes: B = pairs of all ranks, K = explicit hard negatives, R = targets known to be right
for a row's query, D = dimensions, N = vectors of this rank: queries, targets and hard negatives, in
this order.

The batch is not bounded by memory (GradCache, Gao et al., 2021): vectors are made in micro-batches
without graph, the loss of the whole batch gives each vector its gradient, and a second pass sends
that through the model. Both passes of a micro-batch draw the same random numbers, so with dropout
the gradient is that of the very vectors the loss was computed on. What a micro-batch draws depends
on how the batch is cut, so only without dropout is the result that of one large pass.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.learner import TEMPERATURES
from data.types import ContrastPair
from learner.objectives import ContrastiveObjective
from learner.rank.accumulate import Backward
from learner.rank.batching import Batch

MASKED_LOGIT = -1e9


class Temperature(nn.Module):
    """The temperature of the similarities: a number, or a parameter that stays within bounds.

    The parameter is the logarithm (Radford et al., 2021, CLIP), squashed into the bounds of
    TEMPERATURES. Clamping would leave no gradient at a bound.
    """

    def __init__(self, initial: float, *, learned: bool) -> None:
        super().__init__()
        self.initial = initial
        self.raw: nn.Parameter | None = None
        if learned:
            low, high = (math.log(bound) for bound in TEMPERATURES)
            share = (math.log(initial) - low) / (high - low)
            self.raw = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))

    def forward(self, like: Tensor) -> Tensor:
        """Return the temperature, [1], in the precision and on the device of ``like``."""
        if self.raw is None:
            return like.new_full((1,), self.initial)
        low, high = (math.log(bound) for bound in TEMPERATURES)
        return torch.exp(low + (high - low) * torch.sigmoid(self.raw.to(like)))


def info_nce(
    queries_BD: Tensor,
    targets_BD: Tensor,
    negatives_KD: Tensor,
    *,
    right_BB: Tensor,
    owners_K: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of both directions, and the share of queries that rank theirs first.

    ``right_BB`` says for each row's query which other rows' targets are right: these two are no
    negatives of each other, in either direction. A hard negative stands against the query of its
    owner row only: whether it is wrong for others is unknown.
    """
    similarity_BB = (queries_BD @ targets_BD.T / temperature).masked_fill(right_BB, MASKED_LOGIT)
    rows_B = torch.arange(len(queries_BD), device=owners_K.device)
    hard_BK = queries_BD @ negatives_KD.T / temperature
    hard_BK = hard_BK.masked_fill(rows_B[:, None] != owners_K[None, :], MASKED_LOGIT)
    forward = torch.nn.functional.cross_entropy(torch.cat([similarity_BB, hard_BK], 1), rows_B)
    backward = torch.nn.functional.cross_entropy(similarity_BB.T, rows_B)
    first = torch.cat([similarity_BB, hard_BK], 1).argmax(1) == rows_B
    return (forward + backward) / 2, first.float().mean().detach()


def leading(vectors: Tensor, size: int) -> Tensor:
    """Return the first ``size`` dimensions of unit vectors, of length 1 again, [..., size]."""
    if size == vectors.shape[-1]:
        return vectors
    return torch.nn.functional.normalize(vectors[..., :size], dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoss:
    """The loss of the whole batch, the same on every rank, and its gradients."""

    loss: float
    accuracy: float
    """Share of queries that rank their target first, by whole vectors."""
    temperature: float
    vectors_ND: Tensor
    """Gradient of this rank's vectors."""
    temperature_gradient: Tensor
    """[1]."""


def batch_loss(
    local_ND: Tensor,
    rows: Sequence[ContrastPair],
    temperature: Tensor,
    *,
    dimensions: Sequence[int] = (),
) -> BatchLoss:
    """Return loss and gradients of the batch that this rank's vectors are a part of.

    With ``dimensions``, the loss is the mean over these leading parts and the whole vector. Every
    rank must call this; the numbers of rows may differ.
    """
    rank, count, device = dist.get_rank(), len(rows), local_ND.device
    parts = [gather_rows(side) for side in local_ND.tensor_split((count, 2 * count))]
    target_parts = gather_rows(_numbers([row.target_key for row in rows]).to(device))
    before = sum(len(part) for part in target_parts[:rank])
    known = [(before + index, key) for index, row in enumerate(rows) for key in row.right]
    knower_parts = gather_rows(
        torch.tensor([index for index, _ in known], dtype=torch.int64, device=device)
    )
    known_parts = gather_rows(_numbers([key for _, key in known]).to(device))
    owners = [before + index for index, row in enumerate(rows) for _ in row.negatives]
    owner_parts = gather_rows(torch.tensor(owners, dtype=torch.int64, device=device))
    right_BB = mark_right(torch.cat(target_parts), torch.cat(knower_parts), torch.cat(known_parts))
    leaves = [torch.cat(part).requires_grad_() for part in parts]
    heat = temperature.detach().requires_grad_()
    results = [
        info_nce(
            *(leading(leaf, size) for leaf in leaves),
            right_BB=right_BB,
            owners_K=torch.cat(owner_parts),
            temperature=heat,
        )
        for size in (*dimensions, local_ND.shape[1])
    ]
    loss = torch.stack([size_loss for size_loss, _ in results]).mean()
    loss.backward()
    own = []
    for leaf, part in zip(leaves, parts, strict=True):
        offset = sum(len(rank_vectors) for rank_vectors in part[:rank])
        own.append(leaf.grad[offset : offset + len(part[rank])])
    return BatchLoss(
        loss=float(loss.detach()),
        accuracy=float(results[-1][1]),
        temperature=float(heat.detach()),
        vectors_ND=torch.cat(own),
        temperature_gradient=heat.grad,
    )


class Embeds(Backward, Protocol):
    """An `EmbeddingHead` that is trained; `learner.rank.deepspeed_engine.TrainEngine` holds one."""

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return unit vectors [B, D] and the temperature [1]."""

    def seed_dropout(self, turn: int) -> None:
        """Make the next pass draw what it draws in every run, by step, rank and this turn."""


def accumulate_contrast(
    engine: Embeds,
    batches: Sequence[Batch],
    row_indices: Sequence[Sequence[int]],
    rows: Sequence[ContrastPair],
    *,
    objective: ContrastiveObjective,
) -> BatchLoss:
    """Add the gradient of the whole batch's loss, and return it.

    ``batches`` are micro-batches, as many as on every other rank; ``row_indices`` holds the index
    in N of each of their rows. One micro-batch needs one pass only.
    """

    def embed(turn: int) -> tuple[Tensor, Tensor]:
        engine.seed_dropout(turn)
        return engine.forward(batches[turn])

    single = len(batches) == 1
    with torch.set_grad_enabled(single):
        made = [embed(turn) for turn in range(len(batches))]
    total = sum(len(indices) for indices in row_indices)
    local_ND = made[0][0].new_empty(total, made[0][0].shape[1])
    for indices, (vectors, _) in zip(row_indices, made, strict=True):
        local_ND[list(indices)] = vectors.detach()
    contrast = batch_loss(local_ND, rows, made[0][1], dimensions=objective.dimensions)
    ranks = dist.get_world_size()
    for turn, indices in enumerate(row_indices):
        vectors, temperature = made[turn] if single else embed(turn)
        # The engine averages over ranks: vectors are each rank's own, the temperature is shared.
        loss = ranks * (vectors * contrast.vectors_ND[list(indices)]).sum()
        loss = loss + (temperature * contrast.temperature_gradient).sum() / len(batches)
        engine.backward(loss, last=turn == len(batches) - 1)
    return contrast


def mark_right(targets_B: Tensor, rows_R: Tensor, known_R: Tensor) -> Tensor:
    """Return for each row's query which other rows' targets are right, boolean [B, B].

    Targets are given by numbers that are equal where the targets are; ``known_R`` are further ones
    that are right for the queries of ``rows_R``.
    """
    count = len(targets_B)
    names, code = torch.unique(torch.cat([targets_B, known_R]), return_inverse=True)
    right = torch.zeros(count, len(names), dtype=torch.bool, device=targets_B.device)
    right[torch.arange(count, device=targets_B.device), code[:count]] = True
    right[rows_R, code[count:]] = True
    return right[:, code[:count]].fill_diagonal_(False)


def _numbers(texts: Sequence[str]) -> Tensor:
    """Return a number for each text, int64, the same on every rank."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    numbers = [int.from_bytes(digest, signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.int64)


def gather_rows(local: Tensor) -> list[Tensor]:
    """Return every rank's rows, [rows of rank, ...] by rank; the numbers of rows may differ."""
    ranks = dist.get_world_size()
    size = torch.tensor([local.shape[0]], device=local.device)
    sizes = [torch.zeros_like(size) for _ in range(ranks)]
    dist.all_gather(sizes, size)
    counts = [int(size.item()) for size in sizes]
    padded = local.new_zeros((max(counts), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
