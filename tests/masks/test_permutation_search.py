"""The order of channels under N:M: against figures by hand, every order of a few channels, and random ones of many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import OptionError
from onnxprune.masks.permutation_search import kept_magnitude, search_order


def test_kept_magnitude_by_hand() -> None:
    weight = np.array([[3.0, -1.0, 2.0, 5.0, -7.0, 1.0], [0.0, 4.0, 4.0, 4.0, 2.0, -6.0]])
    # Groups 3 1 2 5 | 7 1 and 0 4 4 4 | 2 6: the last group is filled up with zeros.
    assert kept_magnitude(weight) == (5 + 3) + (7 + 1) + (4 + 4) + (2 + 6)
    assert kept_magnitude(weight, 1, 4) == 5 + 7 + 4 + 6
    assert kept_magnitude(weight, 1, 2) == 3 + 5 + 7 + 4 + 4 + 6
    assert kept_magnitude(weight, 3, 3) == np.abs(weight).sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_the_loss_comes_back_on_random_weights(seed: int) -> None:
    """Channel swaps of the reference bring 64x128 uniform numbers from 2852 to 2913 of at most 3042."""
    weight = np.random.default_rng(seed).random((64, 128))
    found = search_order(weight, work=200_000_000)
    assert (found.after - found.before) / (found.most - found.before) >= (2913 - 2852) / (3042 - 2852)
    np.testing.assert_allclose(found.after, kept_magnitude(weight[:, found.permutation]), rtol=1e-12)
    # The bound is what the largest half of every row adds up to.
    np.testing.assert_allclose(found.most, np.sort(weight, axis=1)[:, 64:].sum(), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_eight_channels_find_the_best_of_all_orders(seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((5, 8))
    best = max(
        kept_magnitude(weight[:, [*left, *sorted(set(range(8)) - set(left))]])
        for left in itertools.combinations(range(8), 4)
    )
    np.testing.assert_allclose(search_order(weight).after, best, rtol=1e-12)


def test_strong_channels_that_lie_together_are_spread() -> None:
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.1, 0.2, (7, 24))
    weight[:, :12] += 10
    found = search_order(weight)
    np.testing.assert_allclose(found.after, found.most, rtol=1e-12)
    assert found.after > 1.9 * found.before
    strong = (found.permutation < 12).reshape(6, 4).sum(axis=1)
    np.testing.assert_array_equal(strong, 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    channels=st.integers(1, 23),
    pattern=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4), (4, 8), (2, 2), (1, 3)]),
    n_classes=st.integers(0, 4),
)
def test_every_result_is_an_order_that_keeps_no_less(
    seed: int, rows: int, channels: int, pattern: tuple[int, int], n_classes: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, channels)) * rng.lognormal(0, 1, channels)
    classes = rng.integers(-1, n_classes, channels) if n_classes else None
    found = search_order(weight, *pattern, classes=classes, work=30_000_000)
    np.testing.assert_array_equal(np.sort(found.permutation), np.arange(channels))
    np.testing.assert_allclose(found.before, kept_magnitude(weight, *pattern), rtol=1e-12)
    np.testing.assert_allclose(found.after, kept_magnitude(weight[:, found.permutation], *pattern), rtol=1e-12)
    assert found.before <= found.after <= found.most * (1 + 1e-12)
    if classes is not None:
        np.testing.assert_array_equal(classes[found.permutation], classes)
        np.testing.assert_array_equal(found.permutation[classes < 0], np.flatnonzero(classes < 0))


def test_the_same_weights_give_the_same_order() -> None:
    weight = np.random.default_rng(3).standard_normal((11, 40))
    one, two = (search_order(weight, work=60_000_000).permutation for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one != np.arange(40)).any()


def test_rows_are_sampled_where_there_is_little_work() -> None:
    """Channels of different strength are told apart by a few of many rows."""
    rng = np.random.default_rng(4)
    weight = rng.random((3000, 20)) * np.repeat([5.0, 1.0], 10)
    found = search_order(weight, work=400_000)
    assert found.after > found.before
    np.testing.assert_allclose(found.after, kept_magnitude(weight[:, found.permutation]), rtol=1e-12)


@pytest.mark.parametrize("weight", [np.zeros((4, 12)), np.ones((3, 8)), np.zeros((0, 8)), np.ones((2, 0))])
def test_where_all_orders_are_alike_the_present_one_stays(weight: np.ndarray) -> None:
    np.testing.assert_array_equal(search_order(weight).permutation, np.arange(weight.shape[1]))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="3 axes"):
        search_order(np.ones((2, 4, 3)))
    with pytest.raises(OptionError, match="5:4"):
        search_order(np.ones((2, 8)), 5, 4)
