"""Embeds what a store misses, some contents at a time, until it is killed.

`python -m tests.inputs.vector_writer <root> <contents>` prints `asked <number>` before a content is
embedded and `kept <number>` once it is committed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.stores.keys import content_key
from data.stores.vectors import VectorStore

FACTS = {"model": "a"}
WIDTH, AT_A_TIME = 64, 20


def key_of(number: int) -> str:
    return content_key((f"text {number}",))


def vectors_of(numbers: Sequence[int]) -> np.ndarray:
    """Return a vector for each content that no other one has, float32 [N, WIDTH]."""
    return np.array(numbers, np.float32)[:, None] + np.arange(1, WIDTH + 1, dtype=np.float32)


def store_in(root: Path) -> VectorStore:
    return VectorStore(root, FACTS, memory_bytes=1 << 30)


def main(root: str, contents: str) -> None:
    """Add every vector that is missing."""
    store = store_in(Path(root))
    number_of = {key_of(number): number for number in range(int(contents))}
    missing = [number_of[key] for key in store.missing(list(number_of))]
    for start in range(0, len(missing), AT_A_TIME):
        numbers = missing[start : start + AT_A_TIME]
        print(*(f"asked {number}" for number in numbers), sep="\n", flush=True)
        store.add([key_of(number) for number in numbers], vectors_of(numbers))
        print(*(f"kept {number}" for number in numbers), sep="\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
