"""What a check of data sets says, from rows on disk and what decoding gave."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from configs.common import MediaConfig
from data.checks.set_figures import (
    CheckedSet,
    Medium,
    contents_of,
    decode_group,
    describe_set,
    leaks,
    media_groups,
    readable_pairs,
    set_aside,
)
from data.rows.row_formats import KNOWN_FIELDS, PICTURE_FIELDS
from data.sets.load_sets import load_set
from data.types import Item, Kind
from tests.builders import make_pair, write_picture, write_set
from tests.inputs.media_files import write_video

MEDIA = MediaConfig(image_min_pixels=1024, image_max_pixels=4096, max_frames=2)


def checked_set(config, *, held_out=False):
    loaded = load_set(config, max_frames=MEDIA.max_frames)
    return CheckedSet(
        settings=config,
        held_out=held_out,
        loaded=loaded,
        problems=("why",),
    )


def decoded(checked):
    """Decode the media of a set here."""
    media = {}
    for group in media_groups(checked.loaded.pairs, MEDIA.max_frames):
        for row in decode_group(group, MEDIA):
            uri = row.pop("uri")
            media[uri] = Medium(**row)
    return media


@pytest.fixture
def pictures(tmp_path):
    """Write three rows with a picture each, the last broken, and one that is no row."""
    root = tmp_path / "root"
    write_picture(root / "a.png", 40, 30)
    Image.open(root / "a.png").save(root / "b.bmp")
    (root / "c.png").write_bytes(b"no picture")
    rows = [
        {"qry": "what?", "qry_image_path": name, "pos_text": text}
        for name, text in (("a.png", "a cat"), ("b.bmp", "a cat"), ("c.png", "a dog"))
    ]
    return checked_set(write_set(tmp_path, [*rows, {"qry": 7, "pos_text": "x"}]))


def test_frames_of_one_video_are_one_group_and_a_still_among_them_is_no_mere_frame(tmp_path):
    frames = tuple(f"{write_video(tmp_path / 'a.mp4')}#frame={n}" for n in range(3))
    clip = make_pair("clip", query=Item(text="", kind=Kind.VIDEO, uris=frames))
    still = make_pair("still", query=Item(text="", kind=Kind.IMAGE, uris=frames[:1]))
    negative = Item(text="", kind=Kind.IMAGE, uris=("n.png",))
    assert media_groups([clip, still, make_pair(hard_negatives=(negative,))], 2) == [
        {"uris": [frames[0], frames[2]], "as_frame": [False, True]},
        {"uris": ["n.png"], "as_frame": [False]},
    ]


def test_a_decoded_group_has_sizes_and_digests_and_no_pixels(tmp_path):
    good = str(write_picture(tmp_path / "a.png", 40, 30))
    Image.open(good).save(tmp_path / "b.bmp")
    turned = Image.open(good).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "c.png")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "d.png")
    rows = {}
    for name in ("a.png", "b.bmp", "c.png", "d.png"):
        [rows[name]] = decode_group(
            # Ray hands arrays over.
            {"uris": np.array([str(tmp_path / name)]), "as_frame": np.array([False])},
            MEDIA,
        )
    assert rows["a.png"] | {"uri": ""} == rows["b.bmp"] | {"uri": ""}
    assert (rows["a.png"]["height"], rows["a.png"]["width"]) == (30, 40)
    assert len({row["digest"] for row in rows.values()}) == 3
    assert [name for name, row in rows.items() if row["one_colour"]] == ["d.png"]
    assert all(isinstance(value, int | str) for row in rows.values() for value in row.values())


def test_what_cannot_be_decoded_has_its_reason_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    [row] = decode_group({"uris": [str(path)], "as_frame": [False]}, MEDIA)
    assert row["reason"].startswith(f"{path}: not a readable picture")
    assert row | {"uri": "", "reason": ""} == {"uri": "", **decoded_nothing()}
    good = str(write_picture(path, 40, 30))
    [row] = decode_group({"uris": [good], "as_frame": [False]}, replace(MEDIA, max_step_bytes=9))
    assert "max_step_bytes=9" in row["reason"]


def decoded_nothing():
    numbers = {"height": 0, "width": 0, "one_colour": False}
    return {**numbers, "digest": "", "perceptual_hash": "", "reason": ""}


def test_what_is_set_aside_names_file_row_field_and_reason_rows_first(pictures):
    file = pictures.settings.path
    row, medium = set_aside(pictures, decoded(pictures), MEDIA.max_frames)
    assert row == {
        "data_set": "set",
        "file": file,
        "row": 4,
        "field": "qry",
        "reason": f"{file} row 4, field 'qry': expected text, found int; mend or remove the row",
    }
    assert "c.png: not a readable picture" in medium.pop("reason")
    assert medium == {"data_set": "set", "file": file, "row": 3, "field": "qry_image_path"}


def test_a_broken_candidate_is_told_once_in_a_row_with_its_field(tmp_path):
    root = tmp_path / "root"
    write_picture(root / "a.png")
    (root / "b.png").write_bytes(b"no picture")
    row = {"qry_text": "x", "tgt_text": [""] * 3, "tgt_img_path": ["b.png", "a.png", "b.png"]}
    checked = checked_set(write_set(tmp_path, [row, row | {"id": "2"}], format="mmeb_eval"))
    lines = list(set_aside(checked, decoded(checked), MEDIA.max_frames))
    assert [(line["row"], line["field"]) for line in lines] == [
        (1, "tgt_img_path"),
        (2, "tgt_img_path"),
    ]


def test_every_format_says_where_its_pictures_stand():
    assert PICTURE_FIELDS.keys() == KNOWN_FIELDS.keys()
    for name, fields in PICTURE_FIELDS.items():
        assert {field.partition(".")[0] for field in fields if field} <= KNOWN_FIELDS[name]


def test_the_figures_of_a_set(pictures):
    media = decoded(pictures)
    contents = contents_of(pictures.loaded, media, MEDIA.max_frames)
    figures = describe_set(pictures, media, contents, MEDIA)
    root, file = pictures.settings.root, pictures.settings.path
    assert figures == {
        "name": "set",
        "held_out": False,
        "path": file,
        "rows": 4,
        "rows_read": 4,
        "rows_unranked": 0,
        "rows_set_aside": 1,
        "rows_set_aside_by_field": {"qry": 1},
        "pairs": 3,
        "distractors": 0,
        "pairs_set_aside": 1,
        "media": {
            "named": 3,
            "usable": 3,
            "copies": 0,
            "shown": 3,
            "set_aside": 1,
            "one_colour": 0,
        },
        "kinds": {"query": {"image": 3}, "target": {"text": 3}},
        # 40 x 30 pixels, 1024 a token, and a token for four characters.
        "tokens": {
            "query": {"min": 2, "median": 2, "max": 2},
            "target": {"min": 1, "median": 1, "max": 1},
        },
        "twice": {
            "pictures": {
                "count": 1,
                "examples": [{"text": "", "at": [f"{root}/a.png", f"{root}/b.bmp"]}],
            },
            "query_texts": {"count": 0, "examples": []},
            "target_texts": {
                "count": 1,
                "examples": [{"text": "a cat", "at": [f"{file} row 1", f"{file} row 2"]}],
            },
        },
        "problems": ["why"],
    }
    assert [pair.row for pair in readable_pairs(pictures.loaded, media, MEDIA.max_frames)] == [0, 1]


def test_a_set_without_pairs_has_no_tokens(tmp_path):
    checked = checked_set(write_set(tmp_path, [{"qry": "", "pos_text": ""}]))
    figures = describe_set(checked, {}, contents_of(checked.loaded, {}, 2), MEDIA)
    assert (figures["pairs"], figures["tokens"]) == (0, {"query": {}, "target": {}})
    empty = "qry or qry_image_path"
    assert figures["rows_set_aside_by_field"] == {empty: 1}


def test_leaks_are_what_held_out_sets_share_with_training_sets(tmp_path, pictures):
    other = tmp_path / "other"
    other.mkdir()
    write_picture(other / "root/z.png", 40, 30)
    write_picture(other / "root/y.png", 30, 30)
    rows = [
        {"qry": "what?", "qry_image_path": "z.png", "pos_text": "a cat"},
        {"qry": "what?", "qry_image_path": "y.png", "pos_text": "a horse"},
    ]
    held_out = checked_set(write_set(other, rows, name="held"), held_out=True)
    sets = [
        (checked, contents_of(checked.loaded, decoded(checked), MEDIA.max_frames))
        for checked in (pictures, held_out)
    ]
    root, file = pictures.settings.root, pictures.settings.path
    common = {"train": "set", "held_out": "held", "count": 1}
    assert leaks(sets) == [
        {
            **common,
            "what": "pictures",
            "examples": [
                {
                    "text": "",
                    "train": [f"{root}/a.png", f"{root}/b.bmp"],
                    "held_out": [f"{other}/root/z.png"],
                }
            ],
        },
        {
            **common,
            "what": "target_texts",
            "examples": [
                {
                    "text": "a cat",
                    "train": [f"{file} row 1", f"{file} row 2"],
                    "held_out": [f"{other}/rows.json row 1"],
                }
            ],
        },
    ]
    assert leaks(sets[:1]) == leaks(sets[1:]) == []
