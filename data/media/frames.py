"""Which frames of a video are shown."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from data.types import Kind, Picture

T = TypeVar("T")


def sample_frames(uris: Sequence[T], most: int) -> tuple[T, ...]:
    """Return at most ``most`` frames, spread uniformly with both ends kept."""
    if len(uris) <= most:
        return tuple(uris)
    if most == 1:
        return tuple(uris[:1])
    return tuple(uris[round(i * (len(uris) - 1) / (most - 1))] for i in range(most))


def frames_only(shown: Iterable[Picture]) -> set[str]:
    """Return the files that are shown as frames of videos and as nothing else.

    Of a frame no crop is ever shown: it needs no more pixels than a frame may have.
    """
    frames, others = set(), set()
    for picture in shown:
        (frames if picture.kind is Kind.VIDEO else others).add(picture.uri)
    return frames - others
