"""The learner's log-probabilities on the GPU against the CPU's, on a tiny model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.gpu


def test_logprobs_on_the_gpu_equal_the_cpus(tmp_path: Path) -> None:
    assert torch.cuda.is_available(), "make gpu needs an NVIDIA GPU that torch can use"
    write_tiny_model(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.randint(20, 200, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        on_cpu = model(input_ids=ids).logits.log_softmax(-1)
        on_gpu = model.cuda()(input_ids=ids.cuda()).logits.log_softmax(-1).cpu()
    assert (on_cpu - on_gpu).abs().max() < 1e-3
