"""Random words against the published vectors of Threefry, and the same on both array modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.searchers._random_words import bounded, happens, random_words, threefry2x32, threshold

KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
"""Key, counter and words of ``threefry2x32 20`` in the vectors of Random123 (Salmon et al., 2011)."""


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(("key", "counter", "words"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_words(xp, key, counter, words) -> None:
    assert tuple(int(word[0]) for word in threefry2x32(xp, key, counter)) == words


def test_numpy_and_jax_draw_the_same_to_the_last_bit() -> None:
    bounds = np.array([[1, 2, 3, 25, 2**16]], dtype=np.uint32)

    def draw(xp, counter):
        words = random_words(xp, (7, 5), 2**32 - 1, 3, counter)
        return words, happens(xp, words, threshold(0.3)), bounded(xp, words, xp.asarray(bounds))

    for ours, theirs in zip(draw(np, 11), jax.jit(lambda counter: draw(jnp, counter))(11), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_words_depend_on_seed_stream_and_counter_and_not_on_how_many_follow() -> None:
    words = random_words(np, (4, 3, 5), 1, 2, 3)
    np.testing.assert_array_equal(random_words(np, (2, 3, 5), 1, 2, 3), words[:2])
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not (random_words(np, (4, 3, 5), *other) == words).any()


def test_numbers_come_with_their_probabilities() -> None:
    words = random_words(np, (300_000, 1), 0, 0, 0)
    for bound in (3, 25):
        counts = np.bincount(bounded(np, words, np.array([[bound]], dtype=np.uint32))[:, 0], minlength=bound)
        expected = len(words) / bound
        assert ((counts - expected) ** 2 / expected).sum() < 2.5 * bound  # chi-squared: mean bound - 1
    for probability in (0.0, 0.1, 1.0):
        limits = np.array([[threshold(probability)]], dtype=np.uint32)
        assert happens(np, words, limits).mean() == pytest.approx(probability, abs=2e-3 * (0 < probability < 1))


def test_bounds_reach_their_last_number_and_no_further() -> None:
    words = np.array([0, 2**16 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert bounded(np, words, np.full(4, 2**16, dtype=np.uint32)).tolist() == [0, 0, 2**15, 2**16 - 1]
    assert bounded(np, words, np.zeros(4, dtype=np.uint32)).tolist() == [0, 0, 0, 0]
