"""Traces by rule for one's own data, where no teacher model is at hand.

Pictures are boxed around what differs from the border's colour, videos by the frames that differ
most from their neighbours, texts by their phrases and content words. The prose comes from the
pairs' own texts, both sides known (spec: teacher in with-answer mode). Traces can be biased like
the demo's: well-formed, but pointing at what helps nobody, so that RL has something to find.

Of languages it knows little: articles and other function words are left out in English alone, and
texts without blanks between words (Chinese, Japanese, Thai) are cut at a few frequent particles and
else into pieces of some characters, which may be no words.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from configs.common import MediaConfig
from data.containers.addresses import parse_address
from data.cues import MIN_BOX_SIDE, WHOLE_PICTURE
from data.errors import DataError
from data.media.pictures import load_pictures
from data.prompts import pictures_of
from data.rows.row_files import FileRow
from data.sets.load_sets import BadRow, LoadedSet
from data.tcot import parse, render
from data.types import Box, Cues, Kind, Pair, Picture, Side, TCoT

BACKGROUND = "background"
"""What off-target traces of pictures speak of."""
DIFFERS = 24
"""Levels of 255 by which a pixel of the content differs from the border in some channel."""
LARGEST_BOX = 0.9 * WHOLE_PICTURE
CORNER = 0.25
"""Side of an off-target box, as a share of the picture's."""
SHARED = 0.9
"""Words that this share of a column's texts begin with are the task's, not the item's."""
MAX_PHRASE_WORDS = 5
"""Longer phrases are broken into their content words."""
MAX_PIECE = 4
"""Characters of a keyword in a long text without blanks between words."""
MAX_KEYWORDS = 4
MAX_PROSE_WORDS = 6
SIMILAR_CHANGE = 0.8
"""Frames that change this much of the largest change count as changing alike."""
_COMPARED_SIZE = (64, 64)
_CHUNK = 64
_BREAKS = re.compile(r"[;,:?!.]+(?=\s|$)|[\uff0c\u3002\uff1b\u3001\uff1a\uff1f\uff01]+")
_ARTICLE = re.compile(r"\s*(an?|the)\s+", re.IGNORECASE)
_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
"""A letter of a script that puts no blanks between words."""
_WORD = re.compile(rf" ?(?:[{_SCRIPTS}]|[^ {_SCRIPTS}]+)")
_PARTICLES = re.compile(
    "[\u7684\u4e86\u7740\u5728\u662f\u548c\u8207\u4e0e"  # of Chinese
    "\u304c\u3092\u306f\u306b\u3067\u3068\u306e\u3082\u3078]"  # of Japanese
)
_UNSAFE = re.compile(r'[{}<>"\\\s]+')
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about all an and any are as at be been by can do does for from had has have he her his "
        "how i if in into is it its me my no not of on one or our she so some such than that the "
        "their them then there these they this those to up was we were what when where which who "
        "why will with would you your",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPair:
    """A pair's traces: all by the rule, and as the biased teacher gives them."""

    pair: Pair
    by_rule: dict[Side, str]
    biased: dict[Side, str]


