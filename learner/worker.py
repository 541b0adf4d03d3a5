"""One rank of the learner group: builds its share of a model and takes optimiser steps.

A plain class. Every method but the rendezvous' is collective: all ranks call it, in the same
order. Metrics are reduced over the ranks, so each rank returns the same report.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import GRPOConfig, LearnerConfig, MediaConfig
from data.chat import load_encoder
from data.errors import ConfigError, DataError
from data.model_folder import check_folder
from data.types import ContrastPair, EmbedRequest, Picture, Pictures, StepReport, TrainSample
from learner import engine
from learner.batching import (
    Batch,
    Patches,
    Row,
    collate,
    embed_row,
    plan_micro_batches,
    process_pictures,
    train_row,
)
from learner.contrastive import gather_rows, hash_keys, info_nce
from learner.export import export_folder
from learner.losses import policy_loss
from learner.models import (
    EmbeddingHead,
    TokenHead,
    load_model,
    load_reference,
    model_tokens,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """RL: policy gradient with clip and KL to a frozen reference."""

    reference: str
    """Folder of the frozen initial Reasoner."""
    grpo: GRPOConfig
    temperature: float = 1.0
    """Of the sampling that made the traces."""


@dataclass(frozen=True, slots=True)
class SupervisedObjective:
    """Likelihood of written responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveObjective:
    """Symmetric InfoNCE over the batch of all ranks."""

    temperature: float


Objective = PolicyObjective | SupervisedObjective | ContrastiveObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """What a learner group trains."""

    model: str
    """Folder to start from; its tokenizer and processor go into exports."""
    objective: Objective
    learner: LearnerConfig
    media: MediaConfig
    steps: int
    """Planned optimiser steps, for the learning-rate schedule."""
    seed: int = 0


