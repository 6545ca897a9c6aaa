"""The registry of criteria, and the ones that need no data.

A criterion is one function of the rows of one weight: `rows` is (units, elements) float64, the result (units,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..registry import Registry

Rows = np.ndarray[Any, np.dtype[np.float64]]
ScoreRows = Callable[[Rows], Rows]


@dataclass(frozen=True)
class Criterion:
    """A criterion by name.

    `normalized` scores compare between groups as they are; others are divided by their mean over the group.
    `scales_only` asks for the scale vectors of normalizations instead of weights. `power` p says that the score is the
    p-norm of the row; it is added up over the weight then, which need not be held. `needs` names the statistics of data
    that it looks at, see `criteria.data`; it is empty for a criterion of weights alone.
    """

    name: str
    score: ScoreRows
    normalized: bool = False
    scales_only: bool = False
    power: int | None = None
    needs: tuple[str, ...] = ()


criteria: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, *, normalized: bool = False, scales_only: bool = False, power: int | None = None, replace: bool = False
) -> Callable[[ScoreRows], ScoreRows]:
    """Register a function as the criterion `name`; see `Criterion` for the flags."""

    def file(score: ScoreRows) -> ScoreRows:
        criteria.register(name, replace=replace)(Criterion(name, score, normalized, scales_only, power))
        return score

    return file


@criterion("l1", power=1)
def l1(rows: Rows) -> Rows:
    """Sum of absolute values."""
    return np.asarray(np.abs(rows).sum(axis=1))


@criterion("l2", power=2)
def l2(rows: Rows) -> Rows:
    """Euclidean norm."""
    return np.asarray(np.sqrt(np.square(rows).sum(axis=1)))


@criterion("fpgm")
def fpgm(rows: Rows) -> Rows:
    """Sum of Euclidean distances to all other rows: rows near the geometric median can be replaced by others.

    Source: He et al., Filter Pruning via Geometric Median, CVPR 2019, eq. 4.
    """
    return _distances(rows, lambda gaps: np.asarray(np.sqrt(np.square(gaps).sum(axis=2))))


@criterion("fpgm_l1")
def fpgm_l1(rows: Rows) -> Rows:
    """Sum of L1 distances to all other rows: `fpgm` in the distance that torch.ao calls dist=1."""
    return _distances(rows, lambda gaps: np.asarray(np.abs(gaps).sum(axis=2)))


def _distances(rows: Rows, length: ScoreRows) -> Rows:
    """Sum the lengths of the differences to all rows, block by block.

    Differences are formed explicitly: the product form loses all digits for rows that share a large mean.
    """
    total = np.zeros(len(rows))
    block = max(1, 2**22 // max(1, rows.size))
    for start in range(0, len(rows), block):
        total[start : start + block] = length(rows[start : start + block, None, :] - rows[None]).sum(axis=1)
    return total


@criterion("bn_scale", scales_only=True, power=1)
def bn_scale(rows: Rows) -> Rows:
    """Absolute scale of the normalization behind the layer.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    """
    return np.asarray(np.abs(rows).sum(axis=1))


@criterion("lamp", normalized=True)
def lamp(rows: Rows) -> Rows:
    """Energy of a row over the energy of the rows at least as strong; the strongest scores 1.

    Source: Lee et al., Layer-Adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, eq. 4, on whole rows.
    """
    energy = np.square(rows).sum(axis=1)
    order = np.lexsort((-np.arange(len(energy)), energy))
    remaining = np.cumsum(energy[order][::-1])[::-1]
    score = np.empty(len(rows), dtype=np.float64)
    score[order] = energy[order] / np.maximum(remaining, np.finfo(np.float64).tiny)
    return score
