"""Published scores beside ours: the same sets in every mean."""

import pytest

from evaluation.scores.published import Published, score_table

THEIRS = Published(
    model="Theirs-2B",
    source="a paper",
    settings="8 frames",
    scores={"a": 40.0, "b": 60.0, "elsewhere": 99.0},
)
PARTLY = Published(model="Partly", source="a page", settings="64 frames", scores={"a": 10.0})


@pytest.fixture
def table(make_result):
    results = [
        make_result(
            "a", "abc", "bac", groups=("image", "image/vqa"), benchmark_orders=("abc", "abc")
        ),
        make_result("b", "abc", "abc", num_data=3, groups=("image",)),
    ]
    return score_table(results, [THEIRS, PARTLY])


def test_each_set_stands_beside_what_is_published_of_it(table) -> None:
    first, second = table.rows[:2]
    assert (first.name, first.metric, first.queries, first.num_data) == ("a", "hit@1", 2, 2)
    assert (first.score, first.benchmark_order, first.published) == (50, 100, (40, 10))
    assert (second.name, second.queries, second.num_data) == ("b", 2, 3)
    assert (second.score, second.benchmark_order, second.published) == (100, 100, (60, None))


def test_means_are_of_the_same_sets(table) -> None:
    means = {row.name: row for row in table.rows[2:]}
    assert list(means) == ["all", "image", "image/vqa"]
    assert (means["all"].sets, means["all"].queries, means["all"].num_data) == (2, 4, 5)
    assert (means["all"].score, means["all"].benchmark_order) == (75, 100)
    assert means["all"].published == means["image"].published == (50, None)
    assert (means["image/vqa"].score, means["image/vqa"].published) == (50, (40, 10))
    assert {row.metric for row in means.values()} == {""}


def test_source_and_settings_go_with_the_table(table) -> None:
    assert [(p.source, p.settings) for p in table.published] == [
        ("a paper", "8 frames"),
        ("a page", "64 frames"),
    ]


def test_a_model_that_has_none_of_the_sets_is_unknown(make_result) -> None:
    [row, mean] = score_table([make_result("c", "abc")], [THEIRS]).rows
    assert row.published == mean.published == (None,)
