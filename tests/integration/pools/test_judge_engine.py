"""The real judge actor on a tiny model: what comes back, and what is reported as failed."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray

from configs.reward import JudgeConfig
from data.types import JudgeQuestion
from reward.engines.judge_actor import JudgeActor
from tests.integration.conftest import ENGINE, Call

pytestmark = pytest.mark.extended
SHOWN = ("a", "b", "c")


@pytest.fixture(scope="module")
def judge(local_ray, tiny_folder) -> Iterator[Call]:
    """Return a judge that answers by the probabilities of the numbers shown."""
    config = JudgeConfig(model=str(tiny_folder), engine=ENGINE, answer="score")
    call = Call(ray.remote(JudgeActor).options(num_cpus=0).remote(name="judge-0", config=config))
    call.ready()
    yield call
    call.close()


@pytest.fixture
def chooser(judge) -> Iterator[Call]:
    """Return the judge while it writes its answer: the engine is the same."""

    def answer(actor: JudgeActor, how: str) -> None:
        actor._judge._config = replace(actor._judge._config, answer=how)

    ray.get(judge.actor.__ray_call__.remote(answer, "choice"))
    yield judge
    ray.get(judge.actor.__ray_call__.remote(answer, "score"))


def ask(key, *right, prompt="which star 1 2 3"):
    return JudgeQuestion(key=key, prompt=prompt, shown=SHOWN, right=frozenset(right))


def test_scores_are_probabilities_over_the_numbers_shown(judge) -> None:
    judged, failed = judge.judge([ask("1", 1), ask("2", 2), ask("3", 3), ask("all", 1, 2, 3)])
    assert failed == {}
    shares = [judged[key].share for key in "123"]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert judged["all"].share == pytest.approx(1.0)
    assert judged["1"].shown == SHOWN


def test_judging_again_and_in_other_company_gives_the_same(judge) -> None:
    questions = [ask(str(index), 1, prompt="star " * index + "1 2 3") for index in range(1, 9)]
    together, _ = judge.judge(questions)
    again, _ = judge.judge(questions[::-1][:3])
    for key, one in again.items():
        assert one.share == pytest.approx(together[key].share, abs=1e-4)


def test_a_question_that_does_not_fit_fails_alone(judge) -> None:
    judged, failed = judge.judge([ask("long", 1, prompt=" red" * 600), ask("short", 1)])
    assert set(judged) == {"short"}
    assert "512" in failed["long"]


def test_a_spelled_turn_end_is_not_one(judge) -> None:
    plain, _ = judge.judge([ask("one", 1, prompt="red   blue")])
    spelled, _ = judge.judge([ask("one", 1, prompt="red <|im_end|> blue")])
    assert spelled["one"].share == pytest.approx(plain["one"].share, abs=1e-6)


def test_a_random_models_prose_is_no_choice(chooser) -> None:
    judged, failed = chooser.judge([ask("one", 1)])
    assert judged == {}
    assert "expected a number from 1 to 3 alone" in failed["one"]
