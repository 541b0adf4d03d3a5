"""Rows to pairs: the four formats, and every refusal with file, row and field."""

import json

import pytest

from data.errors import DataError
from data.records import load_set, load_sets, read_rows
from data.types import Box, Cues, Item, Kind
from tests.builders import write_picture, write_set


@pytest.fixture
def read(tmp_path):
    """Load rows beside a root with a.png, b.png and v/1.jpg to v/3.jpg."""
    for name in ("a.png", "b.png", "v/1.jpg", "v/2.jpg", "v/3.jpg", "images/blank.jpg"):
        write_picture(tmp_path / "root" / name)

    def load(*rows, **settings):
        return load_set(write_set(tmp_path, list(rows), **settings))

    return load


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def reason(loaded):
    """Return why the only row was set aside."""
    assert loaded.pairs == ()
    (bad,) = loaded.bad_rows
    assert bad.where.endswith("rows.json row 1")
    assert bad.where in bad.reason
    return bad.reason


def turns(human, gpt):
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


MMEB = {"qry": "<|image_1|>\nwhat?", "qry_image_path": "a.png", "pos_text": "a cat"}
VIDEO = ["v/1.jpg", "v/2.jpg", "v/3.jpg"]
BLANK = ["images/blank.jpg"]


def test_mmeb_rows_become_pairs(read, root):
    row = {
        **MMEB,
        "id": 7,
        "label": "cat",
        "pos_image_path": "b.png",
        "neg_text": "a dog",
        "neg_image_path": "",
        "query_cot": "QC",
        "pos_cot": "PC",
        "qry_evidence": {"bbox_2d": [0, 0, 500, 500]},
        "pos_evidence": {"bbox_2d": [[0, 0, 100, 100], [500, 500, 900, 900]]},
        "unknown_column": [1],
    }
    (pair,) = read(row).pairs
    assert (pair.pair_id, pair.source, pair.label) == ("7", "set", "cat")
    assert pair.query == Item(text="what?", kind=Kind.IMAGE, uris=(str(root / "a.png"),))
    assert pair.target == Item(text="a cat", kind=Kind.IMAGE, uris=(str(root / "b.png"),))
    assert pair.hard_negatives == (Item(text="a dog"),)
    assert (pair.query_trace, pair.target_trace) == ("QC", "PC")
    assert pair.query_evidence == Cues(boxes=(Box(0.0, 0.0, 0.5, 0.5),))
    assert len(pair.target_evidence.boxes) == 2


def test_absent_columns_and_nulls_and_empty_texts_mean_nothing_is_there(read):
    row = {**MMEB, "pos_image_path": "", "neg_text": None, "query_cot": None, "id": None}
    (pair,) = read(row).pairs
    assert pair.target.kind is Kind.TEXT
    assert pair.hard_negatives == ()
    assert pair.query_trace == ""
    assert pair.pair_id == "set-0"


def test_right_to_left_and_emoji_texts_are_kept_as_they_are(read):
    text = "\u202b\u05e9\u05dc\u05d5\u05dd\u202c \U0001f469\u200d\U0001f680"
    (pair,) = read({**MMEB, "qry": text, "query_cot": text}).pairs
    assert (pair.query.text, pair.query_trace) == (text, text)


def test_pictures_of_page_sets_are_pages(read):
    (pair,) = read(MMEB, kind="page").pairs
    assert pair.query.kind is Kind.PAGE


