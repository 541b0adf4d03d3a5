"""The judge on vLLM: any causal language model, greedy, text only."""

import re

from transformers import AutoTokenizer
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from configs.reward import MAX_SCORED, JudgeConfig
from data.engine.arguments import engine_arguments
from data.errors import ConfigError, EngineLost, JudgeError
from data.model.model_folder import load_pretrained
from data.types import Judgement, JudgeQuestion
from reward.judge_question import parse_choice, right_share

CHOICE_TOKENS = 8
"""Room for a number; an answer that needs more is prose."""


class VLLMJudge:
    """vLLM's AsyncLLM for one frozen judge."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._tokenizer = load_pretrained(AutoTokenizer, config.model)
        special = sorted(map(re.escape, self._tokenizer.all_special_tokens))
        self._special = re.compile("|".join(special) if special else r"(?!)")
        self._numbers = self._number_ids() if config.answer == "score" else []
        # Log-probabilities after the allowed tokens are applied: all numbers, and only they.
        self._arguments = AsyncEngineArgs(
            **engine_arguments(config.model, config.engine, max_pictures=0),
            runner="generate",
            logprobs_mode="processed_logprobs",
        )

    async def start(self) -> None:
        """Load the model; blocks for seconds."""
        self._llm = AsyncLLM.from_engine_args(self._arguments)

    async def judge(self, question: JudgeQuestion) -> Judgement:
        """Return the judge's verdict on one trace.

        Raises:
            JudgeError: vLLM refused the question, or the answer is no usable number.
            EngineLost: the engine's process died.
        """
        prompt = TokensPrompt(prompt_token_ids=self._encode(question.prompt))
        params = self._params(len(question.shown))
        try:
            stream = self._llm.generate(prompt, params, question.key)
            (output,) = [final async for final in stream]
        except EngineDeadError as error:
            raise EngineLost(f"{question.key}: the engine's process died: {error}") from None
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise JudgeError(f"{question.key}: vLLM refused the question: {cause}") from error
        (completion,) = output.outputs
        return self._judgement(question, completion)

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.shutdown()
        del self._llm  # at interpreter exit its own clean-up would fail noisily

    def _judgement(self, question: JudgeQuestion, completion: CompletionOutput) -> Judgement:
        if self._config.answer == "choice":
            answer = self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            choice = parse_choice(answer, len(question.shown))
            return Judgement(
                share=float(choice in question.right), shown=question.shown, answer=answer.strip()
            )
        (step,) = completion.logprobs
        ids = self._numbers[: len(question.shown)]
        logprobs = [step[token].logprob if token in step else -float("inf") for token in ids]
        return Judgement(
            share=right_share(logprobs, question.right),
            shown=question.shown,
            answer=" ".join(f"{value:.4g}" for value in logprobs),
        )

    def _params(self, shown: int) -> SamplingParams:
        if self._config.answer == "choice":
            return SamplingParams(
                temperature=0.0,
                max_tokens=CHOICE_TOKENS,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=shown,
            allowed_token_ids=self._numbers[:shown],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _encode(self, prompt: str) -> list[int]:
        """Return the tokens of a user turn; what traces spell must not pose as a turn's end."""
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": self._special.sub(" ", prompt)}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _number_ids(self) -> list[int]:
        """Return the token of each digit from 1 on.

        Raises:
            ConfigError: the tokenizer writes a digit with several tokens, or two with one.
        """
        tokens = [
            self._tokenizer.encode(str(number), add_special_tokens=False)
            for number in range(1, MAX_SCORED + 1)
        ]
        if any(len(ids) != 1 for ids in tokens) or len({ids[0] for ids in tokens}) < MAX_SCORED:
            raise ConfigError(
                f"{self._config.model}: its tokenizer has no token of its own for each digit; set "
                "reward.judge.answer=choice"
            )
        return [ids[0] for ids in tokens]
