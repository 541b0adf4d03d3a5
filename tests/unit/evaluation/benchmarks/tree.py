"""Small trees of MMEB-V2 and UVRB in the published layout, and what must be read from them.

Rows, paths and texts are written here by hand, per parser, not by the code under test; of the
tables only names, places and parsers are taken.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.benchmarks.tables import BenchmarkSet, benchmark_suite, video_labels
from tests.builders import write_picture

V, Q = "vlm2vec", "qwen3_vl_embedding"
FRAMES = 12
NATURAL = [1, 2, 4, 5, 7, 8, 10, 12]
"""Numbers of the 8 frames that are shown of 12: places 0, 1, 3, 4, 6, 7, 9 and 11, from 1."""
LEXICAL = [1, 10, 12, 2, 4, 5, 7, 9]
"""The same places where names are ordered as texts: 1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9."""
QA = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer."
)
PAGE = "Find a document image that matches the given query"
INSTRUCTIONS = {
    "K700": "Recognize the category of the video content.",
    "SmthSmthV2": "What actions or object interactions are being performed by the person in the "
    "video?",
    "UCF101": "What activities or sports are being performed by the person in the video?",
    "HMDB51": "What actions or objects interactions are the person in the video doing?",
    "Breakfast": "Recognize the breakfast type that the person is cooking in the video.",
    "MSR-VTT": "Find a video that contains the following visual content",
    "MSVD": "Find the video snippet that corresponds to the given summary",
    "DiDeMo": "Find a video that includes the following described scenes",
    "VATEX": "Select a video that fits the description provided",
    "YouCook2": "Find a video that demonstrates the following action while making a recipe",
    "QVHighlight": "Find the clip that corresponds to the described scene in the given video",
    "Charades-STA": "Find the clip that corresponds to the described scene in the given video",
}
"""Without the last mark where the two forms differ in it."""


@dataclass(kw_only=True)
class Expected:
    """What a set must be read as."""

    queries: dict[str, list[tuple[str, str]]]
    """Text and instruction of each query, by form."""
    kinds: list[str]
    right: Any
    """Right candidates of each query; by form where the keys differ."""
    targets: dict[str, dict[str, str]]
    """Text of each candidate by its key, by form."""
    local: Any = None
    """Keys that each query is ranked over, by form where they differ; None: all of the set."""
    target_kind: str = "text"
    ids: list[str] = field(default_factory=list)


class Tree:
    """A root of media and a folder of rows that fill up set by set."""

    def __init__(self, folder: Path) -> None:
        self.root, self.rows = folder / "media", folder / "rows"
        self.rows.mkdir(parents=True)
        self._picture = write_picture(folder / "picture.png", 4, 3)

    def picture(self, *parts: str) -> str:
        """Add a picture under the root; return its last part."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(self._picture, path)
        return parts[-1]

    def video(self, *parts: str, name: str = "frame_{}.jpg") -> None:
        """Add a folder of frames under the root, numbered from 1 without zeros before."""
        for number in range(1, FRAMES + 1):
            self.picture(*parts, name.format(number))

    def write(self, place: str, rows: Sequence[dict[str, Any]], *, table: bool = False) -> None:
        """Write rows as JSON lines, or as the one parquet file of a folder."""
        if table:
            file = self.rows / place / "test-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        else:
            write_lines(self.rows / f"{place}.jsonl", rows)

    @property
    def picture_bytes(self) -> bytes:
        return self._picture.read_bytes()


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add_set(tree: Tree, name: str) -> Expected:
    """Add a set of MMEB-V2 to a tree; return what it must be read as."""
    table = benchmark_suite("mmeb_v2").sets[name]
    return _BUILDERS[table.parser](tree, table)


