"""What a weight pull is given and what it reports; imports neither vLLM nor Ray."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where an engine finds the weight store, a named Ray actor."""

    ray_address: str
    """Address of the cluster's control store, `host:port`: the engine's processes are no Ray
    workers and join the cluster by themselves."""
    namespace: str
    actor_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What one engine holds after a pull."""

    version: int
    tensors: int
    """Checkpoint tensors compared with the manifest."""
    mismatched: tuple[str, ...]
    """Names whose bits in the engine are not those that the learner sent; empty = verified."""
    bytes: int
    seconds: float
