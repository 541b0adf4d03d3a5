"""The tensor map: which part of a vLLM model each checkpoint tensor is, to write and to read it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from data.errors import WeightSyncError
from data.weights.types import ParamSpec

PROBE_ROWS = 512


@dataclass(frozen=True, slots=True)
class Span:
    """Rows (or columns) of a checkpoint tensor, and the rows of the parameter that hold them."""

    dim: int
    tensor_start: int
    parameter_start: int
    length: int


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A checkpoint tensor, mapped to a parameter of this rank's model."""

    path: str
    """vLLM's name of the parameter."""
    module: nn.Module
    leaf: str
    spans: tuple[Span, ...]
    """Empty: the whole parameter is the whole tensor."""
    whole: bool
    """This rank holds the tensor completely."""

    @property
    def packed(self) -> bool:
        """Whether the module computes with a packed copy, which only its loader can write."""
        return is_packed(self.module)

    def part_of_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a whole tensor."""
        return _cut(tensor, [(s.dim, s.tensor_start, s.length) for s in self._joined])

    def part_of_parameter(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the tensor's part of the parameter, which `plain_parameter` returns."""
        return _cut(parameter, [(s.dim, s.parameter_start, s.length) for s in self._joined])

    def write(self, tensor: torch.Tensor) -> None:
        """Copy this rank's part of a whole tensor into the parameter; not where it is packed."""
        parameter = getattr(self.module, self.leaf).data
        if not self.spans:
            parameter.copy_(tensor.reshape(parameter.shape))
        for s in self._joined:
            part = tensor.narrow(s.dim, s.tensor_start, s.length)
            parameter.narrow(s.dim, s.parameter_start, s.length).copy_(part)

    def window(self) -> torch.Tensor | None:
        """Return the whole tensor as a contiguous view of the parameter; None where none exists."""
        if self.packed or not self.whole:
            return None
        window = self.part_of_parameter(getattr(self.module, self.leaf).data)
        return window if window.is_contiguous() else None

    @property
    def _joined(self) -> tuple[Span, ...]:
        """Return the spans, joined into one if this rank holds the whole tensor."""
        if not self.spans or not self.whole:
            return self.spans
        first = self.spans[0]
        return (Span(first.dim, 0, first.parameter_start, sum(span.length for span in self.spans)),)


def map_tensors(
    model: nn.Module, layout: tuple[ParamSpec, ...], dtype: str
) -> dict[str, MappedTensor]:
    """Return the tensor map by checkpoint name; it fits the model one to one.

    Raises:
        WeightSyncError: a name, shape or dtype does not fit, or a parameter gets no tensor.
    """
    tensor_map = {spec.name: _map_tensor(model, spec) for spec in layout}
    wrong = sorted({spec.dtype for spec in layout} - {dtype})
    if wrong:
        raise WeightSyncError(
            f"the learner sent {', '.join(wrong)}, the engine holds {dtype}: set "
            "rollout.engine.dtype and learner.bf16 to the same type"
        )
    filled: dict[str, int] = {}
    for mapped in tensor_map.values():
        filled[mapped.path] = filled.get(mapped.path, 0) + max(1, len(mapped.spans))
    short = [
        path
        for path, _ in model.named_parameters()
        if filled.get(path, 0) != len(_parts(model.get_submodule(path.rpartition(".")[0])) or "1")
    ]
    if short:
        raise WeightSyncError(
            f"{len(short)} parameters of the engine would not be filled completely, first "
            f"{short[0]}: publish every parameter of the model under its checkpoint name"
        )
    return tensor_map


