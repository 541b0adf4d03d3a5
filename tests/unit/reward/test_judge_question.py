"""The judge's question, its recorded order, and what counts as an answer."""

import math

import pytest

from configs.reward import JudgeConfig
from data.errors import JudgeError
from data.types import Item, Side
from reward.judge_question import build_question, parse_choice, right_share
from reward.ranking import RankedTrajectory
from tests.builders import make_pair, make_trajectory

PAIRS = {
    serial: make_pair(
        f"p{serial}",
        query=Item(text=f"words of query {serial}"),
        target=Item(text=f"words of target {serial}"),
    )
    for serial in range(4)
}
TRACES = {
    str(one.key): one
    for one in (
        make_trajectory(serial, side, sibling, text=f"trace {serial} {side} {sibling}\n<answer>")
        for serial in PAIRS
        for side in Side
        for sibling in range(3)
    )
}


def key(serial, side, sibling=0):
    return f"g={serial}/p=p{serial}/{side}/{sibling}"


def ranked(serial=0, side=Side.QUERY, sibling=0, *, negatives=(1, 2, 3)):
    other = Side.TARGET if side is Side.QUERY else Side.QUERY
    return RankedTrajectory(
        trajectory=TRACES[key(serial, side, sibling)],
        accuracy=1.0,
        margin=0.5,
        rank=1,
        gain=0.0,
        positives=tuple(key(serial, other, one) for one in range(3)),
        negatives=tuple(key(one, other) for one in negatives),
        retrieved=(),
        candidates_id="",
        candidates_size=12,
        false_negatives=0,
    )


def ask(one, **config):
    return build_question(one, TRACES, PAIRS, JudgeConfig(model="j", **config))


def test_unshuffled_the_positives_come_first_and_the_closest_pairs_follow():
    question = ask(ranked(), positives="all", negatives=2, shuffle=False)
    own = tuple(key(0, Side.TARGET, one) for one in range(3))
    assert question.shown == (*own, key(1, Side.TARGET), key(2, Side.TARGET))
    assert question.right == {1, 2, 3}
    assert question.key == key(0, Side.QUERY)


def test_one_positive_is_drawn_from_the_siblings():
    drawn = set()
    for sibling in range(3):
        for serial in PAIRS:
            others = tuple(one for one in PAIRS if one != serial)
            question = ask(ranked(serial, sibling=sibling, negatives=others), shuffle=False)
            assert question.right == {1}
            assert len(question.shown) == 4
            drawn.add(question.shown[0][-1])
    assert drawn == {"0", "1", "2"}


def test_the_order_is_drawn_from_the_trace_alone_and_recorded():
    questions = [ask(ranked(sibling=one % 3), positives="all") for one in range(6)]
    assert questions[:3] == questions[3:]
    assert len({question.shown for question in questions}) > 1
    for question in questions:
        assert {question.shown[number - 1] for number in question.right} == {
            key(0, Side.TARGET, one) for one in range(3)
        }
        for number, name in enumerate(question.shown, 1):
            text = TRACES[name].text.replace("\n", " ")
            assert f"\n{number}. {text}\n" in question.prompt


def test_a_query_shows_its_words_and_a_target_shows_them_only_to_be_judged():
    query = ask(ranked(side=Side.QUERY), shuffle=False).prompt
    assert "words of query 0 trace 0 query 0 <answer>" in query
    assert "words of target" not in query
    target = ask(ranked(side=Side.TARGET), shuffle=False).prompt
    assert "words of target 0 trace 0 target 0 <answer>" in target
    assert "words of target 1" not in target
    assert "words of query 1 trace 1 query 0" in target


def test_without_another_pair_there_is_no_question():
    assert ask(ranked(negatives=())) is None


@pytest.mark.parametrize(
    ("answer", "number"), [("2", 2), (" 12\n", 12), ("[3]", 3), ("(1)", 1), ("4.", 4)]
)
def test_a_number_alone_is_a_choice(answer, number):
    assert parse_choice(answer, 12) == number


@pytest.mark.parametrize(
    "answer", ["", "the second", "2 or 3", "candidate 2", "0", "13", "-1", "2.5", "1234567"]
)
def test_prose_and_numbers_out_of_range_are_no_choice(answer):
    with pytest.raises(JudgeError, match="from 1 to 12"):
        parse_choice(answer, 12)


def test_the_score_is_the_probability_of_the_right_numbers():
    logprobs = [math.log(one) for one in (0.1, 0.2, 0.1)]
    assert right_share(logprobs, frozenset({2})) == pytest.approx(0.5)
    assert right_share(logprobs, frozenset({1, 3})) == pytest.approx(0.5)
    assert right_share(logprobs, frozenset({1, 2, 3})) == pytest.approx(1.0)
    assert right_share([-2000.0, -2000.0], frozenset({1})) == pytest.approx(0.5)
    assert right_share([-math.inf, -1.0], frozenset({1})) == 0.0


@pytest.mark.parametrize("logprobs", [[], [-math.inf, -math.inf], [math.nan, -1.0]])
def test_no_score_is_made_up(logprobs):
    with pytest.raises(JudgeError, match="log-probabilities"):
        right_share(logprobs, frozenset({1}))
