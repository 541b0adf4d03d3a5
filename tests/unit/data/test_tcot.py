"""The grammar: strictness, what repetition and length cost, and the way back to text."""

import itertools
import json
import pickle
import time
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import TCoTError
from data.tcot import MAX_CHARS, TAGS, faults, parse, render, split_thinking
from data.types import Box, Cues, Kind, TCoT
from tests.builders import TRACES


def trace(cue, *, prose="look", rethink="yes", answer="dog"):
    cue = cue if isinstance(cue, str) else json.dumps(cue)
    return f"<thinking>{prose}{cue}</thinking><rethink>{rethink}</rethink><answer>{answer}</answer>"


def boxes(value, **parts):
    return parse(trace({"bbox_2d": value}, **parts), kind=Kind.IMAGE)


@pytest.mark.parametrize("kind", Kind)
def test_a_trace_of_each_kind_is_strictly_valid(kind):
    assert parse(TRACES[kind], kind=kind, num_frames=3).valid


def test_parts_are_given_back_without_the_cue():
    found = boxes([100, 200, 300, 400], prose="a ", rethink=" b", answer="c ")
    assert (found.thinking, found.rethink, found.answer) == ("a ", " b", "c ")


def test_blank_space_around_and_between_the_parts_is_allowed():
    text = TRACES[Kind.TEXT].replace("><rethink", ">\n\n<rethink")
    assert parse(f"\n {text} \n", kind=Kind.TEXT).valid


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


def test_a_cue_behind_many_braces_is_not_looked_for():
    with pytest.raises(TCoTError, match="JSON object"):
        parse(trace("{" * 8 + '{"text_keywords": ["a"]}'), kind=Kind.TEXT)
    assert parse(trace("{" * 7 + '{"text_keywords": ["a"]}'), kind=Kind.TEXT).cues


def test_faults_name_repairs_and_refusals_for_counting():
    assert faults(TRACES[Kind.TEXT], kind=Kind.TEXT) == ()
    assert faults(f"Sure! {TRACES[Kind.TEXT]}", kind=Kind.TEXT) == ("text outside the tags",)
    assert faults("", kind=Kind.TEXT) == ("refused: a part is missing",)
    assert faults(TRACES[Kind.TEXT] + "x" * MAX_CHARS, kind=Kind.TEXT) == ("refused: too long",)
    assert faults(trace(""), kind=Kind.TEXT) == ("refused: no JSON object",)
    whole = trace({"bbox_2d": [0, 0, 1000, 1000]})
    assert faults(whole, kind=Kind.IMAGE) == (
        "box dropped: the whole picture",
        "refused: nothing usable",
    )
    assert faults(whole, kind=Kind.TEXT) == ("refused: no evidence key of the kind",)


def test_a_refusal_keeps_its_names_on_the_way_between_actors():
    with pytest.raises(TCoTError) as caught:
        parse("", kind=Kind.TEXT)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.repairs) == (str(caught.value), caught.value.repairs)


# Texts that a policy can write to waste our time.

REPEATED = [
    "{",
    '{"',
    '{"a":',
    '{"text_keywords": ["a"',
    "<thinking>",
    "</thinking>",
    "<thinking></thinking>",
    "<thinking></thinking><rethink></rethink>",
    "<thinking>x</thinking><rethink>y</rethink><answer>",
    "<",
    " ",
    "x",
    "[",
    "9",
    "\u05e9\u05dc\u05d5\u05dd ",
    "\U0001f469\u200d\U0001f680",
]


@pytest.mark.parametrize("piece", REPEATED)
@pytest.mark.parametrize("size", [MAX_CHARS - 200, 2 << 20], ids=["longest", "2MB"])
def test_long_texts_cost_no_time(piece, size):
    def inside(size):
        long = piece * (size // len(piece))
        return [
            long,
            trace(long),
            trace('{"text_keywords": ["' + long.replace('"', "") + '"]}'),
            trace('{"text_keywords": [' + long.replace('"', "")),
            trace({"text_keywords": ["a"]}, answer=long),
            f"<thinking></thinking>{long}",
        ]

    for text in inside(size):
        found = faults(text, kind=Kind.TEXT)
        assert (found == ("refused: too long",)) == (len(text) > MAX_CHARS)

    def fastest(texts):
        def parse_all():
            frames = next(turn)  # what was parsed with as many frames is remembered
            for text in texts:
                faults(text, kind=Kind.TEXT, num_frames=frames)

        turn = itertools.count(1)
        return min(timeit.repeat(parse_all, timer=time.thread_time, number=1))

    # What grows with the square takes 256 times as long.
    assert fastest(inside(size)) < 64 * fastest(inside(size // 16))


@pytest.mark.parametrize(
    "text", ["\u05e9\u05dc\u05d5\u05dd \u202eabc", "\U0001f469\u200d\U0001f680"]
)
def test_right_to_left_text_and_emoji_are_parts_like_any(text):
    found = parse(
        trace({"text_keywords": [text]}, prose=text, rethink=text, answer=text), kind=Kind.TEXT
    )
    assert found.valid
    assert (found.thinking, found.rethink, found.answer) == (text, text, text)
    assert parse(render(found, kind=Kind.TEXT), kind=Kind.TEXT) == found


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
        assert faults(text, kind=kind, num_frames=3)[-1].startswith("refused: ")
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
        anything = st.text(st.characters(codec="utf-8")) | st.sampled_from(["</thinking>", "{"])
        words = st.lists(anything.filter(str.strip), min_size=1, unique=True)
        return Cues(keywords=tuple(draw(words)))
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
