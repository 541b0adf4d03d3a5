"""One rank of the learner group: builds its share of a model and takes optimiser steps.

A plain class. Every method but the rendezvous' is collective: all ranks call it, in the same
order. Metrics are reduced over the ranks, so each rank returns the same report.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import ConfigError, DataError
from data.model.chat import load_encoder
from data.model.model_folder import check_folder
from data.types import (
    ContrastPair,
    EmbedRequest,
    Pictures,
    StepReport,
    TrainSample,
    Visual,
    visuals_in,
)
from data.weights.types import ParamSpec
from learner.gaps import gap_figures, gap_sums
from learner.micro_batches import MiniBatch, plan_micro_batches
from learner.objectives import ContrastiveObjective, LearnerPlan, PolicyObjective, TokenScores
from learner.rank import deepspeed_engine
from learner.rank.accumulate import Tally, Term, accumulate, take_updates
from learner.rank.batching import (
    Batch,
    Patches,
    Row,
    collate,
    embed_row,
    process_pictures,
    row_cost,
    train_row,
)
from learner.rank.contrastive import Temperature, accumulate_contrast
from learner.rank.export import export_folder
from learner.rank.lora import UnmergedWeight, adapters_off, add_adapters
from learner.rank.models import (
    EmbeddingHead,
    TokenHead,
    drop_nothing,
    load_model,
    load_reference,
    model_tokens,
    with_positions,
)
from learner.rank.policy_loss import policy_loss, version_gaps
from learner.rank.policy_tokens import policy_tokens, start_logprobs
from learner.rank.sft import response_scores, supervised_loss


class LearnerWorker:
    """One rank.

    Args:
        rank: 0 is the one that writes and publishes.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks
        self._rendezvous: dist.TCPStore | None = None

    def open_rendezvous(self, address: str, timeout_s: float) -> int:
        """Open the rendezvous on rank 0 and return its port."""
        self._rendezvous = deepspeed_engine.open_rendezvous(address, self.ranks, timeout_s)
        return self._rendezvous.port

    def join(self, address: str, port: int, timeout_s: float) -> None:
        """Enter the process group; blocks until all ranks have."""
        deepspeed_engine.join_group(
            self._rendezvous,
            rank=self.rank,
            ranks=self.ranks,
            address=address,
            port=port,
            timeout_s=timeout_s,
        )

    def build(self, plan: LearnerPlan) -> None:
        """Load the model and make it trainable for the plan's objective."""
        self._plan = plan
        torch.manual_seed(plan.seed)
        self._device = deepspeed_engine.device()
        self._encoder = load_encoder(plan.model, plan.media)
        objective = plan.objective
        adapted = plan.learner.lora.rank > 0
        self._reference: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
        if isinstance(objective, PolicyObjective) and objective.grpo.kl != "none":
            self._reference = (
                self._without_adapters
                if adapted
                else load_reference(objective.reference, plan.learner).to(self._device)
            )
        with deepspeed_engine.partitioned_loading(plan.learner):
            net = load_model(plan.model, plan.learner)
        if adapted:
            add_adapters(net, plan.learner.lora)
        if isinstance(objective, PolicyObjective):
            drop_nothing(net)  # engines do not, nor does a reference; log-probabilities must agree
        self._tokens = model_tokens(net, self._encoder.tokenizer)
        self._banned = torch.tensor(self._encoder.banned_ids(), device=self._device)
        head: torch.nn.Module = TokenHead(net)
        if isinstance(objective, ContrastiveObjective):
            objective.check_width(net.config.get_text_config().hidden_size)
            heat = Temperature(objective.temperature, learned=objective.learn_temperature)
            head = EmbeddingHead(net, heat)
        self._engine = deepspeed_engine.TrainEngine(
            head, plan.learner, steps=plan.steps, seed=plan.seed
        )

    def train_policy(self, mini_batches: Sequence[MiniBatch], pictures: Pictures) -> StepReport:
        """Take one policy step: an optimiser update for each mini-batch, in order.

        All ranks bring equally many mini-batches, and micro-batches in each. The report's loss and
        gradient norm are means over the updates; where one was skipped, the step counts as skipped.
        The mini-batches' totals count the traces without a gradient too, which no rank brings.

        Raises:
            DataError: a sample lacks behaviour log-probabilities or does not match its pictures.
        """
        start = time.perf_counter()
        objective = self._policy()
        patches = self._patches([m for mini in mini_batches for m in mini.micro_batches], pictures)
        score = {"banned": self._banned, "temperature": objective.temperature}
        bonus = objective.grpo.entropy_coef > 0

        def own(samples: Sequence[TrainSample]) -> Tensor:
            return self._own_logprobs(self._collate([train_row(s) for s in samples], patches))

        before = start_logprobs(mini_batches, own)
        gaps: list[Tensor] = []

        def term(samples: Sequence[TrainSample]) -> Term:
            batch = self._collate([train_row(sample) for sample in samples], patches)
            reference_T = self._reference_logprobs(batch) if objective.reference_in_loss else None
            now_T, entropy_T, _ = self._engine.forward(batch, **score, entropy_gradient=bonus)
            tokens = policy_tokens(
                samples,
                now_T,
                entropy_T,
                reference_T,
                loss_mean=objective.grpo.loss_mean,
                start=before,
            )
            gaps.append(version_gaps(tokens))
            return policy_loss(tokens, objective.grpo)

        totals = [
            objective.total(tokens=mini.total_tokens, traces=mini.total_traces)
            for mini in mini_batches
        ]
        scales = [self.ranks / total for total in totals]
        done = take_updates(self._engine, mini_batches, term, scales=scales)
        step, outcome = _whole_step(done, totals)
        brought = (
            trace for mini in mini_batches for micro in mini.micro_batches for trace in micro
        )
        step.sums["tokens"] = sum(len(trace.response_ids) for trace in brought)
        sums, largest = self._sum(step.sums), self._max(step.largest)
        tokens = sums.pop("tokens")
        means = {"policy/loss": sums.pop("loss")}
        means |= {f"policy/{name}": value / tokens for name, value in sums.items()}
        most = means["sync/logprob_max_abs_diff"] = largest.pop("logprob_gap")
        means |= gap_figures(self._gap_sums(gaps), most)
        means |= {f"policy/{name}": value for name, value in largest.items()}
        means["train/tokens"] = tokens
        broken = [
            key
            for mini, (tally, update) in zip(mini_batches, done, strict=True)
            if update.skipped
            for key in self._broken(tally, mini.micro_batches)
        ]
        return _report("policy", start, outcome, means, broken=broken)

    def score_policy(
        self, micro_batches: Sequence[Sequence[TrainSample]], pictures: Pictures
    ) -> dict[str, TokenScores]:
        """Return what the model in training, and the reference, give to this rank's traces.

        By key. For KL in the reward; and for `TrainSample.old_logprobs`, if it is called while
        the version that sampled is still the one in training.
        """
        patches = self._patches(micro_batches, pictures)
        scores: dict[str, TokenScores] = {}
        for samples in micro_batches:
            batch = self._collate([train_row(sample) for sample in samples], patches)
            lengths = [len(sample.response_ids) for sample in samples]
            own = [part.cpu().numpy() for part in self._own_logprobs(batch).split(lengths)]
            reference: list[np.ndarray | None] = [None] * len(samples)
            if self._reference is not None:
                parts = self._reference_logprobs(batch).split(lengths)
                reference = [part.cpu().numpy() for part in parts]
            for sample, mine, initial in zip(samples, own, reference, strict=True):
                scores[sample.key] = TokenScores(mine, initial)
        return scores

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

        def term(samples: Sequence[TrainSample]) -> Term:
            batch = self._collate([train_row(sample) for sample in samples], patches)
            logprobs_T, _, correct_T = self._engine.forward(batch)
            return supervised_loss(logprobs_T, correct_T)

        tally = accumulate(self._engine, micro_batches, term, scale=self.ranks / total_tokens)
        outcome = self._engine.step()
        sums = self._sum(tally.sums)
        means = {f"supervised/{name}": value / total_tokens for name, value in sums.items()}
        means["train/tokens"] = float(total_tokens)
        broken = self._broken(tally, micro_batches)
        return _report("supervised", start, outcome, means, broken=broken)

    def evaluate_supervised(
        self, micro_batches: Sequence[Sequence[TrainSample]], pictures: Pictures
    ) -> dict[str, float]:
        """Return `eval/loss`, `eval/token_accuracy` and `eval/exact` of given responses.

        Exact: every response token is the likeliest one after the true tokens before it.
        """
        patches = self._patches(micro_batches, pictures)
        sums: Counter[str] = Counter(tokens=0.0)
        for samples in micro_batches:
            batch = self._collate([train_row(sample) for sample in samples], patches)
            with self._engine.measuring():
                logprobs_T, _, correct_T = self._engine.forward(batch)
            sums.update(response_scores(logprobs_T, correct_T, batch.rows_T, samples=len(samples)))
        total = self._sum(sums)
        if total["tokens"] == 0:
            raise DataError("expected at least one sample to evaluate, found none")
        return {
            "eval/loss": total["loss"] / total["tokens"],
            "eval/token_accuracy": total["token_accuracy"] / total["tokens"],
            "eval/exact": total["exact"] / total["samples"],
        }

    def train_contrastive(self, rows: Sequence[ContrastPair], pictures: Pictures) -> StepReport:
        """Take one step on this rank's rows of the batch; all ranks' rows are negatives."""
        start = time.perf_counter()
        objective = self._plan.objective
        if not isinstance(objective, ContrastiveObjective):
            raise ConfigError(f"expected a contrastive objective, built with {objective}")
        contents = [
            *(row.query for row in rows),
            *(row.target for row in rows),
            *(content for row in rows for content in row.negatives),
        ]
        requests = [EmbedRequest(key=str(i), content=c) for i, c in enumerate(contents)]
        indices, batches = self._embed_batches(requests, pictures)
        contrast = accumulate_contrast(self._engine, batches, indices, rows, objective=objective)
        outcome = self._engine.step()
        tokens = float(sum(int(batch.inputs["attention_mask"].sum()) for batch in batches))
        metrics = {
            "contrast/loss": contrast.loss,
            "contrast/accuracy": contrast.accuracy,
            "contrast/temperature": contrast.temperature,
            "train/tokens": self._sum({"n": tokens})["n"],
        }
        keys = [row.target_key for row in rows]
        return _report("contrast", start, outcome, metrics, broken=keys)

    def embed(self, requests: Sequence[EmbedRequest], pictures: Pictures) -> dict[str, np.ndarray]:
        """Return this rank's unit vectors by key, float32 [D]."""
        indices, batches = self._embed_batches(requests, pictures)
        vectors: dict[str, np.ndarray] = {}
        for index, batch in zip(indices, batches, strict=True):
            with self._engine.measuring():
                made, _ = self._engine.forward(batch)
            rows = made.cpu().numpy()
            vectors.update((requests[i].key, row) for i, row in zip(index, rows, strict=True))
        return vectors

    def layout(self) -> tuple[ParamSpec, ...]:
        """Return the model's tensors; see `TrainEngine.layout`."""
        return self._engine.layout()

    def unmerged(self, *, trained_only: bool = False) -> Iterator[UnmergedWeight]:
        """Yield the weights with adapters apart; whole on rank 0 only."""
        return self._engine.unmerged(trained_only=trained_only)

    def save(self, folder: str) -> None:
        """Write a checkpoint."""
        self._engine.save(Path(folder))

    def load(self, folder: str) -> int:
        """Continue from a checkpoint and return how many steps it had taken."""
        self._engine.load(Path(folder))
        return self._engine.steps

    def export(self, folder: str) -> None:
        """Write the model as an ordinary Hugging Face folder."""
        named = list(self._engine.parameters())
        if self.rank == 0:
            source = check_folder(self._plan.model)
            export_folder(self._engine.net, named, source=source, folder=Path(folder))
        dist.barrier()

    def _patches(
        self, micro_batches: Sequence[Sequence[TrainSample]], pictures: Pictures
    ) -> dict[Visual, Patches]:
        contents = (sample.content for samples in micro_batches for sample in samples)
        wanted = (visual for content in contents for visual in visuals_in(content))
        return process_pictures(wanted, pictures, self._encoder)

    def _collate(self, rows: Sequence[Row], patches: Mapping[Visual, Patches]) -> Batch:
        batch = collate(rows, patches, self._tokens)
        return with_positions(self._engine.net, batch).to(self._device)

    def _embed_batches(
        self, requests: Sequence[EmbedRequest], pictures: Pictures
    ) -> tuple[list[list[int]], list[Batch]]:
        """Return micro-batches of the requests, as many as on every other rank."""
        rows = [embed_row(request, pictures, self._encoder) for request in requests]
        wanted = (picture for row in rows for picture in row.pictures)
        patches = process_pictures(wanted, pictures, self._encoder)
        costs = [row_cost(row, patches, self._tokens) for row in rows]
        budget = self._plan.learner.micro_batch_tokens
        [plan] = plan_micro_batches(costs, ranks=1, budget_tokens=budget)
        plan += [[] for _ in range(int(self._max({"n": len(plan)})["n"]) - len(plan))]
        return plan, [self._collate([rows[i] for i in index], patches) for index in plan]

    def _policy(self) -> PolicyObjective:
        objective = self._plan.objective
        if not isinstance(objective, PolicyObjective):
            raise ConfigError(f"expected a policy objective, built with {objective}")
        return objective

    def _without_adapters(self, batch: Batch, **score: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the initial Reasoner gives: the model in training less its adapters."""
        with adapters_off(self._engine.net):
            return self._engine.forward(batch, **score)

    def _own_logprobs(self, batch: Batch) -> Tensor:
        """Return what the model in training gives, without gradient."""
        with self._engine.measuring():
            logprobs_T, _, _ = self._engine.forward(
                batch, banned=self._banned, temperature=self._policy().temperature
            )
        return logprobs_T

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logprobs_T, _, _ = self._reference(
                batch, banned=self._banned, temperature=self._policy().temperature
            )
        return logprobs_T

    def _broken(self, tally: Tally, micro_batches: Sequence[Sequence[TrainSample]]) -> list[str]:
        """Return this rank's keys to name if the step was skipped; every rank must call this."""
        if self._sum({"broken": len(tally.broken)})["broken"]:
            return tally.broken
        return [sample.key for samples in micro_batches for sample in samples]

    def _gap_sums(self, gaps: Sequence[Tensor]) -> np.ndarray:
        """Return `gap_sums` of the gaps of all ranks."""
        mine = gap_sums(torch.cat([torch.zeros(0, device=self._device), *gaps]).cpu().numpy())
        sums = torch.from_numpy(mine).to(self._device)
        dist.all_reduce(sums)
        return sums.cpu().numpy()

    def _sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the values summed over all ranks."""
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def _max(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the largest of each value over all ranks."""
        largest = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return dict(zip(values, largest.tolist(), strict=True))


def _whole_step(
    done: Sequence[tuple[Tally, deepspeed_engine.StepOutcome]], totals: Sequence[float]
) -> tuple[Tally, deepspeed_engine.StepOutcome]:
    """Return a step's updates as one; `loss` and gradient norm are means over them."""
    whole = Tally()
    for total, (tally, _) in zip(totals, done, strict=True):
        loss = tally.sums["loss"] / total / len(done)
        whole.sums.update({**tally.sums, "loss": loss})
        for name, value in tally.largest.items():
            whole.largest[name] = max(value, whole.largest.get(name, value))
    updates = [update for _, update in done]
    return whole, deepspeed_engine.StepOutcome(
        grad_norm=float(np.mean([update.grad_norm for update in updates])),
        lr=updates[-1].lr,
        skipped=any(update.skipped for update in updates),
    )


def _report(
    area: str,
    start: float,
    outcome: deepspeed_engine.StepOutcome,
    metrics: Mapping[str, float],
    *,
    broken: Sequence[str],
) -> StepReport:
    """Return the report of a step with what every objective measures.

    ``broken`` are the keys to name if the step was skipped.
    """
    common = {
        f"{area}/grad_norm": outcome.grad_norm,
        f"{area}/lr": outcome.lr,
        f"{area}/skipped_steps": float(outcome.skipped),
    }
    return StepReport(
        metrics={**metrics, **common},
        seconds=time.perf_counter() - start,
        broken=tuple(broken) if outcome.skipped else (),
    )
