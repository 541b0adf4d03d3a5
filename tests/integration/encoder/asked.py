"""Inputs of all kinds, and the vectors that the jobs' pools give for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.pools.reward import RewardPool
from cluster.pools.rollout import RolloutPool
from configs.common import DataConfig, PoolConfig, RolloutConfig
from configs.reward import RewardConfig
from configs.schema import EncoderConfig
from data.embed_inputs import embed_content
from data.media.pictures import load_pictures
from data.prompts import item_content
from data.types import EmbedRequest, Item, Kind, Side, Trajectory
from tests.inputs.media_files import write_lossless_video, write_pdf
from tests.integration.conftest import ENGINE, MEDIA, SAMPLING
from tests.integration.reference import request
from tests.shared_pictures import share_pictures

POOL = PoolConfig(actors=1, cpus=0.0)
DATA = DataConfig(media=MEDIA, templates="brief")
CONFIG = EncoderConfig(
    data=DATA,
    rollout=RolloutConfig(pool=POOL, engine=ENGINE, sampling=SAMPLING),
    reward=RewardConfig(pool=POOL, engine=ENGINE),
)


def frame(number: int) -> np.ndarray:
    """Return a smooth frame, uint8 [80, 60, 3]: codes that resize agree on such pixels."""
    rows, columns = np.mgrid[:80, :60] * 3
    return np.stack([rows, columns, np.full_like(rows, 50 * number)], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Asked:
    """What an Encoder is asked, what an item of a job would be, and what an export is asked."""

    given: Any
    item: Item
    exported: Any = None
    """None: sentence-transformers knows no such input."""


def cases(folder: Path) -> dict[str, Asked]:
    """Return inputs by name; their files are written into ``folder``."""
    noise = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture, path = Image.fromarray(noise), folder / "a.png"
    picture.save(path)
    frames = [frame(number) for number in range(4)]
    video = write_lossless_video(folder / "a.mp4", frames)
    pdf = write_pdf(folder / "a.pdf", 2)
    image = Item(text="", kind=Kind.IMAGE, uris=(str(path),))
    clip = Item(
        text="red",
        kind=Kind.VIDEO,
        uris=tuple(f"{video}#frame={number}" for number in range(4)),
        times=(0.0, 0.5, 1.0, 1.5),
    )
    stack = {"array": np.stack(frames), "video_metadata": {"fps": 2.0, "total_num_frames": 4}}
    exported = {"text": "red", "video": stack}
    page = Item(text="", kind=Kind.PAGE, uris=(f"{pdf}#page=2",))
    return {
        "text": Asked("red star", Item(text="red star"), "red star"),
        "path": Asked(path, image, picture),
        "picture": Asked(picture, image, picture),
        "bytes": Asked({"image": path.read_bytes()}, image, picture),
        "both": Asked(
            {"image": str(path), "text": "red"},
            Item(text="red", kind=Kind.IMAGE, uris=(str(path),)),
            {"image": picture, "text": "red"},
        ),
        "video": Asked({"video": video, "text": "red"}, clip, exported),
        "frames": Asked(
            {"video": [Image.fromarray(pixels) for pixels in frames], "fps": 2, "text": "red"},
            clip,
            exported,
        ),
        "page": Asked(Path(f"{pdf}#page=2"), page),
    }


def pool_traces(pool: RolloutPool, items: Sequence[Item], side: Side) -> list[str]:
    """Return the greedy traces that a pool of the jobs writes."""
    asked = [
        item_content(
            item,
            side,
            templates=DATA.templates,
            max_frames=MEDIA.max_frames,
            item_tokens=DATA.item_tokens,
        )
        for item in items
    ]
    requests = [
        request(content, pair_id=str(place), greedy=True) for place, content in enumerate(asked)
    ]
    traces, _ = pool.generate(requests, share_pictures(_pixels(items)))
    assert all(isinstance(trace, Trajectory) for trace in traces)
    return [trace.text for trace in traces]


def pool_vectors(pool: RewardPool, items: Sequence[Item], traces: Sequence[str]) -> np.ndarray:
    """Return the vectors that a pool of the jobs gives, float32 [N, D]."""
    requests = [
        EmbedRequest(
            key=str(place),
            content=embed_content(
                item, trace, max_frames=MEDIA.max_frames, item_tokens=DATA.item_tokens
            ),
        )
        for place, (item, trace) in enumerate(zip(items, traces, strict=True))
    ]
    vectors, failed = pool.embed(requests, share_pictures(_pixels(items)))
    assert failed == {}
    return np.stack(list(vectors.values()))


def _pixels(items: Sequence[Item]) -> Mapping[str, np.ndarray]:
    pixels, failed = load_pictures({uri for item in items for uri in item.uris}, MEDIA)
    assert failed == {}
    return pixels
