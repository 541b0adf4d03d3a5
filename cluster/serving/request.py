"""The body of `POST /v1/embeddings` to items: OpenAI's form, and the chat form of vLLM.

Nothing is read or fetched here: an item names its medium by the URL that the request has.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

from cluster.serving.refusal import Refused, wrong
from data.model.chat import EMB_TOKEN
from data.types import Side

FIELDS = (
    *("model", "input", "messages", "dimensions", "encoding_format", "user"),
    *("instruction", "side", "trace", "traces", "return_traces"),
    *("media_io_kwargs", "mm_processor_kwargs"),
    *("add_generation_prompt", "continue_final_message"),
)
"""Of a request. The last two are vLLM's, for a message of `<emb>`, and change nothing here."""
SIDES = {"query": Side.QUERY, "document": Side.TARGET}
TRACES = ("auto", "none", "given")
MEDIA = {"image_url": "image", "video_url": "video", "page_url": "page"}
"""Types of content parts, with what they show."""
FRAME_FIELDS = ("fps", "max_frames", "num_frames", "nframes")
"""Frame settings; the last three mean the same, as vLLM and Qwen's code spell them."""
SHOWN_CHARACTERS = 60
"""Of a value that is refused."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the requests of a server may ask for."""

    name: str
    """Of the model."""
    dimensions: frozenset[int]
    """Leading dimensions that the Embedder was trained for; empty: only its whole vector."""
    items: int
    """Items of a request at most."""
    max_frames: int
    """Frames of a video at most."""


@dataclass(frozen=True, slots=True)
class Medium:
    """What an item shows."""

    kind: Literal["image", "video", "page"]
    url: str
    where: str
    """Its field, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestItem:
    """One input of a request; it becomes one vector."""

    text: str
    instruction: str = ""
    medium: Medium | None = None
    trace: str | None = None
    """The client's own; empty: it gives none to this item. None: the request gives none at all."""
    max_frames: int | None = None
    fps: float | None = None

    def as_input(self, medium: Any) -> dict[str, Any]:
        """Return what an `Encoder` takes; ``medium``: a path, bytes or frames, None for a text."""
        values = {"text": self.text or None, "instruction": self.instruction or None}
        values["trace"] = self.trace
        if self.medium is not None:
            values |= {self.medium.kind: medium, "max_frames": self.max_frames, "fps": self.fps}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """A request whose fields have been checked."""

    items: tuple[RequestItem, ...]
    side: Side
    trace: Literal["auto", "none", "given"]
    return_traces: bool
    dimensions: int | None
    base64: bool
    """Vectors as base64 of little-endian float32, not as numbers."""


def parse_request(body: bytes, served: Served) -> EmbeddingsRequest:
    """Return the request that a body holds.

    Raises:
        Refused: it is no JSON, or one of its fields is wrong; the message names the field.
    """
    fields = _mapping(_json(body), "body", FIELDS)
    model = _optional(fields, "model", str, "a text")
    if model not in (None, served.name):
        raise Refused(
            f"model: expected '{served.name}', found {_shown(model)}; GET /v1/models lists it",
            status=404,
            param="model",
            code="model_not_found",
        )
    _optional(fields, "user", str, "a text")
    for name in ("add_generation_prompt", "continue_final_message"):
        _optional(fields, name, bool, "true or false")
    dimensions = _optional(fields, "dimensions", int, "a whole number")
    if dimensions is not None and dimensions not in served.dimensions:
        sizes = ", ".join(map(str, sorted(served.dimensions)))
        raise wrong(
            "dimensions",
            f"one of {sizes}" if sizes else "none, as the Embedder was not trained to be cut",
            str(dimensions),
        )
    trace = _choice(fields, "trace", TRACES, "auto")
    items = _items(fields, served)
    return EmbeddingsRequest(
        items=_with_traces(items, fields, trace),
        side=SIDES[_choice(fields, "side", tuple(SIDES), "document")],
        trace=trace,
        return_traces=_optional(fields, "return_traces", bool, "true or false") or False,
        dimensions=dimensions,
        base64=_choice(fields, "encoding_format", ("float", "base64"), "float") == "base64",
    )


def _json(body: bytes) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise wrong("body", "JSON", "lists or objects in hundreds of others") from None
    except ValueError as error:
        raise wrong("body", "JSON", str(error)) from None


