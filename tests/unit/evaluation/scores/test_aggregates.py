"""Means over sets: the published tables come out of the published scores of their sets."""

import json
from pathlib import Path

import pytest

from data.errors import DataError
from evaluation.scores.aggregates import ABILITIES, ALL, Aggregate, aggregate

PUBLISHED = json.loads((Path(__file__).parent / "published_scores.json").read_text("utf-8"))
"""Scores of sets and their means, in percent, as Embed-RL and GVE publish them."""


@pytest.mark.parametrize(
    ("suite", "model"),
    [(suite, model) for suite in PUBLISHED for model in PUBLISHED[suite]["scores"]],
)
def test_published_means_follow_from_the_published_scores(suite, model) -> None:
    scores = PUBLISHED[suite]["scores"][model]
    means = aggregate(scores, PUBLISHED[suite]["groups"])
    # The scores are rounded to 0.1 or 0.01, the means to 0.1.
    expected = {
        group: pytest.approx(mean, abs=0.06)
        for group, mean in PUBLISHED[suite]["aggregates"][model].items()
    }
    assert {group: mean.score for group, mean in means.items()} == expected


def test_every_set_is_in_the_mean_of_all() -> None:
    sizes = {}
    for suite, tables in PUBLISHED.items():
        scores = next(iter(tables["scores"].values()))
        means = aggregate(scores, tables["groups"])
        sizes[suite] = {group: len(mean.sets) for group, mean in means.items()}
    assert sizes["mmeb_v2"][ALL] == 78
    assert (sizes["mmeb_v2"]["image"], sizes["mmeb_v2"]["video"]) == (36, 18)
    assert sizes["mmeb_v2"]["visdoc"] == 24
    assert ABILITIES not in sizes["mmeb_v2"]
    assert sizes["uvrb"][ALL] == sizes["uvrb"][ABILITIES] == 16
    assert [sizes["uvrb"][a] for a in ("TXT", "CMP", "VIS", "CG", "FG", "LC")] == [
        12, 2, 2, 3, 7, 2,
    ]  # fmt: skip


def test_a_group_is_the_plain_mean_of_its_sets_by_hand() -> None:
    groups = {"a": ("image", "image/vqa"), "b": ("image",), "c": ()}
    assert aggregate({"a": 0.2, "b": 0.4, "c": 0.9}, groups) == {
        "all": Aggregate(pytest.approx(0.5), ("a", "b", "c")),
        "image": Aggregate(pytest.approx(0.3), ("a", "b")),
        "image/vqa": Aggregate(0.2, ("a",)),
    }


def test_no_set_is_refused() -> None:
    with pytest.raises(DataError, match="at least one set"):
        aggregate({}, {})
