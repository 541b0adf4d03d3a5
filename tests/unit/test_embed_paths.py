"""Contrastive training, reward and evaluation give the Embedder the same tokens and pixels.

What vLLM runs is stood in for by the model's own processor: vLLM expands and cuts pictures with it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.jobs.embedder import contrastive_batches, held_out_hit_at_1
from cluster.rl.scoring import Scorer
from configs.common import DataConfig, MediaConfig, RunConfig
from configs.reward import RewardConfig
from configs.schema import EmbedderConfig
from data.engine.arguments import VIDEO_AS_IT_IS
from data.media.pictures import load_pictures
from data.model.chat import EMB_TOKEN, ChatEncoder
from data.prompts import reasoner_content, uris_shown
from data.relevance import Relevance
from data.sets.feed import PairFeed, supervised_rows
from data.types import (
    EmbedRequest,
    Evidence,
    GroupKey,
    Item,
    ItemText,
    Kind,
    Pair,
    Side,
    TrainSample,
    TrajectoryKey,
    Video,
    visuals_in,
)
from evaluation.runner import Settings, evaluate
from evaluation.sets import sets_of_pairs
from learner.rank.batching import VisionTokens, collate, embed_row, process_pictures, train_row
from tests.builders import TRACES, loaded_set, write_picture
from tests.shared_pictures import DecoderHere
from tests.tiny_model import tiny_processor

MEDIA = MediaConfig(
    image_min_pixels=32 * 32,
    image_max_pixels=128 * 128,
    page_min_pixels=32 * 32,
    page_max_pixels=192 * 192,
    frame_min_pixels=32 * 32,
    frame_max_pixels=64 * 64,
    crop_min_pixels=32 * 32,
    crop_max_pixels=96 * 96,
    max_frames=4,
)
DATA = DataConfig(templates="brief", media=MEDIA)
ONE_VIDEO = "one video"
NAMES = (*Kind, ONE_VIDEO)
"""Kinds of query; a video is frames, or one."""
CASES = [(name, evidence) for name in NAMES for evidence in Evidence]
EVERY_CASE = pytest.mark.parametrize(("kind", "evidence"), CASES, ids=lambda case: str(case))
TRACE = {**TRACES, ONE_VIDEO: TRACES[Kind.VIDEO]}


@pytest.fixture(scope="module")
def encoder():
    return ChatEncoder(tiny_processor(), MEDIA)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a pair by kind of query, both sides with a trace; the frames are more than shown."""
    root = tmp_path_factory.mktemp("pictures")
    uris = {
        Kind.TEXT: (),
        Kind.IMAGE: (str(write_picture(root / "image.png", 210, 90)),),
        Kind.PAGE: (str(write_picture(root / "page.png", 150, 220)),),
        Kind.VIDEO: tuple(str(write_picture(root / f"{i}.png", 80 + i, 60)) for i in range(5)),
    }
    uris[ONE_VIDEO] = uris[Kind.VIDEO][:4]
    times = {ONE_VIDEO: (0.0, 0.5, 2.0, 9.75)}
    return {
        kind: Pair(
            pair_id=str(kind),
            source="set",
            query=Item(
                text=f"what color is the star {kind}?",
                kind=Kind.VIDEO if kind is ONE_VIDEO else kind,
                uris=uris[kind],
                times=times.get(kind, ()),
            ),
            target=Item(text="a red star"),
            query_trace=TRACE[kind],
            target_trace=TRACES[Kind.TEXT],
        )
        for kind in NAMES
    }


def trained_on(pair, evidence, data=DATA):
    """Return the contrastive row, and its pictures, as the job `embedder` makes them."""
    config = EmbedderConfig(
        run=RunConfig(dir="run"),
        model="model",
        data=data,
        batch=1,
        sub_batches=1,
        trace_dropout=float(evidence is Evidence.NONE),
        evidence_dropout=float(evidence is Evidence.TEXT),
    )
    loaded = loaded_set(name="set", pairs=(pair,), bad_rows=())
    feed = PairFeed([loaded], {"set": 1.0}, batch=1, seed=0)
    batches = contrastive_batches(feed, config, Relevance([pair]), DecoderHere())
    (rows, pictures), _ = next(batches)
    return rows[0], pictures.refs[0]


