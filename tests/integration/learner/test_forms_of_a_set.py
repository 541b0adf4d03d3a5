"""One set in all forms that files of rows and media may have: the same pairs, the same training."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.jobs.embedder import contrastive_batches
from cluster.learner_group import LearnerGroup
from cluster.pictures import Decoder
from configs.common import DataConfig, DataSetConfig, RunConfig
from configs.learner import LearnerConfig
from configs.schema import EmbedderConfig
from data.media.pictures import load_pictures
from data.sets.feed import PairFeed
from data.sets.load_sets import known_right, load_sets
from data.types import Item, Kind, Pair
from tests.builders import TRACES, write_beir
from tests.inputs.drawings import draw
from tests.inputs.media_files import write_lossless_video
from tests.integration.conftest import MEDIA
from tests.marks import extended
from tests.patience import PATIENCE_S

ROWS, FRAMES, STEPS = 8, 4, 3
SIDE = 64
"""Pixels of a drawing's width."""
DATA = DataConfig(media=MEDIA)
CONFIG = EmbedderConfig(
    run=RunConfig(dir="run"), data=DATA, model="", batch=4, sub_batches=1, steps=STEPS
)
LEARNER = LearnerConfig(bf16=False, attention="eager", timeout_s=PATIENCE_S)
Forms = dict[str, DataSetConfig]


def shared_fields(number: int, target: Kind, query: Kind) -> dict[str, Any]:
    return {
        "id": f"row {number}",
        "label": f"label {number % 5}",
        "query_cot": TRACES[query],
        "pos_cot": TRACES[target],
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """Return a set of texts and pages: JSON with files, tables with bytes, a corpus with qrels."""
    folder = tmp_path_factory.mktemp("pages")
    files = [f"{number}.png" for number in range(ROWS)]
    for number, file in enumerate(files):
        draw(number, SIDE).save(folder / file)
    texts = [f"the drawing {number}" for number in range(ROWS)]
    more = [shared_fields(number, Kind.PAGE, Kind.TEXT) for number in range(ROWS)]
    rows = [
        {"qry": text, "pos_text": "", "pos_image_path": file, **fields}
        for text, file, fields in zip(texts, files, more, strict=True)
    ]
    whole = [(folder / file).read_bytes() for file in files]
    cells = [row | {"pos_image_path": content} for row, content in zip(rows, whole, strict=True)]
    shards = folder / "shards"
    shards.mkdir()
    for number, part in enumerate((cells[: ROWS // 2], cells[ROWS // 2 :])):
        name = f"train-0000{number}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), shards / name)
    pq.write_table(pa.Table.from_pylist(cells), folder / "rows.parquet")
    (folder / "rows.json").write_text(json.dumps(rows))
    beir = write_beir(
        folder / "published",
        {"query-id": list(range(ROWS)), "query": texts},
        {"corpus-id": [f"page {number}" for number in range(ROWS)], "image": whole},
        pa.Table.from_pylist(
            [
                {"query-id": number, "corpus-id": f"page {number}", "score": 1, **fields}
                for number, fields in enumerate(more)
            ]
        ),
    )
    return {
        "JSON": in_form(folder, "rows.json", kind="page"),
        "parquet": in_form(folder, "rows.parquet", kind="page"),
        "shards": in_form(folder, "shards", kind="page"),
        "beir": beir,
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """Return a set of clips and texts: frames one by one, in folders, and in video files."""
    folder = tmp_path_factory.mktemp("clips")
    names: dict[str, list[str | list[str]]] = {"listed": [], "folders": [], "videos": []}
    for clip in range(ROWS):
        frames = [draw(clip * FRAMES + number, SIDE) for number in range(FRAMES)]
        files = [f"{clip}/{number}.png" for number in range(FRAMES)]
        (folder / str(clip)).mkdir()
        for frame, file in zip(frames, files, strict=True):
            frame.save(folder / file)
        write_lossless_video(folder / f"{clip}.mp4", [np.asarray(frame) for frame in frames])
        names["listed"].append(files)
        names["folders"].append(str(clip))
        names["videos"].append(f"{clip}.mp4")
    for form, videos in names.items():
        rows = [
            {
                "qry": {"conversations": [{"from": "human", "value": "what"}], "video": video},
                "pos": {"conversations": [{"from": "gpt", "value": f"clip {number}"}]},
                **shared_fields(number, Kind.TEXT, Kind.VIDEO),
            }
            for number, video in enumerate(videos)
        ]
        (folder / f"{form}.json").write_text(json.dumps(rows))
    return {form: in_form(folder, f"{form}.json", format="llavahound") for form in names}


def in_form(folder: Path, path: str, **settings: str) -> DataSetConfig:
    return DataSetConfig(name="set", path=str(folder / path), root=str(folder), **settings)


def says(pair: Pair) -> Pair:
    """Return a pair without the places of its pictures and the id that only a corpus gives."""

    def without_places(item: Item) -> Item:
        return replace(item, uris=("",) * len(item.uris))

    query, target = map(without_places, (pair.query, pair.target))
    return replace(pair, query=query, target=target, query_id="")


@pytest.fixture
def losses(group: LearnerGroup, tiny_folder: Path) -> Callable[..., list[float]]:
    """Return what trains the tiny model on a set, and returns the loss of each step."""

    def losses(form: DataSetConfig, config: EmbedderConfig) -> list[float]:
        loaded = load_sets([form], limits=config.data)
        feed = PairFeed(loaded, {form.name: 1.0}, batch=config.batch, seed=0)
        group.config = replace(LEARNER, ranks=group.config.ranks, cpus=group.config.cpus)
        group.build_contrastive(
            model=str(tiny_folder),
            media=config.data.media,
            total_steps=STEPS,
            seed=0,
            temperature=config.temperature,
        )
        with closing(Decoder()) as decoder:
            batches = contrastive_batches(feed, config, known_right(loaded), decoder)
            return [
                group.train_contrastive(*batch).metrics["contrast/loss"]
                for batch, _ in islice(batches, STEPS)
            ]

    return losses


@pytest.mark.parametrize(
    ("forms", "video"),
    [("clips", "frames"), extended("pages", "frames"), extended("clips", "video")],
)
def test_a_set_in_other_files_is_the_same_set(
    forms: str, video: str, losses: Callable[..., list[float]], request: pytest.FixtureRequest
) -> None:
    config = replace(CONFIG, data=replace(DATA, media=replace(MEDIA, video=video)))
    expected = None
    for form, settings in request.getfixturevalue(forms).items():
        [loaded] = load_sets([settings], limits=config.data)
        pairs = list(loaded.pairs)
        uris = [uri for pair in pairs for item in (pair.query, pair.target) for uri in item.uris]
        pixels, failed = load_pictures(uris, config.data.media)
        assert not failed
        found = [says(pair) for pair in pairs], [pixels[uri] for uri in uris]
        trained = losses(settings, config)
        if expected is None:
            expected = *found, trained
            assert len(pairs) == ROWS
            assert len({array.tobytes() for array in found[1]}) == len(uris)
            assert len(set(trained)) == STEPS
        assert found[0] == expected[0], form
        assert all(map(np.array_equal, found[1], expected[1])), form
        np.testing.assert_allclose(trained, expected[2], rtol=0, atol=1e-6, err_msg=form)
