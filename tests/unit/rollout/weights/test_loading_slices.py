"""Weights into vLLM's own layers of one rank of several, held against what the layers load.

The layers are as on a GPU: vLLM packs them for a CPU only after loading, which is left out here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from data.weights.checksum import tensor_checksum
from data.weights.delta import as_units, find_changes
from data.weights.parcels import Adapter, Delta, adapted_checksum, base_name, merge, whole
from data.weights.types import ParamSpec
from rollout.weights.loading import Loading, ModelState
from rollout.weights.tensor_map import is_packed

HEADS, KEY_HEADS, HEAD, INNER = 8, 2, 4, 24
WIDTH = HEADS * HEAD
VOCABULARY = 40
"""Padded to 64 rows: of four ranks the third holds half of its rows, the fourth none."""
RANKS = [(rank, ranks) for ranks in (1, 2, 4) for rank in range(ranks)]
PATCHED = {"patched": True}


class Layers(nn.Module):
    """The kinds of matrices that a Qwen3-VL has: fused and cut by rows, by columns, not at all."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self) -> None:
        super().__init__()
        kind = {"params_dtype": torch.bfloat16}
        self.embed_tokens = VocabParallelEmbedding(VOCABULARY, WIDTH, **kind)
        self.lm_head = ParallelLMHead(VOCABULARY, WIDTH, **kind)
        self.norm = nn.LayerNorm(WIDTH, dtype=torch.bfloat16)
        self.attn = nn.ModuleDict(
            {
                "qkv_proj": QKVParallelLinear(WIDTH, HEAD, HEADS, KEY_HEADS, bias=True, **kind),
                "o_proj": RowParallelLinear(WIDTH, WIDTH, bias=True, **kind),
                # The vision tower's, which is fused in checkpoints already.
                "qkv": QKVParallelLinear(WIDTH, HEAD, HEADS, HEADS, bias=True, **kind),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_up_proj": MergedColumnParallelLinear(WIDTH, [INNER] * 2, bias=False, **kind),
                "down_proj": RowParallelLinear(INNER, WIDTH, bias=True, **kind),
            }
        )
        for parameter in self.parameters():
            parameter.data.zero_()


SHAPES = {
    "embed_tokens.weight": (VOCABULARY, WIDTH),
    "lm_head.weight": (VOCABULARY, WIDTH),
    "norm.weight": (WIDTH,),
    "norm.bias": (WIDTH,),
    "attn.q_proj.weight": (WIDTH, WIDTH),
    "attn.q_proj.bias": (WIDTH,),
    "attn.k_proj.weight": (KEY_HEADS * HEAD, WIDTH),
    "attn.k_proj.bias": (KEY_HEADS * HEAD,),
    "attn.v_proj.weight": (KEY_HEADS * HEAD, WIDTH),
    "attn.v_proj.bias": (KEY_HEADS * HEAD,),
    "attn.o_proj.weight": (WIDTH, WIDTH),
    "attn.o_proj.bias": (WIDTH,),
    "attn.qkv.weight": (3 * WIDTH, WIDTH),
    "attn.qkv.bias": (3 * WIDTH,),
    "mlp.gate_proj.weight": (INNER, WIDTH),
    "mlp.up_proj.weight": (INNER, WIDTH),
    "mlp.down_proj.weight": (WIDTH, INNER),
    "mlp.down_proj.bias": (WIDTH,),
}
ADAPTED = [name for name in SHAPES if name.startswith(("attn", "mlp")) and "weight" in name]


def checkpoint(seed: int) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=dice).bfloat16() for name, shape in SHAPES.items()}


