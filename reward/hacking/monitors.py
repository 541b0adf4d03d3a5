"""Watching one round's traces for policies that earn reward without earning it.

Pure: what was scored and embedded goes in, `hack/<name>` metrics and alarms come out. Limits and
meanings are in `data/monitor_table.py`. What is not there to be measured gives no metric: texts too
short to be recited, traces of one length, embeddings that were not given.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from data.errors import TCoTError
from data.monitor_table import ALARM_PREFIX, METRIC_PREFIX, monitor_of
from data.relevance import Relevance
from data.tcot import parse
from data.types import Item, Pair, ScoredTrajectory, Side
from reward.hacking.counterfactuals import Change, Probe

RUN_WORDS = 8
"""Consecutive words that are no coincidence, as GPT-2's report counts overlap (Radford et al. 2019,
section 4). Shorter texts are never judged: a label of two words is named, not recited."""
MIN_COUNT = 8
"""Groups or traces that an alarm rests on at least: a mean over fewer is luck."""
READ_GROUPS = 64
"""Of a side, whose traces are read for copying: a mean over more is hardly another."""
LENGTH_RATIO = 1.25
"""Longest over shortest trace of a group from which lengths differ: a stray token is no length."""
REWARD_SPREAD = 1e-3
"""Standard deviation below which a group's rewards rank nothing."""
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W\u2e80-\u9fff\uac00-\ud7af]+")
"""A word, or a sign of a script that writes without spaces."""

