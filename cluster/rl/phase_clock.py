"""Where the seconds of a step go."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Seconds per phase of one step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.phases: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as that phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - began

    def metrics(self, collected: Mapping[str, float], *, waited: float) -> dict[str, float]:
        """Return `time/<phase>_s`, `time/other_s`, `time/overlap_s` and `time/step_s`.

        ``collected`` are seconds by phase of a thread for which this one ``waited``; what it did
        not wait for is the overlap. The step takes as long as all phases less the overlap.
        """
        total = time.perf_counter() - self.started
        phases = self.phases + Counter(collected)
        overlap = max(0.0, sum(collected.values()) - waited)
        return {
            **{f"time/{name}_s": seconds for name, seconds in phases.items()},
            "time/other_s": total + overlap - sum(phases.values()),
            "time/overlap_s": overlap,
            "time/step_s": total,
        }
