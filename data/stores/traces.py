"""Traces on disk by what the Reasoner reads, with who wrote them, and how.

A key stands for an item, its side and its task, as the prompt holds all three.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.rows.trace_files import TraceFiles
from data.stores.facts import STEP, TraceRecipe
from data.stores.parts import FACTS, FAILED, KEY_COLUMN, PART, WALL_MS, KeyedParts
from data.types import Item, Kind, Side

TRACE_FOLDER = "store/traces"
"""In the run folders of jobs that have a store of their own."""
TEXT, TOKENS = "text", "tokens"
GROUP_ROWS = 4096
"""Traces that are read at a time, some 10 MB."""
EMPTY = "empty trace"
NOT_IN_FILES = "the files hold no trace of it"
AMBIGUOUS = "the files name it as they name another item"
NAMED_BY_TEXT = ("text", "corpus_content")
"""Kinds of names that say all of an item in published files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a trace is of."""

    key: str
    """`content_key` of what the Reasoner reads of it."""
    item: Item
    side: Side
    task: str
    """The data set or task that it belongs to, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrace:
    """A trace, or why there is none."""

    of: Subject
    text: str = ""
    finish: str = ""
    """`stop` = ended by itself, `length` = cut at the token limit; empty: unknown."""
    failed: str = ""
    """Why there is no trace; empty: there is one."""
    tokens: int | None = None
    """Tokens that were generated, the end-of-turn token included; None: unknown."""
    wall_ms: float | None = None
    """Wall-clock milliseconds of the block that it was written in, over the number of the block's
    traces; None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCost:
    """What traces cost, each a mean over those of which it is known; None where it is of none."""

    tokens: float | None = None
    """Generated tokens of a trace."""
    wall_ms: float | None = None
    """Wall-clock milliseconds of engines for a trace. Engines work at many traces at once: it is
    the time of a block over its traces, not how long a trace takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSubject:
    """What a trace in published files is of."""

    of: Subject
    kind: str
    """What names it there, as in `data.rows.trace_files`: `query-id`, `image`, ..."""
    name: str


