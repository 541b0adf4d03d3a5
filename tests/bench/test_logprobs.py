"""Peak memory of chunked log-probabilities, forward and backward, beside all logits' bytes."""

import multiprocessing
import re
from pathlib import Path

import pytest
import torch

from learner.rank.logprobs import CHUNK_LOGITS, OutputLayer
from tests.bench.record import REPEATS, record

TOKENS, VOCABULARY, HIDDEN = 4_096, 151_936, 256
FLOAT_BYTES = 4


def peak_bytes(turn: int) -> float:
    """Return the most bytes resident at a time beyond the inputs, the head and its gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(turn)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,))

    def run(count: int) -> None:
        logprobs, _, _ = OutputLayer(head)(hidden[:count], targets[:count])
        logprobs.sum().backward()

    # Two chunks of the sizes to come: the matrix library keeps buffers for each.
    size = CHUNK_LOGITS // VOCABULARY
    run(size + TOKENS % size)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    run(TOKENS)
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return 1024.0 * int(found[1])


@pytest.mark.timeout(1800)
def test_memory_of_logprobs() -> None:
    # A fresh process each time: what an allocator kept from the last turn would hide this one's.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(peak_bytes, range(REPEATS), chunksize=1)
    whole = float(TOKENS * VOCABULARY * FLOAT_BYTES)
    record(
        f"logprobs {TOKENS}x{VOCABULARY} / all logits",
        peaks,
        [whole] * REPEATS,
        target=1 / 8,
        unit="bytes",
    )
