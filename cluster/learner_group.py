"""The learner group: DeepSpeed ranks as Ray actors, one step at a time, weights into the store.

A fixed group: when a rank is lost or fails, the others cannot go on, so all are stopped. The group
keeps its place and can be started again; the job then continues from its last checkpoint.
"""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup

from cluster.faults import wait_for
from cluster.learner_rank import LearnerRank, convert_checkpoint
from cluster.pictures import SharedPictures
from cluster.placement import Role, actor_env, actor_options, driver_node, place, place_again
from configs.common import MediaConfig, SamplingConfig
from configs.learner import GRPOConfig, LearnerConfig, WeightsConfig
from data.errors import ClusterError, EmbedRLError, LearnerLost, WeightSyncError
from data.pickling import Packed
from data.token_cost import visual_cost
from data.types import Content, ContrastPair, EmbedRequest, StepReport, TrainSample, visuals_in
from data.weights.types import Published
from learner.micro_batches import MiniBatch, RowCost, cut_evenly, plan_micro_batches
from learner.objectives import (
    ContrastiveObjective,
    LearnerPlan,
    Objective,
    PolicyObjective,
    SupervisedObjective,
    TokenScores,
)
from learner.universal import needs_conversion, universal_folder

log = logging.getLogger(__name__)
RANKS_START_TIMEOUT_S = 900.0
"""Longest wait for the ranks to start, which import much, and to find each other."""
CONVERSION_LOOK_S = 60.0
"""Between two lines of the log on a conversion."""
RANKS_STOP_TIMEOUT_S = 60.0
"""Longest wait for stopped ranks to be gone."""


def learner_role(config: LearnerConfig) -> Role:
    """Return what the group asks Ray for."""
    return Role("learner", config.ranks, config.cpus, config.gpus, together=True)


