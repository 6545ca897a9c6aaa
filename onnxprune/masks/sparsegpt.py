"""SparseGPT: weights go column by column, and those that stay make up for them.

Source: Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023,
algorithm 1. Unlike its code, which cuts at a threshold, every block loses exactly the weights that are due.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import OptionError
from .blocks import Blocks, PerRow
from .groups import NofM
from .pattern import DEFAULT_RULE, Pattern, UnitPattern
from .patterns import parse_pattern
from .rule import Rule
from .transposable import Transposable
from .wanda import Keep, grouped_rows

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
_DAMP_AT_LEAST = 1e-10
_ATTEMPTS = 12
_DEAD = 1e-6


def sparsegpt(
    weight: Array,
    gram: Array,
    pattern: str | Pattern = "unstructured",
    sparsity: float | None = None,
    *,
    damp: float = 0.01,
    block: int = 128,
    locked: Keep | None = None,
    rule: Rule = DEFAULT_RULE,
) -> tuple[Keep, Array]:
    """Give the keep mask, and the weight with zeros where it is False and the rest changed to make up for them.

    `weight` is (output, input, *kernel) of any float type; `gram` is E[x x^T] over the input features, (groups,
    features, features) or (features, features), features in the order (input, *kernel); any scale will do. The new
    weight has the weight's shape and type. `damp` adds that fraction of the mean of the diagonal to it; weights of an
    input that is always zero go first. Masks are decided for `block` columns at a time
    from the weights as changed so far, N:M ones for each group of M, with the share of zeros that is due there.
    `locked` marks what must be zero; `rule` counts as in `Pattern.keep`.

    Raises `OptionError` for sizes that do not fit, a pattern that spans all inputs, or a Gram matrix that is not
    finite or not positive semidefinite.
    """
    chosen = parse_pattern(pattern)
    gram = np.asarray(gram, dtype=np.float64)
    gram = gram[None] if gram.ndim == 2 else gram
    rows = grouped_rows(weight, gram.shape[0])
    _check(weight, rows, gram, block)
    order, strips = _layout(chosen, weight.shape, rows.shape[2], block)
    rows, gram = rows[:, :, order], gram[:, order][:, :, order]
    barred = None if locked is None else np.asarray(locked, dtype=bool).reshape(rows.shape)[:, :, order]
    keep, new = np.ones(rows.shape, dtype=bool), rows.copy()
    choices = _choices(chosen, sparsity, rule, rows.shape, strips)
    for g in range(len(rows)):
        factor = inverse_factor(gram[g], damp)
        mine = list(zip(strips, choices[g], strict=True))
        for some in _lazily(mine, block):
            at = slice(some[0][0].start, some[-1][0].stop)
            errors = np.zeros((rows.shape[1], at.stop - at.start))
            for strip, choice in some:
                bars = None if barred is None else barred[g, :, strip]
                scores = (new[g, :, strip] / np.diagonal(factor)[strip]) ** 2
                keep[g, :, strip] = choice(scores, bars)
                for i in range(strip.start, strip.stop):
                    error = np.where(keep[g, :, i], 0.0, new[g, :, i]) / factor[i, i]
                    new[g, :, i : at.stop] -= error[:, None] * factor[i, i : at.stop]
                    errors[:, i - at.start] = error
            # Later columns are needed only when their turn comes: they are brought up to date a block at a time.
            new[g, :, at.stop :] -= errors @ factor[at, at.stop :]
    back = np.argsort(order)
    keep, new = keep[:, :, back].reshape(weight.shape), new[:, :, back].reshape(weight.shape)
    return keep, np.where(keep, new, 0.0).astype(weight.dtype)


def _check(weight: Array, rows: Floats, gram: Floats, block: int) -> None:
    n = rows.shape[2]
    if gram.shape != (rows.shape[0], n, n):
        raise OptionError(
            f"a weight of shape {weight.shape} needs Gram matrices of {n} features, but their shape is {gram.shape}"
        )
    if block < 1:
        raise OptionError(f"block is {block}; columns are decided at least 1 at a time")
    for what, values in (("weight", rows), ("Gram matrix", gram)):
        if not np.isfinite(values).all():
            raise OptionError(f"the {what} holds values that are not finite")


# --- order: which columns are decided together ---


def _layout(
    pattern: Pattern, shape: tuple[int, ...], n_features: int, block: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[slice]]:
    """Give the order in which columns are decided, and the strips of that order that are decided together.

    Patterns along the inputs see one kernel pixel after the other, and no strip crosses from one into the next.
    """
    every = np.arange(n_features, dtype=np.int64)
    if pattern == Blocks() or isinstance(pattern, PerRow):
        return every, [slice(k, min(k + block, n_features)) for k in range(0, n_features, block)]
    width = _width(pattern, block)
    into = shape[1]
    order = every.reshape(into, -1).T.reshape(-1)
    pixels = range(0, n_features, into)
    return order, [slice(p + k, p + min(k + width, into)) for p in pixels for k in range(0, into, width)]


def _width(pattern: Pattern, block: int) -> int:
    """Give how many columns a pattern decides together."""
    if isinstance(pattern, (NofM, Transposable)):
        return pattern.group
    columns = pattern.columns if isinstance(pattern, Blocks) and not pattern.whole_kernel else None
    if isinstance(pattern, Blocks) and columns is not None and pattern.rows is not None:
        return max(1, block // columns) * columns
    raise OptionError(
        f"SparseGPT decides a few columns at a time and cannot follow {pattern}; "
        "use unstructured, per_row, N:M, transposable or RxC blocks of a fixed width"
    )


def _lazily(strips: list[tuple[slice, _Choice]], block: int) -> Iterator[list[tuple[slice, _Choice]]]:
    """Put strips together up to `block` columns."""
    some: list[tuple[slice, _Choice]] = []
    for strip in strips:
        if some and strip[0].stop - some[0][0].start > block:
            yield some
            some = []
        some.append(strip)
    yield some


# --- amounts: how much goes from each strip ---


@dataclass(frozen=True)
class _Choice:
    """A pattern on one strip, with the number of units that go there."""

    pattern: Pattern
    sparsity: float | None
    rule: Rule

    def __call__(self, scores: Floats, locked: Keep | None) -> Keep:
        return np.asarray(self.pattern.keep(np.ascontiguousarray(scores), self.sparsity, locked, rule=self.rule))


def _choices(
    pattern: Pattern, sparsity: float | None, rule: Rule, shape: tuple[int, ...], strips: list[slice]
) -> list[list[_Choice]]:
    """Share the units that go among the strips of every group, so that the whole loses what the pattern asks."""
    n_groups, out, _ = shape
    widths = [s.stop - s.start for s in strips]
    if isinstance(pattern, PerRow):
        # Every row is a whole of its own.
        due = rule.count(0.5 if sparsity is None else sparsity, sum(widths))
        amounts = _shared(due, widths) * n_groups
    elif isinstance(pattern, UnitPattern):
        units = [pattern.n_units((out, w)) for w in widths] * n_groups
        amounts = _shared(pattern.count(pattern.level(sparsity), sum(units), rule), units)
    else:
        return [[_Choice(pattern, sparsity, rule)] * len(strips)] * n_groups
    made = [_Choice(pattern, sparsity, replace(rule, rounding=_fixed(k), min_keep=0)) for k in amounts]
    return [made[g * len(strips) : (g + 1) * len(strips)] for g in range(n_groups)]


def _shared(due: int, sizes: list[int]) -> list[int]:
    """Divide `due` in proportion to `sizes`; the parts add up to it."""
    total, ends = sum(sizes), np.cumsum([0, *sizes])
    marks = [due * int(end) // total for end in ends]
    return [b - a for a, b in itertools.pairwise(marks)]


def _fixed(amount: int) -> Callable[[float], int]:
    return lambda _: amount


# --- the inverse ---


def inverse_factor(gram: Floats, damp: float) -> Floats:
    """Give the upper triangular U with U^T U = (H + ridge)^-1, the ridge being `damp` of the mean of H's diagonal.

    Inputs that are always zero get a millionth of it. A ridge that is too small for a Cholesky factor is raised tenfold
    until there is one. Raises `OptionError` for a matrix that is not positive semidefinite.
    """
    if not damp >= 0:
        raise OptionError(f"damp is {damp}; it is a fraction of the mean energy and cannot be negative")
    diagonal = np.diagonal(gram)
    energy = float(np.mean(diagonal)) or 1.0
    # What is always zero keeps next to no energy, so that its weights cost the least.
    share = np.where(diagonal == 0, _DEAD, 1.0)
    ridge = energy * damp
    for _ in range(_ATTEMPTS):
        flipped = (gram + np.diag(ridge * share))[::-1, ::-1]
        try:
            lower = np.asarray(np.linalg.cholesky(flipped), dtype=np.float64)
        except np.linalg.LinAlgError:
            ridge = max(10 * ridge, _DAMP_AT_LEAST * abs(energy))
            continue
        # Flipped twice, the factor of the flipped matrix is H = R R^T with R upper, and so U = R^-1.
        return np.ascontiguousarray(inverse_of_lower(lower)[::-1, ::-1])
    raise OptionError("the Gram matrix is not positive semidefinite; it must be a sum of x x^T over samples")


def inverse_of_lower(lower: Floats) -> Floats:
    """Invert a lower triangular matrix by halves."""
    n = len(lower)
    if n <= 64:
        return np.asarray(np.tril(np.linalg.inv(lower)))
    half = n // 2
    first, last = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    result = np.zeros_like(lower)
    result[:half, :half], result[half:, half:] = first, last
    result[half:, :half] = -last @ (lower[half:, :half] @ first)
    return result