class RuleTeacher:
    """Knows the words of all sets, so that a picture named in one is named in the others.

    A picture without words of its own is called what the first set says that pairs it with a
    text: list the sets whose texts name the pictures first.
    """

    def __init__(self, sets: Sequence[LoadedSet]) -> None:
        self.starts = {
            (data_set.name, side): shared_start([pair.item(side).text for pair in data_set.pairs])
            for data_set in sets
            for side in Side
        }
        self.names: dict[tuple[str, ...], str] = {}
        for pair in (pair for data_set in sets for pair in data_set.pairs):
            for side, other in ((Side.QUERY, Side.TARGET), (Side.TARGET, Side.QUERY)):
                item = pair.item(side)
                if item.uris and not self.content(pair, side) and not pair.item(other).uris:
                    self.names.setdefault(item.uris, in_short(self.content(pair, other)))

    def content(self, pair: Pair, side: Side) -> str:
        """Return what an item's text says beyond the task; all of it where nothing else speaks."""
        item = pair.item(side)
        words, start = _words(item.text), self.starts[pair.source, side]
        begins = tuple(word.strip() for word in words[: len(start)]) == start
        rest = words[len(start) :] if begins else words
        return "".join(rest if rest or item.uris else words).strip()

    def answer(self, pair: Pair, side: Side) -> str:
        """Return what a trace concludes: what the query seeks, what the target is.

        Raises:
            DataError: no text of any set says anything about it.
        """
        if side is Side.TARGET:
            return self._about(pair, side)
        sought = self._called(pair, Side.TARGET) or in_short(self.content(pair, side))
        return sought or self._about(pair, side)

    def trace(self, pair: Pair, side: Side, shown: Sequence[np.ndarray], *, on_target: bool) -> str:
        """Return a strictly valid trace; ``shown`` are the item's pictures, uint8 [H, W, 3] each.

        Off target, it points at an empty corner, the stillest frame or the task's own words. Where
        there is none of these (a text without task words, a single frame) it stays on target.

        Raises:
            DataError: there is nothing to point at, or no word for it.
        """
        item = pair.item(side)
        prose, answer = self._about(pair, side), self.answer(pair, side)
        if on_target:
            cues = self._evidence(pair, side, shown)
        else:
            cues = self._distraction(pair, side, shown)
            if cues:
                prose = answer = cues.keywords[0] if cues.keywords else BACKGROUND
            else:
                cues = self._evidence(pair, side, shown)
        trace = TCoT(thinking=f" {prose}", rethink=f" {answer}", answer=f" {answer}", cues=cues)
        text = render(trace, kind=item.kind)
        parsed = parse(text, kind=item.kind, num_frames=len(shown))
        if not parsed.valid:
            raise DataError(f"trace not strictly valid: {'; '.join(parsed.repairs)} in {text}")
        return text

    def _called(self, pair: Pair, side: Side) -> str:
        item = pair.item(side)
        return self.names.get(item.uris, "") if item.uris else in_short(self.content(pair, side))

    def _about(self, pair: Pair, side: Side) -> str:
        other = Side.TARGET if side is Side.QUERY else Side.QUERY
        words = self._called(pair, side) or in_short(self.content(pair, side))
        words = words or self._called(pair, other) or in_short(self.content(pair, other))
        if not words:
            raise DataError("no words: no text of any data set says what the picture shows")
        return words

    def _evidence(self, pair: Pair, side: Side, shown: Sequence[np.ndarray]) -> Cues:
        kind = pair.item(side).kind
        if kind is Kind.TEXT:
            return Cues(keywords=keywords_of(self.content(pair, side)))
        if kind is Kind.VIDEO:
            return Cues(key_frames=changing_frames(shown))
        return Cues(boxes=(content_box(differing(shown[0])),))

    def _distraction(self, pair: Pair, side: Side, shown: Sequence[np.ndarray]) -> Cues:
        kind = pair.item(side).kind
        if kind is Kind.TEXT:
            start = self.starts[pair.source, side]
            words = _words(pair.item(side).text)
            if len(words) <= len(start):
                return Cues()
            return Cues(keywords=keywords_of("".join(words[: len(start)])))
        if kind is Kind.VIDEO:
            return Cues(key_frames=still_frames(shown))
        return Cues(boxes=(emptiest_corner(differing(shown[0])),))


def trace_pairs(
    loaded: LoadedSet, teacher: RuleTeacher, *, media: MediaConfig, on_target: float, seed: int
) -> Iterator[TracedPair | BadRow]:
    """Yield each pair with its traces, or why it has none, decoding a few pictures at a time.

    Whether a biased trace is on target is drawn from seed, pair and side alone.
    """
    for first in range(0, len(loaded.pairs), _CHUNK):
        chunk = loaded.pairs[first : first + _CHUNK]
        uris = {part.uri for pair in chunk for side in Side for part in _shown(pair, side, media)}
        pictures, failed = load_pictures(uris, media)
        for pair in chunk:
            by_rule: dict[Side, str] = {}
            biased: dict[Side, str] = {}
            try:
                for side in Side:
                    parts = _shown(pair, side, media)
                    lost = [failed[part.uri] for part in parts if part.uri in failed]
                    if lost:
                        raise DataError(f"picture not readable: {lost[0]}")
                    shown = [pictures[part.uri] for part in parts]
                    by_rule[side] = teacher.trace(pair, side, shown, on_target=True)
                    right = share_of(f"{seed}/{pair.source}/{pair.pair_id}/{side}") < on_target
                    biased[side] = by_rule[side]
                    if not right:
                        biased[side] = teacher.trace(pair, side, shown, on_target=False)
            except DataError as error:
                where = f"data set '{pair.source}', id '{pair.pair_id}'"
                yield BadRow(where, str(error), pair.row)
                continue
            yield TracedPair(pair=pair, by_rule=by_rule, biased=biased)


