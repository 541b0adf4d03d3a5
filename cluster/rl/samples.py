"""What the learner trains on: a step's own traces as samples, and groups of earlier steps again."""

import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from cluster.pictures import Decoder, SharedPictures, join_pictures
from cluster.rl.rounds import SampledRound
from configs.common import MediaConfig
from configs.learner import GRPOConfig
from data.media.frames import frames_only
from data.types import Content, GroupKey, Side, TrainSample, Trajectory, TrajectoryKey
from learner.objectives import TokenScores
from learner.replay import KeptGroup, ReplayBuffer

log = logging.getLogger(__name__)


def train_samples(
    step: SampledRound,
    advantages: Mapping[TrajectoryKey, float],
    *,
    version: int,
    grpo: GRPOConfig,
) -> list[TrainSample]:
    """Return the step's scored traces that have an advantage; see `train_sample`."""
    return [
        train_sample(
            trace,
            step.contents[trace.key],
            advantage=advantages[trace.key],
            version=version,
            grpo=grpo,
            scores=step.tokens.get(str(trace.key)),
        )
        for trace in (scored.trajectory for scored in step.scored)
        if trace.key in advantages
    ]


def train_sample(
    trace: Trajectory,
    content: Content,
    *,
    advantage: float,
    version: int,
    grpo: GRPOConfig,
    scores: TokenScores | None = None,
) -> TrainSample:
    """Return a trace as a sample for the learner, which trains ``version``.

    ``scores`` are the log-probabilities that the learner's own model gave to the trace when the
    trace came in; None if the learner was not asked.
    """
    old = trace.logprobs if scores is None else scores.own
    query = trace.key.group.side is Side.QUERY
    return TrainSample(
        key=str(trace.key),
        content=content,
        prompt_ids=trace.prompt_ids,
        response_ids=trace.response_ids,
        advantage=advantage,
        weight=grpo.query_weight if query else grpo.target_weight,
        logprobs=trace.logprobs,
        # The learner no longer has the weights under which an older trace was sampled.
        old_logprobs=None if trace.min_version == version else old,
    )


def replayed_groups(
    replay: ReplayBuffer,
    count: int,
    pictures: SharedPictures,
    *,
    version: int,
    decoder: Decoder,
    media: MediaConfig,
) -> tuple[list[KeptGroup], SharedPictures]:
    """Return up to ``count`` recent groups for a step that is short, and its pictures with theirs.

    Groups whose pictures cannot be read any more are left out.
    """
    drawn = replay.draw(count, version=version)
    uris = {uri for group in drawn for uri in group.uris()}
    if not uris:
        return drawn, pictures
    frames = frames_only(picture for group in drawn for picture in group.pictures())
    decoded, failed = decoder.share(uris, media, frames=frames)
    for reason in failed.values():
        log.warning("not replayed: %s", reason)
    kept = [group for group in drawn if not group.uris() & failed.keys()]
    return kept, join_pictures([decoded, pictures])


def make_room(
    advantages: Mapping[TrajectoryKey, float], taught: Set[GroupKey], count: int
) -> dict[TrajectoryKey, float]:
    """Return the advantages without the first ``count`` groups that are not among ``taught``.

    Each replayed group takes the place of a group that teaches nothing.
    """
    replaced = [key.group for key in advantages if key.group not in taught]
    replaced = list(dict.fromkeys(replaced))[:count]
    return {key: value for key, value in advantages.items() if key.group not in replaced}


def remember(replay: ReplayBuffer, step: SampledRound, samples: Iterable[TrainSample]) -> None:
    """Keep the step's own groups for later steps."""
    traces = {str(trace.trajectory.key): trace.trajectory for trace in step.scored}
    groups: dict[GroupKey, list[TrainSample]] = {}
    for sample in samples:
        if sample.key in step.tokens:
            sample = replace(sample, old_logprobs=step.tokens[sample.key].own)
        groups.setdefault(traces[sample.key].key.group, []).append(sample)
    for group in groups.values():
        oldest = min(traces[sample.key].min_version for sample in group)
        replay.add(group, version=oldest)
