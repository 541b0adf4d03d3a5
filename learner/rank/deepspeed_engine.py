"""DeepSpeed: process group, optimiser steps over micro-batches, gathering, checkpoints.

The only module that imports deepspeed. Set DS_ACCELERATOR=cpu in the environment for CPU ranks.
"""

import contextlib
import ipaddress
import json
import math
import multiprocessing
import os
import shutil
import socket
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint import ds_to_universal
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from configs.learner import LearnerConfig, OptimizerConfig
from data.durable import sync, sync_tree
from data.errors import CheckpointError, DamagedCheckpoint
from data.weights.parcels import dtype_name
from data.weights.types import ParamSpec
from learner.rank.lora import StoredWeight, UnmergedWeight, stored_weights
from learner.universal import SHAPE_FILE, universal_folder

STATE_TAG = "state"
TORCH_WRITER = "inline_container"
"""Names torch's writer of files in what it raises."""
STATE_BYTES, MASTER_BYTES = 8, 4
"""Of each trained value: AdamW's two moments, and the float32 copy that DeepSpeed trains."""
MEGABYTE = 1 << 20
LAST_LR_SHARE = 0.1
"""Decaying schedules end at this share of the learning rate."""


def open_rendezvous(address: str, ranks: int, timeout_s: float) -> dist.TCPStore:
    """Return the rendezvous of rank 0, bound to a port that the kernel chose.

    The port is taken when it is named, so no other process can take it in between. At a loopback
    address it is reached from this machine alone; torch by itself listens on all interfaces.
    """
    port, listener = 0, None
    if _is_loopback(address):
        own = socket.create_server((address, 0))
        port, listener = own.getsockname()[1], own.detach()
    return dist.TCPStore(
        address,
        port,
        ranks,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener,
    )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def join_group(
    rendezvous: dist.TCPStore | None,
    *,
    rank: int,
    ranks: int,
    address: str,
    port: int,
    timeout_s: float,
) -> None:
    """Enter the process group; every rank calls this, rank 0 with its rendezvous."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",  # each rank sees its own devices only
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if _is_loopback(address):  # gloo and NCCL listen where they send
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    timeout = timedelta(seconds=timeout_s)
    if rendezvous is None:
        rendezvous = dist.TCPStore(address, port, ranks, is_master=False, timeout=timeout)
    backend = get_accelerator().communication_backend_name()
    dist.init_process_group(backend, store=rendezvous, rank=rank, world_size=ranks, timeout=timeout)
    # Compiled on first use otherwise (half a minute, needs a compiler), and never used in training.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def device() -> torch.device:
    """Return the device that this rank computes on."""
    return torch.device(get_accelerator().current_device_name())


@contextlib.contextmanager
def partitioned_loading(config: LearnerConfig) -> Iterator[None]:
    """Let `from_pretrained` inside create parameters already partitioned, where ZeRO-3 is asked."""
    # transformers looks for a live config object; it must not outlive the load.
    keep = HfDeepSpeedConfig(_ds_config(config)) if config.zero_stage == 3 else None
    try:
        yield
    finally:
        del keep


def lr_at(step: int, *, steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of a 0-based step: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    share = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (LAST_LR_SHARE + (1 - LAST_LR_SHARE) * share)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimiser update did, or all of a step."""

    grad_norm: float
    """Global norm before clipping; not finite when the update was skipped."""
    lr: float
    skipped: bool


