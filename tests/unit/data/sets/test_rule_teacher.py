"""Traces by rule: boxes, frames and words on pictures and texts made here."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.common import DataSetConfig, MediaConfig
from data.cues import MIN_BOX_SIDE
from data.errors import DataError
from data.sets.load_sets import BadRow, LoadedSet, load_set
from data.sets.rule_teacher import (
    LARGEST_BOX,
    HeldOut,
    RuleTeacher,
    captions_of,
    changing_frames,
    content_box,
    differing,
    emptiest_corner,
    in_short,
    keywords_of,
    share_of,
    shared_start,
    still_frames,
    trace_pairs,
)
from data.tcot import parse
from data.types import Box, Item, Kind, Pair, Side
from tests.builders import loaded_set
from tests.inputs.media_files import write_pdf, write_video

TASK = "Find the name of this sign."
GIRL = (
    "\u5728\u96e8\u4e2d\u6253\u7740\u7ea2\u4f1e\u7684\u5973\u5b69\u8d70\u8fc7\u4e00\u5ea7"
    "\u53e4\u8001\u7684\u77f3\u6865"
)
"""A girl with a red umbrella in the rain crosses an old stone bridge."""
SEEK = "Find a sign that matches the description:"
RED = (200, 0, 0)


def picture(*boxes: tuple[int, int, int, int], size: int = 100, back: int = 255) -> np.ndarray:
    """Return a plain picture with red rectangles (left, top, right, bottom)."""
    pixels = np.full((size, size, 3), back, np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = RED
    return pixels


def loaded(name: str, pairs: Sequence[tuple[Item, Item]]) -> LoadedSet:
    """Return a data set of these ends."""
    return loaded_set(
        name=name,
        pairs=tuple(
            Pair(pair_id=f"{name}-{index}", source=name, query=query, target=target)
            for index, (query, target) in enumerate(pairs)
        ),
        bad_rows=(),
    )


def image(name: str, text: str = TASK) -> Item:
    return Item(text=text, kind=Kind.IMAGE, uris=(name,))


def cue(trace: str) -> object:
    """Return what is inside the trace's JSON object."""
    return json.loads(trace[trace.index("{") : trace.index("}") + 1])


def test_box_is_tight_around_what_differs_from_the_border():
    mask = differing(picture((20, 30, 60, 40), (50, 35, 70, 90)))
    assert content_box(mask) == Box(0.2, 0.3, 0.7, 0.9)


def test_box_ignores_faint_noise_and_takes_any_border_colour():
    pixels = picture((40, 40, 60, 60), back=30)
    pixels[::7, ::5] += 20
    assert content_box(differing(pixels)) == Box(0.4, 0.4, 0.6, 0.6)


def test_one_colour_has_nothing_to_box():
    with pytest.raises(DataError, match="one colour"):
        content_box(differing(picture()))


@pytest.mark.parametrize(
    "corners", [(1, 1, 99, 99), (0, 50, 100, 51), (99, 99, 100, 100), (0, 0, 1, 1)]
)
def test_extreme_boxes_stay_valid_in_the_grammar(corners):
    box = content_box(differing(picture(corners)))
    assert 0 <= box.x1 < box.x2 <= 1
    assert 0 <= box.y1 < box.y2 <= 1
    assert box.area() <= LARGEST_BOX + 1e-9
    assert min(box.x2 - box.x1, box.y2 - box.y1) >= MIN_BOX_SIDE


def test_off_target_corner_is_the_emptiest_and_the_first_among_equals():
    assert emptiest_corner(differing(picture((0, 0, 30, 30)))) == Box(0.75, 0, 1, 0.25)
    assert emptiest_corner(differing(picture((40, 40, 60, 60)))) == Box(0, 0, 0.25, 0.25)
    full = np.ones((40, 40), bool)
    full[35:, :5] = False
    assert emptiest_corner(full) == Box(0, 0.75, 0.25, 1)


def test_key_frames_are_where_the_picture_changes():
    still, moved = picture((0, 0, 20, 20)), picture((60, 60, 100, 100))
    assert changing_frames([still, still, still, moved, moved, moved]) == (2, 3)
    assert still_frames([still, still, still, moved, moved, moved]) == (0,)