class HeldOut:
    """Which pairs are kept from training: decided by picture, for all sets together.

    A picture that is a frame of a clip goes with its clip, so that a held-out one is never seen in
    training under another task. A clip that shares half of its frames or more with one that is
    held out goes with it; fewer, such as black ones, bind no clips together.
    """

    def __init__(
        self, sets: Sequence[LoadedSet], roots: Sequence[str], *, share: float, seed: int
    ) -> None:
        self._share, self._seed = share, seed
        self._withheld: set[str] = set()
        shown = [
            (item.uris, Path(root).resolve())
            for data_set, root in zip(sets, roots, strict=True)
            for pair in data_set.pairs
            for item in (pair.query, pair.target)
        ]
        frames = {name for uris, _ in shown if len(uris) > 1 for name in _sources(uris)}
        for uris, base in shown:
            names = _sources(uris)
            alone = len(uris) == 1
            if not uris or (alone and names[0] in frames):
                continue
            if self._drawn("|".join(os.path.relpath(name, base) for name in names)):
                self._withheld.update(names)

    def holds(self, pair: Pair) -> bool:
        """Return whether a pair is held out: by its pictures, else by its query."""
        shown = [_sources(item.uris) for item in (pair.query, pair.target) if item.uris]
        if not shown:
            return self._drawn(pair.query.text)
        return any(2 * sum(n in self._withheld for n in names) >= len(names) for names in shown)

    def _drawn(self, name: str) -> bool:
        return share_of(f"{self._seed}/{name}") < self._share


def _sources(uris: Sequence[str]) -> tuple[str, ...]:
    """Return by what pictures are held out: their addresses, and the file for a file's frames."""
    return tuple(
        dict.fromkeys(
            uri if parse_address(uri).frame is None else parse_address(uri).path for uri in uris
        )
    )


def captions_of(
    traced: Iterable[TracedPair], teacher: RuleTeacher, *, root: str, seen: set[str]
) -> list[FileRow]:
    """Return caption rows: each picture, asked with its pair's own text, to its words.

    ``seen`` holds what earlier calls asked already, and grows.
    """
    base = Path(root).resolve()
    rows: list[FileRow] = []
    for traced_pair in traced:
        for side in Side:
            item = traced_pair.pair.item(side)
            key = traced_pair.pair.key(side)
            if not item.uris or key in seen:
                continue
            seen.add(key)
            names = [os.path.relpath(uri, base) for uri in item.uris]
            rows.append(
                {
                    "id": f"{traced_pair.pair.pair_id}-{side}",
                    "image": names[0] if len(names) == 1 else names,
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{item.instructed_text()}"},
                        {"from": "gpt", "value": f" {teacher.answer(traced_pair.pair, side)}"},
                    ],
                }
            )
    return rows


