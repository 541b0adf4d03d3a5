"""Pairs with the traces that a Reasoner wrote, in place of those of their rows."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.jobs.embedder import negatives_traces
from configs.common import DataConfig, RunConfig
from configs.schema import EmbedderConfig, WarmStartConfig
from data.errors import DataError
from data.sets.feed import PairFeed, supervised_rows
from data.sets.load_sets import load_sets
from data.stores.facts import reasoner_recipe
from data.stores.traced_sets import traces_in_use, with_stored_traces
from data.stores.traces import StoredTrace, TraceStore
from data.types import Side
from evaluation.runner import Settings, subjects_of
from evaluation.sets import ends_of, sets_of_pairs
from tests.builders import TRACES, write_picture, write_set

TEXT, IMAGE = TRACES["text"], TRACES["image"]
ROWS = [
    {"qry": "what?", "qry_image_path": "a.png", "pos_text": "a dog", "query_cot": IMAGE},
    {"qry": "who?", "qry_image_path": "a.png", "pos_text": "a dog", "neg_text": "a cat"},
    {"qry": "where?", "pos_text": "a cat", "query_cot": TEXT, "cot_knows_answer": True},
]
OTHER = {kind: trace.replace("yes", "by the Reasoner") for kind, trace in TRACES.items()}


@pytest.fixture
def config(tmp_path: Path) -> EmbedderConfig:
    """Return settings of a job that reads traces of a model that is there from a store."""
    (tmp_path / "root").mkdir()
    (tmp_path / "reasoner").mkdir()
    (tmp_path / "reasoner/model.safetensors").write_bytes(b"weights")
    write_picture(tmp_path / "root/a.png")
    data = write_set(tmp_path, ROWS)
    return EmbedderConfig(
        run=RunConfig(dir=str(tmp_path / "run")),
        data=DataConfig(train=[data], templates="brief"),
        model="m",
        store=str(tmp_path / "store"),
        reasoner=str(tmp_path / "reasoner"),
        max_missing_traces=0.5,
    )


def evaluated(config: EmbedderConfig, *texts: str, unusable: tuple[str, ...] = ()) -> None:
    """Fill the store as `evaluate` does with the traces of items of these texts."""
    data = config.data
    loaded = load_sets(data.train, limits=data)
    settings = Settings(
        templates=data.templates,
        max_frames=data.media.max_frames,
        item_tokens=data.item_tokens,
        resamples=0,
        seed=0,
    )
    [ranked] = sets_of_pairs(list(loaded[0].pairs))
    _, asked = subjects_of(dict.fromkeys(ends_of(ranked), ranked.name), settings)
    recipe = reasoner_recipe(
        config.reasoner, config.rollout, data.media, templates=data.templates, seed=None
    )
    TraceStore(Path(config.store) / "traces", recipe).add(
        [
            StoredTrace(of=s, text="no tags" if s.item.text in unusable else OTHER[s.item.kind])
            for s, _ in asked
            if s.item.text in (*texts, *unusable)
        ],
        made_by="evaluate",
    )


def traced(config: EmbedderConfig | WarmStartConfig):
    sets = config.data.train
    return with_stored_traces(load_sets(sets, limits=config.data), sets, config)


def test_pairs_have_the_traces_of_the_store_and_none_of_their_rows(config, caplog) -> None:
    evaluated(config, "who?", "a dog", "a cat", unusable=("where?",))
    with caplog.at_level(logging.INFO):
        [loaded] = traced(config)
    assert "data set 'set': traces of" in caplog.text
    assert "coverage 0.600 of 5 queries and targets" in caplog.text
    traces = [(pair.query_trace, pair.target_trace) for pair in loaded.pairs]
    text = OTHER["text"]
    assert traces == [("", text), (OTHER["image"], text), ("", text)]
    assert [pair.query.text for pair in loaded.pairs] == ["what?", "who?", "where?"]
    assert loaded.pairs[-1] == list(loaded.pairs)[2] == loaded.pairs[1:][1]
    assert not loaded.pairs[2].answer_known
    assert loaded.table.with_trace(Side.QUERY).tolist() == [False, True, False]
    assert loaded.table.with_trace(Side.TARGET).all()
    assert list(traces_in_use([loaded])) == [q for q, _ in traces] + [t for _, t in traces]
    # The hard negative of a row is the target of another.
    feed = PairFeed([loaded], {"set": 1.0}, batch=2, seed=0)
    assert list(negatives_traces(feed).values()) == [text]


def test_a_larger_share_without_traces_is_refused_with_the_reasons(config) -> None:
    evaluated(config, "a dog", unusable=("where?",))
    with pytest.raises(DataError, match=r"5 queries .* 'set', .* 0\.5 .* found 4 missing; 1: "):
        traced(config)


def test_without_a_store_the_rows_traces_count(config) -> None:
    [loaded] = traced(replace(config, store="", reasoner=""))
    assert [pair.query_trace for pair in loaded.pairs] == [IMAGE, "", TEXT]
    assert list(traces_in_use([loaded])) == []


def test_warm_start_learns_the_traces_of_the_store_and_captions_as_they_are(
    config, tmp_path
) -> None:
    evaluated(config, "what?", "who?", "where?", "a dog", "a cat")
    (tmp_path / "captions").mkdir()
    said = [{"from": "human", "value": "<image>\nName it."}, {"from": "gpt", "value": "a dog"}]
    rows = [{"id": "1", "image": "a.png", "conversations": said}]
    captions = write_set(tmp_path / "captions", rows, format="caption", name="captions")
    write_picture(tmp_path / "captions/root/a.png")
    warm = WarmStartConfig(
        run=config.run,
        data=DataConfig(train=[*config.data.train, captions], templates="brief"),
        model="m",
        store=config.store,
        reasoner=config.reasoner,
    )
    responses = {
        key: response
        for loaded, settings in zip(traced(warm), warm.data.train, strict=True)
        for key, _, response in supervised_rows(
            loaded, data=warm.data, caption=settings.format == "caption"
        )
    }
    assert responses.pop("captions/1/query") == "a dog"
    assert responses["set/set-0/query"] == OTHER["image"]
    assert len(responses) == 6
