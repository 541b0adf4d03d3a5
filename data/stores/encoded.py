"""Encoded items: their vectors with all that a search shows of them, in parquet files by number.

`part-00000.parquet`, `part-00001.parquet` and so on hold the items in order, `facts.json` says what
their vectors follow from. Shapes: B items of a block, D dimensions.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import DataError
from data.rows.picture_paths import natural_order
from data.stores.facts import embedder_facts
from data.stores.parts import FACTS
from data.stores.vectors import VECTOR
from data.types import Box, Cues, Kind

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from configs.common import MediaConfig
    from configs.reward import RewardConfig

ENCODED_FOLDER = "encoded"
"""In the run folder of `encode`."""
BATCH = 1024
"""Rows that are read at a time."""
_AGAIN = "encode the items again"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """What is known of an encoded item beside its vector."""

    item_id: str
    file: str
    """That it shows, relative to the root of the items; of a text the file of its row."""
    text: str
    kind: Kind
    uris: tuple[str, ...]
    """Of the picture or page, or of the frames that are shown, in order."""
    trace: str
    """Empty: it was embedded without one."""
    cues: Cues
    """What the trace points at."""


def encoded_table(items: Sequence[EncodedItem], vectors: np.ndarray) -> "pa.Table":
    """Return a part: ``items`` with their ``vectors``, float32 [B, D], in the same order.

    Boxes are [x1, y1, x2, y2] in shares of width and height; key frames count `uris` from 0.
    """
    import pyarrow as pa

    boxes = [[[b.x1, b.y1, b.x2, b.y2] for b in item.cues.boxes] for item in items]
    ends = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1]), pa.int32())
    lists = pa.list_(pa.string())
    return pa.table(
        {
            "id": pa.array([item.item_id for item in items], pa.string()),
            "file": pa.array([item.file for item in items], pa.string()),
            "text": pa.array([item.text for item in items], pa.string()),
            "kind": pa.array([item.kind for item in items], pa.string()),
            "uris": pa.array([item.uris for item in items], lists),
            "trace": pa.array([item.trace for item in items], pa.string()),
            "boxes": pa.array(boxes, pa.list_(pa.list_(pa.float64()))),
            "key_frames": pa.array([i.cues.key_frames for i in items], pa.list_(pa.int64())),
            "keywords": pa.array([item.cues.keywords for item in items], lists),
            VECTOR: pa.ListArray.from_arrays(ends, pa.array(vectors.ravel(), pa.float32())),
        }
    )


class EncodedParts:
    """The encoded items in a folder; what is asked for is read from disk."""

    def __init__(self, folder: Path) -> None:
        """Open the parts; their vectors and texts are not read.

        Raises:
            DataError: the folder is not one that `encode` has finished, or parts are missing.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder = folder
        try:
            text = (folder / FACTS).read_bytes()
            facts: Mapping[str, Any] = json.loads(text)
            files = sorted(folder.glob("part-*.parquet"), key=lambda file: natural_order(file.name))
            footers = [pq.read_metadata(file) for file in files]
            counts = [footer.num_rows for footer in footers]
            expected, self._model, self._embedder = (
                facts[name] for name in ("count", "model", "embedder")
            )
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: expected encoded items, found no {FACTS}; name the run folder of a job "
                "`encode` that has ended"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{folder}: expected encoded items, found files that cannot be read ({error}); "
                f"{_AGAIN}"
            ) from error
        self._files, self._ends = files, list(accumulate(counts))
        self.fingerprint = _fingerprint(text, footers)
        """Tells these parts from others, such as those of another run into the same folder."""
        if sum(counts) != expected:
            raise DataError(
                f"{folder}: expected {expected} items as {FACTS} says, found {sum(counts)} in "
                f"{len(files)} parts; {_AGAIN}"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    @cached_property
    def dimensions(self) -> int:
        """Of the vectors.

        Raises:
            DataError: a part cannot be read.
        """
        return next(self.vectors()).shape[1]

    def check_embedder(self, reward: "RewardConfig", media: "MediaConfig") -> None:
        """Refuse an Embedder, or settings of it, that the vectors do not come from.

        Raises:
            DataError: its files or its recipe are not those of the encoded items.
        """
        now, then = embedder_facts(reward, media), self._embedder
        other = [name for name, value in now.items() if value != then.get(name)]
        if other:
            differences = [
                f"other files in {reward.model}"
                if name == "model"
                else f"{name}: there {then.get(name)!r}, now {now[name]!r}"
                for name in other
            ]
            raise DataError(
                f"{self.folder}: expected the Embedder that the items were encoded with "
                f"({self._model}) and its settings, found {'; '.join(differences)}; take "
                f"the settings of the run `encode`, or {_AGAIN}"
            )

    def vectors(self) -> Iterator[np.ndarray]:
        """Yield the vectors in order, float32 [B, D].

        Raises:
            DataError: a part cannot be read.
        """
        for _, batch in self._batches(range(len(self._files)), [VECTOR]):
            yield _vectors(batch)

    def items(self, indices: Sequence[int]) -> list[EncodedItem]:
        """Return the items at these indices, in this order.

        Raises:
            DataError: a part cannot be read.
        """
        wanted = set(indices)
        parts = sorted({bisect_right(self._ends, index) for index in wanted})
        read: dict[int, EncodedItem] = {}
        columns = ["id", "file", "text", "kind", "uris", "trace", "boxes", "key_frames", "keywords"]
        for first, batch in self._batches(parts, columns):
            for index in wanted.intersection(range(first, first + len(batch))):
                read[index] = _item(batch.slice(index - first, 1).to_pylist()[0])
        return [read[index] for index in indices]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the vectors at indices, int64 [X], that ascend; float32 [X, D].

        Raises:
            DataError: a part cannot be read.
        """
        pieces = []
        parts = np.unique(np.searchsorted(self._ends, indices, side="right")).tolist()
        for first, batch in self._batches(parts, [VECTOR]):
            start, end = np.searchsorted(indices, [first, first + len(batch)])
            pieces.append(_vectors(batch)[indices[start:end] - first])
        return np.concatenate(pieces)

    def _batches(
        self, parts: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[int, "pa.RecordBatch"]]:
        """Yield the rows of parts a few at a time, with the index of the first of them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for number in parts:
            first = self._ends[number - 1] if number else 0
            try:
                with pq.ParquetFile(self._files[number], memory_map=True) as file:
                    for batch in file.iter_batches(BATCH, columns=[*columns]):
                        yield first, batch
                        first += len(batch)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{self._files[number]}: expected encoded items, found a file that cannot be "
                    f"read ({error}); {_AGAIN}"
                ) from error


def _fingerprint(facts: bytes, footers: Sequence["pq.FileMetaData"]) -> str:
    """Return a digest of the facts and of the parts' footers, which have the smallest and largest
    values of each column."""
    digest = blake2b(facts, digest_size=16)
    for footer in footers:
        written = BytesIO()
        footer.write_metadata_file(written)
        digest.update(written.getvalue())
    return digest.hexdigest()


def _vectors(batch: "pa.RecordBatch") -> np.ndarray:
    return batch[VECTOR].flatten().to_numpy().reshape(len(batch), -1)


def _item(row: Mapping[str, Any]) -> EncodedItem:
    return EncodedItem(
        item_id=row["id"],
        file=row["file"],
        text=row["text"],
        kind=Kind(row["kind"]),
        uris=tuple(row["uris"]),
        trace=row["trace"],
        cues=Cues(
            keywords=tuple(row["keywords"]),
            boxes=tuple(Box(*corners) for corners in row["boxes"]),
            key_frames=tuple(row["key_frames"]),
        ),
    )