def test_key_frames_of_a_steady_motion_are_its_ends():
    frames = [picture((10 * step, 0, 10 * step + 10, 10)) for step in range(8)]
    assert changing_frames(frames) == (0, 7)


def test_few_or_equal_frames_still_have_a_key_frame():
    assert changing_frames([picture()]) == (0,)
    assert still_frames([picture()]) == ()
    assert changing_frames([picture()] * 3) == (0, 2)
    assert still_frames([picture()] * 3) == (1,)


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ("candy; cavities, dessert, sweet", ("candy", "cavities", "dessert", "sweet")),
        ("an egg moving up", ("egg moving up",)),
        ("the dog and the cat are in a garden", ("dog", "cat", "garden")),
        ("three o'clock; 3, 3:00, 3", ("three o'clock", "3", "3:00")),
        ('a {"b"} <c>; ; !', ("b c",)),
        ("a, b, c, d, e, f", ("a", "b", "c", "d")),
        ("to be or not to be that is", ("to", "be", "or", "not")),
        ("...", ()),
        (
            "\u7ea2\u8272\u7684\u661f\u661f\uff0c\u5728\u84dd\u5929\u4e0b\u3002",
            ("\u7ea2\u8272\u7684\u661f\u661f", "\u5728\u84dd\u5929\u4e0b"),
        ),
        (
            GIRL,
            (
                "\u96e8\u4e2d\u6253",
                "\u7ea2\u4f1e",
                "\u5973\u5b69\u8d70\u8fc7",
                "\u4e00\u5ea7\u53e4\u8001",
            ),
        ),
        (
            "\u8d64\u3044\u661f\u304c\u7a7a\u306b\u6d6e\u304b\u3093\u3067\u3044\u307e\u3059",
            ("\u8d64\u3044\u661f", "\u7a7a", "\u6d6e\u304b\u3093", "\u3044\u307e\u3059"),
        ),
        ("\u0e01\u0e33" * 6, ("\u0e01\u0e33\u0e01\u0e33",)),
        ("\U0001f600\U0001f600", ("\U0001f600\U0001f600",)),
    ],
)
def test_keywords_are_phrases_or_content_words(text, keywords):
    assert keywords_of(text) == keywords


def test_prose_is_the_first_phrase_in_short():
    assert in_short("star and crescent; islam, religion") == "star and crescent"
    assert in_short("a palette is moving towards the bottom right corner of it all") == (
        "palette moving towards bottom right corner"
    )
    assert in_short("") == ""


def test_texts_without_blanks_share_their_task_character_by_character():
    task = "\u627e\u5230\u8fd9\u5f20\u56fe\u7247\uff1a"
    seek = loaded(
        "seek",
        [(Item(text=task + name), image(name, "x")) for name in ("\u7ea2\u661f", "\u592a\u9633")],
    )
    assert shared_start([task + "\u7ea2\u661f", task + "\u592a\u9633"]) == tuple(task)
    teacher = RuleTeacher([seek])
    assert teacher.content(seek.pairs[0], Side.QUERY) == "\u7ea2\u661f"
    off = teacher.trace(seek.pairs[0], Side.QUERY, [], on_target=False)
    assert cue(off) == {"text_keywords": [task[:-1]]}


def test_prose_of_a_text_without_blanks_is_no_copy_of_it():
    assert in_short(GIRL).split() == [
        *("\u96e8\u4e2d\u6253", "\u7ea2\u4f1e", "\u5973\u5b69\u8d70\u8fc7"),
        *("\u4e00\u5ea7\u53e4\u8001", "\u77f3\u6865"),
    ]


def test_shared_start_is_the_tasks_and_ends_where_items_begin():
    assert shared_start([f"{SEEK} {word}" for word in "abcdef"]) == tuple(SEEK.split())
    assert shared_start([TASK] * 5) == tuple(TASK.split())
    assert shared_start(["camel", "dog", "cat"]) == ()
    assert shared_start(["yes"] * 6 + ["no"] * 4) == ()
    assert shared_start(["alone here"]) == ()
    assert shared_start([]) == ()


