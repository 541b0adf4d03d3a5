"""The controls: another item's trace, and the mean of samples, with the toy engines."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.stores.traces import Subject, TraceCost
from data.tcot import render
from data.types import Box, Content, Cues, EmbedRequest, Item, Kind, Pair, Picture, Side, TCoT
from evaluation.costs import Costs, Speed, TraceFigures
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import Evaluation, Settings, evaluate
from evaluation.sets import End, ends_of, sets_of_pairs
from evaluation.variants import (
    DRAWN,
    OTHER_TRACE,
    SAMPLES,
    compared_variants,
    other_traces,
    variants_of,
)
from tests.unit.evaluation.test_runner import (
    OTHER_BOX,
    TRUE_BOX,
    Embedder,
    Reasoner,
    image_pair,
    of,
)

SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=200, seed=0)
NUMBERS = range(12)


def number_pair(number: int, **more: object) -> Pair:
    """Return a pair whose picture says by its address what its caption is."""
    return Pair(
        **{
            "pair_id": str(number),
            "source": "numbers",
            "query": Item(text="which", kind=Kind.IMAGE, uris=(f"/p/{number}",)),
            "target": Item(text=f"number {number}"),
            **more,
        }
    )


def named(content: Content) -> int:
    """Return the number that a content is of, by its picture or its text."""
    picture = next((part for part in content if isinstance(part, Picture)), None)
    text = picture.uri if picture else str(content[-1]).partition("number")[2]
    return int("".join(c for c in text[:8] if c.isdigit()))


def tell(asked: Sequence[tuple[Subject, Content]]) -> dict[str, str]:
    """Return traces that say the number of their item, and are else as long as each other."""
    return {subject.key: f"it is <{named(content):02}>" for subject, content in asked}


def read_trace(requests: Sequence[EmbedRequest]) -> dict[str, np.ndarray]:
    """Return vectors that follow from the trace alone, else from nothing."""
    vectors = {}
    for request in requests:
        text = "".join(part for part in request.content if isinstance(part, str))
        number = text.partition("<")[2][:2]
        vectors[request.key] = np.eye(len(NUMBERS) + 1)[int(number) if number else -1]
    return vectors


def measured(pairs: Sequence[Pair], *controls: str, **more: object) -> Evaluation:
    engines = {"reasoners": {"r": tell}, "embed": read_trace, **more}
    settings = replace(SETTINGS, controls=controls)
    return evaluate(sets_of_pairs(pairs), settings=settings, **engines)


def hits(evaluation: Evaluation) -> dict[str, float]:
    overall = evaluation.overall().items()
    return {name: result.metrics["hit_at_1"].mean for name, result in overall if result.metrics}


def drawn(pairs: Sequence[Pair], traces: Mapping[Item, str] | None = None) -> dict[End, str]:
    """Return the other trace of each end; by default a trace is its item's text."""
    sets = sets_of_pairs(pairs)
    ends = {end: data_set.name for data_set in sets for end in ends_of(data_set)}
    own = {end: (traces or {}).get(end.item, repr(end.item)) for end in ends}
    return other_traces(sets, ends, own)


def test_controls_come_after_the_variants_of_all_reasoners() -> None:
    names = [v.name for v in variants_of(["a", "b"], [OTHER_TRACE, SAMPLES])]
    assert names[5:] == ["a_other", "a_samples", "b_other", "b_samples"]
    assert names[:5] == [v.name for v in variants_of(["a", "b"])]


def test_what_is_compared() -> None:
    assert compared_variants(variants_of(["a", "b"], [OTHER_TRACE, SAMPLES])) == [
        ("b", "a"),
        *(("a", "no_cot"), ("b", "no_cot")),
        *(("a", "a_text"), ("b", "b_text")),
        *(("a", "a_other"), ("b", "b_other")),
        *(("a_samples", "a"), ("b_samples", "b")),
    ]
    assert compared_variants(variants_of([])) == []


