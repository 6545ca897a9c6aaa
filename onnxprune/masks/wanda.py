"""Wanda: weights scored by their size times the size of what they multiply."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OptionError
from .blocks import Blocks, PerRow
from .pattern import Pattern
from .patterns import parse_pattern
from .rule import Rule

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Keep = np.ndarray[Any, np.dtype[np.bool_]]
ROUNDED_DOWN = Rule(rounding="down")


def wanda_scores(weight: Array, norms: Array) -> Floats:
    """Score every weight by |w| * norm of its input feature; higher = keep.

    `weight` is (output, input, *kernel) of any float type; `norms` are the root mean squares of the features, (groups,
    features) or (features,), where features are (input, *kernel) in row-major order and group g's rows are the g-th
    part of the outputs. Gives float64 of the weight's shape. Norms may have any common scale within a layer.
    Raises `OptionError` when the sizes do not fit. Source: Sun et al., A Simple and Effective Pruning Approach for
    Large Language Models, ICLR 2024, equation 1.
    """
    rows = grouped_rows(weight, np.shape(norms)[0] if np.ndim(norms) == 2 else 1)
    norms = np.asarray(norms, dtype=np.float64).reshape(rows.shape[0], 1, -1)
    if norms.shape[2] != rows.shape[2]:
        raise OptionError(
            f"a weight of shape {weight.shape} has {rows.shape[2]} input features per group, "
            f"but norms of {norms.shape[2]} were given"
        )
    return np.asarray((np.abs(rows) * norms).reshape(weight.shape))


def wanda(
    weight: Array,
    norms: Array,
    pattern: str | Pattern = "unstructured",
    sparsity: float | None = None,
    *,
    locked: Keep | None = None,
    rule: Rule = ROUNDED_DOWN,
) -> Keep:
    """Make Wanda's keep mask: the pattern on `wanda_scores`, unstructured ones in every output row by itself.

    See `wanda_scores` for the arrays and `Pattern.keep` for `sparsity`, `locked` and `rule`. Counts are rounded down,
    as the authors' code has it: no row loses more than the sparsity says.
    """
    chosen = parse_pattern(pattern)
    return np.asarray(
        (PerRow() if chosen == Blocks() else chosen).keep(wanda_scores(weight, norms), sparsity, locked, rule=rule)
    )


def grouped_rows(weight: Array, n_groups: int) -> Floats:
    """Give a weight (output, input, *kernel) as float64 (groups, outputs of a group, features)."""
    if weight.ndim < 2 or not n_groups or weight.shape[0] % n_groups:
        raise OptionError(f"a weight of shape {weight.shape} does not divide into {n_groups} groups of output rows")
    return np.asarray(weight, dtype=np.float64).reshape(n_groups, weight.shape[0] // n_groups, -1)
