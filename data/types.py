"""Every type that crosses a folder: what flows from rows to rollout, reward, learner and back.

The types of the weights are in `data/weights/types.py`.

Made by -> used by:
  Pair                data.sets         -> everyone
  Picture, Video, Content  prompts, inputs -> rollout, reward, learner (what a model reads)
  Cues, TCoT          cues, tcot        -> embed_inputs, reward, evaluation
  GenerationRequest   cluster           -> rollout
  Trajectory          rollout           -> reward, learner
  ScoredTrajectory    reward            -> learner, metrics, the trajectory files
  JudgeQuestion       reward            -> the judge's engine
  DroppedTrajectory   anyone            -> metrics
  TrainSample         cluster           -> learner
Results are joined by key, never by position.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from data.pickling import quick_to_pickle


class Kind(StrEnum):
    """What an item shows; it decides which evidence a trace must point at."""

    TEXT = "text"
    IMAGE = "image"
    PAGE = "page"
    VIDEO = "video"


class Side(StrEnum):
    """Which end of a pair; both are reasoned about."""

    QUERY = "query"
    TARGET = "target"


class Evidence(StrEnum):
    """How much of a trace the Embedder reads beside the item."""

    NONE = "none"
    """Nothing: the item alone."""
    TEXT = "text"
    """The trace's text."""
    FULL = "text+evidence"
    """The text, and the crops or key frames that it points at."""


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a picture in relative coordinates, 0 <= x1 < x2 <= 1, origin top left."""

    x1: float
    y1: float
    x2: float
    y2: float

    def iou(self, other: "Box") -> float:
        """Return intersection over union with another box, in [0, 1]."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        if width <= 0 or height <= 0:
            return 0.0
        both = width * height
        return both / (self.area() + other.area() - both)

    def area(self) -> float:
        """Return the share of the picture that the box covers."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cues:
    """The evidence that a trace points at."""

    keywords: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    key_frames: tuple[int, ...] = ()
    """0-based, ascending, within the shown frames. Texts count frames from 1."""

    def __bool__(self) -> bool:
        return bool(self.keywords or self.boxes or self.key_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class TCoT:
    """A parsed trace: thinking with evidence, rethink, answer (paper, section 3.1)."""

    thinking: str
    rethink: str
    answer: str
    cues: Cues
    repairs: tuple[str, ...] = ()
    """Names of what the parser mended or dropped; empty = strictly valid."""

    @property
    def valid(self) -> bool:
        """Whether the trace met the grammar without any repair."""
        return not self.repairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One end of a pair: text, and the pictures it comes with."""

    text: str
    kind: Kind = Kind.TEXT
    uris: tuple[str, ...] = ()
    """Addresses (`data.containers.addresses`): none for text, one for image or page, the frames in
    order for video; of a video file, and of any video that is shown as one, only those that are
    shown."""
    instruction: str = ""
    """The task in the data set's words, where these stand apart from the text."""
    times: tuple[float, ...] = ()
    """When each of `uris` is shown, in seconds from the video's first frame, where a model sees
    them as one video; empty: as separate pictures."""

    def key(self) -> str:
        """Return the identity of the content: equal items are the same candidate."""
        return "\x1f".join((self.kind, self.text, *self.uris))

    def instructed_text(self) -> str:
        """Return the instruction, if there is one, and the text as one text."""
        return " ".join(filter(None, (self.instruction, self.text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A query and its gold target."""

    pair_id: str
    """Unique within its data set: given by the row, else `<data set>-<row number>`."""
    source: str
    """Name of the data set."""
    query: Item
    target: Item
    row: int = 0
    """Number of its row in the data set's file, from 0."""
    query_id: str = ""
    """Pairs of a data set with the same one are one query with several right targets, which an
    evaluation measures once. Empty: the pair is a query of its own."""
    grade: int = 1
    """How right the target is for the query, from 1 on; nDCG weighs by it."""
    label: str = ""
    """Targets of its data set with the same label are equal, as those of the same content are; see
    `data.relevance`. Empty: none."""
    query_trace: str = ""
    """Teacher's T-CoT text for the query; empty: none."""
    target_trace: str = ""
    answer_known: bool = False
    """Whoever wrote the traces knew both sides: no figure may come from them."""
    query_evidence: Cues = field(default_factory=Cues)
    """The true evidence where the data set knows it, else empty."""
    target_evidence: Cues = field(default_factory=Cues)
    hard_negatives: tuple[Item, ...] = ()
    candidates: tuple[Item, ...] = ()
    """The row's own candidate list (gold included) for evaluation; empty: rank over all targets."""

    def item(self, side: Side) -> Item:
        """Return the item on that side."""
        return self.query if side is Side.QUERY else self.target

    def key(self, side: Side) -> str:
        """Return the identity of the item on that side.

        The same content with another instruction is another query, but the same target.
        """
        item = self.item(side)
        asked = item.instruction if side is Side.QUERY else ""
        return f"{item.key()}\x1e{asked}" if asked else item.key()

    def trace(self, side: Side) -> str:
        """Return the teacher's trace on that side."""
        return self.query_trace if side is Side.QUERY else self.target_trace

    def evidence(self, side: Side) -> Cues:
        """Return the true evidence on that side."""
        return self.query_evidence if side is Side.QUERY else self.target_evidence


class Instruction(str):
    """The part of a content that is the task: some models read it as the system message."""


class ItemText(str):
    """A text of a content that holds an item's own text: a reader may cut that, and nothing else.

    ``own`` says where in the text it is. ``most`` is how many tokens of it are read; 0: all.
    """

    own: slice
    most: int

    def __new__(cls, text: str, own: slice, most: int) -> "ItemText":
        made = super().__new__(cls, text)
        made.own, made.most = own, most
        return made

    def __reduce__(self) -> tuple[Any, tuple[str, int, int, int]]:
        # A slice would take as long to be pickled as all else.
        return _item_text, (str(self), self.own.start, self.own.stop, self.most)


def _item_text(text: str, start: int, stop: int, most: int) -> ItemText:
    return ItemText(text, slice(start, stop), most)


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a model's input: a whole file, or one crop of it."""

    uri: str
    kind: Kind
    """IMAGE, PAGE, or VIDEO for a frame: pixel limits differ."""
    box: Box | None = None


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Video:
    """Frames in a model's input that are shown as one video."""

    frames: tuple[Picture, ...]
    """In order: an even number of them, as models merge two by two, or one, which is shown twice.
    """
    times: tuple[float, ...]
    """When each of them is shown, in seconds."""


Visual = Picture | Video
"""What a model sees at one place of its input."""

Content = tuple[str | Visual, ...]
"""What a model reads in one user turn: texts, pictures and videos in order."""


def visuals_in(content: Content) -> tuple[Visual, ...]:
    """Return the pictures and videos of a content in order."""
    return tuple(part for part in content if not isinstance(part, str))


def pictures_in(content: Content) -> Iterator[Picture]:
    """Yield the pictures of a content in order, the frames of its videos among them."""
    for visual in visuals_in(content):
        yield from visual.frames if isinstance(visual, Video) else (visual,)


Pictures = Mapping[str, np.ndarray]
"""Decoded files by uri, uint8 [height, width, 3]; put once a step, shared by all actors."""


def merge_pictures(parts: Iterable[Pictures]) -> Pictures:
    """Return the pictures of several parts in one mapping, without copying pixels.

    If a file is in several parts, the last one counts.
    """
    return {uri: pixels for part in parts for uri, pixels in part.items()}


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class GroupKey:
    """Identity of a group of sibling traces within a run."""

    serial: int
    """Counts issued pairs of the run, so a pair met again in a later epoch is another group."""
    pair_id: str
    side: Side

    def __hash__(self) -> int:
        return 2 * self.serial + (self.side is Side.TARGET)

    def __str__(self) -> str:
        return f"g={self.serial}/p={self.pair_id}/{self.side}"


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class TrajectoryKey:
    """Identity of one trace: request id, seed, join key and log prefix."""

    group: GroupKey
    sibling: int

    def __str__(self) -> str:
        return f"{self.group}/{self.sibling}"


@quick_to_pickle
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One trace to sample."""

    key: TrajectoryKey
    content: Content
    seed: int
    greedy: bool = False
    max_tokens: int | None = None
    """None: as many as the sampling settings allow."""


@quick_to_pickle
@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sampled trace with what the learner needs to train on it."""

    key: TrajectoryKey
    prompt_ids: np.ndarray
    """int64 [P]: the prompt as the engine ran it, picture tokens expanded."""
    response_ids: np.ndarray
    """int64 [T]: sampled tokens, the end-of-turn token included where it was reached."""
    logprobs: np.ndarray
    """float32 [T]: log-probability of each token under the distribution it was sampled from."""
    text: str
    finish: str
    """`stop` = ended by itself, `length` = cut at the token limit."""
    min_version: int
    max_version: int
    """Policy versions that sampled the first and last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParts:
    """What one trace earned, part by part (spec: F and O; section 3.3 of the paper)."""

    format: float
    outcome: float
    accuracy: float
    """Share of the row's positives among its top |positives|, in [0, 1]."""
    margin: float
    """Mean positive similarity minus softmax-weighted negative similarity, in [-2, 2]."""
    rank: int
    """1-based rank of the best positive among the candidates."""
    process: float
    """What the judge's answer paid."""
    gain: float
    """Margin minus the margin of the same item embedded without a trace."""
    length: float
    """Tokens over the budget as a share of it, negative; 0 within the budget."""
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the judge made of one trace."""

    share: float
    """1 or 0 for a right or wrong choice, or the probability that it puts on right ones."""
    shown: tuple[str, ...]
    """Keys of the candidate traces in the order shown: the recorded permutation."""
    answer: str
    """The judge's own words, or its probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A trace with its reward and what its embedding retrieved."""

    trajectory: Trajectory
    parts: RewardParts
    retrieved: tuple[str, ...]
    """Keys of the nearest candidates, best first."""
    candidates_id: str
    """Hash of the keys of the round's candidates on that side; equal: ranked among the same."""
    candidates_size: int
    judgement: Judgement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeQuestion:
    """Which of the numbered candidates fits one trace best?"""

    key: str
    """Key of the trace that is judged."""
    prompt: str
    shown: tuple[str, ...]
    """Keys of the candidates, number 1 first."""
    right: frozenset[int]
    """Numbers of the trace's own other side."""


@dataclass(frozen=True, slots=True)
class DroppedTrajectory:
    """A trace that left the step, and why; counted as `dropped/<reason>`."""

    key: TrajectoryKey
    reason: str
    detail: str = ""


@quick_to_pickle
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """One sequence to train on: a sampled trace (RL) or a written one (supervised)."""

    key: str
    content: Content
    """The prompt's pictures and videos, in order, and texts; pixels are looked up by uri."""
    prompt_ids: np.ndarray
    """int64 [P], picture tokens expanded."""
    response_ids: np.ndarray
    """int64 [T], T >= 1: the tokens that carry loss."""
    advantage: float = 0.0
    weight: float = 1.0
    """Factor of its loss: the weight of its side."""
    logprobs: np.ndarray | None = None
    """float32 [T] behaviour log-probabilities, None for supervised samples."""
    old_logprobs: np.ndarray | None = None
    """float32 [T] by the learner's own model at the version that sampled; None: that version is
    the one in training. Where the learner never computed them, `logprobs` stand in."""


@quick_to_pickle
@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """One input to embed."""

    key: str
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastPair:
    """One row of a contrastive batch."""

    query: Content
    target: Content
    target_key: str
    """Identity of the target's content."""
    right: tuple[str, ...] = ()
    """Other targets of the batch, by key, that are right for the query and so no negatives of it;
    one with the row's own key never is."""
    negatives: tuple[Content, ...] = ()
    """Hard negatives of this row's query alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one learner step did."""

    metrics: Mapping[str, float]
    seconds: float
    broken: tuple[str, ...] = ()
    """Empty if the step was applied. Else the keys of what made an update of it NaN or infinite:
    the samples in micro-batches with such a loss; all of the update where only the gradient was."""
