"""Whether a trace points at what helps: its evidence against the true evidence."""

from data.errors import TCoTError
from data.tcot import parse
from data.types import Cues, Kind, TCoT

ON_TARGET_IOU = 0.5


def parse_trace(text: str, *, kind: Kind, num_frames: int) -> TCoT | None:
    """Return the parsed trace, or None where it does not parse."""
    try:
        return parse(text, kind=kind, num_frames=num_frames)
    except TCoTError:
        return None


def on_target(trace: TCoT | None, truth: Cues, *, num_frames: int) -> bool | None:
    """Return whether the evidence meets the truth; None where no box or frame is known.

    Boxes: the best overlap with a true box is at least ON_TARGET_IOU. Frames: a true frame is
    among the key frames, and they are not simply all ``num_frames`` shown; None where only one is
    shown, as there is no other to point at.
    """
    if not truth.boxes and (not truth.key_frames or num_frames < 2):
        return None
    if trace is None:
        return False
    if truth.boxes:
        overlaps = [box.iou(true) for box in trace.cues.boxes for true in truth.boxes]
        return max(overlaps, default=0.0) >= ON_TARGET_IOU
    chosen = set(trace.cues.key_frames)
    return bool(chosen & set(truth.key_frames)) and len(chosen) < num_frames
