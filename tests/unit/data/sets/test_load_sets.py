"""Rows to pairs: the four formats, and every refusal with file, row and field."""

import shutil
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.sets.open_sets
import data.sets.picture_copies
from configs.common import DataConfig, MediaConfig
from data.embed_inputs import SUFFIX, embed_content
from data.errors import DataError
from data.prompts import pictures_of
from data.rows.row_formats import clean
from data.sets.load_sets import load_set, load_sets
from data.types import Box, Cues, Item, Kind, Side
from tests.builders import TRACES, loaded_set, write_picture, write_set
from tests.inputs.media_files import write_pdf, write_video


@pytest.fixture
def read(tmp_path):
    """Load rows beside a root with a.png, b.png and v/1.jpg to v/3.jpg."""
    names = ("a.png", "b.png", "v/1.jpg", "v/2.jpg", "v/3.jpg", "images/blank.jpg")
    for width, name in enumerate(names, start=40):
        write_picture(tmp_path / "root" / name, width)

    def load(*rows, max_frames=8, video="frames", **settings):
        config = write_set(tmp_path, list(rows), **settings)
        return load_set(config, max_frames=max_frames, video=video)

    return load


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def reason(loaded):
    """Return why the only row was set aside."""
    assert not loaded.pairs
    (bad,) = loaded.bad_rows
    assert bad.where.endswith("rows.json row 1")
    assert bad.where in bad.reason
    return bad.reason


def turns(human, gpt):
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def reason_of(loaded):
    """Return why one row among others was set aside."""
    (bad,) = loaded.bad_rows
    return bad.reason


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
        "query_cot": TRACES[Kind.IMAGE],
        "pos_cot": TRACES[Kind.PAGE],
        "qry_evidence": {"bbox_2d": [0, 0, 500, 500]},
        "pos_evidence": {"bbox_2d": [[0, 0, 100, 100], [500, 500, 900, 900]]},
        "unknown_column": [1],
    }
    (pair,) = read(row).pairs
    assert (pair.pair_id, pair.source, pair.label) == ("7", "set", "cat")
    assert pair.query == Item(text="what?", kind=Kind.IMAGE, uris=(str(root / "a.png"),))
    assert pair.target == Item(text="a cat", kind=Kind.IMAGE, uris=(str(root / "b.png"),))
    assert pair.hard_negatives == (Item(text="a dog"),)
    assert (pair.query_trace, pair.target_trace) == (TRACES[Kind.IMAGE], TRACES[Kind.PAGE])
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
    trace = TRACES[Kind.IMAGE].replace("left", text)
    (pair,) = read({**MMEB, "qry": text, "query_cot": trace}).pairs
    assert (pair.query.text, pair.query_trace) == (text, trace)


def test_pictures_of_page_sets_are_pages(read):
    (pair,) = read(MMEB, kind="page").pairs
    assert pair.query.kind is Kind.PAGE


def test_only_the_first_rows_are_used_where_a_limit_is_set(read):
    assert len(read(*[MMEB] * 5, limit=2).pairs) == 2


@pytest.mark.parametrize(
    ("rows", "sample", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (7, 3, [0, 2, 4]),
        (5, 4, [0, 1, 2, 3]),
        (5, 1, [0]),
        (3, 3, [0, 1, 2]),
        (3, 8, [0, 1, 2]),
    ],
)
def test_a_sample_is_spread_evenly_over_the_file(read, rows, sample, expected):
    loaded = read(*[MMEB] * rows, sample=sample)
    assert [pair.row for pair in loaded.pairs] == expected
    assert [pair.pair_id for pair in loaded.pairs] == [f"set-{row}" for row in expected]
    assert (loaded.rows, loaded.read) == (rows, len(expected))


def test_bad_rows_of_a_sample_are_set_aside_by_their_place_and_others_are_never_read(read):
    good, bad = MMEB, {**MMEB, "error": "x"}
    loaded = read(good, bad, bad, good, good, bad, sample=3)
    assert [pair.row for pair in loaded.pairs] == [0, 4]
    assert "rows.json row 3, field 'error'" in reason_of(loaded)


def test_the_first_rows_of_a_sample_are_those_that_a_dry_run_reads(read):
    assert [pair.row for pair in read(*[MMEB] * 10, sample=5, limit=2).pairs] == [0, 2]


def rated(*numbers):
    return [{**MMEB, "rate": number} for number in numbers]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.5, 0.1, 0.9, 0.3], [1, 3]),
        ([3, 2, 1, 0], [2, 3]),
        ([0.5, 0.5, 0.5, 0.5], [0, 1]),
        ([1, 0.5, 1.0, 2], [0, 1]),
        ([-1e308, 10**400, -(10**400), 0], [0, 2]),
        ([7], [0]),
    ],
)
def test_the_hardest_rows_have_the_smallest_numbers_and_of_equal_ones_come_first(
    read, numbers, expected
):
    loaded = read(*rated(*numbers), sample=2, hardest_by="rate")
    assert [pair.row for pair in loaded.pairs] == expected
    assert (loaded.rows, loaded.read, loaded.unranked) == (len(numbers), len(expected), ())


