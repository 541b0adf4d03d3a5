"""Any split, any order of answers, any failures: each key ends once, with the same outcome."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.routing import CHUNKS_IN_FLIGHT, Router, content_cost, vector_fault
from configs.schema import MediaConfig
from data.errors import ClusterError
from data.types import Box, EmbedRequest, Kind, Picture

WIDTH = 3
MEDIA = MediaConfig(
    image_min_pixels=1024,
    image_max_pixels=8 * 1024,
    crop_min_pixels=2 * 1024,
    crop_max_pixels=4 * 1024,
)
SIZES = {"a": (64, 64), "wide": (1024, 1024)}


def requests_of(*texts: str) -> list[EmbedRequest]:
    """Return one request per text; keys tell the place."""
    return [EmbedRequest(key=f"k{i}", content=(text,)) for i, text in enumerate(texts)]


def router_of(requests, *, actors=("a-0",), max_items=8) -> Router:
    costs = {one.content: float(len(one.content[0])) for one in requests}
    return Router(requests, costs, actors=actors, max_items=max_items, width=WIDTH)


def vector_of(request: EmbedRequest) -> np.ndarray:
    """Return a vector that tells the content."""
    return np.array([len(request.content[0]), *map(ord, request.content[0][:1]), 1], np.float32)


def sent_by(router: Router) -> list[tuple[str, object]]:
    """Return everything that the router wants sent now."""
    orders = []
    while (order := router.next()) is not None:
        orders.append(order)
    return orders


def answer(router, name, chunk, *, broken=()) -> None:
    """Answer a chunk: vectors for all but the broken contents."""
    good = {r.key: vector_of(r) for r in chunk.requests if r.content[0] not in broken}
    bad = {r.key: f"{name} cannot" for r in chunk.requests if r.content[0] in broken}
    router.receive(name, chunk, good, bad)


def test_the_cost_of_a_content_by_hand() -> None:
    content = (
        "x" * 40,
        Picture("a", Kind.IMAGE),
        Picture("wide", Kind.IMAGE),
        Picture("a", Kind.IMAGE, Box(0.0, 0.0, 0.5, 0.5)),
        Picture("wide", Kind.IMAGE, Box(0.0, 0.0, 1.0, 0.5)),
        Picture("missing", Kind.IMAGE),
    )
    # 40 characters; 64 x 64; cut to the image limit; raised to and cut to the crop's limits; least.
    assert content_cost(content, SIZES, MEDIA) == 10 + 4 + 8 + 2 + 4 + 1
    assert content_cost((), SIZES, MEDIA) == 0


def test_vectors_of_another_width_or_without_numbers_are_faults() -> None:
    assert vector_fault(np.ones(3), 3) is None
    assert "width 3, found shape (2,)" in vector_fault(np.ones(2), 3)
    assert "NaN" in vector_fault(np.array([1, np.nan, 0]), 3)
    assert "infinity" in vector_fault(np.array([1, np.inf, 0]), 3)


def test_no_requests_need_no_actor() -> None:
    router = router_of([])
    assert router.next() is None
    assert router.results() == ({}, {})


def test_like_costs_travel_together_costly_ones_first() -> None:
    texts = ["b" * 2, "c" * 50, "d" * 2, "e" * 50, "f" * 50, "g" * 2]
    router = router_of(requests_of(*texts), actors=("a-0", "a-1"))
    chunks = [chunk for _, chunk in sent_by(router)]
    assert [[len(r.content[0]) for r in chunk.requests] for chunk in chunks] == [
        [50],
        [50],
        [50],
        [2, 2, 2],
    ]


def test_few_requests_for_a_single_actor_are_one_call() -> None:
    ((_, chunk),) = sent_by(router_of(requests_of("a" * 9, "b" * 5, "c")))
    assert len(chunk.requests) == 3


def test_the_actor_with_the_least_outstanding_cost_gets_the_next_chunk() -> None:
    texts = ["a" * 90, "b" * 40, "c" * 40, "d" * 40]
    orders = sent_by(router_of(requests_of(*texts), actors=("a-0", "a-1"), max_items=1))
    assert [(name, chunk.cost) for name, chunk in orders] == [
        ("a-0", 90),
        ("a-1", 40),
        ("a-1", 40),
        ("a-1", 40),
    ]


def test_an_actor_holds_no_more_than_its_share() -> None:
    router = router_of(requests_of(*(f"{i:03d}" for i in range(100))), max_items=5)
    orders = sent_by(router)
    assert len(orders) == CHUNKS_IN_FLIGHT
    assert router.in_flight_max == 5 * CHUNKS_IN_FLIGHT
    answer(router, *orders[0])
    assert len(sent_by(router)) == 1


def test_equal_contents_are_sent_once_and_answered_under_every_key() -> None:
    requests = requests_of("x", "y", "x")
    router = router_of(requests)
    orders = sent_by(router)
    assert sorted(r.content[0] for _, chunk in orders for r in chunk.requests) == ["x", "y"]
    for order in orders:
        answer(router, *order)
    vectors, failed = router.results()
    assert list(vectors) == ["k0", "k1", "k2"]
    assert failed == {}
    assert vectors["k0"].tolist() == vectors["k2"].tolist()


def test_a_failed_item_is_tried_once_more_on_another_actor() -> None:
    router = router_of(requests_of("x"), actors=("a-0", "a-1"))
    ((first, chunk),) = sent_by(router)
    answer(router, first, chunk, broken={"x"})
    ((second, again),) = sent_by(router)
    assert (first, second) == ("a-0", "a-1")
    answer(router, second, again, broken={"x"})
    assert sent_by(router) == []
    assert router.results() == ({}, {"k0": "a-1 cannot"})
    assert router.retried == 1


def test_a_single_actor_gets_a_failed_item_again() -> None:
    router = router_of(requests_of("x", "y"))
    for order in sent_by(router):
        answer(router, *order, broken={"y"})
    for order in sent_by(router):
        answer(router, *order)
    vectors, failed = router.results()
    assert set(vectors) == {"k0", "k1"}
    assert failed == {}


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ({}, "neither a vector nor a reason"),
        ({"k0": np.array([1, np.nan, 0])}, "NaN"),
        ({"k0": np.ones(WIDTH + 1)}, "found shape (4,)"),
    ],
)
def test_an_unusable_answer_is_a_failure_with_a_reason(vectors, reason) -> None:
    router = router_of(requests_of("x"))
    for _ in range(2):
        ((name, chunk),) = sent_by(router)
        router.receive(name, chunk, vectors, {})
    assert reason in router.results()[1]["k0"]


def test_what_a_lost_actor_held_goes_to_the_others() -> None:
    router = router_of(requests_of("xx", "y"), actors=("a-0", "a-1"), max_items=1)
    orders = sent_by(router)
    assert [name for name, _ in orders] == ["a-0", "a-1"]
    router.lose("a-0", "gone")
    answer(router, *orders[1])
    ((name, chunk),) = sent_by(router)
    assert name == "a-1"
    answer(router, name, chunk)
    assert list(router.results()[0]) == ["k0", "k1"]


def test_a_pool_without_actors_left_says_why_and_what_is_missing() -> None:
    router = router_of(requests_of("x", "yy"), actors=("a-0", "a-1"), max_items=1)
    sent_by(router)
    router.lose("a-0", "out of memory")
    with pytest.raises(ClusterError) as caught:
        router.lose("a-1", "no answer")
    assert "2 of 2 contents" in str(caught.value)
    assert "a-0: out of memory; a-1: no answer" in str(caught.value)


@given(st.data())
def test_every_key_ends_once_whatever_is_answered_in_whatever_order(data) -> None:
    texts = data.draw(st.lists(st.text("abc", min_size=1, max_size=3), max_size=20))
    actors = [f"a-{i}" for i in range(data.draw(st.integers(1, 3)))]
    max_items = data.draw(st.integers(1, 5))
    requests = requests_of(*texts)
    router = router_of(requests, actors=actors, max_items=max_items)
    alive = set(actors)
    out: list[tuple[str, object]] = []
    failures: Counter[str] = Counter()
    while True:
        out += sent_by(router)
        held = [r.content for _, chunk in out for r in chunk.requests]
        assert len(held) == len(set(held))
        for name in alive:
            chunks = [chunk for who, chunk in out if who == name]
            assert len(chunks) <= CHUNKS_IN_FLIGHT
            assert all(len(chunk.requests) <= max_items for chunk in chunks)
        if not out:
            break
        name, chunk = out.pop(data.draw(st.integers(0, len(out) - 1)))
        assert name in alive
        if data.draw(st.integers(0, 9)) == 0:
            alive.remove(name)
            out = [order for order in out if order[0] != name]
            if not alive:
                with pytest.raises(ClusterError):
                    router.lose(name, "gone")
                return
            router.lose(name, "gone")
            continue
        vectors, failed = {}, {}
        for request in chunk.requests:
            outcome = data.draw(st.sampled_from(["vector", "reason", "nan", "narrow", "nothing"]))
            if outcome == "vector":
                vectors[request.key] = vector_of(request)
                continue
            failures[request.content[0]] += 1
            if outcome == "reason":
                failed[request.key] = "cannot"
            elif outcome != "nothing":
                vectors[request.key] = np.full(3, np.nan) if outcome == "nan" else np.ones(2)
        router.receive(name, chunk, vectors, failed)
    vectors, failed = router.results()
    assert not vectors.keys() & failed.keys()
    assert vectors.keys() | failed.keys() == {one.key for one in requests}
    for request in requests:
        assert (request.key in failed) == (failures[request.content[0]] == 2)
        if request.key in vectors:
            assert vectors[request.key].tolist() == vector_of(request).tolist()


@given(st.data())
def test_the_number_of_actors_and_their_haste_change_nothing(data) -> None:
    texts = data.draw(st.lists(st.text("abcd", min_size=1, max_size=3), max_size=20))
    requests = requests_of(*texts)
    broken = {text for text in texts if text.startswith("d")}

    def run(actors: int, max_items: int) -> tuple[list, list]:
        names = [f"a-{i}" for i in range(actors)]
        router = router_of(requests, actors=names, max_items=max_items)
        out = sent_by(router)
        while out:
            answer(router, *out.pop(data.draw(st.integers(0, len(out) - 1))), broken=broken)
            out += sent_by(router)
        vectors, failed = router.results()
        return [(key, vector.tolist()) for key, vector in vectors.items()], list(failed)

    alone = run(1, len(texts) + 1)
    assert run(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))) == alone
