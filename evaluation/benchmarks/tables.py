"""The sets of the benchmarks: where rows and media are, how they are read, what is published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSet:
    """A set as the suite's table describes it. Paths are relative to the suite's root."""

    name: str
    suite: str
    groups: tuple[str, ...]
    """The aggregates that it belongs to, the widest first."""
    parser: str
    """What its rows look like: a name in `PARSERS` of `load.py`."""
    scope: Literal["local", "global"]
    """`local`: a query is ranked over its row's candidates, `global`: over all of the set's."""
    metric: str
    """The set's main metric, as `EvaluationSet.metric`."""
    instruction: str = ""
    """The task of a query; empty where the rows have it."""
    target_text: str = ""
    """What VLM2Vec writes beside a target's media."""
    repo: str = ""
    """The data set on the hub that has the rows; UVRB's rows come with the media."""
    configs: tuple[str, ...] = ()
    """The parts of `repo` that have the set's rows, in order."""
    split: str = ""
    offline: str = ""
    """Where the rows are in the tree of VLM2Vec/MMEB-V3, without the file's ending."""
    limit: int = 0
    """Only the first rows count; 0: all."""
    media: tuple[str, ...] = ()
    """Folders of the media, as archives are unpacked in more than one way: the first that is there
    counts."""
    archive: str = ""
    """The file of the suite's `media_repo` that brings them."""
    queries: int = 0
    """Queries of the published results; 0: unknown."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Main metric in percent, by model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A benchmark of many sets."""

    name: str
    media_repo: str
    """The data set on the hub that has the media."""
    published_models: tuple[str, ...]
    published_source: str
    """Where the published scores are from."""
    published_settings: str
    """What they were measured with."""
    sets: Mapping[str, BenchmarkSet]
    """By name, in the order of the table."""


@cache
def benchmark_suite(name: str) -> Suite:
    """Return a suite by its name, `mmeb_v2` or `uvrb`."""
    table = _read(f"{name}.yaml")
    sets = {}
    for block in table["blocks"]:
        for set_name, own in block["sets"].items():
            values: dict[str, Any] = {**block["defaults"], **own}
            values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            scores = zip(table["published_models"], values["published"], strict=True)
            sets[set_name] = BenchmarkSet(
                name=set_name, suite=name, **{**values, "published": dict(scores)}
            )
    return Suite(
        name=name,
        media_repo=table["media_repo"],
        published_models=tuple(table["published_models"]),
        published_source=table["published_source"],
        published_settings=table["published_settings"],
        sets=sets,
    )


@cache
def video_labels(name: str) -> tuple[str, ...]:
    """Return all labels of a set of video classification, in VLM2Vec's order."""
    return tuple(_read("video_labels.yaml")[name])


def _read(name: str) -> Any:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