def test_picture_speaks_with_its_pairs_text():
    names = loaded("i2t", [(image("a"), Item(text="red bar")), (image("b"), Item(text="dot"))])
    teacher = RuleTeacher([names])
    trace = teacher.trace(names.pairs[0], Side.QUERY, [picture((10, 0, 30, 80))], on_target=True)
    assert trace == (
        '<thinking> red bar{"bbox_2d": [100, 0, 300, 800]}</thinking>'
        "<rethink> red bar</rethink><answer> red bar</answer>"
    )


def test_picture_named_in_one_set_is_named_in_the_others():
    names = loaded("i2t", [(image("a"), Item(text="red bar")), (image("b"), Item(text="dot"))])
    change = "Find the same but"
    others = loaded(
        "composed",
        [
            (image("a", f"{change} round"), image("b", "A sign.")),
            (image("b", f"{change} long"), image("a", "A sign.")),
        ],
    )
    teacher = RuleTeacher([names, others])
    pair = others.pairs[0]
    query = teacher.trace(pair, Side.QUERY, [picture((1, 1, 9, 9))], on_target=True)
    target = teacher.trace(pair, Side.TARGET, [picture((1, 1, 9, 9))], on_target=True)
    assert query.startswith("<thinking> red bar{")
    assert query.endswith("<rethink> dot</rethink><answer> dot</answer>")
    assert target.startswith("<thinking> dot{")


def test_unnamed_picture_takes_the_words_beside_it():
    change = "Find the same but"
    only = loaded(
        "composed",
        [
            (image("a", f"{change} round"), image("b", "A sign.")),
            (image("b", f"{change} long"), image("a", "A sign.")),
        ],
    )
    teacher = RuleTeacher([only])
    for side in Side:
        trace = teacher.trace(only.pairs[0], side, [picture((1, 1, 9, 9))], on_target=True)
        assert trace.startswith("<thinking> round{")
        assert trace.endswith("<answer> round</answer>")


def test_question_on_a_picture_does_not_name_the_picture():
    ask = "What colour is the"
    asked = loaded(
        "vqa",
        [
            (image("a", f"{ask} bar?"), Item(text="red")),
            (image("a", f"{ask} dot?"), Item(text="blue")),
        ],
    )
    trace = RuleTeacher([asked]).trace(
        asked.pairs[1], Side.QUERY, [picture((1, 1, 9, 9))], on_target=True
    )
    assert trace.startswith("<thinking> dot{")
    assert trace.endswith("<answer> blue</answer>")


def test_no_words_anywhere_is_refused():
    mute = loaded("mute", [(image("a"), image("b")), (image("b"), image("a"))])
    with pytest.raises(DataError, match="no words"):
        RuleTeacher([mute]).trace(
            mute.pairs[0], Side.QUERY, [picture((1, 1, 9, 9))], on_target=True
        )


def test_off_target_traces_are_valid_and_help_nobody():
    seek = loaded(
        "t2i", [(Item(text=f"{SEEK} {word}; thing"), image(word, "A sign.")) for word in "ab"]
    )
    teacher = RuleTeacher([seek])
    text = teacher.trace(seek.pairs[0], Side.QUERY, [], on_target=False)
    assert cue(text) == {"text_keywords": ["Find", "sign", "matches", "description"]}
    boxed = teacher.trace(seek.pairs[0], Side.TARGET, [picture((40, 40, 60, 60))], on_target=False)
    assert boxed.startswith('<thinking> background{"bbox_2d": [0, 0, 250, 250]}')
    assert parse(text, kind=Kind.TEXT).valid
    assert parse(boxed, kind=Kind.IMAGE).valid


def test_text_without_task_words_stays_on_target():
    names = loaded("i2t", [(image("a"), Item(text="red bar")), (image("b"), Item(text="dot"))])
    teacher = RuleTeacher([names])
    traces = {
        teacher.trace(names.pairs[0], Side.TARGET, [], on_target=right) for right in (True, False)
    }
    assert len(traces) == 1


