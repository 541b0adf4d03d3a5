"""Loads one version of the weights into a vLLM model, and compares the model with what was sent.

This file knows nothing of Ray. See `rollout.weights.transfer` for what the comparison proves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from data.errors import WeightSyncError
from data.weights.checksum import MASK, copy_with_checksum, tensor_checksum
from data.weights.delta import apply_changes, apply_changes_torch, as_units
from data.weights.parcels import Adapter, Delta, Parcel, Whole, adapted_checksum, base_name, merge
from data.weights.types import ParamSpec
from rollout.weights.tensor_map import (
    MappedTensor,
    map_tensors,
    pack_heads,
    plain_parameter,
    tied_heads,
)

TIED_HEAD = "lm_head.weight"


@dataclass(slots=True)
class TensorState:
    """What a rank holds of a tensor."""

    sent: int
    """Checksum of the tensor as the learner sent it."""
    own: int
    """Checksum of this rank's part as it can be read back."""
    compared: bool
    """The part was read and compared since all of it was written."""


@dataclass(slots=True)
class ModelState:
    """What a model holds; empty where the last update failed, so that the next fetches all."""

    version: int | None = None
    held: dict[str, TensorState] = field(default_factory=dict)
    plain: dict[str, torch.Tensor] = field(default_factory=dict)
    """Whole tensors on the host: those that are patched but lie otherwise in the model, and
    weights without their adapters, under their `base_name`."""


