"""One vLLM engine that samples traces and takes new weights from the store.

Prompts go in as token ids with one token per picture; vLLM expands them itself, and what it ran
is compared with what the learner will train on. Banned tokens have probability zero, and the
returned log-probabilities are those of the distribution sampled from.
"""

import asyncio
import itertools
import time
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from configs.common import EngineConfig, MediaConfig, SamplingConfig
from data.engine.arguments import engine_arguments
from data.errors import ConfigError, DataError, EngineLost, WeightSyncError
from data.model.chat import EncodedPrompt, load_encoder
from data.model.model_folder import sees_videos
from data.types import GenerationRequest, Trajectory
from rollout.weights.no_load import LOAD_FORMAT
from rollout.weights.report import StoreAddress, SyncReport
from rollout.weights.transfer import WeightPuller, transfer_config

ATTEMPTS = 8
"""vLLM ends a request with an error of its own, for instance where caches of pictures are dropped
for new weights while it is on its way, and expects to be asked again. A pull that fails aborts
what runs."""
STALE_WAIT_S, STALE_LOOK_S = 300.0, 0.05
"""A pull that failed is tried again at once, or when the weights are published again."""
CPU_STEP_TOKENS = 1 << 16
INITIAL_VERSION = 0
"""Version of the weights that an engine starts with: the model folder's, or random ones, which
serve nothing."""


