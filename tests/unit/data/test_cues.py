"""Cues: every known defect of today's traces is mended or dropped, by name, and the way back."""

import contextlib
import json
import random
import time
import timeit
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cues import CUE_KEYS, MAX_BOXES, evidence_pictures, parse_evidence, read_cues, render_cues
from data.errors import TCoTError
from data.tcot import parse
from data.types import Box, Cues, Kind, Picture


def trace(cue):
    cue = cue if isinstance(cue, str) else json.dumps(cue)
    return f"<thinking>look{cue}</thinking><rethink>yes</rethink><answer>dog</answer>"


def boxes(value):
    return parse(trace({"bbox_2d": value}), kind=Kind.IMAGE)


def frames(value, num_frames=8):
    return parse(trace({"key_frames": value}), kind=Kind.VIDEO, num_frames=num_frames)


def words(value):
    return parse(trace({"text_keywords": value}), kind=Kind.TEXT)


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
    assert found.repairs == ("box dropped: too many",) * 2


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


def test_boxes_one_list_too_deep_are_read_but_not_valid():
    expected = (Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 0.8, 0.8))
    found = boxes([[[100, 200, 300, 400], [500, 500, 800, 800]]])
    assert found.cues.boxes == expected
    assert found.repairs == ("boxes nested too deep",)
    assert boxes([[[100, 200, 300, 400]], [500, 500, 800, 800]]).cues.boxes == expected


def test_a_box_among_numbers_is_kept():
    found = boxes([7, [100, 200, 300, 400]])
    assert found.cues.boxes == (Box(0.1, 0.2, 0.3, 0.4),)
    assert found.repairs == ("box dropped: not four numbers",)


def test_a_merged_box_that_reaches_a_third_one_takes_it_in():
    # The second overlaps the first by less than SAME_BOX_IOU; both overlap the third by more.
    found = boxes([[0, 0, 500, 500], [70, 0, 570, 500], [35, 0, 535, 500]])
    assert found.cues.boxes == (Box(0.0, 0.0, 0.57, 0.5),)
    assert found.repairs == ("box merged: overlaps another",) * 2


def test_boxes_that_together_are_the_whole_picture_point_at_nothing():
    with pytest.raises(TCoTError) as caught:
        boxes([[0, 0, 1000, 940], [0, 60, 1000, 1000]])
    assert caught.value.repairs == (
        "box merged: overlaps another",
        "box dropped: the whole picture",
        "refused: nothing usable",
    )


def test_every_drop_is_counted_by_kind():
    found = boxes(
        [[0, 0, 1000, 1000], [1, 2], "a", [0, 0, 5, 5], [0, 0, 1000, 999], ["100", 0, 400, 300]]
    )
    assert Counter(found.repairs) == {
        "box dropped: the whole picture": 2,
        "box dropped: not four numbers": 2,
        "box dropped: too thin": 1,
        "number written as text": 1,
    }


@pytest.mark.parametrize(
    "word", ["\u05e9\u05dc\u05d5\u05dd", "\u202eabc", "\U0001f469\u200d\U0001f680"]
)
def test_right_to_left_words_and_emoji_are_words(word):
    assert words([word]).valid
    assert words([word]).cues.keywords == (word,)
    assert words([word]) == parse(
        trace(render_cues(Cues(keywords=(word,)), kind=Kind.TEXT)), kind=Kind.TEXT
    )


def test_half_an_emoji_is_no_word():
    found = parse(trace(r'{"text_keywords": ["\ud83d", "dog"]}'), kind=Kind.TEXT)
    assert found.cues.keywords == ("dog",)
    assert found.repairs == ("keyword dropped: not a word",)
    with pytest.raises(TCoTError) as caught:
        parse(trace(r'{"\ud83d": 1}'), kind=Kind.TEXT)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("kind", "make", "dropped"),
    [
        (Kind.TEXT, lambda i: f"word {i // 2}", "keyword dropped: repeated"),
        (Kind.VIDEO, lambda i: 9 + i, "frame dropped: out of range"),
        (Kind.IMAGE, lambda i: [9 * i % 900, i % 800, 1000, i % 800 + 20], "box dropped: too many"),
        (Kind.PAGE, lambda i: [0, 0, 1000, 1000], "box dropped: the whole picture"),
    ],
)
def test_tens_of_thousands_of_cues_cost_no_time(kind, make, dropped):
    def read(value):
        repairs = []
        with contextlib.suppress(TCoTError):
            read_cues({CUE_KEYS[kind]: [value]}, kind=kind, num_frames=8, repairs=repairs)
        return repairs

    def fastest(value):
        turns = timeit.repeat(lambda: read(value), timer=time.thread_time, number=1)
        return min(turns)

    many = [make(i) for i in range(20_000)]
    assert Counter(read(many))[dropped] >= 10_000
    # What grows with the square takes 256 times as long.
    assert fastest(many) < 64 * fastest(many[: len(many) // 16])


def test_a_refusal_names_each_drop_once_however_many_there_are():
    with pytest.raises(TCoTError) as caught:
        frames([99] * 1000)
    assert len(str(caught.value)) < 100
    assert len(caught.value.repairs) == 1001


# The way to pictures.

FRAMES = tuple(Picture(f"/{i}", Kind.VIDEO) for i in range(3))
PAGE = Picture("/page", Kind.PAGE)


def test_boxes_are_crops_of_the_picture_shown_with_its_kind():
    box = Box(0.1, 0.2, 0.3, 0.4)
    assert evidence_pictures((PAGE,), Cues(boxes=(box,))) == (Picture("/page", Kind.PAGE, box),)


def test_key_frames_are_the_frames_shown():
    assert evidence_pictures(FRAMES, Cues(key_frames=(0, 2))) == (FRAMES[0], FRAMES[2])


def test_keywords_point_at_no_picture():
    assert evidence_pictures((), Cues(keywords=("a",))) == ()
    assert evidence_pictures((PAGE,), Cues(keywords=("a",))) == ()


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


# Properties.

SIDE = st.integers(-20, 1020) | st.integers(-20, 1020).map(str) | st.none()
BOX = st.lists(SIDE, min_size=4, max_size=4) | st.lists(SIDE, max_size=5)
BOX_LISTS = st.lists(st.recursive(BOX, lambda inner: st.lists(inner, max_size=3)), max_size=8)


@given(BOX | BOX_LISTS)
def test_what_is_read_from_any_boxes_is_strictly_valid_when_written_again(value):
    try:
        found = boxes(value)
    except TCoTError:
        return
    assert 1 <= len(found.cues.boxes) <= MAX_BOXES
    again = parse(trace(render_cues(found.cues, kind=Kind.IMAGE)), kind=Kind.IMAGE)
    assert again.valid
    assert again.cues == found.cues


def test_the_order_of_far_apart_boxes_is_kept():
    corners = [[0, 0], [700, 0], [0, 700], [700, 700]]
    random.Random(0).shuffle(corners)
    found = boxes([[x, y, x + 200, y + 200] for x, y in corners])
    assert [(b.x1, b.y1) for b in found.cues.boxes] == [(x / 1000, y / 1000) for x, y in corners]
