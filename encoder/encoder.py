"""`Encoder`: texts, pictures, videos and pages to vectors, by the names of sentence-transformers.

Its engines live in one event loop in a thread of its own, and many calls share them: vLLM batches
what comes together. Shapes: N inputs, D dimensions.
"""

import asyncio
import atexit
import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

import numpy as np

from configs.schema import EncoderConfig, problems
from data.embed_inputs import embed_content
from data.errors import ConfigError, DataError
from data.media.frames import frames_only
from data.media.pictures import check_bytes
from data.model.chat import load_encoder
from data.model.model_folder import check_embedder, check_reasoner, warn_older_input
from data.prompts import item_content, pictures_of
from data.stores.quantized import Ranges, packed_bits
from data.types import (
    Content,
    DroppedTrajectory,
    EmbedRequest,
    Evidence,
    GenerationRequest,
    GroupKey,
    Item,
    Kind,
    Side,
    TrajectoryKey,
)
from encoder.engines import Engines, ProcessEngines, SharedPictures
from encoder.inputs import SINGLE, Asked, Input, InputReader
from evaluation.sets import EvaluationSet

T = TypeVar("T")
Trace = Literal["auto", "none", "given"]
Precision = Literal["float32", "int8", "binary"]
PROMPTS_FILE = "config_sentence_transformers.json"
"""Of an export: its instructions by name."""
BLOCKS_AT_ONCE = 2
"""Of a long list: the pictures of one are decoded while the engines read the other."""
THREADS = 8
"""That read inputs and decode pictures; each decodes several files at a time."""


class Options(TypedDict, total=False):
    """What `encode`, `encode_query` and `encode_document` take beside their inputs."""

    prompt: str
    """Instruction of inputs that have none of their own."""
    prompt_name: str
    """The same by its name in the Embedder's export."""
    trace: Trace
    """`auto`: the Reasoner writes one, if there is a Reasoner. `given`: the inputs' `trace`."""
    truncate_dim: int | None
    """Leading dimensions that are kept, and made unit vectors again; None: all."""
    precision: Precision
    """`int8`: codes of ``ranges``. `binary`: packed bits, sentence-transformers' `ubinary`."""
    ranges: Ranges | None
    """For `int8`."""
    return_traces: bool
    """Return (vectors, traces)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a call gave, in the order of its inputs."""

    vectors: np.ndarray
    """float32 [N, D], unit vectors"""
    traces: list[str]
    """Empty where an input was embedded without one."""
    prompt_tokens: list[int]
    """Tokens that the Embedder read of each input, its trace and pictures included."""


