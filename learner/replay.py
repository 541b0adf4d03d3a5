"""Recent groups that taught something, to fill up a step that is short of them.

The idea of the selective sample buffer (Skywork R1V2, Chris et al., 2025, arXiv 2504.16656).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from data.types import Box, Content, Kind, Picture, TrainSample, Video, Visual, pictures_in


@dataclass(frozen=True, slots=True)
class KeptGroup:
    """A group that was trained on and may be again."""

    version: int
    """The oldest one that sampled a token of it."""
    samples: tuple[TrainSample, ...]

    def pictures(self) -> set[Picture]:
        """Return what its prompts show; the pixels are not kept."""
        return {picture for sample in self.samples for picture in pictures_in(sample.content)}

    def uris(self) -> set[str]:
        """Return the files of its pictures."""
        return {picture.uri for picture in self.pictures()}


class ReplayBuffer:
    """Groups whose advantages are not all zero, oldest first; each comes out at most once.

    Stored log-probabilities correct for a group's age: the learner's own of when the trace came in,
    where it was scored then (`tis_cap`); else the behaviour's stand in, so the ratio of the
    objective is the model in training against what sampled the trace. Both are clipped or weighted
    like any other.
    """

    def __init__(self, *, groups: int, age: int) -> None:
        self.groups = groups
        """Kept at most; 0 keeps none."""
        self.age = age
        """Versions that a group may be behind the one in training."""
        self._kept: list[KeptGroup] = []

    def add(self, samples: Sequence[TrainSample], *, version: int) -> None:
        """Keep a group, in place of the oldest where the buffer is full.

        Raises:
            DataError: a sample has no behaviour log-probabilities to weigh it by.
        """
        for sample in samples:
            if sample.logprobs is None:
                raise DataError(
                    f"{sample.key}: expected behaviour log-probabilities, found none; only sampled "
                    "traces can be replayed"
                )
        if any(sample.advantage for sample in samples):
            self._kept.append(KeptGroup(version, tuple(_aged(sample) for sample in samples)))
            self._kept.sort(key=lambda group: group.version)  # stable: equals stay in order
            self._kept = self._kept[max(0, len(self._kept) - self.groups) :]

    def draw(self, count: int, *, version: int) -> list[KeptGroup]:
        """Take out up to ``count`` groups, newest first, for a step that trains ``version``.

        Those that are too old by then are forgotten.
        """
        self._kept = [group for group in self._kept if version - group.version <= self.age]
        start = max(0, len(self._kept) - max(0, count))
        drawn, self._kept = self._kept[start:], self._kept[:start]
        return drawn[::-1]

    def state(self) -> list[dict[str, Any]]:
        """Return all that is kept as JSON values, to be stored with a checkpoint."""
        return [
            {"version": group.version, "samples": [_to_json(sample) for sample in group.samples]}
            for group in self._kept
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state` returned."""
        self._kept = [
            KeptGroup(group["version"], tuple(_from_json(sample) for sample in group["samples"]))
            for group in state
        ]


def _aged(sample: TrainSample) -> TrainSample:
    old = sample.logprobs if sample.old_logprobs is None else sample.old_logprobs
    return dataclasses.replace(sample, old_logprobs=old)


def _to_json(sample: TrainSample) -> dict[str, Any]:
    return {
        "key": sample.key,
        "content": [part if isinstance(part, str) else _visual(part) for part in sample.content],
        "prompt_ids": sample.prompt_ids.tolist(),
        "response_ids": sample.response_ids.tolist(),
        "advantage": sample.advantage,
        "weight": sample.weight,
        "logprobs": sample.logprobs.tolist(),  # as float64: exact
        "old_logprobs": sample.old_logprobs.tolist(),
    }


def _visual(visual: Visual) -> dict[str, Any]:
    if isinstance(visual, Video):
        return {"frames": [_visual(frame) for frame in visual.frames], "times": [*visual.times]}
    box = None if visual.box is None else dataclasses.astuple(visual.box)
    return {"uri": visual.uri, "kind": str(visual.kind), "box": box}


def _from_visual(state: Mapping[str, Any]) -> Visual:
    if "frames" in state:
        return Video(tuple(map(_picture, state["frames"])), tuple(state["times"]))
    return _picture(state)


def _picture(state: Mapping[str, Any]) -> Picture:
    return Picture(state["uri"], Kind(state["kind"]), state["box"] and Box(*state["box"]))


def _from_json(state: Mapping[str, Any]) -> TrainSample:
    content: Content = tuple(
        part if isinstance(part, str) else _from_visual(part) for part in state["content"]
    )
    return TrainSample(
        key=state["key"],
        content=content,
        prompt_ids=np.array(state["prompt_ids"], dtype=np.int64),
        response_ids=np.array(state["response_ids"], dtype=np.int64),
        advantage=state["advantage"],
        weight=state["weight"],
        logprobs=np.array(state["logprobs"], dtype=np.float32),
        # A run begun before these were kept has the behaviour's alone.
        old_logprobs=np.array(state.get("old_logprobs", state["logprobs"]), dtype=np.float32),
    )