def _image_texts(tree: Tree, table: BenchmarkSet) -> Expected:
    name = table.name
    first = {
        "qry_inst": "<|image_1|>\nRepresent the given image.\n",
        "qry_text": "a headline ",
        "qry_img_path": f"{name}/q0.png",
        "tgt_inst": "unused",
        "tgt_text": ["cat", "dog ", "an <|image_1|>owl"],
        "tgt_img_path": ["", "", ""],
    }
    second = {
        **first,
        "qry_inst": "<|image_1|> Identify the object",
        "qry_text": "",
        "qry_img_path": f"{name}/q1.png",
        "tgt_text": ["dog ", "cat"],
        "tgt_img_path": ["", ""],
    }
    for number in range(2):
        tree.picture("image-tasks", name, f"q{number}.png")
    tree.write(f"image-query/{name}", [first, second], table=True)
    # Of questions VLM2Vec joins the instruction without white space at its ends.
    between = " " if table.parser == "image_qa" else "\n "
    return Expected(
        queries={
            V: [
                (f"Represent the given image.{between}a headline", ""),
                ("Identify the object", ""),
            ],
            Q: [("a headline ", "Represent the given image."), ("", "Identify the object.")],
        },
        kinds=["image", "image"],
        right=[{"cat": 1}, {"dog ": 1}],
        local=[["cat", "dog ", "an <|image_1|>owl"], ["dog ", "cat"]],
        targets={
            V: {"cat": "cat", "dog ": "dog", "an <|image_1|>owl": "an owl"},
            Q: {"cat": "cat", "dog ": "dog ", "an <|image_1|>owl": "an owl"},
        },
    )


def _text_to_image(tree: Tree, table: BenchmarkSet) -> Expected:
    name = table.name
    paths = [f"{name}/{letter}.png" for letter in "abc"]
    for path in paths:
        tree.picture("image-tasks", path)
    first = {
        "qry_inst": "Find an image: \n",
        "qry_text": " a  dog \nruns ",
        "qry_img_path": "",
        "tgt_inst": "<|image_1|> Represent the image. \n",
        "tgt_text": [" a caption", ""],
        "tgt_img_path": paths[:2],
    }
    second = {**first, "tgt_text": ["", ""], "tgt_img_path": [paths[2], paths[0]]}
    tree.write(f"image-query/{name}", [first, second], table=True)
    text = "Find an image: \n  a  dog \nruns"
    return Expected(
        queries={V: [(text, "")] * 2, Q: [(" a  dog \nruns ", "Find an image:")] * 2},
        kinds=["text", "text"],
        right=[{paths[0]: 1}, {paths[2]: 1}],
        local=[paths[:2], [paths[2], paths[0]]],
        targets={
            V: {
                paths[0]: "Represent the image.\n  a caption",
                paths[1]: "Represent the image.",
                paths[2]: "Represent the image.",
            },
            Q: {paths[0]: "a caption", paths[1]: "", paths[2]: ""},
        },
        target_kind="image",
    )


def _image_to_image(tree: Tree, table: BenchmarkSet) -> Expected:
    name = table.name
    for letter in "qab":
        tree.picture("image-tasks", name, f"{letter}.png")
    first = {
        "qry_inst": "<|image_1|> Select the portion:\n",
        "qry_text": '"left hat" \n',
        "qry_img_path": f"{name}/q.png",
        "tgt_inst": "<|image_1|>\nRepresent the object.",
        "tgt_text": ['"a red hat"', "b"],
        "tgt_img_path": [f"{name}/a.png", f"{name}/a.png"],
    }
    second = {**first, "tgt_text": ["", ""], "tgt_img_path": [f"{name}/b.png", f"{name}/a.png"]}
    tree.write(f"image-query/{name}", [first, second], table=True)
    keys = [f"{name}/a.png:a red hat", f"{name}/a.png:b", f"{name}/b.png:", f"{name}/a.png:"]
    return Expected(
        queries={
            V: [('Select the portion: "left hat"', "")] * 2,
            Q: [('"left hat" \n', "Select the portion:")] * 2,
        },
        kinds=["image", "image"],
        right=[{keys[0]: 1}, {keys[2]: 1}],
        local=[keys[:2], keys[2:]],
        targets={
            V: {
                keys[0]: 'Represent the object. "a red hat"',
                keys[1]: "Represent the object. b",
                keys[2]: "Represent the object.",
                keys[3]: "Represent the object.",
            },
            Q: {keys[0]: '"a red hat"', keys[1]: "b", keys[2]: "", keys[3]: ""},
        },
        target_kind="image",
    )


