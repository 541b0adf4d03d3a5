"""Weights from Ray's object store into a vLLM engine, through vLLM's weight-transfer interface.

Runs inside vLLM's worker processes, each a Ray driver of its own. A sync is: the list of tensors
from the store actor, what the engine does not hold yet copied bucket by bucket while the learner
puts the next ones, derived weights rebuilt, and then the engine compared with what the learner
sent.

Plain parameters (all of them on a GPU; norms, biases, embeddings, convolutions on a CPU) are
written in place, sliced where the engine fuses or splits them. CPU matrices, of which vLLM keeps
only a packed copy, go through the model's own loaders once all is there; where later versions
hold only changes, the plain matrix is kept as well.

What the comparison proves, per checkpoint tensor, from what the engine computes with:
- plain parameters: the checksum of the engine's memory, sliced out of fused qkv and gate-up
  matrices, equals the learner's. The bits are the learner's. For a whole
  tensor on the host, the checksum is taken of the words while they are copied in; the memory is
  not read again afterwards.
- parameters on the host of which only changed elements arrived, since a version that was compared
  as above: the checksum is updated by the old and the new values of the changed elements, and
  must equal the learner's for the whole tensor. What did not change is not read again.
- CPU matrices: the arrived bits have the learner's checksum, and the matrix, read back by sending
  the identity through the packed product itself, equals what arrived. Each result is one weight
  times one plus zeros, exact in float32 and bfloat16, so this covers every bit but the sign of
  zeros (and denormals, on hardware whose products drop them). The packed copy of a tied or untied
  lm_head is read this way as well and is reported under `lm_head.weight`.
- tensor parallelism: each rank checks that the whole tensor arrived intact, then that its slice is
  what it holds; together the ranks cover the tensor.
- adapters (LoRA): weight, A and B arrived with the learner's checksums, and the engine holds the
  sum that it made of them itself. The learner makes the same sum by the same function, but where
  it computes on another kind of device the last bit may differ, so the sums are not compared.
Not proven: anything computed from weights outside parameters (there is nothing of the kind in
Qwen-VL and Llama-like models), and that cached keys, values and picture features are new; they
are dropped.
"""

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from data.engine.lifeline import EndsWithActor
from data.weights.types import Bucket
from rollout.weights.loading import Loading, ModelState
from rollout.weights.no_load import folder_buffers

BACKEND = "ray_objects"
FETCH_TIMEOUT_S = 300.0
"""Longest wait for one bucket."""

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


class Receiver:
    """Pulls versions from the store into one model of one process, and compares.

    Args:
        dtype: `bfloat16`, for instance; the model's.
        config: only read where the model has packed modules.
    """

    def __init__(self, model: nn.Module, dtype: str, config: ModelConfig | None = None) -> None:
        self.state = ModelState()
        self._model = model
        self._dtype = dtype
        self._config = config

    def pull(self, store: Any, version: int, wait_s: float = FETCH_TIMEOUT_S) -> None:
        """Load what a version has that the model does not hold; `compare` must follow.

        Buckets are copied as they are put; ``wait_s`` is the longest wait for one.

        Raises:
            WeightSyncError: the version is not there, was not put to its end or in time, or does
                not fit the model. The next pull fetches everything.
        """
        self._began = time.perf_counter()
        before, self.state = self.state, ModelState()
        self._seconds = Counter(wait=0.0, fetch=0.0)
        self._bytes = 0
        self._version = version
        layout, steps, patching = self._ask(
            store.path.remote(version, before.version, wait_s), wait_s
        )
        loading = Loading(self._model, layout, dtype=self._dtype, before=before, patching=patching)
        where: dict[str, Any] = {}
        for step in steps:
            for bucket in self._buckets(store, step, wait_s):
                where.update(dict.fromkeys(bucket.checksums, bucket))
                self._fetch(loading, bucket, loading.wants(bucket.checksums))
        manifest = self._ask(store.manifest.remote(version, wait_s), wait_s)
        for name in loading.lacking(manifest):
            self._fetch(loading, where[name], {name})
        self._seconds["copy"] = time.perf_counter() - self._began - self._seconds.total()
        began = time.perf_counter()
        loading.finish(self._config)
        self._seconds["load"] = time.perf_counter() - began
        self._loading, self._patching = loading, patching

    def compare(self) -> dict[str, Any]:
        """Return `tensors`, `mismatched`, `bytes`, `delta` and `seconds` by phase.

        Phases: wait (for the learner), fetch (from the node's store), copy (into the model, or
        patch it), load (what vLLM packs), verify.
        """
        began = time.perf_counter()
        mismatched = self._loading.compare()
        self.state = ModelState() if mismatched else self._loading.state(self._version)
        self._seconds["verify"] = time.perf_counter() - began
        return {
            "tensors": self._loading.tensors,
            "mismatched": mismatched,
            "bytes": self._bytes,
            "delta": self._patching,
            "seconds": dict(self._seconds),
        }

    def _buckets(self, store: Any, version: int, wait_s: float) -> Iterator[Bucket]:
        """Yield a version's buckets as they are put, the next one on its way meanwhile."""
        index = 0
        coming = store.bucket.remote(version, index, wait_s)
        while (bucket := self._ask(coming, wait_s)) is not None:
            index += 1
            coming = store.bucket.remote(version, index, wait_s)
            if ray.wait([coming], timeout=0)[0] and (after := ray.get(coming)) is not None:
                ray.wait(list(after.parcels), timeout=0)  # from another node, it travels from now
            yield bucket

    def _fetch(self, loading: Loading, bucket: Bucket, names: set[str]) -> None:
        """Take the named tensors out of a bucket; what else lies there is older, or held."""
        if not names:
            return
        began = time.perf_counter()
        (parcels,) = ray.get(list(bucket.parcels), timeout=FETCH_TIMEOUT_S)
        self._seconds["fetch"] += time.perf_counter() - began
        for parcel in parcels:
            if parcel.name in names:
                self._bytes += parcel.nbytes
                loading.take(parcel, bucket.checksums[parcel.name])

    def _ask(self, call: Any, wait_s: float) -> Any:
        """Return the store's answer, which waits itself."""
        began = time.perf_counter()
        try:
            return ray.get(call, timeout=wait_s + FETCH_TIMEOUT_S)
        finally:
            self._seconds["wait"] += time.perf_counter() - began


