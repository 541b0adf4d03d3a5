"""What traces do to queries: toy engines whose vectors are known."""

from collections.abc import Sequence

import numpy as np
import pytest

from data.stores.traces import Subject
from data.types import Content, EmbedRequest, Item, Pair, Side
from evaluation.adaptive.effects import TraceEffects, features_of, trace_effects
from evaluation.runner import Settings, evaluate
from evaluation.sets import EvaluationSet, sets_of_pairs
from evaluation.variants import NO_COT

SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=5, seed=0)
WORDS = ("hard", "easy", "other")


def sets_named(name: str) -> list[EvaluationSet]:
    pairs = [
        Pair(
            pair_id=word,
            source=name,
            query=Item(text=f"{name} query {word}"),
            target=Item(text=f"{name} target {word}"),
        )
        for word in WORDS
    ]
    return sets_of_pairs(pairs)


class Engines:
    """Toy Reasoner and Embedder: a hard query is near its target with a trace only.

    ``failing`` and ``broken`` are words of what gets no trace, or no vector.
    """

    def __init__(self, failing: str = "\0", broken: str = "\0") -> None:
        self.failing, self.broken = failing, broken
        self.reasoned: list[Subject] = []
        self.embedded: list[str] = []

    def reason(self, asked: list[tuple[Subject, Content]]) -> dict[str, str]:
        self.reasoned += [subject for subject, _ in asked]
        return {s.key: "a trace" for s, _ in asked if self.failing not in s.item.text}

    def embed(self, requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
        vectors = {}
        for request in requests:
            text = repr(request.content)
            self.embedded.append(text)
            if self.broken not in text:
                number = next(i for i, word in enumerate(WORDS) if word in text)
                misled = number == 0 and "query" in text and "a trace" not in text
                vector = np.eye(4)[1 if misled else number]
                # Bare candidates are elsewhere: nothing is found among them.
                bare = "target" in text and "a trace" not in text
                vectors[request.key] = np.eye(4)[3] if bare else 2 * vector + 0.1
        return vectors

    def tokens(self, keys: Sequence[str]) -> dict[str, int]:
        number = {s.key: WORDS.index(s.item.text.split()[-1]) for s in self.reasoned}
        return {key: 10 + number[key] for key in keys if number[key] < 2}

    def effects(self, *names: str) -> list[TraceEffects]:
        return trace_effects(
            [sets_named(name) for name in names],
            reason=self.reason,
            embed=self.embed,
            tokens=self.tokens,
            settings=SETTINGS,
        )


def test_queries_with_and_without_a_trace_are_ranked_among_traced_candidates() -> None:
    engines = Engines()
    [effects] = engines.effects("a")
    assert effects.hit_without.tolist() == [False, True]
    assert effects.hit_with.tolist() == [True, True]
    assert effects.tokens.tolist() == [10, 11]
    assert effects.excluded == {"tokens of its trace unknown": 1}
    assert effects.features.shape == (2, 4 + 3)
    assert effects.features.dtype == np.float32
    assert not [text for text in engines.embedded if "target" in text and "a trace" not in text]


def test_groups_are_measured_apart_with_one_call_of_each_engine() -> None:
    engines = Engines()
    first, second = engines.effects("a", "b")
    assert len(engines.reasoned) == len({s.key for s in engines.reasoned}) == 12
    assert len(engines.embedded) == len(set(engines.embedded)) == 18
    assert [s.task for s in engines.reasoned if s.side is Side.QUERY] == ["a"] * 3 + ["b"] * 3
    np.testing.assert_array_equal(first.hit_without, second.hit_without)


def test_what_fails_is_excluded_with_its_reason() -> None:
    [effects] = Engines(failing="query hard").effects("a")
    assert effects.hit_with.tolist() == [True]
    assert effects.excluded == {"trace failed": 1, "tokens of its trace unknown": 1}
    [effects] = Engines(failing="target hard").effects("a")
    assert effects.excluded == {
        "no right candidate could be embedded": 1,
        "tokens of its trace unknown": 1,
    }
    [effects] = Engines(broken="a ").effects("a")
    assert (len(effects.tokens), effects.features.size) == (0, 0)
    assert effects.excluded == {"no embedding": 3}


def test_ranks_with_a_trace_are_those_of_the_variant() -> None:
    engines = Engines()
    result = evaluate(
        sets_named("a"),
        reasoners={"eg_rl": engines.reason},
        embed=engines.embed,
        settings=SETTINGS,
    )
    [effects] = engines.effects("a")
    ranks = {q.pair_id: q.rank for q in result.queries if q.variant == "eg_rl"}
    assert [rank == 1 for rank in ranks.values()][:2] == effects.hit_with.tolist()
    # Without traces on either side nothing is found here: another question.
    assert {q.rank for q in result.queries if q.variant == NO_COT} == {3}


def test_features_are_the_vector_and_what_its_search_shows() -> None:
    query = np.array([2.0, 0.0])
    *vector, top, margin, entropy = features_of(query, [np.array([3.0, 4.0]), np.array([0.0, 1])])
    assert vector == [1, 0]
    assert (top, margin) == pytest.approx((0.6, 0.6))
    assert entropy == pytest.approx(0, abs=1e-3)
    near = [np.array([1.0, 0.0])] * 4
    assert features_of(query, near)[2:] == pytest.approx((1, 0, np.log(4)))
    assert features_of(query, near[:1])[2:] == pytest.approx((1, 2, 0))