def _classes(tree: Tree, table: BenchmarkSet) -> Expected:
    labels = list(video_labels(table.name))
    for video in ("v1", "v2"):
        tree.video(table.media[0], video)
    rows = [
        {"video_id": "v1", "pos_text": labels[3]},
        {"video_id": "v2", "pos_text": "a new one"},
    ]
    tree.write(table.offline, rows)
    labels.append("a new one")
    instruction = INSTRUCTIONS[table.name]
    return Expected(
        queries={V: [(instruction, "")] * 2, Q: [("", instruction)] * 2},
        kinds=["video", "video"],
        right=[{labels[3]: 1}, {"a new one": 1}],
        targets={form: {label: label for label in labels} for form in (V, Q)},
    )


def _own_classes(tree: Tree, table: BenchmarkSet) -> Expected:
    tree.video(table.media[0], "7")
    row = {"video_id": 7, "pos_text": "Turning", "neg_text": ["Opening", "Turning"]}
    # Only the first 1,000 rows count; the video of the next is not there.
    tree.write(table.offline, [row] * 1000 + [{**row, "video_id": 8}])
    instruction = INSTRUCTIONS[table.name]
    return Expected(
        queries={V: [(instruction, "")] * 1000, Q: [("", instruction)] * 1000},
        kinds=["video"] * 1000,
        right=[{"Turning": 1}] * 1000,
        local=[["Opening", "Turning"]] * 1000,
        targets={form: {"Opening": "Opening", "Turning": "Turning"} for form in (V, Q)},
    )


def _captions(tree: Tree, table: BenchmarkSet) -> Expected:
    rows: dict[str, Any] = {
        "MSR-VTT": [{"video_id": n, "video": f"{n}.mp4", "caption": f"{n} runs"} for n in "abb"],
        "MSVD": [{"video_id": n, "video": f"{n}.avi", "caption": [f"{n} runs", 0]} for n in "abb"],
        "DiDeMo": [{"video": f"test/{n}.mp4", "caption": f"{n} runs"} for n in "abb"],
        "VATEX": [{"videoID": n, "enCap": [f"{n} runs", "other"]} for n in "abb"],
        "YouCook2": [{"id": n, "video_path": f"{n}.mp4", "sentence": f"{n} runs"} for n in "abb"],
    }
    rows["MSVD"] = [{**row, "caption": [row["caption"][0], "other"]} for row in rows["MSVD"]]
    for video in "ab":
        tree.video(table.media[0], video)
    tree.write(table.offline, rows[table.name])
    asked = INSTRUCTIONS[table.name]
    return Expected(
        queries={
            V: [(f"{asked}: {n} runs", "") for n in "abb"],
            Q: [(f"{n} runs", f"{asked}.") for n in "abb"],
        },
        kinds=["text"] * 3,
        right=[{"a": 1}, {"b": 1}, {"b": 1}],
        targets={
            V: dict.fromkeys("ab", "Understand the content of the provided video."),
            Q: dict.fromkeys("ab", ""),
        },
        target_kind="video",
    )


def _moments(tree: Tree, table: BenchmarkSet) -> Expected:
    for clip in ("query", "positive_1", "negative_10", "negative_2"):
        tree.video(table.media[0], "vid_1", clip)
    tree.picture(table.media[0], "vid_1", "a file, not a clip.png")
    tree.write(table.offline, [{"query": "a man sits", "video_path": "x/y/vid_1.mp4"}])
    asked = INSTRUCTIONS[table.name]
    keys = ["vid_1/negative_2", "vid_1/negative_10", "vid_1/positive_1"]
    return Expected(
        queries={V: [(f"{asked}: a man sits", "")], Q: [("a man sits", f"{asked}.")]},
        kinds=["video"],
        right=[{keys[2]: 1}],
        local=[keys],
        targets={
            V: dict.fromkeys(keys, "Understand the content of the provided video."),
            Q: dict.fromkeys(keys, ""),
        },
        target_kind="video",
    )


