"""Which frames of a video are shown."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from data.types import Kind, Picture

T = TypeVar("T")


def sample_frames(uris: Sequence[T], most: int, *, paired: bool = False) -> tuple[T, ...]:
    """Return at most ``most`` frames, spread uniformly with both ends kept.

    ``paired``: an even number of them, rounded down as Qwen's own code does for video files; but
    one, where there is one or ``most`` is 1.
    """
    count = min(len(uris), most)
    if paired and count > 1:
        count -= count % 2
    if len(uris) == count:
        return tuple(uris)
    if count == 1:
        return tuple(uris[:1])
    return tuple(uris[round(i * (len(uris) - 1) / (count - 1))] for i in range(count))


def frames_only(shown: Iterable[Picture]) -> set[str]:
    """Return the files that are shown as frames of videos and as nothing else.

    Of a frame no crop is ever shown: it needs no more pixels than a frame may have.
    """
    frames, others = set(), set()
    for picture in shown:
        (frames if picture.kind is Kind.VIDEO else others).add(picture.uri)
    return frames - others