def _items(fields: Mapping[str, Any], served: Served) -> tuple[RequestItem, ...]:
    named = [name for name in ("input", "messages") if fields.get(name) is not None]
    if len(named) != 1:
        raise wrong("input", "either `input` or `messages`", " and ".join(named) or "neither")
    [name] = named
    entries = fields[name]
    if isinstance(entries, str) and name == "input":
        entries = [entries]
    if not isinstance(entries, list) or not entries:
        raise wrong(name, "a text, or a list that is not empty", _shown(entries))
    if _is_message(entries[0]):
        entries, places = [entries], [name]
    else:
        places = [f"{name}[{index}]" for index in range(len(entries))]
    if len(entries) > served.items:
        raise wrong(name, f"at most {served.items} items", f"{len(entries)}", "send several")
    instruction = _text(fields, "instruction", "instruction")
    settings = _frame_settings(fields)
    items = []
    for entry, place in zip(entries, places, strict=True):
        if isinstance(entry, str) and name == "input":
            if not entry.strip():
                raise wrong(place, "a text", "an empty one")
            _check_characters(entry, place)
            items.append(RequestItem(text=entry, instruction=instruction))
        elif isinstance(entry, list) and entry and all(map(_is_message, entry)):
            items.append(_conversation(entry, place, instruction, settings, served))
        else:
            wanted = "a text or a list of messages" if name == "input" else "a list of messages"
            advice = "send texts, not token ids" if _is_token_ids(entry) else ""
            raise wrong(place, wanted, _shown(entry), advice)
    return tuple(items)


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and "role" in entry


def _is_token_ids(entry: Any) -> bool:
    return isinstance(entry, int) or (
        isinstance(entry, list) and all(isinstance(value, int) for value in entry)
    )


def _conversation(
    messages: Sequence[Mapping[str, Any]],
    place: str,
    instruction: str,
    settings: Mapping[str, Any],
    served: Served,
) -> RequestItem:
    """Return the item of a chat: a system message or none, and one user message."""
    roles = [message["role"] for message in messages]
    kept = list(messages)
    if roles[-1] == "assistant":
        # How clients of vLLM have the vector read at `<emb>`, where it is always read here.
        last = kept.pop()
        if last.get("content") != EMB_TOKEN:
            where = f"{place}[{len(messages) - 1}].content"
            raise wrong(where, f"'{EMB_TOKEN}' or no such message", _shown(last.get("content")))
    if [message["role"] for message in kept] not in (["user"], ["system", "user"]):
        listed = ", ".join(_shown(role) for role in roles)
        raise wrong(place, "a user message, a system message before it or none", listed)
    if len(kept) == 2:
        if instruction:
            raise wrong("instruction", "none beside a system message", _shown(instruction))
        instruction, shown = _parts(kept[0], f"{place}[0]", settings)
        if shown:
            raise wrong(shown[0][0].where, "text in a system message", shown[0][0].kind)
    text, shown = _parts(kept[-1], f"{place}[{len(kept) - 1}]", settings)
    if len(shown) > 1:
        raise wrong(
            shown[1][0].where,
            "one picture, video or page in an item",
            f"{len(shown)}",
            "send a list of conversations, one for each",
        )
    if not shown:
        if not text.strip():
            raise wrong(place, "a text, a picture, a video or a page", "an empty message")
        return RequestItem(text=text, instruction=instruction)
    [(medium, own)] = shown
    frames = _frames(own, medium.where, served) if medium.kind == "video" else {}
    return RequestItem(text=text, instruction=instruction, medium=medium, **frames)


def _parts(
    message: Mapping[str, Any], place: str, settings: Mapping[str, Any]
) -> tuple[str, list[tuple[Medium, Mapping[str, Any]]]]:
    """Return a message's text, and its media with their frame settings."""
    _mapping(message, place, ("role", "content", "name"))
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise wrong(f"{place}.content", "a text or a list of parts", _shown(content))
    texts: list[str] = []
    media: list[tuple[Medium, Mapping[str, Any]]] = []
    for index, part in enumerate(content):
        where = f"{place}.content[{index}]"
        if not isinstance(part, dict):
            raise wrong(where, "an object with a `type`", _shown(part))
        kind = part.get("type")
        if kind == "text":
            _mapping(part, where, ("type", "text"))
            texts.append(_text(part, "text", f"{where}.text"))
        elif isinstance(kind, str) and kind in MEDIA:
            media.append(_medium(part, kind, where, settings))
        else:
            raise wrong(f"{where}.type", f"text, {', '.join(MEDIA)}", _shown(kind))
    return "\n".join(filter(None, texts)), media


def _medium(
    part: Mapping[str, Any], kind: str, where: str, settings: Mapping[str, Any]
) -> tuple[Medium, Mapping[str, Any]]:
    """Return a medium and its frame settings: the part's own before those of the request."""
    frames = FRAME_FIELDS if kind == "video_url" else ()
    _mapping(part, where, ("type", kind, *frames))
    named = part.get(kind)
    inner = named if isinstance(named, dict) else {"url": named}
    where = f"{where}.{kind}"
    _mapping(inner, where, ("url", *frames, *(("detail",) if kind == "image_url" else ())))
    url = _text(inner, "url", f"{where}.url")
    if not url:
        raise wrong(f"{where}.url", "a URL", "none")
    if inner.get("detail") not in (None, "auto"):
        advice = "the server's data.media decides how many pixels are read"
        raise wrong(f"{where}.detail", "auto", _shown(inner["detail"]), advice)
    own = {name: node[name] for node in (part, inner) for name in frames if name in node}
    return Medium(MEDIA[kind], url, f"{where}.url"), _over(settings, own, where)