def test_numbers_as_text_rank_rows_as_cells_of_csv_are_texts(read):
    loaded = read(*rated("0.5", "1e-3", " 7 "), sample=1, hardest_by="rate")
    assert [pair.row for pair in loaded.pairs] == [1]
    assert loaded.unranked == ()


def test_the_column_of_the_hardest_rows_is_no_unknown_field(read):
    rows = [row | {"rat": 1} for row in rated(1, 2)]
    assert read(*rows, sample=2, hardest_by="rate").unknown_fields == {"rat": 2}
    assert read(*rows).unknown_fields == {"rate": 2, "rat": 2}


def test_the_first_rows_with_a_misspelt_field_are_named_with_the_nearest_name(tmp_path, caplog):
    misspelt = {"qry": "a", "pos_txet": "b", "pos_text": "c"}
    rows = [GOOD, misspelt, GOOD, *[{**misspelt, "qry": f"{n}"} for n in range(4)]]
    config = write_set(tmp_path, rows)
    with pytest.raises(DataError, match="fields that format 'mmeb' does not know") as caught:
        load_sets([config], limits=DataConfig())
    text = f"'pos_txet' in 5 of 7 rows (near 'pos_text'), first in {config.path} rows 2, 4, 5"
    assert text in str(caught.value)
    load_sets([config], limits=DataConfig(max_bad_rows=0.9))
    assert text in caplog.text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (None, "None"),
        ("much", "'much'"),
        (True, "True"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ([0.1], "[0.1]"),
    ],
)
def test_a_row_that_cannot_be_ranked_is_set_aside_with_its_reason(read, number, words):
    loaded = read(*rated(0.2, number, 0.1), sample=1, hardest_by="rate")
    assert [pair.row for pair in loaded.pairs] == [2]
    (row,) = loaded.unranked
    assert row.where.endswith("rows.json row 2")
    assert f"{row.where}, field 'rate': expected a finite number" in row.reason
    assert f"found {words}; add it" in row.reason
    assert loaded.bad_rows == ()


def test_rows_that_cannot_be_ranked_are_a_share_of_the_file_and_not_of_the_sample(tmp_path, caplog):
    rows = [{**GOOD, "rate": number} for number in (*range(17), None, None, "x")]
    config = write_set(tmp_path, rows, sample=2, hardest_by="rate")
    (loaded,) = load_sets([config], limits=DataConfig(max_bad_rows=0.15))
    assert len(loaded.pairs) == 2
    assert "rows.json row 18, field 'rate'" in caplog.text
    assert "data set 'set': 3 of 20 rows set aside" in caplog.text
    with pytest.raises(
        DataError, match="data set 'set': 3 of 20 rows are bad, more than"
    ) as caught:
        load_sets([config], limits=DataConfig(max_bad_rows=0.14))
    assert "field 'rate'" in str(caught.value)


def test_a_row_has_its_place_in_the_files_of_its_set():
    files = {"files": ("a", "b", "c"), "file_ends": (2, 2, 3)}
    loaded = loaded_set(name="set", pairs=(), bad_rows=(), **files)
    assert [loaded.place(index) for index in range(3)] == [("a", 1), ("a", 2), ("c", 1)]


def test_a_row_that_cannot_be_ranked_has_its_index_and_the_column(read):
    loaded = read(
        *({"qry": "a", "pos_text": "b", "rate": rate} for rate in (0.5, "high", 0.25)),
        sample=1,
        hardest_by="rate",
    )
    assert [(bad.index, bad.field) for bad in loaded.unranked] == [(1, "rate")]


def test_bad_rows_are_a_share_of_the_sample_and_not_of_the_file(tmp_path):
    config = write_set(tmp_path, [BAD, GOOD, *[GOOD] * 18], sample=4)
    with pytest.raises(DataError, match="data set 'set': 1 of 4 rows are bad"):
        load_sets([config], limits=DataConfig(max_bad_rows=0.2))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("rats", "expected numbers in column 'rats' of {}, found none in any row (near 'rate')"),
        ("qry", "expected numbers in column 'qry' of {}, found none in any row; name a column"),
    ],
)
def test_a_column_without_any_number_is_refused_with_set_key_and_remedy(tmp_path, column, words):
    config = write_set(
        tmp_path, [{**GOOD, "rate": 1}, {**GOOD, "rate": 2}], sample=1, hardest_by=column
    )
    with pytest.raises(DataError) as caught:
        load_sets([config], limits=DataConfig(max_bad_rows=1.0))
    assert f"data set 'set', hardest_by: {words.format(config.path)}" in str(caught.value)
    assert "name a column of numbers or, with a '/' in it" in str(caught.value)


