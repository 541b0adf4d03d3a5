"""What `make gpu` counts and writes; the whole program runs in the integration tests."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from tests.gpu.results import Results, write
from tests.gpu.sizes import Sequence, forward_flops
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> torch.nn.Module:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")


def counted(net: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(**inputs)
    return counter.get_total_flops()


def test_operations_of_a_text_are_those_that_pytorch_counts(net):
    tokens, text = 24, net.config.get_text_config()
    width = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    # PyTorch multiplies the whole square of attention; half of it is masked. And rotary angles.
    square, angles = 2 * width * tokens**2, 3 * text.head_dim * tokens
    found = forward_flops(net, [Sequence(tokens, tokens, ())])
    ids = torch.arange(20, 20 + tokens)[None]
    assert found + square == pytest.approx(counted(net, {"input_ids": ids}), abs=angles)


def test_operations_of_a_picture_are_those_that_pytorch_counts(net):
    ids = torch.full((1, 4), net.config.image_token_id)
    channels = 3 * 2 * 16 * 16
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": torch.ones_like(ids),
        "pixel_values": torch.randn(16, channels),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    both = forward_flops(net, [Sequence(4, 4, (16,))])
    text = forward_flops(net, [Sequence(4, 4, ())])
    alone = counted(net, {"input_ids": torch.arange(20, 24)[None]})
    assert both - text == pytest.approx(counted(net, inputs) - alone, rel=0.01)


def test_operations_add_up_over_sequences_and_pictures(net):
    one, other = Sequence(9, 3, (16, 4)), Sequence(5, 0, ())
    assert forward_flops(net, [one, other]) == pytest.approx(
        forward_flops(net, [one]) + forward_flops(net, [other])
    )
    assert forward_flops(net, []) == 0


def results(machine: str, value: float) -> Results:
    found = Results(machine=machine, facts=["2026-01-01, `make gpu`"])
    found.add("Rates", ("what", "rate"), [("copy", value), ("peak", None), ("large", 12345.6)])
    return found


def test_a_machine_has_one_section_and_the_others_stay(tmp_path):
    path = tmp_path / "benchmarks.md"
    write(path, results("card A", 1.0))
    write(path, results("card B", 2.0))
    write(path, results("card A", 3.0))
    text = path.read_text()
    assert text.startswith("# Benchmarks\n")
    assert text.count("## card A\n") == text.count("## card B\n") == 1
    assert text.index("card A") < text.index("card B")
    assert "| copy | 3 |\n| peak | - |\n| large | 12,346 |\n" in text
    assert "| copy | 1 |" not in text
    assert list(tmp_path.iterdir()) == [path]


def test_writing_the_same_results_again_changes_nothing(tmp_path):
    path = tmp_path / "benchmarks.md"
    write(path, results("card A", 1.0))
    write(path, results("card B", 2.0))
    before = path.read_text()
    write(path, results("card A", 1.0))
    assert path.read_text() == before


def test_what_was_lacking_is_said_plainly():
    found = results("card A", 1.0)
    assert "- Lacked: nothing\n" in found.section()
    found.lacked.append("vllm: its log-probabilities are not compared")
    assert "- Lacked: vllm: its log-probabilities are not compared\n" in found.section()
