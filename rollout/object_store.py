"""Weights from Ray's object store into a vLLM engine, through vLLM's weight-transfer interface.

Runs inside vLLM's worker processes, each a Ray driver of its own. A sync is: manifest and bucket
references from the store actor, what the engine does not hold yet streamed from the buckets into
the model's own loaders, derived weights rebuilt, and then every parameter of the engine compared
with what the learner sent.

What the comparison proves, per checkpoint tensor, from what the engine computes with:
- plain parameters (all of them on a GPU; norms, biases, embeddings, convolutions on a CPU): the
  checksum of the engine's memory, sliced out of fused qkv and gate-up matrices, equals the
  manifest's. The bits are the learner's.
- CPU matrices, of which vLLM keeps only a packed copy that cannot be read: the matrix is read back
  by sending the identity through the packed product itself. Each result is one weight times one
  plus zeros, exact in float32 and bfloat16, so the checksum again covers every bit but the sign
  of zeros (and denormals, on hardware whose products drop them). The packed copy of a tied or
  untied lm_head is read this way as well and is reported under `lm_head.weight`.
- tensor parallelism: each rank checks that the whole tensor arrived intact, then that its slice is
  what it holds; together the ranks cover the tensor.
Not proven: anything computed from weights outside parameters (there is nothing of the kind in
Qwen-VL and Llama-like models), and that cached keys, values and picture features are new; they
are dropped.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import nn
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
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
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from data.checksum import tensor_checksum
from data.errors import WeightSyncError
from data.types import ParamSpec

BACKEND = "ray_objects"
FETCH_TIMEOUT_S = 300.0
"""Longest wait for one bucket."""
PROBE_ROWS = 512
TIED_HEAD = "lm_head.weight"

# vLLM warns at every sync that a tied lm_head gets no tensor; missing ones are refused here.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


@dataclass
class StoreInit(WeightTransferInitInfo):
    ray_address: str
    namespace: str
    actor_name: str


@dataclass
class PullVersion(WeightTransferUpdateInfo):
    version: int


@dataclass(frozen=True, slots=True)
class Span:
    """Rows (or columns) of a checkpoint tensor and where the engine keeps them."""

    dim: int
    sent: int
    held: int
    length: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint tensor lies in this rank's model."""

    path: str
    """vLLM's name of the parameter."""
    module: nn.Module
    leaf: str
    spans: tuple[Span, ...]
    """Empty: the whole parameter is the whole tensor."""
    whole: bool
    """This rank holds the tensor completely."""