def test_a_sample_of_a_file_without_rows_is_refused_as_without_a_sample(tmp_path):
    for settings in ({"sample": 3}, {"sample": 3, "hardest_by": "rate"}):
        with pytest.raises(DataError, match="holds no row"):
            load_sets([write_set(tmp_path, [], **settings)], limits=DataConfig())


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"qry_image_path": "lost.png"}, "qry_image_path", "not found"),
        ({"qry_image_path": "../out.png"}, "qry_image_path", "leaves it"),
        ({"qry_image_path": "/etc/hostname"}, "qry_image_path", "leaves it"),
        ({"pos_image_path": "v"}, "pos_image_path", "found the folder 'v'"),
        ({"neg_image_path": "lost.png"}, "neg_image_path", "not found"),
        ({"qry_image_path": 5}, "qry_image_path", "expected text, found int"),
        ({"qry_image_path": ["a.png"]}, "qry_image_path", "expected text, found list"),
        ({"qry": {"text": "a"}}, "qry", "expected text, found dict"),
        ({"pos_text": " ", "pos_image_path": ""}, "pos_text", "target is empty"),
        ({"qry": "", "qry_image_path": ""}, "qry", "query is empty"),
        ({"qry": "<|image_1|>\n", "qry_image_path": None}, "qry", "query is empty"),
        ({"label": 3.5}, "label", "expected text or a whole number, found float"),
        ({"label": True}, "label", "expected text or a whole number, found bool"),
        ({"id": {"a": 1}}, "id", "expected text or a whole number, found dict"),
        ({"id": True}, "id", "expected text or a whole number, found bool"),
        ({"query_cot": ["x"]}, "query_cot", "expected text, found list"),
        ({"query_cot": "{" * (2 << 20)}, "query_cot", "at most 65536 characters, found 2097152"),
        ({"pos_cot": "\u05d0" * (2 << 20)}, "pos_cot", "at most 65536 characters, found 2097152"),
        ({"qry": "half an emoji \ud83d"}, "qry", "expected text, found half a character"),
        ({"qry_image_path": "\ud83d.png"}, "qry_image_path", "found half a character"),
        ({"id": "a\ud83d"}, "id", "found half a character"),
        ({"label": "\ud83d"}, "label", "found half a character"),
        ({"qry_evidence": {"bbox_2d": [0, 0, 1500, 500]}}, "qry_evidence", "outside the picture"),
        ({"qry_evidence": {"bbox_2d": [900, 900, 100, 100]}}, "qry_evidence", "corners swapped"),
        ({"qry_evidence": {"key_frames": [1]}}, "qry_evidence", "'bbox_2d' for image"),
        ({"qry_evidence": [1, 2]}, "qry_evidence", "expected an object"),
        ({"pos_evidence": {"bbox_2d": [0, 0, 9, 9]}}, "pos_evidence", "'text_keywords'"),
        ({"qry_evidence": {"bbox_2d": [0.1, 0.1, 0.5, 0.5]}}, "qry_evidence", "in thousandths"),
        ({"query_cot": "HTTPSConnectionPool: Read timed out."}, "query_cot", "missing thinking"),
        ({"query_cot": TRACES[Kind.IMAGE][:-5]}, "query_cot", "missing answer"),
        ({"pos_cot": TRACES[Kind.IMAGE]}, "pos_cot", "expected the evidence key 'text_keywords'"),
        ({"error": "timeout"}, "error", "expected none, found 'timeout'; make the row again"),
        ({"error": {"code": 500}}, "error", "found {'code': 500}"),
    ],
)
def test_a_bad_mmeb_row_is_set_aside_with_file_row_field_and_reason(read, change, field, words):
    why = reason(read({**MMEB, **change}))
    assert f"'{field}'" in why
    assert words in why


def test_a_link_out_of_the_root_is_refused_or_followed(read, root, tmp_path):
    (root / "link.png").symlink_to(write_picture(tmp_path / "out.png", 60))
    row = {**MMEB, "qry_image_path": "link.png"}
    assert "follow_links: true" in reason(read(row))
    (pair,) = read(row, follow_links=True).pairs
    assert pair.query.uris == (str(root / "link.png"),)


def test_class_numbers_are_labels(read):
    rows = [{**MMEB, "label": label} for label in (3, "3", 0, "", None, " 3 ")]
    assert [pair.label for pair in read(*rows).pairs] == ["3", "3", "0", "", "", "3"]


def test_a_row_says_whether_its_traces_know_the_answer(read):
    rows = [{**MMEB, "cot_knows_answer": value} for value in (True, False, None)]
    assert [pair.answer_known for pair in read(*rows).pairs] == [True, False, False]
    [bad] = read({**MMEB, "cot_knows_answer": "yes"}).bad_rows
    assert "field 'cot_knows_answer': expected true or false, found str" in bad.reason


# One normalisation of text.

ALIKE = [
    "caf\u00e9 au lait",
    " cafe\u0301 au lait",
    "caf\u00e9 au lait\r\n",
    "\ncaf\u00e9 au lait\u00a0",
]


