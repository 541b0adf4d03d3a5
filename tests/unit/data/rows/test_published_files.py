"""Small files with the names, fields and values of published ones, and the pairs that they give."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import DataConfig, MediaConfig
from configs.load import load
from configs.schema import EvaluateConfig
from data.errors import DataError
from data.sets.fingerprints import pairs_fingerprint
from data.sets.load_sets import load_set, load_sets
from data.types import Item, Kind
from tests.builders import TRACES, write_beir, write_picture, write_set

pytestmark = pytest.mark.usefixtures("table_cache")
STRICT = DataConfig(max_bad_rows=0.0)
MMEB_TRAIN = [
    {
        "qry": "<|image_1|>\nRepresent the given image with the following question: What is it?\n",
        "qry_image_path": "images/A-OKVQA/Train/A-OKVQA_0.jpg",
        "pos_text": "train",
        "pos_image_path": "",
        "neg_text": "",
        "neg_image_path": "",
    },
    {
        "qry": "Find me an everyday image that matches the given caption: A dog.\n",
        "qry_image_path": "",
        "pos_text": "<|image_1|>\nRepresent the given image.\n",
        "pos_image_path": "images/MSCOCO_t2i/Train/COCO_2.jpg",
        "neg_text": "<|image_1|>\nRepresent the given image.\n",
        "neg_image_path": "images/MSCOCO_t2i/Train/COCO_3.jpg",
    },
]
FRAMES = [f"MMEB-train/llavahound/v_1/c01_000{n}.jpeg" for n in (1, 2, 3)]
BLANK = ["images/blank.jpg"]


def talk(human, gpt):
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


LLAVAHOUND = {
    "llavahound_caption_retrieval": {
        "qry": {"conversations": talk("<video>\nDescribe it.\n", ""), "video": FRAMES},
        "pos": {"conversations": talk("", "A man rides."), "video": BLANK},
    },
    "llavahound_qa": {
        "qry": {"conversations": talk("<video>\nWho rides?", ""), "video": FRAMES},
        "pos": {"conversations": talk("", "a man"), "video": BLANK},
    },
    "llavahound_video_retrieval": {
        "qry": {"conversations": talk("Find a video.", "A man rides."), "video": BLANK},
        "pos": {
            "conversations": talk("<video>\nUnderstand the content of the provided video.", ""),
            "video": FRAMES,
        },
    },
}


def make_media(root):
    names = [row[name] for row in MMEB_TRAIN for name in row if name.endswith("path") if row[name]]
    for width, name in enumerate([*names, *FRAMES, *BLANK], start=30):
        path = write_picture(
            Path(root) / name.replace(".jpeg", ".png").replace(".jpg", ".png"), width
        )
        path.rename(Path(root) / name)


@pytest.fixture
def config(tmp_path):
    config = write_set(tmp_path, MMEB_TRAIN)
    make_media(config.root)
    return config


def test_the_splits_of_mmeb_train_are_told_apart_by_name(config, tmp_path):
    """The hub has the files of `original` and `diverse_instruction` side by side."""
    folder = tmp_path / "MMEB-train/A-OKVQA"
    folder.mkdir(parents=True)
    other = [row | {"qry": f"Consider: {row['qry']}"} for row in MMEB_TRAIN]
    for split, rows in (("original", MMEB_TRAIN), ("diverse_instruction", other)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    sets = [
        replace(config, name=split, path=str(folder / split))
        for split in ("original", "diverse_instruction")
    ]
    original, diverse = load_sets(sets, limits=STRICT)
    (expected,) = load_sets([config], limits=STRICT)
    assert [p.query for p in original.pairs] == [p.query for p in expected.pairs]
    assert [p.target for p in diverse.pairs] == [p.target for p in expected.pairs]
    assert [p.query.text for p in diverse.pairs] == [
        f"Consider: {p.query.text}" if p.query.kind is Kind.TEXT else f"Consider: \n{p.query.text}"
        for p in expected.pairs
    ]
    assert original.files == (f"{folder}/original-00000-of-00001.parquet",)
    prints = [
        pairs_fingerprint([one], [part])
        for one, part in zip(sets, (original, diverse), strict=True)
    ]
    assert prints[0]["file of set 'original'"] != prints[1]["file of set 'diverse_instruction'"]
    with pytest.raises(DataError, match=r"a folder of its own, or name one of them, as in .*/dive"):
        load_set(replace(config, path=str(folder)))
    with pytest.raises(DataError, match="A-OKVQA/orig: file not found"):
        load_set(replace(config, path=str(folder / "orig")))


def test_a_missing_shard_of_a_split_is_named(config, tmp_path):
    for number in (0, 2):
        name = f"original-0000{number}-of-00003.parquet"
        pq.write_table(pa.Table.from_pylist(MMEB_TRAIN), tmp_path / name)
    with pytest.raises(DataError, match=r"original-00001-of-00003.parquet is missing"):
        load_set(replace(config, path=str(tmp_path / "original")))


@pytest.mark.parametrize("form", ["json", "parquet"])
@pytest.mark.parametrize("name", LLAVAHOUND)
def test_llavahound_rows_give_a_text_and_a_video(config, form, name):
    """As VLM2Vec and Embed-RL write them: a side without a video has a blank picture as video."""
    row = {
        "dataset_name": name,
        **LLAVAHOUND[name],
        "query_cot": TRACES[Kind.TEXT if "video_retrieval" in name else Kind.VIDEO],
        "pos_cot": TRACES[Kind.VIDEO if "video_retrieval" in name else Kind.TEXT],
        "error": "",
    }
    path = Path(config.path).with_name(f"{name}_1.{form}")
    if form == "json":
        path.write_text(json.dumps([row], indent=4))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    ((pair,),) = (
        loaded.pairs
        for loaded in load_sets(
            [replace(config, path=str(path), format="llavahound")],
            limits=replace(STRICT, media=MediaConfig(video="frames")),
        )
    )
    uris = tuple(f"{config.root}/{frame}" for frame in FRAMES)
    expected = {
        "llavahound_caption_retrieval": ("Describe it.", "A man rides."),
        "llavahound_qa": ("Who rides?", "a man"),
        "llavahound_video_retrieval": (
            "A man rides.",
            "Understand the content of the provided video.",
        ),
    }[name]
    assert (pair.query.text, pair.target.text) == expected
    assert (pair.query.uris, pair.target.uris) == (
        ((), uris) if "video_retrieval" in name else (uris, ())
    )
    assert pair.query_trace == row["query_cot"]
    assert pair.target_trace == row["pos_cot"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_llavahounds_own_files(config, form):
    """ShareGPTVideo's `video_caption_300k.jsonl`; `video` is a folder of frames, by its name."""
    rows = [
        {
            "id": "v_1_0",
            "video": "v_1",
            "conversations": talk("<video>\nDescribe it.", "A man rides."),
        },
        {"id": "v_1_1", "video": "v_9", "conversations": talk("<video>\nWho?", "a man")},
        {"id": "v_1_2", "conversations": talk("Who?", "a man")},
        {
            "id": "v_1_3",
            "video": "v_1",
            "conversations": [*talk("<video>\nWho?", "a man"), *talk("Where?", "at sea")],
        },
    ]
    path = Path(config.path).with_suffix(f".{form}")
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    root = f"{config.root}/MMEB-train/llavahound"
    loaded = load_set(
        replace(config, path=str(path), root=root, format="llavahound"), video="frames"
    )
    (pair,) = loaded.pairs
    uris = tuple(f"{config.root}/{frame}" for frame in FRAMES)
    assert pair.query == Item(text="Describe it.", kind=Kind.VIDEO, uris=uris)
    assert pair.target == Item(text="A man rides.")
    assert pair.pair_id == "v_1_0"
    assert [bad.field for bad in loaded.bad_rows] == ["video", "video", "conversations"]
    assert loaded.unknown_fields == {}


