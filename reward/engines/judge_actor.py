"""JudgeActor: a plain class around one judge; the cluster makes it a Ray actor."""

import asyncio

from configs.reward import JudgeConfig
from data.engine.arguments import set_engine_environment
from data.errors import JudgeError
from data.types import Judgement, JudgeQuestion


class JudgeActor:
    """Answers which candidate trace belongs to a trace."""

    def __init__(self, *, name: str, config: JudgeConfig) -> None:
        self.name = name
        set_engine_environment(config.engine)
        # Here and not above, as in `EmbedderActor`.
        from reward.engines.vllm_judge import VLLMJudge

        self._judge = VLLMJudge(config)

    async def ready(self) -> None:
        """Start the engine; returns when it can serve."""
        await self._judge.start()

    async def judge(
        self, questions: list[JudgeQuestion]
    ) -> tuple[dict[str, Judgement], dict[str, str]]:
        """Return verdicts by trace key, and the reason by key for those that failed."""
        results = await asyncio.gather(*(self._one(question) for question in questions))
        judged: dict[str, Judgement] = {}
        failed: dict[str, str] = {}
        for question, result in zip(questions, results, strict=True):
            if isinstance(result, JudgeError):
                failed[question.key] = str(result)
            else:
                judged[question.key] = result
        return judged, failed

    async def close(self) -> None:
        """Stop the engine."""
        self._judge.close()

    async def _one(self, question: JudgeQuestion) -> Judgement | JudgeError:
        try:
            return await self._judge.judge(question)
        except JudgeError as error:
            return error
