"""Clips whose motion only the order of their frames shows, as videos and as separate frames.

Two Embedders are trained from the same random weights on the same batches; `data.media.video` alone
differs. A query's target is one of 12 texts, a colour and a direction: an Embedder that sees all
but the order of the frames finds it in half of the cases.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from configs.schema import EmbedderConfig
from data.demo.model import write_tiny_model
from data.embed_inputs import embed_content
from data.media.frames import frames_only
from data.media.pictures import load_pictures
from data.model.chat import load_encoder
from data.sets.load_sets import load_sets
from data.types import pictures_in
from evaluation.metrics import Estimate, estimate
from tests.bench.parts.moving_shapes import DIRECTIONS, corpus, write_clips
from tests.bench.record import RESULTS, record

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "tests/bench/data/motion.yaml"
TRAIN_TRACKS, HELD_OUT_TRACKS = 400, 160
VISION_SHARE = 0.55
"""Most vision tokens that a video may have, of those of its frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a set's clips cost in one form, and how an Embedder trained on that form ranks them."""

    vision_tokens: list[int]
    """Of each clip."""
    tokens: list[int]
    """All that the Embedder reads of each clip: texts and times too."""
    hit_at_1: Estimate
    chance: float


@pytest.mark.timeout(3600)
def test_motion_as_videos_and_as_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where relative paths of the settings start
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    home = tmp_path / "runs/motion"
    write_clips(home / "clips", seed=0, train=TRAIN_TRACKS, heldout=HELD_OUT_TRACKS)
    write_tiny_model(home / "model", corpus(), seed=0)
    videos, frames = measure("video"), measure("frames")
    lines = [f"hit@1 without the order of frames: {1 / len(DIRECTIONS)}"]
    for name, video in videos.items():
        against = frames[name]
        for what, values, other_values, target in (
            ("vision tokens", video.vision_tokens, against.vision_tokens, VISION_SHARE),
            ("all tokens", video.tokens, against.tokens, 1.0),
        ):
            record(f"clip {name}, {what}", values, other_values, target=target, unit="tokens")
        above = video.hit_at_1.low > 1 / len(DIRECTIONS)
        level = video.hit_at_1.mean >= against.hit_at_1.low
        lines += [
            figures_line(name, "video", video),
            figures_line(name, "frames", against),
            f"{name:8}video above {1 / len(DIRECTIONS)}: {met(above)}; "
            f"not below the interval of frames: {met(level)}",
        ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    path = RESULTS.with_name("motion.json")
    both = {"video": videos, "frames": frames}
    path.write_text(
        json.dumps(
            {
                form: {name: asdict(set_figures) for name, set_figures in sets.items()}
                for form, sets in both.items()
            }
        )
    )
    with capsys.disabled():
        print("", *lines, path, sep="\n")


def measure(form: str) -> dict[str, Figures]:
    """Train an Embedder on clips in that form; return the figures of each held-out set."""
    settings = [f"run.dir=runs/motion/{form}", f"data.media.video={form}"]
    job = [sys.executable, "-m", "cluster.jobs.embedder", str(CONFIG), *settings]
    subprocess.run(job, check=True)
    reached = json.loads(Path("runs/motion", form, "stage.json").read_text())
    config = load(EmbedderConfig, CONFIG, settings)
    media = config.data.media
    encoder = load_encoder(config.model, media)
    vision = (encoder.image_token_id, encoder.video_token_id)
    figures = {}
    for heldout in load_sets(config.data.eval, limits=config.data):
        contents = [
            embed_content(
                pair.query, "", max_frames=media.max_frames, item_tokens=config.data.item_tokens
            )
            for pair in heldout.pairs
        ]
        shown = {picture for content in contents for picture in pictures_in(content)}
        uris = {picture.uri for picture in shown}
        pictures, failed = load_pictures(uris, media, frames=frames_only(shown))
        assert not failed
        prompts = [encoder.embed(content, pictures).expanded for content in contents]
        hits = round(reached[f"eval/hit_at_1_by_set/{heldout.name}"] * len(prompts))
        figures[heldout.name] = Figures(
            vision_tokens=[int(np.isin(prompt, vision).sum()) for prompt in prompts],
            tokens=[len(prompt) for prompt in prompts],
            hit_at_1=estimate([1.0] * hits + [0.0] * (len(prompts) - hits), resamples=1000, seed=0),
            chance=1 / len({pair.target.key() for pair in heldout.pairs}),
        )
    return figures


def figures_line(name: str, form: str, figures: Figures) -> str:
    """Return a form's figures on one set as a line of a table."""
    hit = figures.hit_at_1
    return (
        f"{name:8}{form:8}{len(figures.tokens)} clips {np.mean(figures.vision_tokens):6.1f} vision "
        f"tokens {np.mean(figures.tokens):6.1f} tokens  hit@1 {hit.mean:.3f} "
        f"[{hit.low:.3f}, {hit.high:.3f}]  chance {figures.chance:.3f}"
    )


def met(is_met: bool) -> str:
    """Return how the table of benchmarks says it."""
    return "met" if is_met else "NOT MET"