def test_texts_that_read_alike_are_one_item_on_every_place_of_every_format(read):
    rows = [{**MMEB, "qry": text, "pos_text": text, "neg_text": text} for text in ALIKE]
    pairs = read(*rows).pairs
    (item,) = {pair.target for pair in pairs} | {n for pair in pairs for n in pair.hard_negatives}
    assert item == Item(text=ALIKE[0])
    assert len({pair.query for pair in pairs}) == 1
    rows = [hound((turns("what?", ""), VIDEO), (turns("", text), BLANK)) for text in ALIKE]
    assert {pair.target for pair in read(*rows, format="llavahound").pairs} == {item}
    row = {**EVAL, "qry_text": "", "tgt_inst": "", "tgt_text": ALIKE, "tgt_img_path": [""] * 4}
    (pair,) = read(row, format="mmeb_eval").pairs
    assert set(pair.candidates) == {item}


def test_a_set_with_raw_texts_keeps_their_white_space_and_nothing_else(read):
    text = "<|image_1|>\r\n Cafe\u0301  with\n\n"
    kept = "\r\n Caf\u00e9  with\n\n"
    row = {**MMEB, "qry": text, "pos_text": text, "neg_text": " \n", "label": " a "}
    (pair,) = read({**row, "qry_inst": " Find. "}, raw_text=True).pairs
    assert (pair.query.text, pair.target.text, pair.query.instruction) == (kept, kept, "Find.")
    assert (pair.label, pair.hard_negatives) == ("a", ())
    assert kept in pair.target.key()
    (pair,) = read(row).pairs
    assert pair.query.text == "Caf\u00e9  with"
    row = hound((turns(text, ""), VIDEO), (turns(text, " \n"), BLANK))
    (pair,) = read(row, format="llavahound", raw_text=True).pairs
    assert (pair.query.text, pair.target.text) == (kept, kept)
    row = {**EVAL, "tgt_text": [text, " \n"], "tgt_img_path": ["", ""]}
    assert "entry 1: empty" in reason(read(row, format="mmeb_eval", raw_text=True))
    row = {"image": "a.png", "conversations": turns(text, "a dog")}
    (pair,) = read(row, format="caption", raw_text=True).pairs
    assert pair.query.text == kept
    row = {"query": text, "image": "a.png"}
    (pair,) = read(row, format="colpali", raw_text=True).pairs
    assert pair.query.text == kept


def test_line_ends_inside_a_text_are_one_kind():
    assert clean("a\r\nb\rc\nd") == "a\nb\nc\nd"


def test_what_is_read_differently_stays_different():
    assert len({clean(text) for text in ("yes", "Yes", "yes.", "y es", "ye\u017f")}) == 5


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_items_text_is_what_the_embedder_reads(text):
    cleaned = clean(text)
    assert cleaned == unicodedata.normalize("NFC", cleaned).strip()
    assert embed_content(Item(text=cleaned), None, item_tokens=0, max_frames=8) == (
        cleaned + SUFFIX,
    )


# Ids.


def test_rows_of_one_id_that_say_something_else_get_their_number_and_are_counted(read, caplog):
    rows = [{**MMEB, "id": "v", "pos_text": text} for text in ("a", "b", "a", "c")]
    loaded = read(*rows, {**MMEB, "id": "v-1"}, MMEB)
    assert [pair.pair_id for pair in loaded.pairs] == ["v", "v-1", "v-3", "v-1-4", "set-5"]
    assert "row 3, field 'id': duplicate: a row before says the same under id 'v'" in reason_of(
        loaded
    )
    assert "3 rows share their id with a row that says something else" in caplog.text


def test_rows_without_an_id_are_never_duplicates(read):
    assert [pair.pair_id for pair in read(MMEB, MMEB).pairs] == ["set-0", "set-1"]


# Fields that nobody knows.


