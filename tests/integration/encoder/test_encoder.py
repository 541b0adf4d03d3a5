"""An Encoder with engines of its own process gives the vectors of the jobs and of the export."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from sentence_transformers import SentenceTransformer

from data.errors import DataError, EngineLost
from data.types import Side
from encoder import Encoder
from tests.integration.encoder.asked import CONFIG, Asked, cases, pool_traces, pool_vectors
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Asked]:
    return cases(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Iterator[Encoder]:
    with Encoder.from_pretrained(tiny_folder, tiny_folder, CONFIG) as encoder:
        yield encoder


def test_vectors_are_those_of_the_jobs(encoder, asked, reward_pool) -> None:
    vectors = encoder.encode_document([case.given for case in asked.values()], trace="none")
    items = [case.item for case in asked.values()]
    expected = pool_vectors(reward_pool, items, [""] * len(items))
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(items), encoder.dimensions))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_traces_and_their_vectors_are_those_of_the_jobs(
    encoder, asked, rollout_pool, reward_pool
) -> None:
    items = [case.item for case in asked.values()]
    given = [case.given for case in asked.values()]
    for side, encode in ((Side.QUERY, encoder.encode_query), (Side.TARGET, encoder.encode)):
        vectors, traces = encode(given, return_traces=True)
        assert traces == pool_traces(rollout_pool, items, side)
        np.testing.assert_allclose(vectors, pool_vectors(reward_pool, items, traces), atol=1e-5)


def test_vectors_are_those_of_sentence_transformers(encoder, asked, tiny_folder) -> None:
    export = SentenceTransformer(str(tiny_folder), device="cpu")
    for name, case in asked.items():
        if case.exported is None:
            continue
        for prompt in ("", "find the star"):
            ours = encoder.encode(case.given, prompt=prompt, trace="none")
            theirs = export.encode(case.exported, prompt=prompt or None)
            np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=name)
    ours = encoder.encode(["red", "blue"], trace="none", truncate_dim=32)
    theirs = export.encode(["red", "blue"], truncate_dim=32, normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    similar = np.asarray(export.similarity(theirs, theirs[0]))
    np.testing.assert_allclose(encoder.similarity(ours, ours[0]), similar, atol=1e-3)


def test_calls_at_a_time_do_not_change_each_other(encoder, asked) -> None:
    alone = [encoder.encode_query(case.given) for case in asked.values()]
    later = [encoder.encode_later([case.given], side=Side.QUERY) for case in asked.values()]
    for vector, future in zip(alone, later, strict=True):
        encoded = future.result(PATIENCE_S)
        np.testing.assert_allclose(encoded.vectors[0], vector, atol=1e-5)
        assert encoded.prompt_tokens[0] > 20


def test_what_the_engine_cannot_read_is_named(encoder) -> None:
    with pytest.raises(DataError, match=r"input 1: could not be embedded: .*512"):
        encoder.encode(
            [{"text": "red", "trace": text} for text in ("", " star" * 600)], trace="given"
        )
    assert encoder.healthy()


def test_an_engine_that_dies_shows_and_reaches_the_caller(encoder) -> None:
    engines = [p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline())]
    assert len(engines) == 2
    for engine in engines:
        engine.kill()
    psutil.wait_procs(engines, timeout=PATIENCE_S)
    with pytest.raises(EngineLost):
        encoder.encode_later(["red"], side=Side.QUERY).result(PATIENCE_S)
    with pytest.raises(EngineLost):
        encoder.encode("red", trace="none")
    assert not encoder.healthy()
