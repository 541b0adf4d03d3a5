"""What the Reasoner is asked: which template, what fills it, and that its examples are ours."""

import re

import pytest

from data.embed_inputs import SUFFIX, embed_content
from data.errors import DataError
from data.prompts import (
    filter_content,
    item_content,
    load_templates,
    pictures_of,
    reasoner_content,
    templates_version,
    uris_shown,
)
from data.tcot import TAGS, parse
from data.types import Item, Kind, Pair, Picture, Side, Video, pictures_in, visuals_in
from tests.builders import TRACES

NAMES = sorted(set(load_templates("full")) - {"filter"})
WITH_ANSWER = [name for name in NAMES if name.endswith("_with_answer")]
EXAMPLE = re.compile(r"^<thinking>.*?</answer>$", re.MULTILINE | re.DOTALL)
KINDS = {"image": Kind.IMAGE, "page": Kind.PAGE, "video": Kind.VIDEO}


def kind_of(name):
    return KINDS.get(name.split("_")[1], Kind.TEXT)


def filled(name):
    return load_templates("full")[name].substitute(
        text="THE ITEM", frames=8, shown="THE FRAMES", answer="THE ANSWER"
    )


def test_there_is_a_prompt_for_every_kind_and_side_and_for_queries_with_the_answer():
    queries = {f"query_{kind}" for kind in Kind} | {"query_text_for_video"}
    targets = {f"target_{kind}" for kind in Kind}
    assert set(WITH_ANSWER) == {f"{name}_with_answer" for name in queries}
    assert set(NAMES) == queries | targets | set(WITH_ANSWER)
    assert set(load_templates("brief")) == queries | targets


@pytest.mark.parametrize("name", NAMES)
def test_every_worked_example_is_strictly_valid(name):
    examples = EXAMPLE.findall(filled(name))
    assert len(examples) == 2
    for example in examples:
        assert parse(example, kind=kind_of(name), num_frames=8).valid, example


@pytest.mark.parametrize("name", NAMES)
def test_a_template_speaks_of_no_other_tags_and_of_one_cue(name):
    text = filled(name)
    assert set(re.findall(r"</?(\w+)>", text)) == set(TAGS)
    cues = {"text_keywords", "bbox_2d", "key_frames"} & set(re.findall(r"\w+", text))
    assert len(cues) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_template_ends_with_the_items_own_text_and_the_answer_where_it_is_known(name):
    end = "THE ITEM\nKnown answer: THE ANSWER" if name in WITH_ANSWER else "THE ITEM"
    assert filled(name).endswith(end)
    assert filled(name).count("THE ANSWER") == (name in WITH_ANSWER)


@pytest.mark.parametrize("name", WITH_ANSWER)
def test_with_the_answer_known_every_example_has_one_and_no_trace_may_tell(name):
    text = filled(name)
    assert text.count("\nKnown answer: ") == 3
    assert "Never mention that an answer was given" in text


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("query_text", ("A caption:", "News:", "A dialogue:", "A question:")),
        ("query_image", ("A question:", "A class:", "An object to be found", "A search:")),
        ("query_page", ("A question:", "A search:")),
        ("query_video", ("A question:", "A class or an action:", "A description:", "A search:")),
        ("query_text_for_video", ("a whole video", "one scene", "one action", "same order")),
    ],
)
def test_the_tasks_of_a_query_are_told_with_and_without_the_answer(name, tasks):
    for one in (name, f"{name}_with_answer"):
        assert [task for task in tasks if task not in filled(one)] == []


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
    (text,) = reasoner_content(pair, Side.QUERY, templates="full", item_tokens=0, max_frames=8)
    assert text == load_templates("full")["query_text_for_video"].substitute(text="a $5 bill")
    assert text.endswith("a $5 bill")


def test_a_prompt_never_holds_the_other_side():
    pair = Pair(
        pair_id="p", source="s", query=Item(text="QUERY TEXT"), target=Item(text="TARGET TEXT")
    )
    for side, other in ((Side.QUERY, "TARGET TEXT"), (Side.TARGET, "QUERY TEXT")):
        (text,) = reasoner_content(pair, side, templates="full", item_tokens=0, max_frames=8)
        assert other not in text


@pytest.mark.parametrize("kind", Kind)
def test_the_answer_is_told_where_the_caller_gives_it(kind):
    uris = () if kind is Kind.TEXT else ("/a",)
    pair = Pair(
        pair_id="p",
        source="s",
        query=Item(text="what?", kind=kind, uris=uris),
        target=Item(text="a $5 bill"),
    )
    *_, without = reasoner_content(pair, Side.QUERY, templates="full", item_tokens=0, max_frames=8)
    *shown, text = reasoner_content(
        pair, Side.QUERY, templates="full", item_tokens=0, max_frames=8, answer=" a $5 bill "
    )
    assert [one.uri for one in shown] == list(uris)
    assert text.endswith("Query: what?\nKnown answer: a $5 bill")
    assert "$5" not in without