def _moment_seeker(tree: Tree, table: BenchmarkSet) -> Expected:
    folder = table.media[0]
    for video in ("set_a_1", "set_a_2", "set_a_3", "set_b_9"):
        tree.video(folder, "video_frames", video)
    tree.picture(folder, "query_p.jpg")
    row = {
        "query": "he jumps",
        "input_frames": "",
        "positive_frames": [{"output_path": "set/a/1.mp4"}, {"output_path": "set/a/2.mp4"}],
        "negative_frames": [{"output_path": "set/a/3.mp4"}],
    }
    rows = [row, {**row, "input_frames": "p.jpg"}, {**row, "input_frames": "set/b/9.mp4"}]
    tree.write(table.offline, rows)
    asked = (
        "Find the clip that corresponds to the given text",
        "Select the video clip that aligns with the given text and image",
        "Find the clip that corresponds to the given sentence and video segment",
    )
    keys = [f"video_frames/set_a_{number}" for number in (1, 2, 3)]
    return Expected(
        queries={
            V: [(f"{text}: he jumps", "") for text in asked],
            Q: [("he jumps", f"{text}.") for text in asked],
        },
        kinds=["text", "image", "video"],
        right=[{keys[0]: 1, keys[1]: 1}] * 3,
        local=[keys] * 3,
        targets={
            V: dict.fromkeys(keys, "Understand the content of the provided video clip."),
            Q: dict.fromkeys(keys, ""),
        },
        target_kind="video",
    )


def _questions(
    texts: dict[str, str],
    keys: dict[str, list[str]],
    shown: dict[str, list[str]],
    right: int,
    *,
    tasks: int = 1,
) -> Expected:
    """Return what a set of one question a task must be read as."""
    return Expected(
        queries={V: [(f"{QA} Question:  {texts[V]}", "")] * tasks, Q: [(texts[Q], QA)] * tasks},
        kinds=["video"] * tasks,
        right={form: [{keys[form][right]: 1}] * tasks for form in (V, Q)},
        local={form: [keys[form]] * tasks for form in (V, Q)},
        targets={form: dict(zip(keys[form], shown[form], strict=True)) for form in (V, Q)},
    )


def _both(value: Any) -> dict[str, Any]:
    return {V: value, Q: value}


def _mvbench(tree: Tree, table: BenchmarkSet) -> Expected:
    row = {"question": "What?", "video": "v.mp4", "candidates": ["yes", "no "], "answer": "no "}
    for task in table.configs:
        tree.video(table.media[-1], task, "v.mp4", name="{}.jpeg")
        tree.write(f"{table.offline}/{task}", [row])
    text = "What?\nOptions:\n(A) yes\n(B) no"
    keys = ["(A) yes", "(B) no "]
    shown = {V: ["(A) yes", "(B) no"], Q: ["(A) yes", "(B) no "]}
    return _questions(_both(text), _both(keys), shown, 1, tasks=20)


def _nextqa(tree: Tree, table: BenchmarkSet) -> Expected:
    options = {f"a{number}": f"o{number}" for number in range(5)}
    tree.video(table.media[-1], "4740931975", name="{}.jpeg")
    row = {"video": 4740931975, "question": "why", "answer": 2, "qid": 0, "type": "CW", **options}
    tree.write(table.offline, [row])
    text = "why\nOptions:\n(A) o0\n(B) o1\n(C) o2\n(D) o3\n(E) o4"
    plain = list(options.values())
    lettered = [f"({letter}) {option}" for letter, option in zip("ABCDE", plain, strict=True)]
    by_form = {V: plain, Q: lettered}
    return _questions(_both(text), by_form, by_form, 2)