class Loading:
    """The pull of one version.

    Args:
        dtype: `bfloat16`, for instance; the model's.
        before: what the model holds; it is used up.
        patching: the version is made of what changed since the one that the model holds.

    Raises:
        WeightSyncError: the tensors do not fit the model one to one; nothing is touched.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: tuple[ParamSpec, ...],
        *,
        dtype: str,
        before: ModelState,
        patching: bool,
    ) -> None:
        self._model = model
        self._dtype = getattr(torch, dtype)
        self._tensor_map = map_tensors(model, layout, dtype)
        self._specs = {spec.name: spec for spec in layout}
        self._held = {name: replace(tensor_state) for name, tensor_state in before.held.items()}
        self._plain = before.plain
        self._patching = patching
        self._damaged: set[str] = set()
        self._summed: set[str] = set()
        """Tensors that were compared as they were written."""
        self._staged: dict[str, torch.Tensor] = {}
        """Arrived tensors of packed modules."""
        self._touched = False

    @property
    def tensors(self) -> int:
        """Tensors of the version."""
        return len(self._tensor_map)

    def wants(self, checksums: Mapping[str, int]) -> set[str]:
        """Return the names of which the model holds other bits than these."""
        return {name for name, sent in checksums.items() if not self._holds(name, sent)}

    @torch.no_grad()
    def take(self, parcel: Parcel, checksum: int) -> None:
        """Write a parcel into the model, or lay it aside for `finish`.

        Raises:
            WeightSyncError: it does not fit the version, or not what the model holds.
        """
        self._touched = True
        if isinstance(parcel, Delta):
            self._patch(parcel, checksum)
        elif isinstance(parcel, Adapter):
            self._merge(parcel, checksum)
        else:
            self._write_whole(parcel, checksum)

    def lacking(self, manifest: Mapping[str, int]) -> list[str]:
        """Return the names of tensors that are needed once more, to load their modules whole.

        Raises:
            WeightSyncError: after all buckets the model would not hold this version.
        """
        missing = [
            name
            for name in self._tensor_map
            if name not in manifest or not self._holds(name, manifest[name])
        ]
        if missing:
            raise WeightSyncError(
                f"the buckets lack {len(missing)} tensors of the version, first {min(missing)}"
            )
        modules = {self._tensor_map[name].module for name in self._staged}
        beside = [
            name
            for name, mapped in self._tensor_map.items()
            if mapped.module in modules and name not in self._staged
        ]
        self._staged |= {name: self._plain[name] for name in beside if name in self._plain}
        return [name for name in beside if name not in self._staged]

    @torch.no_grad()
    def finish(self, config: ModelConfig | None) -> None:
        """Load what was laid aside and rebuild derived weights.

        ``config`` is only read where the model has packed modules.
        """
        if self._staged:
            for name, tensor in self._staged.items():
                own = _readable(self._tensor_map[name].part_of_tensor(tensor))
                self._held[name].own = tensor_checksum(own)
                self._held[name].compared = False  # its whole module is loaded anew
            self._summed.clear()  # vLLM goes through all layers now
            initialize_layerwise_reload(self._model)
            try:
                self._model.load_weights(iter(self._staged.items()))
            finally:
                # After a failure too: it gives the layers their parameters back, so that the
                # engine can take the next version.
                finalize_layerwise_reload(self._model, config)
        self._staged = {}
        if self._touched:
            pack_heads(self._model)

    @torch.no_grad()
    def compare(self) -> list[str]:
        """Return the names of tensors that the model does not hold as they were sent."""
        differing = set(self._damaged)
        whole: dict[str, torch.Tensor] = {}
        for name, mapped in self._tensor_map.items():
            if name in self._summed or (self._patching and self._held[name].compared):
                continue
            if mapped.path not in whole:
                whole = {mapped.path: plain_parameter(mapped.module, mapped.leaf)}
            own = mapped.part_of_parameter(whole[mapped.path]).to(self._dtype)
            if tensor_checksum(_readable(own) if mapped.packed else own) != self._held[name].own:
                differing.add(name)
        for name, head in tied_heads(self._model, self._tensor_map):
            rows = self._tensor_map[name].spans[0].length
            same = torch.equal(plain_parameter(head, "weight")[:rows], head.weight.data[:rows])
            if name in differing or not same:
                differing.add(TIED_HEAD)
        return sorted(differing)

    def state(self, version: int) -> ModelState:
        """Return what the model holds, once `compare` has found nothing."""
        for tensor_state in self._held.values():
            tensor_state.compared = True
        return ModelState(version, self._held, self._plain)

    def _holds(self, name: str, sent: int) -> bool:
        return name in self._held and self._held[name].sent == sent

    def _write_whole(self, parcel: Whole, checksum: int) -> None:
        tensor = parcel.tensor()
        name = parcel.name.removeprefix(base_name(""))
        spec = self._specs[name]
        if (spec.dtype, tuple(spec.shape)) != (parcel.dtype, tuple(parcel.shape)):
            raise WeightSyncError(
                f"bucket tensor {name} {parcel.dtype} {tuple(parcel.shape)} does not fit the "
                f"version's list ({spec}); publish both of one export"
            )
        if name != parcel.name:
            self._check(name, tensor, checksum)
            self._plain[parcel.name] = tensor.clone()
            self._held[parcel.name] = TensorState(checksum, checksum, compared=True)
            return
        mapped = self._tensor_map[name]
        self._plain.pop(name, None)  # an older version, which nothing patches now
        if spec.patched and not _patchable(mapped):
            tensor = self._plain[name] = tensor.clone()
        # Where it is written as it is, the sum of what is written shows damage on the way.
        if (window := mapped.window()) is not None and window.device.type == "cpu":
            self._summed.discard(name)
            if copy_with_checksum(window, tensor) == checksum:
                self._summed.add(name)
            self._held[name] = TensorState(checksum, checksum, compared=False)
            return
        if mapped.packed or not mapped.whole:
            self._check(name, tensor, checksum)
        self._write(name, tensor, sent=checksum, own=checksum if mapped.whole else None)

    def _merge(self, parcel: Adapter, checksum: int) -> None:
        name = parcel.name
        base = base_name(name)
        if base not in self._plain:
            raise WeightSyncError(f"{name}: its adapter came without the weight it changes")
        down, up = parcel.down.tensor(), parcel.up.tensor()
        sums = (tensor_checksum(factor) for factor in (down, up))
        if adapted_checksum(self._held[base].sent, *sums) != checksum:
            self._damaged.add(name)
        self._plain.pop(name, None)
        mapped = self._tensor_map[name]
        device = getattr(mapped.module, mapped.leaf).device
        parts = (part.to(device) for part in (self._plain[base], down, up))
        self._write(name, merge(*parts, parcel.scale), sent=checksum, own=None)

    def _patch(self, parcel: Delta, checksum: int) -> None:
        name = parcel.name
        if not self._holds(name, parcel.base):
            raise WeightSyncError(
                f"{name}: changes came of another version than the engine holds; pull again"
            )
        mapped = self._tensor_map[name]
        window = mapped.window() if _patchable(mapped) else None
        if window is not None and window.device.type != "cpu":
            apply_changes_torch(window.view(-1).view(torch.int16), parcel.changes)
            self._held[name] = TensorState(checksum, checksum, compared=False)
            return
        plain = self._plain[name] if window is None else window
        difference = apply_changes(as_units(plain), parcel.changes)
        if (parcel.base + difference) & MASK != checksum:
            self._damaged.add(name)
        if window is None:
            self._write(name, plain, sent=checksum, own=None)
        else:
            self._held[name] = TensorState(checksum, checksum, compared=self._held[name].compared)

    def _write(self, name: str, tensor: torch.Tensor, *, sent: int, own: int | None) -> None:
        """Write a whole tensor, or lay it aside; ``own`` is known where it is that of its bits."""
        mapped = self._tensor_map[name]
        self._summed.discard(name)
        if mapped.packed:
            self._staged[name] = tensor
            own = 0  # known when the last change has come
        else:
            mapped.write(tensor)
            own = tensor_checksum(mapped.part_of_tensor(tensor)) if own is None else own
        self._held[name] = TensorState(sent, own, compared=False)

    def _check(self, name: str, tensor: torch.Tensor, checksum: int) -> None:
        if tensor_checksum(tensor) != checksum:
            self._damaged.add(name)


def _patchable(mapped: MappedTensor) -> bool:
    """Whether changes can be applied where the tensor lies."""
    window = mapped.window()
    return window is not None and (window.device.type != "cpu" or as_units(window) is not None)


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it reads through a product, which loses the sign of zeros."""
    return tensor + 0 if tensor.is_floating_point() else tensor