class RayObjectsEngine(WeightTransferEngine[StoreInit, PullVersion]):
    """Pulls one published version per update."""

    init_info_cls = StoreInit
    update_info_cls = PullVersion

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report: dict[str, Any] = {}
        dtype = str(self.model_config.dtype).removeprefix("torch.")
        self.receiver = Receiver(self.model, dtype, self.model_config)

    def init_transfer_engine(self, init_info: StoreInit) -> None:
        """Join the cluster as a driver and find the store actor."""
        if not ray.is_initialized():
            on_terminate = signal.getsignal(signal.SIGTERM)
            ray.init(
                address=init_info.ray_address,
                namespace=init_info.namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            # Ray puts its own in place of vLLM's, which ends the engine in order. Ray's prints a
            # stack as of a crash, at the end of every good run.
            if on_terminate is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)
        self.store = ray.get_actor(init_info.actor_name, namespace=init_info.namespace)

    def newest_version(self) -> int | None:
        """Return the newest version that is there or on its way."""
        return ray.get(self.store.latest.remote(), timeout=FETCH_TIMEOUT_S)

    def start_weight_update(self) -> None:
        """Forget the last report; the model is touched only once a version is accepted."""
        self.report = {}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive a version; unlike the base class, works without an accelerator too."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: PullVersion) -> None:
        """Load a version; see `Receiver.pull`."""
        self.receiver.pull(self.store, update_info.version)

    def finish_weight_update(self) -> None:
        """Compare what the model holds with what the learner sent."""
        self.report = self.receiver.compare()

    def shutdown(self) -> None:
        """Leave the cluster."""
        if ray.is_initialized():
            ray.shutdown()


class WeightPuller(EndsWithActor):
    """Worker extension: vLLM mixes it into its worker class."""

    def newest_version(self) -> int | None:
        """Return the newest version in the store."""
        return self.weight_transfer_engine.newest_version()

    def folder_buffers(self) -> list[str]:
        """Return what the model's folder sets and no version does."""
        engine = self.weight_transfer_engine
        return folder_buffers(engine.model, engine.model_config.model)

    def weight_sync_report(self) -> dict[str, Any]:
        """Return the report of this rank's last update; see `Receiver.compare`."""
        return self.weight_transfer_engine.report


def transfer_config() -> WeightTransferConfig:
    """Return the engine argument that selects this backend."""
    return WeightTransferConfig(backend=BACKEND)


def _register() -> None:
    # vLLM refuses a second registration, and this module is imported once per process and name.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, RayObjectsEngine)


_register()
