"""What is right for what: against slow loops over the known pairs, and by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.relevance import Relevance
from data.types import Item, Pair
from tests.builders import make_pair


def known(*rows: tuple[str, ...]) -> list[Pair]:
    """Return pairs of (query, target, label, data set), the last two left out where empty."""
    return [
        make_pair(
            str(number),
            query=Item(text=query),
            target=Item(text=target),
            label=(*more, "", "")[0],
            source=(*more, "", "")[1] or "set",
        )
        for number, (query, target, *more) in enumerate(rows)
    ]


def right(pairs: list[Pair], query: str, target: str) -> bool:
    one, other = Item(text=query).key(), Item(text=target).key()
    return bool(Relevance(pairs).right([one], [other])[0, 0])


def slow(pairs: list[Pair]) -> np.ndarray:
    """Return whose targets are right for whose queries, rule by rule."""

    def equal(target: Item, other: Item) -> bool:
        names = [
            {(one.source, one.label) for one in pairs if one.label and one.target == item}
            for item in (target, other)
        ]
        return target == other or bool(names[0] & names[1])

    return np.array(
        [
            [
                any(one.query == row.query and equal(one.target, column.target) for one in pairs)
                for column in pairs
            ]
            for row in pairs
        ]
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from("XYZW"),
            st.sampled_from("abcde"),
            st.sampled_from(["", "", "1", "2"]),
            st.sampled_from(["s", "r"]),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_it_is_the_rule_in_slow_loops(rows):
    pairs = known(*rows)
    assert (Relevance(pairs).right_among(pairs) == slow(pairs)).all()


def test_every_gold_of_a_query_is_right_for_it():
    pairs = known(("X", "a"), ("X", "b"), ("Y", "c"))
    assert right(pairs, "X", "a")
    assert right(pairs, "X", "b")
    assert not right(pairs, "X", "c")


def test_what_is_right_through_one_known_pair_is_right_and_no_further():
    pairs = known(("X", "a dog"), ("X", "a puppy"), ("Y", "a puppy"))
    assert right(pairs, "X", "a puppy")
    assert not right(pairs, "Y", "a dog")
    assert Relevance(pairs).right_among([pairs[0], pairs[2]]).tolist() == [
        [True, True],
        [False, True],
    ]
    assert Relevance(pairs).twins([pairs[0], pairs[2]]).all()


def test_an_equal_target_counts_beside_a_label_and_a_label_beside_an_equal_target():
    pairs = known(("X", "a", "1"), ("Y", "a"), ("Z", "b", "1"))
    assert right(pairs, "X", "a")
    assert right(pairs, "Y", "a")
    assert right(pairs, "X", "b")
    assert right(pairs, "Y", "b")


def test_a_label_belongs_to_its_data_set():
    pairs = known(("X", "a", "3", "one"), ("Y", "b", "3", "other"), ("Z", "c", "3", "one"))
    assert not right(pairs, "X", "b")
    assert right(pairs, "X", "c")


def test_a_query_that_nobody_knows_has_nothing_right():
    pairs = known(("X", "a"))
    assert not right(pairs, "W", "a")
    assert Relevance([]).right(["W"], ["a"]).tolist() == [[False]]
    assert Relevance(pairs).right([], ["a"]).shape == (0, 1)
    assert Relevance(pairs).right(["W"], []).shape == (1, 0)


def test_a_large_set_is_asked_for_a_step_without_a_look_at_all_of_it():
    size = 20_000
    pairs = known(*((f"q{n // 5}", f"t{n}", "even" if n % 1000 == 0 else "") for n in range(size)))
    relevance = Relevance(iter(pairs))
    found = relevance.right_among(pairs[:1000])
    assert (found.sum(axis=1) == 5).all()
    # Those with the label: one of each thousand.
    assert relevance.right_among(pairs[::1000]).all()
