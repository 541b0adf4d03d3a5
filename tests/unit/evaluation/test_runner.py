"""The runner with toy engines: traces by rule, vectors by hashed bag of words and pictures."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from data.errors import DataError
from data.stores.traces import Subject
from data.tcot import render
from data.types import Box, Content, Cues, EmbedRequest, Item, Kind, Pair, Picture, TCoT
from evaluation.evidence import on_target
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import (
    ALL_KINDS,
    OVERALL,
    Evaluation,
    QueryResult,
    Settings,
    evaluate,
    task_kind,
)
from evaluation.sets import sets_of_pairs
from evaluation.variants import NO_COT, variants_of

SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=50, seed=0)
COLOURS = ("red", "blue", "green", "black", "white", "pink")
TRUE_BOX = Box(0.0, 0.0, 0.5, 0.5)
OTHER_BOX = Box(0.5, 0.5, 1.0, 1.0)


def bag_of_words(content: Content) -> np.ndarray:
    """Return the counts of hashed words; the crop of the true box reads as the colour in it."""
    vector = np.zeros(4096)
    for part in content:
        if isinstance(part, Picture):
            # The file's name says what the true region holds.
            words = [part.uri.split("/")[-1]] * 9 if part.box == TRUE_BOX else ["blur"]
        else:
            words = re.findall(r"[a-z]+", part)
        for word in words:
            vector[zlib.crc32(word.encode()) % 4096] += 1
    return vector


class Embedder:
    """Toy Embedder that keeps what it was asked for; ``broken`` contents get no vector."""

    def __init__(self, broken: str = "\0") -> None:
        self.broken = broken
        self.asked: list[EmbedRequest] = []

    def __call__(self, requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
        self.asked += requests
        return {
            r.key: bag_of_words(r.content) for r in requests if self.broken not in repr(r.content)
        }


class Reasoner:
    """Toy Reasoner: boxes ``box`` on pictures, keywords on texts."""

    def __init__(self, box: Box, failing: str = "\0", blank: str = "\0") -> None:
        self.box, self.failing, self.blank = box, failing, blank
        self.asked: list[tuple[Subject, Content]] = []

    def __call__(self, requests: list[tuple[Subject, Content]]) -> dict[str, str]:
        self.asked += requests
        return dict(self._answers(requests))

    def _answers(self, requests: list[tuple[Subject, Content]]) -> Iterator[tuple[str, str]]:
        for subject, content in requests:
            if self.failing in repr(content):
                continue
            if self.blank in repr(content):
                yield subject.key, "  "
                continue
            image = any(isinstance(part, Picture) for part in content)
            kind = Kind.IMAGE if image else Kind.TEXT
            cues = Cues(boxes=(self.box,)) if image else Cues(keywords=("thing",))
            trace = TCoT(thinking="it", rethink="it", answer="it", cues=cues)
            yield subject.key, render(trace, kind=kind)


def image_pair(colour: str, *, number: int = 0, **more: object) -> Pair:
    return Pair(
        **{
            "pair_id": f"{colour}-{number}",
            "source": "color",
            "query": Item(text="what is it", kind=Kind.IMAGE, uris=(f"/p/{number}/{colour}",)),
            "target": Item(text=colour),
            "query_evidence": Cues(boxes=(TRUE_BOX,)),
            **more,
        }
    )


def text_pair(colour: str) -> Pair:
    return Pair(
        pair_id=colour, source="find", query=Item(text=f"the {colour}"), target=Item(text=colour)
    )


def of(evaluation: Evaluation, variant: str) -> dict[str, QueryResult]:
    return {q.pair_id: q for q in evaluation.queries if q.variant == variant}


@pytest.fixture(scope="module")
def learned() -> Evaluation:
    pairs = [image_pair(colour) for colour in COLOURS] + [text_pair(colour) for colour in COLOURS]
    reasoners = {"warm_start": Reasoner(OTHER_BOX), "eg_rl": Reasoner(TRUE_BOX)}
    return evaluate(sets_of_pairs(pairs), reasoners=reasoners, embed=Embedder(), settings=SETTINGS)


def test_variants_are_in_the_order_of_the_table() -> None:
    names = [variant.name for variant in variants_of(["warm_start", "eg_rl"])]
    assert names == ["no_cot", "warm_start_text", "warm_start", "eg_rl_text", "eg_rl"]


def test_only_the_right_evidence_finds_the_colour(learned: Evaluation) -> None:
    hits = {
        result.variant: result.metrics["hit_at_1"].mean
        for result in learned.results
        if result.source == "color"
    }
    assert hits == {
        "no_cot": 0.0,
        "warm_start_text": 0.0,
        "warm_start": 0.0,
        "eg_rl_text": 0.0,
        "eg_rl": 1.0,
    }


def test_each_data_set_has_its_own_result_and_all_together(learned: Evaluation) -> None:
    results = [result for result in learned.results if result.variant == "eg_rl"]
    sources = [result.source for result in results if result.kind == ALL_KINDS]
    assert sources == [OVERALL, "color", "find"]
    assert learned.overall()["eg_rl"].queries == 12
    assert learned.overall()["warm_start"].metrics["hit_at_1"].mean == pytest.approx(0.5)


def test_each_kind_of_task_has_its_own_result(learned: Evaluation) -> None:
    kinds = {result.kind for result in learned.results} - {ALL_KINDS}
    counted = {kind: learned.of_kind(kind)["eg_rl"].queries for kind in kinds}
    of_pairs = Counter(
        task_kind(query.query, query.target)
        for query in learned.queries
        if query.variant == "eg_rl"
    )
    assert counted == of_pairs
    hits = [q.metrics["hit_at_1"] for q in learned.queries if q.variant == "warm_start"]
    found = [learned.of_kind(kind)["warm_start"] for kind in kinds]
    total = sum(one.metrics["hit_at_1"].mean * one.queries for one in found)
    assert total == pytest.approx(sum(hits))


@pytest.mark.parametrize(
    ("query", "target", "expected"),
    [
        (Kind.TEXT, Kind.TEXT, Kind.TEXT),
        (Kind.TEXT, Kind.IMAGE, Kind.IMAGE),
        (Kind.IMAGE, Kind.PAGE, Kind.PAGE),
        (Kind.PAGE, Kind.VIDEO, Kind.VIDEO),
    ],
)
def test_the_kind_of_a_task_does_not_depend_on_the_side(
    query: Kind, target: Kind, expected: Kind
) -> None:
    one, other = Item(text="", kind=query), Item(text="", kind=target)
    assert task_kind(one, other) is expected
    assert task_kind(other, one) is expected


def test_valid_and_on_target_are_shares_of_query_traces(learned: Evaluation) -> None:
    found = learned.overall()
    assert (found["no_cot"].valid, found["no_cot"].on_target) == (None, None)
    assert (found["warm_start"].valid, found["warm_start"].on_target) == (1.0, 0.0)
    assert (found["eg_rl"].valid, found["eg_rl"].on_target) == (1.0, 1.0)
    # No true box is known of a text query.
    assert of(learned, "eg_rl")["red"].on_target is None


def test_query_results_hold_trace_top_three_and_rank(learned: Evaluation) -> None:
    query = of(learned, "eg_rl")["red-0"]
    assert "bbox_2d" in query.trace
    assert query.rank == 1
    assert query.candidates == 6
    assert len(query.retrieved) == 3
    assert query.retrieved[0].item == Item(text="red")
    assert [found.right for found in query.retrieved] == [True, False, False]
    assert of(learned, NO_COT)["red-0"].rank == 6


def test_equal_content_is_asked_for_once() -> None:
    pairs = [image_pair("red"), image_pair("red", pair_id="same"), image_pair("blue")]
    reasoner, embedder = Reasoner(TRUE_BOX), Embedder()
    evaluate(sets_of_pairs(pairs), reasoners={"eg_rl": reasoner}, embed=embedder, settings=SETTINGS)
    assert len(reasoner.asked) == 4  # two pictures, two words
    contents = [request.content for request in embedder.asked]
    assert len(contents) == len(set(contents))


def test_pairs_of_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="found 2 pairs 'red-0'"):
        sets_of_pairs([image_pair("red"), image_pair("red")])


def test_failed_traces_are_left_out_and_counted() -> None:
    pairs = [image_pair(colour) for colour in COLOURS]
    reasoner = Reasoner(TRUE_BOX, failing="/red", blank="/blue")
    found = evaluate(
        sets_of_pairs(pairs), reasoners={"r": reasoner}, embed=Embedder(), settings=SETTINGS
    )
    result = found.overall()["r"]
    assert result.excluded == {"query: trace failed": 1, "query: empty trace": 1}
    assert result.queries == 4
    assert result.metrics["hit_at_1"].mean == 1.0
    assert result.valid == pytest.approx(4 / 6)
    assert result.on_target == pytest.approx(4 / 6)
    assert found.overall()[NO_COT].queries == 6
    assert of(found, "r")["red-0"].rank is None


def test_failed_candidates_leave_the_pool_and_take_their_query_along() -> None:
    pairs = [image_pair(colour) for colour in COLOURS]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={},
        embed=Embedder(broken="'redSummarize"),
        settings=SETTINGS,
    )
    result = found.overall()[NO_COT]
    assert result.candidates_excluded == 1
    assert result.excluded == {"target: no embedding": 1}
    assert of(found, NO_COT)["blue-0"].candidates == 5


def test_vectors_that_mean_nothing_are_left_out() -> None:
    def embed(requests: list[EmbedRequest]) -> Mapping[str, np.ndarray]:
        return {
            r.key: np.full(3, np.nan) if "/red" in repr(r.content) else np.zeros(3)
            for r in requests
        }

    found = evaluate(
        sets_of_pairs([image_pair("red")]), reasoners={}, embed=embed, settings=SETTINGS
    )
    result = found.overall()[NO_COT]
    assert result.excluded == {"query: embedding not finite or zero": 1}
    assert result.metrics == {}


def test_unparsable_trace_is_embedded_as_text_and_not_valid() -> None:
    pairs = [image_pair("red"), image_pair("blue")]

    def reason(requests: list[tuple[Subject, Content]]) -> dict[str, str]:
        return {subject.key: "it is a red thing" for subject, _ in requests}

    embedder = Embedder()
    found = evaluate(
        sets_of_pairs(pairs), reasoners={"r": reason}, embed=embedder, settings=SETTINGS
    )
    assert found.overall()["r"].valid == 0.0
    assert found.overall()["r"].on_target == 0.0
    assert found.overall()["r"].queries == 2


def test_a_row_with_its_own_candidates_is_ranked_over_those() -> None:
    own = (Item(text="red"), Item(text="other"), Item(text="other"))
    pairs = [image_pair("red", candidates=own), image_pair("blue"), image_pair("pink")]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=Embedder(),
        settings=SETTINGS,
    )
    assert of(found, "r")["red-0"].candidates == 2
    assert of(found, "r")["red-0"].rank == 1
    assert of(found, "r")["blue-0"].candidates == 3


def test_distractors_are_candidates_of_their_set_alone_and_one_may_come_first() -> None:
    pairs = [image_pair(colour) for colour in ("red", "blue")] + [text_pair("red")]
    distractors = {"color": [Item(text=text) for text in ("pink", "red", "grey")]}
    embedder = Embedder()
    found = evaluate(
        sets_of_pairs(pairs, distractors),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=embedder,
        settings=SETTINGS,
    )
    assert of(found, "r")["red-0"].candidates == 4  # an equal of a target is that target
    assert of(found, "r")["red-0"].rank == 1
    assert of(found, "r")["red"].candidates == 1
    assert of(found, NO_COT)["red-0"].rank > 2
    assert any("grey" in repr(request.content) for request in embedder.asked)


def test_pairs_of_one_query_id_are_measured_once_with_all_their_targets() -> None:
    pairs = [
        *captions("ruby", "red", query_id="1"),
        *captions("pink", query_id="2"),
        image_pair("blue"),
        image_pair("blue", number=1),
    ]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=Embedder(),
        settings=SETTINGS,
    )
    ranks = {name: query.rank for name, query in of(found, "r").items()}
    assert ranks == {"ruby": 1, "pink": 1, "blue-0": 1, "blue-1": 1}
    assert found.overall()["r"].queries == 4
    # Of ruby, red, pink and blue; the query of `2` is the same picture.
    assert of(found, "r")["ruby"].chance == pytest.approx(3 / 4)


def test_ndcg_weighs_by_the_grades_of_a_query_and_a_set() -> None:
    more = {"query_id": "1"}
    pairs = [
        *captions("red", **more),
        *captions("crimson", grade=2, **more),
        image_pair("blue"),
        *captions("red", source="other", query_id="1"),
        *captions("crimson", source="other", query_id="1"),
    ]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=Embedder(),
        settings=SETTINGS,
    )
    query, _, other = (q for q in found.queries if q.variant == "r")
    assert [r.item.text for r in query.retrieved] == ["red", "blue", "crimson"]
    # 1 at rank 1 and 2 at rank 3, of at best 2 at rank 1 and 1 at rank 2.
    assert query.metrics["ndcg_at_5"] == pytest.approx((1 + 2 / 2) / (2 + 1 / np.log2(3)))
    assert query.metrics["hit_at_1"] == 1.0
    assert other.metrics["ndcg_at_5"] == pytest.approx(1.0)


def test_a_row_whose_candidates_lack_the_gold_is_left_out() -> None:
    pairs = [image_pair("red", candidates=(Item(text="blue"),))]
    found = evaluate(sets_of_pairs(pairs), reasoners={}, embed=Embedder(), settings=SETTINGS)
    assert found.overall()[NO_COT].excluded == {"target: not among the row's candidates": 1}


def test_equal_labels_count_as_right() -> None:
    pairs = [
        image_pair("red", label="r", target=Item(text="crimson")),
        image_pair("blue", label="r", target=Item(text="red")),
    ]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=Embedder(),
        settings=SETTINGS,
    )
    assert of(found, "r")["red-0"].retrieved[0].item == Item(text="red")
    assert of(found, "r")["red-0"].rank == 1


def captions(*texts: str, **more: object) -> list[Pair]:
    """Return pairs of one picture each of whose captions is right."""
    return [image_pair("red", target=Item(text=text), pair_id=text, **more) for text in texts]


@pytest.mark.parametrize("own", [False, True])
def test_every_caption_of_a_picture_is_right_for_it(own: bool) -> None:
    more = {"candidates": tuple(Item(text=text) for text in ("red", "ruby", "blue"))} if own else {}
    pairs = [*captions("ruby", "red", **more), image_pair("blue")]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(TRUE_BOX)},
        embed=Embedder(),
        settings=SETTINGS,
    )
    ranks = {name: query.rank for name, query in of(found, "r").items()}
    assert ranks == {"ruby": 1, "red": 1, "blue-0": 1}
    assert of(found, "r")["ruby"].metrics["hit_at_1"] == 1.0
    assert of(found, "r")["ruby"].chance == pytest.approx(2 / 3)


def test_means_over_sets_weigh_sets_alike_and_leave_out_those_without_a_ranked_query() -> None:
    pairs = [
        *(image_pair(colour) for colour in COLOURS[:4]),
        *(text_pair(colour) for colour in COLOURS[:2]),
        Pair(pair_id="x", source="lost", query=Item(text="gone"), target=Item(text="gone")),
    ]
    found = evaluate(
        sets_of_pairs(pairs),
        reasoners={"r": Reasoner(OTHER_BOX)},
        embed=Embedder("gone"),
        settings=SETTINGS,
    )
    by_set = found.by_set()
    hits = {name: by_set[name]["r"].metrics["hit_at_1"].mean for name in ("color", "find")}
    assert hits == {"color": 0.0, "find": 1.0}
    assert found.overall()["r"].metrics["hit_at_1"].mean == pytest.approx(2 / 6)
    assert found.over_sets()["r"]["hit_at_1"] == pytest.approx(1 / 2)
    assert found.over_sets().keys() == found.overall().keys()


def test_chance_is_the_share_of_the_pool_that_is_right(learned: Evaluation) -> None:
    assert learned.by_set()["color"]["eg_rl"].chance == pytest.approx(1 / 6)
    assert learned.overall()["eg_rl"].chance == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("chosen", "expected"), [((1,), True), ((0,), False), ((0, 1), True), ((0, 1, 2, 3), False)]
)
def test_naming_every_frame_is_not_on_target(chosen: tuple[int, ...], expected: bool) -> None:
    trace = TCoT(thinking="t", rethink="r", answer="a", cues=Cues(key_frames=chosen))
    assert on_target(trace, Cues(key_frames=(1, 2)), num_frames=4) is expected


@pytest.mark.parametrize(("side", "expected"), [(0.5, True), (0.26, True), (0.24, False)])
def test_a_box_is_on_target_from_half_overlap(side: float, expected: bool) -> None:
    cues = Cues(boxes=(OTHER_BOX, Box(0.0, 0.0, 0.5, side)))
    trace = TCoT(thinking="t", rethink="r", answer="a", cues=cues)
    assert on_target(trace, Cues(boxes=(TRUE_BOX,)), num_frames=1) is expected


def test_unknown_truth_is_no_verdict() -> None:
    assert on_target(None, Cues(keywords=("red",)), num_frames=0) is None
    assert on_target(None, Cues(boxes=(TRUE_BOX,)), num_frames=1) is False


def test_pointing_at_the_only_frame_is_no_verdict() -> None:
    trace = TCoT(thinking="t", rethink="r", answer="a", cues=Cues(key_frames=(0,)))
    assert on_target(trace, Cues(key_frames=(0,)), num_frames=1) is None


def test_what_is_saved_is_loaded(learned: Evaluation, tmp_path) -> None:
    save_evaluation(learned, tmp_path)
    assert load_evaluation(tmp_path) == replace(learned, set_results={}, dimensions=0)


def test_exclusions_survive_the_disk(tmp_path) -> None:
    found = evaluate(
        sets_of_pairs([image_pair("red")]), reasoners={}, embed=Embedder("red"), settings=SETTINGS
    )
    save_evaluation(found, tmp_path)
    assert load_evaluation(tmp_path) == found