class Encoder:
    """A Reasoner, where there is one, and an Embedder; close it, or use it in a `with`."""

    @classmethod
    def from_pretrained(
        cls,
        embedder: str | os.PathLike[str],
        reasoner: str | os.PathLike[str] | None = None,
        config: EncoderConfig | None = None,
    ) -> Self:
        """Return an encoder whose engines belong to this process.

        vLLM starts processes that import the main module anew: a script calls this below
        ``if __name__ == "__main__":``.

        Args:
            embedder: folder of the Embedder.
            reasoner: folder of the Reasoner; None: no traces are written.
            config: limits, engines, and how the Embedder is read; None: the defaults.

        Raises:
            ConfigError: the settings are impossible, or a model cannot be asked as they say.
            DataError: a model's folder is incomplete.
        """
        folder = os.fspath(reasoner or "")
        config = with_embedder(config, embedder)
        return cls(folder, config, ProcessEngines(folder, config))

    def __init__(self, reasoner: str, config: EncoderConfig, engines: Engines) -> None:
        """Start engines; ``config`` names the Embedder, ``reasoner`` is empty if there is none.

        Raises:
            ConfigError, DataError: as `from_pretrained`.
        """
        if messages := problems(config):
            raise ConfigError("\n  ".join((f"{len(messages)} problem(s):", *messages)))
        self._reasoner, self._config, self._engines = reasoner, config, engines
        self._shown_before: set[frozenset[Kind]] = set()
        """Kinds of items that the models were checked for."""
        self._serials = itertools.count()
        self._calls: set[asyncio.Task[Any]] = set()
        """That run."""
        self._check_models([])
        self._reader = load_encoder(config.reward.model, config.data.media)
        self._reader.check_pooling(config.reward.pooling)
        self._reader_turn = threading.Lock()
        """Tokenizers may be used by one thread at a time."""
        warn_older_input(config.reward.model)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="encoder-inputs")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="encoder-engines", daemon=True
        )
        self._thread.start()
        self._closed = False
        start = asyncio.run_coroutine_threadsafe(engines.start(), self._loop)
        try:
            self.dimensions = start.result()
            """The width D of its vectors."""
        except BaseException:
            start.cancel()
            self.close()
            raise
        # Else vLLM would meet an interpreter that is half gone.
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engines; calls that run are cancelled. More than once does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        finally:
            self._threads.shutdown(cancel_futures=True)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def healthy(self) -> bool:
        """Return whether the engines can serve; one that died does not come back."""
        return not self._closed and self._engines.healthy()

    def encode_query(
        self, inputs: Input | Sequence[Input], **options: Unpack[Options]
    ) -> np.ndarray | tuple[np.ndarray, list[str] | str]:
        """Return the vectors of queries, float32 [N, D], or [D] of an input that is in no list.

        An input is a text, a picture of PIL, a path (pathlib), or a dict with `encoder.inputs.
        FIELDS`. See `Options` for the rest; ``precision`` changes the type of the numbers.

        Raises:
            DataError: an input cannot be read or embedded; the message names its place, from 0.
            ConfigError: a model cannot see what the inputs show.
            EngineLost: an engine died.
        """
        return self._encode_all(inputs, Side.QUERY, **options)

    def encode_document(
        self, inputs: Input | Sequence[Input], **options: Unpack[Options]
    ) -> np.ndarray | tuple[np.ndarray, list[str] | str]:
        """Return the vectors of what is searched; otherwise as `encode_query`."""
        return self._encode_all(inputs, Side.TARGET, **options)

    def encode(
        self, inputs: Input | Sequence[Input], **options: Unpack[Options]
    ) -> np.ndarray | tuple[np.ndarray, list[str] | str]:
        """Return the same as `encode_document`."""
        return self._encode_all(inputs, Side.TARGET, **options)

    def encode_later(
        self,
        inputs: Input | Sequence[Input],
        *,
        side: Side,
        trace: Trace = "auto",
        truncate_dim: int | None = None,
    ) -> "Future[Encoded]":
        """Begin to encode inputs, all of them together; many calls may run at a time.

        A cancelled future stops its call. The future raises as `encode_query`.
        """
        return self._begin(
            _listed(inputs), side, trace=trace, truncate_dim=truncate_dim, counted=True
        )

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosine of each of ``first`` with each of ``second``, float32 [N, M].

        Both [N, D], or [D] for one vector.
        """
        return _unit(np.atleast_2d(first)) @ _unit(np.atleast_2d(second)).T

    def _encode_all(
        self,
        inputs: Input | Sequence[Input],
        side: Side,
        *,
        prompt: str = "",
        prompt_name: str = "",
        trace: Trace = "auto",
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Ranges | None = None,
        return_traces: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, list[str] | str]:
        """Encode a list block by block; see `Options`."""
        instruction = self._prompt(prompt_name) if prompt_name else prompt
        quantize = _quantizer(precision, ranges)
        asked = _listed(inputs)
        parts: list[Encoded] = []
        running: deque[Future[Encoded]] = deque()
        try:
            for first in range(0, max(1, len(asked)), self._config.block):
                if len(running) == BLOCKS_AT_ONCE:
                    parts.append(running.popleft().result())
                block = asked[first : first + self._config.block]
                running.append(
                    self._begin(
                        block,
                        side,
                        trace=trace,
                        truncate_dim=truncate_dim,
                        instruction=instruction,
                        first=first,
                    )
                )
            parts += [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()
        vectors = quantize(np.concatenate([part.vectors for part in parts]))
        traces = [text for part in parts for text in part.traces]
        if isinstance(inputs, SINGLE):
            return (vectors[0], traces[0]) if return_traces else vectors[0]
        return (vectors, traces) if return_traces else vectors

    def _prompt(self, name: str) -> str:
        """Return an instruction of the Embedder's export.

        Raises:
            DataError: it has none of this name.
        """
        path = Path(self._config.reward.model) / PROMPTS_FILE
        try:
            prompts = json.loads(path.read_text(encoding="utf-8")).get("prompts", {})
        except FileNotFoundError:
            prompts = {}
        if name not in prompts:
            raise DataError(
                f"{path}: expected a prompt '{name}', found {', '.join(prompts) or 'none'}; name "
                "one of these, or pass the instruction itself as `prompt`"
            )
        return prompts[name]

    def _begin(
        self,
        inputs: Sequence[Input],
        side: Side,
        *,
        trace: Trace,
        truncate_dim: int | None,
        instruction: str = "",
        first: int = 0,
        counted: bool = False,
    ) -> "Future[Encoded]":
        """Begin to encode inputs, the first of which has the place ``first`` in its list."""
        if trace not in ("auto", "none", "given"):
            raise DataError(f"trace: expected auto, none or given, found {trace!r}")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dimensions:
            raise DataError(
                f"truncate_dim: expected 1 to {self.dimensions}, the Embedder's dimensions, found "
                f"{truncate_dim}"
            )
        if self._closed:
            raise RuntimeError("expected an open encoder, found a closed one; make another one")
        call = _Call(side, trace, truncate_dim, instruction, first, counted)
        return asyncio.run_coroutine_threadsafe(self._run(inputs, call), self._loop)

    async def _run(self, inputs: Sequence[Input], call: "_Call") -> Encoded:
        task = asyncio.current_task()
        self._calls.add(task)
        try:
            return await self._encode(inputs, call)
        finally:
            self._calls.discard(task)

    async def _encode(self, inputs: Sequence[Input], call: "_Call") -> Encoded:
        asked, pictures = await self._aside(self._prepare, inputs, call)
        items = [entry.item for entry in asked]
        if call.trace == "given":
            traces = [entry.trace or "" for entry in asked]
        elif call.trace == "auto" and self._reasoner:
            traces = await self._traces(items, pictures, call)
        else:
            traces = [""] * len(items)
        data, evidence = self._config.data, Evidence(self._config.reward.evidence)
        contents = [
            embed_content(
                item,
                trace,
                max_frames=data.media.max_frames,
                item_tokens=data.item_tokens,
                evidence=evidence,
            )
            for item, trace in zip(items, traces, strict=True)
        ]
        vectors = await self._vectors(contents, pictures, call)
        if call.truncate_dim is not None:
            vectors = _unit(vectors[:, : call.truncate_dim])
        tokens: list[int] = []
        if call.counted:
            tokens = await self._aside(self._count_tokens, contents, pictures)
        return Encoded(vectors, traces, tokens)

    async def _aside(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in another thread: the loop is for the engines."""
        return await self._loop.run_in_executor(self._threads, function, *args)

    def _prepare(
        self, inputs: Sequence[Input], call: "_Call"
    ) -> tuple[list[Asked], SharedPictures]:
        """Read inputs, check the models against them and decode all pictures."""
        media = self._config.data.media
        with TemporaryDirectory(prefix="encoder-") as folder:
            reader = InputReader(media, Path(folder), instruction=call.instruction)
            asked = [reader.read(value, call.first + i) for i, value in enumerate(inputs)]
            for index, entry in enumerate(asked, start=call.first):
                if (entry.trace is not None) != (call.trace == "given"):
                    raise DataError(
                        f"input {index}, field 'trace': expected one with trace='given' and none "
                        f"otherwise, found {'one' if entry.trace is not None else 'none'} with "
                        f"trace='{call.trace}'"
                    )
            items = [entry.item for entry in asked]
            self._check_models(items)
            shown = {p for item in items for p in pictures_of(item, media.max_frames)}
            files = {picture.uri for picture in shown} - reader.pixels.keys()
            pictures, failed = self._engines.share(files, reader.pixels, frames=frames_only(shown))
        for index, item in enumerate(items, start=call.first):
            for uri in item.uris:
                if uri in failed:
                    raise DataError(f"input {index}: {failed[uri]}")
        sizes = {uri: 3 * height * width for uri, (height, width) in pictures.sizes.items()}
        check_bytes(sizes, media.max_step_bytes)
        return asked, pictures

    def _check_models(self, items: Sequence[Item]) -> None:
        """Refuse items that a model cannot see, each combination of kinds once."""
        kinds = frozenset(item.kind for item in items)
        if kinds in self._shown_before:
            return
        candidates = {str(place): item for place, item in enumerate(items)}
        shown = [EvaluationSet(name="the inputs", queries=(), candidates=candidates)]
        if self._reasoner:
            check_reasoner(self._reasoner, shown)
        check_embedder(self._config.reward.model, shown)
        self._shown_before.add(kinds)

    async def _traces(
        self, items: Sequence[Item], pictures: SharedPictures, call: "_Call"
    ) -> list[str]:
        """Return a greedy trace of each item; equal items get the same one.

        Raises:
            DataError: one has none.
        """
        data = self._config.data
        asked = [
            item_content(
                item,
                call.side,
                templates=data.templates,
                max_frames=data.media.max_frames,
                item_tokens=data.item_tokens,
            )
            for item in items
        ]
        serial = next(self._serials)
        requests = {
            content: GenerationRequest(
                key=TrajectoryKey(GroupKey(serial, str(place), call.side), 0),
                content=content,
                seed=0,
                greedy=True,
            )
            for place, content in enumerate(dict.fromkeys(asked))
        }
        answers = await self._engines.generate(list(requests.values()), pictures)
        by_key = {answer.key: answer for answer in answers}
        traces: list[str] = []
        for index, content in enumerate(asked, start=call.first):
            answer = by_key[requests[content].key]
            if isinstance(answer, DroppedTrajectory):
                raise DataError(
                    f"input {index}: expected a trace, found that the Reasoner wrote none "
                    f"({answer.reason} {answer.detail}); mend the input, or take trace='none'"
                )
            traces.append(answer.text)
        return traces

    async def _vectors(
        self, contents: Sequence[Content], pictures: SharedPictures, call: "_Call"
    ) -> np.ndarray:
        """Return the unit vectors of contents, float32 [N, D]; equal ones are embedded once.

        Raises:
            DataError: one could not be embedded.
        """
        serial = next(self._serials)
        requests = {
            content: EmbedRequest(key=f"{serial}-{place}", content=content)
            for place, content in enumerate(dict.fromkeys(contents))
        }
        vectors, failed = await self._engines.embed(list(requests.values()), pictures)
        keys = [requests[content].key for content in contents]
        for index, key in enumerate(keys, start=call.first):
            if key not in vectors:
                raise DataError(f"input {index}: could not be embedded: {failed[key]}")
        if not keys:
            return np.empty((0, self.dimensions), dtype=np.float32)
        return np.stack([vectors[key] for key in keys])

    def _count_tokens(self, contents: Sequence[Content], pictures: SharedPictures) -> list[int]:
        reward, sizes = self._config.reward, pictures.sizes
        with self._reader_turn:
            return [
                self._reader.embed_length(
                    content,
                    sizes,
                    pooling=reward.pooling,
                    instruction=reward.instruction,
                    max_tokens=reward.engine.max_model_len,
                )
                for content in contents
            ]

    async def _stop(self) -> None:
        """Cancel the calls that run, and stop the engines."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._engines.close()


@dataclass(frozen=True, slots=True)
class _Call:
    """What holds for all inputs of a call."""

    side: Side
    trace: Trace
    truncate_dim: int | None
    instruction: str
    first: int
    """Place of its first input in the list that the user gave."""
    counted: bool
    """Whether the tokens are asked for: to count them takes as long as to read a short text."""


def with_embedder(config: EncoderConfig | None, embedder: str | os.PathLike[str]) -> EncoderConfig:
    """Return settings that name the Embedder's folder; None: the defaults."""
    config = config or EncoderConfig()
    return replace(config, reward=replace(config.reward, model=os.fspath(embedder)))


def _listed(inputs: Input | Sequence[Input]) -> list[Input]:
    return [inputs] if isinstance(inputs, SINGLE) else list(inputs)


def _quantizer(precision: Precision, ranges: Ranges | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns vectors into numbers of that precision.

    Raises:
        DataError: there is none, or ``ranges`` do not fit it.
    """
    if (ranges is not None) != (precision == "int8"):
        raise DataError(
            f"ranges: expected them with precision='int8' and not otherwise, found precision="
            f"'{precision}' {'with' if ranges else 'without'} them; `Ranges.of(vectors)` of a "
            "corpus gives some"
        )
    if precision == "int8":
        return ranges.codes
    quantizers: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "float32": lambda vectors: vectors,
        "binary": packed_bits,
    }
    if precision not in quantizers:
        raise DataError(f"precision: expected float32, int8 or binary, found {precision!r}")
    return quantizers[precision]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, float32 [N, D]; one of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