def test_training_rows_with_traces_of_both_sides(config):
    """`MMEB-train-sample-cot/<D>.json`: the rows, `query_cot`, `pos_cot` and `error`."""
    kinds = ((Kind.IMAGE, Kind.TEXT), (Kind.TEXT, Kind.IMAGE))
    rows = [
        row | {"query_cot": TRACES[query], "pos_cot": TRACES[target], "error": ""}
        for row, (query, target) in zip(MMEB_TRAIN, kinds, strict=True)
    ]
    failed = MMEB_TRAIN[0] | {"query_cot": "", "pos_cot": "", "error": "Empty query"}
    Path(config.path).write_text(json.dumps([*rows, failed]))
    loaded = load_set(config)
    assert [(p.query_trace, p.target_trace) for p in loaded.pairs] == [
        (TRACES[query], TRACES[target]) for query, target in kinds
    ]
    assert [bad.field for bad in loaded.bad_rows] == ["error"]


@pytest.fixture
def visual_documents(tmp_path):
    """Return a ViDoRe set; write its traces as `cot/VisDo/ViDoRe_docvqa_*.json`."""
    pages = [write_picture(tmp_path / f"{n}.png", 30 + n).read_bytes() for n in range(3)]
    config = write_beir(
        tmp_path,
        {"query-id": [1, 2], "query": ["how many?", "who?"]},
        {"corpus-id": [7, 8, 9], "image": pages},
        {"query-id": [1, 2], "corpus-id": [8, 7], "score": [1, 1]},
    )
    queries = [
        {"query-id": 1, "query": "how many?", "query_cot": TRACES[Kind.TEXT], "error": ""},
        {"query-id": 2, "query": "who?", "query_cot": "", "error": "timed out"},
    ]
    corpus = [
        {
            "corpus-id": number,
            "image_path": f"/data/images_cache/ViDoRe_docvqa/{number}.png",
            "corpus_cot": TRACES[Kind.PAGE].replace("title", f"title {number}"),
            "error": "",
        }
        for number in (7, 8, 9)
    ]
    files = []
    for name, rows in (("query", queries), ("corpus", corpus)):
        files.append(tmp_path / f"ViDoRe_docvqa_{name}.json")
        files[-1].write_text(json.dumps(rows, indent=2))
    return replace(config, traces=[*map(str, files)])