Groups = Mapping[str, Sequence[ScoredTrajectory]]
"""Traces of a round by group key."""
WordRuns = frozenset[tuple[str, ...]]
"""RUN_WORDS consecutive words each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A monitor at its limit or beyond."""

    name: str
    """As in the metric `hack/<name>`: the monitor, and the side where each has its own."""
    value: float
    limit: float
    meaning: str
    advice: str

    def __str__(self) -> str:
        return (
            f"{self.name} {self.value:.3g} (limit {self.limit:.3g}): {self.meaning}; {self.advice}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRound:
    """One scored round, joined by key; the fields with defaults are watched where given."""

    scored: Sequence[ScoredTrajectory]
    pairs: Mapping[int, Pair]
    """By group serial."""
    vectors: Mapping[str, np.ndarray]
    """Unit embeddings [D] of the scored traces by trajectory key."""
    relevance: Relevance
    """Which targets are right for which queries."""
    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Unit embeddings [D] of the same items without trace by group key."""
    probe: Probe | None = None
    second: Mapping[str, float] = field(default_factory=dict)
    """Rewards under a second Embedder by trajectory key."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a round."""

    value: float
    count: int
    """Groups or traces that it is the mean of."""


def watch_round(round: WatchedRound) -> tuple[dict[str, float], tuple[Alarm, ...]]:
    """Return the round's metrics and alarms: `hack/<name>`; `alarm/<name>` = 1.0 where it rings.

    A metric rests on at least one group, an alarm on at least MIN_COUNT of what it averages. The
    alarms are for the log; the metrics are all that the report needs.
    """
    groups: dict[str, list[ScoredTrajectory]] = {}
    for trace in round.scored:
        groups.setdefault(str(trace.trajectory.key.group), []).append(trace)
    measures: dict[str, Measure] = {}
    for side in Side:
        of_side = {
            name: members
            for name, members in groups.items()
            if members[0].trajectory.key.group.side is side
        }
        measured = {**copying(of_side, round.pairs), **collapse(of_side, round)}
        measures |= {f"{name}/{side}": measure for name, measure in measured.items()}
    measures |= length(groups) | saturation(groups) | agreement(groups, round.second)
    if round.probe is not None:
        measures |= worth(round.probe)

    metrics = {f"{METRIC_PREFIX}{name}": measure.value for name, measure in measures.items()}
    alarms = []
    for name, measure in measures.items():
        monitor = monitor_of(name)
        if measure.count >= MIN_COUNT and monitor.rings(measure.value):
            alarms.append(
                Alarm(
                    name=name,
                    value=measure.value,
                    limit=monitor.limit,
                    meaning=monitor.meaning,
                    advice=monitor.advice,
                )
            )
    metrics |= {f"{ALARM_PREFIX}{alarm.name}": 1.0 for alarm in alarms}
    return metrics, tuple(alarms)


def copying(groups: Groups, pairs: Mapping[int, Pair]) -> dict[str, Measure]:
    """Return how much of a trace recites its item, and of the other side's text is in the trace.

    For the groups of one side, of which READ_GROUPS have their traces read. `copied_own` counts the
    words of the three parts; the JSON cue is left out, where keywords are to be quoted.
    `copied_other` counts what is the other item's alone: not what its own item or another pair of
    the round says too, such as the task's instruction. A
    short right answer is the gold's text by right; only runs of RUN_WORDS can show a leak.
    """
    own_shares: list[float] = []
    other_shares: list[float] = []
    texts: dict[str, WordRuns] = {}
    for members in groups.values():
        group = members[0].trajectory.key.group
        other_side = Side.TARGET if group.side is Side.QUERY else Side.QUERY
        text = pairs[group.serial].item(other_side).text
        texts.setdefault(text, _runs(words_of(text)))
    said_by: dict[tuple[str, ...], int] = {}
    for runs in texts.values():
        for run in runs:
            said_by[run] = said_by.get(run, 0) + 1

    for members in islice(groups.values(), READ_GROUPS):
        group = members[0].trajectory.key.group
        other_side = Side.TARGET if group.side is Side.QUERY else Side.QUERY
        pair = pairs[group.serial]
        own = _runs(words_of(pair.item(group.side).instructed_text()))
        other_text = pair.item(other_side).text
        secret = frozenset(run for run in texts[other_text] if said_by[run] == 1) - own
        own_found, other_found = [], []
        for trace in members:
            text = trace.trajectory.text
            if own:
                prose = words_of(prose_of(text, pair.item(group.side)))
                own_found.append(_covered(prose, own) / max(1, len(prose)))
            if secret:
                other_words = words_of(other_text)
                told = _covered(other_words, secret & _runs(words_of(text)))
                other_found.append(told / _covered(other_words, secret))
        if own_found:
            own_shares.append(float(np.mean(own_found)))
        if other_found:
            other_shares.append(float(np.mean(other_found)))
    return {**_mean("copied_own", own_shares), **_mean("copied_other", other_shares)}


def length(groups: Groups) -> dict[str, Measure]:
    """Return the rank correlation of reward and tokens, averaged over groups.

    Among valid traces of groups whose lengths differ: a trace cut off or garbled is short or long,
    and paid nothing for being broken.
    """
    correlations = []
    for members in groups.values():
        valid = [trace for trace in members if trace.parts.format == 1.0]
        tokens = np.array([len(trace.trajectory.response_ids) for trace in valid])
        rewards = np.array([trace.parts.total for trace in valid])
        if len(valid) and tokens.max() >= LENGTH_RATIO * tokens.min():
            correlations.append(spearman(rewards, tokens))
    return _mean(
        "reward_by_length", [correlation for correlation in correlations if correlation is not None]
    )


def worth(probe: Probe) -> dict[str, Measure]:
    """Return the share of reward that re-scored traces lose: without evidence, with another trace.

    1 - (sum of the changed rewards) / (sum of the rewards as they are), over the same traces.
    """
    names = {Change.WITHOUT_EVIDENCE: "evidence_worth", Change.OTHER_TRACE: "trace_worth"}
    measures = {}
    for change, rewards in probe.changed.items():
        before = sum(probe.as_is[key] for key in rewards)
        if before > 0:
            lost = 1 - sum(rewards.values()) / before
            measures[names[change]] = Measure(float(lost), len(rewards))
    return measures


def collapse(groups: Groups, round: WatchedRound) -> dict[str, Measure]:
    """Return how far the embeddings of different items still lie apart; groups of one side.

    One trace of each group, the first by key, against the same items without trace; where the
    items' embeddings were not given, the effective rank stands against the number of targets that
    differ.
    """
    first = {
        name: min(members, key=lambda trace: trace.trajectory.key.sibling)
        for name, members in groups.items()
    }
    twins = round.relevance.twins(
        [round.pairs[trace.trajectory.key.group.serial] for trace in first.values()]
    )
    different = ~twins
    if not different.any():
        return {}
    traces = np.stack([round.vectors[str(trace.trajectory.key)] for trace in first.values()])
    count = len(first)
    cosine = _mean_where(traces, different)
    rank = effective_rank(traces)
    measures = {"mean_cosine": Measure(cosine, count)}
    if all(name in round.items for name in first):
        items = np.stack([round.items[name] for name in first])
        measures["effective_rank"] = Measure(rank / effective_rank(items), count)
        apart = 1 - _mean_where(items, different)
        if apart > 0:
            measures["distance"] = Measure((1 - cosine) / apart, count)
    else:
        repeated = int(np.tril(twins, -1).any(axis=1).sum())
        most = min(count - repeated, traces.shape[1])
        measures["effective_rank"] = Measure(rank / most, count)
    return measures


def saturation(groups: Groups) -> dict[str, Measure]:
    """Return the shares of groups that are all right, all wrong, and all right and paid alike."""
    right = [all(trace.parts.accuracy == 1.0 for trace in members) for members in groups.values()]
    wrong = [all(trace.parts.accuracy == 0.0 for trace in members) for members in groups.values()]
    alike = [not _spreads([trace.parts.total for trace in members]) for members in groups.values()]
    saturated = [a and b for a, b in zip(right, alike, strict=True)]
    return {
        **_mean("all_right", right),
        **_mean("all_wrong", wrong),
        **_mean("saturated", saturated),
    }


def agreement(groups: Groups, second: Mapping[str, float]) -> dict[str, Measure]:
    """Return the rank correlation with a second Embedder's rewards, averaged over groups.

    Only groups whose own rewards spread: where all are paid alike there is nothing to agree on.
    """
    correlations = []
    for members in groups.values():
        both = [
            (trace.parts.total, second[str(trace.trajectory.key)])
            for trace in members
            if str(trace.trajectory.key) in second
        ]
        if both and _spreads([reward for reward, _ in both]):
            correlations.append(spearman(*map(np.array, zip(*both, strict=True))))
    return _mean(
        "agreement", [correlation for correlation in correlations if correlation is not None]
    )


def words_of(text: str) -> list[str]:
    """Return a text's words, case folded; of Chinese, Japanese and Korean each sign is one."""
    return _WORD.findall(text.casefold())


def prose_of(text: str, item: Item) -> str:
    """Return what a trace says without tags and cue; all of it where it is not a trace."""
    try:
        trace = parse(text, kind=item.kind, num_frames=len(item.uris))
    except TCoTError:
        return text
    return f"{trace.thinking}\n{trace.rethink}\n{trace.answer}"


def spearman(left: np.ndarray, right: np.ndarray) -> float | None:
    """Return the rank correlation of two [N], ties sharing a rank; None where one is constant."""
    ranks = [_ranks(values) for values in (left, right)]
    centred = [values - values.mean() for values in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale > 0 else None


def effective_rank(vectors: np.ndarray) -> float:
    """Return exp of the entropy of the normalised singular values of [N, D], from 1 to min(N, D).

    Source: Roy and Vetterli, The effective rank, 2007. Rows that are all equal have rank 1.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    # Their squares are the eigenvalues of the smaller product, found in a fraction of the time.
    product = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    squares = np.linalg.eigvalsh(product)
    values = np.sqrt(squares[squares > squares[-1] * len(squares) * np.finfo(np.float64).eps])
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _runs(words: Sequence[str]) -> WordRuns:
    return frozenset(tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1))


def _covered(words: Sequence[str], runs: WordRuns) -> int:
    """Return how many of the words lie in one of the runs."""
    covered = end = 0
    for start in range(len(words) - RUN_WORDS + 1):
        if tuple(words[start : start + RUN_WORDS]) in runs:
            covered += start + RUN_WORDS - max(start, end)
            end = start + RUN_WORDS
    return covered


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


def _spreads(rewards: Sequence[float]) -> bool:
    return float(np.std(rewards)) >= REWARD_SPREAD


def _mean_where(vectors: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean cosine of the pairs of rows that the mask [N, N] names."""
    rows = np.asarray(vectors, dtype=np.float64)
    return float((rows @ rows.T)[mask].mean())


def _mean(name: str, values: Iterable[float]) -> dict[str, Measure]:
    """Return the mean under its name, nothing where there is no value."""
    numbers = list(values)
    return {name: Measure(float(np.mean(numbers)), len(numbers))} if numbers else {}