def _videomme(tree: Tree, table: BenchmarkSet) -> Expected:
    tree.video(table.media[-1], "fFj", name="{}.jpeg")
    options = ["A. Apples.", "B. Candles. And more."]
    row = {"videoID": "fFj", "question": "When?", "options": options, "answer": "B"}
    tree.write(table.offline, [row])
    text = "When?\nA. Apples.\nB. Candles. And more."
    return _questions(_both(text), _both(options), _both(["Apples", "Candles. And more"]), 1)


def _egoschema(tree: Tree, table: BenchmarkSet) -> Expected:
    tree.video("video-tasks/frames/video_qa/egoschema", "0b4", name="{}.jpeg")
    options = ["A. C cooks.", "B. C reads."]
    row = {"video_idx": "0b4", "question": "Why?", "option": options, "answer": "1"}
    tree.write(table.offline, [row])
    texts = {V: "Why?A. C cooks. B. C reads.", Q: "Why? A. C cooks. B. C reads."}
    return _questions(texts, _both(options), _both(["C cooks", "C reads"]), 1)


def _activitynetqa(tree: Tree, table: BenchmarkSet) -> Expected:
    tree.video(table.media[-1], "v_abc", name="{}.jpeg")
    row = {"video_name": "abc", "question": "is it red", "answer": "no", "question_id": "q1"}
    tree.write(table.offline, [row])
    options = ["yes", "no"]
    return _questions(_both("is it red? (A) yes; (B) no."), _both(options), _both(options), 1)


def page_file(parser: str, key: str) -> str:
    """Return the name of a page's file."""
    if parser == "vidore":
        return f"{key}.png"
    stem, ending = os.path.splitext(key)
    return f"{stem[:50]}_{hashlib.md5(key.encode()).hexdigest()[:8]}{ending}"


def _pages(tree: Tree, table: BenchmarkSet) -> Expected:
    hashed = table.parser == "visrag"
    ids: list[Any] = [("long" * 30 + ".jpg"), "b.png", "c.png"] if hashed else [11, 12, 13]
    keys = [str(key) for key in ids]
    # The last page is only in the rows.
    for key in keys[:2]:
        tree.picture(table.media[0], page_file(table.parser, key))
    picture = {"bytes": tree.picture_bytes, "path": None}
    tables = {
        "queries": pa.table({"query-id": [1, 2], "query": ["how many?", "who?"]}),
        "corpus": pa.table({"corpus-id": ids, "image": [picture] * 3}),
        "qrels": pa.table(
            {
                "query-id": [1, 1, 1, 2, 2],
                "corpus-id": [ids[0], ids[0], ids[2], ids[1], ids[2]],
                "score": [1, 2, 1, 1, 0],
            }
        ),
    }
    for part, content in tables.items():
        file = tree.rows / table.offline / part / f"{table.split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, file)
    return Expected(
        queries={
            V: [(f"{PAGE}: how many?", ""), (f"{PAGE}: who?", "")],
            Q: [("how many?", f"{PAGE}."), ("who?", f"{PAGE}.")],
        },
        kinds=["text", "text"],
        right=[{keys[0]: 2, keys[2]: 1}, {keys[1]: 1}],
        targets={
            V: dict.fromkeys(keys, "Understand the content of the provided document image."),
            Q: dict.fromkeys(keys, ""),
        },
        target_kind="page",
        ids=["1", "2"],
    )


_BUILDERS: dict[str, Callable[[Tree, BenchmarkSet], Expected]] = {
    **dict.fromkeys(("image_cls", "image_qa", "image_i2t"), _image_texts),
    "image_t2i": _text_to_image,
    "image_i2i_vg": _image_to_image,
    "video_classification": _classes,
    "ssv2": _own_classes,
    **dict.fromkeys(("msrvtt", "msvd", "didemo", "vatex", "youcook2"), _captions),
    "moment_retrieval": _moments,
    "momentseeker": _moment_seeker,
    "mvbench": _mvbench,
    "nextqa": _nextqa,
    "videomme": _videomme,
    "egoschema": _egoschema,
    "activitynetqa": _activitynetqa,
    **dict.fromkeys(("vidore", "visrag"), _pages),
}