def test_traces_of_visual_documents_are_read_by_their_ids(visual_documents):
    (loaded,) = load_sets([visual_documents], limits=STRICT)
    assert [(p.query_trace, p.target_trace) for p in loaded.pairs] == [
        (TRACES[Kind.TEXT], TRACES[Kind.PAGE].replace("title", "title 8")),
        ("", TRACES[Kind.PAGE].replace("title", "title 7")),
    ]


def test_a_yaml_file_names_rows_and_traces(visual_documents, tmp_path):
    file = tmp_path / "evaluate.yaml"
    file.write_text(
        f"""
run: {{dir: runs/x}}
warm_start: a
eg_rl: b
reward: {{model: c}}
data:
  eval:
  - name: ViDoRe_docvqa
    format: beir
    path: {visual_documents.path}
    root: {visual_documents.root}
    traces: [{", ".join(visual_documents.traces)}]
"""
    )
    (data_set,) = load(EvaluateConfig, file, []).data.eval
    assert load_set(data_set).pairs[0].query_trace == TRACES[Kind.TEXT]


def test_other_traces_are_other_inputs(visual_documents):
    before = pairs_fingerprint([visual_documents], [load_set(visual_documents)])
    file = Path(visual_documents.traces[0])
    file.write_text(file.read_text().replace("a dog", "a cat"))
    assert pairs_fingerprint([visual_documents], [load_set(visual_documents)]) != before