def test_videos_point_at_frames():
    clips = loaded(
        "clips",
        [
            (
                Item(text="Describe.", kind=Kind.VIDEO, uris=(f"{n}1", f"{n}2", f"{n}3")),
                Item(text=n),
            )
            for n in ("a ball", "one box")
        ],
    )
    frames = [picture((0, 0, 9, 9)), picture((50, 50, 99, 99)), picture((0, 0, 9, 9))]
    teacher = RuleTeacher([clips])
    pair = clips.pairs[0]
    right = teacher.trace(pair, Side.QUERY, frames, on_target=True)
    wrong = teacher.trace(pair, Side.QUERY, frames, on_target=False)
    assert right.startswith('<thinking> ball{"key_frames": [1, 3]}')
    assert wrong.startswith('<thinking> background{"key_frames": [2]}')


@pytest.fixture
def signs(tmp_path: Path) -> DataSetConfig:
    """A set on disk: 40 good rows, one corrupt picture, one of a single colour."""
    rows = []
    for index in range(42):
        pixels = picture() if index == 41 else picture((index, 10, index + 20, 60))
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append({"qry": TASK, "qry_image_path": f"{index}.png", "pos_text": f"{index} sign"})
    (tmp_path / "40.png").write_bytes(b"no picture")
    (tmp_path / "signs.json").write_text(json.dumps(rows))
    return DataSetConfig(name="signs", path=str(tmp_path / "signs.json"), root=str(tmp_path))


def traced(signs: DataSetConfig, *, on_target: float, seed: int = 0) -> list:
    one = load_set(signs)
    teacher = RuleTeacher([one])
    return list(trace_pairs(one, teacher, media=MediaConfig(), on_target=on_target, seed=seed))


def test_every_trace_is_valid_and_bad_rows_are_named(signs):
    results = traced(signs, on_target=0.5)
    bad = [one for one in results if isinstance(one, BadRow)]
    good = [one for one in results if not isinstance(one, BadRow)]
    assert [one.where for one in bad] == [
        "data set 'signs', id 'signs-40'",
        "data set 'signs', id 'signs-41'",
    ]
    assert "picture not readable" in bad[0].reason
    assert "one colour" in bad[1].reason
    assert len(good) == 40
    for one in good:
        for side in Side:
            for text in (one.by_rule[side], one.biased[side]):
                assert parse(text, kind=one.pair.item(side).kind).valid


def test_bias_has_the_asked_share_and_depends_on_the_seed_alone(signs):
    def off(on_target: float, seed: int = 0) -> list[bool]:
        return [
            one.biased[Side.QUERY] != one.by_rule[Side.QUERY]
            for one in traced(signs, on_target=on_target, seed=seed)
            if not isinstance(one, BadRow)
        ]

    assert sum(off(1.0)) == 0
    assert sum(off(0.0)) == 40
    assert 10 <= sum(off(0.5)) <= 30
    assert off(0.5) == off(0.5)
    assert off(0.5) != off(0.5, seed=1)


def held(sets: Sequence[LoadedSet], *, share: float = 0.3) -> HeldOut:
    return HeldOut(sets, ["/"] * len(sets), share=share, seed=0)


def test_held_out_pictures_are_held_out_in_every_set(signs):
    one = load_set(signs)
    other = loaded("turned", [(pair.target, pair.query) for pair in one.pairs])
    keeps = held([one, other])
    kept = [keeps.holds(pair) for pair in one.pairs]
    assert kept == [keeps.holds(pair) for pair in other.pairs]
    assert 3 <= sum(kept) <= 25
    assert not any(held([one], share=0.0).holds(pair) for pair in one.pairs)


def clip(*names: str) -> Item:
    return Item(text="Describe.", kind=Kind.VIDEO, uris=tuple(f"/{name}" for name in names))


def test_frames_of_a_held_out_clip_are_held_out_as_stills():
    frames = [[f"{number}-{frame}" for frame in range(8)] for number in range(100)]
    clips = loaded("clips", [(clip(*some), Item(text="a ball")) for some in frames])
    stills = loaded("stills", [(image(f"/{f}"), Item(text="x")) for some in frames for f in some])
    keeps = held([stills, clips])
    out = [keeps.holds(pair) for pair in clips.pairs]
    assert 15 <= sum(out) <= 45
    assert [keeps.holds(pair) for pair in stills.pairs] == [kept for kept in out for _ in range(8)]