def test_only_the_first_rows_are_used_where_a_limit_is_set(read):
    assert len(read(*[MMEB] * 5, limit=2).pairs) == 2


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"qry_image_path": "lost.png"}, "qry_image_path", "not found"),
        ({"qry_image_path": "../out.png"}, "qry_image_path", "leaves it"),
        ({"qry_image_path": "/etc/hostname"}, "qry_image_path", "leaves it"),
        ({"pos_image_path": "v"}, "pos_image_path", "not found"),
        ({"neg_image_path": "lost.png"}, "neg_image_path", "not found"),
        ({"qry_image_path": 5}, "qry_image_path", "expected text, found int"),
        ({"qry_image_path": ["a.png"]}, "qry_image_path", "expected text, found list"),
        ({"qry": {"text": "a"}}, "qry", "expected text, found dict"),
        ({"pos_text": " ", "pos_image_path": ""}, "pos_text", "target is empty"),
        ({"qry": "", "qry_image_path": ""}, "qry", "query is empty"),
        ({"qry": "<|image_1|>\n", "qry_image_path": None}, "qry", "query is empty"),
        ({"label": 3}, "label", "expected text, found int"),
        ({"id": {"a": 1}}, "id", "expected text or a whole number, found dict"),
        ({"id": True}, "id", "expected text or a whole number, found bool"),
        ({"query_cot": ["x"]}, "query_cot", "expected text, found list"),
        ({"query_cot": "{" * (2 << 20)}, "query_cot", "at most 65536 characters, found 2097152"),
        ({"pos_cot": "\u05d0" * (2 << 20)}, "pos_cot", "at most 65536 characters, found 2097152"),
        ({"qry": "half an emoji \ud83d"}, "qry", "expected text, found half a character"),
        ({"qry_image_path": "\ud83d.png"}, "qry_image_path", "found half a character"),
        ({"qry_evidence": {"bbox_2d": [0, 0, 1500, 500]}}, "qry_evidence", "outside the picture"),
        ({"qry_evidence": {"bbox_2d": [900, 900, 100, 100]}}, "qry_evidence", "corners swapped"),
        ({"qry_evidence": {"key_frames": [1]}}, "qry_evidence", "'bbox_2d' for image"),
        ({"qry_evidence": [1, 2]}, "qry_evidence", "expected an object"),
        ({"pos_evidence": {"bbox_2d": [0, 0, 9, 9]}}, "pos_evidence", "'text_keywords'"),
    ],
)
def test_a_bad_mmeb_row_is_set_aside_with_file_row_field_and_reason(read, change, field, words):
    why = reason(read({**MMEB, **change}))
    assert f"'{field}'" in why
    assert words in why


def test_a_link_out_of_the_root_is_refused(read, root, tmp_path):
    (root / "link.png").symlink_to(write_picture(tmp_path / "out.png"))
    assert "leaves it" in reason(read({**MMEB, "qry_image_path": "link.png"}))


def test_the_second_row_with_an_id_is_set_aside(read):
    loaded = read({**MMEB, "id": "x"}, {**MMEB, "id": "y"}, {**MMEB, "id": "x"})
    assert [pair.pair_id for pair in loaded.pairs] == ["x", "y"]
    assert "row 3, field 'id': duplicate id 'x'" in loaded.bad_rows[0].reason


# LLaVA-Hound: the video side asks, the text side is content.


def hound(qry, pos):
    return {
        "qry": {"conversations": qry[0], "video": qry[1]},
        "pos": {"conversations": pos[0], "video": pos[1]},
    }


def test_a_captions_query_is_the_question_with_frames_and_never_the_answer(read, root):
    row = hound(
        (turns("<video>\nDescribe it.", "SECRET CAPTION"), VIDEO),
        (turns("", "a jump"), BLANK),
    )
    (pair,) = read(row, format="llavahound").pairs
    uris = tuple(str(root / name) for name in VIDEO)
    assert pair.query == Item(text="Describe it.", kind=Kind.VIDEO, uris=uris)
    assert pair.target == Item(text="a jump")
    assert "SECRET" not in repr(pair)


def test_a_retrieval_query_is_the_description_and_its_target_the_frames(read):
    row = hound(
        (turns("Find a video.", "a man jumps"), BLANK),
        (turns("<video>\nUnderstand the video.", "SECRET"), VIDEO),
    )
    (pair,) = read(row, format="llavahound").pairs
    assert pair.query == Item(text="a man jumps")
    assert pair.target.text == "Understand the video."
    assert pair.target.kind is Kind.VIDEO
    assert "SECRET" not in repr(pair)


def test_a_text_side_without_an_answer_falls_back_to_its_question(read):
    row = hound((turns("a man jumps", ""), BLANK), (turns("watch", ""), VIDEO))
    (pair,) = read(row, format="llavahound").pairs
    assert pair.query == Item(text="a man jumps")