class LearnerWorker:
    """One rank.

    Args:
        rank: 0 is the one that writes and publishes.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks
        self._store: dist.TCPStore | None = None

    def open_store(self, address: str, timeout_s: float) -> int:
        """Open the rendezvous on rank 0 and return its port."""
        self._store = engine.make_store(address, self.ranks, timeout_s)
        return self._store.port

    def join(self, address: str, port: int, timeout_s: float) -> None:
        """Enter the process group; blocks until all ranks have."""
        engine.join_group(
            self._store,
            rank=self.rank,
            ranks=self.ranks,
            address=address,
            port=port,
            timeout_s=timeout_s,
        )

    def build(self, plan: LearnerPlan) -> None:
        """Load the model and make it trainable for the plan's objective."""
        self._plan = plan
        torch.manual_seed(plan.seed + self.rank)
        self._device = engine.device()
        self._encoder = load_encoder(plan.model, plan.media)
        objective = plan.objective
        self._reference: TokenHead | None = None
        if isinstance(objective, PolicyObjective):
            self._reference = load_reference(objective.reference, plan.learner).to(self._device)
        with engine.partitioned_loading(plan.learner):
            net = load_model(plan.model, plan.learner)
        self._tokens = model_tokens(net, self._encoder.tokenizer)
        self._banned = torch.tensor(self._encoder.banned_ids(), device=self._device)
        contrastive = isinstance(objective, ContrastiveObjective)
        head = EmbeddingHead(net) if contrastive else TokenHead(net)
        self._engine = engine.TrainEngine(head, plan.learner, steps=plan.steps)

    def train_policy(
        self,
        micro_batches: Sequence[Sequence[TrainSample]],
        pictures: Pictures,
        *,
        total_tokens: int,
    ) -> StepReport:
        """Take one policy step on this rank's micro-batches.

        ``total_tokens`` counts the response tokens of all ranks; all ranks bring equally many
        micro-batches.

        Raises:
            DataError: a sample lacks behaviour log-probabilities or does not match its pictures.
        """
        start = time.perf_counter()
        objective = self._plan.objective
        if not isinstance(objective, PolicyObjective) or self._reference is None:
            raise ConfigError(f"expected a policy objective, built with {objective}")
        patches = self._patches(micro_batches, pictures)
        sums = dict.fromkeys(("kl", "clip_fraction", "entropy", "loss"), 0.0)
        gap = 0.0
        score = {"banned": self._banned, "temperature": objective.temperature}
        for index, samples in enumerate(micro_batches):
            batch = self._collate([train_row(sample) for sample in samples], patches)
            with torch.no_grad():
                reference_T, _, _ = self._reference(batch, **score)
            logprobs_T, entropy_T, _ = self._engine.forward(batch, **score)
            behaviour_T = _per_token(samples, _behaviour, self._device)
            loss, metrics = policy_loss(
                logprobs_T,
                behaviour_T,
                reference_T,
                _per_token(samples, _advantages, self._device),
                clip=objective.grpo.clip,
                kl_coef=objective.grpo.kl_coef,
            )
            self._engine.backward(
                loss * (self.ranks / total_tokens), last=index == len(micro_batches) - 1
            )
            metrics |= {"entropy": entropy_T.sum(), "loss": loss.detach()}
            for name, value in metrics.items():
                sums[name] += float(value)
            if samples:
                gap = max(gap, float((logprobs_T.detach() - behaviour_T).abs().max()))
        outcome = self._engine.step()
        means = {f"policy/{k}": v / total_tokens for k, v in self._sum(sums).items()}
        return _report(
            "policy",
            start,
            outcome,
            means
            | {"sync/logprob_max_abs_diff": self._max(gap), "train/tokens": float(total_tokens)},
        )

    def train_supervised(
        self,
        micro_batches: Sequence[Sequence[TrainSample]],
        pictures: Pictures,
        *,
        total_tokens: int,
    ) -> StepReport:
        """Take one step on the mean negative log-likelihood of the response tokens.

        Raises:
            DataError: a sample does not match its pictures.
        """
        start = time.perf_counter()
        patches = self._patches(micro_batches, pictures)
        sums = {"loss": 0.0, "token_accuracy": 0.0}
        for index, samples in enumerate(micro_batches):
            batch = self._collate([train_row(sample) for sample in samples], patches)
            logprobs_T, _, correct_T = self._engine.forward(batch)
            loss = -logprobs_T.sum()
            self._engine.backward(
                loss * (self.ranks / total_tokens), last=index == len(micro_batches) - 1
            )
            sums["loss"] += float(loss.detach())
            sums["token_accuracy"] += float(correct_T.sum())
        outcome = self._engine.step()
        means = {f"supervised/{k}": v / total_tokens for k, v in self._sum(sums).items()}
        return _report("supervised", start, outcome, means | {"train/tokens": float(total_tokens)})

    def evaluate_supervised(
        self, micro_batches: Sequence[Sequence[TrainSample]], pictures: Pictures
    ) -> dict[str, float]:
        """Return `eval/loss`, `eval/token_accuracy` and `eval/exact` of given responses.

        Exact: every response token is the likeliest one after the true tokens before it.
        """
        patches = self._patches(micro_batches, pictures)
        sums = dict.fromkeys(("loss", "token_accuracy", "exact", "tokens", "samples"), 0.0)
        for samples in micro_batches:
            batch = self._collate([train_row(sample) for sample in samples], patches)
            with torch.no_grad():
                logprobs_T, _, correct_T = self._engine.forward(batch)
            wrong_B = torch.zeros(len(samples), device=self._device)
            wrong_B.index_add_(0, batch.rows_T, 1.0 - correct_T)
            sums["loss"] -= float(logprobs_T.sum())
            sums["token_accuracy"] += float(correct_T.sum())
            sums["exact"] += float((wrong_B == 0).sum())
            sums["tokens"] += len(correct_T)
            sums["samples"] += len(samples)
        total = self._sum(sums)
        if total["tokens"] == 0:
            raise DataError("expected at least one sample to evaluate, found none")
        return {
            "eval/loss": total["loss"] / total["tokens"],
            "eval/token_accuracy": total["token_accuracy"] / total["tokens"],
            "eval/exact": total["exact"] / total["samples"],
        }

    def train_contrastive(self, rows: Sequence[ContrastPair], pictures: Pictures) -> StepReport:
        """Take one step on this rank's rows of the batch; all ranks' rows are negatives.

        Vectors are made first, in micro-batches; the loss of the whole batch gives each its
        gradient, which then goes back through the model. With more than one micro-batch the
        vectors are made again for that, so memory does not grow with the batch.
        """
        start = time.perf_counter()
        objective = self._plan.objective
        if not isinstance(objective, ContrastiveObjective):
            raise ConfigError(f"expected a contrastive objective, built with {objective}")
        owners = [i for i, row in enumerate(rows) for _ in row.negatives]
        contents = [
            *(row.query for row in rows),
            *(row.target for row in rows),
            *(content for row in rows for content in row.negatives),
        ]
        requests = [EmbedRequest(key=str(i), content=c) for i, c in enumerate(contents)]
        indices, batches = self._embed_batches(requests, pictures)
        keep_graph = len(batches) == 1
        with torch.set_grad_enabled(keep_graph):
            made = [self._engine.forward(batch) for batch in batches]
        local_ND = torch.empty(len(contents), made[0].shape[1], device=self._device)
        for index, vectors in zip(indices, made, strict=True):
            local_ND[index] = vectors.detach()
        loss, accuracy, gradient_ND = self._contrast(
            local_ND, [row.target_key for row in rows], owners, objective.temperature
        )
        for turn, (index, batch) in enumerate(zip(indices, batches, strict=True)):
            vectors = made[turn] if keep_graph else self._engine.forward(batch)
            self._engine.backward(
                (vectors * gradient_ND[index]).sum() * self.ranks, last=turn == len(batches) - 1
            )
        outcome = self._engine.step()
        tokens = float(sum(int(batch.inputs["attention_mask"].sum()) for batch in batches))
        metrics = {"contrast/loss": loss, "contrast/accuracy": accuracy}
        return _report(
            "contrast", start, outcome, metrics | {"train/tokens": self._sum({"n": tokens})["n"]}
        )

    def _contrast(
        self, local_ND: Tensor, keys: list[str], owners: list[int], temperature: float
    ) -> tuple[float, float, Tensor]:
        """Return loss and accuracy of the whole batch, and the gradient of this rank's vectors.

        ``local_ND`` holds queries, targets and hard negatives, in this order.
        """
        count = len(keys)
        sides = [local_ND[:count], local_ND[count : 2 * count], local_ND[2 * count :]]
        parts = [gather_rows(side) for side in sides]
        key_parts = gather_rows(hash_keys(keys).to(self._device))
        before = sum(len(part) for part in key_parts[: self.rank])
        owner_parts = gather_rows(
            torch.tensor(owners, dtype=torch.int64, device=self._device) + before
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
            offset = sum(len(rows) for rows in part[: self.rank])
            gradients.append(leaf.grad[offset : offset + len(part[self.rank])])
        return float(loss), float(accuracy), torch.cat(gradients)

    def embed(self, requests: Sequence[EmbedRequest], pictures: Pictures) -> dict[str, np.ndarray]:
        """Return this rank's unit vectors by key, float32 [D]."""
        indices, batches = self._embed_batches(requests, pictures)
        vectors: dict[str, np.ndarray] = {}
        for index, batch in zip(indices, batches, strict=True):
            with torch.no_grad():
                rows = self._engine.forward(batch).cpu().numpy()
            vectors.update((requests[i].key, row) for i, row in zip(index, rows, strict=True))
        return vectors

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (checkpoint name, whole tensor on the CPU) in order; whole on rank 0 only."""
        return self._engine.parameters()

    def save(self, folder: str) -> None:
        """Write a checkpoint."""
        self._engine.save(Path(folder))

    def load(self, folder: str) -> int:
        """Continue from a checkpoint and return how many steps it had taken."""
        self._engine.load(Path(folder))
        return self._engine.steps

    def export(self, folder: str) -> None:
        """Write the model as an ordinary Hugging Face folder."""
        named = list(self.parameters())
        if self.rank == 0:
            source = check_folder(self._plan.model)
            export_folder(self._engine.net, named, source=source, folder=Path(folder))
        dist.barrier()

    def _patches(
        self, micro_batches: Sequence[Sequence[TrainSample]], pictures: Pictures
    ) -> dict[Picture, Patches]:
        parts = (part for samples in micro_batches for s in samples for part in s.content)
        wanted = (part for part in parts if isinstance(part, Picture))
        return process_pictures(wanted, pictures, self._encoder)

    def _collate(self, rows: Sequence[Row], patches: Mapping[Picture, Patches]) -> Batch:
        return collate(rows, patches, self._tokens).to(self._device)

    def _embed_batches(
        self, requests: Sequence[EmbedRequest], pictures: Pictures
    ) -> tuple[list[list[int]], list[Batch]]:
        """Return micro-batches of the requests, as many as on every other rank."""
        rows = [embed_row(request, pictures, self._encoder) for request in requests]
        budget = self._plan.learner.micro_batch_tokens
        [plan] = plan_micro_batches([len(r.ids) for r in rows], ranks=1, budget_tokens=budget)
        plan += [[] for _ in range(int(self._max(len(plan))) - len(plan))]
        wanted = (picture for row in rows for picture in row.pictures)
        patches = process_pictures(wanted, pictures, self._encoder)
        return plan, [self._collate([rows[i] for i in index], patches) for index in plan]

    def _sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the values summed over all ranks."""
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def _max(self, value: float) -> float:
        """Return the largest value over all ranks."""
        largest = torch.tensor([value], dtype=torch.float64, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest)


def _report(
    area: str, start: float, outcome: engine.StepOutcome, metrics: Mapping[str, float]
) -> StepReport:
    """Return the report of a step with what every objective measures."""
    common = {
        f"{area}/grad_norm": outcome.grad_norm,
        f"{area}/lr": outcome.lr,
        f"{area}/skipped_steps": float(outcome.skipped),
    }
    return StepReport(metrics={**metrics, **common}, seconds=time.perf_counter() - start)


def _behaviour(sample: TrainSample) -> np.ndarray:
    if sample.logprobs is None or len(sample.logprobs) != len(sample.response_ids):
        found = None if sample.logprobs is None else len(sample.logprobs)
        raise DataError(
            f"{sample.key}: expected {len(sample.response_ids)} behaviour log-probabilities, one "
            f"per response token, found {found}; sample with log-probabilities"
        )
    return sample.logprobs


def _advantages(sample: TrainSample) -> np.ndarray:
    return np.full(len(sample.response_ids), sample.advantage)


def _per_token(
    samples: Sequence[TrainSample],
    values_of: Callable[[TrainSample], np.ndarray],
    device: torch.device,
) -> Tensor:
    """Return the values of all samples' response tokens laid end to end, float32 [T]."""
    values = [np.asarray(values_of(sample), dtype=np.float32) for sample in samples]
    return torch.from_numpy(np.concatenate([*values, np.zeros(0, np.float32)])).to(device)