def test_traces_of_image_sets_are_read_by_text_and_path(config):
    """`<D>.json` has rows with `query_cot`; `<D>_corpus_cot.json` the candidates' traces."""
    rows = [
        {
            "qry_inst": "Find the answer.",
            "qry_text": "What is it?",
            "qry_img_path": MMEB_TRAIN[0]["qry_image_path"],
            "tgt_inst": "",
            "tgt_text": [" train\n", "dog"],
            "tgt_img_path": ["", ""],
            "query_cot": TRACES[Kind.IMAGE],
            "error": "",
        },
        {
            "qry_inst": "",
            "qry_text": "A dog.",
            "qry_img_path": "",
            "tgt_inst": "",
            "tgt_text": ["", ""],
            "tgt_img_path": [MMEB_TRAIN[1]["pos_image_path"], MMEB_TRAIN[1]["neg_image_path"]],
            "query_cot": "",
            "error": "",
        },
    ]
    corpus = {
        "text": {"train": TRACES[Kind.TEXT], "dog": ""},
        "image": {MMEB_TRAIN[1]["pos_image_path"]: TRACES[Kind.IMAGE]},
    }
    Path(config.path).write_text(json.dumps(rows))
    traces = Path(config.path).with_name("D_corpus_cot.json")
    traces.write_text(json.dumps(corpus, indent=2))
    loaded = load_set(replace(config, format="mmeb_eval", traces=[str(traces)]))
    assert loaded.bad_rows == ()
    assert [(p.query_trace, p.target_trace) for p in loaded.pairs] == [
        (TRACES[Kind.IMAGE], TRACES[Kind.TEXT]),
        ("", TRACES[Kind.IMAGE]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found; check the set's `traces`"),
        ("{", "expected traces as JSON, found a file that cannot be read"),
        ("[" * 100_000, "expected traces as JSON, found a file that cannot be read"),
        ("7", "expected a list of objects with query-id and query_cot or with corpus-id"),
        ('{"text": ["a"]}', "expected a list of objects"),
        ('{"text": {"a": "b"}, "video": {}}', "expected a list of objects"),
        ('[{"query-id": 1, "query_cot": "a"}, {"query-id": 1}]', "expected a list of objects"),
        ('[{"query-id": 1, "query_cot": ""}]', "expected traces, found none in any of the set's"),
        ("[]", "expected traces, found none in any of the set's"),
    ],
)
def test_files_that_hold_no_traces_are_refused(visual_documents, tmp_path, content, message):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="other.json: " + message):
        load_set(replace(visual_documents, traces=[str(path)]))


def test_a_row_with_a_trace_that_the_grammar_refuses_is_set_aside(visual_documents):
    file = Path(visual_documents.traces[1])
    file.write_text(file.read_text().replace("<answer>a title 7</answer>", ""))
    loaded = load_set(visual_documents)
    assert [pair.row for pair in loaded.pairs] == [0]
    assert loaded.bad_rows[0].field == "pos_cot"


@pytest.mark.parametrize("as_text", [True, False])
def test_pairs_that_pandas_wrote_are_read(config, tmp_path, as_text):
    """Columns of `mmeb` and its optional fields: bytes, evidence as JSON text or as a struct."""
    root = Path(config.root)
    boxes = [{"bbox_2d": [0, 0, 500, 500]}, None]
    frame = pd.DataFrame(
        {
            "id": ["a", "b"],
            "qry": ["What is it?", "A dog."],
            "qry_image_path": [(root / MMEB_TRAIN[0]["qry_image_path"]).read_bytes(), None],
            "pos_text": ["train", None],
            "pos_image_path": [None, MMEB_TRAIN[1]["pos_image_path"]],
            "label": [3, 4],
            "query_cot": [TRACES[Kind.IMAGE], None],
            "cot_knows_answer": [True, False],
            "qry_evidence": [json.dumps(box) if as_text and box else box for box in boxes],
        },
        index=[5, 6],
    )
    path = tmp_path / "pairs.parquet"
    frame.to_parquet(path)
    if not as_text:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        assert "struct" in str(pq.read_schema(path).field("qry_evidence").type)
        table = pq.read_table(path)
        mixed = [
            {"bytes": (root / MMEB_TRAIN[0]["qry_image_path"]).read_bytes(), "path": None},
            {"bytes": None, "path": None},
        ]
        index = table.schema.get_field_index("qry_image_path")
        pq.write_table(table.set_column(index, "qry_image_path", pa.array(mixed, kind)), path)
    (loaded,) = load_sets([replace(config, path=str(path))], limits=STRICT)
    first, second = loaded.pairs
    assert first.query.uris == (f"{path}#row=0&column=qry_image_path",)
    assert second.target == Item(
        text="", kind=Kind.IMAGE, uris=(f"{root}/{MMEB_TRAIN[1]['pos_image_path']}",)
    )
    assert (first.pair_id, first.label, first.answer_known) == ("a", "3", True)
    assert (first.query_trace, len(first.query_evidence.boxes)) == (TRACES[Kind.IMAGE], 1)
    assert (second.query_trace, second.query_evidence.boxes) == ("", ())
