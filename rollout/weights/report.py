"""What a weight pull is given and what it reports; imports neither vLLM nor Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data.errors import WeightSyncError


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
    delta: bool = False
    """Only changes arrived, because the engine held the version before."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase, of the engine's slowest rank in each."""

    def check(self) -> None:
        """Return if the engine holds what was sent.

        Raises:
            WeightSyncError: it holds something else.
        """
        if self.mismatched:
            raise WeightSyncError(
                f"version {self.version}: an engine holds other bits than the learner sent for "
                f"{list(self.mismatched[:5])}; it serves nothing until a pull succeeds"
            )