def test_where_only_the_words_of_the_item_help_other_traces_are_at_chance() -> None:
    evaluation = measured([number_pair(number) for number in NUMBERS], OTHER_TRACE)
    found = hits(evaluation)
    assert found.pop("r_other") <= 2 * evaluation.overall()["r_other"].chance
    assert found == {"no_cot": 0.0, "r_text": 1.0, "r": 1.0}
    [difference] = [c.difference for c in evaluation.differences if c.second == "r_other"]
    assert difference.low > 0.5
    assert difference.queries == len(NUMBERS)
    assert difference.p_value < 0.05
    query = of(evaluation, "r_other")["3"]
    assert query.trace.startswith("it is <")
    assert "<03>" not in query.trace


def test_where_traces_say_the_same_of_all_items_other_traces_change_nothing() -> None:
    def same(asked: Sequence[tuple[Subject, Content]]) -> dict[str, str]:
        return {subject.key: "a thing" for subject, _ in asked}

    pairs = [image_pair(colour) for colour in ("red", "blue", "green")]
    evaluation = measured(pairs, OTHER_TRACE, reasoners={"r": same}, embed=Embedder())
    own, other = of(evaluation, "r"), of(evaluation, "r_other")
    assert {k: q.rank for k, q in own.items()} == {k: q.rank for k, q in other.items()}


def test_another_trace_points_at_the_items_own_picture() -> None:
    class TwoBoxes(Reasoner):
        """Boxes the true place of the red picture alone."""

        def _answers(self, requests):
            for subject, content in requests:
                self.box = TRUE_BOX if "/red" in repr(content) else OTHER_BOX
                yield from super()._answers([(subject, content)])

    embedder = Embedder()
    pairs = [image_pair("red"), image_pair("blue")]
    reasoners = {"r": TwoBoxes(TRUE_BOX)}
    evaluation = measured(pairs, OTHER_TRACE, reasoners=reasoners, embed=embedder)
    found = {name: query.on_target for name, query in of(evaluation, "r_other").items()}
    assert found == {"red-0": False, "blue-0": True}
    crops = {part for r in embedder.asked for part in r.content if isinstance(part, Picture)}
    boxed: dict[Box, set[str]] = {}
    for crop in crops:
        if crop.box:
            boxed.setdefault(crop.box, set()).add(crop.uri)
    assert boxed == {box: {"/p/0/red", "/p/0/blue"} for box in (TRUE_BOX, OTHER_BOX)}


def test_a_key_frame_of_another_trace_counts_where_the_item_shows_it() -> None:
    def last_frame(asked: Sequence[tuple[Subject, Content]]) -> dict[str, str]:
        traces = {}
        for subject, _ in asked:
            frames = (len(subject.item.uris) - 1,) if subject.item.uris else ()
            cues = Cues(keywords=("it",), key_frames=frames)
            trace = TCoT(thinking="it", rethink="it", answer="it", cues=cues)
            traces[subject.key] = render(trace, kind=subject.item.kind)
        return traces

    short, long = (
        Item(text="", kind=Kind.VIDEO, uris=tuple(f"/{name}/{i}" for i in range(count)))
        for name, count in (("short", 2), ("long", 4))
    )
    pairs = [number_pair(number, query=item) for number, item in enumerate((short, long))]
    embedder = Embedder()
    measured(pairs, OTHER_TRACE, reasoners={"r": last_frame}, embed=embedder)
    shown = [
        tuple(part.uri for part in request.content if isinstance(part, Picture))
        for request in embedder.asked
        if '"key_frames": [4]' in repr(request.content)
    ]
    # The long video's trace beside its own frames, as text alone and with the last frame again;
    # beside the short video, which shows no fourth frame, nothing is added.
    assert sorted(shown) == [long.uris, (*long.uris, long.uris[3]), short.uris]


def test_other_traces_are_of_the_same_set_side_and_kind() -> None:
    pairs = [
        *(number_pair(number) for number in range(20)),
        *(number_pair(number, source="more") for number in range(20, 40)),
        *(number_pair(number, query=Item(text=f"find {number}")) for number in range(40, 60)),
    ]
    kinds = {
        repr(end.item): (source.name, end.side, end.item.kind)
        for source in sets_of_pairs(pairs)
        for end in ends_of(source)
    }
    others = drawn(pairs)
    assert len(others) == 120
    for end, other in others.items():
        assert kinds[other] == kinds[repr(end.item)]
        assert other != repr(end.item)


