"""Blocks of weights that go together: single weights, RxC blocks, whole channels, rows and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError
from .numpy_kernels import real_elements
from .pattern import DEFAULT_RULE, FIRST_TO_GO, Array, Pattern, Shape3, UnitPattern, kernels_for, logical_shape
from .rule import Rule


@dataclass(frozen=True)
class Blocks(UnitPattern):
    """Blocks of `rows` outputs by `columns` inputs, at each kernel pixel of their own; None takes the whole axis.

    The lowest blocks by the mean of their real elements go: whole, or the `zeros` lowest weights of each. A block
    that the edge cuts off counts its padding as zeros, so of its real weights `zeros - padding` go. `whole_kernel`
    joins all kernel pixels of an input. Unless `ragged`, a weight that is no whole number of blocks is refused.
    Source of the scores and counts: torch.ao.pruning.WeightNormSparsifier, its padding defects aside.
    """

    rows: int | None = 1
    columns: int | None = 1
    zeros: int | None = None
    whole_kernel: bool = False
    ragged: bool = True

    def __post_init__(self) -> None:
        """Refuse blocks that cannot be."""
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if size is not None and size < 1:
                raise OptionError(f"a block of {size} {name} is none; give 1 or more")
        if self.zeros is not None and self.zeros < 0:
            raise OptionError(f"zeros_per_block is {self.zeros}; give 0 or more")
        if self.rows is not None and self.columns is not None and not self.whole_kernel:
            self._check_zeros((self.rows, self.columns))

    def _check_zeros(self, block: tuple[int, int]) -> None:
        if self.zeros is not None and self.zeros > block[0] * block[1]:
            raise OptionError(
                f"zeros_per_block is {self.zeros}, but a block of {block[0]}x{block[1]} has {block[0] * block[1]} "
                "weights; ask for fewer zeros or larger blocks"
            )

    def fit(self, shape: tuple[int, ...]) -> tuple[Shape3, tuple[int, int]]:
        """Give the view (out, in, pixels) that blocks are cut from, and the block's size in it."""
        out, into, pixels = logical_shape(shape)
        rows = out if self.rows is None else self.rows
        columns = into if self.columns is None else self.columns
        if not self.ragged and (out % rows or into % columns):
            raise OptionError(
                f"blocks of {rows}x{columns} that must be whole do not fit a weight of shape {shape}; give a size that "
                "divides it"
            )
        if self.whole_kernel:
            into, columns, pixels = into * pixels, columns * pixels, 1
        block = (max(rows, 1), max(columns, 1))
        self._check_zeros(block)
        return (out, into, pixels), block

    def partial(self, block: tuple[int, int]) -> int | None:
        """Give the zeros of a block that is not zeroed whole, or None."""
        return None if self.zeros in (None, block[0] * block[1]) else self.zeros

    def n_units(self, shape: tuple[int, ...]) -> int:
        """Count the blocks, those that the edge cuts off too."""
        (out, into, pixels), (rows, columns) = self.fit(shape)
        return -(-out // rows) * -(-into // columns) * pixels

    def unit_scores(self, scores: Array, rule: Rule) -> Array:
        """Score each block by the mean (sum, max) of its real elements; what is locked counts as zero."""
        shape, block = self.fit(tuple(scores.shape))
        kernels = kernels_for(scores)
        if block == (1, 1):
            return scores.reshape(-1)
        view = scores.reshape(shape)
        locked = view == FIRST_TO_GO
        if not kernels.count(locked):
            return kernels.block_scores(view, block, rule.reduce, rule.power).reshape(-1)
        units = kernels.block_scores(kernels.first_where(locked, 0.0, view), block, rule.reduce, rule.power).reshape(-1)
        done = self._complete(locked, block)
        return kernels.first_where(done, FIRST_TO_GO, units)

    def cut(self, scores: Array, chosen: Array | None) -> Array:
        """Mark the chosen blocks, or the lowest weights in them."""
        full = tuple(scores.shape)
        shape, block = self.fit(full)
        kernels = kernels_for(scores)
        partial = self.partial(block)
        if chosen is None and partial is None:
            return kernels.filled(full, True, scores)
        if chosen is not None and block == (1, 1):
            whole = chosen.reshape(shape)
        elif chosen is not None:
            whole = kernels.spread(chosen.reshape(self._grid(shape, block)), block, shape)
        if partial is None:
            return whole.reshape(full)
        groups = kernels.grouped(scores.reshape(shape), block, FIRST_TO_GO)
        inside = kernels.ungrouped(kernels.lowest_in_rows(groups, partial), block, shape)
        return (inside if chosen is None else inside & whole).reshape(full)

    def zeros_of(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Count the weights that go with each block."""
        view, block = self.fit(shape)
        real = real_elements(view, block).astype(np.int64)
        partial = self.partial(block)
        if partial is not None:
            real = np.maximum(partial - (block[0] * block[1] - real), 0)
        return np.repeat(real.reshape(-1), view[2])

    def complete(self, zero: Array) -> Array:
        """Mark the blocks whose weights are all zero, or enough of them."""
        shape, block = self.fit(tuple(zero.shape))
        return self._complete(zero.reshape(shape), block)

    def _complete(self, zero: Array, block: tuple[int, int]) -> Array:
        kernels = kernels_for(zero)
        groups = kernels.grouped(zero, block, True)
        partial = self.partial(block)
        return kernels.every(groups) if partial is None else groups.sum(1) >= partial

    def lock(self, zero: Array) -> Array:
        """Mark the zeros that lie in complete blocks."""
        shape, block = self.fit(tuple(zero.shape))
        done = self._complete(zero.reshape(shape), block)
        whole = kernels_for(zero).spread(done.reshape(self._grid(shape, block)), block, shape)
        return zero & whole.reshape(tuple(zero.shape))

    @staticmethod
    def _grid(shape: Shape3, block: tuple[int, int]) -> Shape3:
        return -(-shape[0] // block[0]), -(-shape[1] // block[1]), shape[2]


def heads(size: int, axis: int = 0) -> Blocks:
    """Make the pattern of whole attention heads: `size` rows each (axis 0: query, key, value) or columns (axis 1)."""
    if axis not in (0, 1):
        raise OptionError(f"heads lie along axis 0 (rows) or 1 (columns) of a weight, not {axis}")
    if size < 1:
        raise OptionError(f"heads of {size} features are none; give 1 or more")
    rows, columns = (size, None) if axis == 0 else (None, size)
    return Blocks(rows, columns, whole_kernel=True, ragged=False)


@dataclass(frozen=True)
class PerRow(Pattern):
    """The same number of single weights from every output row, as Wanda prunes.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, section 3.
    """

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Zero the lowest weights of each row."""
        kernels = kernels_for(scores)
        shape = tuple(scores.shape)
        rows = scores if locked is None else kernels.first_where(locked, FIRST_TO_GO, scores)
        out, into, pixels = logical_shape(shape)
        k = rule.count(0.5 if sparsity is None else sparsity, into * pixels)
        cut = kernels.lowest_in_rows(rows.reshape(out, into * pixels), k).reshape(shape)
        return ~cut if locked is None else ~(cut | locked)