def _frame_settings(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the frame settings that a request has for all of its videos."""
    io = _mapping(_section(fields, "media_io_kwargs"), "media_io_kwargs", ("video",))
    video = _mapping(_section(io, "video"), "media_io_kwargs.video", FRAME_FIELDS)
    where, sampled = "mm_processor_kwargs", "do_sample_frames"
    processor = dict(_mapping(_section(fields, where), where, (*FRAME_FIELDS, sampled)))
    if processor.pop(sampled, True) is not True:
        raise wrong(f"{where}.{sampled}", "true", "another value", "the server samples frames")
    return _over(_over({}, video, "media_io_kwargs.video"), processor, where)


def _over(settings: Mapping[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings as `fps` and `max_frames`; ``own`` win over ``settings``."""
    counts = [name for name in FRAME_FIELDS[1:] if own.get(name) is not None]
    if len(counts) > 1:
        raise wrong(where, f"one of {', '.join(FRAME_FIELDS[1:])}", " and ".join(counts))
    named = {"max_frames": own[counts[0]]} if counts else {}
    if own.get("fps") is not None:
        named["fps"] = own["fps"]
    return {**settings, **named}


def _frames(settings: Mapping[str, Any], where: str, served: Served) -> dict[str, Any]:
    """Return the frame settings of a video, checked."""
    most, rate = settings.get("max_frames"), settings.get("fps")
    if most is not None and not (_is(most, int) and 1 <= most <= served.max_frames):
        raise wrong(where, f"1 to {served.max_frames} frames (max_frames)", _shown(most))
    if rate is not None and not (_is(rate, int | float) and 0 < rate < 1e9 and math.isfinite(rate)):
        raise wrong(where, "frames a second above 0 (fps)", _shown(rate))
    return {"max_frames": most, "fps": rate}


def _with_traces(
    items: Sequence[RequestItem], fields: Mapping[str, Any], trace: str
) -> tuple[RequestItem, ...]:
    """Return items with the client's traces, if it gives some."""
    traces = fields.get("traces")
    if (trace == "given") != (traces is not None):
        raise wrong(
            "traces",
            "a text for each item with trace='given', and none otherwise",
            f"{'none' if traces is None else 'some'} with trace='{trace}'",
        )
    if traces is None:
        return tuple(items)
    if isinstance(traces, str):
        traces = [traces]
    if not isinstance(traces, list) or len(traces) != len(items):
        raise wrong("traces", f"a list of {len(items)} texts, one an item", _shown(traces))
    traced = []
    for index, (item, text) in enumerate(zip(items, traces, strict=True)):
        if not isinstance(text, str):
            raise wrong(f"traces[{index}]", "a text, empty for none", _shown(text))
        _check_characters(text, f"traces[{index}]")
        traced.append(replace(item, trace=text))
    return tuple(traced)


def _mapping(value: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    """Return an object that has no other fields than these."""
    if not isinstance(value, dict):
        raise wrong(where, "an object", _shown(value))
    for name in value:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)[0]
            place = name[:SHOWN_CHARACTERS] if where == "body" else f"{where}.{name}"
            raise wrong(
                place[: 4 * SHOWN_CHARACTERS],
                f"one of {', '.join(known)}",
                "an unknown field",
                f"the nearest name is '{near}'",
            )
    return value


def _section(fields: Mapping[str, Any], name: str) -> Any:
    return {} if fields.get(name) is None else fields[name]


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _optional(fields: Mapping[str, Any], name: str, kind: Any, expected: str) -> Any:
    value = fields.get(name)
    if value is not None and not _is(value, kind):
        raise wrong(name, expected, _shown(value))
    return value


def _choice(fields: Mapping[str, Any], name: str, known: Sequence[str], default: str) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in known:
        raise wrong(name, " or ".join(known), _shown(value))
    return value


def _text(node: Mapping[str, Any], name: str, where: str) -> str:
    value = node.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong(where, "a text", _shown(value))
    _check_characters(value, where)
    return value


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(where, "text", f"half a character at {error.start}") from None


def _shown(value: Any) -> str:
    """Return a refused value for a message, as ASCII."""
    if isinstance(value, list | dict) and len(value) > 3:
        return f"a{' list' if isinstance(value, list) else 'n object'} of {len(value)}"
    shown = ascii(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
