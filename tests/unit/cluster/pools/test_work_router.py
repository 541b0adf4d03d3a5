"""Any split, any order of answers, any deaths: each unit is done once or given up with reason."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.pools.work_router import (
    CHUNKS_IN_FLIGHT,
    Chunk,
    Router,
    Unit,
    plan_chunks,
)


def units_of(*texts: str) -> list[Unit]:
    """Return a unit of one request per text, as costly as it is long."""
    return [Unit((text,), float(len(text))) for text in texts]


def router_of(units, *, actors=1, max_items=8) -> Router:
    router = Router()
    router.add(plan_chunks(units, "submission", actors=actors, max_items=max_items))
    return router


def sent_by(router: Router, *actors: str) -> list[tuple[str, Chunk]]:
    """Return everything that the router wants sent now."""
    orders = []
    while (order := router.next(actors)) is not None:
        orders.append(order)
    return orders


def test_like_costs_travel_together_costly_ones_first() -> None:
    texts = ["b" * 2, "c" * 50, "d" * 2, "e" * 50, "f" * 50, "g" * 2]
    chunks = plan_chunks(units_of(*texts), None, actors=4, max_items=3)
    assert [[len(text) for text in chunk.requests] for chunk in chunks] == [
        [50],
        [50],
        [50],
        [2, 2, 2],
    ]


def test_chunks_are_half_as_large_as_they_may_be_unless_actors_would_get_none() -> None:
    def sizes(count: int) -> list[int]:
        chunks = plan_chunks(units_of(*(["x"] * count)), None, actors=3, max_items=16)
        return [len(chunk.requests) for chunk in chunks]

    assert sizes(6) == [2, 2, 2]
    assert sizes(40) == [8] * 5
    assert sizes(240) == [16] * 15


def test_few_requests_for_a_single_actor_are_one_call() -> None:
    (chunk,) = plan_chunks(units_of("a" * 9, "b" * 5, "c"), None, actors=1, max_items=8)
    assert len(chunk.requests) == 3


def test_units_are_not_split_and_fill_chunks_up_to_their_limit() -> None:
    units = [Unit(tuple(range(size)), 1.0) for size in (3, 3, 3, 9)]
    chunks = plan_chunks(units, None, actors=1, max_items=7)
    assert [len(chunk.requests) for chunk in chunks] == [6, 3, 9]


def test_no_work_needs_no_actor() -> None:
    assert plan_chunks([], None, actors=3, max_items=2) == []
    assert Router().next(["a-0"]) is None


def test_the_actor_with_the_least_outstanding_cost_gets_the_next_chunk() -> None:
    texts = ["a" * 90, "b" * 40, "c" * 40]
    orders = sent_by(router_of(units_of(*texts), actors=2, max_items=1), "a-0", "a-1")
    assert [(name, chunk.cost) for name, chunk in orders] == [
        ("a-0", 90),
        ("a-1", 40),
        ("a-1", 40),
    ]


def test_an_actor_holds_no_more_than_its_share() -> None:
    router = router_of(units_of(*(f"{i:03d}" for i in range(100))), max_items=5)
    orders = sent_by(router, "a-0")
    assert len(orders) == len(router.held_by("a-0")) == CHUNKS_IN_FLIGHT
    router.done(*orders[0])
    assert len(sent_by(router, "a-0")) == 1


def test_what_is_urgent_waits_neither_for_room_nor_for_others() -> None:
    router = router_of(units_of(*(f"{i:03d}" for i in range(100))), actors=2, max_items=5)
    full = sent_by(router, "a-0", "a-1")
    assert len(full) == 2 * CHUNKS_IN_FLIGHT
    router.add(plan_chunks(units_of("x", "y"), "probe", actors=2, max_items=5, urgent=True))
    assert [chunk.submission for _, chunk in sent_by(router, "a-0", "a-1")] == ["probe", "probe"]


def test_what_failed_on_an_actor_goes_to_another_one_unless_there_is_none() -> None:
    for actors, expected in ((("a-0", "a-1"), "a-1"), (("a-0",), "a-0")):
        router = Router()
        router.add(plan_chunks(units_of("x"), None, actors=2, max_items=1, failed_on="a-0"))
        ((name, _),) = sent_by(router, *actors)
        assert name == expected


def test_what_a_lost_actor_held_goes_to_the_others() -> None:
    router = router_of(units_of("xx", "y"), actors=2, max_items=1)
    orders = sent_by(router, "a-0", "a-1")
    assert [name for name, _ in orders] == ["a-0", "a-1"]
    assert router.lose("a-0") == []
    ((name, chunk),) = sent_by(router, "a-1")
    assert (name, chunk.requests, chunk.deaths) == ("a-1", ("xx",), 1)


def test_a_request_that_is_alone_with_two_actors_it_kills_is_given_up() -> None:
    router = router_of(units_of("poison"))
    sent_by(router, "a-0")
    assert router.lose("a-0") == []
    sent_by(router, "a-1")
    (given_up,) = router.lose("a-1")
    assert (given_up.requests, given_up.deaths) == (("poison",), 2)
    assert sent_by(router, "a-2") == []


def test_work_that_is_not_wanted_any_more_is_not_sent() -> None:
    router = router_of(units_of("x"))
    router.add(plan_chunks(units_of("y"), "other", actors=1, max_items=1))
    router.forget("submission")
    assert [chunk.submission for _, chunk in sent_by(router, "a-0")] == ["other"]


@given(st.data())
def test_every_unit_ends_once_and_only_poison_is_given_up(data) -> None:
    texts = [str(index) for index in range(data.draw(st.integers(0, 20)))]
    poison = set(data.draw(st.lists(st.sampled_from(texts), max_size=2)) if texts else [])
    actors = [f"a-{i}" for i in range(data.draw(st.integers(1, 3)))]
    max_items = data.draw(st.integers(1, 5))
    router = router_of(units_of(*texts), actors=len(actors), max_items=max_items)
    done: list[str] = []
    given_up: list[str] = []
    born = len(actors)
    strikes = data.draw(st.integers(0, 1))
    """Deaths that nothing the actor held has caused; two of them look like poison."""
    while orders := sent_by(router, *actors) or router.waiting or any(map(router.held_by, actors)):
        del orders
        for name in actors:
            held = router.held_by(name)
            assert len(held) <= CHUNKS_IN_FLIGHT
            assert all(len(chunk.requests) <= max_items for chunk in held)
            assert len(held) == 1 or not any(chunk.alone for chunk in held)
        busy = [name for name in actors if router.held_by(name)]
        name = data.draw(st.sampled_from(busy))
        chunk = data.draw(st.sampled_from(router.held_by(name)))
        struck = strikes > 0 and not chunk.alone and data.draw(st.booleans())
        if poison & set(chunk.requests) or struck:
            strikes -= struck
            given_up += [text for one in router.lose(name) for text in one.requests]
            actors[actors.index(name)] = f"a-{born}"
            born += 1
        else:
            router.done(name, chunk)
            done += chunk.requests
    assert sorted(done + given_up) == sorted(texts)
    assert set(given_up) <= poison
    assert poison == set(given_up)