def _map_tensor(model: nn.Module, spec: ParamSpec) -> MappedTensor:
    """Return the parameter, or its spans, that a checkpoint tensor fills."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    # Renamed only: which part of a fused matrix a tensor is follows from its own name.
    path = mapper.get_rename_mapper().map_name(spec.name) if mapper else spec.name
    module_path, _, leaf = path.rpartition(".")
    parent, _, last = module_path.rpartition(".")
    part: int | None = None
    for fused, names in getattr(model, "packed_modules_mapping", {}).items():
        if last in names and len(names) > 1:
            module_path, part = f"{parent}.{fused}", names.index(last)
    try:
        module = model.get_submodule(module_path)
    except AttributeError as error:
        raise WeightSyncError(
            f"{spec.name}: the engine has no module {module_path}; is this the same model?"
        ) from error
    if getattr(module, leaf, None) is None:
        raise WeightSyncError(f"{spec.name}: the engine's {module_path} has no {leaf}")
    dim = 1 if isinstance(module, RowParallelLinear) else 0
    parts = _parts(module)
    if not parts or (dim == 1 and leaf == "bias"):
        return MappedTensor(f"{module_path}.{leaf}", module, leaf, (), True)
    spans, tensor_start, parameter_start = [], 0, 0
    for index, (total, length, start) in enumerate(parts):
        if part is None or part == index:
            spans.append(Span(dim, tensor_start + start, parameter_start, length))
            tensor_start += total
        parameter_start += length
    size = tensor_start
    if size != spec.shape[dim]:
        raise WeightSyncError(
            f"{spec.name}: expected {size} along dimension {dim}, found shape {spec.shape}"
        )
    whole = sum(span.length for span in spans) == size
    return MappedTensor(f"{module_path}.{leaf}", module, leaf, tuple(spans), whole)


def _parts(module: nn.Module) -> list[tuple[int, int, int]]:
    """Return (size in the checkpoint, size here, start) of each part of a sharded matrix."""
    if isinstance(module, VocabParallelEmbedding):
        rows = module.shard_indices
        return [(module.org_vocab_size, rows.num_org_elements, rows.org_vocab_start_index)]
    if isinstance(module, QKVParallelLinear):
        keys = module.tp_rank // module.num_kv_head_replicas
        sizes = (
            (module.total_num_heads, module.num_heads, module.head_size, module.tp_rank),
            (module.total_num_kv_heads, module.num_kv_heads, module.head_size, keys),
            (module.total_num_kv_heads, module.num_kv_heads, module.v_head_size, keys),
        )
        return [(all_ * size, here * size, rank * here * size) for all_, here, size, rank in sizes]
    if isinstance(module, MergedColumnParallelLinear):
        totals = module.output_sizes
    elif isinstance(module, ColumnParallelLinear):
        totals = [module.output_size]
    elif isinstance(module, RowParallelLinear):
        totals = [module.input_size]
    else:
        return []
    here = [total // module.tp_size for total in totals]
    return [(t, h, module.tp_rank * h) for t, h in zip(totals, here, strict=True)]


def is_packed(module: nn.Module) -> bool:
    """Whether products use a packed copy of the weight (CPU); embeddings look rows up instead."""
    looks_up = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    return hasattr(module, "cpu_linear") and not looks_up


def plain_parameter(module: nn.Module, leaf: str) -> torch.Tensor:
    """Return a parameter as the module computes with it, in plain layout [out, in]."""
    parameter = getattr(module, leaf)
    if leaf != "weight" or not is_packed(module):
        return parameter.data
    width = (
        module.embedding_dim
        if isinstance(module, ParallelLMHead)
        else (
            module.input_size_per_partition
            if isinstance(module, RowParallelLinear)
            else module.input_size
        )
    )
    rows = []
    with torch.inference_mode():
        for start in range(0, width, PROBE_ROWS):
            count = min(PROBE_ROWS, width - start)
            probe = torch.zeros(count, width, dtype=parameter.dtype)
            probe[torch.arange(count), torch.arange(start, start + count)] = 1
            rows.append(module.cpu_linear(probe, parameter, None))
    return torch.cat(rows).t()


def pack_heads(model: nn.Module) -> None:
    """Rebuild the packed output weights: a tied head gets no tensor, so vLLM leaves it old."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and is_packed(module):
            module.quant_method.process_weights_after_loading(module)


def tied_heads(
    model: nn.Module, tensor_map: dict[str, MappedTensor]
) -> Iterator[tuple[str, ParallelLMHead]]:
    """Yield (checkpoint name of the embedding, head) where the head shares its weight."""
    filled = {id(mapped.module) for mapped in tensor_map.values()}
    for head in model.modules():
        if not isinstance(head, ParallelLMHead) or id(head) in filled:
            continue
        for name, mapped in tensor_map.items():
            if getattr(mapped.module, "weight", None) is head.weight:
                yield name, head


def _cut(tensor: torch.Tensor, pieces: list[tuple[int, int, int]]) -> torch.Tensor:
    """Return the (dim, start, length) pieces of a tensor joined; no pieces: the tensor itself."""
    if not pieces:
        return tensor
    if len(pieces) == 1:
        return tensor.narrow(*pieces[0])
    return torch.cat([tensor.narrow(*piece) for piece in pieces], dim=pieces[0][0])