def test_no_other_trace_is_of_an_equal_item() -> None:
    # Labels make targets equal; two of the pictures are one, with two instructions.
    pairs = [
        number_pair(number, label=f"label {number % 2}", target=Item(text=f"{number}"))
        for number in range(10)
    ]
    again = replace(pairs[0].query, instruction="Look.")
    pairs.append(replace(pairs[0], pair_id="again", query=again))
    by_item = {}
    for pair in pairs:
        by_item[repr(pair.query)] = by_item[repr(pair.target)] = pair.label
    others = drawn(pairs)
    assert len(others) == 21
    assert all(by_item[other] != by_item[repr(end.item)] for end, other in others.items())
    alone = drawn([replace(pair, label="") for pair in (pairs[0], pairs[-1])])
    assert alone == {}  # one picture, and one target of both


def test_other_traces_do_not_depend_on_the_order() -> None:
    pairs = [number_pair(number) for number in range(30)]
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert drawn(pairs) == drawn(shuffled)


def test_of_the_drawn_traces_the_nearest_length_is_taken() -> None:
    pairs = [number_pair(number) for number in range(DRAWN + 1)]  # all others are drawn
    lengths = {
        pair.query: "x" * (10 + pair.query.uris[0].count("0") + 3 * n)
        for n, pair in enumerate(pairs)
    }
    others = drawn(pairs, lengths)
    own = sorted(len(trace) for trace in lengths.values())
    for pair in pairs:
        length = len(lengths[pair.query])
        nearest = min(abs(length - other) for other in own if other != length)
        assert abs(len(others[End(pair.query, Side.QUERY)]) - length) == nearest


def test_an_item_without_a_trace_of_its_own_or_of_others_is_left_out() -> None:
    def fails(asked: Sequence[tuple[Subject, Content]]) -> dict[str, str]:
        told = tell(asked)
        return {
            key: "  " if "<05>" in text else text
            for key, text in told.items()
            if "<04>" not in text
        }

    pairs = [number_pair(number) for number in NUMBERS]
    lonely = number_pair(0, pair_id="lonely", source="lonely", query=Item(text="number 7"))
    evaluation = measured([*pairs, lonely], OTHER_TRACE, reasoners={"r": fails})
    assert evaluation.overall()["r_other"].excluded == {
        "query: trace failed": 1,
        "query: empty trace": 1,
        "query: no other trace": 1,
    }
    assert evaluation.by_set()["numbers"]["r_other"].queries == 10


def test_the_mean_of_samples_is_better_than_each_where_errors_cancel_out() -> None:
    rng = np.random.default_rng(0)

    def sampled(asked: Sequence[tuple[Subject, Content]]) -> list[dict[str, str]]:
        return [{key: f"{text} {seed}" for key, text in tell(asked).items()} for seed in range(16)]

    def noisy(requests: Sequence[EmbedRequest]) -> dict[str, np.ndarray]:
        exact = read_trace(requests)
        return {key: v + rng.normal(scale=0.7, size=v.shape) for key, v in exact.items()}

    pairs = [number_pair(number) for number in NUMBERS]
    evaluation = measured(pairs, SAMPLES, samplers={"r": sampled}, embed=noisy)
    found = hits(evaluation)
    assert found["r_samples"] == 1.0
    assert found["r"] < 0.8
    query = of(evaluation, "r_samples")["3"]
    assert (query.trace, query.valid, query.on_target) == ("", None, None)
    assert evaluation.differences[-1].first == "r_samples"


