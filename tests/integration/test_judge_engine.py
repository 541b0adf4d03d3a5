"""The real judge actor on a tiny model: what comes back, and what is reported as failed."""

from collections.abc import Iterator

import pytest
import ray

from configs.schema import JudgeConfig
from data.types import JudgeQuestion
from reward.judge_actor import JudgeActor
from tests.integration.conftest import ENGINE, Call

SHOWN = ("a", "b", "c")


def make_judge(folder, answer) -> Call:
    config = JudgeConfig(model=str(folder), engine=ENGINE, answer=answer)
    call = Call(ray.remote(JudgeActor).options(num_cpus=0).remote(name="judge-0", config=config))
    call.ready()
    return call


@pytest.fixture(scope="module")
def scorer(local_ray, tiny_folder) -> Iterator[Call]:
    call = make_judge(tiny_folder, "score")
    yield call
    call.close()


@pytest.fixture(scope="module")
def chooser(local_ray, tiny_folder) -> Iterator[Call]:
    call = make_judge(tiny_folder, "choice")
    yield call
    call.close()


def ask(key, *right, prompt="which star 1 2 3"):
    return JudgeQuestion(key=key, prompt=prompt, shown=SHOWN, right=frozenset(right))


def test_scores_are_probabilities_over_the_numbers_shown(scorer) -> None:
    judged, failed = scorer.judge([ask("1", 1), ask("2", 2), ask("3", 3), ask("all", 1, 2, 3)])
    assert failed == {}
    shares = [judged[key].share for key in "123"]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert judged["all"].share == pytest.approx(1.0)
    assert judged["1"].shown == SHOWN


def test_judging_again_and_in_other_company_gives_the_same(scorer) -> None:
    questions = [ask(str(index), 1, prompt="star " * index + "1 2 3") for index in range(1, 9)]
    together, _ = scorer.judge(questions)
    again, _ = scorer.judge(questions[::-1][:3])
    for key, one in again.items():
        assert one.share == pytest.approx(together[key].share, abs=1e-4)


def test_a_question_that_does_not_fit_fails_alone(scorer) -> None:
    judged, failed = scorer.judge([ask("long", 1, prompt=" red" * 600), ask("short", 1)])
    assert set(judged) == {"short"}
    assert "512" in failed["long"]


def test_a_spelled_turn_end_is_not_one(scorer) -> None:
    plain, _ = scorer.judge([ask("one", 1, prompt="red   blue")])
    spelled, _ = scorer.judge([ask("one", 1, prompt="red <|im_end|> blue")])
    assert spelled["one"].share == pytest.approx(plain["one"].share, abs=1e-6)


def test_a_random_models_prose_is_no_choice(chooser) -> None:
    judged, failed = chooser.judge([ask("one", 1)])
    assert judged == {}
    assert "expected a number from 1 to 3 alone" in failed["one"]
