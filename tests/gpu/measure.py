"""`make gpu`: what the learner does on one GPU, with what the machine has; some minutes.

    python -m tests.gpu.measure [--output benchmarks.md]
    python -m tests.gpu.measure --device cpu --tiny --output /tmp/benchmarks.md

The second line checks the program itself. Needs torch, transformers and tokenizers; what else it
lacks it says. Results go to benchmarks.md as they come. Exit code 1: a part broke, or two numbers
that must agree do not.
"""

import argparse
import asyncio
import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from configs.common import EngineConfig, SamplingConfig
from configs.learner import LearnerConfig, OptimizerConfig
from data.model.chat import load_encoder
from data.types import (
    GenerationRequest,
    GroupKey,
    Picture,
    Side,
    TrainSample,
    Trajectory,
    TrajectoryKey,
)
from data.weights.checksum import tensor_checksum
from data.weights.parcels import BUCKET_BYTES, Whole, whole
from learner.rank.batching import process_pictures
from learner.rank.logprobs import OutputLayer
from learner.rank.models import load_model
from tests.gpu.loops import LearnerLoop, PartsLoop, PlainLoop, Task, Work, build_work
from tests.gpu.results import Results, write
from tests.gpu.sizes import FULL, TINY, Size, forward_flops
from tests.tiny_model import write_model, write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "deepspeed", "vllm")
LOSS_TOLERANCE = 0.02
"""Largest relative difference between the loops' first losses: bf16, other orders of summing."""
SCORE_TOLERANCE = 0.05
"""Largest difference of chunked and plain log-probabilities: some steps of a bf16 logit, which
products of other sizes round otherwise."""
PARITY_TOLERANCE = 0.1
"""Largest mean difference of log-probabilities between two ways to compute them in bf16."""
GPU_CPU_TOLERANCE = 1e-3
TASKS: tuple[Task, ...] = ("policy", "supervised", "contrastive")
PASSES: dict[Task, int] = {"policy": 4, "supervised": 3, "contrastive": 3}
"""Forward passes that a step is worth; `policy` has the reference's."""


