"""What the Embedder reads of each item in a variant, and the vector that came of it.

What fails is kept with its reason.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data.embed_inputs import embed_content
from data.stores.keys import content_key
from data.types import Content, EmbedRequest, Evidence, Side
from evaluation.metrics import means_something, unit_rows
from evaluation.sets import End
from evaluation.variants import Traces, Variant

Embed = Callable[[list[EmbedRequest]], Mapping[str, np.ndarray]]
"""Vectors [D] by key, of the one frozen Embedder; a key that is absent has failed."""
Rival = Callable[[Mapping[Side, list[EmbedRequest]]], Mapping[Side, Mapping[str, np.ndarray]]]
"""The same of another Embedder, which may read queries otherwise than candidates."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """What became of each end in one variant: exactly one of the two mappings holds it."""

    found: Mapping[End, np.ndarray]
    failed: Mapping[End, str]


def embed_variants(
    ends: Sequence[End],
    said: Sequence[tuple[Variant, Sequence[Traces | None]]],
    embed: Embed,
    *,
    max_frames: int,
    item_tokens: int,
) -> tuple[list[Vectors], list[str]]:
    """Return the vector of each end in each variant, and the keys of all that was embedded.

    Equal contents are embedded once. All contents of an item follow each other, so that its
    pictures need not be kept for long.

    Args:
        ends: what is embedded.
        said: the variants, and the traces that each reads: None, those of one Reasoner, or those
            of several samples, of whose vectors the mean counts.
        embed: the Embedder.
        max_frames: frames of a video that are shown.
        item_tokens: tokens of an item's text that are read; 0: all.
    """
    asked = [
        ask(ends, traces, variant.evidence, max_frames=max_frames, item_tokens=item_tokens)
        for variant, of_variant in said
        for traces in of_variant
    ]
    samples, keys = embed_asked(ends, asked, embed)
    return [_mean(list(islice(samples, len(of_variant)))) for _, of_variant in said], keys


def embed_rival(ends: Iterable[End], rival: Rival, *, max_frames: int, item_tokens: int) -> Vectors:
    """Return the vector that another Embedder gives each end without a trace.

    Equal contents of a side are embedded once. ``max_frames``, ``item_tokens``: see `ask`.
    """
    contents = ask(
        ends, None, Evidence.NONE, max_frames=max_frames, item_tokens=item_tokens
    ).contents
    keys: dict[Side, dict[End, str]] = {side: {} for side in Side}
    for end, content in contents.items():
        keys[end.side][end] = content_key(content)
    answers = rival(
        {
            side: [
                EmbedRequest(key=key, content=contents[end])
                for key, end in {key: end for end, key in named.items()}.items()
            ]
            for side, named in keys.items()
        }
    )
    sides = [_vectors(named, {}, answers[side]) for side, named in keys.items()]
    return Vectors(
        {end: vector for side in sides for end, vector in side.found.items()},
        {end: reason for side in sides for end, reason in side.failed.items()},
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What the Embedder reads of each end, with the traces of one sample; the others failed."""

    contents: Mapping[End, Content]
    failed: Mapping[End, str]


def ask(
    ends: Iterable[End],
    traces: Traces | None,
    evidence: Evidence,
    *,
    max_frames: int,
    item_tokens: int,
) -> Asked:
    """Return what the Embedder reads of each end.

    An end without a trace has failed where traces are used: embedding it bare would replace the
    trace by nothing.

    Args:
        ends: what is embedded.
        traces: of each end; None: none are used.
        evidence: what of a trace is read.
        max_frames: frames of a video that are shown.
        item_tokens: tokens of an item's text that are read; 0: all.
    """
    contents: dict[End, Content] = {}
    failed: dict[End, str] = {}
    for end in ends:
        if traces is not None and end not in traces:
            failed[end] = "no other trace"
            continue
        trace = None if traces is None else traces[end]
        if traces is not None and (trace is None or not trace.strip()):
            failed[end] = "trace failed" if trace is None else "empty trace"
            continue
        contents[end] = embed_content(
            end.item,
            trace,
            max_frames=max_frames,
            item_tokens=item_tokens,
            evidence=evidence,
        )
    return Asked(contents, failed)


def embed_asked(
    ends: Iterable[End], asked: Sequence[Asked], embed: Embed
) -> tuple[Iterator[Vectors], list[str]]:
    """Return the vectors of each entry of ``asked``, in order, and the keys of all contents.

    Equal contents are embedded once. All contents of an end follow each other, in the order of
    ``ends``, which may have more ends than an entry.
    """
    keys = [{end: content_key(content) for end, content in a.contents.items()} for a in asked]
    requests: dict[str, Content] = {}
    for end in ends:
        for of_asked, named in zip(asked, keys, strict=True):
            if end in named:
                requests[named[end]] = of_asked.contents[end]
    answers = embed([EmbedRequest(key=key, content=c) for key, c in requests.items()])
    vectors = (
        _vectors(named, of_asked.failed, answers)
        for of_asked, named in zip(asked, keys, strict=True)
    )
    return vectors, list(requests)


def _mean(samples: Sequence[Vectors]) -> Vectors:
    """Return the mean of the unit vectors of each end, of length 1; it fails where a sample has."""
    if len(samples) == 1:
        return samples[0]
    failed = {end: reason for sample in samples for end, reason in sample.failed.items()}
    found: dict[End, np.ndarray] = {}
    for end, vector in samples[0].found.items():
        if end not in failed:
            mean = unit_rows([sample.found[end] for sample in samples]).mean(axis=0)
            if means_something(mean):
                found[end] = unit_rows([mean])[0].astype(vector.dtype)
            else:
                failed[end] = "samples cancel out"
    return Vectors(found, failed)


def _vectors(
    keys: Mapping[End, str], failed: Mapping[End, str], answers: Mapping[str, np.ndarray]
) -> Vectors:
    vectors: dict[End, np.ndarray] = {}
    reasons = dict(failed)
    for end, key in keys.items():
        vector = answers.get(key)
        if vector is None:
            reasons[end] = "no embedding"
        elif not means_something(vector):
            reasons[end] = "embedding not finite or zero"
        else:
            vectors[end] = vector
    return Vectors(vectors, reasons)