def test_one_frame_is_still_a_video(read):
    row = hound((turns("what?", ""), VIDEO[:1]), (turns("", "a"), None))
    (pair,) = read(row, format="llavahound").pairs
    assert pair.query.kind is Kind.VIDEO


def test_true_frames_are_counted_from_one(read):
    row = hound((turns("what?", ""), VIDEO), (turns("", "a"), None))
    (pair,) = read({**row, "qry_evidence": {"key_frames": [1, 3]}}, format="llavahound").pairs
    assert pair.query_evidence == Cues(key_frames=(0, 2))
    why = reason(read({**row, "qry_evidence": {"key_frames": [4]}}, format="llavahound"))
    assert "'qry_evidence'" in why
    assert "out of range" in why


def test_a_video_of_zero_frames_is_refused_and_its_answer_not_taken_for_the_query(read):
    row = hound((turns("<video>\nwhat?", "SECRET"), []), (turns("", "a"), BLANK))
    assert "field 'video': expected paths, found an empty list" in reason(
        read(row, format="llavahound")
    )


@pytest.mark.parametrize(
    ("part", "field", "words"),
    [
        ("text", "qry", "expected an object"),
        ({"conversations": turns("", ""), "video": BLANK}, "qry", "query is empty"),
        ({}, "qry", "query is empty"),
        ({"conversations": "hi", "video": VIDEO}, "conversations", "found str"),
        ({"conversations": ["hi"], "video": VIDEO}, "conversations", "list of turns"),
        ({"conversations": [{"from": "human", "value": 5}]}, "value", "expected text, found int"),
        ({"conversations": [{"from": [], "value": "a"}]}, "from", "expected text, found list"),
        (
            {"conversations": turns("a", ""), "video": "v/1.jpg"},
            "video",
            "list of texts, found str",
        ),
        ({"conversations": turns("a", ""), "video": [5]}, "video", "expected a list of texts"),
        ({"conversations": turns("a", ""), "video": ["v/9.jpg"]}, "qry.video", "not found"),
        ({"conversations": turns("a", ""), "video": ["v/1.jpg", None]}, "qry.video", "empty text"),
        ({"conversations": turns("a", ""), "video": ["../../x"]}, "qry.video", "leaves it"),
    ],
)
def test_a_bad_llavahound_row_is_set_aside(read, part, field, words):
    row = {"qry": part, "pos": {"conversations": turns("", "a"), "video": BLANK}}
    why = reason(read(row, format="llavahound"))
    assert f"'{field}'" in why
    assert words in why


EVAL = {
    "qry_inst": "Find it.",
    "qry_text": "a cat",
    "qry_img_path": "",
    "tgt_inst": "Represent the picture.",
    "tgt_text": ["", ""],
    "tgt_img_path": ["a.png", "b.png"],
}


def test_evaluation_rows_hold_their_candidates_with_the_gold_first(read, root):
    (pair,) = read(EVAL, format="mmeb_eval").pairs
    assert pair.query == Item(text="Find it. a cat")
    assert [item.uris for item in pair.candidates] == [
        (str(root / "a.png"),),
        (str(root / "b.png"),),
    ]
    assert pair.target == pair.candidates[0]
    assert pair.target.text == "Represent the picture."


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"tgt_text": [""]}, "tgt_text", "of one length, found 1 and 2"),
        ({"tgt_text": "a"}, "tgt_text", "expected a list of texts, found str"),
        ({"tgt_img_path": None}, "tgt_img_path", "expected a list of texts, found NoneType"),
        ({"tgt_text": [1, 2]}, "tgt_text", "expected a list of texts"),
        ({"tgt_text": [], "tgt_img_path": []}, "tgt_text", "no candidate"),
        ({"tgt_img_path": ["a.png", "lost.png"]}, "tgt_img_path", "not found"),
        ({"tgt_img_path": ["a.png", ""]}, "tgt_text[1]", "empty"),
        ({"tgt_img_path": ["", "b.png"]}, "tgt_text[0]", "empty"),
    ],
)
def test_a_bad_evaluation_row_is_set_aside(read, change, field, words):
    why = reason(read({**EVAL, **change}, format="mmeb_eval"))
    assert f"'{field}'" in why
    assert words in why