@dataclass(frozen=True)
class Bench:
    """The machine, the model folder on it, and where results go."""

    size: Size
    device: torch.device
    work: Work
    results: Results

    def wait(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], *, repeats: int | None = None) -> float:
        """Return the median seconds of a call after one that is not counted."""
        call()
        return statistics.median(self.once(call) for _ in range(repeats or self.size.repeats))

    def once(self, call: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def free(self) -> None:
        """Give back what nothing holds any more, and measure the peak of memory from here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def held_bytes(self) -> int:
        """Return the memory of tensors on the GPU; 0 on a CPU."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def peak_gib(self, above_bytes: int = 0) -> float | None:
        """Return the peak of memory since `free`; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return (torch.cuda.max_memory_allocated() - above_bytes) / 2**30

    def expect(self, ok: bool, what: str) -> None:
        """Record what does not agree."""
        if not ok:
            self.results.failed = True
            self.results.lacked.append(f"agreement: {what}")


def measure_card(bench: Bench) -> dict[str, float]:
    """Return the rates that the others are shares of: FLOP/s of a product, bytes/s of the link."""
    side = bench.size.matrix
    left, right = (
        torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(10):
            torch.mm(left, right, out=out)

    flops = 20 * side**3 / bench.seconds(products, repeats=5)
    device = torch.zeros(bench.size.copy_bytes, dtype=torch.uint8, device=bench.device)
    host = torch.zeros(
        bench.size.copy_bytes, dtype=torch.uint8, pin_memory=bench.device.type == "cuda"
    )
    down = bench.size.copy_bytes / bench.seconds(lambda: host.copy_(device), repeats=5)
    up = bench.size.copy_bytes / bench.seconds(lambda: device.copy_(host), repeats=5)
    bench.results.add(
        "The card",
        ("what", "rate"),
        [
            (f"bf16 product of {side} x {side} random matrices, TFLOP/s", flops / 1e12),
            ("pinned copy from the device, GB/s", down / 1e9),
            ("pinned copy to the device, GB/s", up / 1e9),
        ],
    )
    return {"flops": flops, "link": down}


def compare_with_cpu(bench: Bench) -> None:
    """Hold a tiny float32 model's log-probabilities on the device against the CPU's."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder))
        net = load_model(folder, LearnerConfig(bf16=False, attention="sdpa"))
    ids = torch.randint(20, 200, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here = net(input_ids=ids).logits.log_softmax(-1)
        there = net.to(bench.device)(input_ids=ids.to(bench.device)).logits.log_softmax(-1).cpu()
    gap = (here - there).abs().max().item()
    bench.results.add(
        "Tiny model in float32, device against CPU",
        ("what", "value"),
        [("largest difference of log-probabilities", gap)],
    )
    bench.expect(gap < GPU_CPU_TOLERANCE, f"float32 log-probabilities differ by {gap:.3g}")


def measure_logprobs(bench: Bench) -> None:
    """Chunked log-probabilities and entropy with their gradient against the plain ones."""
    size, device = bench.size, bench.device
    torch.manual_seed(0)
    head = nn.Linear(size.scored_hidden, size.scored_vocabulary, bias=False)
    head.to(device, torch.bfloat16)
    hidden = torch.randn(size.scored, size.scored_hidden, device=device, dtype=torch.bfloat16)
    hidden.requires_grad_()
    targets = torch.randint(size.scored_vocabulary, (size.scored,), device=device)
    full_gib = size.scored * size.scored_vocabulary * 4 / 2**30

    def chunked() -> Tensor:
        found, _, _ = OutputLayer(head)(hidden, targets)
        return found

    def plain() -> Tensor:
        rows = torch.log_softmax(head(hidden).float(), -1)
        with torch.no_grad():
            (-(rows.exp() * rows).sum(-1), rows.argmax(-1) == targets)
        return rows.gather(1, targets[:, None])[:, 0]

    found: dict[str, tuple[Tensor, Tensor]] = {}
    rows = []
    for name, score in (("plain", plain), ("chunked", chunked)):

        def turn(score: Callable[[], Tensor] = score) -> Tensor:
            hidden.grad = head.weight.grad = None
            logprobs = score()
            logprobs.sum().backward()
            return logprobs.detach()

        bench.free()
        seconds = bench.seconds(turn)
        bench.free()
        hidden.grad = head.weight.grad = None
        held = bench.held_bytes()
        found[name] = turn(), hidden.grad.clone()
        peak = bench.peak_gib(held)
        rows.append((name, seconds * 1e3, peak, None if peak is None else peak / full_gib))
    gap = (found["plain"][0] - found["chunked"][0]).abs().max().item()
    away = (found["plain"][1] - found["chunked"][1]).float().norm()
    share = (away / found["plain"][1].float().norm()).item()
    bench.results.add(
        f"Log-probabilities and their gradient: {size.scored} tokens, {size.scored_vocabulary} "
        f"words, bf16; largest difference {gap:.3g}, gradients {share:.3g} of their norm",
        ("way", "ms", "peak GiB beside its inputs", "of the float32 logits"),
        rows,
    )
    bench.expect(gap < SCORE_TOLERANCE, f"chunked log-probabilities differ by {gap:.3g}")


def measure_weights(bench: Bench, rates: dict[str, float]) -> None:
    """Parameters into buckets on the host, as they are published."""
    net = load_model(bench.work.folder, bench.work.learner).to(bench.device)
    size = sum(param.nbytes for param in net.parameters())

    def named() -> Iterator[tuple[str, Tensor]]:
        return ((name, param.detach().cpu()) for name, param in net.named_parameters())

    def buckets() -> Iterator[list[Whole]]:
        bucket: list[Whole] = []
        for name, tensor in named():
            bucket.append(whole(name, tensor))
            if sum(parcel.nbytes for parcel in bucket) >= BUCKET_BYTES:
                yield bucket
                bucket = []
        yield bucket

    def copied() -> None:
        for _ in buckets():
            pass

    def checked() -> None:
        for bucket in buckets():
            for parcel in bucket:
                tensor_checksum(parcel.tensor())

    views = [param.detach().reshape(-1).view(torch.uint8) for param in net.parameters()]
    groups: list[list[Tensor]] = [[]]
    for view in views:
        if groups[-1] and sum(map(len, groups[-1])) + len(view) > BUCKET_BYTES:
            groups.append([])
        groups[-1].append(view)
    most = max(sum(map(len, group)) for group in groups)
    host = torch.zeros(most, dtype=torch.uint8, pin_memory=bench.device.type == "cuda")

    def gathered() -> None:
        for group in groups:
            flat = torch.cat(group)
            host[: len(flat)].copy_(flat)

    rows = []
    for name, call in (
        ("gathered into buckets on the device, pinned copies", gathered),
        ("the learner's buckets, copied tensor by tensor", copied),
        ("the same, with checksums", checked),
    ):
        rate = size / bench.seconds(call)
        rows.append((name, rate / 1e9, rate / rates["link"]))
    bench.results.add(
        f"Parameters to the host: {size / 1e9:.3g} GB", ("way", "GB/s", "of the pinned copy"), rows
    )


def measure_steps(bench: Bench, rates: dict[str, float]) -> None:
    """One optimiser step of every objective by every loop."""
    kinds = [PlainLoop, PartsLoop]
    if importlib.util.find_spec("deepspeed"):
        kinds.append(LearnerLoop)
    else:
        bench.results.lacked.append("deepspeed: the learner's own step is not measured")
    work, size = bench.work, bench.size
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(work.folder))
    rows: dict[Task, list[tuple[object, ...]]] = {}
    bare: dict[Task, tuple[float, float]] = {}
    for kind in kinds:  # outermost: the learner keeps its last engine
        for task in TASKS:
            with _caught(bench, f"{task} step, {kind.name}"):
                bench.free()
                loop = kind(work, task)
                loss = loop.step()
                bench.free()
                seconds = statistics.median(bench.once(loop.step) for _ in range(size.repeats))
                peak = bench.peak_gib()
                first, plain = bare.setdefault(task, (loss, seconds))
                sequences = work.sequences(task)
                tokens = sum(one.tokens for one in sequences)
                flops = PASSES[task] * forward_flops(shape, sequences)
                rate = flops / seconds
                rows.setdefault(task, []).append(
                    (
                        *(task, kind.name, loss, seconds, seconds / plain, tokens / seconds),
                        *(rate / 1e12, rate / rates["flops"], peak),
                    )
                )
                bench.expect(
                    abs(loss - first) <= LOSS_TOLERANCE * max(1.0, abs(first)),
                    f"{task}: the loss is {loss:.5g} in the {kind.name}, {first:.5g} in the first",
                )
            loop = None
    LearnerLoop.close()
    bench.results.add(
        f"Optimiser steps of {size.name}: {len(work.samples)} traces or {len(work.pairs)} pairs, "
        f"micro-batches of {size.micro_batch_tokens} tokens",
        (
            *("objective", "loop", "first loss", "s", "of the first", "tokens/s", "TFLOP/s"),
            *("of the card", "peak GiB"),
        ),
        [row for task in TASKS for row in rows.get(task, [])],
    )
    shown = [part for one in work.samples for part in one.content if isinstance(part, Picture)]
    seconds = bench.once(lambda: process_pictures(shown, work.pictures, work.encoder))
    bench.results.tables.append(
        "Operations: 3 x the forward pass (`tests/gpu/sizes.py`: 2 x parameters x tokens + causal "
        "attention + vision; padding and recomputation do not count), for `policy` 4 x, the "
        "reference included. Tokens are those of the sequences, padding left out. A step contains "
        f"the processing of its pictures on the CPU, {seconds:.3g} s for those of the traces."
    )


def compare_bf16(bench: Bench) -> None:
    """Log-probabilities of the same traces computed in different ways in bf16."""
    loop = PartsLoop(bench.work, "supervised")
    samples = bench.work.samples[: 2 * 8]

    def scored(batches: list[list[TrainSample]]) -> dict[str, Tensor]:
        found = {}
        with torch.no_grad():
            for some in batches:
                values, _, _ = loop.score(loop.head, some)
                parts = values.split([len(one.response_ids) for one in some])
                found |= {one.key: part for one, part in zip(some, parts, strict=True)}
        return found

    alone = scored([[one] for one in samples])
    rows = [
        ("alone, padded together", *_gap(alone, scored([samples]))),
        ("padded together, in reverse order", *_gap(scored([samples]), scored([samples[::-1]]))),
    ]
    loop.net.float()
    rows.append(("alone, alone with float32 weights", *_gap(alone, scored([[s] for s in samples]))))
    bench.results.add(
        "Log-probabilities in bf16, two ways", ("ways", "mean difference", "largest"), rows
    )
    for name, mean, _ in rows:
        bench.expect(mean < PARITY_TOLERANCE, f"bf16, {name}: differ by {mean:.3g} on average")


def compare_with_vllm(bench: Bench) -> None:
    """Log-probabilities that vLLM returns with its samples against the learner's."""
    if not importlib.util.find_spec("vllm"):
        bench.results.lacked.append("vllm: its log-probabilities are not compared")
        return
    traces = asyncio.run(_sample(bench))
    bench.free()
    loop = PartsLoop(bench.work, "supervised")
    theirs, ours = {}, {}
    for index, (asked, trace) in enumerate(traces):
        sample = TrainSample(
            key=str(index),
            content=asked.content,
            prompt_ids=trace.prompt_ids,
            response_ids=trace.response_ids,
        )
        theirs[sample.key] = torch.from_numpy(trace.logprobs).to(bench.device)
        banned = torch.tensor(bench.work.encoder.banned_ids(), device=bench.device)
        with torch.no_grad():
            ours[sample.key] = loop.score(loop.head, [sample], banned=banned)[0]
    mean, most = _gap(theirs, ours)
    bench.results.add(
        f"Log-probabilities of {len(traces)} sampled traces in bf16",
        ("ways", "mean difference", "largest"),
        [("vLLM, learner", mean, most)],
    )
    bench.expect(mean < PARITY_TOLERANCE, f"bf16, vLLM: differs by {mean:.3g} on average")


async def _sample(bench: Bench) -> list[tuple[GenerationRequest, Trajectory]]:
    # Here and not above: the engine needs vLLM.
    from rollout.actor import RolloutActor

    actor = RolloutActor(
        name="rollout",
        model=bench.work.folder,
        engine=EngineConfig(
            max_model_len=2048, max_num_seqs=16, enforce_eager=True, gpu_memory_utilization=0.5
        ),
        sampling=SamplingConfig(temperature=1.0, max_tokens=64),
        media=bench.size.media,
        store=None,
    )
    await actor.ready()
    try:
        asked = [
            GenerationRequest(
                key=TrajectoryKey(GroupKey(index, sample.key, Side.QUERY), 0),
                content=sample.content,
                seed=index,
            )
            for index, sample in enumerate(bench.work.samples[:8])
        ]
        found = await actor.generate(asked, bench.work.pictures)
    finally:
        await actor.close()
    dropped = [one for one in found if not isinstance(one, Trajectory)]
    if dropped:
        raise RuntimeError(f"expected {len(asked)} traces, vLLM dropped {dropped[0]}")
    by_key = {one.key: one for one in found}
    return [(one, by_key[one.key]) for one in asked]


def _gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, float]:
    """Return the mean and the largest absolute difference over all tokens."""
    away = torch.cat([(one[key] - other[key]).abs() for key in one])
    return away.mean().item(), away.max().item()


