"""`MtebEncoder` in `mteb.evaluate`, on tasks built here, against our own evaluation."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.cache import ResultCache
from mteb.types import PromptType
from PIL import Image as Pillow
from safetensors.torch import load_file

from configs.common import DataConfig, EngineConfig
from configs.reward import RewardConfig
from configs.schema import EncoderConfig
from data.errors import DataError
from data.types import Item, Kind
from encoder.mteb_encoder import MtebEncoder, model_meta, task_prompt
from evaluation.ranking import rank_queries
from evaluation.scores.set_result import score_set
from evaluation.sets import EvaluationQuery, EvaluationSet
from tests.integration.conftest import ENGINE, MEDIA

pytestmark = pytest.mark.extended
WORDS = ("red", "blue", "green", "star", "circle", "square", "what", "color", "yellow", "0", "7")
QUERIES, DOCUMENTS = 24, 40
CONFIG = EncoderConfig(data=DataConfig(media=MEDIA), reward=RewardConfig(engine=ENGINE))
METRICS = {
    "ndcg_at_10": "ndcg_linear@10",
    "hit_rate_at_1": "hit@1",
    "recall_at_10": "recall@10",
    "map_at_5": "map@5",
    "mrr_at_10": "mrr@10",
}
"""mteb's names and ours; map@5 is alike as no query here has more than 5 right targets."""


def metadata(name: str, category: str, modalities: Sequence[str], **more: Any) -> TaskMetadata:
    kind = "Retrieval" if modalities == ["text"] else "Any2AnyRetrieval"
    return TaskMetadata(
        **{
            "dataset": {"path": "built/here", "revision": "1"},
            "name": name,
            "description": "random items",
            "type": kind,
            "category": category,
            "modalities": list(modalities),
            "eval_langs": ["eng-Latn"],
            "main_score": "ndcg_at_10",
            **more,
        }
    )


