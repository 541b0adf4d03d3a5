"""Symmetric InfoNCE over the whole batch of all ranks (spec, section 1.2).

Shape suffixes: B = pairs of all ranks, K = explicit hard negatives, D = dimensions.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

MASKED_LOGIT = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveObjective:
    """Symmetric InfoNCE over the batch of all ranks."""

    temperature: float


def info_nce(
    queries_BD: Tensor,
    targets_BD: Tensor,
    negatives_KD: Tensor,
    *,
    keys_B: Tensor,
    owners_K: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of both directions, and the share of queries that rank theirs first.

    Rows with equal keys are never each other's negatives, in either direction. A hard negative
    stands against the query of its owner row only: whether it is wrong for others is unknown.
    """
    count = queries_BD.shape[0]
    similarity_BB = queries_BD @ targets_BD.T / temperature
    own_BB = torch.eye(count, dtype=torch.bool, device=keys_B.device)
    same_BB = (keys_B[:, None] == keys_B[None, :]) & ~own_BB
    similarity_BB = similarity_BB.masked_fill(same_BB, MASKED_LOGIT)
    hard_BK = queries_BD @ negatives_KD.T / temperature
    rows_B = torch.arange(count, device=keys_B.device)
    hard_BK = hard_BK.masked_fill(rows_B[:, None] != owners_K[None, :], MASKED_LOGIT)
    forward = torch.nn.functional.cross_entropy(torch.cat([similarity_BB, hard_BK], 1), rows_B)
    backward = torch.nn.functional.cross_entropy(similarity_BB.T, rows_B)
    first = torch.cat([similarity_BB, hard_BK], 1).argmax(1) == rows_B
    return (forward + backward) / 2, first.float().mean().detach()


def batch_gradient(
    local_ND: Tensor, keys: Sequence[str], owners: Sequence[int], *, temperature: float, rank: int
) -> tuple[float, float, Tensor]:
    """Return loss and accuracy of the whole batch, and the gradient of this rank's vectors.

    ``local_ND`` holds queries, targets and hard negatives, in this order; ``owners`` are the
    negatives' rows on this rank. Every rank must call this.
    """
    count = len(keys)
    sides = [local_ND[:count], local_ND[count : 2 * count], local_ND[2 * count :]]
    parts = [gather_rows(side) for side in sides]
    key_parts = gather_rows(hash_keys(keys).to(local_ND.device))
    before = sum(len(part) for part in key_parts[:rank])
    owner_parts = gather_rows(
        torch.tensor(owners, dtype=torch.int64, device=local_ND.device) + before
    )
    leaves = [torch.cat(part).requires_grad_() for part in parts]
    loss, accuracy = info_nce(
        *leaves,
        keys_B=torch.cat(key_parts),
        owners_K=torch.cat(owner_parts),
        temperature=temperature,
    )
    loss.backward()
    gradients = []
    for leaf, part in zip(leaves, parts, strict=True):
        offset = sum(len(rows) for rows in part[:rank])
        gradients.append(leaf.grad[offset : offset + len(part[rank])])
    return float(loss), float(accuracy), torch.cat(gradients)


def hash_keys(keys: Iterable[str]) -> Tensor:
    """Return one int64 per key, equal for equal keys."""
    return torch.tensor(
        [
            int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), signed=True)
            for key in keys
        ],
        dtype=torch.int64,
    )


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
