"""The judge's question and answer (process reward; Embed-RL, equation 4): pure, no model here.

The judge reads one trace and numbered traces of the other side, and names the one that belongs to
it. A trace that says what its own pair is about makes that easy.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from configs.reward import JudgeConfig
from data.errors import JudgeError
from data.prompts import judge_template
from data.types import JudgeQuestion, Pair, Side, Trajectory
from reward.ranking import RankedTrajectory

_NUMBER = re.compile(r"[\[(]?(\d{1,4})[\])]?\.?")


def build_question(
    one: RankedTrajectory,
    traces: Mapping[str, Trajectory],
    pairs: Mapping[int, Pair],
    config: JudgeConfig,
) -> JudgeQuestion | None:
    """Return what the judge is asked about a trace, or None where no wrong answer can be shown.

    ``traces`` holds the step's traces by key (as text). Shown are the pair's own traces of the
    other side (one of them, or all) and the closest trace of each of the closest pairs that are
    wrong for it: another gold of the same query would be a right answer that counts as wrong. Both
    the choice of one and the order are drawn from the trace's key, so a run repeated shows the
    same; unshuffled, the positives come first.
    """
    key = str(one.trajectory.key)
    draw = np.random.default_rng(zlib.crc32(f"judge/{key}".encode()))
    negatives = one.negatives[: config.negatives]
    if not negatives:
        return None
    positives = one.positives
    if config.positives == "one":
        positives = (positives[int(draw.integers(len(positives)))],)
    shown = (*positives, *negatives)
    if config.shuffle:
        shown = tuple(shown[int(index)] for index in draw.permutation(len(shown)))
    candidates = [
        f"{number}. {_record(traces[name], pairs, with_target=False)}"
        for number, name in enumerate(shown, 1)
    ]
    prompt = judge_template().substitute(
        trace=_record(one.trajectory, pairs, with_target=True),
        candidates="\n".join(candidates),
        count=len(shown),
    )
    right = frozenset(number for number, name in enumerate(shown, 1) if name in positives)
    return JudgeQuestion(key=key, prompt=prompt, shown=shown, right=right)


def parse_choice(answer: str, count: int) -> int:
    """Return the number that an answer consists of, from 1 to ``count``.

    Raises:
        JudgeError: the answer is prose, empty, or out of range.
    """
    match = _NUMBER.fullmatch(answer.strip())
    if match is None or not 1 <= int(match[1]) <= count:
        raise JudgeError(f"expected a number from 1 to {count} alone, found {answer[:80]!r}")
    return int(match[1])


def right_share(logprobs: Sequence[float], right: frozenset[int]) -> float:
    """Return the probability of the right numbers among all numbers, in [0, 1].

    ``logprobs`` holds one log-probability per number, number 1 first; they need not add up to 1.

    Raises:
        JudgeError: no number has a finite log-probability, or one is not a number at all.
    """
    peak = max(logprobs, default=-math.inf)
    if not math.isfinite(peak) or any(math.isnan(value) for value in logprobs):
        raise JudgeError(f"expected log-probabilities of the numbers, found {list(logprobs)}")
    weights = [math.exp(value - peak) for value in logprobs]
    return sum(weights[number - 1] for number in right) / sum(weights)


def _record(trace: Trajectory, pairs: Mapping[int, Pair], *, with_target: bool) -> str:
    """Return an item's own words and its trace in one line; a target's words may be left out.

    They are the answer that a query seeks: beside them its trace would not matter.
    """
    group = trace.key.group
    words = ""
    if with_target or group.side is Side.QUERY:
        words = pairs[group.serial].item(group.side).instructed_text()
    return " ".join(f"{words} {trace.text}".split())
