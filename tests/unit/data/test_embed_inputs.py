"""What the Embedder reads: the order of item, thinking, evidence, rest and suffix."""

import itertools
import math
import time
import timeit
from dataclasses import replace

import pytest

from data.embed_inputs import SUFFIX, embed_content, instruction_as_text
from data.tcot import split_thinking
from data.types import Box, Evidence, Instruction, Item, ItemText, Kind, Picture
from tests.builders import TRACES

IMAGE = Item(text="what?", kind=Kind.IMAGE, uris=("/a",))
VIDEO = Item(text="what?", kind=Kind.VIDEO, uris=("/1", "/2", "/3"))
SHOWN = Picture("/a", Kind.IMAGE)
REST = "<rethink>yes</rethink><answer>a dog</answer>"


def test_an_item_alone_is_its_pictures_its_text_and_the_suffix():
    assert embed_content(IMAGE, None, item_tokens=0, max_frames=8) == (SHOWN, f"what?{SUFFIX}")
    assert embed_content(IMAGE, "", item_tokens=0, max_frames=8) == (SHOWN, f"what?{SUFFIX}")
    assert embed_content(
        IMAGE, TRACES[Kind.IMAGE], item_tokens=0, max_frames=8, evidence=Evidence.NONE
    ) == (
        SHOWN,
        f"what?{SUFFIX}",
    )
    assert SUFFIX.strip() == "Summarize the above content in one word:"


def test_an_instruction_comes_before_the_text_and_apart_from_it():
    asked = replace(IMAGE, instruction="find")
    content = embed_content(asked, None, item_tokens=0, max_frames=8)
    assert content == (SHOWN, "find", f"what?{SUFFIX}")
    assert [type(part) for part in content] == [Picture, Instruction, ItemText]
    assert instruction_as_text(content) == (SHOWN, f"find what?{SUFFIX}")
    bare = embed_content(replace(asked, text=""), None, item_tokens=0, max_frames=8)
    assert instruction_as_text(bare) == (SHOWN, f"find {SUFFIX}")
    video = embed_content(replace(VIDEO, instruction="find"), None, item_tokens=0, max_frames=8)
    assert instruction_as_text(video)[0] == "find what?"
    assert instruction_as_text((SHOWN, "what?")) == (SHOWN, "what?")


def test_evidence_stands_between_thinking_and_the_rest():
    trace = TRACES[Kind.IMAGE]
    thinking = trace[: trace.index("<rethink>")]
    crop = Picture("/a", Kind.IMAGE, Box(0.1, 0.2, 0.5, 0.6))
    assert embed_content(IMAGE, trace, item_tokens=0, max_frames=8) == (
        SHOWN,
        f"what?{thinking}",
        crop,
        REST + SUFFIX,
    )


def test_a_crop_of_a_page_is_a_page():
    page = Item(text="", kind=Kind.PAGE, uris=("/a",))
    content = embed_content(page, TRACES[Kind.PAGE], item_tokens=0, max_frames=8)
    assert content[2] == Picture("/a", Kind.PAGE, Box(0.0, 0.0, 1.0, 0.2))


def test_key_frames_are_shown_again():
    question, *content, rest = embed_content(VIDEO, TRACES[Kind.VIDEO], item_tokens=0, max_frames=8)
    frames = [Picture(uri, Kind.VIDEO) for uri in VIDEO.uris]
    assert question == "what?"
    assert content[:3] == frames
    assert content[4:] == frames[1:]
    assert rest.endswith(f"<answer>a jump</answer>{SUFFIX}")


def test_key_frames_count_among_the_frames_that_are_shown():
    video = Item(text="", kind=Kind.VIDEO, uris=tuple(f"/{i}" for i in range(9)))
    content = embed_content(video, TRACES[Kind.VIDEO], item_tokens=0, max_frames=3)
    uris = [part.uri for part in content if isinstance(part, Picture)]
    assert uris == ["/0", "/4", "/8", "/4", "/8"]


def test_keywords_stay_text():
    content = embed_content(Item(text="a dog"), TRACES[Kind.TEXT], item_tokens=0, max_frames=8)
    assert "".join(content) == f"a dog{TRACES[Kind.TEXT]}{SUFFIX}"


def test_without_evidence_the_text_is_the_same_and_no_picture_is_added():
    whole = embed_content(IMAGE, TRACES[Kind.IMAGE], item_tokens=0, max_frames=8)
    bare = embed_content(
        IMAGE, TRACES[Kind.IMAGE], item_tokens=0, max_frames=8, evidence=Evidence.TEXT
    )
    assert bare[0] == SHOWN
    assert "".join(bare[1:]) == "".join(part for part in whole if isinstance(part, str))


@pytest.mark.parametrize("trace", ["no tags at all", "<thinking>a</thinking>b", TRACES[Kind.VIDEO]])
def test_a_trace_that_does_not_parse_is_text_without_evidence(trace):
    shown, *texts = embed_content(IMAGE, trace, item_tokens=0, max_frames=8)
    assert shown == SHOWN
    assert "".join(texts) == f"what?{trace}{SUFFIX}"


@pytest.mark.parametrize("piece", ["{", "<thinking>", "\u05e9\u05dc\u05d5\u05dd ", "\U0001f680"])
def test_a_trace_of_a_megabyte_is_text_at_once_for_the_engine_to_refuse(piece):
    body = TRACES[Kind.IMAGE] + piece * ((1 << 20) // len(piece))
    # What was parsed is remembered, so that each turn needs a text of its own.
    traces = (f"{body}{turn}" for turn in itertools.count())

    trace = next(traces)
    shown, *texts = embed_content(IMAGE, trace, item_tokens=0, max_frames=8)
    assert (shown, "".join(texts)) == (SHOWN, f"what?{trace}{SUFFIX}")

    def cpu_s(work):
        return timeit.timeit(lambda: work(next(traces)), timer=time.thread_time, number=1)

    def read_plainly(text):
        before, after = split_thinking(text)
        return hash(text), f"what?{before}" + after + SUFFIX

    # Both read and copy the same megabytes, so that other work slows both alike; the fastest turns
    # count, of 5 or as many as it takes.
    plain = whole = math.inf
    for turn in range(100):
        if turn >= 5 and whole < 4 * plain:
            break
        plain = min(plain, cpu_s(read_plainly))
        whole = min(
            whole, cpu_s(lambda text: embed_content(IMAGE, text, item_tokens=0, max_frames=8))
        )
    assert whole < 4 * plain


def test_a_repaired_trace_still_shows_its_evidence():
    trace = "Sure! " + TRACES[Kind.IMAGE].replace("[100, 200, 500, 600]", "[500, 600, 100, 200]")
    crops = [
        part for part in embed_content(IMAGE, trace, item_tokens=0, max_frames=8) if part != SHOWN
    ]
    assert Picture("/a", Kind.IMAGE, Box(0.1, 0.2, 0.5, 0.6)) in crops
