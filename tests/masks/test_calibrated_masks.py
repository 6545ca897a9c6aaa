"""Wanda, SparseGPT and refitting: the originals' recorded results, cases by hand, and what must always hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import OptionError
from onnxprune.masks.refit import refit
from onnxprune.masks.sparsegpt import inverse_factor, inverse_of_lower, sparsegpt
from onnxprune.masks.wanda import wanda, wanda_scores

from .golden import Golden, folder

Array = np.ndarray[Any, Any]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def layer(out: int, features: int, rows: int = 400) -> tuple[Array, Array]:
    """Make a weight, and inputs that are correlated and of different sizes."""
    x = draw(rows, features) @ (draw(features, features, seed=1) * 0.4 + np.eye(features))
    return draw(out, features, seed=2), x * np.linspace(0.3, 3, features)


def error(weight: Array, new: Array, gram: Array, ridge: float = 0.0) -> float:
    """Give tr(D (H + ridge) D^T) of the difference D."""
    d = (weight - new).reshape(len(weight), -1).astype(np.float64)
    return float(np.sum(d @ gram * d) + ridge * np.sum(d * d))


FOLDER = folder()
GOLDEN = None if FOLDER is None else Golden(FOLDER)


def cases(family: str) -> list[Any]:
    if GOLDEN is None:
        return [pytest.param(None, marks=pytest.mark.skip("no recorded results"))]
    return [pytest.param(case, id=case["id"]) for case in GOLDEN.cases if case["family"] == family]


@pytest.mark.parametrize("case", cases("wanda"))
def test_wanda_gives_the_recorded_masks(case: Any) -> None:
    assert GOLDEN is not None
    given_arrays, params = GOLDEN.inputs(case), case["params"]
    x = given_arrays["X"].reshape(-1, given_arrays["X"].shape[-1])
    norms = np.sqrt((x.astype(np.float64) ** 2).mean(0))
    keep = wanda(given_arrays["W"], norms, params.get("pattern", "unstructured"), params.get("sparsity"))
    np.testing.assert_array_equal(keep, GOLDEN.masks(case)["mask"])


@pytest.mark.parametrize("case", cases("sparsegpt"))
def test_sparsegpt_gives_the_recorded_weights(case: Any) -> None:
    assert GOLDEN is not None
    given_arrays, params, mask = GOLDEN.inputs(case), case["params"], GOLDEN.masks(case)["mask"]
    x = given_arrays["X"].reshape(-1, given_arrays["X"].shape[-1]).astype(np.float64)
    pattern, sparsity = "unstructured", float((~mask).mean())
    if "prunem" in params:
        # Theirs counts zeros; and without N:M, the original prunes one weight too many in each block.
        pattern, sparsity = f"{params['prunem'] - params['prunen']}:{params['prunem']}", None
    keep, new = sparsegpt(
        given_arrays["W"], x.T @ x, pattern, sparsity, damp=params["percdamp"], block=params.get("blocksize", 128)
    )
    np.testing.assert_array_equal(keep, mask)
    np.testing.assert_allclose(new, GOLDEN.values(case)["W_new"], rtol=case["rtol"], atol=case["atol"])


# --- wanda ---


def test_wanda_by_hand() -> None:
    weight = np.array([[3.0, -2.0, 1.0, 1.0], [1.0, 1.0, -1.0, 9.0]])
    norms = np.array([1.0, 2.0, 5.0, 0.5])
    np.testing.assert_array_equal(wanda_scores(weight, norms), [[3, 4, 5, 0.5], [1, 2, 5, 4.5]])
    # Row by row, although three of the four lowest scores lie in two columns.
    np.testing.assert_array_equal(wanda(weight, norms, sparsity=0.5), [[0, 1, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(wanda(weight, norms, "1:2"), [[0, 1, 1, 0], [0, 1, 1, 0]])
    # Counts are rounded down: 0.7 of 4 is 2.
    assert (~wanda(weight, norms, sparsity=0.7)).sum() == 4
    locked = np.zeros((2, 4), bool)
    locked[1, 3] = True
    np.testing.assert_array_equal(wanda(weight, norms, sparsity=0.5, locked=locked), [[0, 1, 1, 0], [0, 1, 1, 0]])


def test_wanda_of_a_grouped_convolution_uses_each_groups_norms() -> None:
    weight = np.ones((4, 2, 1, 2), np.float16)
    norms = np.array([[1.0, 2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0]])
    scores = wanda_scores(weight, norms)
    np.testing.assert_array_equal(scores[:2].reshape(2, 4), [norms[0]] * 2)
    np.testing.assert_array_equal(scores[2:].reshape(2, 4), [norms[1]] * 2)
    keep = wanda(weight, norms, sparsity=0.5).reshape(4, 4)
    np.testing.assert_array_equal(keep, [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2)


# --- sparsegpt ---


@pytest.mark.parametrize(
    ("pattern", "sparsity", "zeros"),
    [
        ("unstructured", 0.5, 12 * 37 // 2),
        ("unstructured", 0.37, round(0.37 * 12 * 37)),
        ("unstructured", 0.0, 0),
        ("unstructured", 1.0, 12 * 37),
        ("per_row", 0.4, 12 * 15),
        # Of the nine full groups two each; the tail of one counts three of padding.
        ("2:4", None, 12 * 18),
        ("1:4", None, 12 * 27),
        # Half of the 120 groups give two each, those whose zeros cost least where they lie; a tail has none to give.
        ("2:4", 0.25, None),
        ("4x1", 0.5, 4 * 56),
    ],
)
def test_counts_are_exact_and_zeros_are_zeros(pattern: str, sparsity: float | None, zeros: int | None) -> None:
    weight, x = layer(12, 37)
    keep, new = sparsegpt(weight.astype(np.float32), x.T @ x, pattern, sparsity, block=16)
    if zeros is None:
        zeros = int((~keep).sum())
        np.testing.assert_array_equal(np.unique((~keep)[:, :36].reshape(12, 9, 4).sum(2)), [0, 2])
        assert keep[:, 36].all()
        assert zeros == 12 * 9
    assert (~keep).sum() == zeros
    assert new.dtype == np.float32
    assert not new[~keep].any()
    assert not np.signbit(new[~keep]).any()
    if 0 < zeros < keep.size:
        assert (new[keep] != weight.astype(np.float32)[keep]).mean() > 0.5


def test_blocks_and_groups_of_a_convolution_lie_along_the_inputs() -> None:
    weight = draw(6, 8, 3, 2).astype(np.float32)
    x = draw(500, 48)
    keep, _ = sparsegpt(weight, x.T @ x, "2:4")
    np.testing.assert_array_equal(keep.reshape(6, 2, 4, 6).sum(2), 2)
    keep, _ = sparsegpt(weight, x.T @ x, "3x4", 0.5, block=10)
    blocks = keep.reshape(2, 3, 2, 4, 6).sum((1, 3))
    assert sorted(set(blocks.reshape(-1).tolist())) == [0, 12]
    assert (blocks == 0).sum() == 12
    keep, _ = sparsegpt(weight, x.T @ x, "transposable(2:4)")
    np.testing.assert_array_equal(keep[:4].reshape(4, 2, 4, 6).sum(0), 2)


def test_groups_of_a_convolution_have_their_own_grams() -> None:
    weight, (_, x), (_, z) = draw(6, 2, 3).astype(np.float64), layer(1, 6, 90), layer(1, 6, 80)
    grams = np.stack([x.T @ x, z[:, ::-1].T @ z[:, ::-1]])
    keep, new = sparsegpt(weight, grams, sparsity=0.5)
    for g in range(2):
        alone = sparsegpt(weight[3 * g : 3 * g + 3], grams[g], sparsity=0.5)
        np.testing.assert_array_equal(keep[3 * g : 3 * g + 3], alone[0])
        np.testing.assert_allclose(new[3 * g : 3 * g + 3], alone[1], rtol=1e-12)


def test_depthwise_kernels_share_an_odd_count() -> None:
    weight = draw(5, 1, 3, 3)
    keep, _ = sparsegpt(weight, np.stack([np.eye(9)] * 5), sparsity=0.5)
    assert (~keep).sum() == 22
    assert set((~keep).sum((1, 2, 3)).tolist()) == {4, 5}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_error_is_below_magnitudes_and_wandas(pattern: str) -> None:
    weight, x = layer(16, 48)
    gram, sparsity = x.T @ x, 0.5 if pattern == "unstructured" else None
    norms = np.sqrt(np.diagonal(gram))
    plain = [wanda(weight, n, pattern, sparsity) for n in (np.ones(48), norms)]
    errors = [error(weight, np.where(keep, weight, 0), gram) for keep in plain]
    keep, new = sparsegpt(weight, gram, pattern, sparsity)
    again = refit(weight, keep, gram, start=new)
    assert errors[0] > errors[1] > error(weight, new, gram) > error(weight, again, gram) > 0
    assert error(weight, new, gram) < 0.85 * errors[1]


def test_an_uncorrelated_gram_changes_nothing_that_stays() -> None:
    weight = draw(6, 10)
    scale = np.linspace(1, 4, 10)
    keep, new = sparsegpt(weight, np.diag(scale), sparsity=0.3, damp=0.0)
    np.testing.assert_allclose(new, np.where(keep, weight, 0), rtol=1e-12)
    cost = weight**2 * scale
    assert cost[~keep].max() < cost[keep].min()


def test_dead_inputs_go_first_and_singular_grams_are_handled() -> None:
    weight, x = layer(8, 20, rows=7)
    x[:, [3, 11]] = 0
    keep, new = sparsegpt(weight, x.T @ x, sparsity=0.1)
    assert not keep[:, [3, 11]].any()
    assert np.isfinite(new).all()
    keep, new = sparsegpt(weight, x.T @ x, sparsity=0.5, damp=0.0)
    assert np.isfinite(new).all()
    keep, new = sparsegpt(weight, np.zeros((20, 20)), sparsity=0.5)
    np.testing.assert_array_equal(new, np.where(keep, weight, 0))
    assert np.abs(weight[~keep]).max() < np.abs(weight[keep]).min()


def test_what_is_locked_is_zero_and_counts() -> None:
    weight, x = layer(6, 16)
    locked = np.zeros(weight.shape, bool)
    locked[:, :3] = True
    keep, new = sparsegpt(weight, x.T @ x, "unstructured", 0.5, locked=locked)
    assert not keep[:, :3].any()
    assert not new[:, :3].any()
    assert (~keep).sum() == 48


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.integers(1, 40), st.integers(0, 5))
def test_counts_and_scale_hold_for_any_layer(out: int, features: int, sparsity: float, block: int, seed: int) -> None:
    weight, x = draw(out, features, seed=seed), draw(60, features, seed=seed)
    gram = x.T @ x
    keep, new = sparsegpt(weight, gram, sparsity=sparsity, block=block)
    n = weight.size
    assert (~keep).sum() == (n if sparsity >= 1 else min(round(sparsity * n), n - 1))
    same, scaled = sparsegpt(weight, gram * 1024, sparsity=sparsity, block=block)
    np.testing.assert_array_equal(keep, same)
    np.testing.assert_allclose(new, scaled, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_the_factor_is_that_of_the_inverse(size: int) -> None:
    x = draw(3 * size, size)
    gram = x.T @ x
    factor = inverse_factor(gram, 0.01)
    ridge = 0.01 * np.trace(gram) / size
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ (gram + ridge * np.eye(size)), np.eye(size), atol=1e-9)
    lower = np.linalg.cholesky(gram)
    np.testing.assert_allclose(inverse_of_lower(lower) @ lower, np.eye(size), atol=1e-9)


def test_sparsegpt_refuses_what_does_not_fit() -> None:
    weight = draw(4, 6)
    for arguments, message in [
        ((weight, np.eye(5)), "Gram matrices of 6 features"),
        ((weight, np.eye(6), "1xchannel"), "cannot follow"),
        ((weight, np.eye(6), "channelx1"), "cannot follow"),
        ((weight, -np.eye(6)), "not positive semidefinite"),
        ((weight, np.full((6, 6), np.nan)), "Gram matrix holds values that are not finite"),
        ((np.full((4, 6), np.inf), np.eye(6)), "weight holds values that are not finite"),
        ((weight, np.stack([np.eye(6)] * 3)), "does not divide into 3 groups"),
    ]:
        with pytest.raises(OptionError, match=message):
            sparsegpt(*arguments)
    with pytest.raises(OptionError, match="block is 0"):
        sparsegpt(weight, np.eye(6), block=0)
    with pytest.raises(OptionError, match="damp is -1"):
        sparsegpt(weight, np.eye(6), damp=-1)
    with pytest.raises(OptionError, match="6 input features per group, but norms of 5"):
        wanda(weight, np.ones(5))


# --- refit ---


def test_refit_is_the_least_squares_solution_of_every_row() -> None:
    weight, x = layer(5, 14)
    gram, keep = x.T @ x / len(x), np.random.default_rng(3).random((5, 14)) < 0.6
    ridge = 0.02 * np.trace(gram) / 14
    new = refit(weight, keep, gram, damp=0.02, steps=200)
    damped = gram + ridge * np.eye(14)
    for row, support, got in zip(weight, keep, new, strict=True):
        want = np.linalg.solve(damped[np.ix_(support, support)], damped[support] @ row)
        np.testing.assert_allclose(got[support], want, rtol=1e-6, atol=1e-8)
        assert not got[~support].any()


def test_refit_to_another_input_reproduces_the_dense_output() -> None:
    weight, z = layer(5, 9)
    mixing = draw(9, 9, seed=8) * 0.2 + np.eye(9)
    x = z @ mixing
    new = refit(weight, np.ones((5, 9), bool), x.T @ x, cross=x.T @ z, damp=0.0, steps=500)
    np.testing.assert_allclose(x @ new.T, z @ weight.T, rtol=1e-5, atol=1e-5)


def test_refit_of_a_grouped_convolution_and_of_nothing() -> None:
    weight = draw(4, 3, 2).astype(np.float32)
    grams = np.stack([(a := draw(50, 6, seed=k)).T @ a for k in (1, 2)])
    keep = np.random.default_rng(3).random(weight.shape) < 0.5
    new = refit(weight, keep, grams)
    for g in range(2):
        alone = refit(weight[2 * g : 2 * g + 2], keep[2 * g : 2 * g + 2], grams[g])
        np.testing.assert_allclose(new[2 * g : 2 * g + 2], alone, rtol=1e-6)
    assert new.dtype == np.float32
    assert not refit(weight, np.zeros(weight.shape, bool), grams).any()
    np.testing.assert_array_equal(refit(weight, np.ones(weight.shape, bool), grams), weight)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 12), st.integers(0, 5))
def test_refit_never_does_harm(out: int, features: int, steps: int, seed: int) -> None:
    weight, x = draw(out, features, seed=seed), draw(20, features, seed=seed + 1)
    gram, keep = x.T @ x, draw(out, features, seed=seed + 2) > 0
    ridge = 0.01 * np.trace(gram) / features
    before = error(weight, np.where(keep, weight, 0), gram, ridge)
    assert error(weight, refit(weight, keep, gram, steps=steps), gram, ridge) <= before * (1 + 1e-9)