class TraceStore:
    """The traces of one recipe, in a folder of their own under ``root``.

    Another recipe has another folder. Any number of processes may add at the same time.
    """

    def __init__(self, root: Path, recipe: TraceRecipe) -> None:
        import pyarrow as pa

        item = ("side", "task", "kind", "instruction", "item_text")
        columns = [
            *((name, pa.string()) for name in item),
            ("uris", pa.list_(pa.string())),
            *((name, pa.string()) for name in ("model", "templates")),
            *(("temperature", pa.float64()), ("seed", pa.int64())),
            *((name, pa.string()) for name in (TEXT, "finish", "made_by")),
            ("made_at", pa.timestamp("ms", "UTC")),
            *((TOKENS, pa.int32()), (WALL_MS, pa.float32())),
        ]
        self.recipe = recipe
        """What the traces follow from beside their prompts."""
        newer = (TOKENS, WALL_MS)
        self._parts = KeyedParts(root, asdict(recipe), pa.schema(columns), newer=newer)

    @property
    def folder(self) -> Path:
        """Where the traces are."""
        return self._parts.folder

    @property
    def set_aside(self) -> Mapping[str, str]:
        """Why files in the folder are not read, by their names."""
        return self._parts.set_aside

    def add(self, traces: Sequence[StoredTrace], *, made_by: str) -> None:
        """Commit traces as one part; one without text is recorded as failed.

        ``made_by`` is the job and its run, for people.

        Raises:
            DataError: the part cannot be written; then nothing of it is there.
        """
        failed = [t.failed or (None if t.text.strip() else EMPTY) for t in traces]
        columns: dict[str, Sequence[Any]] = {
            KEY_COLUMN: [trace.of.key for trace in traces],
            FAILED: failed,
            "side": [trace.of.side for trace in traces],
            "task": [trace.of.task for trace in traces],
            "kind": [trace.of.item.kind for trace in traces],
            "instruction": [trace.of.item.instruction for trace in traces],
            "item_text": [trace.of.item.text for trace in traces],
            "uris": [trace.of.item.uris for trace in traces],
            "model": [self.recipe.model] * len(traces),
            "templates": [self.recipe.templates] * len(traces),
            "temperature": [self.recipe.temperature] * len(traces),
            "seed": [self.recipe.seed] * len(traces),
            TEXT: [t.text if why is None else None for t, why in zip(traces, failed, strict=True)],
            "finish": [trace.finish or None for trace in traces],
            "made_by": [made_by] * len(traces),
            "made_at": [time.time_ns() // 1_000_000] * len(traces),
            TOKENS: [trace.tokens for trace in traces],
            WALL_MS: [trace.wall_ms for trace in traces],
        }
        self._parts.write(columns, group_rows=GROUP_ROWS)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without a trace, failed ones too, each once and in order.

        Looks at the folder first, so that what other processes have added since is not missing.
        """
        wanted = list(dict.fromkeys(keys))
        self._parts.look()
        return [wanted[number] for number in np.flatnonzero(self._parts.places(wanted) < 0)]

    def failures(self, keys: Sequence[str]) -> dict[str, str]:
        """Return why keys without a trace failed when they were tried last."""
        self._parts.look()
        return self._parts.failures(keys)

    def coverage(self, keys: Iterable[str]) -> float:
        """Return the share of the keys that have a trace, each counted once; of no keys 1."""
        wanted = set(keys)
        return 1 - len(self.missing(wanted)) / len(wanted) if wanted else 1.0

    def traces(self, keys: Iterable[str], *, most_missing: float, remedy: str) -> dict[str, str]:
        """Return the traces of keys; those that are missing are left out.

        Args:
            keys: of what is to have a trace.
            most_missing: the largest share of them that may be missing.
            remedy: what to do to have them written, such as a command; told in the error.

        Raises:
            DataError: a larger share is missing, or a part cannot be read.
        """
        wanted = list(dict.fromkeys(keys))
        missing = self.missing(wanted)
        if len(missing) > most_missing * len(wanted):
            reasons = Counter(self.failures(missing).values()).most_common(3)
            failed = "".join(f"; {count} failed: {reason}" for reason, count in reasons)
            raise DataError(
                f"{self.folder}: expected traces of {len(wanted)} items, of which a share of "
                f"{most_missing:g} may be missing, found {len(missing)} missing{failed}; {remedy}"
            )
        absent = set(missing)
        there = [key for key in wanted if key not in absent]
        traces = dict.fromkeys(there, "")
        for numbers, table in self._parts.read(self._parts.places(there), [TEXT]):
            for number, text in zip(numbers, table[TEXT].to_pylist(), strict=True):
                traces[there[number]] = text
        return traces

    def all(self) -> list[StoredTrace]:
        """Return every trace with what it is of, in the order of writing; of videos without times.

        Raises:
            DataError: a part cannot be read.
        """
        self._parts.look()
        columns = [KEY_COLUMN, "side", "task", "kind", "instruction", "item_text", "uris"]
        columns += [TEXT, "finish", TOKENS]
        places = np.sort(self._parts.all_places())
        stored = []
        for _, table in self._parts.read(places, columns):
            for row in table.to_pylist():
                item = Item(
                    text=row["item_text"],
                    kind=Kind(row["kind"]),
                    uris=tuple(row["uris"]),
                    instruction=row["instruction"],
                )
                subject = Subject(
                    key=row[KEY_COLUMN], item=item, side=Side(row["side"]), task=row["task"]
                )
                trace = StoredTrace(
                    of=subject,
                    text=row[TEXT],
                    finish=row["finish"] or "",
                    tokens=row[TOKENS],
                )
                stored.append(trace)
        return stored

    def cost(self, keys: Iterable[str]) -> TraceCost:
        """Return what the traces of keys cost; keys without a trace are left out.

        Raises:
            DataError: a part cannot be read.
        """
        self._parts.look()
        return TraceCost(**self._parts.means(list(dict.fromkeys(keys)), (TOKENS, WALL_MS)))

    def tokens(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the generated tokens of the traces of keys; those of which they are not known are
        left out.

        Raises:
            DataError: a part cannot be read.
        """
        self._parts.look()
        wanted = list(dict.fromkeys(keys))
        places = self._parts.places(wanted)
        there = np.flatnonzero(places >= 0)
        tokens: dict[str, int] = {}
        for numbers, table in self._parts.read(places[there], [TOKENS]):
            for number, count in zip(there[numbers], table[TOKENS].to_pylist(), strict=True):
                if count is not None:
                    tokens[wanted[number]] = count
        return tokens

    def take_over(
        self, subjects: Iterable[NamedSubject], files: TraceFiles, *, made_by: str
    ) -> None:
        """Commit what published files hold of subjects that have no trace yet.

        What the files do not hold is recorded as failed. So is what they cannot tell apart: they
        name an image with a caption by its path alone, so that of several captions of one image
        nobody knows which one the trace is of. Options of questions that differ by a letter only
        are named by their text, and share its trace.

        Args:
            subjects: of one benchmark set.
            files: of this set alone, as `query-id` 1 of another set is another query.
            made_by: for people.

        Raises:
            DataError: the part cannot be written.
        """
        named = list(subjects)
        keys_of: dict[tuple[str, str], set[str]] = {}
        for subject in named:
            keys_of.setdefault((subject.kind, subject.name), set()).add(subject.of.key)
        missing = set(self.missing(subject.of.key for subject in named))
        taken: dict[str, StoredTrace] = {}
        for subject in named:
            text = files.trace(subject.kind, subject.name)
            why = "" if text else NOT_IN_FILES
            shared = len(keys_of[subject.kind, subject.name]) > 1
            if shared and subject.kind not in NAMED_BY_TEXT:
                text, why = "", AMBIGUOUS
            key = subject.of.key
            if key in missing and not (key in taken and taken[key].text):
                taken[key] = StoredTrace(of=subject.of, text=text, failed=why)
        if taken:
            self.add(list(taken.values()), made_by=made_by)


def held_out_stores(root: Path) -> dict[int, TraceStore]:
    """Return the stores under ``root`` that a policy in training has filled, by step.

    Of a step that was done again with other weights, as after a kill, the newest counts.
    """

    def newest(folder: Path) -> str:
        return max((part.name for part in folder.glob(f"*{PART}")), default="")

    stores: dict[int, TraceStore] = {}
    for folder in sorted((path.parent for path in root.glob(f"*/{FACTS}")), key=newest):
        try:
            recipe = TraceRecipe(**json.loads((folder / FACTS).read_bytes()))
        except (OSError, ValueError, TypeError):  # no store of this code's
            continue
        if STEP in recipe.more:
            stores[recipe.more[STEP]] = TraceStore(root, recipe)
    return dict(sorted(stores.items()))
