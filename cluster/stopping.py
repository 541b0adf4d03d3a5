"""SIGTERM (`ray job stop`, a spot instance that goes away) as a request between two steps."""

import signal
from types import FrameType

from data.errors import StopRequested


class StopRequest:
    """Inside, SIGTERM ends no process but is noted, for a training loop to act on.

    Enter it in the main thread, after Ray has been joined, which has a handler of its own.
    """

    def __init__(self) -> None:
        self.made = False

    def __enter__(self) -> "StopRequest":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def obey(self, step: int, steps: int) -> None:
        """Act on a request that was made, when the step's checkpoint has been written.

        Raises:
            StopRequested: there are steps left.
        """
        if step < steps:
            raise StopRequested(
                f"stopped on request after step {step} of {steps}, with a checkpoint; the same "
                "command goes on from it"
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True
