"""Which rows nearly repeat others: of held-out sets, and of their own set."""

import numpy as np
import pytest
from PIL import Image

from configs.common import MediaConfig
from data.checks.near_duplicates import describe_near, near_duplicates, near_row
from data.checks.set_figures import CheckedSet, Medium, decode_group, media_groups
from data.sets.load_sets import load_set
from tests.builders import write_set
from tests.inputs.drawings import CHANGES, as_jpeg, draw
from tests.inputs.media_files import write_video

MEDIA = MediaConfig(max_frames=4)
CAPTION = "A man in a red jacket rides an old bicycle along the river while two dogs follow him."


@pytest.fixture
def read(tmp_path):
    """Return a function that writes rows as a set under one root, and reads it."""

    def read_rows(rows, *, name="mine", held_out=False, **changes):
        folder = tmp_path / name
        folder.mkdir()
        settings = write_set(folder, rows, name=name, **{"root": str(tmp_path), **changes})
        loaded = load_set(settings, max_frames=MEDIA.max_frames)
        assert not loaded.bad_rows
        return CheckedSet(
            settings=settings,
            held_out=held_out,
            loaded=loaded,
            problems=(),
        )

    return read_rows


def report_of(*sets):
    """Decode the media of sets here; return the report of their near duplicates."""
    pairs = [pair for checked in sets for pair in checked.loaded.pairs]
    media = {}
    for group in media_groups(pairs, MEDIA.max_frames):
        for row in decode_group(group, MEDIA):
            uri = row.pop("uri")
            media[uri] = Medium(**row)
    return near_duplicates(sets, media, MEDIA.max_frames)


def near_in(*sets):
    """Return the rows that are named: set, row, side, what, set and row that stays, its side."""
    near = report_of(*sets).duplicates
    named = list(map(near_row, near))
    assert all(0.8 <= row["similarity"] <= 1 for row in named)
    assert sum(group["rows"] for group in describe_near(near)) == len(
        {(row["file"], row["row"]) for row in named}
    )
    keys = ("data_set", "row", "side", "what", "of_data_set", "of_row", "of_side")
    return [tuple(row[key] for key in keys) for row in named]


def asked(picture, text, question="what is drawn?"):
    return {"qry": question, "qry_image_path": picture, "pos_text": text}


def wanted(picture, text):
    return {"qry": text, "pos_text": "", "pos_image_path": picture}


def test_a_row_that_nearly_repeats_an_earlier_one_on_both_sides_is_named(tmp_path, read):
    draw(0).save(tmp_path / "a.png")
    as_jpeg(draw(0)).save(tmp_path / "copy.png")
    draw(1).save(tmp_path / "b.png")
    rows = [
        asked("a.png", CAPTION),
        asked("b.png", CAPTION),  # another picture
        asked("copy.png", "something else"),  # a picture may have several captions
        asked("copy.png", CAPTION[:-1], question="What is drawn?"),
        asked("copy.png", CAPTION, question="who rides it?"),
        asked("a.png", CAPTION),
    ]
    parts = [("query", "image"), ("query", "text"), ("target", "text")]
    assert near_in(read(rows)) == [
        ("mine", row, side, what, "mine", 1, side) for row in (4, 6) for side, what in parts
    ]


def test_pictures_and_texts_that_nearly_equal_earlier_ones_are_counted_in_each_set(tmp_path, read):
    draw(0).save(tmp_path / "a.png")
    as_jpeg(draw(0)).save(tmp_path / "copy.png")
    train = read([asked("a.png", CAPTION), asked("copy.png", "a dog"), asked("a.png", "a dog")])
    held_out = read([asked("copy.png", CAPTION[:-1])], name="test", held_out=True)
    other = read([asked("a.png", CAPTION), asked("a.png", CAPTION.upper())], name="other")
    texts = read([{"qry": "a", "pos_text": "b"}], name="texts")
    assert report_of(train, held_out, other, texts).contents == [
        {"pictures": 1, "texts": 0},
        {"pictures": 0, "texts": 0},
        {"pictures": 0, "texts": 1},
        {"pictures": 0, "texts": 0},
    ]
    assert report_of().contents == []


