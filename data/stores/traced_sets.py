"""Data sets with the traces that a Reasoner wrote, from a store, in place of those of their rows.

Shapes: P pairs of a set, T different traces.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np

from configs.common import DataSetConfig
from configs.schema import EmbedderConfig, WarmStartConfig
from data.errors import DataError, TCoTError
from data.prompts import pictures_of, reasoner_content
from data.sets.index import Texts
from data.sets.load_sets import LoadedSet
from data.stores.facts import reasoner_recipe
from data.stores.keys import content_key
from data.stores.traces import TraceStore
from data.tcot import parse
from data.types import Pair, Side

log = logging.getLogger(__name__)
BLOCK = 4096
"""Pairs whose traces are looked for together."""
NONE = 0
"""Number of the trace that stands for none: an empty text."""
REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TracedPairs(Sequence[Pair]):
    """The pairs of a set, each with its traces from the store when it is drawn."""

    pairs: Sequence[Pair]
    texts: Texts
    """[T] traces."""
    numbers: dict[Side, np.ndarray]
    """int64 [P]: the trace of each pair on that side."""

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        return self._traced(self.pairs[place], place)

    def __iter__(self) -> Iterator[Pair]:
        for place, pair in enumerate(self.pairs):
            yield self._traced(pair, place)

    def _traced(self, pair: Pair, place: int) -> Pair:
        query, target = (self.texts[self.numbers[side][place]] for side in Side)
        # The Reasoner sees one side at a time, whoever wrote the traces of the row.
        return replace(pair, query_trace=query, target_trace=target, answer_known=False)


def with_stored_traces(
    sets: Sequence[LoadedSet],
    configs: Sequence[DataSetConfig],
    config: EmbedderConfig | WarmStartConfig,
) -> list[LoadedSet]:
    """Return data sets with the greedy traces of ``config.reasoner`` that ``config.store`` holds.

    The rows' own traces do not count. Which share of a set's items has a trace is logged; a trace
    that the grammar cannot read is none. Captions stay as they are. Without a store the sets are
    returned as they are.

    Raises:
        DataError: of a set more than ``config.max_missing_traces`` have none, or the store or the
            Reasoner's folder cannot be read.
    """
    if not config.store:
        return list(sets)
    data = config.data
    recipe = reasoner_recipe(
        config.reasoner, config.rollout, data.media, templates=data.templates, seed=None
    )
    store = TraceStore(Path(config.store) / "traces", recipe)
    return [
        loaded if settings.format == "caption" else _traced_set(loaded, store, config)
        for loaded, settings in zip(sets, configs, strict=True)
    ]


def traces_in_use(sets: Sequence[LoadedSet]) -> Iterator[str]:
    """Yield the traces of all pairs that came from a store, in their order."""
    for pairs in (loaded.pairs for loaded in sets):
        if isinstance(pairs, TracedPairs):
            for side in Side:
                yield from pairs.texts.take(pairs.numbers[side])


def _traced_set(
    loaded: LoadedSet, store: TraceStore, config: EmbedderConfig | WarmStartConfig
) -> LoadedSet:
    number_of: dict[str, int] = {}
    """Of each key's trace."""
    texts = [""]
    unusable: Counter[str] = Counter()
    numbers: dict[Side, list[int]] = {side: [] for side in Side}
    rest = iter(loaded.pairs)
    while block := list(islice(rest, BLOCK)):
        ends = [(side, pair, _key(pair, side, config)) for pair in block for side in Side]
        new = [key for _, _, key in ends if key not in number_of]
        stored = store.traces(new, most_missing=1.0, remedy="")
        for side, pair, key in ends:
            if key not in number_of:
                text = stored.get(key, "")
                if text and (reason := _refusal(text, pair, side, config)):
                    unusable[reason] += 1
                    text = ""
                number_of[key] = len(texts) if text else NONE
                texts.extend([text] if text else [])
            numbers[side].append(number_of[key])
    _check_coverage(loaded.name, number_of, unusable, store, config.max_missing_traces)
    by_side = {side: np.array(of_side, dtype=np.int64) for side, of_side in numbers.items()}
    query, target = ((by_side[side] != NONE).astype(np.uint8) for side in Side)
    return replace(
        loaded,
        pairs=TracedPairs(loaded.pairs, Texts(texts), by_side),
        table=replace(loaded.table, traces=query + 2 * target),
    )


def _key(pair: Pair, side: Side, config: EmbedderConfig | WarmStartConfig) -> str:
    content = reasoner_content(
        pair,
        side,
        templates=config.data.templates,
        max_frames=config.data.media.max_frames,
        item_tokens=config.data.item_tokens,
    )
    return content_key(content)


def _refusal(text: str, pair: Pair, side: Side, config: EmbedderConfig | WarmStartConfig) -> str:
    """Return why the grammar cannot read a trace; empty: it can."""
    item = pair.item(side)
    frames = len(pictures_of(item, config.data.media.max_frames))
    try:
        parse(text, kind=item.kind, num_frames=frames)
    except TCoTError as error:
        return str(error)
    return ""


def _check_coverage(
    name: str,
    number_of: dict[str, int],
    unusable: Counter[str],
    store: TraceStore,
    most_missing: float,
) -> None:
    missing = [key for key, number in number_of.items() if number == NONE]
    coverage = 1 - len(missing) / max(1, len(number_of))
    log.info(
        "data set '%s': traces of %s, coverage %.3f of %d queries and targets",
        name,
        store.folder,
        coverage,
        len(number_of),
    )
    reasons = Counter(store.failures(missing).values()) + unusable
    why = "".join(f"; {count}: {reason}" for reason, count in reasons.most_common(REASONS_SHOWN))
    if len(missing) > most_missing * len(number_of):
        raise DataError(
            f"{store.folder}: expected traces of {len(number_of)} queries and targets of data set "
            f"'{name}', of which a share of {most_missing:g} may be missing, found {len(missing)} "
            f"missing{why}; have the job `evaluate` write them, with the set under data.eval and "
            "the same Reasoner, rollout, templates and media, or raise max_missing_traces"
        )
