"""The demo's small world: coloured shapes whose region, not whose description, decides retrieval.

Everything is drawn from one seed, and every sample knows its true evidence. A trace names the
region of what was asked for but never its colour: only the crop or the frame shows that. Files are
written in the formats of real data (`data/sets/load_sets.py`); nothing else knows the demo.

The teacher is biased on purpose, like today's chain-of-thought models: most of its traces are
well-formed but point at something that does not help, always the first thing that was not asked
for. The `filtered` files hold on-target traces, as after a relevance filter.
"""

import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data.embed_inputs import SUFFIX

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 20),
    "purple": (150, 40, 180),
    "orange": (250, 140, 10),
}
SHAPES = ("circle", "square", "triangle", "star")
CELL = 32
"""Pixels a side of a grid cell: one visual token of the tiny model."""
GRID = 4
CLIP_GRID = 2
CLIP_FRAMES = 4
GALLERY_CELLS = (5, 10)
"""Held-out pictures of one object show it in these cells, training ones in all others."""
BACKGROUND_WORD = "background"
QUESTIONS = {
    "color": "what color is the {shape}?",
    "find": "find an image of the {shape}",
    "composed": "the same as the {shape} but a {other}",
    "t2i": "find {label}",
    "i2t": "what is this?",
    "clips": "what color is the {shape}?",
    "pages": "what color is the {shape}?",
}
DESCRIBE = ("describe the {shape}", "where is the {shape}?", "tell me about the {shape}")
LISTS = {"colors": "colors?", "where": "where?"}
LESSONS = ("one", "one", "colors", "where", "ask")
"""Kinds of grounding captions, in turn."""
CLIP_TURNS = {"colors": 4, "where": 4, "ask": 10}
"""Every so many turns, a caption of the kind is about a clip."""
FILES = {task: task if task != "clips" else "clips_caption_retrieval" for task in QUESTIONS}
"""File stem of each task: the video format tells its variants apart by name."""
SHARES = {
    "color": 1.0,
    "find": 1.0,
    "composed": 1.0,
    "t2i": 0.2,
    "i2t": 0.2,
    "clips": 0.2,
    "pages": 0.2,
}
"""Rows of a task per scene. Held-out rows keep these proportions."""

WorldRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape in one cell of a grid, counted in reading order."""

    color: str
    shape: str
    cell: int

    @property
    def label(self) -> str:
        """Return what makes two targets the same: colour and shape."""
        return f"{self.color} {self.shape}"


Scene = tuple[Thing, ...]
"""Things in reading order, one to a cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One end of a pair with what a trace could point at."""

    text: str = ""
    pictures: tuple[str, ...] = ()
    word: str
    """What the on-target trace names."""
    evidence: WorldRow
    """The true evidence, in the grammar's own units."""
    distraction: tuple[str, WorldRow]
    """Word and evidence of the off-target trace."""
    answer: str = ""
    """What both traces answer; empty: the word that they name."""

    def trace(self, *, on_target: bool) -> str:
        """Return a strictly valid trace."""
        word, evidence = (self.word, self.evidence) if on_target else self.distraction
        answer = self.answer or word
        return (
            f"<thinking> {word}{place_words(evidence)}{json.dumps(evidence)}</thinking>"
            f"<rethink> {answer}</rethink><answer> {answer}</answer>"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A pair before it becomes a row."""

    task: str
    query: View
    target: View
    label: str


@dataclass(slots=True)
class DrawnPictures:
    """Writes each picture once, under the root that rows are relative to."""

    root: Path
    written: set[str] = field(default_factory=set)

    def save(self, name: str, draw: Callable[[], np.ndarray]) -> str:
        """Return the path of a picture relative to the root, drawn when first asked for."""
        if name not in self.written:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw()).save(path, compress_level=1)
            self.written.add(name)
        return name


def write_world(
    folder: Path, *, seed: int, train_scenes: int, heldout_scenes: int, on_target: float
) -> dict[str, int]:
    """Draw the world into ``folder`` and return the number of rows by file name.

    ``train/`` holds `sight.json` and `grounding.json` (captions) and for each task
    `teacher_<task>.json` (a share ``on_target`` of its traces points at what was asked for) and
    `filtered_<task>.json` (all of them do); ``heldout/`` holds `sight.json`, `grounding.json` and
    `<task>.json` with true evidence and on-target traces. Pictures lie under ``images/``. No scene,
    page or clip of one split is in the other. Takes seconds for thousands of scenes.
    """
    pictures = DrawnPictures(folder)
    rows: dict[str, list[WorldRow]] = {}
    seen: set[Any] = set()
    for split, scenes in (("train", train_scenes), ("heldout", heldout_scenes)):
        rng = random.Random(f"{seed}/{split}")
        world = _Split(split, rng, pictures, seen)
        rows |= {f"{split}/sight.json": world.sight(scenes)}
        rows |= {
            f"{split}/grounding.json": world.grounding(scenes if split == "heldout" else 2 * scenes)
        }
        for task, share in SHARES.items():
            samples = [world.sample(task, index) for index in range(round(share * scenes))]
            stem = FILES[task]
            if split == "heldout":
                rows[f"{split}/{stem}.json"] = _rows(samples, split, lambda: True)
                continue
            rows[f"{split}/filtered_{stem}.json"] = _rows(samples, split, lambda: True)
            rows[f"{split}/teacher_{stem}.json"] = _rows(
                samples, split, lambda rng=rng: rng.random() < on_target
            )
    for name, content in rows.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return {name: len(content) for name, content in rows.items()}


def demo_corpus() -> list[str]:
    """Return every phrase of the world, whatever its seed: what a tokenizer is trained on."""
    labels = [label(color, shape) for color in COLORS for shape in SHAPES]
    texts = [SUFFIX, "user\n", "assistant\n", f" {BACKGROUND_WORD} .", "grid?", *LISTS.values()]
    for question in (*QUESTIONS.values(), *DESCRIBE):
        texts += [
            question.format(shape=shape, other=other, label=text)
            for shape in SHAPES
            for other in SHAPES
            for text in labels
        ][:: len(labels) // 2]
    for text in labels:
        texts += [text, f" {text}", _keywords_trace(text)]
    for cell in range(GRID * GRID):
        texts += [json.dumps({"bbox_2d": box(cell)}), f" {cell + 1}", f" {cell + 1}"]
    texts += [f" star{json.dumps({'key_frames': [frame + 1]})}" for frame in range(CLIP_FRAMES)]
    return texts


def label(color: str, shape: str) -> str:
    """Return the short text that stands for a colour and a shape."""
    article = "an" if color[0] in "aeiou" else "a"
    return f"{article} {color} {shape}"


def box(cell: int) -> list[int]:
    """Return a cell's corners, 0-1000."""
    row, column = divmod(cell, GRID)
    side = 1000 // GRID
    return [side * column, side * row, side * (column + 1), side * (row + 1)]


def place_words(evidence: WorldRow) -> str:
    """Return the number of the cell or frame that the evidence shows, as words of a trace.

    One token says where; spelling out the corners is then a matter of reading, not of seeing.
    """
    if "bbox_2d" in evidence:
        return f" {next(c for c in range(GRID * GRID) if box(c) == evidence['bbox_2d']) + 1}"
    if "key_frames" in evidence:
        return f" {evidence['key_frames'][0]}"
    return ""


class _Split:
    """Samples of one split; ``seen`` is shared so that no scene is drawn twice."""

    def __init__(
        self, name: str, rng: random.Random, pictures: DrawnPictures, seen: set[Any]
    ) -> None:
        self.name = name
        self.rng = rng
        self.pictures = pictures
        self.seen = seen
        self.scenes: list[Scene] = []

    def sample(self, task: str, index: int) -> Sample:
        """Return the sample of a task; the tasks that ask about scenes share their pictures."""
        if task == "t2i":
            thing = self._thing()
            return Sample(
                task=task,
                query=_text_view(
                    QUESTIONS[task].format(label=label(thing.color, thing.shape)), thing
                ),
                target=self._object_view(thing),
                label=thing.label,
            )
        if task == "i2t":
            thing = self._thing()
            query = self._object_view(thing, text=QUESTIONS[task])
            return Sample(task=task, query=query, target=_text_view("", thing), label=thing.label)
        if task == "clips":
            return self._clip()
        if task == "pages":
            scene = self._new(self._page)
            name = self._draw("pages", scene, draw_page)
        else:
            scene = self.scene(index)
            name = self._draw("scenes", scene, draw_grid)
        asked = self.rng.choice(scene)
        goal = asked
        if task == "composed":
            absent = [shape for shape in SHAPES if all(t.shape != shape for t in scene)]
            goal = Thing(asked.color, self.rng.choice(absent), asked.cell)
        other = next(thing for thing in scene if thing != asked)
        query = View(
            text=QUESTIONS[task].format(shape=asked.shape, other=goal.shape),
            pictures=(name,),
            word=asked.shape,
            evidence={"bbox_2d": box(asked.cell)},
            distraction=(other.shape, {"bbox_2d": box(other.cell)}),
            answer=goal.shape if task == "composed" else "",
        )
        as_image = task == "find" or (task == "composed" and self.rng.random() < 0.5)
        target = self._object_view(self._place(goal)) if as_image else _text_view("", goal)
        return Sample(task=task, query=query, target=target, label=goal.label)

    def scene(self, index: int) -> Scene:
        """Return scene number ``index``: three things of different shapes."""
        while len(self.scenes) <= index:
            self.scenes.append(self._new(lambda: self._scatter(3)))
        return self.scenes[index]

    def sight(self, count: int) -> list[WorldRow]:
        """Return dense captions: two words for each cell, in reading order."""
        rows = []
        for index in range(count):
            scene = self._new(lambda: self._crowd(self.rng.randint(3, GRID * GRID)))
            name = self._draw("dense", scene, draw_grid)
            things = {thing.cell: thing.label for thing in scene}
            words = "".join(f" {things.get(cell, '. .')}" for cell in range(GRID * GRID))
            rows.append(_caption(f"sight-{self.name}-{index}", (name,), "grid?", words))
        return rows

    def grounding(self, count: int) -> list[WorldRow]:
        """Return captions that tie shape, colour and place together, dense ones for the most part.

        A question about one thing teaches little at a time: a tiny model then boxes any thing it
        sees. Single things teach to read places, whole lists to look a shape up.
        """
        rows = []
        for index in range(count):
            turn, kind = divmod(index, len(LESSONS))
            lesson = "ask" if self.name == "heldout" else LESSONS[kind]
            told, pictures = self._shown(lesson, turn)
            if lesson == "ask":
                thing, evidence = self.rng.choice(told)
                question = self.rng.choice(DESCRIBE).format(shape=thing.shape)
                words = f" {thing.shape}{place_words(evidence)}{json.dumps(evidence)}"
            else:
                question = LISTS["colors" if lesson == "colors" else "where"]
                words = "".join(
                    f" {thing.shape}"
                    + (f" {thing.color}" if lesson == "colors" else place_words(evidence))
                    for thing, evidence in self.rng.sample(told, len(told))
                )
            rows.append(_caption(f"grounding-{self.name}-{index}", pictures, question, words))
        return rows

    def _shown(
        self, lesson: str, turn: int
    ) -> tuple[list[tuple[Thing, WorldRow]], tuple[str, ...]]:
        """Return what the pictures of a lesson show, with its evidence, and the pictures.

        Each kind of lesson shows a clip in every so many turns, a question a page as well.
        """
        kind, draw = "scenes", draw_grid
        if lesson == "one":
            scene: Scene = (self._thing(),)
        elif turn % CLIP_TURNS[lesson] == 0:
            frames = self._frames()
            told = [(thing, {"key_frames": [k]}) for k, thing in enumerate(frames, start=1)]
            return told, self._draw_frames(frames)
        elif lesson != "ask":
            scene = self._new(lambda: self._scatter(4))
        elif turn % 10 == 1:
            scene, kind, draw = self._new(self._page), "pages", draw_page
        else:
            scene = self.scene(turn)
        told = [(thing, {"bbox_2d": box(thing.cell)}) for thing in scene]
        return told, (self._draw(kind, scene, draw),)

    def _clip(self) -> Sample:
        """Return a question about a clip."""
        frames = self._frames()
        key = self.rng.randrange(len(frames))
        wrong = 0 if key else 1
        query = View(
            text=QUESTIONS["clips"].format(shape=frames[key].shape),
            pictures=self._draw_frames(frames),
            word=frames[key].shape,
            evidence={"key_frames": [key + 1]},
            distraction=(frames[wrong].shape, {"key_frames": [wrong + 1]}),
        )
        return Sample(
            task="clips",
            query=query,
            target=_text_view("", frames[key]),
            label=frames[key].label,
        )

    def _frames(self) -> Scene:
        """Return a clip: one thing that moves and becomes another in every frame."""
        return self._new(
            lambda: tuple(self._form(shape) for shape in self.rng.sample(SHAPES, CLIP_FRAMES))
        )

    def _draw_frames(self, frames: Scene) -> tuple[str, ...]:
        return tuple(
            self.pictures.save(
                f"images/frames/{form.color}-{form.shape}-{form.cell}.png",
                lambda form=form: draw_grid((form,), CLIP_GRID),
            )
            for form in frames
        )

    def _form(self, shape: str) -> Thing:
        return Thing(self._color(), shape, self.rng.randrange(CLIP_GRID * CLIP_GRID))

    def _object_view(self, thing: Thing, text: str = "") -> View:
        """Return a picture of one thing; the teacher's off-target trace boxes an empty cell."""
        name = self.pictures.save(
            f"images/objects/{thing.color}-{thing.shape}-{thing.cell}.png",
            lambda: draw_grid((thing,)),
        )
        return View(
            text=text,
            pictures=(name,),
            word=thing.shape,
            evidence={"bbox_2d": box(thing.cell)},
            distraction=(BACKGROUND_WORD, {"bbox_2d": box(0 if thing.cell else 1)}),
        )

    def _color(self) -> str:
        return self.rng.choice(tuple(COLORS))

    def _thing(self) -> Thing:
        return self._place(Thing(self._color(), self.rng.choice(SHAPES), 0))

    def _place(self, thing: Thing) -> Thing:
        """Return the thing alone in a cell of this split's one-object pictures."""
        cells = [
            cell
            for cell in range(GRID * GRID)
            if (cell in GALLERY_CELLS) == (self.name == "heldout")
        ]
        return Thing(thing.color, thing.shape, self.rng.choice(cells))

    def _scatter(self, count: int) -> Scene:
        """Return things of different shapes in different cells."""
        cells = sorted(self.rng.sample(range(GRID * GRID), count))
        shapes = self.rng.sample(SHAPES, count)
        return tuple(
            Thing(self._color(), shape, cell) for shape, cell in zip(shapes, cells, strict=True)
        )

    def _crowd(self, count: int) -> Scene:
        """Return things of any shapes in different cells."""
        cells = sorted(self.rng.sample(range(GRID * GRID), count))
        return tuple(Thing(self._color(), self.rng.choice(SHAPES), cell) for cell in cells)

    def _page(self) -> Scene:
        """Return a page's symbols: at most one to a line, left or right of its text."""
        lines = sorted(self.rng.sample(range(GRID), 3))
        shapes = self.rng.sample(SHAPES, 3)
        return tuple(
            Thing(self._color(), shape, GRID * line + self.rng.choice((0, GRID - 1)))
            for shape, line in zip(shapes, lines, strict=True)
        )

    def _new(self, draw: Callable[[], Scene]) -> Scene:
        """Return a scene that no split has shown yet."""
        while True:
            scene = draw()
            if scene not in self.seen:
                self.seen.add(scene)
                return scene

    def _draw(self, kind: str, scene: Scene, draw: Callable[[Scene], np.ndarray]) -> str:
        name = "_".join(f"{thing.cell}{thing.color[0]}{thing.shape[:2]}" for thing in scene)
        return self.pictures.save(f"images/{kind}/{name}.png", lambda: draw(scene))


def draw_grid(scene: Scene, grid: int = GRID) -> np.ndarray:
    """Return the picture of a scene, uint8 [grid * CELL, grid * CELL, 3]."""
    canvas = np.full((grid * CELL, grid * CELL, 3), 255, np.uint8)
    for thing in scene:
        row, column = divmod(thing.cell, grid)
        area = canvas[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        area[:] = _SPRITES[thing.color, thing.shape]
    return canvas


def draw_page(scene: Scene) -> np.ndarray:
    """Return a page: one line of grey text to a row of the grid, symbols beside it."""
    canvas = draw_grid(scene)
    symbols = {thing.cell for thing in scene}
    for line in range(GRID):
        left, right = GRID * line in symbols, GRID * line + GRID - 1 in symbols
        start, stop = CELL * left + 4, CELL * (GRID - right) - 4
        for stroke in (8, 16, 24):
            canvas[CELL * line + stroke : CELL * line + stroke + 3, start:stop] = 150
    return canvas


def _sprite(color: tuple[int, int, int], shape: str) -> np.ndarray:
    """Return one cell with a shape in it, uint8 [CELL, CELL, 3]."""
    image = Image.new("RGB", (CELL, CELL), "white")
    pen = ImageDraw.Draw(image)
    low, high, middle = 4, 28, 16
    if shape == "circle":
        pen.ellipse([low, low, high, high], fill=color)
    elif shape == "square":
        pen.rectangle([low, low, high, high], fill=color)
    elif shape == "triangle":
        pen.polygon([(middle, low), (low, high), (high, high)], fill=color)
    else:
        points = []
        for tip in range(10):
            radius, angle = (12 if tip % 2 == 0 else 5), -math.pi / 2 + tip * math.pi / 5
            points.append((middle + radius * math.cos(angle), middle + radius * math.sin(angle)))
        pen.polygon(points, fill=color)
    return np.asarray(image)


_SPRITES = {
    (name, shape): _sprite(color, shape) for name, color in COLORS.items() for shape in SHAPES
}


def _text_view(text: str, thing: Thing) -> View:
    """Return a text about a thing; its own words are the evidence and always on target."""
    evidence = {"text_keywords": [thing.label]}
    return View(
        text=text or label(thing.color, thing.shape),
        word=thing.label,
        evidence=evidence,
        distraction=(thing.label, evidence),
    )


def _keywords_trace(text: str) -> str:
    words = text.split(" ", 1)[1]
    return f" {words}{json.dumps({'text_keywords': [words]})}"


def _rows(samples: Iterable[Sample], split: str, on_target: Callable[[], bool]) -> list[WorldRow]:
    return [
        _row(sample, f"{sample.task}-{split}-{index}", on_target)
        for index, sample in enumerate(samples)
    ]


def _row(sample: Sample, row_id: str, on_target: Callable[[], bool]) -> WorldRow:
    query, target = sample.query, sample.target
    common = {
        "id": row_id,
        "query_cot": query.trace(on_target=on_target()),
        "pos_cot": target.trace(on_target=on_target()),
        "label": sample.label,
        "qry_evidence": _listed(query.evidence),
        "pos_evidence": _listed(target.evidence),
    }
    if sample.task == "clips":
        return common | {
            "qry": {
                "conversations": _turns(f"<video>\n{query.text}", ""),
                "video": list(query.pictures),
            },
            "pos": {"conversations": _turns("", target.text)},
        }
    return common | {
        "qry": _marked(query),
        "qry_image_path": "".join(query.pictures),
        "pos_text": _marked(target),
        "pos_image_path": "".join(target.pictures),
        "neg_text": "",
        "neg_image_path": "",
    }


def _marked(view: View) -> str:
    return f"<|image_1|>\n{view.text}" if view.pictures else view.text


def _listed(evidence: WorldRow) -> WorldRow:
    """Return evidence as data sets list it: boxes in a list of boxes."""
    if "bbox_2d" in evidence:
        return {"bbox_2d": [evidence["bbox_2d"]]}
    return evidence


def _caption(row_id: str, pictures: tuple[str, ...], question: str, words: str) -> WorldRow:
    image: Any = pictures[0] if len(pictures) == 1 else list(pictures)
    return {"id": row_id, "image": image, "conversations": _turns(f"<image>\n{question}", words)}


def _turns(human: str, gpt: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