def loaded_by_vllm(model: Layers, tensors: dict[str, Tensor]) -> Layers:
    """Have each layer's own loader take its tensors."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        part: tuple[object, ...] = ()
        for fused, names in model.packed_modules_mapping.items():
            if last in names:
                path, index = f"{parent}.{fused}", names.index(last)
                part = ("qkv"[index] if fused == "qkv_proj" else index,)
        parameter = getattr(model.get_submodule(path), leaf)
        if loader := getattr(parameter, "weight_loader", None):
            loader(parameter, tensor.clone(), *part)
        else:
            parameter.data.copy_(tensor)
    return model


@dataclass
class Rank:
    """One rank's model, and what it holds."""

    model: Layers
    state: ModelState

    def pull(self, parcels: list, sums: dict[str, int], *, patching: bool, **changes: bool) -> None:
        specs = tuple(
            ParamSpec(
                name,
                "bfloat16",
                shape,
                patched=changes.get("patched", False),
                adapted=changes.get("adapted", False) and name in ADAPTED,
            )
            for name, shape in SHAPES.items()
        )
        loading = Loading(self.model, specs, dtype="bfloat16", before=self.state, patching=patching)
        for parcel in parcels:
            own = tensor_checksum(parcel.tensor()) if parcel.name not in sums else None
            loading.take(parcel, sums[parcel.name] if own is None else own)
        assert loading.lacking(sums) == []
        loading.finish(None)
        assert loading.compare() == []
        self.state = loading.state(1)

    def holds(self, expected: Layers) -> None:
        names = [name for name, _ in expected.named_parameters()]
        assert [name for name, _ in self.model.named_parameters()] == names
        for name in names:
            own, other = self.model.get_parameter(name), expected.get_parameter(name)
            assert torch.equal(own.view(torch.int16), other.view(torch.int16)), name


@pytest.fixture(params=RANKS, ids=lambda rank: "{}-of-{}".format(*rank))
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rank]:
    """Return one rank of so many, without the others."""
    index, ranks = request.param
    place = SimpleNamespace(rank_in_group=index, world_size=ranks)
    monkeypatch.setattr(parallel_state, "_TP", place)
    with set_current_vllm_config(VllmConfig()):
        yield Rank(Layers(), ModelState())


def checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor_checksum(tensor) for name, tensor in tensors.items()}


def test_the_layers_are_not_packed(rank: Rank) -> None:
    assert not any(is_packed(module) for module in rank.model.modules())


def test_whole_tensors_load_as_the_layers_load_them(rank: Rank) -> None:
    for seed in (0, 1):
        sent = checkpoint(seed)
        rank.pull([whole(*one) for one in sent.items()], checksums(sent), patching=False)
        rank.holds(loaded_by_vllm(Layers(), sent))


def test_changes_load_as_the_layers_load_the_changed_tensors(rank: Rank) -> None:
    old = checkpoint(0)
    parcels = [whole(*one) for one in old.items()]
    rank.pull(parcels, checksums(old), patching=False, **PATCHED)
    for turn in (1, 2):
        new = {name: tensor.clone() for name, tensor in old.items()}
        for tensor in new.values():
            tensor.view(-1)[turn::41] += 0.5
        parcels = []
        for name, tensor in old.items():
            found = find_changes(as_units(tensor.clone()), as_units(new[name]))
            base = tensor_checksum(tensor)
            parcels.append(Delta(name, base, found[0]) if found else whole(name, new[name]))
        assert {parcel.name for parcel in parcels if isinstance(parcel, Delta)} >= {*ADAPTED}
        rank.pull(parcels, checksums(new), patching=True, **PATCHED)
        rank.holds(loaded_by_vllm(Layers(), new))
        old = new


def test_adapters_load_as_the_layers_load_the_merged_tensors(rank: Rank) -> None:
    sent = checkpoint(0)
    bases = [whole(base_name(n) if n in ADAPTED else n, t) for n, t in sent.items()]
    for turn in (1, 2):
        dice = torch.Generator().manual_seed(turn)
        sums, merged, adapters = checksums(sent), dict(sent), []
        for name in ADAPTED:
            down = torch.randn(3, SHAPES[name][1], generator=dice)
            up = torch.randn(SHAPES[name][0], 3, generator=dice)
            adapters.append(Adapter(name, whole(name, down), whole(name, up), 0.25))
            factors = (tensor_checksum(down), tensor_checksum(up))
            sums[name] = adapted_checksum(sums[name], *factors)
            merged[name] = merge(sent[name], down, up, 0.25)
        # The bases travel once.
        rank.pull([*(bases if turn == 1 else []), *adapters], sums, patching=False, adapted=True)
        rank.holds(loaded_by_vllm(Layers(), merged))


def test_a_damaged_slice_is_found(rank: Rank) -> None:
    sent = checkpoint(0)
    sums = checksums(sent)
    parcels = [whole(*one) for one in sent.items()]
    damaged = parcels[10]
    parcels[10] = replace(damaged, bits=damaged.bits.copy())
    parcels[10].bits[0] ^= 1
    with pytest.raises(AssertionError, match=damaged.name):
        rank.pull(parcels, sums, patching=False)
