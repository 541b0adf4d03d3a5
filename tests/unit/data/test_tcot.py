"""The grammar: strictness, every known defect of today's traces, and the way back to text."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import TCoTError
from data.tcot import MAX_BOXES, TAGS, parse, parse_evidence, render, split_thinking
from data.types import Box, Cues, Kind, TCoT
from tests.builders import TRACES


def trace(cue, *, prose="look", rethink="yes", answer="dog"):
    cue = cue if isinstance(cue, str) else json.dumps(cue)
    return f"<thinking>{prose}{cue}</thinking><rethink>{rethink}</rethink><answer>{answer}</answer>"


def boxes(value, **parts):
    return parse(trace({"bbox_2d": value}, **parts), kind=Kind.IMAGE)


def frames(value, num_frames=8):
    return parse(trace({"key_frames": value}), kind=Kind.VIDEO, num_frames=num_frames)


def words(value):
    return parse(trace({"text_keywords": value}), kind=Kind.TEXT)


@pytest.mark.parametrize("kind", Kind)
def test_a_trace_of_each_kind_is_strictly_valid(kind):
    assert parse(TRACES[kind], kind=kind, num_frames=3).valid


def test_parts_are_given_back_without_the_cue():
    found = boxes([100, 200, 300, 400], prose="a ", rethink=" b", answer="c ")
    assert (found.thinking, found.rethink, found.answer) == ("a ", " b", "c ")


def test_blank_space_around_and_between_the_parts_is_allowed():
    text = TRACES[Kind.TEXT].replace("><rethink", ">\n\n<rethink")
    assert parse(f"\n {text} \n", kind=Kind.TEXT).valid


# Spec, section 2.3, defects (a) to (f).


def test_a_flat_box_and_a_list_of_boxes_are_both_valid():
    expected = (Box(0.1, 0.2, 0.3, 0.4),)
    assert boxes([100, 200, 300, 400]).cues.boxes == expected
    assert boxes([[100, 200, 300, 400]]).cues.boxes == expected
    assert boxes([[100, 200, 300, 400]]).valid


def test_frames_are_counted_from_one_and_the_last_is_kept():
    found = frames([1, 8])
    assert found.valid
    assert found.cues.key_frames == (0, 7)


def test_frame_numbers_written_as_text_are_read_but_not_valid():
    found = frames(["2", " 3 "])
    assert found.cues.key_frames == (1, 2)
    assert found.repairs == ("number written as text",) * 2


def test_box_sides_written_as_text_are_read_but_not_valid():
    found = boxes(["100", 200, "300.0", 400])
    assert found.cues.boxes == (Box(0.1, 0.2, 0.3, 0.4),)
    assert not found.valid


def test_duplicate_keys_are_merged_not_overwritten():
    text = trace('{"bbox_2d": [0, 0, 200, 200], "bbox_2d": [500, 500, 800, 800]}')
    found = parse(text, kind=Kind.IMAGE)
    assert found.cues.boxes == (Box(0.0, 0.0, 0.2, 0.2), Box(0.5, 0.5, 0.8, 0.8))
    assert found.repairs == ("duplicate key merged",)


def test_nested_json_is_read_but_not_valid():
    found = parse(trace({"evidence": {"bbox_2d": [100, 200, 300, 400]}}), kind=Kind.IMAGE)
    assert found.cues.boxes == (Box(0.1, 0.2, 0.3, 0.4),)
    assert found.repairs == ("other keys beside the evidence",)


def test_swapped_corners_are_put_right_but_not_valid():
    found = boxes([300, 400, 100, 200])
    assert found.cues.boxes == (Box(0.1, 0.2, 0.3, 0.4),)
    assert found.repairs == ("box mended: corners swapped",)


def test_a_box_around_the_whole_picture_points_at_nothing():
    with pytest.raises(TCoTError, match="whole picture"):
        boxes([0, 0, 1000, 1000])
    kept = boxes([[0, 0, 1000, 1000], [0, 0, 500, 500]])
    assert kept.cues.boxes == (Box(0.0, 0.0, 0.5, 0.5),)
    assert not kept.valid


def test_overlapping_boxes_become_one_around_both():
    found = boxes([[100, 100, 500, 500], [110, 100, 510, 500]])
    assert found.cues.boxes == (Box(0.1, 0.1, 0.51, 0.5),)
    assert found.repairs == ("box merged: overlaps another",)


def test_more_boxes_than_allowed_are_cut():
    found = boxes([[100 * i, 0, 100 * i + 50, 50] for i in range(MAX_BOXES + 2)])
    assert len(found.cues.boxes) == MAX_BOXES
    assert found.repairs == ("box dropped: too many",)


def test_boxes_outside_the_picture_are_cut_to_it():
    found = boxes([-50, 900, 300, 1100])
    assert found.cues.boxes == (Box(0.0, 0.9, 0.3, 1.0),)
    assert found.repairs == ("box mended: outside the picture",)


@pytest.mark.parametrize("left", range(0, 980, 7))
def test_a_box_exactly_one_hundredth_wide_is_kept_wherever_it_is(left):
    assert boxes([left, 0, left + 10, 500]).valid
    with pytest.raises(TCoTError, match="too thin"):
        boxes([left, 0, left + 9, 500])


@pytest.mark.parametrize("value", [[1, 2, 3], [1, 2, 3, 4, 5], "abc", None, 7, [[]], [None] * 4])
def test_a_box_of_anything_but_four_numbers_is_dropped(value):
    with pytest.raises(TCoTError, match="nothing usable"):
        boxes(value)


@pytest.mark.parametrize("value", ["[NaN, 0, 5, 5]", "[1e999, 0, 5, 5]", "[true, 0, 5, 5]"])
def test_numbers_that_are_none_are_dropped(value):
    with pytest.raises(TCoTError, match="not four numbers"):
        parse(trace('{"bbox_2d": ' + value + "}"), kind=Kind.IMAGE)


@pytest.mark.parametrize("value", [[0], [9], [1.5], [True], ["x"], [[1]], [10**30], []])
def test_frames_out_of_range_or_not_whole_are_refused(value):
    with pytest.raises(TCoTError):
        frames(value)


def test_one_frame_out_of_range_makes_a_trace_invalid_but_usable():
    found = frames([2, 9])
    assert found.cues.key_frames == (1,)
    assert found.repairs == ("frame dropped: out of range",)


def test_frames_come_ascending_and_once():
    assert frames([5, 2]).cues.key_frames == (1, 4)
    assert frames([5, 2]).valid
    assert frames([2, 2]).repairs == ("frame dropped: repeated",)


def test_keywords_must_be_words_in_a_list():
    assert words(["a", "b"]).valid
    assert words("a").repairs == ("keyword not in a list",)
    assert words(["a", "a"]).repairs == ("keyword dropped: repeated",)
    assert words(["a", 3]).repairs == ("keyword dropped: not a word",)
    with pytest.raises(TCoTError):
        words([" "])


# Strictness of the layout.


@pytest.mark.parametrize("tag", TAGS)
def test_a_missing_part_is_named(tag):
    text = TRACES[Kind.TEXT].replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    with pytest.raises(TCoTError, match=tag):
        parse(text, kind=Kind.TEXT)


def test_parts_in_another_order_are_refused():
    text = '<rethink>b</rethink><thinking>a{"text_keywords": ["w"]}</thinking><answer>c</answer>'
    with pytest.raises(TCoTError, match="not one after another"):
        parse(text, kind=Kind.TEXT)


def test_a_rethinking_tag_is_not_a_rethink():
    text = TRACES[Kind.TEXT].replace("rethink>", "rethinking>")
    with pytest.raises(TCoTError, match="rethink"):
        parse(text, kind=Kind.TEXT)


@pytest.mark.parametrize("change", ["Sure! {}", "{} Done.", "{}{}", "{}</answer>", "<rethink>{}"])
def test_text_or_tags_outside_are_not_valid(change):
    assert not parse(change.replace("{}", TRACES[Kind.TEXT]), kind=Kind.TEXT).valid


def test_a_tag_inside_another_part_is_not_valid():
    text = trace({"text_keywords": ["w"]}, answer="dog <thinking> again")
    assert parse(text, kind=Kind.TEXT).repairs == ("repeated tag",)


@pytest.mark.parametrize("part", ["prose", "rethink", "answer"])
def test_an_empty_part_is_not_valid(part):
    found = boxes([100, 200, 300, 400], **{part: " \n"})
    assert found.repairs == (f"empty {'thinking' if part == 'prose' else part}",)


def test_the_cue_of_another_kind_is_refused_by_name():
    with pytest.raises(TCoTError, match=r"'bbox_2d' for image, found \['text_keywords'\]"):
        parse(TRACES[Kind.TEXT], kind=Kind.IMAGE)


def test_a_trace_without_cue_is_refused():
    with pytest.raises(TCoTError, match="JSON object"):
        parse(trace(""), kind=Kind.TEXT)


def test_a_cue_outside_thinking_does_not_count():
    with pytest.raises(TCoTError, match="JSON object"):
        parse(trace("", answer='{"text_keywords": ["w"]}'), kind=Kind.TEXT)


def test_two_json_objects_are_not_valid_and_the_first_counts():
    text = trace('{"text_keywords": ["a"]} {"text_keywords": ["b"]}')
    found = parse(text, kind=Kind.TEXT)
    assert found.cues.keywords == ("a",)
    assert found.repairs == ("more than one JSON object",)


def test_broken_json_before_the_cue_is_stepped_over():
    found = parse(trace('{oops {"text_keywords": ["a"]}'), kind=Kind.TEXT)
    assert found.cues.keywords == ("a",)
    assert not found.valid


@pytest.mark.parametrize(
    "text",
    [
        "<thinking>" * 2000,
        "<thinking>x</thinking><rethink>y</rethink><answer>" * 400,
        "<thinking></thinking><rethink></rethink>" * 400,
        "<thinking></thinking>" * 800 + "<rethink></rethink>" * 800,
        "<thinking>" + '{"a":' * 800 + "</thinking><rethink>y</rethink><answer>z</answer>",
        "<thinking>" + "{" * 5000 + "</thinking><rethink>y</rethink><answer>z</answer>",
    ],
)
def test_a_policy_that_repeats_itself_costs_no_time(text):
    started = time.monotonic()
    with pytest.raises(TCoTError):
        parse(text, kind=Kind.TEXT)
    assert time.monotonic() - started < 2


# True evidence in data files.


def test_evidence_is_read_in_the_grammars_own_units():
    boxes = parse_evidence({"bbox_2d": [0, 0, 500, 500]}, kind=Kind.PAGE, num_frames=0)
    assert boxes == Cues(boxes=(Box(0.0, 0.0, 0.5, 0.5),))
    frames = parse_evidence({"key_frames": [1, 3]}, kind=Kind.VIDEO, num_frames=3)
    assert frames == Cues(key_frames=(0, 2))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([0, 0, 500, 500], Kind.IMAGE),
        ({"key_frames": [1]}, Kind.IMAGE),
        ({"bbox_2d": [500, 500, 0, 0]}, Kind.IMAGE),
        ({"bbox_2d": [0, 0, 500, 1500]}, Kind.IMAGE),
        ({"bbox_2d": [0, 0, 500, 500], "more": 1}, Kind.IMAGE),
        ({"key_frames": [4]}, Kind.VIDEO),
        ({"key_frames": ["1"]}, Kind.VIDEO),
    ],
)
def test_evidence_that_needs_a_repair_is_refused(value, kind):
    with pytest.raises(TCoTError):
        parse_evidence(value, kind=kind, num_frames=3)


def test_a_trace_is_split_behind_its_thinking():
    assert split_thinking("<thinking>a</thinking>b") == ("<thinking>a</thinking>", "b")
    assert split_thinking("no tags") == ("no tags", "")


# Properties.

PIECES = st.sampled_from(
    [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    + ['{"bbox_2d": ', '{"key_frames": ', '{"text_keywords": ', "[1, 2]", '["a"]', "}", "{", "x"]
    + ["[100, 200, 300, 400]", '"', "[", "]", ",", " ", "NaN", "1e999", "9" * 5000, "\\u"]
)


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(), st.sampled_from(Kind))
def test_any_text_is_a_trace_or_refused_with_a_trace_error(text, kind):
    try:
        found = parse(text, kind=kind, num_frames=3)
    except TCoTError:
        return
    assert found.cues
    assert all(0 <= b.x1 < b.x2 <= 1 and 0 <= b.y1 < b.y2 <= 1 for b in found.cues.boxes)
    assert all(0 <= frame < 3 for frame in found.cues.key_frames)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(
        [(Kind.TEXT, "text_keywords"), (Kind.IMAGE, "bbox_2d"), (Kind.VIDEO, "key_frames")]
    ),
)
def test_any_json_as_evidence_is_read_or_refused(value, kind_and_key):
    kind, key = kind_and_key
    try:
        parse(trace({key: value}), kind=kind, num_frames=3)
    except TCoTError:
        return


prose = st.text(st.characters(exclude_characters="{}<>", codec="utf-8"), min_size=1).filter(
    str.strip
)
sides = st.integers(0, 990).flatmap(
    lambda low: st.tuples(st.just(low), st.integers(low + 10, 1000))
)


@st.composite
def cues_of(draw, kind):
    if kind is Kind.TEXT:
        return Cues(keywords=tuple(draw(st.lists(prose, min_size=1, unique=True))))
    if kind is Kind.VIDEO:
        chosen = draw(st.sets(st.integers(0, 7), min_size=1))
        return Cues(key_frames=tuple(sorted(chosen)))
    found = []
    for (x1, x2), (y1, y2) in draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=4)):
        box = Box(x1 / 1000, y1 / 1000, x2 / 1000, y2 / 1000)
        if box.area() < 0.95 and all(box.iou(other) < 0.8 for other in found):
            found.append(box)
    return Cues(boxes=tuple(found) or (Box(0.1, 0.1, 0.2, 0.2),))


@given(
    st.sampled_from(Kind).flatmap(lambda k: st.tuples(st.just(k), cues_of(k))), prose, prose, prose
)
def test_a_rendered_trace_parses_back_to_itself(kind_and_cues, thinking, rethink, answer):
    kind, cues = kind_and_cues
    original = TCoT(thinking=thinking, rethink=rethink, answer=answer, cues=cues)
    assert parse(render(original, kind=kind), kind=kind, num_frames=8) == original