def rewarded(pair, evidence, item_tokens=DATA.item_tokens):
    """Return the Embedder's requests of both sides, and the pictures, as the job `rl` does."""
    reward = RewardConfig(model="model", evidence=str(evidence))
    scorer = Scorer(
        reward,
        embedder=None,
        judge=None,
        max_frames=MEDIA.max_frames,
        item_tokens=item_tokens,
        relevance=Relevance([pair]),
    )
    requests = {
        side: scorer.request(
            TrajectoryKey(GroupKey(0, pair.pair_id, side), 0), pair, pair.trace(side)
        )
        for side in Side
    }
    pictures, failed = load_pictures(uris_shown((pair.query, pair.target), MEDIA.max_frames), MEDIA)
    assert not failed
    return requests, pictures


def encoded(pair, item_tokens=DATA.item_tokens, prompts=None):
    """Return all contents that the evaluation embeds, over its three ways of embedding."""
    asked = []

    def reason(asked_for):
        if prompts is not None:
            prompts.extend(content for _, content in asked_for)
        first = pair.query.text
        return {
            subject.key: pair.trace(Side.QUERY if content[-1] == first else Side.TARGET)
            for subject, content in asked_for
        }

    def embed(requests):
        asked.extend(request.content for request in requests)
        return {request.key: np.ones(2) for request in requests}

    settings = Settings(
        templates="brief",
        max_frames=MEDIA.max_frames,
        item_tokens=item_tokens,
        resamples=2,
        seed=0,
    )
    evaluate(sets_of_pairs([pair]), reasoners={"reasoner": reason}, embed=embed, settings=settings)
    return asked


def learner_batch(row, pictures, encoder):
    """Return what the learner's forward takes, and the pixels of every picture that it shows."""
    start, end, pad = encoder.tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]
    )
    tokens = VisionTokens(
        image=encoder.image_token_id,
        video=encoder.video_token_id,
        start=start,
        end=end,
        pad=pad,
        merge=encoder.merge,
        channels=3 * 2 * 16 * 16,
    )
    patches = process_pictures(row.pictures, pictures, encoder)
    batch = collate([row], patches, tokens)
    values = batch.vision.values.split(batch.vision.grid.prod(-1).tolist())
    for name, places in (
        ("pixel_values", batch.vision.shown),
        ("pixel_values_videos", batch.vision.shown_videos),
    ):
        if len(places):
            batch.inputs[name] = torch.cat([values[index] for index in places])
    return batch.inputs


def engine_inputs(prompt, text, encoder):
    """Return what the model's own processor makes of the prompt that an engine is given."""
    assert encoder.tokenizer.encode(text, add_special_tokens=False) == prompt.ids
    metadata = [clip.metadata() for clip in prompt.clips]
    videos = {
        "videos": [clip.frames for clip in prompt.clips],
        "video_metadata": [
            {name: value for name, value in one.items() if name != "do_sample_frames"}
            for one in metadata
        ],
        **VIDEO_AS_IT_IS,
    }
    made = encoder.processor(
        text=[text],
        images=prompt.images or None,
        return_tensors="pt",
        **(videos if prompt.clips else {}),
    )
    assert made["input_ids"][0].tolist() == prompt.expanded
    return made


def assert_same(inputs, made, num_visuals):
    length = made["input_ids"].shape[1]
    assert inputs["input_ids"][0, :length].tolist() == made["input_ids"][0].tolist()
    assert inputs["attention_mask"][0].sum() == length
    if num_visuals:
        names = made.keys() - {"input_ids", "attention_mask", "mm_token_type_ids"}
        assert names
        for name in names:
            assert torch.equal(inputs[name], made[name]), name
        types = inputs["mm_token_type_ids"][0, :length]
        assert types.tolist() == made["mm_token_type_ids"][0].tolist()


