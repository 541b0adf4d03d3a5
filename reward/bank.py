"""Candidates of earlier steps: the Embedder is frozen, so their embeddings stay true."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.reward import BankConfig
from data.errors import DamagedCheckpoint
from data.types import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a trace of the other side is ranked among."""

    key: str
    """Key of the trace that was embedded."""
    content: str
    """`Item.key` of its item."""
    vector: np.ndarray
    """float32 [D], of length 1."""
    plain: np.ndarray | None = None
    """The same of its item without trace; None where nobody asks for it."""


class CandidateBank:
    """Remembers one trace per item and side, oldest first; all choices are deterministic.

    Of an item's siblings the first by key is remembered: any other rule would pick by reward.
    """

    def __init__(self, config: BankConfig) -> None:
        self._config = config
        self._kept: dict[Side, dict[str, Candidate]] = {side: {} for side in Side}

    def draw(self, side: Side, golds: np.ndarray) -> list[Candidate]:
        """Return the recent candidates of a side, and the older ones closest to any gold.

        ``golds`` is [G, D]: the round's own candidates of that side.
        """
        kept = list(self._kept[side].values())
        split = max(len(kept) - self._config.recent, 0)
        older, recent = kept[:split], kept[split:]
        if not older or not self._config.hard:
            return recent
        vectors = np.stack([candidate.vector for candidate in older]).astype(np.float64)
        closeness = (vectors @ golds.astype(np.float64).T).max(axis=1).round(9)
        order = sorted(range(len(older)), key=lambda index: (-closeness[index], older[index].key))
        return [*recent, *(older[index] for index in order[: self._config.hard])]

    def add(self, side: Side, candidates: Sequence[Candidate]) -> None:
        """Remember the first candidate of each item; an item met again moves to the end."""
        if not self._config.recent + self._config.capacity:
            return
        kept = self._kept[side]
        fresh: dict[str, Candidate] = {}
        for candidate in sorted(candidates, key=lambda candidate: candidate.key):
            fresh.setdefault(candidate.content, candidate)
        for content, candidate in fresh.items():
            kept.pop(content, None)
            # Copies: a vector may be a view that holds all others of an actor's answer.
            plain = None if candidate.plain is None else candidate.plain.copy()
            kept[content] = replace(candidate, vector=candidate.vector.copy(), plain=plain)
        excess = len(kept) - self._config.recent - self._config.capacity
        for content in list(kept)[: max(excess, 0)]:
            del kept[content]

    def copy(self) -> "CandidateBank":
        """Return a bank that remembers the same and goes its own way."""
        other = CandidateBank(self._config)
        other._kept = {side: dict(kept) for side, kept in self._kept.items()}
        return other

    def save(self, path: Path) -> None:
        """Write everything remembered to an .npz file."""
        rows = [
            (side, candidate) for side, kept in self._kept.items() for candidate in kept.values()
        ]
        words = json.dumps(
            [(str(side), candidate.key, candidate.content) for side, candidate in rows]
        )
        vectors = (
            np.stack([candidate.vector for _, candidate in rows]) if rows else np.zeros((0, 0))
        )
        known = [index for index, (_, candidate) in enumerate(rows) if candidate.plain is not None]
        plain = np.stack([rows[index][1].plain for index in known]) if known else np.zeros((0, 0))
        words_bytes = np.frombuffer(words.encode(), dtype=np.uint8)
        np.savez(path, words=words_bytes, vectors=vectors, known=np.array(known, int), plain=plain)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote, here or in a version that kept less or more of each.

        Raises:
            DamagedCheckpoint: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                words, vectors = json.loads(file["words"].tobytes()), file["vectors"]
                plain: dict[int, np.ndarray] = {}
                if "plain" in file:
                    plain = dict(zip(file["known"].tolist(), file["plain"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DamagedCheckpoint(f"{path}: damaged: {error}") from error
        self._kept = {side: {} for side in Side}
        rows = zip(words, vectors, strict=True)
        for index, ((side, key, content, *_), vector) in enumerate(rows):
            self._kept[Side(side)][content] = Candidate(
                key=key, content=content, vector=vector, plain=plain.get(index)
            )
