"""RL steps of the learner beside a bare PyTorch loop, and beside micro-batches as they come."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.types import Picture, Pictures, TrainSample
from learner.micro_batches import MiniBatch, RowCost, plan_micro_batches
from learner.rank.batching import Batch, collate, process_pictures, train_row
from learner.rank.models import TokenHead, load_model, load_reference, model_tokens
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens
from learner.rank.worker import LearnerWorker
from tests.bench.parts.learner_ranks import (
    RANKS,
    build,
    demo_config,
    demo_steps,
    on_ranks,
    picture_tokens,
    write_model,
)
from tests.bench.record import alternate, record

Shares = list[list[list[TrainSample]]]
"""By rank and micro-batch."""
Seconds = tuple[list[float], list[float]]


def planned(samples: Sequence[TrainSample], pictures: Pictures) -> Shares:
    """Return the shares that the learner group makes."""
    rows = [
        RowCost(
            tokens=len(one.prompt_ids) + len(one.response_ids),
            pictures={
                part: picture_tokens(pictures[part.uri])
                for part in one.content
                if isinstance(part, Picture)
            },
        )
        for one in samples
    ]
    budget = demo_config().learner.micro_batch_tokens
    plan = plan_micro_batches(rows, ranks=RANKS, budget_tokens=budget)
    return [[[samples[i] for i in micro] for micro in share] for share in plan]


def naive(shares: Shares, seed: int) -> Shares:
    """Return the same samples in any order, in as many micro-batches of as many rows."""
    samples = [one for share in shares for micro in share for one in micro]
    order = iter(np.random.default_rng(seed).permutation(len(samples)))
    return [[[samples[next(order)] for _ in micro] for micro in share] for share in shares]


def padding(shares: Shares) -> float:
    """Return the share of all tokens that is padding."""
    lengths = [
        [len(one.prompt_ids) + len(one.response_ids) for one in micro]
        for share in shares
        for micro in share
        if micro
    ]
    return 1 - sum(map(sum, lengths)) / sum(len(micro) * max(micro) for micro in lengths)


class BareLoop:
    """The same model, loss and micro-batches in plain PyTorch; the tensors are made before."""

    def __init__(self, worker: LearnerWorker, model: Path) -> None:
        self.config = demo_config()
        self.encoder = worker._encoder
        self.head = TokenHead(load_model(str(model), self.config.learner))
        self.reference = load_reference(str(model), self.config.learner)
        self.tokens = model_tokens(self.head.net, self.encoder.tokenizer)
        self.banned = torch.tensor(self.encoder.banned_ids())
        o = self.config.learner.optimizer
        self.clip = o.grad_clip
        self.parameters = list(self.head.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=o.lr,
            betas=(o.beta1, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
        )

    def batches(self, micro_batches: list[list[TrainSample]], pictures: Pictures) -> list[Batch]:
        """Return the tensors of the micro-batches."""
        wanted = [part for micro in micro_batches for one in micro for part in one.content]
        patches = process_pictures(wanted, pictures, self.encoder)
        rows = [[train_row(one) for one in micro] for micro in micro_batches]
        return [collate(some, patches, self.tokens) for some in rows]

    def step(
        self, micro_batches: list[list[TrainSample]], batches: list[Batch], total: int
    ) -> None:
        """Take one step; ``total`` counts the response tokens of all ranks."""
        grpo = self.config.grpo
        for samples, batch in zip(micro_batches, batches, strict=True):
            with torch.no_grad():
                reference_T, _, _ = self.reference(batch, banned=self.banned)
            now_T, entropy_T, _ = self.head(batch, banned=self.banned)
            tokens = policy_tokens(samples, now_T, entropy_T, reference_T, loss_mean=grpo.loss_mean)
            loss, _, _ = policy_loss(tokens, grpo)
            (loss / total).backward()
        flat = torch.cat([param.grad.flatten() for param in self.parameters])
        dist.all_reduce(flat)
        sizes = [param.numel() for param in self.parameters]
        for param, part in zip(self.parameters, flat.split(sizes), strict=True):
            param.grad.copy_(part.view_as(param))
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(worker: LearnerWorker, model: Path) -> tuple[Seconds, Seconds]:
    """Return the seconds of all steps: against the bare loop, and against naive padding."""
    steps = demo_steps(model)
    build(worker, model)
    bare = BareLoop(worker, model)
    totals = [sum(len(one.response_ids) for one in samples) for samples, _ in steps]
    shares = [planned(*step) for step in steps]
    mixed = [naive(share, seed) for seed, share in enumerate(shares)]
    ready = [
        bare.batches(share[worker.rank], pictures)
        for share, (_, pictures) in zip(shares, steps, strict=True)
    ]

    def learner(chosen: list[Shares]) -> None:
        for share, (samples, pictures), total in zip(chosen, steps, totals, strict=True):
            whole = MiniBatch(
                micro_batches=share[worker.rank], total_tokens=total, total_traces=len(samples)
            )
            report = worker.train_policy([whole], pictures)
            assert not report.broken

    def loop() -> None:
        for share, batches, total in zip(shares, ready, totals, strict=True):
            bare.step(share[worker.rank], batches, total)

    return (
        alternate(lambda: learner(shares), loop),
        alternate(lambda: learner(shares), lambda: learner(mixed)),
    )


@pytest.mark.timeout(3600)
def test_learner_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model = write_model(tmp_path / "model")
    steps = demo_steps(model)
    shares = [planned(*step) for step in steps]
    mixed = [naive(share, seed) for seed, share in enumerate(shares)]
    record(
        "padding of RL micro-batches / as they come",
        [padding(share) for share in shares],
        [padding(share) for share in mixed],
        target=0.05,
        target_of="ours",
        unit="of tokens",
    )
    name = f"{len(steps)} RL steps, {RANKS} ranks"
    to_bare, to_naive = on_ranks(measure, model)
    record(f"{name} / bare PyTorch loop", *to_bare, target=1.15)
    # 1.3 times faster.
    record(f"{name} / naive padding", *to_naive, target=1 / 1.3)
