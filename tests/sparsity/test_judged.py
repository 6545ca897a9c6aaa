"""The ridge of a repair is chosen on feeds held out, and a repair that does not help there is not made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Data
from onnxprune.masks.refit import refit
from onnxprune.sparsity.judged import DAMPS, Moments, fit_judged, in_parts

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)
DENSE = RNG.standard_normal((6, 20))
KEEP = RNG.random((6, 20)) < 0.5
START = np.where(KEEP, DENSE, 0)


def moments(x: Array, z: Array) -> Moments:
    return Moments((x.T @ x)[None] / len(x), (x.T @ z)[None] / len(x), len(x))


def rows(n: int, basis: Array, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal((n, len(basis))) @ basis)


def test_the_error_is_that_of_the_outputs_but_for_a_constant() -> None:
    z = RNG.standard_normal((50, 20))
    x = z + 0.1 * RNG.standard_normal((50, 20))
    found = moments(x, z)
    others = [RNG.standard_normal((6, 20)) for _ in range(3)]
    real = [float(((x @ v.T - z @ DENSE.T) ** 2).sum()) / 50 for v in others]
    told = [found.error(v, DENSE) for v in others]
    np.testing.assert_allclose(np.diff(real), np.diff(told), rtol=1e-9)


def test_without_feeds_held_out_the_ridge_follows_from_the_rows() -> None:
    x = rows(40, RNG.standard_normal((20, 20)), 1)
    found = moments(x, x)
    assert found.damp == 0.5
    assert found.whole is found
    expected = refit(DENSE, KEEP, found.gram, cross=found.cross, start=START, damp=0.5)
    np.testing.assert_array_equal(fit_judged(DENSE, KEEP, START, found), expected)


def test_both_parts_together_are_the_moments_of_all_rows() -> None:
    x = rows(90, np.eye(20), 2)
    whole = replace(moments(x[:60], x[:60]), judge=moments(x[60:], x[60:])).whole
    np.testing.assert_allclose(whole.gram[0], x.T @ x / 90, rtol=1e-12)
    assert (whole.n_rows, whole.judge) == (90, None)


def test_what_holds_on_other_feeds_is_fitted_weakly_bound_and_to_all_of_them() -> None:
    basis = RNG.standard_normal((20, 20))
    learn, other = rows(4000, basis, 3), rows(1000, basis, 4)
    found = replace(moments(learn, learn), judge=moments(other, other))
    new = fit_judged(DENSE, KEEP, START, found)
    expected = refit(DENSE, KEEP, found.whole.gram, cross=found.whole.cross, start=START, damp=min(DAMPS))
    np.testing.assert_array_equal(new, expected)
    assert new is not None
    assert (new[~KEEP] == 0).all()


@pytest.mark.parametrize("alike", [1, 300])
def test_chance_is_not_fitted_however_many_rows_are_alike(alike: int) -> None:
    """Four feeds whose rows hardly differ: the count of rows says to fit all of it, the feeds held out say not to."""
    learn = np.repeat(rows(4, np.eye(20), 5), alike, axis=0)
    learn = learn + 0.01 * RNG.standard_normal(learn.shape)
    other = rows(500, np.eye(20), 6)
    judge = moments(other, other)
    found = replace(moments(learn, learn), judge=judge)
    free = refit(DENSE, KEEP, found.gram, cross=found.cross, start=START, damp=min(DAMPS))
    assert judge.error(free, DENSE) > judge.error(START, DENSE)
    new = fit_judged(DENSE, KEEP, START, found)
    assert new is None or judge.error(new, DENSE) < judge.error(START, DENSE)


def test_nothing_is_fitted_where_no_ridge_helps() -> None:
    """The feeds held out want the opposite of what the others say."""
    x = rows(400, RNG.standard_normal((20, 20)), 8)
    found = replace(moments(x, x), judge=moments(x, -x))
    assert fit_judged(DENSE, KEEP, START, found) is None


def test_feeds_are_parted_the_same_way_at_every_pass() -> None:
    feeds = Data("ten", lambda: iter([{"x": np.full(1, k)} for k in range(10)]))
    learn, other = in_parts(feeds)
    seen = [[int(f["x"][0]) for f in part] for part in (learn, other, learn, other)]
    assert seen[:2] == seen[2:]
    assert sorted(seen[0] + seen[1]) == list(range(10))
    assert seen[1]
    one = Data("one", lambda: iter([{"x": np.zeros(1)}]))
    assert in_parts(one) == [one]
