"""N:M sparsity: N kept of every M weights along the input axis, and its variant V:N:M."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import OptionError
from .numpy_kernels import real_elements
from .pattern import DEFAULT_RULE, FIRST_TO_GO, Array, Pattern, UnitPattern, kernels_for, logical_shape
from .rule import Rule

_SLACK = 1e-9


def check_n_of_m(kept: int, group: int) -> None:
    """Refuse an N:M that keeps nothing, or more than there is."""
    if not 0 < kept <= group:
        raise OptionError(
            f"{kept}:{group} keeps {kept} of every {group} weights, which cannot be; "
            f"N:M reads N kept of M, as NVIDIA writes it, with 1 <= N <= M"
        )


@dataclass(frozen=True)
class NofM(UnitPattern):
    """Keep the `kept` highest of every `group` consecutive inputs, at a fixed output and kernel pixel.

    The last group of a row may be short: its padding counts as zeros, so of r real weights max(0, r - kept) go.
    A sparsity below the pattern's own zeroes whole groups' worth, those whose zeros cost the least; a higher one
    is refused. Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, section 3.
    """

    kept: int
    group: int

    def __post_init__(self) -> None:
        """Refuse what is no N:M."""
        check_n_of_m(self.kept, self.group)

    @property
    def own_sparsity(self) -> float:
        """The fraction of zeros where every group is full."""
        return (self.group - self.kept) / self.group

    @property
    def zeros(self) -> int:
        """The zeros of a whole group."""
        return self.group - self.kept

    def level(self, sparsity: float | None) -> float:
        """Give the fraction of groups for a sparsity, which may be at most the pattern's own."""
        if sparsity is None:
            return 1.0
        if sparsity > self.own_sparsity + _SLACK:
            raise OptionError(
                f"{self.kept}:{self.group} keeps {self.kept} of every {self.group} weights: a sparsity of at most "
                f"{self.own_sparsity:g}, not {sparsity:g}; ask for less, or for another pattern"
            )
        if sparsity == 0 or self.own_sparsity == 0:
            return 0.0
        level = sparsity / self.own_sparsity
        return 1.0 if math.isclose(level, 1, abs_tol=_SLACK) else level

    def count(self, level: float, n_units: int, rule: Rule) -> int:
        """Give how many groups go at a level; each keeps weights, so none need be spared."""
        return replace(rule, min_keep=0).count(level, n_units)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """Count the groups."""
        out, into, pixels = logical_shape(shape)
        return out * -(-into // self.group) * pixels

    def unit_scores(self, scores: Array, rule: Rule) -> Array:
        """Score each group by the sum of what would go from it."""
        view = scores.reshape(logical_shape(tuple(scores.shape)))
        kernels = kernels_for(scores)
        block = (1, self.group)
        groups = kernels.grouped(view, block, FIRST_TO_GO)
        gone = kernels.lowest_in_rows(groups, self.zeros)
        locked = groups == FIRST_TO_GO
        costs = kernels.first_where(locked | ~gone, 0.0, groups)
        units = kernels.block_scores(costs[:, :, None], block, "sum", rule.power).reshape(-1)
        if kernels.count(view == FIRST_TO_GO):
            units = kernels.first_where(locked.sum(1) >= self.zeros, FIRST_TO_GO, units)
        return units

    def cut(self, scores: Array, chosen: Array | None) -> Array:
        """Mark the lowest weights of the chosen groups."""
        shape = logical_shape(tuple(scores.shape))
        kernels = kernels_for(scores)
        block = (1, self.group)
        gone = kernels.lowest_in_rows(kernels.grouped(scores.reshape(shape), block, FIRST_TO_GO), self.zeros)
        if chosen is not None:
            gone &= chosen[:, None]
        return kernels.ungrouped(gone, block, shape).reshape(tuple(scores.shape))

    def zeros_of(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Count the weights that go with each group."""
        view = logical_shape(shape)
        real = real_elements(view, (1, self.group)).astype(np.int64)
        return np.repeat(np.maximum(real - self.kept, 0).reshape(-1), view[2])

    def complete(self, zero: Array) -> Array:
        """Mark the groups with as many zeros as the pattern asks."""
        view = zero.reshape(logical_shape(tuple(zero.shape)))
        return kernels_for(zero).grouped(view, (1, self.group), True).sum(1) >= self.zeros

    def lock(self, zero: Array) -> Array:
        """Mark the zeros of complete groups; a zero in another group may come back."""
        shape = logical_shape(tuple(zero.shape))
        done = self.complete(zero).reshape(shape[0], -1, shape[2])
        return zero & kernels_for(zero).spread(done, (1, self.group), shape).reshape(tuple(zero.shape))


def check_own_sparsity(pattern: Pattern, sparsity: float | None) -> bool:
    """Tell whether a pattern of one sparsity is wanted at all; raises `OptionError` for any but its own and 0."""
    own = pattern.own_sparsity
    if sparsity is None or own is None or math.isclose(sparsity, own, abs_tol=_SLACK):
        return True
    if sparsity == 0:
        return False
    raise OptionError(f"{pattern} has a sparsity of {own:g} and cannot give {sparsity:g}; leave the sparsity out")


@dataclass(frozen=True)
class VNofM(Pattern):
    """V:N:M: for each `rows` outputs together, 4 of every `group` inputs stay, and of those 4 `kept` per output.

    The four inputs are those of the highest total score over the `rows` outputs; a last group of up to 4 inputs stays
    whole before N:4 is applied to it. Source: Castro et al., VENOM, SC 2023, section 3.
    """

    rows: int
    kept: int
    group: int

    def __post_init__(self) -> None:
        """Refuse what is no V:N:M."""
        check_n_of_m(self.kept, 4)
        if self.group < 4 or self.rows < 1:
            raise OptionError(f"{self.rows}:{self.kept}:{self.group} needs V >= 1 and M >= 4: 4 of every M inputs stay")

    @property
    def own_sparsity(self) -> float:
        """The fraction of zeros of a whole block."""
        return 1 - self.kept / self.group

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Keep `kept` of the four inputs that each block of outputs shares."""
        kernels = kernels_for(scores)
        full = tuple(scores.shape)
        if not check_own_sparsity(self, sparsity):
            return kernels.filled(full, True, scores) if locked is None else ~locked
        shape = logical_shape(full)
        allowed = scores if locked is None else kernels.first_where(locked, 0.0, scores)
        totals = kernels.block_scores(allowed.reshape(shape), (self.rows, 1), "sum", rule.power)
        block = (1, self.group)
        gone = kernels.lowest_in_rows(kernels.grouped(totals, block, FIRST_TO_GO), self.group - 4)
        across = kernels.ungrouped(gone, block, tuple(totals.shape))
        dropped = kernels.spread(across, (self.rows, 1), shape).reshape(full)
        if locked is not None:
            dropped = dropped | locked
        # What is dropped sinks to the bottom of its group, so that the highest `kept` of a group are of the four.
        return NofM(self.kept, self.group).keep(scores, locked=dropped)

    def complete(self, zero: Array) -> Array:
        """Mark the groups of single outputs with as many zeros as the pattern asks."""
        return NofM(self.kept, self.group).complete(zero)

    def lock(self, zero: Array) -> Array:
        """Mark the zeros of complete groups."""
        return NofM(self.kept, self.group).lock(zero)