@EVERY_CASE
def test_training_and_reward_feed_the_same_tokens_and_pixels(pairs, encoder, kind, evidence):
    row, trained_pictures = trained_on(pairs[kind], evidence)
    requests, pictures = rewarded(pairs[kind], evidence)
    assert trained_pictures.keys() == pictures.keys()
    for side, content in ((Side.QUERY, row.query), (Side.TARGET, row.target)):
        request = requests[side]
        assert request.content == content
        prompt = encoder.embed(request.content, pictures)
        made = engine_inputs(prompt, encoder.text(request.content) + EMB_TOKEN, encoder)
        trained = embed_row(EmbedRequest(key="row", content=content), trained_pictures, encoder)
        inputs = learner_batch(trained, trained_pictures, encoder)
        assert_same(inputs, made, len(prompt.images) + len(prompt.clips))


@pytest.mark.parametrize("kind", NAMES)
def test_evaluation_embeds_what_training_and_reward_do(pairs, kind):
    asked = encoded(pairs[kind])
    assert len(asked) == len(set(asked))
    rows = [trained_on(pairs[kind], evidence)[0] for evidence in Evidence]
    assert set(asked) == {content for row in rows for content in (row.query, row.target)}


@EVERY_CASE
def test_each_way_shows_the_pictures_that_it_says(pairs, kind, evidence):
    row, _ = trained_on(pairs[kind], evidence)
    shown = {Kind.TEXT: 0, Kind.VIDEO: 4}.get(kind, 1)
    pointed = {Kind.TEXT: 0, Kind.VIDEO: 2, ONE_VIDEO: 2}.get(kind, 1)
    visuals = visuals_in(row.query)
    assert len(visuals) == shown + (pointed if evidence is Evidence.FULL else 0)
    assert any(isinstance(visual, Video) for visual in visuals) == (kind is ONE_VIDEO)
    text = "".join(part for part in row.query if isinstance(part, str))
    assert (TRACE[kind] in text) == (evidence is not Evidence.NONE)


@pytest.mark.parametrize("kind", NAMES)
def test_the_reasoner_trains_on_the_prompt_that_its_engine_ran(pairs, encoder, kind):
    content = reasoner_content(
        pairs[kind], Side.QUERY, templates="full", item_tokens=0, max_frames=4
    )
    _, pictures = rewarded(pairs[kind], Evidence.FULL)
    prompt = encoder.encode(content, pictures)
    made = engine_inputs(prompt, encoder.text(content), encoder)
    sample = TrainSample(
        key="sample",
        content=content,
        prompt_ids=np.array(prompt.expanded),
        response_ids=np.array(encoder.response_ids(TRACE[kind])),
    )
    inputs = learner_batch(train_row(sample), pictures, encoder)
    inputs["attention_mask"][:, len(prompt.expanded) :] = 0  # the response
    assert_same(inputs, made, len(prompt.images) + len(prompt.clips))


class Group:
    """Stands in for the learner group: keeps what it is asked to embed."""

    def __init__(self):
        self.asked = []

    def embed(self, contents, pictures):
        self.asked += contents
        return np.ones((len(contents), 2))


@pytest.mark.parametrize("kind", Kind)
def test_every_reader_of_an_item_cuts_its_text_alike(pairs, kind):
    pair = pairs[kind]
    data = replace(DATA, item_tokens=2)
    row, pictures = trained_on(pair, Evidence.FULL, data)
    requests, _ = rewarded(pair, Evidence.FULL, item_tokens=2)
    prompts, group = [], Group()
    config = EmbedderConfig(run=RunConfig(dir="run"), model="model", data=data)
    held_out_hit_at_1(group, [pair], pictures, config, relevance=Relevance([pair]))
    loaded = loaded_set(name="set", pairs=(pair,), bad_rows=())
    contents = [
        *(row.query, row.target),
        *(request.content for request in requests.values()),
        *encoded(pair, item_tokens=2, prompts=prompts),
        *prompts,
        *group.asked,
        *(content for _, content, _ in supervised_rows(loaded, data=data, caption=False)),
        *(content for _, content, _ in supervised_rows(loaded, data=data, caption=True)),
    ]
    assert prompts
    assert group.asked
    for content in contents:
        (text,) = (part for part in content if isinstance(part, ItemText))
        assert text.most == 2
        assert text[text.own] in (pair.query.text, pair.target.text)