@contextlib.contextmanager
def _caught(bench: Bench, part: str) -> Iterator[None]:
    """Let the other parts run when one breaks: whatever broke it, it is written down."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        bench.results.failed = True
        text = str(error).strip().splitlines() or [""]
        bench.results.lacked.append(f"{part}: failed, {type(error).__name__}: {text[0][:200]}")


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} -"


def _machine(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{platform.machine()} without a GPU"
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def run(size: Size, device: torch.device, output: Path) -> Results:
    """Measure all parts and write them to ``output`` after each."""
    command = " ".join(["python -m tests.gpu.measure", *sys.argv[1:]])
    now = datetime.datetime.now(datetime.UTC)
    results = Results(
        machine=f"{_machine(device)}: {size.name}",
        facts=[
            f"{now:%Y-%m-%d}, `{command}`",
            f"Python {platform.python_version()}, " + ", ".join(map(_version, PACKAGES)),
        ],
    )
    learner = LearnerConfig(
        gpus=1.0 if device.type == "cuda" else 0.0,
        zero_stage=2,
        attention="sdpa",
        micro_batch_tokens=size.micro_batch_tokens,
        optimizer=OptimizerConfig(lr=1e-6),
        timeout_s=300.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), size.text, size.vision, dtype=torch.bfloat16, device=device.type)
        encoder = load_encoder(folder, size.media)
        work = build_work(folder, size, encoder, learner, device)
        bench = Bench(size, device, work, results)
        rates: dict[str, float] = {}
        parts: list[tuple[str, Callable[[], None]]] = [
            ("card", lambda: rates.update(measure_card(bench))),
            ("device against CPU", lambda: compare_with_cpu(bench)),
            ("log-probabilities", lambda: measure_logprobs(bench)),
            ("parameters to the host", lambda: measure_weights(bench, rates)),
            ("optimiser steps", lambda: measure_steps(bench, rates)),
            ("bf16 parity", lambda: compare_bf16(bench)),
            ("vLLM parity", lambda: compare_with_vllm(bench)),
        ]
        for name, part in parts:
            bench.free()
            start = time.perf_counter()
            with _caught(bench, name):
                part()
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
            write(output, results)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to check the program")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks.md")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured", file=sys.stderr)
        return 1
    disable_progress_bar()
    results = run(TINY if asked.tiny else FULL, torch.device(asked.device), asked.output)
    print(results.section())
    return int(results.failed)


if __name__ == "__main__":
    sys.exit(main())
