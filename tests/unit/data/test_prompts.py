"""What the Reasoner is asked: which template, what fills it, and that its examples are ours."""

import re

import pytest

from data.prompts import (
    item_content,
    load_templates,
    pictures_of,
    reasoner_content,
    templates_version,
)
from data.tcot import TAGS, parse
from data.types import Item, Kind, Pair, Picture, Side

NAMES = sorted(load_templates("full"))
EXAMPLE = re.compile(r"^<thinking>.*?</answer>$", re.MULTILINE | re.DOTALL)
KINDS = {"image": Kind.IMAGE, "page": Kind.PAGE, "video": Kind.VIDEO}


def kind_of(name):
    return KINDS.get(name.split("_", 1)[1], Kind.TEXT)


def filled(name):
    return load_templates("full")[name].substitute(text="THE ITEM", frames=8)


def test_both_sets_hold_the_same_templates():
    assert sorted(load_templates("brief")) == NAMES
    expected = {f"{side}_{kind}" for side in Side for kind in Kind} | {"query_text_for_video"}
    assert set(NAMES) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_worked_example_is_strictly_valid(name):
    examples = EXAMPLE.findall(filled(name))
    assert len(examples) >= 1
    for example in examples:
        assert parse(example, kind=kind_of(name), num_frames=8).valid, example


@pytest.mark.parametrize("name", NAMES)
def test_a_template_speaks_of_no_other_tags_and_of_one_cue(name):
    text = filled(name)
    assert set(re.findall(r"</?(\w+)>", text)) == set(TAGS)
    cues = {"text_keywords", "bbox_2d", "key_frames"} & set(re.findall(r"\w+", text))
    assert len(cues) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_template_ends_with_the_items_own_text(name):
    assert filled(name).endswith("THE ITEM")


@pytest.mark.parametrize("name", [name for name in NAMES if kind_of(name) in KINDS.values()])
def test_units_are_told(name):
    text = filled(name)
    if kind_of(name) is Kind.VIDEO:
        assert "from 1 to 8" in text
    else:
        assert "from 0 to 1000" in text
        assert "top-left corner" in text


def test_page_templates_have_a_wording_of_their_own():
    assert "table" in filled("query_page")
    assert "table" in filled("target_page")


def test_a_text_that_seeks_a_video_has_its_own_template():
    video = Item(text="", kind=Kind.VIDEO, uris=("/a",))
    pair = Pair(pair_id="p", source="s", query=Item(text="a $5 bill"), target=video)
    (text,) = reasoner_content(pair, Side.QUERY, templates="full", max_frames=8)
    assert text == load_templates("full")["query_text_for_video"].substitute(
        text="a $5 bill", frames=0
    )
    assert text.endswith("a $5 bill")


def test_a_prompt_never_holds_the_other_side():
    pair = Pair(
        pair_id="p", source="s", query=Item(text="QUERY TEXT"), target=Item(text="TARGET TEXT")
    )
    for side, other in ((Side.QUERY, "TARGET TEXT"), (Side.TARGET, "QUERY TEXT")):
        (text,) = reasoner_content(pair, side, templates="full", max_frames=8)
        assert other not in text


def test_pictures_come_first_and_frames_are_sampled_and_counted():
    item = Item(text="what?", kind=Kind.VIDEO, uris=tuple(f"/{i}" for i in range(20)))
    *shown, text = item_content(item, Side.QUERY, templates="full", max_frames=4)
    assert [one.uri for one in shown] == ["/0", "/6", "/13", "/19"]
    assert "from 1 to 4" in text


def test_an_image_is_shown_once_with_its_kind():
    item = Item(text="", kind=Kind.PAGE, uris=("/page",))
    assert pictures_of(item, 8) == (Picture("/page", Kind.PAGE),)


def test_the_version_names_the_set_and_its_texts():
    assert re.fullmatch(r"full-[0-9a-f]{8}", templates_version("full"))
    assert templates_version("full")[5:] != templates_version("brief")[6:]
