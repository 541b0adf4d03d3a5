"""Published scores beside ours, set by set and mean by mean; each says where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.scores.aggregates import aggregate
from evaluation.scores.set_result import SetResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What somebody reports of a model."""

    model: str
    source: str
    """Where the scores are published."""
    settings: str
    """How they were measured, as far as it can change them: frames, prompts, page sets."""
    scores: Mapping[str, float]
    """By set, in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One set, or the mean of several; all scores are of the main metric, in percent."""

    name: str
    """Of the set or the group."""
    metric: str
    """Empty: a mean of several sets."""
    sets: int
    queries: int
    """Ranked queries."""
    num_data: int
    """Queries of the sets."""
    score: float
    """Ours, with ties against the system."""
    benchmark_order: float
    """Ours, with ties in the benchmark's own order."""
    published: tuple[float | None, ...]
    """Of each model; None where it is not known of every set of the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """Our scores of a suite beside published ones."""

    rows: tuple[ScoreRow, ...]
    """The sets in their order, then the means of groups."""
    published: tuple[Published, ...]
    """The models of `ScoreRow.published`, with source and settings."""


def score_table(results: Sequence[SetResult], published: Sequence[Published] = ()) -> ScoreTable:
    """Return a line of each set and of each mean over sets.

    A published mean is taken over the same sets as ours, also where only a part of a suite was
    measured; so it may differ from the mean that the source prints.

    Raises:
        DataError: there is no result.
    """
    by_name = {result.name: result for result in results}
    groups = {result.name: result.groups for result in results}
    ours = {name: 100 * result.scores()[result.metric] for name, result in by_name.items()}
    own_order = {
        name: 100 * float(result.benchmark_order[result.metric].mean())
        for name, result in by_name.items()
    }
    theirs = []
    for model in published:
        known = {name: model.scores[name] for name in by_name if name in model.scores}
        theirs.append((known, aggregate(known, groups) if known else {}))
    rows = [
        ScoreRow(
            name=name,
            metric=result.metric,
            sets=1,
            queries=len(result.query_ids),
            num_data=result.num_data,
            score=ours[name],
            benchmark_order=own_order[name],
            published=tuple(known.get(name) for known, _ in theirs),
        )
        for name, result in by_name.items()
    ]
    in_own_order = aggregate(own_order, groups)
    for group, mean in aggregate(ours, groups).items():
        members = [by_name[name] for name in mean.sets]
        rows.append(
            ScoreRow(
                name=group,
                metric="",
                sets=len(members),
                queries=sum(len(result.query_ids) for result in members),
                num_data=sum(result.num_data for result in members),
                score=mean.score,
                benchmark_order=in_own_order[group].score,
                published=tuple(
                    means[group].score
                    if group in means and means[group].sets == mean.sets
                    else None
                    for _, means in theirs
                ),
            )
        )
    return ScoreTable(rows=tuple(rows), published=tuple(published))
