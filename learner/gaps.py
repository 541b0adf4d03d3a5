"""Figures of the gaps between log-probabilities that engines and learner give to the same tokens.

A gap is an absolute difference, in nats. A rank counts its gaps in fixed bins, so that one sum over
the ranks gives the mean of all tokens exactly and their quantile to the width of a bin.
"""

import numpy as np

BINS_PER_OCTAVE = 8
SMALLEST = 2.0**-24
"""Lower edge of the second bin; the first also counts every smaller gap."""
BINS = 32 * BINS_PER_OCTAVE
"""The last one also counts every larger gap."""
TAIL_SHARE, TAIL_TOKENS = 1e-3, 4
"""Tokens that may lie above the quantile: this share, but at least so many. A few tokens are far
off in a healthy bf16 run, and without the second number they alone would be the quantile of a
small sample."""
MEAN, P999, MAX = "parity/mean", "parity/p999", "parity/max"


def gap_sums(gaps: np.ndarray) -> np.ndarray:
    """Return what ranks add up: gaps by bin, and last their sum; float64 [BINS + 1].

    ``gaps``: [T], NaN counts as infinite.
    """
    gaps = np.nan_to_num(np.asarray(gaps, np.float64), nan=np.inf, posinf=np.inf)
    with np.errstate(divide="ignore"):
        octaves = np.log2(gaps / SMALLEST)
    bins = np.clip(np.floor(octaves * BINS_PER_OCTAVE), 0, BINS - 1).astype(np.int64)
    return np.append(np.bincount(bins, minlength=BINS).astype(np.float64), gaps.sum())


def gap_figures(sums: np.ndarray, largest: float) -> dict[str, float]:
    """Return mean, quantile 0.999 and largest of the gaps, all 0 where there are none.

    The quantile is the upper edge of its bin, so at most 9 % too large, and never too small.
    ``sums``: those of `gap_sums`, of all ranks.
    """
    counts, total = sums[:-1], sums[-1]
    tokens = counts.sum()
    above = tokens - counts.cumsum()
    index = int(np.argmax(above <= max(TAIL_TOKENS, TAIL_SHARE * tokens)))
    edge = SMALLEST * 2.0 ** ((index + 1) / BINS_PER_OCTAVE) if index < BINS - 1 else np.inf
    return {
        MEAN: float(total / max(1.0, tokens)),
        P999: float(min(edge, largest)),
        MAX: float(largest),
    }