def test_a_misspelt_field_is_refused_with_the_nearest_name_and_the_count(tmp_path):
    rows = [{"qry": "q", "pos_text": "t", "query_image_path": "a.png"}] * 3
    config = write_set(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        load_sets([config], limits=DataConfig())
    assert "'query_image_path' in 3 of 3 rows (near 'qry_image_path')" in str(caught.value)
    assert "extra_fields: ignore" in str(caught.value)
    config = write_set(tmp_path, rows, extra_fields="ignore")
    (loaded,) = load_sets([config], limits=DataConfig())
    assert len(loaded.pairs) == 3


def test_a_rare_unknown_field_is_named_and_ignored(tmp_path, caplog):
    rows = [GOOD] * 9 + [{**GOOD, "\ud83d": 1}]
    (loaded,) = load_sets([write_set(tmp_path, rows)], limits=DataConfig(max_bad_rows=0.1))
    assert len(loaded.pairs) == 10
    assert r"'\ud83d' in 1 of 10 rows, first in " in caplog.text
    assert "rows.json row 10; they are ignored" in caplog.text


# Copies, boxes, long reading.


def test_copies_of_a_picture_are_one_item_in_all_sets_of_a_root(tmp_path, caplog):
    config = write_set(tmp_path, [{**MMEB, "pos_image_path": "b.png"}])
    first = write_picture(tmp_path / "root/a.png")
    shutil.copy(first, tmp_path / "root/b.png")
    (tmp_path / "two").mkdir()
    rows = [{**MMEB, "qry_image_path": "b.png"}]
    other = write_set(tmp_path / "two", rows, name="other", root=config.root)
    one, two = load_sets([config, other], limits=DataConfig())
    assert one.pairs[0].query.uris == one.pairs[0].target.uris == two.pairs[0].query.uris
    assert caplog.text.count("1 picture files have the same bytes as an earlier one") == 1


def test_pictures_that_were_not_compared_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(data.sets.picture_copies, "COMPARED_BYTES", 0)
    config = write_set(tmp_path, [{**MMEB, "pos_image_path": "b.png"}])
    shutil.copy(write_picture(tmp_path / "root/a.png"), tmp_path / "root/b.png")
    (pair,) = load_set(config).pairs
    assert pair.query.uris != pair.target.uris
    assert "1 picture files were not compared with others of their size" in caplog.text


@pytest.mark.parametrize(
    ("scale", "unit"), [(1 / 40, "shares of the picture from 0 to 1"), (1, "pixels"), (25, None)]
)
def test_boxes_in_another_unit_are_pointed_out(read, caplog, scale, unit):
    boxes = [[x, 0, x + 20, 10 + x] for x in range(20)]
    rows = [{**MMEB, "qry_evidence": {"bbox_2d": [side * scale for side in box]}} for box in boxes]
    read(*rows)
    if unit is None:
        assert "look like" not in caplog.text
    else:
        assert (
            f"its first 20 true boxes look like {unit}; a box is [x1, y1, x2, y2] in" in caplog.text
        )


def test_reading_that_takes_seconds_shows_a_bar(read, capsys, monkeypatch):
    read(MMEB)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(data.sets.open_sets, "BAR_AFTER_S", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    read(MMEB, MMEB, name="[/x]")
    assert "reading [/x]" in capsys.readouterr().err


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
    assert "field 'qry.video': expected paths, found an empty list" in reason(
        read(row, format="llavahound")
    )


def test_true_frames_are_mapped_to_the_frames_that_are_shown(read, root):
    frames = [f"v/{index:02}.png" for index in range(64)]
    for width, name in enumerate(frames, start=50):
        write_picture(root / name, width)
    row = hound((turns("what?", ""), frames), (turns("", "a"), None))
    truth = {"key_frames": [1, 5, 28, 64]}
    (pair,) = read({**row, "qry_evidence": truth}, format="llavahound", max_frames=8).pairs
    shown = [picture.uri[-6:-4] for picture in pictures_of(pair.query, 8)]
    near = [shown[place] for place in pair.query_evidence.key_frames]
    assert near == ["00", "27", "63"]
    (pair,) = read({**row, "qry_evidence": truth}, format="llavahound", max_frames=64).pairs
    assert pair.query_evidence == Cues(key_frames=(0, 4, 27, 63))


@pytest.mark.parametrize("video", ["v/a.mp4", ["v/a.mp4"]])
def test_a_video_file_is_its_frames_that_are_shown(read, root, video):
    path = write_video(root / "v/a.mp4", 30)
    row = hound((turns("what?", ""), video), (turns("", "a"), None))
    row["qry_evidence"] = {"key_frames": [1, 14, 30]}
    (pair,) = read(row, format="llavahound", max_frames=4).pairs
    assert pair.query.kind is Kind.VIDEO
    assert pair.query.uris == tuple(f"{path}#frame={number}" for number in (0, 10, 19, 29))
    assert pair.query_evidence == Cues(key_frames=(0, 1, 3))
    (pair,) = read(row, format="llavahound", max_frames=64).pairs
    assert len(pair.query.uris) == 30
    assert pair.query_evidence == Cues(key_frames=(0, 13, 29))
    row["qry_evidence"] = {"key_frames": [31]}
    why = reason(read(row, format="llavahound", max_frames=4))
    assert "'qry_evidence'" in why
    assert "frame dropped: out of range" in why


def test_frames_that_are_named_one_by_one_are_numbered_as_the_row_names_them(read, root):
    path = write_video(root / "v/a.mp4", 30)
    names = [f"v/a.mp4#frame={number}" for number in (2, 12, 22)]
    row = hound((turns("what?", ""), names), (turns("", "a"), None))
    row["qry_evidence"] = {"key_frames": [2]}
    (pair,) = read(row, format="llavahound").pairs
    assert pair.query.uris == tuple(f"{path}#frame={number}" for number in (2, 12, 22))
    assert pair.query_evidence == Cues(key_frames=(1,))


def test_a_folder_of_frames_is_a_video(read, root):
    names = [f"w/{number}.png" for number in (1, 2, 10)]
    for width, name in enumerate(names, start=50):
        write_picture(root / name, width)
    uris = tuple(str(root / name) for name in names)
    for video in ("w", ["w"], "w/"):
        row = hound((turns("what?", ""), video), (turns("", "a"), None))
        row["qry_evidence"] = {"key_frames": [3]}
        (pair,) = read(row, format="llavahound").pairs
        assert pair.query.uris == uris
        assert pair.query_evidence == Cues(key_frames=(2,))


def test_a_caption_may_be_of_a_video_file_or_a_page(read, root):
    write_video(root / "v/a.mp4", 3)
    write_pdf(root / "a.pdf", 2)
    row = {"image": "v/a.mp4", "conversations": turns("what?", "a jump")}
    (pair,) = read(row, format="caption").pairs
    assert pair.query.kind is Kind.VIDEO
    assert len(pair.query.uris) == 3
    (pair,) = read({**row, "image": "a.pdf#page=2"}, format="caption", kind="page").pairs
    assert pair.query == Item(text="what?", kind=Kind.PAGE, uris=(f"{root}/a.pdf#page=2",))


def test_a_page_of_a_pdf_stands_where_a_picture_may(read, root):
    write_pdf(root / "a.pdf", 12)
    row = {"qry": "what?", "pos_text": "", "pos_image_path": "a.pdf#page=3"}
    (pair,) = read(row, kind="page").pairs
    assert pair.target == Item(text="", kind=Kind.PAGE, uris=(f"{root}/a.pdf#page=3",))
    why = reason(read({**row, "pos_image_path": "a.pdf"}))
    assert "'pos_image_path'" in why
    assert "one of its 12 pages" in why


def test_files_that_are_too_large_are_not_opened(tmp_path, read, root):
    write_video(root / "v/a.mp4", 3)
    row = hound((turns("what?", ""), "v/a.mp4"), (turns("", "a"), None))
    config = write_set(tmp_path, [row], format="llavahound")
    limits = DataConfig(media=MediaConfig(max_file_bytes=100))
    with pytest.raises(DataError, match=r"'qry\.video'.*more than data\.media\.max_file_bytes=100"):
        load_sets([config], limits=limits)


def test_true_boxes_of_pages_tell_nothing_about_pixels(read, root, caplog):
    write_pdf(root / "a.pdf", 20)
    rows = [
        {
            "qry": f"what is on page {page}?",
            "pos_text": "",
            "pos_image_path": f"a.pdf#page={page}",
            "pos_evidence": {"bbox_2d": [1, 2, 30, 40]},
        }
        for page in range(1, 21)
    ]
    assert len(read(*rows, kind="page").pairs) == 20
    assert "look like" not in caplog.text


def test_a_trace_of_a_video_points_at_frames_that_are_shown(read):
    row = hound((turns("what?", ""), VIDEO), (turns("", "a"), None))
    row["query_cot"] = TRACES[Kind.VIDEO]
    assert read(row, format="llavahound", max_frames=3).pairs[0].query_trace == TRACES[Kind.VIDEO]
    why = reason(read(row, format="llavahound", max_frames=1))
    assert "'query_cot'" in why
    assert "frame dropped: out of range" in why


@pytest.mark.parametrize(
    ("part", "field", "words"),
    [
        ("text", "qry", "expected an object"),
        ({"conversations": turns("", ""), "video": BLANK}, "qry", "query is empty"),
        ({}, "qry", "query is empty"),
        ({"conversations": "hi", "video": VIDEO}, "qry.conversations", "found str"),
        ({"conversations": ["hi"], "video": VIDEO}, "qry.conversations", "list of turns"),
        (
            {"conversations": [{"from": "human", "value": 5}]},
            "qry.value",
            "expected text, found int",
        ),
        ({"conversations": turns("a", "b") * 2}, "qry.conversations", "one round"),
        (
            {"conversations": [*turns("a", "b")[:1]] * 2},
            "qry.conversations",
            "'human' after 'human'",
        ),
        ({"conversations": [{"from": [], "value": "a"}]}, "qry.from", "expected text, found list"),
        (
            {"conversations": turns("a", ""), "video": "v/1.jpg"},
            "qry.video",
            "list of texts, found str",
        ),
        ({"conversations": turns("a", ""), "video": [5]}, "qry.video", "expected a list of texts"),
        (
            {"conversations": turns("a", ""), "video": 5},
            "qry.video",
            "expected a path or a list of paths",
        ),
        ({"conversations": turns("a", ""), "video": "x.mp4"}, "qry.video", "'x.mp4' not found"),
        (
            {"conversations": turns("a", ""), "video": "root"},
            "qry.video",
            "str 'root', which is none",
        ),
        ({"conversations": turns("a", ""), "video": ".."}, "qry.video", "leaves it"),
        (
            {"conversations": turns("a", ""), "video": ["v/1.jpg", "x.mp4"]},
            "qry.video",
            "one video file, found 2 paths with 'x.mp4' among them",
        ),
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
    assert pair.query == Item(text="a cat", instruction="Find it.")
    assert [item.uris for item in pair.candidates] == [
        (str(root / "a.png"),),
        (str(root / "b.png"),),
    ]
    assert pair.target == pair.candidates[0]
    assert (pair.target.instruction, pair.target.text) == ("Represent the picture.", "")
    assert pair.query.instructed_text() == "Find it. a cat"
    assert pair.target.instructed_text() == "Represent the picture."


def test_training_rows_may_hold_instructions(read):
    row = {"qry": "a cat", "qry_inst": "Find it.", "pos_text": "yes", "pos_inst": "Say it."}
    pair, bare, other = read(
        row | {"neg_text": "no"},
        row | {"qry_inst": "", "pos_inst": ""},
        row | {"qry_inst": "Draw it.", "pos_inst": "Sing it."},
    ).pairs
    assert pair.query == Item(text="a cat", instruction="Find it.")
    assert pair.target == Item(text="yes", instruction="Say it.")
    assert pair.hard_negatives == (Item(text="no", instruction="Say it."),)
    assert len({p.key(Side.QUERY) for p in (pair, bare, other)}) == 3
    assert len({p.key(Side.TARGET) for p in (pair, bare, other)}) == 1
    assert bare.key(Side.QUERY) == bare.query.key()


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"tgt_text": [""]}, "tgt_text", "of one length, found 1 and 2"),
        ({"tgt_text": "a"}, "tgt_text", "expected a list of texts, found str"),
        ({"tgt_img_path": None}, "tgt_img_path", "expected a list of texts, found NoneType"),
        ({"tgt_text": [1, 2]}, "tgt_text", "expected a list of texts"),
        ({"tgt_text": ["", "\ud83d"]}, "tgt_text", "found half a character"),
        ({"tgt_img_path": ["a.png", "\ud83d"]}, "tgt_img_path", "found half a character"),
        ({"tgt_text": [], "tgt_img_path": []}, "tgt_text", "no candidate"),
        ({"tgt_img_path": ["a.png", "lost.png"]}, "tgt_img_path", "not found"),
        ({"tgt_img_path": ["a.png", ""]}, "tgt_text", "entry 1: empty"),
        ({"tgt_img_path": ["", "b.png"]}, "tgt_text", "entry 0: empty"),
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


def test_each_round_of_a_caption_is_a_pair_of_its_own(read):
    talk = [*turns("<image>\nWhat?", "A bus."), *turns("Is it moving?", "Yes.")]
    rows = [{"id": "x", "image": "a.png", "conversations": talk}]
    rows += [{"image": "a.png", "conversations": talk[:2]}]
    pairs = read(*rows, format="caption").pairs
    assert [(p.pair_id, p.query.text, p.query_trace) for p in pairs] == [
        ("x-round-1", "What?", "A bus."),
        ("x-round-2", "Is it moving?", "Yes."),
        ("set-1", "What?", "A bus."),
    ]
    assert len({pair.query.uris for pair in pairs}) == 1


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        ([{"from": "system", "value": "Be short."}, *turns("a", "b")], "found 'system' after"),
        ([{"role": "user", "content": "hi"}], "expected turns {from, value}"),
        ([*turns("a", "b"), *turns("c", "d")[:1]], "a gpt turn in each round"),
        ([*turns("a", "b"), *turns("c", "d")[1:]], "found 'gpt' after 'gpt'"),
    ],
)
def test_conversations_that_are_no_rounds_are_set_aside(read, talk, words):
    why = reason(read({"image": "a.png", "conversations": talk}, format="caption"))
    assert "field 'conversations'" in why
    assert words in why


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"image": "a.png", "conversations": turns("What?", "")}, "conversations"),
        ({"image": "a.png"}, "conversations"),
        ({"image": 5, "conversations": turns("What?", "A cat.")}, "image"),
        ({"image": "lost.png", "conversations": turns("What?", "A cat.")}, "image"),
        ({"image": "\ud83d", "conversations": turns("What?", "A cat.")}, "image"),
        ({"image": "a.png", "conversations": turns("What?", "A cat."), "error": "x"}, "error"),
    ],
)
def test_a_bad_caption_is_set_aside(read, row, field):
    assert f"'{field}'" in reason(read(row, format="caption"))