def shared_start(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the words that nearly all texts begin with; none for a single text.

    In texts without blanks between words each character is one.
    """
    start: tuple[str, ...] = ()
    word_lists = [[word.strip() for word in _words(text)] for text in texts]
    while len(texts) > 1:
        nexts = Counter(words[len(start)] for words in word_lists if len(words) > len(start))
        word, count = nexts.most_common(1)[0] if nexts else ("", 0)
        if count < SHARED * len(texts):
            break
        word_lists = [words for words in word_lists if words[len(start) : len(start) + 1] == [word]]
        start = (*start, word)
    return start


def keywords_of(text: str) -> tuple[str, ...]:
    """Return a text's phrases between `;`, `,` and the like; of long ones the content words."""
    keywords: list[str] = []
    for phrase in _phrases(text):
        keywords += _content_words(phrase) if _is_long(phrase) else [phrase]
    return tuple(dict.fromkeys(keywords))[:MAX_KEYWORDS]


def in_short(text: str) -> str:
    """Return a text's first phrase, or its first content words where that is long."""
    phrase = next(iter(_phrases(text)), "")
    if not _is_long(phrase):
        return phrase
    return " ".join(_content_words(phrase)[:MAX_PROSE_WORDS])


def differing(pixels: np.ndarray) -> np.ndarray:
    """Return where a picture differs from its border's colour, bool [H, W]; pixels [H, W, 3]."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.abs(pixels - np.median(edge, axis=0)).max(axis=-1) > DIFFERS


def content_box(mask: np.ndarray) -> Box:
    """Return the tight box around what is set; less than the whole picture, and no mere line.

    Raises:
        DataError: nothing is set.
    """
    if not mask.any():
        raise DataError(
            "one colour: the picture shows nothing to box (what is transparent is shown white)"
        )
    x1, x2 = _extent(mask.any(axis=0))
    y1, y2 = _extent(mask.any(axis=1))
    area = (x2 - x1) * (y2 - y1)
    if area > LARGEST_BOX:
        shrink = (1 - (LARGEST_BOX / area) ** 0.5) / 2
        x1, x2 = x1 + shrink * (x2 - x1), x2 - shrink * (x2 - x1)
        y1, y2 = y1 + shrink * (y2 - y1), y2 - shrink * (y2 - y1)
    return Box(x1, y1, x2, y2)


def emptiest_corner(mask: np.ndarray) -> Box:
    """Return the corner in which the least is set, the first in reading order among equals."""
    height, width = (max(1, round(CORNER * size)) for size in mask.shape)
    low, high = (0.0, CORNER), (1 - CORNER, 1.0)
    corners = {
        Box(x[0], y[0], x[1], y[1]): mask[rows, columns].mean()
        for y, rows in ((low, slice(height)), (high, slice(-height, None)))
        for x, columns in ((low, slice(width)), (high, slice(-width, None)))
    }
    return min(corners, key=lambda box: corners[box])


def changing_frames(frames: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the frames that differ most from their neighbours, 0-based and ascending.

    Where several differ alike, as in a steady motion, these are the first and the last of them.
    """
    changes = _changes(frames)
    alike = np.flatnonzero(changes >= SIMILAR_CHANGE * changes.max())
    return tuple(sorted({int(alike[0]), int(alike[-1])}))


def still_frames(frames: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the frame that differs least from its neighbours; none where all are key frames."""
    changes = _changes(frames)
    rest = sorted(set(range(len(frames))) - set(changing_frames(frames)))
    return (min(rest, key=lambda i: changes[i]),) if rest else ()


def share_of(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _shown(pair: Pair, side: Side, media: MediaConfig) -> tuple[Picture, ...]:
    return pictures_of(pair.item(side), media.max_frames)


def _phrases(text: str) -> list[str]:
    """Return the text's parts between punctuation, without what the trace grammar is made of."""
    parts = (_UNSAFE.sub(" ", part).strip() for part in _BREAKS.split(text))
    parts = (part[start.end() :] if (start := _ARTICLE.match(part)) else part for part in parts)
    return [part for part in parts if any(_tells(letter) for letter in part)]


def _tells(letter: str) -> bool:
    """Return whether a character says something: letters, digits and symbols such as emoji."""
    return letter.isalnum() or unicodedata.category(letter) == "So"


def _words(text: str) -> list[str]:
    """Return the text's words, each with the blank before it; without blanks the characters."""
    return _WORD.findall(" ".join(text.split()))


def _is_long(phrase: str) -> bool:
    """Return whether a phrase has too many words; without blanks, two characters count as one."""
    joined = len(_UNSPACED.findall(phrase))
    return len(_words(phrase)) - joined + joined / 2 > MAX_PHRASE_WORDS


def _content_words(phrase: str) -> list[str]:
    words = phrase.split()
    kept = [word for word in words if word.lower() not in STOP_WORDS] or words
    return [piece for word in kept for piece in _pieces(word)]


def _pieces(word: str) -> list[str]:
    """Return a word; one of a script without blanks cut at particles, and where still long."""
    if not _UNSPACED.search(word):
        return [word]
    runs = [run for run in _PARTICLES.split(word) if run] or [word]
    pieces: list[str] = []
    for run in runs:
        piece = ""
        for letter in run:
            # Marks belong to the letter before them.
            if len(piece) >= MAX_PIECE and not unicodedata.category(letter).startswith("M"):
                pieces.append(piece)
                piece = ""
            piece += letter
        pieces.append(piece)
    return pieces


def _extent(line: np.ndarray) -> tuple[float, float]:
    """Return first and last place set, as shares of the line, widened where hardly anything is."""
    places = np.flatnonzero(line)
    first, last = places[0] / len(line), (places[-1] + 1) / len(line)
    if last - first < 2 * MIN_BOX_SIDE:
        first = float(np.clip((first + last) / 2 - MIN_BOX_SIDE, 0, 1 - 2 * MIN_BOX_SIDE))
        last = first + 2 * MIN_BOX_SIDE
    return float(first), float(last)


def _changes(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return how much each frame differs from its neighbours on average, [F]."""
    small = [np.asarray(Image.fromarray(f).resize(_COMPARED_SIZE), np.float32) for f in frames]
    steps = np.array([np.abs(a - b).mean() for a, b in pairwise(small)])
    if not len(steps):
        return np.zeros(len(frames))
    # The ends have one neighbour.
    return (np.r_[steps[0], steps] + np.r_[steps, steps[-1]]) / 2
