"""The scorer: what is asked of both pools, what is cached, counted, dropped and saved."""

from dataclasses import replace

import pytest

from cluster.rl.scoring import Scorer
from configs.reward import BankConfig, JudgeConfig, RewardConfig
from data.relevance import Relevance
from data.types import Judgement, Kind, Side
from tests.builders import TRACES, make_pair, make_trajectory
from tests.fakes import FakeEmbedder

REWARD = RewardConfig(model="m")


class FakeJudge:
    """Always names the first right candidate; answers in prose where told."""

    def __init__(self, *, prose=()):
        self.prose = prose

    def judge(self, questions):
        judged = {
            one.key: Judgement(share=1.0, shown=one.shown, answer=str(min(one.right)))
            for one in questions
            if one.key not in self.prose
        }
        return judged, {one.key: "prose" for one in questions if one.key not in judged}


def make_step(start=0, count=3):
    pairs = {serial: make_pair(f"p{serial}") for serial in range(start, start + count)}
    traces = [
        make_trajectory(serial, side, one, text=f"trace {serial} {side} {one}")
        for serial in pairs
        for side in Side
        for one in (0, 1)
    ]
    return traces, pairs


def make_scorer(reward=REWARD, *, embedder=None, judge=None, second=None):
    embedder = embedder or FakeEmbedder()
    return Scorer(
        reward,
        embedder=embedder,
        judge=judge,
        second=second,
        item_tokens=0,
        max_frames=8,
        relevance=Relevance(make_step(count=9)[1].values()),
    )


def score(scorer, traces, pairs):
    """Score traces that were embedded in two parts."""
    parts = [scorer.begin(some, pairs, None) for some in (traces[1:], traces[:1])]
    return scorer.score(traces, pairs, None, parts)


def rewards(scores):
    return {str(one.trajectory.key): (one.parts, one.candidates_id) for one in scores.scored}


def test_every_trace_is_scored_once_and_the_round_is_measured():
    traces, pairs = make_step()
    scores = score(make_scorer(), traces, pairs)
    assert {str(one.trajectory.key) for one in scores.scored} == {str(one.key) for one in traces}
    assert scores.dropped == []
    watched = {name for name in scores.metrics if name.startswith("hack/")}
    assert {"hack/all_right", "hack/mean_cosine/query"} <= watched
    assert {name: scores.metrics[name] for name in scores.metrics if name not in watched} == {
        "repair/refused a part is missing": 12.0,
        "candidates/size": 6.0,
        "mask/false_negatives": 0.0,
    }


def test_repairs_are_counted_by_what_was_mended():
    traces, pairs = make_step()
    mended = TRACES[Kind.TEXT].replace('["dog"]', '["dog", "dog"]')
    traces[0], traces[1] = replace(traces[0], text=mended), replace(traces[1], text=mended)
    metrics = score(make_scorer(), traces, pairs).metrics
    assert metrics["repair/keyword dropped repeated"] == 2.0
    assert metrics["repair/refused a part is missing"] == 10.0


def test_what_cannot_be_embedded_is_told_in_one_line_with_the_first_reasons(caplog):
    traces, pairs = make_step()
    lost = [str(trace.key) for trace in traces[1:6]]
    score(make_scorer(embedder=FakeEmbedder(fails=set(lost))), traces, pairs)
    told = "; ".join(f"{key}: told to fail" for key in lost[:3])
    assert caplog.messages == [f"not embedded: 5, the first: {told}"]


def test_a_trace_that_cannot_be_embedded_is_dropped():
    traces, pairs = make_step()
    lost = str(traces[0].key)
    scores = score(make_scorer(embedder=FakeEmbedder(fails={lost})), traces, pairs)
    assert [(str(one.key), one.reason) for one in scores.dropped] == [(lost, "embedding_failed")]
    assert len(scores.scored) == 11


def test_the_judges_failures_are_dropped_and_counted():
    traces, pairs = make_step()
    lost = str(traces[3].key)
    reward = replace(REWARD, process_weight=0.5, judge=JudgeConfig(model="j"))
    scores = score(make_scorer(reward, judge=FakeJudge(prose={lost})), traces, pairs)
    assert [(str(one.key), one.reason) for one in scores.dropped] == [(lost, "judge_failed")]
    assert scores.metrics["judge/failed"] == 1.0
    assert scores.metrics["judge/right"] == 1.0
    for one in scores.scored:
        assert one.parts.process == 1.0
        assert len(one.judgement.shown) == 3


def test_items_are_embedded_without_trace_once():
    embedder = FakeEmbedder()
    scorer = make_scorer(replace(REWARD, gain_weight=1.0), embedder=embedder)
    traces, pairs = make_step()
    first = score(scorer, traces, pairs)
    assert first.metrics["reward/cache_hits"] == 0.0
    assert len([key for key in embedder.asked if key.startswith("plain/")]) == 6
    assert any(one.parts.gain != 0 for one in first.scored)
    embedder.asked.clear()
    again = score(scorer, traces, pairs)
    assert again.metrics["reward/cache_hits"] == 6.0
    assert not [key for key in embedder.asked if key.startswith("plain/")]
    assert rewards(again) == rewards(first)


def test_items_are_embedded_without_trace_where_those_too_alike_are_no_negatives():
    reward = replace(REWARD, false_negative_similarity=0.9, bank=BankConfig(recent=2, capacity=2))
    embedder = FakeEmbedder()
    scorer = make_scorer(reward, embedder=embedder, second=FakeEmbedder())
    traces, pairs = make_step()
    first = score(scorer, traces, pairs)
    assert len([key for key in embedder.asked if key.startswith("plain/")]) == 6
    assert first.metrics["mask/false_negatives"] == 0.0
    assert {one.parts.gain for one in first.scored} == {0.0}
    # An item that reads exactly like one of an earlier step, but for its identity.
    traces, pairs = make_step(3)
    pairs[3] = replace(pairs[3], target=replace(make_pair("p2").target, kind=Kind.PAGE))
    again = score(scorer, traces, pairs)
    assert again.metrics["mask/false_negatives"] > 0.0


@pytest.mark.parametrize("restart", [False, True])
def test_a_resumed_scorer_gives_the_same_rewards(restart, tmp_path):
    reward = replace(REWARD, bank=BankConfig(recent=2, hard=2, capacity=4))
    scorer, straight = make_scorer(reward), make_scorer(reward)
    for start in (0, 3, 6):
        expected = score(straight, *make_step(start))
        found = score(scorer, *make_step(start))
        if restart:
            scorer.bank.copy().save(tmp_path / "bank.npz")
            scorer = make_scorer(reward)
            scorer.bank.load(tmp_path / "bank.npz")
    assert rewards(found) == rewards(expected)
    assert found.metrics["candidates/size"] == 10.0


def test_a_second_embedder_is_watched_and_pays_nothing():
    traces, pairs = make_step()
    alone = score(make_scorer(), traces, pairs)
    watched = score(make_scorer(second=FakeEmbedder()), traces, pairs)
    assert "hack/agreement" not in alone.metrics
    assert watched.metrics["hack/agreement"] == pytest.approx(1.0)
    assert rewards(watched) == rewards(alone)


def test_rewarded_traces_are_scored_again_with_another_items_trace():
    traces, pairs = make_step()
    embedder = FakeEmbedder()
    scores = score(make_scorer(embedder=embedder), traces, pairs)
    paid = {str(one.trajectory.key) for one in scores.scored if one.parts.outcome > 0}
    again = {key.partition("#")[0] for key in embedder.asked if "#" in key}
    assert again == paid