def test_a_text_that_seeks_a_video_can_know_the_answer():
    item = Item(text="a man jumps")
    (text,) = item_content(
        item,
        Side.QUERY,
        templates="full",
        item_tokens=0,
        max_frames=8,
        seeks_video=True,
        answer="a high jump",
    )
    assert text.endswith("Description: a man jumps\nKnown answer: a high jump")


@pytest.mark.parametrize(("side", "templates"), [(Side.TARGET, "full"), (Side.QUERY, "brief")])
def test_an_answer_that_no_prompt_takes_is_refused(side, templates):
    with pytest.raises(DataError, match=f"'{side}_text_with_answer' in the template set"):
        item_content(
            Item(text="a"), side, templates=templates, item_tokens=0, max_frames=8, answer="b"
        )


def test_the_filter_sees_task_and_traces_and_asks_for_one_word():
    (text,) = filter_content("Find a $1 coin.", "<thinking>QUERY", "<thinking>TARGET")
    assert all(part in text for part in ("Find a $1 coin.", "<thinking>QUERY", "<thinking>TARGET"))
    assert "Say Yes if the item is clearly unrelated" in text
    assert "clearly contradicts" in text
    assert "if you are in doubt" in text
    assert text.endswith("Answer with one word, Yes or No.")


def test_pictures_come_first_and_frames_are_sampled_and_counted():
    item = Item(text="what?", kind=Kind.VIDEO, uris=tuple(f"/{i}" for i in range(20)))
    *shown, text = item_content(item, Side.QUERY, templates="full", item_tokens=0, max_frames=4)
    assert [one.uri for one in shown] == ["/0", "/6", "/13", "/19"]
    assert "from 1 to 4" in text


def test_an_image_is_shown_once_with_its_kind():
    item = Item(text="", kind=Kind.PAGE, uris=("/page",))
    assert pictures_of(item, 8) == (Picture("/page", Kind.PAGE),)


def test_the_version_names_the_set_and_its_texts():
    assert re.fullmatch(r"full-[0-9a-f]{8}", templates_version("full"))
    assert templates_version("full")[5:] != templates_version("brief")[6:]


def test_only_the_pictures_that_are_shown_are_named_for_decoding():
    video = Item(text="", kind=Kind.VIDEO, uris=tuple(f"/{i}" for i in range(1000)))
    image = Item(text="", kind=Kind.IMAGE, uris=("/image",))
    assert uris_shown([video, image, Item(text="a")], 3) == {"/0", "/500", "/999", "/image"}


@pytest.mark.parametrize("side", Side)
def test_a_reasoner_reads_the_instruction_before_the_text(side):
    asked = item_content(
        Item(text="a cat", instruction="Find it."),
        side,
        templates="brief",
        item_tokens=0,
        max_frames=8,
    )
    told = item_content(
        Item(text="Find it. a cat"), side, templates="brief", item_tokens=0, max_frames=8
    )
    assert asked == told


def test_a_video_is_shown_as_one_with_its_times_and_a_key_frame_as_a_picture():
    uris = tuple(f"/{i}" for i in range(4))
    item = Item(text="what?", kind=Kind.VIDEO, uris=uris, times=(0.0, 0.5, 1.0, 9.0))
    frames = tuple(Picture(uri, Kind.VIDEO) for uri in uris)
    video, text = item_content(item, Side.QUERY, templates="full", item_tokens=0, max_frames=8)
    assert video == Video(frames, item.times)
    assert text.startswith("The video shows 4 frames, in order of time, two at each time stamp. A ")
    assert pictures_of(item, 8) == tuple(pictures_in((video, text))) == frames
    assert uris_shown([item], 8) == set(uris)
    assert embed_content(item, "", item_tokens=0, max_frames=8)[-3:] == ("what?", video, SUFFIX)
    pointed = embed_content(item, TRACES[Kind.VIDEO], item_tokens=0, max_frames=8)
    assert visuals_in(pointed) == (video, frames[1], frames[2])


def test_frames_of_a_video_are_told_as_pictures():
    item = Item(text="what?", kind=Kind.VIDEO, uris=("/0", "/1"))
    *_, text = item_content(item, Side.TARGET, templates="full", item_tokens=0, max_frames=8)
    assert text.startswith("The 2 pictures are frames of one video, in order of time. The video,")
