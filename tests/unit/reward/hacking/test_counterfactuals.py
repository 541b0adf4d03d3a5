"""What is drawn, what the Embedder is asked, and rewards that equal a round scored afresh."""

import numpy as np
import pytest

from configs.reward import BankConfig, RewardConfig
from data.embed_inputs import embed_content
from data.relevance import Relevance
from data.types import Evidence, Item, Kind, Picture, Side
from reward.bank import CandidateBank
from reward.hacking.counterfactuals import SAMPLE, Change, counterfactuals, score_probe
from reward.ranking import Ranking
from reward.score import score_round
from tests.builders import TRACES, make_pair, make_scored, make_trajectory

REWARD = RewardConfig(model="m")
BANK = CandidateBank(BankConfig())


def picture_pair(serial, **changes):
    query = Item(text=f"what is {serial}?", kind=Kind.IMAGE, uris=(f"/{serial}.png",))
    return make_pair(f"p{serial}", query=query, **changes)


def scored_trace(serial, side, sibling=0, *, outcome=0.3, text=TRACES[Kind.IMAGE]):
    return make_scored(make_trajectory(serial, side, sibling, text=text), outcome=outcome)


def counterfactuals_of(scored, pairs, *, known=None, **changes):
    relevance = Relevance(known or pairs.values())
    return counterfactuals(
        scored, pairs, item_tokens=0, max_frames=4, relevance=relevance, **changes
    )


def plan(scored, pairs, **changes):
    found = counterfactuals_of(scored, pairs, **changes)
    return {change: [one for one in found if one.change is change] for change in Change}


def trace_at(x):
    return TRACES[Kind.IMAGE].replace("[100,", f"[{x},")


def test_without_evidence_the_trace_keeps_its_text_and_loses_its_crops():
    pairs = {0: picture_pair(0)}
    (one,) = plan([scored_trace(0, Side.QUERY)], pairs)[Change.WITHOUT_EVIDENCE]
    expected = embed_content(
        pairs[0].query, TRACES[Kind.IMAGE], item_tokens=0, max_frames=4, evidence=Evidence.TEXT
    )
    assert one.request.content == expected
    assert one.request.key == "g=0/p=p0/query/0#without_evidence"


def test_another_trace_comes_with_its_own_box_on_this_items_picture():
    pairs = {0: picture_pair(0), 1: picture_pair(1)}
    scored = [scored_trace(n, Side.QUERY, text=trace_at(100 + n)) for n in pairs]
    found = plan(scored, pairs)[Change.OTHER_TRACE]
    contents = {str(one.key): one.request.content for one in found}
    crop = next(
        part
        for part in contents["g=0/p=p0/query/0"]
        if isinstance(part, Picture) and part.box is not None
    )
    assert (crop.uri, crop.box.x1) == ("/0.png", 0.101)


def test_another_trace_is_of_the_same_kind_and_side_and_seeks_another_target():
    target = Item(text="same")
    pairs = {
        0: picture_pair(0, target=target),
        1: picture_pair(1, target=target),
        2: make_pair("p2"),
    }
    scored = [scored_trace(0, Side.QUERY), scored_trace(1, Side.QUERY)]
    scored += [scored_trace(2, Side.QUERY, text=TRACES[Kind.TEXT]), scored_trace(2, Side.TARGET)]
    assert plan(scored, pairs)[Change.OTHER_TRACE] == []


def test_a_trace_of_an_item_that_is_right_by_another_known_pair_is_no_other_trace():
    pairs = {n: picture_pair(n) for n in range(2)}
    scored = [scored_trace(n, Side.QUERY) for n in pairs]
    assert len(plan(scored, pairs)[Change.OTHER_TRACE]) == 2
    gold = picture_pair(0, target=pairs[1].target)
    assert plan(scored, pairs, known=[*pairs.values(), gold])[Change.OTHER_TRACE] == []


def test_only_traces_with_an_outcome_are_drawn():
    pairs = {n: picture_pair(n) for n in range(2)}
    scored = [scored_trace(0, Side.QUERY, outcome=0.0), scored_trace(1, Side.QUERY)]
    for found in plan(scored, pairs).values():
        assert [str(one.key) for one in found] == ["g=1/p=p1/query/0"]


def test_texts_and_rounds_without_evidence_have_none_to_remove():
    pairs = {0: make_pair("p0"), 1: picture_pair(1)}
    text = [scored_trace(0, Side.QUERY, text=TRACES[Kind.TEXT])]
    assert plan(text, pairs)[Change.WITHOUT_EVIDENCE] == []
    image = [scored_trace(1, Side.QUERY)]
    assert plan(image, pairs, evidence=Evidence.TEXT)[Change.WITHOUT_EVIDENCE] == []


def test_the_sample_is_bounded_and_depends_on_keys_alone():
    pairs = {n: picture_pair(n) for n in range(20)}
    scored = [scored_trace(n, Side.QUERY, sibling) for n in pairs for sibling in range(4)]
    found = counterfactuals_of(scored, pairs)
    assert len(found) == 2 * SAMPLE
    rng = np.random.default_rng(0)
    shuffled = [scored[i] for i in rng.permutation(len(scored))]
    assert counterfactuals_of(shuffled, pairs) == found


@pytest.mark.parametrize("lost", [False, True])
def test_rewards_equal_those_of_the_round_with_that_one_embedding_changed(lost):
    rng = np.random.default_rng(1)
    pairs = {n: picture_pair(n) for n in range(6)}
    trajectories = [
        make_trajectory(n, side, sibling, text=TRACES[Kind.IMAGE if side is Side.QUERY else "text"])
        for n in pairs
        for side in Side
        for sibling in range(2)
    ]

    def vector():
        found = rng.normal(size=8)
        return found / np.linalg.norm(found)

    base = {n: vector() for n in pairs}
    vectors = {}
    for one in trajectories:
        found = base[one.key.group.serial] + 0.3 * vector()
        vectors[str(one.key)] = found / np.linalg.norm(found)

    def score(given, only=None):
        known = Relevance(pairs.values())
        ranking = Ranking(trajectories, given, pairs, BANK, reward=REWARD, relevance=known)
        ranked = ranking.rank(only=only).ranked
        return score_round(ranked, {}, pairs, reward=REWARD, max_frames=4)[0]

    planned = counterfactuals_of(score(vectors), pairs)
    embedded = {one.request.key: vector() for one in planned}
    gone = planned[0]
    if lost:
        del embedded[gone.request.key]
    probe = score_probe(planned, vectors, embedded, score=score)
    assert all(probe.changed.values())
    assert (str(gone.key) in probe.changed[gone.change]) is not lost
    for one in planned:
        key = str(one.key)
        if one.request.key in embedded:
            alone = score({**vectors, key: embedded[one.request.key]})
            total = next(s.parts.total for s in alone if str(s.trajectory.key) == key)
            assert probe.changed[one.change][key] == pytest.approx(total, abs=1e-12)
            assert probe.as_is[key] == pytest.approx(
                next(s.parts.total for s in score(vectors) if str(s.trajectory.key) == key)
            )
