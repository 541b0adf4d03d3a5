"""The order of training: which pairs come next, decided by seed and position alone."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from configs.common import DataConfig
from data.prompts import item_content, reasoner_content
from data.sets.load_sets import LoadedSet
from data.types import Content, Kind, Pair, Side


class PairFeed:
    """Endless batches of pairs, each batch from a single data set.

    The set of a batch is drawn with probability proportional to weight x size; inside a set the
    pairs come shuffled, epoch after epoch. The position is one small dictionary, so a resumed
    run goes on exactly where it stopped.
    """

    def __init__(
        self, sets: Sequence[LoadedSet], weights: Mapping[str, float], *, batch: int, seed: int
    ) -> None:
        self.sets = {data_set.name: data_set for data_set in sets}
        self.names = sorted(self.sets)
        self.batch = batch
        self.seed = seed
        sizes = np.array([weights[name] * len(self.sets[name].pairs) for name in self.names])
        self.probabilities = sizes / sizes.sum()
        video = [self.sets[name].table.shows([Kind.VIDEO]) for name in self.names]
        self.without_video = np.where(video, 0.0, self.probabilities)
        """Probabilities of the sets without video, not normalised; 0 for the others."""
        self.position: dict[str, int] = dict.fromkeys(self.names, 0)
        self.batches = 0
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def next(self, count: int | None = None) -> list[Pair]:
        """Return the next ``count`` pairs (None: a whole batch), fewer only from a smaller set."""
        return self._take(self._draw(), self.batch if count is None else count)

    def next_pairs_of(self, batches: int) -> list[Pair]:
        """Return the pairs of several batches in one list, at most one of these from a set with
        video.

        As published: a further batch of video is drawn again among the sets without video. If
        every set that can be drawn has video, there is no such limit.
        """
        pairs: list[Pair] = []
        video_allowed = True
        for _ in range(batches):
            place = self._draw(video_allowed=video_allowed)
            video_allowed = video_allowed and self.without_video[place] > 0
            pairs += self._take(place, self.batch)
        return pairs

    def _draw(self, *, video_allowed: bool = True) -> int:
        """Return the place in `names` of a set, drawn by weight and size; without
        ``video_allowed``, of a set without video if there is one.
        """
        rng = np.random.default_rng([self.seed, self.batches])
        self.batches += 1
        place = int(rng.choice(len(self.names), p=self.probabilities))
        if not video_allowed and self.without_video[place] == 0 and self.without_video.any():
            others = self.without_video / self.without_video.sum()
            place = int(rng.choice(len(self.names), p=others))
        return place

    def _take(self, place: int, count: int) -> list[Pair]:
        """Return the next ``count`` pairs of a set, fewer only from a smaller set."""
        name = self.names[place]
        pairs = self.sets[name].pairs
        count = min(count, len(pairs))
        start = self.position[name]
        # A batch never crosses an epoch's end: it would hold a pair twice.
        if start % len(pairs) + count > len(pairs):
            start += len(pairs) - start % len(pairs)
        self.position[name] = start + count
        epoch, offset = divmod(start, len(pairs))
        return [pairs[int(i)] for i in self._order(name, epoch)[offset : offset + count]]

    def _order(self, name: str, epoch: int) -> np.ndarray:
        """Return a set's order in an epoch; that of the last one asked for is kept."""
        if self._orders.get(name, (-1,))[0] != epoch:
            rng = np.random.default_rng([self.seed, self.names.index(name), epoch])
            self._orders[name] = epoch, rng.permutation(len(self.sets[name].pairs))
        return self._orders[name][1]

    def state(self) -> dict[str, int]:
        """Return the position, to be stored with a checkpoint."""
        return {"batches": self.batches, **{f"set/{k}": v for k, v in self.position.items()}}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to a stored position."""
        self.batches = state["batches"]
        self.position = {name: state[f"set/{name}"] for name in self.names}


def held_out_pairs(sets: Sequence[LoadedSet], samples: int) -> list[Pair]:
    """Return the held-out pairs measured during a run, the same at every measurement.

    Each set gives its share of ``samples`` and at least one pair, spread evenly over its rows.
    """
    total = sum(len(data_set.pairs) for data_set in sets)
    samples = min(samples, total)
    chosen: list[Pair] = []
    before = 0
    for pairs in (data_set.pairs for data_set in sets if data_set.pairs):
        # Shares are cut at rounded bounds, so that they add up.
        first, last = (round(samples * n / total) for n in (before, before + len(pairs)))
        before += len(pairs)
        count = min(max(last - first, 1), len(pairs))
        chosen += [pairs[index * len(pairs) // count] for index in range(count)]
    return chosen


def supervised_rows(
    loaded: LoadedSet, *, data: DataConfig, caption: bool
) -> Iterator[tuple[str, Content, str]]:
    """Yield (key, prompt, response) for every side that has a written trace.

    Captions are asked with the row's own text, traces with the Reasoner's prompt templates.
    """
    traced = np.flatnonzero(loaded.table.traces).tolist()
    for pair in (loaded.pairs[place] for place in traced):
        for side in Side:
            response = pair.trace(side)
            if not response:
                continue
            if caption:
                content: Content = item_content(
                    pair.item(side),
                    side,
                    templates="brief",
                    max_frames=data.media.max_frames,
                    item_tokens=data.item_tokens,
                )
            else:
                content = reasoner_content(
                    pair,
                    side,
                    templates=data.templates,
                    max_frames=data.media.max_frames,
                    item_tokens=data.item_tokens,
                )
            yield f"{pair.source}/{pair.pair_id}/{side}", content, response