class VLLMEngine:
    """vLLM's AsyncLLM for one Reasoner.

    ``store`` None: the weights never change. Else nothing is served before a version was pulled.
    """

    def __init__(
        self,
        model: str,
        engine: EngineConfig,
        sampling: SamplingConfig,
        media: MediaConfig,
        *,
        store: StoreAddress | None = None,
    ) -> None:
        self.encoder = load_encoder(model, media)
        self._sampling = sampling
        self._store = store
        self._stale = ""
        self._pulling = asyncio.Lock()
        self._pulls = 0
        """How many began."""
        self._calls = itertools.count()
        self._advanced = time.monotonic()
        """When the engine last gave the tokens of a step."""
        most = max(1, media.max_frames) if self.encoder.sees_pictures else 0
        arguments = engine_arguments(
            model, engine, max_pictures=most, videos=media.video == "video" and sees_videos(model)
        )
        if current_platform.is_cpu():
            arguments |= _unsplit_prompts(engine)
        if store is not None:
            arguments.setdefault("load_format", LOAD_FORMAT)
            arguments["weight_transfer_config"] = transfer_config()
            arguments["worker_extension_cls"] = f"{WeightPuller.__module__}.WeightPuller"
        self._arguments = AsyncEngineArgs(
            **arguments,
            runner="generate",
            logprobs_mode="processed_logprobs",
            # Else a bf16 model has bf16 logits; the learner's are float32 (learner.rank.logprobs).
            hf_overrides={"head_dtype": "float32"},
        )

    async def start(self) -> None:
        """Load the model; blocks for seconds.

        Raises:
            ConfigError: the model's folder sets values that no pull would.
        """
        self._llm = AsyncLLM.from_engine_args(self._arguments)
        self._watch_steps()
        if self._arguments.load_format == LOAD_FORMAT:
            (unset, *_) = await self._llm.collective_rpc("folder_buffers")
            if unset:
                raise ConfigError(
                    f"{self._arguments.model}: expected parameters alone, which every version "
                    f"brings, found {len(unset)} buffers, first {unset[0]}; set "
                    "rollout.engine.extra.load_format=auto, so that engines read the folder first"
                )
        await self._llm.update_weight_version(str(INITIAL_VERSION))
        if self._store is not None:
            self._stale = "it has not pulled any weights yet"
            await self._llm.init_weight_transfer_engine(
                WeightTransferInitRequest(
                    {
                        "ray_address": self._store.ray_address,
                        "namespace": self._store.namespace,
                        "actor_name": self._store.actor_name,
                    }
                )
            )

    async def pull_newest(self) -> SyncReport | None:
        """Load the newest version of the store; None where there is none yet.

        Raises:
            WeightSyncError: it could not be loaded; the engine serves nothing.
        """
        newest = (await self._llm.collective_rpc("newest_version"))[0]
        return None if newest is None else await self.pull_weights(newest)

    def seconds_since_step(self) -> float:
        """Return for how long the engine has not advanced, or has had nothing to do."""
        return time.monotonic() - self._advanced

    async def generate(self, request: GenerationRequest, prompt: EncodedPrompt) -> Trajectory:
        """Sample one trace.

        Raises:
            DataError: vLLM refused the prompt or ran another one than the learner would.
            WeightSyncError: there was no pull yet, or the last one failed.
            EngineLost: the engine's process died.
        """
        inputs = TokensPrompt(prompt_token_ids=prompt.ids)
        if media := prompt.multi_modal_data():
            inputs["multi_modal_data"] = media
        for attempt in range(ATTEMPTS):
            # A key may come again: in a measurement, or where the answer was lost on its way.
            name = f"{next(self._calls)}/{request.key}#{attempt}"
            await self._good_weights(str(request.key))
            pulls = self._pulls
            try:
                stream = self._llm.generate(inputs, self._params(request), name)
                (output,) = [final async for final in stream]
            except EngineDeadError as error:
                raise EngineLost(f"{request.key}: the engine's process died: {error}") from None
            except (VLLMClientError, EngineGenerateError, ValueError) as error:
                if self._pulls > pulls and attempt + 1 < ATTEMPTS:
                    continue  # caches of pictures were dropped while vLLM read the prompt
                cause = error.__cause__ or error
                raise DataError(f"{request.key}: vLLM refused the prompt: {cause}") from error
            if output.outputs[0].finish_reason not in ("error", "abort"):
                break
            await asyncio.sleep(STALE_LOOK_S * attempt)  # siblings fill the cache meanwhile
        return self._trajectory(request, prompt, output)

    async def _good_weights(self, key: str) -> None:
        """Wait for the end of a pull, and after one that failed some time for the next one.

        Raises:
            WeightSyncError: there was no good one.
        """
        deadline = time.monotonic() + STALE_WAIT_S
        while True:
            async with self._pulling:
                if not self._stale:
                    return
                if time.monotonic() >= deadline:
                    raise WeightSyncError(f"{key}: the engine serves nothing: {self._stale}")
            await asyncio.sleep(STALE_LOOK_S)

    async def pull_weights(self, version: int) -> SyncReport:
        """Load a published version and compare every tensor with what the learner sent.

        Running requests are frozen meanwhile and go on under the new weights, their prompts
        recomputed; all cached keys, values and picture features are dropped. After a failure, or
        where the report names mismatches, the engine refuses to generate until a pull succeeds.

        Raises:
            WeightSyncError: the version could not be loaded.
            EngineLost: the engine's process died.
        """
        async with self._pulling:
            try:
                return await self._pull(version)
            except EngineDeadError as error:
                raise EngineLost(f"the engine's process died while pulling: {error}") from None

    async def _pull(self, version: int) -> SyncReport:
        started = time.perf_counter()
        self._pulls += 1
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        # Once more: a picture that was read since it did so itself would count as known to the
        # engine's process, which has dropped its own copies later.
        await self._llm.renderer.clear_mm_cache_async()
        self._stale = f"the pull of weights version {version} did not finish"
        try:
            await self._llm.start_weight_update()
            await self._llm.update_weights(WeightTransferUpdateRequest({"version": version}))
            await self._llm.finish_weight_update(str(version))
            ranks = await self._llm.collective_rpc("weight_sync_report")
            mismatched = tuple(sorted({name for rank in ranks for name in rank["mismatched"]}))
            self._stale = ""
            if mismatched:
                self._stale = (
                    f"{len(mismatched)} tensors of weights version {version} differ from what the "
                    f"learner sent, first {mismatched[0]}; pull a good version"
                )
        except EngineDeadError:
            raise
        except Exception as error:  # vLLM has no type of its own for a failed worker call
            self._stale = f"the pull of weights version {version} failed: {error}"
            raise WeightSyncError(self._stale) from error
        finally:
            if self._stale:
                await self._llm.pause_generation(mode="abort", clear_cache=True)
            await self._llm.resume_generation()
        return SyncReport(
            version=version,
            tensors=min(rank["tensors"] for rank in ranks),
            mismatched=mismatched,
            bytes=max(rank["bytes"] for rank in ranks),
            seconds=time.perf_counter() - started,
            delta=all(rank["delta"] for rank in ranks),
            phases={
                phase: max(rank["seconds"][phase] for rank in ranks)
                for phase in ranks[0]["seconds"]
            },
        )

    def healthy(self) -> bool:
        """Return whether the processes of a started engine run."""
        return not self._llm.errored

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.shutdown()
        del self._llm  # at interpreter exit its own clean-up would fail noisily

    def _watch_steps(self) -> None:
        """Take note whenever the engine gives the tokens of a step.

        vLLM hands on finished traces only, as nobody reads half of one; its own loggers of steps
        would gather statistics in every step.
        """
        core = self._llm.engine_core
        get_output = core.get_output_async

        async def noted() -> Any:
            outputs = await get_output()
            self._advanced = time.monotonic()
            return outputs

        core.get_output_async = noted

    def _params(self, request: GenerationRequest) -> SamplingParams:
        return SamplingParams(
            temperature=0.0 if request.greedy else self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=self._sampling.top_k,
            min_p=self._sampling.min_p,
            max_tokens=request.max_tokens or self._sampling.max_tokens,
            seed=request.seed,
            logprobs=0,
            logit_bias=dict.fromkeys(self.encoder.banned_ids(), float("-inf")),
            stop_token_ids=[self.encoder.tokenizer.eos_token_id],
            stop=list(self._sampling.stop),
            detokenize=bool(self._sampling.stop),
            skip_special_tokens=False,  # tags of a trace may be such tokens, and a stop
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _trajectory(
        self, request: GenerationRequest, prompt: EncodedPrompt, output: RequestOutput
    ) -> Trajectory:
        check_prompt(str(request.key), prompt, output.prompt_token_ids)
        (completion,) = output.outputs
        if completion.finish_reason not in ("stop", "length"):
            raise DataError(
                f"{request.key}: expected the trace to end by stop or length, found "
                f"{completion.finish_reason}"
            )
        ids = list(completion.token_ids)
        logprobs = [
            step[token].logprob for token, step in zip(ids, completion.logprobs, strict=True)
        ]
        ended = ids[-1] == self.encoder.tokenizer.eos_token_id
        versions = [int(span.version) for span in completion.weight_versions]
        return Trajectory(
            key=request.key,
            prompt_ids=np.asarray(output.prompt_token_ids, dtype=np.int64),
            response_ids=np.asarray(ids, dtype=np.int64),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            text=self.encoder.tokenizer.decode(ids[:-1] if ended else ids),
            finish=completion.finish_reason,
            min_version=min(versions),
            max_version=max(versions),
        )


def _unsplit_prompts(engine: EngineConfig) -> dict[str, Any]:
    """Return arguments under which a CPU engine computes each prompt in one step.

    After a step that ends inside a prompt, vLLM turns back the random generator of a seeded
    request; a CPU generator cannot be turned back, and the whole engine dies of it. Prompts are
    split where the tokens (or the picture tokens, limited by the same number) of a step run out.
    """
    most = min(engine.max_num_seqs * engine.max_model_len, CPU_STEP_TOKENS)
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(engine.max_model_len, most),
    }


def check_prompt(key: str, prompt: EncodedPrompt, ran: list[int] | None) -> None:
    """Raise DataError where vLLM ran another prompt than the learner will train on."""
    if ran != prompt.expanded:
        raise DataError(
            f"{key}: expected vLLM to run the learner's prompt of {len(prompt.expanded)} tokens, "
            f"it ran another of {len(ran or ())}; the picture sizes or the picture tokens differ "
            "between the two"
        )
