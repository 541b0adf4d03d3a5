"""Supervised training of a Reasoner on written traces, or of sight on captions.

Example: python -m cluster.jobs.warm_start configs/demo/warm_start.yaml learner.ranks=1
"""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import count

import numpy as np

from cluster.jobs.command import run_job
from cluster.learner_group import LearnerGroup, learner_role
from cluster.picture_retry import read_patiently
from cluster.pictures import Decoder, SharedPictures
from cluster.placement import Role
from cluster.run.checkpoints import Checkpoints
from cluster.run.run_folder import RunFolder, settled
from cluster.run.stage_loop import FeedState, train_stage
from cluster.run.tracking import Tracker
from cluster.session import session
from configs.common import DataSetConfig
from configs.schema import WarmStartConfig
from data.errors import DataError
from data.media.frames import frames_only
from data.model.chat import TextEncoder, load_encoder
from data.model.model_folder import check_reasoner
from data.sets.feed import supervised_rows
from data.sets.fingerprints import model_fingerprint, rows_fingerprint, texts_fingerprint
from data.sets.load_sets import load_sets, no_traces
from data.stores.traced_sets import with_stored_traces
from data.types import Content, TrainSample, pictures_in

SupervisedRow = tuple[str, Content, str]
"""Key, prompt, response."""
SupervisedBatch = tuple[list[TrainSample], SharedPictures]


def roles(config: WarmStartConfig) -> list[Role]:
    """Return what the job asks Ray for."""
    return [learner_role(config.learner)]


def main(config: WarmStartConfig) -> int:
    """Train, stop on what the stage must reach, export; go on from the last checkpoint."""
    folder = RunFolder(config, job="warm_start")
    if folder.finished:
        print(folder.finished_line)
        return 0
    config = settled(config)
    rows = {split: load_rows(config, split) for split in ("train", "eval")}
    inputs = {
        "data.train": fingerprint(config.data.train, rows["train"]),
        "data.eval": fingerprint(config.data.eval, rows["eval"]),
        "model": model_fingerprint(config.model),
    }
    if config.store:
        in_use = (response for _, _, response in [*rows["train"], *rows["eval"]])
        inputs["store"] = {"traces in use": texts_fingerprint(in_use)}
    Checkpoints(folder).check_inputs(inputs)
    encoder = load_encoder(config.model, config.data.media)
    namespace, nodes_timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
    connected = session(roles(config), namespace=namespace, nodes_timeout_s=nodes_timeout_s)
    with (
        connected,
        Tracker(folder.path, job="warm_start", given=config.run.dir),
        closing(Decoder()) as decoder,
    ):
        group = LearnerGroup(config.learner)
        group.build_supervised(
            model=config.model,
            media=config.data.media,
            total_steps=config.steps,
            seed=config.run.seed,
        )
        held_out = encode(rows["eval"], encoder, config, decoder)
        facts = train_stage(
            group,
            batches=lambda state: supervised_batches(
                rows["train"], encoder, config, decoder, state
            ),
            train=lambda batch: group.train_supervised(*batch),
            measure=lambda: group.evaluate_supervised(*held_out),
            steps=config.steps,
            checkpoint_every=config.checkpoint_every,
            evaluation=config.evaluation,
            stop=config.stop,
            folder=folder,
        )
        group.close()
    folder.finish(**facts)
    return 0


def fingerprint(sets: list[DataSetConfig], rows: list[SupervisedRow]) -> dict[str, str]:
    """Return what the rows are; see `data.sets.fingerprints`."""
    uris = (picture.uri for _, content, _ in rows for picture in pictures_in(content))
    return rows_fingerprint(sets, (key for key, _, _ in rows), uris)


def load_rows(config: WarmStartConfig, split: str) -> list[SupervisedRow]:
    """Return all (key, prompt, response) of the data sets, each as often as its weight says."""
    sets = config.data.train if split == "train" else config.data.eval
    rng = np.random.default_rng(config.run.seed)
    rows: list[SupervisedRow] = []
    all_loaded = with_stored_traces(load_sets(sets, limits=config.data), sets, config)
    check_reasoner(config.model, all_loaded)
    for settings, loaded in zip(sets, all_loaded, strict=True):
        set_rows = list(
            supervised_rows(loaded, data=config.data, caption=settings.format == "caption")
        )
        whole, part = divmod(settings.weight if split == "train" else 1.0, 1.0)
        drawn_indices = rng.permutation(len(set_rows))[: round(part * len(set_rows))]
        rows += set_rows * int(whole) + [set_rows[int(i)] for i in drawn_indices]
    if not rows and (split == "train" or config.evaluation.every):
        raise DataError(no_traces(split, (settings.name for settings in sets)))
    if split == "eval":
        order = rng.permutation(len(rows))
        rows = [rows[int(i)] for i in order[: config.evaluation.samples]]
    return rows


def supervised_batches(
    rows: list[SupervisedRow],
    encoder: TextEncoder,
    config: WarmStartConfig,
    decoder: Decoder,
    state: FeedState | None = None,
) -> Iterator[tuple[SupervisedBatch, FeedState]]:
    """Yield shuffled batches without end, epoch after epoch, from a state on.

    With each comes the state after it: how many batches have been drawn.
    """
    size = min(config.batch, len(rows))
    for drawn in count(state["batches"] if state else 0):
        epoch, index = divmod(drawn, len(rows) // size)
        order = np.random.default_rng([config.run.seed, epoch]).permutation(len(rows))
        chosen = [rows[int(i)] for i in order[index * size : (index + 1) * size]]
        yield encode(chosen, encoder, config, decoder), {"batches": drawn + 1}


def encode(
    rows: list[SupervisedRow], encoder: TextEncoder, config: WarmStartConfig, decoder: Decoder
) -> SupervisedBatch:
    """Return the rows as training samples, and their decoded pictures.

    A row whose picture cannot be decoded is left out with a message.
    """
    shown = [picture for _, content, _ in rows for picture in pictures_in(content)]
    uris = {picture.uri for picture in shown}
    share = partial(decoder.share, limits=config.data.media, frames=frames_only(shown))
    pictures, failed = read_patiently(uris, share, time.sleep)
    samples = []
    for key, content, response in rows:
        lost = [picture.uri for picture in pictures_in(content) if picture.uri in failed]
        if lost:
            print(f"set aside: {key}: {failed[lost[0]]}", file=sys.stderr)
            continue
        samples.append(
            TrainSample(
                key=key,
                content=content,
                prompt_ids=np.array(encoder.prompt_ids(content, pictures.sizes)),
                response_ids=np.array(encoder.response_ids(response)),
            )
        )
    return samples, pictures


if __name__ == "__main__":
    sys.exit(run_job(WarmStartConfig, main, roles=roles))
