"""The judge pool: frozen judge engines that answer questions about traces."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from cluster.placement import Role
from cluster.pools.pool import Pool
from cluster.pools.submission import GivenUp
from cluster.pools.work_router import Chunk, Unit
from configs.reward import JudgeConfig
from data.pickling import Packed
from data.types import Judgement, JudgeQuestion
from reward.engines.judge_actor import JudgeActor


class JudgePool(Pool):
    """Frozen judge engines."""

    def __init__(self, judge: JudgeConfig, *, reserved: Sequence[PlacementGroup] = ()) -> None:
        pool = judge.pool
        config = replace(judge, model=str(Path(judge.model).absolute()))
        remote = ray.remote(JudgeActor)
        super().__init__(
            Role("judge", pool.actors, pool.cpus, pool.gpus),
            timeout_s=pool.timeout_s,
            start_timeout_s=pool.start_timeout_s,
            reserved=reserved,
            max_items=judge.engine.max_num_seqs,
            create=lambda name, options: remote.options(**options).remote(name=name, config=config),
        )

    def load(self, name: str, actor: Any) -> None:
        """Wait until an engine has loaded the judge."""
        ray.get(actor.ready.remote(), timeout=self.start_timeout_s)

    def call(self, actor: Any, chunk: Chunk) -> Any:
        """Have questions answered."""
        return actor.judge.remote(Packed(chunk.requests))

    def judge(
        self, questions: Sequence[JudgeQuestion]
    ) -> tuple[dict[str, Judgement], dict[str, str]]:
        """Return verdicts by trace key, and the reason for each key that failed."""
        judged: dict[str, Judgement] = {}
        failed: dict[str, str] = {}
        units = [Unit((question,), 1.0) for question in questions]
        for answer in self.submit(units, ()):
            if isinstance(answer.value, GivenUp):
                failed |= {question.key: answer.value.reason for question in answer.chunk.requests}
                continue
            judgements, reasons = answer.value
            judged |= judgements
            failed |= reasons
        return judged, failed
