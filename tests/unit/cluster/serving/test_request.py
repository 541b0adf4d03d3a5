"""The body of a request to items: OpenAI's form, the chat form, and what is refused."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.refusal import Refused
from cluster.serving.request import FIELDS, Medium, Served, parse_request
from data.types import Side

SERVED = Served(name="m", dimensions=frozenset((64, 128)), items=4, max_frames=8)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
VIDEO = {"type": "video_url", "video_url": {"url": "a.mp4"}}


def parse(**fields):
    return parse_request(json.dumps(fields).encode(), SERVED)


def user(*parts, **more):
    return [{"role": "user", "content": list(parts)}]


def test_texts_become_items_in_their_order():
    request = parse(model="m", input=["a", "b"], instruction="find", dimensions=64)
    assert [(item.text, item.instruction) for item in request.items] == [
        ("a", "find"),
        ("b", "find"),
    ]
    assert (request.side, request.trace, request.dimensions) == (Side.TARGET, "auto", 64)
    assert (request.base64, request.return_traces) == (False, False)
    [item] = parse(input="a", side="query", encoding_format="base64").items
    assert item.as_input(None) == {"text": "a"}


def test_a_chat_is_one_item_with_its_instruction_and_medium():
    system = {"role": "system", "content": "Find the same."}
    [item] = parse(messages=[system, *user(PICTURE, {"type": "text", "text": "in red"})]).items
    assert (item.text, item.instruction) == ("in red", "Find the same.")
    url = PICTURE["image_url"]["url"]
    assert item.medium == Medium("image", url, "messages[1].content[0].image_url.url")
    assert item.as_input(b"x") == {
        "text": "in red",
        "instruction": "Find the same.",
        "image": b"x",
    }


def test_a_page_is_a_medium_of_its_own():
    part = {"type": "page_url", "page_url": {"url": "a.pdf#page=2"}}
    [item] = parse(messages=user(part)).items
    assert item.as_input("/root/a.pdf#page=2") == {"page": "/root/a.pdf#page=2"}


def test_a_list_of_chats_is_several_items_in_either_field():
    chats = [user(PICTURE), [{"role": "user", "content": "a"}]]
    for name in ("messages", "input"):
        picture, text = parse(**{name: chats}).items
        assert picture.medium.kind == "image"
        assert (text.text, text.medium) == ("a", None)
    [item] = parse(input=user(PICTURE)).items
    assert item.medium.kind == "image"


def test_the_last_message_of_vllms_clients_changes_nothing():
    more = {"continue_final_message": True, "add_generation_prompt": False}
    chat = [*user(PICTURE), {"role": "assistant", "content": "<emb>"}]
    assert parse(messages=chat, **more).items == parse(messages=user(PICTURE)).items


@pytest.mark.parametrize(
    ("part", "fields", "asked"),
    [
        (VIDEO, {}, {}),
        ({**VIDEO, "max_frames": 4, "fps": 2}, {}, {"max_frames": 4, "fps": 2}),
        (
            {"type": "video_url", "video_url": {"url": "a.mp4", "nframes": 6}},
            {"mm_processor_kwargs": {"fps": 1, "max_frames": 2}},
            {"max_frames": 6, "fps": 1},
        ),
        (VIDEO, {"media_io_kwargs": {"video": {"num_frames": 3}}}, {"max_frames": 3}),
        (
            VIDEO,
            {
                "media_io_kwargs": {"video": {"num_frames": 3, "fps": 4}},
                "mm_processor_kwargs": {"fps": 0.5, "do_sample_frames": True},
            },
            {"max_frames": 3, "fps": 0.5},
        ),
    ],
)
def test_frame_settings_of_a_video_are_read_wherever_clients_put_them(part, fields, asked):
    [item] = parse(messages=user(part), **fields).items
    assert item.as_input("a.mp4") == {"video": "a.mp4", **asked}


def test_traces_of_the_client_go_with_their_items():
    request = parse(input=["a", "b"], trace="given", traces=["x", ""], return_traces=True)
    assert [item.as_input(None)["trace"] for item in request.items] == ["x", ""]
    assert request.return_traces


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ({}, "input", "either `input` or `messages`"),
        ({"input": "a", "messages": user(PICTURE)}, "input", "input and messages"),
        ({"input": []}, "input", "a list that is not empty"),
        ({"input": " "}, "input[0]", "an empty one"),
        ({"input": [1, 2]}, "input[0]", "send texts, not token ids"),
        ({"input": [[1, 2]]}, "input[0]", "send texts, not token ids"),
        ({"input": ["a"] * 5}, "input", "at most 4 items"),
        ({"input": ["a", None]}, "input[1]", "None"),
        ({"input": "\ud800"}, "input[0]", "half a character"),
        ({"input": "a", "dimensions": 65}, "dimensions", "64, 128"),
        ({"input": "a", "dimensions": True}, "dimensions", "a whole number"),
        ({"input": "a", "side": "left"}, "side", "query or document"),
        ({"input": "a", "trace": ["auto"]}, "trace", "auto or none or given"),
        ({"input": "a", "trace": "given"}, "traces", "a text for each item"),
        ({"input": "a", "traces": ["x"]}, "traces", "none otherwise"),
        ({"input": "a", "trace": "given", "traces": ["x", "y"]}, "traces", "a list of 1"),
        ({"input": "a", "trace": "given", "traces": [1]}, "traces[0]", "a text"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format", "float or base64"),
        ({"input": "a", "dimension": 64}, "dimension", "the nearest name is 'dimensions'"),
        ({"messages": "a"}, "messages", "a list"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "'tool'"),
        (
            {"messages": [*user(PICTURE), {"role": "assistant", "content": "hi"}]},
            "messages[1].content",
            "'<emb>'",
        ),
        ({"messages": user(PICTURE, PICTURE)}, "messages[0].content[1].image_url.url", "found 2"),
        ({"messages": user()}, "messages", "an empty message"),
        ({"messages": user({"type": "input_audio"})}, "messages[0].content[0].type", "video_url"),
        ({"messages": user({"type": ["text"]})}, "messages[0].content[0].type", "video_url"),
        ({"messages": user({**PICTURE, "fps": 2})}, "messages[0].content[0].fps", "unknown field"),
        ({"messages": user({**VIDEO, "fps": 0})}, "messages[0].content[0].video_url.url", "above"),
        ({"messages": user({**VIDEO, "max_frames": 9})}, None, "1 to 8 frames"),
        ({"messages": user({**VIDEO, "max_frames": 2, "nframes": 2})}, None, "one of max_frames"),
        ({"messages": user({"type": "image_url", "image_url": {}})}, None, "a URL"),
        (
            {"messages": user({"type": "image_url", "image_url": {"url": "a", "detail": "low"}})},
            None,
            "data.media",
        ),
        (
            {"messages": [{"role": "system", "content": [PICTURE]}, *user(PICTURE)]},
            None,
            "text in a system message",
        ),
        (
            {
                "messages": [{"role": "system", "content": "b"}, *user(PICTURE)],
                "instruction": "a",
            },
            "instruction",
            "none beside a system message",
        ),
        ({"input": "a", "mm_processor_kwargs": {"total_pixels": 1}}, None, "unknown field"),
        ({"input": "a", "mm_processor_kwargs": {"do_sample_frames": False}}, None, "samples"),
        ({"input": "a", "media_io_kwargs": {"image": {}}}, "media_io_kwargs.image", "video"),
        ({"input": "a", "media_io_kwargs": []}, "media_io_kwargs", "an object"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(fields, where, said):
    with pytest.raises(Refused) as refused:
        parse(**fields)
    assert refused.value.status == 400
    assert said in str(refused.value)
    assert where is None or refused.value.param == where
    assert refused.value.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"input": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"input": 1e999}',
    ],
)
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(Refused) as refused:
        parse_request(body, SERVED)
    assert refused.value.status == 400


def test_another_model_is_not_found():
    with pytest.raises(Refused, match="expected 'm'") as refused:
        parse(model="gpt", input="a")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_an_embedder_that_was_not_trained_to_be_cut_is_not_cut():
    whole = Served(name="m", dimensions=frozenset(), items=4, max_frames=8)
    with pytest.raises(Refused, match="was not trained to be cut"):
        parse_request(b'{"input": "a", "dimensions": 64}', whole)


WORDS = st.sampled_from(
    ["", "a", "user", "system", "assistant", "<emb>", "text", "image_url", "video_url", "given"]
)
NAMES = st.sampled_from(
    [*FIELDS, "role", "content", "type", "text", "url", "image_url", "video_url", "fps", "video"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.binary() | st.dictionaries(NAMES, JSON, max_size=5).map(lambda v: json.dumps(v).encode()))
def test_a_body_is_a_request_or_is_refused_whatever_it_holds(body):
    with suppress(Refused):
        assert 1 <= len(parse_request(body, SERVED).items) <= SERVED.items
