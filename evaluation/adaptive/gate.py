"""The gate: from the plain vector of a query, how likely a trace turns its miss into a hit."""

from collections.abc import Mapping

import numpy as np

from data.errors import DataError
from evaluation.adaptive.curve import EQUAL, curve_and_saving, path
from evaluation.adaptive.effects import TraceEffects
from evaluation.adaptive.figures import AdaptiveFigures, AtThreshold
from evaluation.metrics import estimate

FOLDS = 5
INVERSE_PENALTIES = tuple(10.0**exponent for exponent in range(-5, 2))
"""scikit-learn's C of which cross-validation takes the best."""


def adaptive_figures(
    train: TraceEffects, held_out: TraceEffects, *, reasoner: str, resamples: int, seed: int
) -> AdaptiveFigures:
    """Return what a gate that learned from training queries saves on held-out ones.

    Args:
        train: queries to learn from.
        held_out: queries to measure on.
        reasoner: whose traces these are.
        resamples: bootstrap samples.
        seed: of the samples and of cross-validation.

    Raises:
        DataError: there is no training query, or no held-out one.
    """
    for what, effects in (("training", train), ("held-out", held_out)):
        if not len(effects.tokens):
            raise DataError(
                f"adaptive.train: expected {what} queries that were ranked with and without a "
                f"trace, found none; {_listed(effects.excluded)}leave the key empty, or correct "
                "the sets or models"
            )
    drawing = {"resamples": resamples, "seed": seed}
    learned, scores = gate_scores(train, held_out, seed=seed)
    traced = scores >= chosen_threshold(train, learned, **drawing)
    without, with_trace = held_out.hit_without, held_out.hit_with
    always = estimate(with_trace, **drawing)
    points, saving = curve_and_saving(held_out, scores, margin=always.mean - always.low, **drawing)
    return AdaptiveFigures(
        reasoner=reasoner,
        train_queries=len(learned),
        queries=len(scores),
        excluded=held_out.excluded,
        helped=float((with_trace & ~without).mean()),
        harmed=float((without & ~with_trace).mean()),
        never=estimate(without, **drawing),
        always=always,
        target=always.low,
        tokens=float(held_out.tokens.mean()),
        points=points,
        saving=saving,
        at_threshold=AtThreshold(
            traced=float(traced.mean()),
            tokens=estimate(np.where(traced, held_out.tokens, 0.0), **drawing),
            hit_at_1=estimate(np.where(traced, with_trace, without), **drawing),
        ),
    )


def gate_scores(
    train: TraceEffects, held_out: TraceEffects, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how likely a trace turns the miss of a query into a hit, both float64.

    The first are of the training queries, each from a gate that did not learn from it, the second
    of the held-out ones. Where fewer than two training queries are helped, or all but one, nothing
    can be learned: all queries get the same score.

    Args:
        train: queries to learn from.
        held_out: queries to score.
        seed: of the folds of cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    helps = train.hit_with & ~train.hit_without
    rarer = min(helps.sum(), len(helps) - helps.sum())
    if rarer < 2:
        share = helps.mean()
        return np.full(len(helps), share), np.full(len(held_out.tokens), share)
    folds = StratifiedKFold(min(FOLDS, int(rarer)), shuffle=True, random_state=seed)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": INVERSE_PENALTIES},
        scoring="neg_log_loss",
        cv=folds,
    ).fit(train.features, helps)
    learned = cross_val_predict(
        search.best_estimator_, train.features, helps, cv=folds, method="predict_proba"
    )
    scores = search.predict_proba(held_out.features)
    return learned[:, 1].astype(float), scores[:, 1].astype(float)


def chosen_threshold(
    train: TraceEffects, scores: np.ndarray, *, resamples: int, seed: int
) -> float:
    """Return the highest score from which on tracing the training queries has a hit@1 within the
    95 % interval of always tracing; infinite where no trace is needed for it."""
    levels, order = np.unique(-scores, return_inverse=True)
    _, hits = path(order, train, np.ones(len(scores)))
    target = estimate(train.hit_with, resamples=resamples, seed=seed).low
    first = int(np.flatnonzero(hits >= target - EQUAL)[0])
    return float(-levels[first - 1]) if first else np.inf


def _listed(excluded: Mapping[str, int]) -> str:
    return "".join(f"{count} excluded: {reason}; " for reason, count in excluded.items())
