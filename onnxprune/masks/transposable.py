"""Transposable N:M: rows and columns of every tile keep N of M, so that the transpose is N:M as well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, Literal

import numpy as np

from ..errors import OptionError
from .groups import check_n_of_m, check_own_sparsity
from .numpy_kernels import grouped, ungrouped
from .pattern import DEFAULT_RULE, Array, Pattern, kernels_for, logical_shape
from .rule import Rule

Tiles = np.ndarray[Any, Any]

_TILES_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Transposable(Pattern):
    """Keep N of M in every row and every column of each MxM tile, with the most score kept.

    `method`: "exact" tries every mask of a tile (M <= 4); "greedy" takes weights from the highest down while their
    row and column have room, and may keep fewer than N; "swaps" completes the greedy mask and exchanges pairs until
    none gains. "auto" is exact where it can be, else swaps. Tiles at the edge are filled up with zero scores.
    Source: Hubara et al., Accelerated Sparse Neural Training, NeurIPS 2021, section 4.
    """

    kept: int
    group: int
    method: Literal["auto", "exact", "greedy", "swaps"] = "auto"

    def __post_init__(self) -> None:
        """Refuse what is no N:M, and what would take forever."""
        check_n_of_m(self.kept, self.group)
        if self.method not in ("auto", "exact", "greedy", "swaps"):
            raise OptionError(f"transposable masks are made by auto, exact, greedy or swaps, not by {self.method!r}")
        if self.method == "exact" and self.group > 4:
            raise OptionError(f"exact masks are for tiles of up to 4x4, not {self.group}x{self.group}; use 'swaps'")
        if self.group > 32:
            raise OptionError(f"transposable tiles of {self.group}x{self.group} are too large; at most 32x32")

    @property
    def own_sparsity(self) -> float:
        """The fraction of zeros of a whole tile."""
        return (self.group - self.kept) / self.group

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Choose the mask of each tile; tensors are worked on in numpy."""
        if not isinstance(scores, np.ndarray):
            import torch

            held = None if locked is None else locked.cpu().numpy()
            return torch.from_numpy(self.keep(scores.cpu().numpy(), sparsity, held, rule=rule)).to(scores.device)
        if not check_own_sparsity(self, sparsity):
            return np.ones(scores.shape, dtype=bool) if locked is None else ~locked
        values = scores.astype(np.float64)
        if rule.power == 2:
            values = np.square(values)
        if locked is not None:
            values[locked] = 0
        shape, block = logical_shape(scores.shape), (self.group, self.group)
        tiles = grouped(values.reshape(shape), block, 0.0)
        mask = np.empty(tiles.shape, dtype=bool)
        choose = self._chooser()
        for start in range(0, len(tiles), _TILES_AT_ONCE):
            part = tiles[start : start + _TILES_AT_ONCE]
            mask[start : start + _TILES_AT_ONCE] = choose(part, self.kept, self.group)
        kept = ungrouped(mask, block, shape).reshape(scores.shape)
        return kept if locked is None else kept & ~locked

    def complete(self, zero: Array) -> Array:
        """Mark the tiles of which every row and column has as many zeros as the pattern asks."""
        kernels = kernels_for(zero)
        tiles = kernels.grouped(zero.reshape(logical_shape(tuple(zero.shape))), (self.group, self.group), True)
        tiles = tiles.reshape(-1, self.group, self.group)
        enough = self.group - self.kept
        return kernels.every(tiles.sum(1) >= enough) & kernels.every(tiles.sum(2) >= enough)

    def lock(self, zero: Array) -> Array:
        """Mark the zeros of complete tiles."""
        shape = logical_shape(tuple(zero.shape))
        grid = (-(-shape[0] // self.group), -(-shape[1] // self.group), shape[2])
        whole = kernels_for(zero).spread(self.complete(zero).reshape(grid), (self.group, self.group), shape)
        return zero & whole.reshape(tuple(zero.shape))

    def _chooser(self) -> Any:
        method = self.method
        if method == "auto":
            method = "exact" if self.group <= 4 else "swaps"
        return {"exact": _exact, "greedy": _greedy, "swaps": _swapped}[method]


@cache
def _all_masks(kept: int, group: int) -> Tiles:
    """List every (group, group) mask with `kept` in each row and column, low indices first: (masks, group**2) bool."""
    rows = [np.isin(np.arange(group), chosen) for chosen in combinations(range(group), kept)]
    stacks = (np.array(stack) for stack in product(rows, repeat=group))
    return np.array([stack.reshape(-1) for stack in stacks if (stack.sum(axis=0) == kept).all()])


def _exact(tiles: Tiles, kept: int, group: int) -> Tiles:
    masks = _all_masks(kept, group)
    best = np.argmax(tiles @ masks.T.astype(np.float64), axis=1)
    return np.asarray(masks[best])


def _greedy(tiles: Tiles, kept: int, group: int) -> Tiles:
    order = np.argsort(-tiles, axis=1, kind="stable")
    rows = np.zeros((len(tiles), group), dtype=np.int64)
    columns = np.zeros_like(rows)
    mask = np.zeros(tiles.shape, dtype=bool)
    every = np.arange(len(tiles))
    for place in order.T:
        row, column = np.divmod(place, group)
        room = (rows[every, row] < kept) & (columns[every, column] < kept)
        mask[every, place] = room
        rows[every, row] += room
        columns[every, column] += room
    return mask


def _swapped(tiles: Tiles, kept: int, group: int) -> Tiles:
    """Complete the greedy masks, then exchange pairs of weights while that gains."""
    mask = _greedy(tiles, kept, group).reshape(-1, group, group)
    square = tiles.reshape(-1, group, group)
    step = max(1, (1 << 22) // group**4)
    for start in range(0, len(mask), step):
        part = slice(start, start + step)
        _complete(square[part], mask[part], kept)
        _exchange(square[part], mask[part])
    return np.asarray(mask.reshape(tiles.shape))


def _complete(scores: Tiles, mask: Tiles, kept: int) -> None:
    """Fill rows and columns that lack weights, in place.

    A row r and a column c that both have room keep (r, c) already, or greedy would have taken it. So some kept (a, b)
    gives way to (r, b) and (a, c): the one that gains most.
    """
    while True:
        lacking = np.flatnonzero((mask.sum(axis=2) < kept).any(axis=1))
        if not len(lacking):
            return
        own, held = scores[lacking], mask[lacking]
        every = np.arange(len(lacking))
        r = np.argmax(held.sum(axis=2) < kept, axis=1)
        c = np.argmax(held.sum(axis=1) < kept, axis=1)
        free = ~held[every, r, c]
        gain = own[every, r][:, None, :] + own[every, :, c][:, :, None] - own
        open_ = held & ~held[every, r][:, None, :] & ~held[every, :, c][:, :, None]
        a, b = np.divmod(np.argmax(np.where(open_, gain, -np.inf).reshape(len(lacking), -1), axis=1), mask.shape[1])
        held[every, a, b] &= free
        held[every, r, np.where(free, c, b)] = True
        held[every, np.where(free, r, a), c] = True
        mask[lacking] = held


def _exchange(scores: Tiles, mask: Tiles) -> None:
    """Exchange kept (a, b), (c, d) for (a, d), (c, b) where that gains, the best of a tile first, in place."""
    group = mask.shape[1]
    active = np.arange(len(mask))
    for _ in range(group * group):
        own, held = scores[active], mask[active]
        pairs = held[:, :, :, None, None] & held[:, None, None, :, :]
        crossed = ~held[:, :, None, None, :] & ~held.transpose(0, 2, 1)[:, None, :, :, None]
        # gain[a, b, c, d] = s[a, d] + s[c, b] - s[a, b] - s[c, d]
        gain = own[:, :, None, None, :] + own.transpose(0, 2, 1)[:, None, :, :, None]
        gain = gain - own[:, :, :, None, None] - own[:, None, None, :, :]
        flat = np.where(pairs & crossed, gain, 0.0).reshape(len(active), -1)
        best = np.argmax(flat, axis=1)
        gains = flat[np.arange(len(active)), best] > 1e-12 * np.abs(own).reshape(len(active), -1).max(axis=1)
        active, best = active[gains], best[gains]
        if not len(active):
            return
        a, b, c, d = np.unravel_index(best, (group,) * 4)
        mask[active, a, b] = mask[active, c, d] = False
        mask[active, a, d] = mask[active, c, b] = True
