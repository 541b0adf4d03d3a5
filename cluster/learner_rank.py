"""One rank of the learner group as a Ray actor."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from configs.learner import WeightsConfig
from data.types import ContrastPair, EmbedRequest, Pictures, StepReport, TrainSample, merge_pictures
from data.weights.types import Published
from learner.micro_batches import MiniBatch
from learner.objectives import LearnerPlan, TokenScores


def convert_checkpoint(folder: str) -> None:
    """Convert a checkpoint of another number of ranks; a Ray task, as it takes all cores."""
    from learner.rank.deepspeed_engine import convert_to_universal

    convert_to_universal(Path(folder), workers=len(os.sched_getaffinity(0)))


class LearnerRank:
    """One rank as a Ray actor: calls `learner.rank.worker.LearnerWorker`, and puts its weights.

    The worker is no base class: the driver imports this file before its settings are checked, and
    torch, transformers and DeepSpeed take seconds.

    ``parts``: the call's pictures (file -> uint8 [H, W, 3]) in one or more mappings.
    """

    def __init__(self, rank: int, world: int, weights: WeightsConfig) -> None:
        from cluster.weights.publisher import Publisher
        from learner.rank.worker import LearnerWorker

        self._worker = LearnerWorker(rank, world)
        self._new_publisher = partial(Publisher, weights)

    def address(self) -> str:
        """Return the address of this rank's node."""
        return ray.util.get_node_ip_address()

    def open_rendezvous(self, address: str, timeout_s: float) -> int:
        """Open the rendezvous on rank 0 and return its port."""
        return self._worker.open_rendezvous(address, timeout_s)

    def join(self, address: str, port: int, timeout_s: float) -> None:
        """Enter the process group."""
        self._worker.join(address, port, timeout_s)

    def build(self, plan: LearnerPlan) -> None:
        """Load the model; nothing of it has been put yet."""
        self._worker.build(plan)
        self._publisher, self._again = self._new_publisher(), False

    def put_weights(self, version: int, store: Any, *, anew: bool = False) -> Published | None:
        """Put the weights into the object store, frozen ones at the first time, or ``anew``.

        Only rank 0 puts and returns something; the others take part in gathering.
        """
        if anew:
            self._publisher, self._again = self._new_publisher(), False
        again, self._again = self._again, True
        weights = self._worker.unmerged(trained_only=again)
        if self._worker.rank == 0:
            return self._publisher.publish(version, store, self._worker.layout(), weights)
        for _ in weights:
            pass
        return None

    def train_policy(self, mini_batches: Sequence[MiniBatch], *parts: Pictures) -> StepReport:
        """Take one policy step."""
        return self._worker.train_policy(mini_batches, merge_pictures(parts))

    def score_policy(
        self, micro_batches: Sequence[Sequence[TrainSample]], *parts: Pictures
    ) -> dict[str, TokenScores]:
        """Return what the model in training, and the reference, give to traces."""
        return self._worker.score_policy(micro_batches, merge_pictures(parts))

    def train_supervised(
        self,
        micro_batches: Sequence[Sequence[TrainSample]],
        *parts: Pictures,
        total_tokens: int,
    ) -> StepReport:
        """Take one supervised step."""
        return self._worker.train_supervised(
            micro_batches, merge_pictures(parts), total_tokens=total_tokens
        )

    def evaluate_supervised(
        self, micro_batches: Sequence[Sequence[TrainSample]], *parts: Pictures
    ) -> dict[str, float]:
        """Measure written responses."""
        return self._worker.evaluate_supervised(micro_batches, merge_pictures(parts))

    def train_contrastive(self, rows: Sequence[ContrastPair], *parts: Pictures) -> StepReport:
        """Take one contrastive step."""
        return self._worker.train_contrastive(rows, merge_pictures(parts))

    def embed(self, requests: Sequence[EmbedRequest], *parts: Pictures) -> dict[str, np.ndarray]:
        """Return unit vectors by key."""
        return self._worker.embed(requests, merge_pictures(parts))

    def save(self, folder: str) -> None:
        """Write a checkpoint."""
        self._worker.save(folder)

    def load(self, folder: str) -> int:
        """Continue from a checkpoint; return how many steps it had taken."""
        return self._worker.load(folder)

    def export(self, folder: str) -> None:
        """Write the model as a Hugging Face folder."""
        self._worker.export(folder)
