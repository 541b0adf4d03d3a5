"""Traces on disk: with their provenance, never a failed one as done, and counted."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import MediaConfig, RolloutConfig, SamplingConfig
from data.errors import DataError
from data.prompts import item_content, templates_version
from data.rows.trace_files import read_published_traces
from data.stores.facts import TraceRecipe, published_recipe, reasoner_recipe
from data.stores.keys import content_key
from data.stores.traces import (
    AMBIGUOUS,
    NOT_IN_FILES,
    NamedSubject,
    StoredTrace,
    Subject,
    TraceCost,
    TraceStore,
)
from data.types import Item, Kind, Side

RECIPE = TraceRecipe(model="m", templates="full-1", temperature=0.7, seed=5)
ASK = "run the job that writes them"


def subject(text: str, side: Side = Side.TARGET, *uris: str) -> Subject:
    item = Item(text=text, kind=Kind.IMAGE if uris else Kind.TEXT, uris=uris)
    content = item_content(item, side, templates="full", max_frames=8, item_tokens=0)
    return Subject(key=content_key(content), item=item, side=side, task="coco")


def store_of(root: Path, *texts: str) -> tuple[TraceStore, list[str]]:
    """Return a store with a trace of each text that is not empty, and all keys."""
    store = TraceStore(root, RECIPE)
    traces = [StoredTrace(of=subject(str(i)), text=text) for i, text in enumerate(texts)]
    store.add(traces, made_by="a test")
    return TraceStore(root, RECIPE), [trace.of.key for trace in traces]


def named(kind: str, name: str, of: Subject) -> NamedSubject:
    return NamedSubject(of=of, kind=kind, name=name)


def test_traces_come_back_by_key_whatever_they_spell(tmp_path) -> None:
    texts = ["<thinking>\u661f\n", "b" * 5000, "\ud83d alone"]
    store, keys = store_of(tmp_path, *texts)
    traces = store.traces([keys[2], keys[0], keys[2]], most_missing=0, remedy=ASK)
    assert traces == {keys[2]: "? alone", keys[0]: texts[0]}
    assert list(traces) == [keys[2], keys[0]]


def test_a_part_tells_people_what_each_trace_is_of_and_who_wrote_it(tmp_path) -> None:
    store = TraceStore(tmp_path, RECIPE)
    of = subject("a star", Side.QUERY, "a.png")
    trace = StoredTrace(of=of, text="trace", finish="length", tokens=7, wall_ms=2.5)
    store.add([trace], made_by="runs/traces")
    [part] = store.folder.glob("*.parquet")
    [row] = pq.read_table(part).to_pylist()
    assert row.pop("made_at").tzname() == "UTC"
    assert row == {
        "key": of.key,
        "failed": None,
        "side": "query",
        "task": "coco",
        "kind": "image",
        "instruction": "",
        "item_text": "a star",
        "uris": ["a.png"],
        "model": "m",
        "templates": "full-1",
        "temperature": 0.7,
        "seed": 5,
        "text": "trace",
        "finish": "length",
        "made_by": "runs/traces",
        "tokens": 7,
        "wall_ms": 2.5,
    }
    assert json.loads((store.folder / "facts.json").read_text())["model"] == "m"


def test_the_cost_of_traces_is_a_mean_over_those_of_which_it_is_known(tmp_path) -> None:
    store, keys = store_of(tmp_path, "unknown")
    assert store.cost(keys) == TraceCost(tokens=None, wall_ms=None)
    made = [
        StoredTrace(of=subject("a"), text="a", tokens=3, wall_ms=1.0),
        StoredTrace(of=subject("b"), text="b", tokens=6, wall_ms=2.0),
        StoredTrace(of=subject("c"), text="c", tokens=900, wall_ms=900.0),
        StoredTrace(of=subject("d"), failed="engine died"),
    ]
    store.add(made, made_by="a test")
    keys += [made[number].of.key for number in (0, 1, 0, 3)]
    assert store.cost(keys) == TraceCost(tokens=4.5, wall_ms=1.5)
    assert store.tokens(keys) == {keys[1]: 3, keys[2]: 6}


def test_a_part_from_before_costs_were_kept_is_read(tmp_path) -> None:
    store, keys = store_of(tmp_path, "a", "b")
    [part] = store.folder.glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["tokens", "wall_ms"]), part)
    newer = StoredTrace(of=subject("new"), text="c", tokens=5, wall_ms=1.0)
    store = TraceStore(tmp_path, RECIPE)
    store.add([newer], made_by="a test")
    keys.append(newer.of.key)
    traces = store.traces(keys, most_missing=0, remedy=ASK)
    assert (list(traces.values()), dict(store.set_aside)) == (["a", "b", "c"], {})
    assert store.cost(keys) == TraceCost(tokens=5, wall_ms=1.0)
    assert store.tokens(keys) == {newer.of.key: 5}


def test_what_failed_is_never_done_and_counts_as_missing(tmp_path) -> None:
    store, keys = store_of(tmp_path, "trace", "  ")
    of = subject("2")
    store.add([StoredTrace(of=of, text="cut", failed="engine died")], made_by="a test")
    keys.append(of.key)
    assert store.missing([*keys, keys[2]]) == keys[1:]
    assert store.failures(keys) == {keys[1]: "empty trace", keys[2]: "engine died"}
    assert store.coverage([*keys, *keys]) == pytest.approx(1 / 3)
    store.add([StoredTrace(of=of, text="at last")], made_by="a test")
    assert store.failures(keys) == {keys[1]: "empty trace"}
    assert store.coverage(keys[2:]) == 1
    assert store.coverage([]) == 1


def test_a_larger_share_of_missing_traces_is_refused_with_the_remedy(tmp_path) -> None:
    store, keys = store_of(tmp_path, "a", "b", "c", "")
    assert len(store.traces(keys, most_missing=0.25, remedy=ASK)) == 3
    with pytest.raises(DataError, match="4 items, .* 0.2 may be missing, found 1 .*empty.*" + ASK):
        store.traces(keys, most_missing=0.2, remedy=ASK)


@pytest.mark.parametrize("changed", [{"model": "n"}, {"templates": "x"}, {"seed": 6}])
def test_another_recipe_has_other_traces(tmp_path, changed) -> None:
    _, keys = store_of(tmp_path, "a")
    assert TraceStore(tmp_path, replace(RECIPE, **changed)).coverage(keys) == 0


def test_item_side_and_task_are_in_the_key() -> None:
    contents = [
        item_content(item, side, templates="full", max_frames=8, item_tokens=0, seeks_video=seeks)
        for item in (Item(text="a"), Item(text="a", kind=Kind.IMAGE, uris=("a.png",)))
        for side, seeks in ((Side.QUERY, False), (Side.TARGET, False))
    ]
    video = item_content(
        Item(text="a"), Side.QUERY, templates="full", max_frames=8, item_tokens=0, seeks_video=True
    )
    assert len({content_key(content) for content in (*contents, video)}) == 5


def test_a_cut_part_is_named_and_its_traces_are_missing(tmp_path) -> None:
    store, keys = store_of(tmp_path, "a")
    [part] = store.folder.glob("*.parquet")
    os.truncate(part, part.stat().st_size // 2)
    assert store.missing(keys) == keys
    assert list(store.set_aside) == [part.name]


def test_a_recipe_follows_from_files_prompts_sampling_and_pixels(tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    rollout, media, model = RolloutConfig(), MediaConfig(), str(tmp_path)
    recipe = reasoner_recipe(model, rollout, media, templates="full", seed=None)
    assert recipe.templates == templates_version("full")
    hotter = replace(rollout, sampling=SamplingConfig(temperature=0.3))
    assert recipe == reasoner_recipe(model, hotter, media, templates="full", seed=None)
    others = [
        reasoner_recipe(model, hotter, media, templates="full", seed=1),
        reasoner_recipe(model, rollout, media, templates="full", seed=1),
        reasoner_recipe(model, rollout, media, templates="full", seed=2),
        reasoner_recipe(model, rollout, media, templates="brief", seed=None),
        reasoner_recipe(
            model, rollout, replace(media, page_max_pixels=1 << 22), templates="full", seed=None
        ),
    ]
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    others.append(reasoner_recipe(model, rollout, media, templates="full", seed=None))
    assert len({json.dumps(r.more) + repr(r) for r in (recipe, *others)}) == 7


def test_published_traces_are_taken_over_once(tmp_path) -> None:
    for name, content in {
        "docvqa_query.json": [
            {"query-id": 1, "query_cot": "of one"},
            {"query-id": 2, "query_cot": ""},
        ],
        "docvqa_corpus.json": [{"corpus-id": 7, "image_path": "p.png", "corpus_cot": "of a page"}],
        "k700_corpus_cot.json": [
            {"corpus_id": "corpus_0", "item_id": 0, "corpus_content": "ski", "corpus_cot": "of ski"}
        ],
        "coco_corpus_cot.json": {"text": {"a star": "of a star"}, "image": {"x.png": "of x"}},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    paths = sorted(tmp_path.glob("*.json"))
    files = read_published_traces(paths)
    subjects = {
        "of one": named("query-id", "1", subject("one", Side.QUERY)),
        NOT_IN_FILES: named("query-id", "2", subject("two", Side.QUERY)),
        "of a page": named("corpus-id", "7", subject("", Side.TARGET, "p.png")),
        "of a star": named("text", "a star", subject("a star")),
        "of ski": named("corpus_content", "ski", subject("ski")),
        "of x": named("image", "x.png", subject("", Side.TARGET, "x.png")),
    }
    store = TraceStore(tmp_path / "store", published_recipe(paths))
    store.take_over([*subjects.values(), *subjects.values()], files, made_by="published files")
    keys = [of.of.key for of in subjects.values()]
    traces = store.traces(keys, most_missing=0.2, remedy=ASK)
    assert traces == {of.of.key: text for text, of in subjects.items() if text != NOT_IN_FILES}
    assert list(store.failures(keys).values()) == [NOT_IN_FILES]

    store.add([StoredTrace(of=subjects[NOT_IN_FILES].of, text="written")], made_by="a job")
    before = len(list(store.folder.glob("*.parquet")))
    store.take_over(subjects.values(), files, made_by="published files")
    assert store.coverage(keys) == 1
    assert len(list(store.folder.glob("*.parquet"))) == before
    paths[0].write_text("[]")
    assert TraceStore(tmp_path / "store", published_recipe(paths)).coverage(keys) == 0


def test_options_that_differ_by_a_letter_share_the_trace_of_their_text(tmp_path) -> None:
    path = tmp_path / "mvbench_corpus_cot.json"
    path.write_text(json.dumps([{"corpus_content": "red", "corpus_cot": "of red"}]))
    options = [subject(text) for text in ("(A) red", "(B) red")]
    store = TraceStore(tmp_path, published_recipe([path]))
    names = [named("corpus_content", "red", of) for of in options]
    store.take_over(names, read_published_traces([path]), made_by="published files")
    assert store.coverage([of.key for of in options]) == 1


def test_captions_of_one_image_never_share_a_trace(tmp_path) -> None:
    (tmp_path / "oven_corpus_cot.json").write_text(json.dumps({"text": {}, "image": {"x": "of x"}}))
    path = tmp_path / "oven_corpus_cot.json"
    files = read_published_traces([path])
    captions = [subject(text, Side.TARGET, "x.png") for text in ("a cat", "a dog")]
    store = TraceStore(tmp_path, published_recipe([path]))
    store.take_over([named("image", "x", of) for of in captions], files, made_by="published files")
    keys = [of.key for of in captions]
    assert store.coverage(keys) == 0
    assert store.failures(keys) == dict.fromkeys(keys, AMBIGUOUS)


def test_vectors_and_traces_never_read_each_other(tmp_path) -> None:
    store, keys = store_of(tmp_path, "a")
    pq.write_table(
        pa.table({"key": keys, "failed": pa.nulls(1, pa.string())}), store.folder / "v.parquet"
    )
    assert store.coverage(keys) == 1
    assert list(store.set_aside) == ["v.parquet"]