def test_the_mean_is_of_unit_vectors() -> None:
    lengths = {"a": [9.0, 0.0], "b": [0.0, 1.0]}

    def sampled(asked: Sequence[tuple[Subject, Content]]) -> list[dict[str, str]]:
        return [{subject.key: trace for subject, _ in asked} for trace in lengths]

    def embed(requests: Sequence[EmbedRequest]) -> dict[str, np.ndarray]:
        vectors = {}
        for request in requests:
            text = "".join(part for part in request.content if isinstance(part, str))
            trace = text.removesuffix("Summarize the above content in one word:")[-1:]
            vectors[request.key] = np.array(lengths.get(trace, [1.0, -1.0]))
        return vectors

    pairs = [number_pair(1), number_pair(2)]
    evaluation = measured(
        pairs, SAMPLES, reasoners={"r": lambda asked: {}}, samplers={"r": sampled}, embed=embed
    )
    # Both lie at 45 degrees, whatever the length of each sample, so they tie.
    assert [q.rank for q in of(evaluation, "r_samples").values()] == [2, 2]


def test_an_item_with_a_failed_sample_is_left_out() -> None:
    def sampled(asked: Sequence[tuple[Subject, Content]]) -> list[dict[str, str]]:
        told = tell(asked)
        return [told, {key: text for key, text in told.items() if "<03>" not in text}]

    evaluation = measured(
        [number_pair(number) for number in NUMBERS], SAMPLES, samplers={"r": sampled}
    )
    assert evaluation.overall()["r_samples"].excluded == {"query: trace failed": 1}
    assert hits(evaluation)["r_samples"] == 1.0


def test_samples_are_asked_for_only_if_they_are_measured() -> None:
    def never(asked: Sequence[tuple[Subject, Content]]) -> list[dict[str, str]]:
        raise AssertionError("asked")

    evaluation = measured([number_pair(1)], samplers={"r": never})
    assert list(evaluation.overall()) == ["no_cot", "r_text", "r"]


def test_figures_of_traces_count_both_sides_and_costs_come_by_key(tmp_path) -> None:
    asked: dict[str, list[str]] = {}
    reasoner, embedder = Reasoner(TRUE_BOX, failing="/red", blank="/blue"), Embedder()

    def cost(keys: Sequence[str]) -> TraceCost:
        asked["traces"] = list(keys)
        return TraceCost(tokens=12.5, wall_ms=3.0)

    def per_second(keys: Sequence[str]) -> float:
        asked["contents"] = list(keys)
        return 400.0

    def half_valid(requests: list[tuple[Subject, Content]]) -> dict[str, str]:
        traces = reasoner(requests)
        targets = {s.key for s, _ in requests if s.side is Side.TARGET}
        return {key: "no" if key in targets else text for key, text in traces.items()}

    pairs = [image_pair(colour) for colour in ("red", "blue", "green", "black")]
    evaluation = measured(
        pairs,
        reasoners={"r": half_valid},
        embed=embedder,
        costs=Costs(traces={"r": cost}, contents_per_second=per_second),
    )
    assert evaluation.reasoning == (
        TraceFigures(reasoner="r", items=8, coverage=6 / 8, invalid=4 / 6, tokens=12.5),
    )
    assert evaluation.speed == Speed(wall_ms={"r": 3.0}, contents_per_second=400.0)
    assert asked["traces"] == [subject.key for subject, _ in reasoner.asked]
    assert asked["contents"] == [request.key for request in embedder.asked]
    save_evaluation(evaluation, tmp_path)
    assert load_evaluation(tmp_path) == replace(evaluation, set_results={}, dimensions=0)


def test_nobody_knows_the_costs_of_toys() -> None:
    evaluation = measured(
        [image_pair("red")], reasoners={"r": Reasoner(TRUE_BOX)}, embed=Embedder()
    )
    [figures] = evaluation.reasoning
    assert (figures.coverage, figures.invalid, figures.tokens) == (1.0, 0.0, None)
    assert evaluation.speed == Speed()


def test_what_could_not_be_compared_has_no_line() -> None:
    evaluation = measured([number_pair(1), number_pair(2)], reasoners={"r": lambda asked: {}})
    assert evaluation.differences == ()
    [figures] = evaluation.reasoning
    assert (figures.coverage, figures.invalid) == (0.0, None)