# Sets.


def test_of_many_bad_rows_the_first_are_listed_and_all_counted(tmp_path, caplog):
    config = write_set(tmp_path, [GOOD] + [BAD] * 30)
    load_sets([config], limits=DataConfig(max_bad_rows=1.0))
    assert caplog.text.count("row set aside: ") == 20
    assert "data set 'set': 30 of 31 rows set aside, the first 20 listed" in caplog.text


def test_a_missing_root_is_refused(tmp_path):
    config = write_set(tmp_path, [MMEB], root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data set 'set': root folder .*nowhere not found"):
        load_set(config)


GOOD, BAD = {"qry": "q", "pos_text": "t"}, {"qry": "q", "pos_text": ""}


def test_few_bad_rows_are_set_aside_and_many_stop_the_job(tmp_path):
    config = write_set(tmp_path, [GOOD] * 9 + [BAD])
    (loaded,) = load_sets([config], limits=DataConfig(max_bad_rows=0.1))
    assert (len(loaded.pairs), len(loaded.bad_rows)) == (9, 1)
    with pytest.raises(DataError, match="1 of 10 rows are bad") as caught:
        load_sets([config], limits=DataConfig(max_bad_rows=0.09))
    assert "row 10, field 'pos_text'" in str(caught.value)


def test_a_set_without_rows_or_without_good_ones_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no row"):
        load_sets([write_set(tmp_path, [])], limits=DataConfig(max_bad_rows=1.0))
    with pytest.raises(DataError, match="1 of 1 rows are bad, so none is left; mend the file"):
        load_sets([write_set(tmp_path, [BAD])], limits=DataConfig(max_bad_rows=1.0))


def test_all_bad_sets_are_named_at_once(tmp_path):
    config = write_set(tmp_path, [BAD], name="one")
    lost = write_set(tmp_path, [BAD], name="two", path=str(tmp_path / "lost.json"))
    with pytest.raises(DataError) as caught:
        load_sets([config, lost, config], limits=DataConfig(max_bad_rows=0.0))
    assert "data set 'one'" in str(caught.value)
    assert "lost.json" in str(caught.value)
    assert "'one' is used 2 times" in str(caught.value)


FORMAT_ROWS = {
    "mmeb": MMEB,
    "llavahound": {
        "qry": {"conversations": turns("what?", ""), "video": VIDEO},
        "pos": {"conversations": turns("", "a jump")},
    },
    "mmeb_eval": {"qry_text": "a", "tgt_text": ["b"], "tgt_img_path": [""]},
    "colpali": {"query": "who?", "image": "a.png"},
    "caption": {"image": "a.png", "conversations": turns("what?", "a cat")},
}


@pytest.mark.parametrize("form", FORMAT_ROWS)
@pytest.mark.parametrize("said", FORMAT_ROWS)
def test_rows_of_another_format_are_told_once_for_the_set(read, tmp_path, caplog, form, said):
    rows = [FORMAT_ROWS[form]] * 3
    loaded = read(*rows, format=said)
    assert loaded.other_format == ("" if form == said else form)
    if form == said:
        assert len(loaded.pairs) == 3
        return
    assert not loaded.pairs
    caplog.clear()
    config = write_set(tmp_path, rows, format=said)
    with pytest.raises(DataError) as caught:
        load_sets([config], limits=DataConfig())
    assert str(caught.value) == (
        f"data set 'set', format: expected rows of {said} in {config.path}, found rows that look "
        f"like {form}; set the set's format to that"
    )
    assert caplog.records == []


def test_a_part_of_a_beir_set_is_told_and_an_unknown_row_is_not(read):
    assert read({"query-id": 1, "query": "who?"}, format="colpali").other_format == "beir"
    assert read({"query": "who?"}, format="mmeb").other_format == ""


def test_rows_of_two_formats_are_told_row_by_row(read, tmp_path):
    loaded = read(FORMAT_ROWS["colpali"], {**MMEB, "qry_image_path": "lost.png"})
    assert loaded.other_format == ""
    assert len(loaded.bad_rows) == 2


# Videos that are shown as one: their frames come two by two, with their times.


def one_video(read, names, *, max_frames=8):
    row = hound((turns("what?", ""), names), (turns("", "a"), None))
    (pair,) = read(row, format="llavahound", video="video", max_frames=max_frames).pairs
    return pair.query


@pytest.mark.parametrize(("max_frames", "shown"), [(8, 3), (2, 3), (3, 3), (1, 3), (8, 1)])
def test_a_video_shows_an_even_number_of_its_frames_or_its_only_one(read, max_frames, shown):
    item = one_video(read, VIDEO[:shown], max_frames=max_frames)
    names = [uri.rpartition("/")[2] for uri in item.uris]
    expected = ["1.jpg", "3.jpg"] if min(max_frames, shown) > 1 else ["1.jpg"]
    assert names == expected
    # No times are known of frames one by one: two a second.
    assert item.times == (0.0, 0.5)[: len(names)]


def test_a_videos_times_are_its_files_also_where_its_frames_are_named_one_by_one(read, root):
    path = write_video(root / "v/a.mp4", 51)
    item = one_video(read, "v/a.mp4", max_frames=5)
    assert [int(uri.rpartition("=")[2]) for uri in item.uris] == [0, 17, 33, 50]
    assert item.times == (0.0, 0.68, 1.32, 2.0)
    item = one_video(read, ["v/a.mp4#frame=10", "v/a.mp4#frame=20"])
    assert item.uris == (f"{path}#frame=10", f"{path}#frame=20")
    assert item.times == (0.4, 0.8)
    item = one_video(read, ["v/a.mp4#frame=10", "v/1.jpg"])
    assert item.times == (0.0, 0.5)


def test_true_frames_and_traces_of_a_video_count_the_frames_that_it_shows(read):
    row = hound((turns("what?", ""), VIDEO), (turns("", "a"), None))
    row["qry_evidence"] = {"key_frames": [3]}
    (pair,) = read(row, format="llavahound", video="video").pairs
    assert pair.query_evidence.key_frames == (1,)
    row["query_cot"] = TRACES[Kind.VIDEO].replace("[2, 3]", "[3]")
    (bad,) = read(row, format="llavahound", video="video").bad_rows
    assert "query_cot" in bad.reason
    assert not read(row, format="llavahound").bad_rows
