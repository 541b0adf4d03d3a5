"""Symmetric InfoNCE over the whole batch of all ranks (spec, section 1.2).

Shape suffixes: B = pairs of all ranks, K = explicit hard negatives, D = dimensions.
"""

import hashlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

MASKED_LOGIT = -1e9


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