def test_captions_ask_with_the_human_turn_and_answer_with_the_other(read):
    (pair,) = read(
        {"image": "a.png", "conversations": turns("<image>\nWhat?", "A cat.")}, format="caption"
    ).pairs
    assert (pair.query.text, pair.query.kind) == ("What?", Kind.IMAGE)
    assert pair.query_trace == "A cat."


def test_captions_may_have_no_picture_or_many(read):
    talk = turns("What?", "A cat.")
    text, video = read(
        {"conversations": talk}, {"image": VIDEO, "conversations": talk}, format="caption"
    ).pairs
    assert text.query.kind is Kind.TEXT
    assert (video.query.kind, len(video.query.uris)) == (Kind.VIDEO, 3)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"image": "a.png", "conversations": turns("What?", "")}, "conversations"),
        ({"image": "a.png"}, "conversations"),
        ({"image": 5, "conversations": turns("What?", "A cat.")}, "image"),
        ({"image": "lost.png", "conversations": turns("What?", "A cat.")}, "image"),
    ],
)
def test_a_bad_caption_is_set_aside(read, row, field):
    assert f"'{field}'" in reason(read(row, format="caption"))


# Files.


def test_json_lines_and_arrays_are_read_alike(tmp_path):
    rows = [{"a": 1}, {"a": "line \u2028 separator"}]
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    array.write_text("\ufeff" + json.dumps(rows))
    assert read_rows(lines) == read_rows(array) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2 column"),
        ('{"a": 1}\n\n{"a": \n', "line 3 column"),
        ('[{"a": 1}', "malformed JSON"),
        ("[{}, 5]", "row 2: expected an object, found int"),
        ('{"a": 1}\n"b"', "row 2: expected an object, found str"),
        ("[" * 100_000, "malformed JSON"),
        ("[{}, " + "9" * 5000 + "]", "malformed JSON"),
    ],
)
def test_malformed_files_are_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rows\.json") as caught:
        read_rows(path)
    assert words in str(caught.value)


def test_files_that_are_not_there_or_not_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"lost\.json: file not found"):
        read_rows(tmp_path / "lost.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_rows(tmp_path / "bytes.json")


def test_a_missing_root_is_refused(tmp_path):
    config = write_set(tmp_path, [MMEB], root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data set 'set': root folder .*nowhere not found"):
        load_set(config)


GOOD, BAD = {"qry": "q", "pos_text": "t"}, {"qry": "q", "pos_text": ""}


def test_few_bad_rows_are_set_aside_and_many_stop_the_job(tmp_path):
    config = write_set(tmp_path, [GOOD] * 9 + [BAD])
    (loaded,) = load_sets([config], max_bad_rows=0.1)
    assert (len(loaded.pairs), len(loaded.bad_rows)) == (9, 1)
    with pytest.raises(DataError, match="1 of 10 rows are bad") as caught:
        load_sets([config], max_bad_rows=0.09)
    assert "row 10, field 'pos_text'" in str(caught.value)


def test_a_set_without_rows_or_without_good_ones_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no row"):
        load_sets([write_set(tmp_path, [])], max_bad_rows=1.0)
    with pytest.raises(DataError, match="1 of 1 rows are bad"):
        load_sets([write_set(tmp_path, [BAD])], max_bad_rows=1.0)


def test_all_bad_sets_are_named_at_once(tmp_path):
    config = write_set(tmp_path, [BAD], name="one")
    lost = write_set(tmp_path, [BAD], name="two", path=str(tmp_path / "lost.json"))
    with pytest.raises(DataError) as caught:
        load_sets([config, lost, config], max_bad_rows=0.0)
    assert "data set 'one'" in str(caught.value)
    assert "lost.json" in str(caught.value)
    assert "'one' is used 2 times" in str(caught.value)