def test_all_frames_of_a_held_out_video_file_are_held_out_as_stills():
    def frames(number, numbers):
        return [f"/{number}.mp4#frame={frame}" for frame in numbers]

    shown = [Item(text="", kind=Kind.VIDEO, uris=tuple(frames(n, (0, 9, 19)))) for n in range(60)]
    clips = loaded("clips", [(item, Item(text="a ball")) for item in shown])
    stills = loaded(
        "stills", [(image(f), Item(text="x")) for n in range(60) for f in frames(n, range(20))]
    )
    keeps = held([stills, clips])
    out = [keeps.holds(pair) for pair in clips.pairs]
    assert 6 <= sum(out) <= 30
    assert [keeps.holds(pair) for pair in stills.pairs] == [kept for kept in out for _ in range(20)]


def test_clips_that_overlap_go_together_and_one_common_frame_binds_none():
    frames = [[f"{number}-{frame}" for frame in range(8)] for number in range(100)]
    whole = [(clip("black", *some), Item(text="a")) for some in frames]
    parts = [(clip("black", *some[:4]), Item(text="a")) for some in frames]
    first, second = loaded("whole", whole), loaded("parts", parts)
    out = [held([first]).holds(pair) for pair in first.pairs]
    assert 15 <= sum(out) <= 45
    keeps = held([first, second])
    both = list(zip(first.pairs, second.pairs, strict=True))
    assert all(keeps.holds(part) for one, part in both if keeps.holds(one))
    assert not all(keeps.holds(part) for _, part in both)


def test_captions_ask_each_question_on_a_picture_once(signs):
    one = load_set(signs)
    teacher = RuleTeacher([one])
    good = [row for row in traced(signs, on_target=1.0) if not isinstance(row, BadRow)]
    seen: set[str] = set()
    rows = captions_of(good, teacher, root=signs.root, seen=seen)
    assert len(rows) == 40
    assert captions_of(good, teacher, root=signs.root, seen=seen) == []
    assert rows[3] == {
        "id": "signs-3-query",
        "image": "3.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{TASK}"},
            {"from": "gpt", "value": " 3 sign"},
        ],
    }


def test_captions_name_frames_and_pages_as_rows_may(tmp_path):
    write_video(tmp_path / "v/a.mp4", 20)
    write_pdf(tmp_path / "a.pdf", 3)
    clip = {
        "qry": {"conversations": [{"from": "human", "value": "what?"}], "video": "v/a.mp4"},
        "pos": {"conversations": [{"from": "gpt", "value": "a rainbow"}]},
    }
    (tmp_path / "rows.json").write_text(json.dumps([clip]))
    config = DataSetConfig(
        name="clips", path=str(tmp_path / "rows.json"), root=str(tmp_path), format="llavahound"
    )
    page = [{"qry": "what?", "qry_image_path": "a.pdf#page=2", "pos_text": "a red square"}]
    (tmp_path / "pages.json").write_text(json.dumps(page))
    pages = DataSetConfig(
        name="pages", path=str(tmp_path / "pages.json"), root=str(tmp_path), kind="page"
    )
    sets = [load_set(config), load_set(pages)]
    teacher = RuleTeacher(sets)
    captions = [
        caption
        for data_set in sets
        for caption in captions_of(
            trace_pairs(data_set, teacher, media=MediaConfig(), on_target=1.0, seed=0),
            teacher,
            root=str(tmp_path),
            seen=set(),
        )
    ]
    shown = [f"v/a.mp4#frame={number}" for number in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert [caption["image"] for caption in captions] == [shown, "a.pdf#page=2"]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    again = load_set(
        DataSetConfig(
            name="captions",
            path=str(tmp_path / "captions.json"),
            root=str(tmp_path),
            format="caption",
        )
    )
    assert [pair.query.uris for pair in again.pairs] == [
        sets[0].pairs[0].query.uris,
        sets[1].pairs[0].query.uris,
    ]


def test_share_is_uniform_and_repeatable():
    shares = [share_of(f"row {index}") for index in range(2000)]
    assert min(shares) >= 0
    assert max(shares) < 1
    assert abs(np.mean(shares) - 0.5) < 0.03
    assert share_of("row 1") == shares[1]
