"""Quantized vectors equal those of sentence-transformers; hits are ranked anew by better ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers.util import quantize_embeddings

from data.errors import DataError
from data.stores.quantized import Ranges, packed_bits, rescored


def unit_vectors(count, dimensions, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


CORPUS, QUERIES = unit_vectors(200, 20), unit_vectors(7, 20, seed=1)


@pytest.mark.parametrize("vectors", [CORPUS, QUERIES, CORPUS[:, :13]])
def test_codes_and_bits_are_those_of_sentence_transformers(vectors):
    corpus = CORPUS[:, : vectors.shape[1]]
    codes = Ranges.of(corpus).codes(vectors)
    theirs = quantize_embeddings(vectors, "int8", calibration_embeddings=corpus)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, theirs)
    bits = packed_bits(vectors)
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(bits, quantize_embeddings(vectors, "ubinary"))


def test_a_dimension_with_one_value_is_quantized_as_there():
    flat = CORPUS.copy()
    flat[:, 3] = 0.25
    ranges = Ranges.of(flat)
    theirs = quantize_embeddings(QUERIES, "int8", calibration_embeddings=flat)
    np.testing.assert_array_equal(ranges.codes(QUERIES), theirs)
    assert (ranges.vectors(ranges.codes(flat))[:, 3] == np.float32(0.25)).all()


NUMBERS = st.floats(-1, 1, width=32, allow_subnormal=False)


@given(arrays(np.float32, (5, 3), elements=NUMBERS))
def test_a_code_stands_for_a_number_at_most_half_a_step_away(vectors):
    ranges = Ranges.of(vectors)
    steps = (ranges.high - ranges.low) / 255
    back = ranges.vectors(ranges.codes(vectors))
    assert (np.abs(back - vectors) <= 0.501 * steps + 1e-6).all()


def test_ranges_are_the_same_after_their_file(tmp_path):
    ranges = Ranges.of(CORPUS)
    ranges.save(tmp_path / "ranges.json")
    again = Ranges.load(tmp_path / "ranges.json")
    np.testing.assert_array_equal(again.low, ranges.low)
    np.testing.assert_array_equal(again.high, ranges.high)
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"low": [0], "high": [1, 2]}', '{"low": [2], "high": [1]}']
)
def test_a_file_that_holds_no_ranges_is_refused(tmp_path, content):
    path = tmp_path / "ranges.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"ranges\.json"):
        Ranges.load(path)


def test_ranges_need_a_corpus_and_vectors_of_its_dimensions(tmp_path):
    with pytest.raises(DataError, match="two vectors or more"):
        Ranges.of(CORPUS[:1])
    with pytest.raises(DataError, match="finite"):
        Ranges.of(np.full((2, 3), np.nan, np.float32))
    with pytest.raises(DataError, match="20 dimensions"):
        Ranges.of(CORPUS).codes(CORPUS[:, :19])
    with pytest.raises(DataError, match="expected ranges"):
        Ranges.load(tmp_path / "missing.json")


def hits_by_bits(k):
    bits, asked = packed_bits(CORPUS), packed_bits(QUERIES)
    distances = np.bitwise_count(asked[:, None] ^ bits[None]).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def test_rescored_hits_are_the_exact_order_of_those_hits():
    hits = hits_by_bits(50)
    places, similarities = rescored(QUERIES, hits, CORPUS, 10)
    exact = QUERIES @ CORPUS.T
    for row, query in enumerate(exact):
        expected = sorted(hits[row], key=lambda place: (-query[place], place))[:10]
        assert places[row].tolist() == expected
        np.testing.assert_allclose(similarities[row], query[expected], atol=1e-6)


def test_all_hits_rescored_are_the_exact_search_and_by_codes_nearly_so():
    hits, exact = hits_by_bits(len(CORPUS)), QUERIES @ CORPUS.T
    best = exact.argmax(axis=1)[:, None]
    np.testing.assert_array_equal(rescored(QUERIES, hits, CORPUS, 1)[0], best)
    ranges = Ranges.of(CORPUS)
    places, similarities = rescored(QUERIES, hits, ranges.codes(CORPUS), 1, ranges=ranges)
    np.testing.assert_allclose(similarities, np.take_along_axis(exact, places, 1), atol=0.01)
    np.testing.assert_allclose(similarities, np.take_along_axis(exact, best, 1), atol=0.01)


def test_among_equal_hits_the_lower_place_comes_first():
    twins = np.tile(CORPUS[:1], (4, 1))
    places, _ = rescored(CORPUS[:1], np.array([[3, 1, 2]]), twins, 3)
    assert places.tolist() == [[1, 2, 3]]


def test_a_hit_outside_the_corpus_is_refused():
    with pytest.raises(DataError, match="from 0 to 199, found 5 to 200"):
        rescored(QUERIES[:1], np.array([[5, 200]]), CORPUS, 1)