def test_a_row_is_not_named_for_one_that_is_named_itself(read):
    edits = [CAPTION, CAPTION.replace("old", "ole"), CAPTION.replace("old", "ole").upper() + "!!"]
    edits += [edits[2].replace("along", "beside")]
    rows = [{"qry": text, "pos_text": "yes"} for text in edits]
    [*_, last] = near_in(read(rows[:3]))
    assert (last[1], last[5]) == (3, 1)
    of = {row: of for _, row, _, _, _, of, _ in near_in(read(rows, name="all"))}
    assert not set(of.values()) & of.keys()


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_row_with_a_picture_of_a_held_out_row_is_named(tmp_path, read, change):
    for number in range(3):
        draw(number).save(tmp_path / f"{number}.png")
    CHANGES[change](draw(1)).save(tmp_path / "copy.png")
    train = read([asked("0.png", "a"), asked("copy.png", "b"), wanted("copy.png", "c")])
    held_out = read(
        [asked("2.png", "d"), wanted("1.png", "e"), asked("1.png", "f")], name="test", held_out=True
    )
    assert near_in(train, held_out) == [
        ("mine", 2, "query", "image", "test", 2, "target"),
        ("mine", 3, "target", "image", "test", 2, "target"),
    ]


def test_a_training_row_with_a_held_out_query_of_text_is_named_but_not_for_its_target(read):
    train = read(
        [
            {"qry": CAPTION.upper(), "pos_text": "a bicycle"},
            {"qry": "what is it?", "pos_text": CAPTION},
            {"qry": "another question", "pos_text": "a dog"},
        ]
    )
    held_out = read(
        [{"qry": "how many?", "pos_text": "a dog"}, {"qry": CAPTION, "pos_text": "no"}],
        name="test",
        held_out=True,
    )
    assert near_in(held_out, train) == [("mine", 1, "query", "text", "test", 2, "query")]


def test_videos_are_compared_by_three_frames(tmp_path, read):
    random = np.random.default_rng(0)

    def clip(name, seeds, change=lambda image: image):
        folder = tmp_path / name
        folder.mkdir()
        for place, seed in enumerate(seeds):
            change(draw(int(seed))).save(folder / f"{place}.png")

    seeds = random.integers(0, 1000, 4)
    clip("a", seeds)
    clip("copy", seeds, as_jpeg)
    clip("other", [*seeds[:3], 2000])
    write_video(tmp_path / "c.mp4", 4)  # frames of one colour, equal in both rows
    rows = [
        {
            "qry": {"conversations": [{"from": "human", "value": "what happens?"}], "video": video},
            "pos": {"conversations": [{"from": "gpt", "value": CAPTION}]},
        }
        for video in ("a", "other", "copy", "c.mp4", "c.mp4")
    ]
    named = near_in(read(rows, format="llavahound"))
    assert {(row, of) for _, row, _, _, _, of, _ in named} == {(3, 1), (5, 4)}
    assert {what for _, _, side, what, *_ in named if side == "query"} == {"video", "text"}


def test_pictures_of_one_colour_are_near_only_where_they_are_equal(tmp_path, read):

    for name, level in (("a", 255), ("b", 254), ("c", 255)):
        Image.new("RGB", (60, 40), (level,) * 3).save(tmp_path / f"{name}.png")
    Image.new("RGB", (60, 40), "white").save(tmp_path / "c.bmp")
    rows = [asked(name, "a blank page") for name in ("a.png", "b.png", "c.bmp")]
    assert {(row, of) for _, row, _, _, _, of, _ in near_in(read(rows))} == {(3, 1)}


def test_a_row_with_a_broken_picture_is_not_compared(tmp_path, read):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert near_in(read([asked("broken.png", CAPTION), asked("broken.png", CAPTION)])) == []


def test_a_row_of_several_captions_is_named_where_all_of_them_repeat(tmp_path, read):
    draw(0).save(tmp_path / "a.png")

    def told(*captions):
        rounds = []
        for number, caption in enumerate(captions):
            rounds += [{"from": "human", "value": f"question {number}"}]
            rounds += [{"from": "gpt", "value": caption}]
        return {"image": "a.png", "conversations": rounds}

    rows = [told(CAPTION, "a dog"), told(CAPTION, "a cat"), told(CAPTION[:-1], "a dog")]
    named = near_in(read(rows, format="caption"))
    assert {(row, of) for _, row, _, _, _, of, _ in named} == {(3, 1)}
