"""Ends a run whose steps train nothing: it would reach its last step and mean nothing."""

from collections import Counter
from collections.abc import Mapping

from data.errors import NothingToTrainOn

MAX_EMPTY_STEPS = 5
"""Steps in a row: one may be bad luck, five are not."""
PREFIX = "dropped/"
DROP_REMEDIES = {
    "bad_picture": "see that the pictures of data.train can be read",
    "embedding_failed": "the Embedder gives no usable vectors: look at reward.model, reward.pooling"
    " and its dtype, and at the reward actors' logs",
    "generation_failed": "the engines refuse the prompts: see the rollout actors' logs",
    "poisoned": "the engines die of the prompts: see the rollout actors' logs",
    "no_spread": "every group's traces are paid alike: where all are right, training has reached "
    "its end (a lower `steps` ends the run and exports); else raise siblings or "
    "rollout.sampling.temperature, or look at the Embedder and the reward",
    "no_positive": "no trace of the other side is left to be found",
    "no_negative": "traces have nothing to be told from: give more, and different, pairs",
    "stale": "traces are too old when they come to the learner: stale=wait or a higher "
    "max_staleness",
    "judge_failed": "the judge answers nothing usable: look at reward.judge.model",
}
"""What to do, by the reason that most traces were dropped for."""


class EmptyStreak:
    """Counts steps in a row without anything trained, and what their traces were dropped for.

    ``trained``: whether earlier steps, before a resume, trained something.
    """

    def __init__(self, *, trained: bool, limit: int = MAX_EMPTY_STEPS) -> None:
        self.limit = limit
        self.steps = 0
        """Empty ones since the last that trained something."""
        self._trained = trained
        """Whether any step of the run did."""
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def record(
        self,
        trained: float,
        metrics: Mapping[str, float],
        examples: Mapping[str, str],
        *,
        last: bool,
    ) -> None:
        """Take note of a step that trained so many traces or tokens.

        ``metrics`` count its dropped traces as `dropped/<reason>`, ``examples`` say more by reason;
        ``last``: no further step comes.

        Raises:
            NothingToTrainOn: it is the last one of ``limit`` empty steps in a row, or of a run that
                has only such.
        """
        if trained:
            self.steps, self._trained = 0, True
            self._reasons.clear()
            self._examples.clear()
            return
        self.steps += 1
        for name, count in metrics.items():
            if name.startswith(PREFIX) and name != f"{PREFIX}total":
                self._reasons[name.removeprefix(PREFIX)] += int(count)
        self._examples = {**examples, **self._examples}
        if self.steps < self.limit and (self._trained or not last):
            return
        counted = self._reasons.most_common()
        shown = {name: f" (e.g. {detail})" for name, detail in self._examples.items()}
        reasons = ", ".join(f"{name} {count}{shown.get(name, '')}" for name, count in counted)
        known = (DROP_REMEDIES[name] for name, _ in counted if name in DROP_REMEDIES)
        remedy = next(known, "see the log")
        raise NothingToTrainOn(
            f"{self.steps} steps in a row trained nothing; what their traces were dropped for: "
            f"{reasons or 'the reasons are logged above'}. What to do: {remedy}. No checkpoint was "
            "written since these steps began: once the cause is mended, the same command goes on "
            "from the last one"
        )
