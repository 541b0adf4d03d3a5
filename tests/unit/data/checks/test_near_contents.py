"""Nearly equal pictures and texts are found in buckets, among many and in crowds."""

import numpy as np
import pytest

from data.checks.near_contents import BEFORE, ENOUGH, FIRST, near_pictures, near_texts
from data.media.perceptual_hash import HASH_BYTES, perceptual_hash
from tests.inputs.drawings import as_jpeg, draw

SENTENCE = "A man in a red jacket rides an old bicycle along the river while two dogs follow him."


def random_hashes(count, seed=0):
    """Return hashes of grey pictures, none like another: uint8 [N, HASH_BYTES]."""
    hashes = np.random.default_rng(seed).integers(0, 256, (count, HASH_BYTES), np.uint8)
    hashes[:, 40:] = 128
    hashes[:, 7] &= 0xFE  # the coarse part has 63 bits
    return hashes


def flipped(row, bits):
    """Return a hash with these bits of its coarse part changed."""
    changed = row.copy()
    for bit in bits:
        changed[bit // 8] ^= 128 >> (bit % 8)
    return changed


def stills(hashes):
    """Return the near duplicates of pictures that are all different."""
    earlier, later, _ = near_pictures(np.arange(len(hashes))[:, None], hashes)
    return set(zip(earlier.tolist(), later.tolist(), strict=True))


def test_hashes_that_differ_in_seven_bits_anywhere_are_found_among_many():
    hashes, random = random_hashes(20_000), np.random.default_rng(1)
    copies = [flipped(row, random.choice(63, 7, replace=False)) for row in hashes[:500]]
    # Spread over the words as evenly as seven bits can be: one differs in one bit only.
    copies.append(flipped(hashes[500], [0, 1, 16, 17, 32, 33, 48]))
    assert stills(np.vstack([hashes, copies])) == {(n, 20_000 + n) for n in range(501)}
    copies = [flipped(row, random.choice(63, 8, replace=False)) for row in hashes[:500]]
    assert stills(np.vstack([hashes, copies])) == set()


def test_in_a_crowd_all_are_compared_with_the_first_and_with_few_others():
    crowd = np.repeat(random_hashes(1), 2000, axis=0)
    pairs = stills(crowd)
    assert {(0, later) for later in range(1, 2000)} <= pairs
    assert len(pairs) <= 2000 * (ENOUGH + FIRST + BEFORE)


def test_all_three_frames_of_a_video_must_look_alike():
    frames = [np.asarray(draw(seed)) for seed in range(4)]
    copies = [np.asarray(as_jpeg(draw(seed))) for seed in range(3)]
    black = np.zeros_like(frames[0])
    every = [*frames, *copies, black, black + 1]
    hashes = np.zeros((len(every), HASH_BYTES), np.uint8)
    for row, pixels in zip(hashes, every, strict=True):
        row[: len(digest)] = np.frombuffer(digest := perceptual_hash(pixels), np.uint8)
    a, b, c, d, a2, b2, c2, dark, dusk = range(9)
    videos = [
        [a, b, c],
        [a2, b2, c2],  # like the first
        [a2, b2, d],
        [dark, b, c],
        [dark, b2, c2],  # like the one before
        [dusk, b2, c2],  # black of another shade is not equal
        [dark, dark, dark],
        [dusk, dusk, dusk],
    ]
    earlier, later, similarities = near_pictures(np.array(videos), hashes)
    assert list(zip(earlier, later, strict=True)) == [(0, 1), (3, 4)]
    assert ((similarities > 0.8) & (similarities <= 1)).all()


@pytest.mark.parametrize(
    "edited",
    [
        SENTENCE.upper(),
        SENTENCE.replace(" ", "  ") + "\n",
        SENTENCE.replace("bicycle", "bicycles"),
        SENTENCE.replace("old", "new"),
        SENTENCE[:-1],
        f"So {SENTENCE}",
    ],
)
def test_a_text_with_a_small_edit_is_near(edited):
    texts = [SENTENCE, "a red star", "", edited]
    earlier, later, similarities = near_texts(texts, [np.arange(4)])
    assert list(zip(earlier, later, strict=True)) == [(0, 3)]
    assert 0.8 <= similarities[0] <= 1


def test_a_short_text_is_near_where_it_differs_by_a_full_stop():
    assert len(near_texts(["a red star", "a red star."], [])[0]) == 1


def test_different_texts_are_not_near():
    texts = [
        SENTENCE,
        SENTENCE.replace("A man in a red jacket", "A woman in a long blue coat"),
        "a red star",
        "a blue star",
        "yes",
        "no",
        "",
        " ",
        "What was the revenue of the company in the second quarter of the year 2014, in dollars?",
        "What was the revenue of the company in the second quarter of the year 2015, in dollars?",
    ]
    earlier, later, _ = near_texts(texts, [np.arange(len(texts))])
    assert [(texts[a], texts[b]) for a, b in zip(earlier, later, strict=True)] == []
    assert len(near_texts([], [])[0]) == len(near_texts(["", ""], [np.arange(2)])[0]) == 0


def test_the_fixed_words_of_a_task_make_no_near_duplicates():
    task = "Find me an everyday picture that matches the caption that is given here: "
    words = ["".join(np.random.default_rng(n).choice([*"abcdefghij"], 8)) for n in range(100)]
    texts = [task + word for word in words]
    assert len(near_texts(texts, [np.arange(100)])[0]) == 0
    # The words of a set that is too small to tell are those of a larger one.
    texts += [task + words[7][::-1], task + "k" * 8]
    assert len(near_texts(texts, [np.arange(100), np.arange(100, 102)])[0]) == 0
    texts += [f"{task}{SENTENCE}", f"{task}{SENTENCE[:-1]}!"]
    earlier, later, _ = near_texts(texts, [np.arange(100), np.arange(100, 104)])
    assert list(zip(earlier, later, strict=True)) == [(102, 103)]


def test_near_texts_are_found_among_many():
    random = np.random.default_rng(0)
    words = ["".join(random.choice([*"abcdefghijklmnop"], 7)) for _ in range(3000)]
    texts = [" ".join(words[place] for place in random.integers(0, 3000, 14)) for _ in range(5000)]
    edited = [f"{text[:50]}x{text[50:]}" for text in texts[:1000]]
    earlier, later, _ = near_texts([*texts, *edited], [np.arange(6000)])
    assert set((later - earlier).tolist()) == {5000}
    assert len(earlier) >= 990
