"""Least squares for one matrix, from moments alone: what the kept columns must be for the output to stay as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..axes.analysis import Keep
from .products import Array, Floats

RIDGES = (1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Moments:
    """Moments of the data x in the pruned model and z in the original, both of one matrix's features.

    `x` and `z` are the means, `xx` = E[x x^T], `xz` = E[x z^T].
    """

    x: Floats
    z: Floats
    xx: Floats
    xz: Floats

    @property
    def covariance(self) -> Floats:
        """Covariance of x."""
        return self.xx - np.outer(self.x, self.x)

    @property
    def crossed(self) -> Floats:
        """Covariance of x with z."""
        return self.xz - np.outer(self.x, self.z)


@dataclass(frozen=True)
class Fit:
    """A proposal: `weight` (outputs, features) with zeros in the cut columns, `shift` (outputs,) to add to the bias."""

    weight: Floats
    shift: Floats
    how: str
    ridge: float | None = None


def proposals(weight: Floats, cut: Floats, keep: Keep, moments: Moments, *, bias: bool, how: str) -> Iterator[Fit]:
    """Propose repairs of `cut`, the matrix (outputs, features) whose columns outside of `keep` are gone.

    `weight` is the original. Without `bias` the sums cannot be shifted, and the fit goes through the origin.
    """
    if bias:
        yield Fit(cut, weight @ moments.z - cut @ moments.x, "bias")
    if how != "lstsq" or not keep.any():
        return
    xx = (moments.covariance if bias else moments.xx)[np.ix_(keep, keep)]
    xz = (moments.crossed if bias else moments.xz)[keep]
    target = xz @ weight.T
    start = weight[:, keep].T
    level = float(np.trace(xx)) / len(xx)
    if not level > 0:
        return
    for ridge in RIDGES:
        rho = ridge * level
        found = np.linalg.solve(xx + rho * np.eye(len(xx)), target + rho * start)
        new = np.zeros_like(cut)
        new[:, keep] = found.T
        shift = weight @ moments.z - new @ moments.x if bias else np.zeros(len(cut))
        yield Fit(new, shift, "lstsq", ridge)


def error(fit: Fit, wish: Array, rows: Keep, x: Array) -> float:
    """Give the mean squared error of the kept outputs: x (n, features) and the outputs it should give (n, kept)."""
    made = x @ fit.weight[rows].T.astype(np.float32) + fit.shift[rows].astype(np.float32)
    return float(np.square(made - wish, dtype=np.float64).sum()) / len(x)