class LearnerGroup:
    """The ranks: they get their place at once, start when they are built for an objective, train.

    ``rank`` is their class; ``reserved`` is their place, where they have one already.

    Any call raises LearnerLost where a rank died, failed or did not answer in time, and an
    EmbedRLError that a rank itself raised; the ranks are stopped then.

    Raises:
        ClusterError: the ranks got no place.
    """

    def __init__(
        self,
        config: LearnerConfig,
        weights: WeightsConfig | None = None,
        *,
        rank: type = LearnerRank,
        reserved: PlacementGroup | None = None,
    ) -> None:
        self.config = config
        self.weights = weights or WeightsConfig()
        self._rank = rank
        self._group = reserved or place(learner_role(config))
        self._ranks: list[Any] = []
        self._plan: LearnerPlan | None = None
        self._updates = 1
        """Optimiser updates of a policy step."""
        self._anew = False
        """Whether the last publication failed half-way: frozen weights may be missing."""

    @property
    def running(self) -> bool:
        """Whether the ranks are there: started, not closed, and without a failure so far."""
        return bool(self._ranks)

    def restart(self) -> None:
        """Start new ranks in the place of stopped ones, and build what the last ones had built."""
        if self._plan is not None:
            self._group = place_again(learner_role(self.config), self._group)
            self._build(self._plan)

    def check(self) -> None:
        """Return if all ranks answer."""
        self._all([rank.address.remote() for rank in self._ranks], "answering")

    def build_policy(
        self,
        *,
        model: str,
        media: MediaConfig,
        total_steps: int,
        seed: int,
        grpo: GRPOConfig,
        sampling: SamplingConfig,
    ) -> None:
        """Load a Reasoner for RL; its folder is also the frozen reference."""
        objective = PolicyObjective(
            reference=_absolute(model),
            grpo=grpo,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
        )
        self._updates = grpo.updates_per_step
        self._build(self._planned(objective, model, media, total_steps, seed))

    def build_supervised(
        self, *, model: str, media: MediaConfig, total_steps: int, seed: int
    ) -> None:
        """Load a Reasoner for supervised training."""
        self._build(self._planned(SupervisedObjective(), model, media, total_steps, seed))

    def build_contrastive(
        self,
        *,
        model: str,
        media: MediaConfig,
        total_steps: int,
        seed: int,
        temperature: float,
        learn_temperature: bool = False,
        dimensions: Sequence[int] = (),
    ) -> None:
        """Load an Embedder for contrastive training."""
        objective = ContrastiveObjective(
            temperature=temperature,
            learn_temperature=learn_temperature,
            dimensions=tuple(dimensions),
        )
        self._build(self._planned(objective, model, media, total_steps, seed))

    def train_policy(self, samples: Sequence[TrainSample], pictures: SharedPictures) -> StepReport:
        """Take one policy step, on the mean over all samples.

        Each of its updates (`grpo.updates_per_step`) trains on samples that follow each other; an
        update whose samples have no gradient is not taken. Where none is, nothing is changed, and
        that is reported.
        """
        self._check_running("training the policy")
        learns_from = self._plan.objective.learns_from
        parts = [
            part
            for part in cut_evenly(samples, self._updates)
            if any(learns_from(sample.advantage) for sample in part)
        ]
        shares = [
            self._shares([sample for sample in part if learns_from(sample.advantage)], pictures)
            for part in parts
        ]
        if not parts:
            return StepReport(
                metrics={"train/tokens": 0.0, "policy/skipped_steps": 1.0}, seconds=0.0
            )
        refs = [
            rank.train_policy.remote(
                [
                    MiniBatch(
                        micro_batches=share[index],
                        total_tokens=_response_tokens(part),
                        total_traces=len(part),
                    )
                    for part, share in zip(parts, shares, strict=True)
                ],
                *pictures.refs,
            )
            for index, rank in enumerate(self._ranks)
        ]
        return self._step(refs, "training the policy")

    def score_policy(
        self, samples: Sequence[TrainSample], pictures: SharedPictures
    ) -> dict[str, TokenScores]:
        """Return what the model in training, and the reference, give to each trace, by key."""
        refs = [
            rank.score_policy.remote(share, *pictures.refs)
            for rank, share in zip(self._ranks, self._shares(samples, pictures), strict=True)
        ]
        scores: dict[str, TokenScores] = {}
        for rank_scores in self._all(refs, "scoring traces"):
            scores.update(rank_scores)
        return scores

    def train_supervised(
        self, samples: Sequence[TrainSample], pictures: SharedPictures
    ) -> StepReport:
        """Take one supervised step; without samples nothing is changed, and that is reported."""
        if not samples:
            return StepReport(
                metrics={"train/tokens": 0.0, "supervised/skipped_steps": 1.0}, seconds=0.0
            )
        tokens = _response_tokens(samples)
        refs = [
            rank.train_supervised.remote(share, *pictures.refs, total_tokens=tokens)
            for rank, share in zip(self._ranks, self._shares(samples, pictures), strict=True)
        ]
        return self._step(refs, "supervised training")

    def evaluate_supervised(
        self, samples: Sequence[TrainSample], pictures: SharedPictures
    ) -> dict[str, float]:
        """Return `eval/loss`, `eval/token_accuracy` and `eval/exact` (share of samples)."""
        refs = [
            rank.evaluate_supervised.remote(share, *pictures.refs)
            for rank, share in zip(self._ranks, self._shares(samples, pictures), strict=True)
        ]
        return self._all(refs, "evaluating")[0]

    def train_contrastive(
        self, rows: Sequence[ContrastPair], pictures: SharedPictures
    ) -> StepReport:
        """Take one contrastive step; other rows' targets are negatives unless known to be right."""
        refs = [
            rank.train_contrastive.remote(list(rows[index :: self.config.ranks]), *pictures.refs)
            for index, rank in enumerate(self._ranks)
        ]
        return self._step(refs, "contrastive training")

    def embed(self, contents: Sequence[Content], pictures: SharedPictures) -> np.ndarray:
        """Return unit vectors of the contents by the model in training, float32 [N, D]."""
        requests = [EmbedRequest(key=str(i), content=content) for i, content in enumerate(contents)]
        refs = [
            rank.embed.remote(requests[index :: self.config.ranks], *pictures.refs)
            for index, rank in enumerate(self._ranks)
        ]
        vectors: dict[str, np.ndarray] = {}
        for rank_vectors in self._all(refs, "embedding"):
            vectors.update(rank_vectors)
        return np.stack([vectors[request.key] for request in requests])

    def announce(self, version: int, store: Any, *, again: bool = False) -> None:
        """Let engines wait for a version; ``again``: in place of all that the store holds.

        Raises:
            WeightSyncError: the version does not increase, or the store did not answer.
        """
        call = store.announce.remote(version, again=again)
        try:
            wait_for([call], ["weight store"], timeout_s=self.config.timeout_s, what="announcing")
        except ClusterError as error:
            raise WeightSyncError(f"version {version} was not announced: {error}") from error

    def publish(self, version: int, store: Any) -> Published:
        """Put an announced version into the object store; engines pull it meanwhile.

        Raises:
            WeightSyncError: the store does not hold it; the ranks are well, so announce it again.
        """
        try:
            anew, self._anew = self._anew, False
            refs = [rank.put_weights.remote(version, store, anew=anew) for rank in self._ranks]
            published: Published = self._all(refs, f"publishing version {version}")[0]
            if published.error:
                self._anew = True
                raise WeightSyncError(f"version {version} was not published: {published.error}")
        except EmbedRLError as error:
            store.fail.remote(version, str(error))
            raise
        return published

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint: complete, or not there at all."""
        self._all([r.save.remote(_absolute(folder)) for r in self._ranks], f"saving {folder}")

    def load(self, folder: str | Path) -> int:
        """Continue from a checkpoint; return how many steps it had taken.

        One of another number of ranks is converted first, while no rank runs: they would hold
        memory, and none of them may wait for another for so long.
        """
        self._check_running(f"loading {folder}")
        if not needs_conversion(Path(folder), self.config):
            refs = [rank.load.remote(_absolute(folder)) for rank in self._ranks]
            return self._all(refs, f"loading {folder}")[0]
        self._stop()
        try:
            self._convert(Path(_absolute(folder)))
            self.restart()
            refs = [rank.load.remote(_absolute(folder)) for rank in self._ranks]
            return self._all(refs, f"loading {folder}")[0]
        finally:
            shutil.rmtree(universal_folder(Path(folder)), ignore_errors=True)

    def export(self, folder: str | Path) -> None:
        """Write the model as a Hugging Face folder."""
        self._all([r.export.remote(_absolute(folder)) for r in self._ranks], f"exporting {folder}")

    def close(self) -> None:
        """Stop the ranks and give their bundles back."""
        self._stop()
        ray.util.remove_placement_group(self._group)

    def _convert(self, folder: Path) -> None:
        """Write a checkpoint's universal form, on the driver's node; say how far it is.

        Raises:
            ClusterError: it failed, as where the disk is full.
            DamagedCheckpoint: a file is not what was written.
        """
        env = actor_env(Role("conversion", 1, 0, 0)) | {"DS_ACCELERATOR": "cpu"}
        task = ray.remote(convert_checkpoint).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=driver_node(),
            runtime_env={"env_vars": env},
        )
        # What is cut by parameter, and what is joined again of it.
        expected = 2 * _bytes(folder, ending="_optim_states.pt")
        log.info("%s: converting it for %d ranks", folder, self.config.ranks)
        ref = task.remote(str(folder))
        while not ray.wait([ref], timeout=CONVERSION_LOOK_S)[0]:
            written = _bytes(universal_folder(folder))
            log.info("%s: wrote %.1f of about %.1f GB", folder, written / 1e9, expected / 1e9)
        wait_for([ref], ["the conversion"], timeout_s=0.0, what=f"converting {folder}")

    def _start(self) -> None:
        config = self.config
        role = learner_role(config)
        remote = ray.remote(self._rank)
        for index in range(config.ranks):
            options = actor_options(role, self._group, index, bundle=index)
            self._ranks.append(remote.options(**options).remote(index, config.ranks, self.weights))
        first = self._ranks[0]
        limit = min(RANKS_START_TIMEOUT_S, config.timeout_s)
        [address] = self._all([first.address.remote()], "starting rank 0", limit)
        opening = first.open_rendezvous.remote(address, limit)
        [port] = self._all([opening], "opening rendezvous", limit)
        joins = [rank.join.remote(address, port, config.timeout_s) for rank in self._ranks]
        self._all(joins, f"meeting at {address}:{port}", limit)

    def _stop(self) -> None:
        """Kill the ranks and wait until they are gone: new ones take over their names."""
        for rank in self._ranks:
            ray.kill(rank)
        gone = [rank.address.remote() for rank in self._ranks]  # fails once the rank is dead
        ray.wait(gone, num_returns=len(gone), timeout=RANKS_STOP_TIMEOUT_S)
        self._ranks = []

    def _planned(
        self, objective: Objective, model: str, media: MediaConfig, steps: int, seed: int
    ) -> LearnerPlan:
        return LearnerPlan(
            model=_absolute(model),
            objective=objective,
            learner=self.config,
            media=media,
            steps=steps,
            seed=seed,
        )

    def _build(self, plan: LearnerPlan) -> None:
        self._plan = plan
        if not self._ranks:
            log.info("waiting for the learner's ranks to start (%d)", self.config.ranks)
            self._start()
        log.info("waiting for the learner to load %s", plan.model)
        self._all([rank.build.remote(plan) for rank in self._ranks], f"building from {plan.model}")

    def _shares(
        self, samples: Sequence[TrainSample], pictures: SharedPictures
    ) -> list[Packed[list[TrainSample]]]:
        """Return the samples by [rank][micro-batch]."""
        self._check_running("sharing out samples")
        plan = plan_micro_batches(
            [
                RowCost(
                    tokens=len(sample.prompt_ids) + len(sample.response_ids),
                    pictures={
                        visual: round(visual_cost(visual, pictures.sizes, self._plan.media))
                        for visual in visuals_in(sample.content)
                    },
                )
                for sample in samples
            ],
            ranks=self.config.ranks,
            budget_tokens=self.config.micro_batch_tokens,
        )
        return [Packed([samples[i] for i in micro] for micro in share) for share in plan]

    def _step(self, refs: Sequence[Any], what: str) -> StepReport:
        """Return the report of a step: metrics are the same on every rank, broken keys are not."""
        start = time.perf_counter()
        reports: list[StepReport] = self._all(refs, what)
        return StepReport(
            metrics=reports[0].metrics,
            seconds=time.perf_counter() - start,
            broken=tuple(key for report in reports for key in report.broken),
        )

    def _check_running(self, what: str) -> None:
        if not self._ranks:
            raise LearnerLost(
                f"learner: {what}: the group was stopped, by `close` or after a failure, or never "
                "built; restart it and load the last checkpoint"
            )

    def _all(self, refs: Sequence[Any], what: str, timeout_s: float | None = None) -> list[Any]:
        """Return what each rank answers; a failure of one rank stops the whole group."""
        self._check_running(what)
        names = [f"learner rank {index}" for index in range(len(refs))]
        limit = self.config.timeout_s if timeout_s is None else timeout_s
        try:
            return wait_for(refs, names, timeout_s=limit, what=what)
        except ClusterError as error:
            self._stop()
            raise LearnerLost(str(error)) from error
        except EmbedRLError:
            self._stop()
            raise


def _bytes(folder: Path, *, ending: str = "") -> int:
    """Return the bytes of the files below a folder, which may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ending):
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(parent, name)).st_size
    return total


def _absolute(folder: str | Path) -> str:
    return str(Path(folder).absolute())


def _response_tokens(samples: Sequence[TrainSample]) -> int:
    return sum(len(sample.response_ids) for sample in samples)