class RayObjectsEngine(WeightTransferEngine[StoreInit, PullVersion]):
    """Pulls one published version per update."""

    init_info_cls = StoreInit
    update_info_cls = PullVersion

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report: dict[str, Any] = {}
        self.held: dict[str, tuple[int, int]] = {}
        """Checksums, by checkpoint name, of the tensor as it was sent and of what this rank holds
        of it; empty where the last update failed."""

    def init_transfer_engine(self, init_info: StoreInit) -> None:
        """Join the cluster as a driver and find the store actor."""
        if not ray.is_initialized():
            ray.init(
                address=init_info.ray_address,
                namespace=init_info.namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        self.store = ray.get_actor(init_info.actor_name, namespace=init_info.namespace)

    def start_weight_update(self) -> None:
        """Forget the last report; the model is touched only once a manifest is accepted."""
        self.report = {}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive a version; unlike the base class, works without an accelerator too."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: PullVersion) -> None:
        """Load what a version has that this engine does not hold.

        Raises:
            WeightSyncError: the manifest or the buckets do not fit the model or each other.
        """
        manifest, buckets = ray.get(
            self.store.get.remote(update_info.version), timeout=FETCH_TIMEOUT_S
        )
        self.places = _places(self.model, manifest, str(self.model_config.dtype))
        held, self.held = self.held, {}
        self.sent = {spec.name: spec.checksum for spec in manifest}
        self.expected = {
            name: held[name][1] if held.get(name, (None,))[0] == sent else sent
            for name, sent in self.sent.items()
        }
        self.damaged: set[str] = set()
        self.received_bytes = 0
        wanted = self._wanted(held)
        if not wanted:
            return
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(
                self._tensors([spec for spec in manifest if spec.name in wanted], buckets)
            )
        finally:
            # After a failure too: it gives the layers their parameters back, so that the engine
            # can take the next version.
            finalize_layerwise_reload(self.model, self.model_config)
            _pack_heads(self.model)

    def finish_weight_update(self) -> None:
        """Compare what the model holds with the manifest."""
        differing = set(self.damaged)
        whole: dict[str, torch.Tensor] = {}
        for name, place in self.places.items():
            if place.path not in whole:
                whole = {place.path: held_parameter(place.module, place.leaf)}
            held = _cut(whole[place.path], [(s.dim, s.held, s.length) for s in place.spans])
            if tensor_checksum(held.to(self.model_config.dtype)) != self.expected[name]:
                differing.add(name)
        for name, head in _tied_heads(self.model, self.places):
            rows = self.places[name].spans[0].length
            held = held_parameter(head, "weight")[:rows]
            if tensor_checksum(held.to(self.model_config.dtype)) != self.expected[name]:
                differing.add(TIED_HEAD)
        if not differing:
            self.held = {name: (sent, self.expected[name]) for name, sent in self.sent.items()}
        self.report = {
            "tensors": len(self.places),
            "mismatched": sorted(differing),
            "bytes": self.received_bytes,
        }

    def shutdown(self) -> None:
        """Leave the cluster."""
        if ray.is_initialized():
            ray.shutdown()

    def _wanted(self, held: Mapping[str, tuple[int, int]]) -> set[str]:
        """Return the names of changed tensors, and of all others of the modules they belong to.

        vLLM fills a module anew or not at all: q, k and v, for instance, together.
        """
        changed = {
            place.module
            for name, place in self.places.items()
            if held.get(name, (None,))[0] != self.sent[name]
        }
        return {name for name, place in self.places.items() if place.module in changed}

    def _tensors(
        self, wanted: Sequence[ParamSpec], buckets: Sequence[tuple[Sequence[str], Any]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the wanted tensors bucket by bucket, checked against the manifest on arrival."""
        missing = {spec.name: spec for spec in wanted}
        for names, ref in buckets:
            if missing.keys().isdisjoint(names):
                continue
            for name, dtype, shape, data in ray.get(ref, timeout=FETCH_TIMEOUT_S):
                # What else lies there is older, or held already.
                if name not in names or name not in missing:
                    continue
                spec = missing.pop(name)
                if (spec.dtype, tuple(spec.shape)) != (dtype, tuple(shape)):
                    raise WeightSyncError(
                        f"bucket tensor {name} {dtype} {tuple(shape)} does not fit the manifest "
                        f"({spec}); publish manifest and buckets of one export"
                    )
                self.received_bytes += data.nbytes
                tensor = _as_tensor(data, dtype, shape)
                place = self.places[name]
                if tensor_checksum(tensor) != spec.checksum:
                    self.damaged.add(name)
                if not place.whole:
                    self.expected[name] = tensor_checksum(
                        _cut(tensor, [(s.dim, s.sent, s.length) for s in place.spans])
                    )
                yield name, tensor
        if missing:
            raise WeightSyncError(
                f"the buckets lack {len(missing)} tensors of the manifest, first {min(missing)}"
            )


class WeightPuller:
    """Worker extension: vLLM mixes it into its worker class."""

    def weight_sync_report(self) -> dict[str, Any]:
        """Return `tensors`, `mismatched` and `bytes` of the last update of this rank."""
        return self.weight_transfer_engine.report


def transfer_config() -> WeightTransferConfig:
    """Return the engine argument that selects this backend."""
    return WeightTransferConfig(backend=BACKEND)


def _as_tensor(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    with warnings.catch_warnings():
        # Ray's arrays are read-only and torch says so; the tensor is only copied from.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(data)
    return flat.view(getattr(torch, dtype)).reshape(shape)


def _cut(tensor: torch.Tensor, pieces: list[tuple[int, int, int]]) -> torch.Tensor:
    """Return the (dim, start, length) pieces of a tensor joined; no pieces: the tensor itself."""
    if not pieces:
        return tensor
    if len(pieces) == 1:
        return tensor.narrow(*pieces[0])
    return torch.cat([tensor.narrow(*piece) for piece in pieces], dim=pieces[0][0])


def _places(model: nn.Module, manifest: tuple[ParamSpec, ...], dtype: str) -> dict[str, Place]:
    """Return each checkpoint tensor's place, having checked that the two fit one to one.

    Raises:
        WeightSyncError: a name, shape or dtype does not fit, or a parameter gets no tensor.
    """
    places = {spec.name: _place(model, spec) for spec in manifest}
    wrong = sorted({spec.dtype for spec in manifest} - {dtype.removeprefix("torch.")})
    if wrong:
        raise WeightSyncError(
            f"the learner sent {', '.join(wrong)}, the engine holds {dtype}: set "
            "rollout.engine.dtype and learner.bf16 to the same type"
        )
    filled: dict[str, int] = {}
    for place in places.values():
        filled[place.path] = filled.get(place.path, 0) + max(1, len(place.spans))
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
    return places


def _place(model: nn.Module, spec: ParamSpec) -> Place:
    """Return where one checkpoint tensor lies."""
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
        return Place(f"{module_path}.{leaf}", module, leaf, (), True)
    spans, sent, held = [], 0, 0
    for index, (total, length, start) in enumerate(parts):
        if part is None or part == index:
            spans.append(Span(dim, sent + start, held, length))
            sent += total
        held += length
    if sent != spec.shape[dim]:
        raise WeightSyncError(
            f"{spec.name}: expected {sent} along dimension {dim}, found shape {spec.shape}"
        )
    whole = sum(span.length for span in spans) == sent
    return Place(f"{module_path}.{leaf}", module, leaf, tuple(spans), whole)


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


def _is_packed(module: nn.Module) -> bool:
    """Whether products use a packed copy of the weight (CPU); embeddings look rows up instead."""
    looks_up = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    return hasattr(module, "cpu_linear") and not looks_up


def held_parameter(module: nn.Module, leaf: str) -> torch.Tensor:
    """Return a parameter as the module computes with it, in plain layout [out, in]."""
    parameter = getattr(module, leaf)
    if leaf != "weight" or not _is_packed(module):
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


def _pack_heads(model: nn.Module) -> None:
    """Rebuild the packed output weights: a tied head gets no tensor, so vLLM leaves it old."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and _is_packed(module):
            module.quant_method.process_weights_after_loading(module)


def _tied_heads(model: nn.Module, places: dict[str, Place]) -> Iterator[tuple[str, ParallelLMHead]]:
    """Yield (checkpoint name of the embedding, head) where the head shares its weight."""
    filled = {id(place.module): place for place in places.values()}
    for head in model.modules():
        if not isinstance(head, ParallelLMHead) or id(head) in filled:
            continue
        for name, place in places.items():
            if getattr(place.module, "weight", None) is head.weight:
                yield name, head


def _register() -> None:
    # vLLM refuses a second registration, and this module is imported once per process and name.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, RayObjectsEngine)


_register()