class TrainEngine:
    """One rank's share of the model, its gradients and its optimiser.

    Args:
        module: a head around the model, whose parameters lie under `net.`.
        steps: planned steps, for the learning-rate schedule.
        seed: of dropout, which also differs by rank and step.
    """

    def __init__(self, module: nn.Module, config: LearnerConfig, *, steps: int, seed: int) -> None:
        self._config = config
        self._planned_steps = steps
        self._seed = seed
        self.steps = 0
        """Steps tried so far, skipped ones included; each is one optimiser update or more."""
        self._trained = [p for p in module.parameters() if p.requires_grad]
        o = config.optimizer
        optimizer = torch.optim.AdamW(
            self._trained,
            lr=o.lr,
            betas=(o.beta1, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            # On the host: one loop over memory, not one per operation. Elsewhere torch chooses.
            fused=True if config.offload != "none" else None,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_ds_config(config)
        )
        self.seed_dropout()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; with gradient, each call must be followed by its `backward`."""
        return self._engine(*args, **kwargs)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Let forward passes inside keep nothing for gradients and drop nothing."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    def seed_dropout(self, turn: int = 0) -> None:
        """Make the passes from here drop what they drop in every run, at this step and turn."""
        parts = [self._seed, dist.get_rank(), self.steps, turn]
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``, which is averaged over the ranks.

        All ranks call this equally often per update; ``last`` marks the last one.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, *, last: bool = True) -> StepOutcome:
        """Apply the gradients, unless one is NaN or infinite: then drop them.

        Not ``last``: another update of the same step follows, at the same learning rate.
        """
        lr = lr_at(self.steps, steps=self._planned_steps, config=self._config.optimizer)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self.steps += last
        if self._config.zero_stage == 0:
            norm = self._whole_grad_norm()
            if math.isfinite(norm):
                self._engine.step()
            else:
                self._engine.zero_grad()
        else:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
        self.seed_dropout()
        return StepOutcome(grad_norm=norm, lr=lr, skipped=not math.isfinite(norm))

    def _whole_grad_norm(self) -> float:
        """Return the norm that DeepSpeed does not compute, nor check, for ZeRO-0 in float32."""
        norms = [p.grad.float().norm() for p in self._trained if p.grad is not None]
        return float(torch.stack(norms).norm())

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (checkpoint name, whole tensor on the CPU), adapters merged, frozen ones first.

        Every rank must iterate. The tied output layer is left out: loaders tie it again. Tensors
        share memory with the model where they are whole already: use them before the next step.
        Other ranks than 0 get the same names and empty tensors.
        """
        for weight in self._stored():
            whole = torch.empty(0, dtype=weight.parts[0].dtype)
            with self._gathered(weight.parts):
                if dist.get_rank() == 0:
                    whole = weight.merged().to("cpu", copy=self._partitioned)
            yield weight.name, whole

    def unmerged(self, *, trained_only: bool = False) -> Iterator[UnmergedWeight]:
        """Yield the same with adapters apart; where ``trained_only``, without what is frozen."""
        for weight in self._stored():
            kept = [part for part in weight.parts if part.requires_grad or not trained_only]
            if not kept:
                continue
            own: Tensor | None = None
            factors: list[Tensor] = []
            with self._gathered(kept):
                if dist.get_rank() == 0:
                    host = [part.detach().to("cpu", copy=self._partitioned) for part in kept]
                    own = host[0] if kept[0] is weight.parts[0] else None
                    factors = host if own is None else host[1:]
            yield UnmergedWeight(weight.name, own, tuple(factors), weight.scale)

    def layout(self) -> tuple[ParamSpec, ...]:
        """Return what `unmerged` yields, in its order."""
        return tuple(
            ParamSpec(
                weight.name,
                dtype_name(weight.parts[0].dtype),
                tuple(getattr(weight.parts[0], "ds_shape", weight.parts[0].shape)),
                trained=weight.trained,
                adapted=len(weight.parts) > 1,
            )
            for weight in self._stored()
        )

    def _stored(self) -> list[StoredWeight]:
        return sorted(stored_weights(self.net), key=lambda weight: weight.trained)

    @property
    def _partitioned(self) -> bool:
        return self._config.zero_stage == 3

    def _gathered(self, parts: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        return deepspeed.zero.GatheredParameters(list(parts), enabled=self._partitioned)

    def save(self, folder: Path) -> None:
        """Write parameters, optimiser and step count; complete or not there at all.

        Raises:
            CheckpointError: there is no room for it, or the disk refused it.
        """
        partial = folder.with_name(folder.name + ".partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            self._check_room(partial)
            self._engine.save_checkpoint(
                str(partial), tag=STATE_TAG, client_state={"steps": self.steps}
            )
            sync_tree(partial)
        except (OSError, RuntimeError) as error:
            # torch says no more of a file that it cannot write than where in it it was.
            if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):
                raise
            there = next(parent for parent in (partial, *partial.parents) if parent.exists())
            free = shutil.disk_usage(there).free
            raise CheckpointError(
                f"{partial}: rank {dist.get_rank()} could not write it ({error}); "
                f"{free / MEGABYTE:.0f} MB are free there: the disk, a quota or a limit may be full"
            ) from error
        dist.barrier()
        if dist.get_rank() == 0:
            (partial / SHAPE_FILE).write_text(json.dumps(self._shape()), encoding="utf-8")
            sync(partial / SHAPE_FILE)
            os.replace(partial, folder)
        dist.barrier()

    def checkpoint_bytes(self) -> int:
        """Return about how much disk a checkpoint takes, of all ranks together."""
        masters = self._config.bf16 or self._config.zero_stage > 0
        state = STATE_BYTES + (MASTER_BYTES if masters else 0)
        weights = sum(_numel(param) * param.element_size() for param in self.net.parameters())
        return weights + sum(_numel(param) * state for param in self._trained)

    def _check_room(self, folder: Path) -> None:
        """Refuse a checkpoint that the disk has no room for.

        Raises:
            CheckpointError: it has not.
        """
        needed, disk = self.checkpoint_bytes(), shutil.disk_usage(folder)
        if disk.total and disk.free < needed:  # some file systems report nothing at all
            raise CheckpointError(
                f"{folder}: expected {needed / MEGABYTE:.0f} MB of free disk for a checkpoint, "
                f"found {disk.free / MEGABYTE:.0f} MB"
            )

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint; bit-identically on as many ranks as wrote it.

        One of another number of ranks has its universal form beside it (`convert_to_universal`).
        DeepSpeed's files are pickles: load only what a run of one's own has written.

        Raises:
            CheckpointError: it is of another model or ZeRO stage.
            DamagedCheckpoint: it is not there, not complete, or not what was written.
        """
        path = folder / SHAPE_FILE
        try:
            stored_shape, expected = json.loads(path.read_text(encoding="utf-8")), self._shape()
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(
                f"{folder}: expected a complete checkpoint with {SHAPE_FILE}: {error}"
            ) from error
        changed = {k for k, v in expected.items() if stored_shape.get(k) != v}
        other = [
            f"{k}={stored_shape.get(k)} (now {expected[k]})" for k in sorted(changed - {"ranks"})
        ]
        if other:
            raise CheckpointError(
                f"{folder}: written with {', '.join(other)}; resume with the same settings"
            )
        # Without ZeRO every rank holds, and one has written, the whole state.
        reshape = bool(changed) and self._config.zero_stage > 0
        if not reshape:
            # Each rank reads a share of the files: DeepSpeed takes their content as it comes.
            for file in sorted(folder.rglob("*.pt"))[dist.get_rank() :: dist.get_world_size()]:
                _check_content(file)
        readable = universal_folder(folder) if reshape else folder
        # A key of DeepSpeed's settings, but of one load here and not of the engine.
        self._engine._config.load_universal_checkpoint = reshape
        _, client_state = self._engine.load_checkpoint(str(readable), tag=STATE_TAG)
        self.steps = int(client_state["steps"])
        self.seed_dropout()

    def _shape(self) -> dict[str, Any]:
        """Return what must agree between writing and reading a checkpoint."""
        return {
            "ranks": dist.get_world_size(),
            "zero_stage": self._config.zero_stage,
            "bf16": self._config.bf16,
            "trained_parameters": sum(_numel(param) for param in self._trained),
        }

    @property
    def net(self) -> nn.Module:
        """The model inside the head."""
        return self._engine.module.net


def convert_to_universal(folder: Path, *, workers: int) -> None:
    """Write a checkpoint's universal form, which any number of ranks can load, beside it.

    It needs twice the space of the checkpoint. Call it in a process of its own and outside of any
    process group: with a large model it takes many minutes. ``workers``: processes that share the
    work. DeepSpeed prints which part it is at, and bars.

    Raises:
        DamagedCheckpoint: a file is not what was written; nothing has been converted.
    """
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(_check_content, sorted(folder.rglob("*.pt"))))
    universal = universal_folder(folder)
    shutil.rmtree(universal, ignore_errors=True)
    # DeepSpeed's pool would fork this process, whose threads may hold locks.
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["learner.rank.ends_with_parent", __name__])
    ds_to_universal.main(
        Namespace(
            input_folder=str(folder / STATE_TAG),
            output_folder=str(universal / STATE_TAG),
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def _check_content(path: Path) -> None:
    """Compare a file of torch's with the checksums that it holds of its own parts.

    Raises:
        DamagedCheckpoint: they do not agree, or it is no such file any more.
    """
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise DamagedCheckpoint(f"{path}: damaged: {error}") from error
    if broken is not None:
        raise DamagedCheckpoint(f"{path}: damaged: the checksum of its part {broken} is wrong")


def _numel(param: Tensor) -> int:
    return getattr(param, "ds_numel", param.numel())


def _ds_config(config: LearnerConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.grad_clip,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        # DeepSpeed's own CPU optimiser is compiled on first use; torch's fused one is there.
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.bf16:
        # Without the check, bf16 steps are applied even when their gradient is not finite.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return settings