class Built(AbsTaskRetrieval):
    """A task whose data need no network."""

    def set_data(
        self,
        queries: Dataset,
        corpus: Dataset,
        right: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.dataset = {
            "default": {
                "test": {
                    "queries": queries,
                    "corpus": corpus,
                    "relevant_docs": {query: dict(grades) for query, grades in right.items()},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class TextTask(Built):
    metadata = metadata("OwnTexts", "t2t", ["text"])


class PictureTask(Built):
    metadata = metadata("OwnPictures", "it2i", ["text", "image"])


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Iterator[MtebEncoder]:
    """Return an encoder whose engine belongs to this process."""
    with MtebEncoder.from_pretrained(tiny_folder, config=CONFIG, name="us/tiny") as model:
        yield model


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{place} " + " ".join(rng.choice(WORDS, 4)) for place in range(count)]


def pictures(folder: Path, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    paths = []
    for place in range(count):
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path = folder / f"{seed}-{place}.png"
        Pillow.fromarray(pixels).resize((96, 64)).save(path)
        paths.append(str(path))
    return paths


def grades() -> dict[str, dict[str, int]]:
    """Return one to three right documents of each query, some of them better than others."""
    rng = np.random.default_rng(7)
    return {
        f"q{query}": {
            f"d{document}": int(rng.integers(1, 4))
            for document in rng.choice(DOCUMENTS, 1 + query % 3, replace=False)
        }
        for query in range(QUERIES)
    }


def ours(
    model: MtebEncoder,
    queries: Sequence[tuple[Item, Any]],
    documents: Sequence[tuple[Item, Any]],
    right: Mapping[str, Mapping[str, int]],
) -> dict[str, float]:
    """Return our own metrics of the same task: items, and what the encoder is given of each."""
    data_set = EvaluationSet(
        name="own",
        queries=[
            EvaluationQuery(query_id=f"q{place}", item=item, right=right[f"q{place}"])
            for place, (item, _) in enumerate(queries)
        ],
        candidates={f"d{place}": item for place, (item, _) in enumerate(documents)},
        metric="ndcg_linear@10",
    )
    asked = model.model.encode_query([given for _, given in queries])
    found = model.model.encode_document([given for _, given in documents])
    orders = rank_queries(
        data_set,
        {f"q{place}": vector for place, vector in enumerate(asked)},
        {f"d{place}": vector for place, vector in enumerate(found)},
    )
    return score_set(
        data_set,
        wrong_first={name: order.wrong_first for name, order in orders.items()},
        benchmark_order={name: order.benchmark_order for name, order in orders.items()},
    ).scores()


def run(model: MtebEncoder, task: Built, folder: Path) -> dict[str, float]:
    """Return mteb's scores of a task from the file that it wrote."""
    mteb.evaluate(model, task, cache=ResultCache(folder), co2_tracker=False)
    [file] = folder.glob(f"results/us__tiny/*/{task.metadata.name}.json")
    assert file.parent.name == model.mteb_model_meta.revision
    [scores] = json.loads(file.read_text())["scores"]["test"]
    return scores


def agree(theirs: Mapping[str, float], own: Mapping[str, float]) -> None:
    for name, metric in METRICS.items():
        # mteb rounds most of them to five digits.
        exact = pytest.approx(own[metric], abs=1e-6)
        assert theirs[name] in (exact, pytest.approx(round(own[metric], 5), abs=1e-6)), name
    assert 0 < own["ndcg_linear@10"] < 1


def test_texts_have_our_own_scores(model: MtebEncoder, tmp_path: Path) -> None:
    asked, told, right = texts(QUERIES, 1), texts(DOCUMENTS, 2), grades()
    task = TextTask()
    task.set_data(
        Dataset.from_dict({"id": list(right), "text": asked}),
        Dataset.from_dict({"id": [f"d{place}" for place in range(DOCUMENTS)], "text": told}),
        right,
    )
    scores = run(model, task, tmp_path)
    items = [[(Item(text=text), text) for text in side] for side in (asked, told)]
    agree(scores, ours(model, *items, right))


def test_pictures_have_our_own_scores(model: MtebEncoder, tmp_path: Path) -> None:
    asked, told, right = pictures(tmp_path, QUERIES, 1), pictures(tmp_path, DOCUMENTS, 2), grades()
    words = texts(QUERIES, 3)
    shows = {"id": Value("string"), "image": Image()}
    task = PictureTask()
    task.set_data(
        Dataset.from_dict(
            {"id": list(right), "image": asked, "text": words},
            features=Features({**shows, "text": Value("string")}),
        ),
        Dataset.from_dict(
            {"id": [f"d{place}" for place in range(DOCUMENTS)], "image": told},
            features=Features(shows),
        ),
        right,
    )
    scores = run(model, task, tmp_path)
    queries = [
        (Item(text=text, kind=Kind.IMAGE, uris=(path,)), {"text": text, "image": path})
        for text, path in zip(words, asked, strict=True)
    ]
    documents = [(Item(text="", kind=Kind.IMAGE, uris=(path,)), {"image": path}) for path in told]
    agree(scores, ours(model, queries, documents, right))


def batches(**columns: Sequence[Any]) -> list[dict[str, Sequence[Any]]]:
    return [columns]


def encode(
    model: MtebEncoder,
    inputs: list[dict[str, Sequence[Any]]],
    task: TaskMetadata = TextTask.metadata,
    side: PromptType | None = PromptType.document,
    **options: Any,
) -> np.ndarray:
    return model.encode(
        inputs,
        task_metadata=task,
        hf_split="test",
        hf_subset="default",
        prompt_type=side,
        **options,
    )


class Decoder:
    """A video as torchcodec's `VideoDecoder` gives it."""

    def __init__(self, frames: np.ndarray, fps: float) -> None:
        self._frames = torch.from_numpy(frames)
        self.metadata = SimpleNamespace(num_frames=len(frames), average_fps=fps)

    def get_frames_at(self, indices: Sequence[int]) -> SimpleNamespace:
        return SimpleNamespace(data=self._frames[list(indices)])


def test_videos_are_read_with_their_times(model: MtebEncoder) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (10, 3, 64, 64), dtype=np.uint8)
    task = metadata("OwnVideos", "t2v", ["text", "video"])
    [vector] = encode(model, batches(video=[Decoder(frames, 5.0)]), task)
    shown = [Pillow.fromarray(np.moveaxis(frames[number], 0, -1)) for number in (0, 3, 6, 9)]
    expected = model.model.encode_document({"video": shown, "fps": 5 / 3})
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    [decoded] = encode(model, batches(video=[torch.from_numpy(frames[[0, 3, 6, 9]])]), task)
    slower = model.model.encode_document({"video": shown})
    np.testing.assert_allclose(decoded, slower, atol=1e-5)


def test_instructions_are_those_of_task_and_query(model: MtebEncoder) -> None:
    def told(instruction: str) -> np.ndarray:
        return model.model.encode_query({"text": "red star", "instruction": instruction})

    queries = batches(text=["red star"])
    prompted = metadata("OwnTexts", "t2t", ["text"], prompt="find it")
    own = batches(text=["red star see 7"], query=["red star"], instruction=["see 7"])
    cases = (
        (encode(model, queries, side=PromptType.query), ""),
        (encode(model, queries, prompted, PromptType.query), "find it"),
        (encode(model, queries, prompted, PromptType.document), ""),
        (encode(model, own, prompted, PromptType.query), "see 7"),
    )
    for vectors, instruction in cases:
        np.testing.assert_allclose(vectors[0], told(instruction), atol=1e-5)
    both = metadata("OwnTexts", "t2t", ["text"], prompt={"query": "find", "document": "read"})
    sides = (PromptType.query, PromptType.document, None)
    assert [task_prompt(both, side) for side in sides] == ["find", "read", ""]
    assert task_prompt(prompted, None) == "find it"


def test_empty_inputs_are_like_nothing(model: MtebEncoder) -> None:
    vectors = encode(model, [*batches(text=["red", " "]), *batches(text=["blue"])])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1], abs=1e-5)
    assert encode(model, []).shape == (0, model.model.dimensions)


def test_pictures_of_documents_are_pages(model: MtebEncoder, tmp_path: Path) -> None:
    [path] = pictures(tmp_path, 1, 4)
    task = metadata("OwnPages", "t2i", ["text", "image"], type="DocumentUnderstanding")
    [vector] = encode(model, batches(image=[Pillow.open(path)]), task)
    np.testing.assert_allclose(vector, model.model.encode_document({"page": path}), atol=1e-5)


def test_what_no_model_here_reads_is_refused(model: MtebEncoder) -> None:
    with pytest.raises(DataError, match="expected a task of texts, pictures or videos, found aud"):
        encode(model, batches(audio=[{}]))


def test_another_precision_is_refused(model: MtebEncoder) -> None:
    with pytest.raises(DataError, match="precision: expected float32, found 'int8'"):
        encode(model, batches(text=["red"]), precision="int8")


def test_what_the_files_say_follows_from_the_folder(tiny_folder: Path) -> None:
    config = replace(CONFIG, reward=replace(CONFIG.reward, model=str(tiny_folder)))
    meta = model_meta(config)
    weights = load_file(tiny_folder / "model.safetensors").values()
    state = sum(tensor.numel() for tensor in weights)
    assert (meta.n_parameters, meta.max_tokens) == (state, ENGINE.max_model_len)
    assert meta.name == f"embed-rl/{tiny_folder.name}"
    assert meta.modalities == ["text", "image", "video"]
    assert meta == model_meta(config)
    others = [
        model_meta(replace(config, reward=replace(config.reward, engine=EngineConfig()))),
        model_meta(replace(config, data=replace(config.data, item_tokens=9))),
        model_meta(config, tiny_folder),
    ]
    assert len({meta.revision, *(other.revision for other in others)}) == 4
    assert others[-1].experiment_kwargs == {"reasoner": tiny_folder.name}
    short = model_meta(config, truncate_dim=32)
    assert (short.embed_dim, short.experiment_kwargs) == (32, {"truncate_dim": 32})
