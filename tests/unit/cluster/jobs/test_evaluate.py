"""What the job `evaluate` decodes, without an engine."""

from cluster.jobs.evaluate import shown_by
from data.types import Item, Kind, Picture
from tests.builders import loaded_set, make_pair


def page(name: str) -> Item:
    return Item(text="", kind=Kind.PAGE, uris=(name,))


def test_pictures_of_queries_targets_candidates_and_distractors_are_decoded() -> None:
    pair = make_pair(query=page("q"), target=page("t"), candidates=(page("t"), page("c")))
    sets = [
        loaded_set(name="a", pairs=(pair,), bad_rows=()),
        loaded_set(name="b", pairs=(make_pair(),), bad_rows=(), distractors={3: page("d")}),
    ]
    assert shown_by(sets, 8) == {Picture(name, Kind.PAGE) for name in "qtcd"}
