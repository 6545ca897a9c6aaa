"""Selection on numpy arrays: no loop over blocks, no sort, ties decided by index.

`torch_kernels` has the same functions for torch tensors and gives the same bits: sums are formed in one stated
order. Scores are float32 or float64 and never NaN; -inf stands for what must go first.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Blocks of up to so many elements are summed element by element, in the scores' own precision.
SEQUENTIAL = 64
# Below this the squares of float32 lose digits to underflow.
TINY = 1e-30
# Elements worked on at once: what fits the processor's second cache.
_CHUNK = 1 << 16
_COMPARED = 8
# From so many elements on, a sample of them is looked at first.
_MANY = 1 << 20
_SAMPLE = 1 << 14
_WORDS: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64} if sys.byteorder == "little" else {}


def lowest(scores: Array, k: int) -> Array:
    """Mark the `k` lowest of `scores`, of equal ones those of the highest flat index: bool, same shape."""
    flat = scores.reshape(-1)
    if k <= 0:
        return np.zeros(scores.shape, dtype=bool)
    if k >= flat.size:
        return np.ones(scores.shape, dtype=bool)
    threshold = _smallest(flat, k)
    chosen = flat < threshold
    missing = k - int(np.count_nonzero(chosen))
    chosen[np.flatnonzero(flat == threshold)[-missing:]] = True
    return np.asarray(chosen.reshape(scores.shape))


def _smallest(flat: Array, k: int) -> Any:
    """Give the k-th smallest, counted from 1. Of many, a sample says between which two it lies, and few lie there."""
    if flat.size >= _MANY:
        sample = np.sort(flat[:: flat.size // _SAMPLE | 1])
        at, slack = k * len(sample) // flat.size, 4 * math.isqrt(len(sample))
        low, high = sample[max(0, at - slack)], sample[min(len(sample) - 1, at + slack)]
        least = flat >= low
        below = flat.size - int(np.count_nonzero(least))
        least &= flat <= high
        between = flat[least]
        if below < k <= below + between.size:
            return np.partition(between, k - below - 1)[k - below - 1]
    return np.partition(flat, k - 1)[k - 1]


def lowest_in_rows(scores: Array, k: int) -> Array:
    """Mark the `k` lowest of every row of (rows, size), of equal ones those of the highest index: bool, same shape."""
    rows, size = scores.shape
    if k <= 0 or k >= size:
        return np.full(scores.shape, k > 0, dtype=bool)
    chosen = np.empty(scores.shape, dtype=bool)
    choose = _compared_in_words if size in _WORDS else _compared if size <= _COMPARED else _partitioned
    step = max(1, _CHUNK // size)
    for start in range(0, rows, step):
        choose(scores[start : start + step], k, chosen[start : start + step])
    return chosen


def _compared_in_words(scores: Array, k: int, chosen: Array) -> None:
    """Compare as `_compared` does, a row being the bytes of one word: byte j counts the wins of element j.

    Elements `apart` places from each other are compared in one pass over the flat rows, and pairs that straddle two
    rows are masked out. Byte j starts at j, as if j had beaten all before it, and loses one for each that beats it.
    """
    rows, size = scores.shape
    flat = np.ascontiguousarray(scores).reshape(-1)
    word = _WORDS[size]
    wins = np.full(rows, word(sum(j << 8 * j for j in range(size))))
    beats = np.zeros(flat.size, dtype=bool)
    words = beats.view(word)
    for apart in range(1, size):
        np.greater_equal(flat[:-apart], flat[apart:], out=beats[:-apart])
        words &= word(sum(1 << 8 * j for j in range(size - apart)))
        wins += words
        words <<= word(8 * apart)
        wins -= words
    np.less(wins.view(np.uint8).reshape(rows, size), k, out=chosen)


def _compared(scores: Array, k: int, chosen: Array) -> None:
    """Compare every pair of a short row: what beats fewer than k others goes."""
    size = scores.shape[1]
    columns = np.ascontiguousarray(scores.T)
    wins = np.zeros(columns.shape, dtype=np.uint8)
    for i in range(size):
        for j in range(i + 1, size):
            first = columns[i] >= columns[j]
            wins[i] += first
            wins[j] += ~first
    np.less(wins.T, k, out=chosen)


def _partitioned(scores: Array, k: int, chosen: Array) -> None:
    threshold = np.partition(scores, k - 1, axis=1)[:, k - 1 : k]
    np.less(scores, threshold, out=chosen)
    missing = k - np.count_nonzero(chosen, axis=1)[:, None]
    ties = scores == threshold
    from_end = np.cumsum(ties[:, ::-1], axis=1, dtype=np.int32)[:, ::-1]
    chosen |= ties & (from_end <= missing)


def block_scores(scores: Array, block: tuple[int, int], reduce: str, power: int) -> Array:
    """Reduce (out, in, pixels) to one score per block of `block` = (rows, columns) at each pixel.

    Gives (ceil(out / rows), ceil(in / columns), pixels); blocks cut off by the edge count their real elements only.
    Sums and squares that float32 cannot hold are formed again in float64.
    """
    if block == (1, 1):
        return scores * scores if power == 2 else scores
    large = block[0] * block[1] > SEQUENTIAL
    with np.errstate(over="ignore", under="ignore"):
        result = _reduced(scores.astype(np.float64) if large else scores, block, reduce, power)
        if result.dtype == np.float32 and result.size and not _held(result, power):
            result = _reduced(scores.astype(np.float64), block, reduce, power)
    return result


def _held(result: Array, power: int) -> bool:
    """Tell whether float32 held the sums; single precision squares what is below 1e-15 to nothing."""
    return bool(result.max() < np.inf and (power == 1 or result.min() > TINY))


def _reduced(scores: Array, block: tuple[int, int], reduce: str, power: int) -> Array:
    rows, columns = block
    join = np.maximum if reduce == "max" else np.add
    if rows * columns <= SEQUENTIAL:
        total = _in_turn(scores, block, join, power)
    else:
        total = _halved(scores * scores if power == 2 else scores, block, join)
    if reduce == "mean":
        total /= real_elements(scores.shape, block).astype(total.dtype)[:, :, None]
    return total


def _in_turn(scores: Array, block: tuple[int, int], join: np.ufunc, power: int) -> Array:
    """Join the elements of each block in row-major order; slices beyond the edge are simply shorter."""
    rows, columns = block
    out, into, pixels = scores.shape
    total = np.empty((-(-out // rows), -(-into // columns), pixels), dtype=scores.dtype)
    step = max(1, _CHUNK // max(1, rows * into * pixels))
    for start in range(0, len(total), step):
        part = total[start : start + step]
        values = scores[start * rows : (start + step) * rows]
        if power == 2:
            values = values * values
        part[:] = values[::rows, ::columns]
        for place in range(1, rows * columns):
            r, c = divmod(place, columns)
            other = values[r::rows, c::columns]
            edge = part[: other.shape[0], : other.shape[1]]
            join(edge, other, out=edge)
    return total


def _halved(values: Array, block: tuple[int, int], join: np.ufunc) -> Array:
    """Join large blocks by halves: few passes, small error, an order that every library can follow."""
    fill = -np.inf if join is np.maximum else 0.0
    total = pad(values, block, fill)
    for axis, size in ((0, block[0]), (1, block[1])):
        split = (*total.shape[:axis], total.shape[axis] // size, size, *total.shape[axis + 1 :])
        parts = np.moveaxis(total.reshape(split), axis + 1, 0).copy()
        while len(parts) > 1:
            half = len(parts) // 2
            join(parts[:half], parts[-half:], out=parts[:half])
            parts = parts[: len(parts) - half]
        total = parts[0]
    return np.array(total)


def real_elements(shape: tuple[int, ...], block: tuple[int, int]) -> Array:
    """Count the elements of each block that lie inside `shape`: (block rows, block columns) int64."""
    sizes = []
    for extent, size in zip(shape, block, strict=False):
        starts = np.arange(0, extent, size)
        sizes.append(np.minimum(size, extent - starts))
    return np.asarray(np.multiply.outer(sizes[0], sizes[1]))


def pad(values: Array, block: tuple[int, int], fill: float | bool) -> Array:
    """Fill (out, in, pixels) up to whole blocks; the array itself where it is whole."""
    extra = [(-extent) % size for extent, size in zip(values.shape, block, strict=False)]
    if not any(extra):
        return values
    return np.pad(values, ((0, extra[0]), (0, extra[1]), (0, 0)), constant_values=fill)


def grouped(values: Array, block: tuple[int, int], fill: float | bool) -> Array:
    """Lay each block out as one row: (blocks, rows * columns), blocks in flat order, padded with `fill`."""
    rows, columns = block
    whole = pad(values, block, fill)
    out, into, pixels = whole.shape
    parts = whole.reshape(out // rows, rows, into // columns, columns, pixels)
    return np.asarray(parts.transpose(0, 2, 4, 1, 3).reshape(-1, rows * columns))


def ungrouped(groups: Array, block: tuple[int, int], shape: tuple[int, int, int]) -> Array:
    """Undo `grouped`: back to (out, in, pixels), the padding cut off."""
    rows, columns = block
    down, across, pixels = -(-shape[0] // rows), -(-shape[1] // columns), shape[2]
    parts = groups.reshape(down, across, pixels, rows, columns).transpose(0, 3, 1, 4, 2)
    return np.asarray(parts.reshape(down * rows, across * columns, pixels)[: shape[0], : shape[1]])


def spread(units: Array, block: tuple[int, int], shape: tuple[int, int, int]) -> Array:
    """Give every element of (out, in, pixels) what its block has in `units`."""
    rows, columns = block
    down, across, pixels = units.shape
    if pixels == 1 and columns in _WORDS:
        word = _WORDS[columns]
        # A true byte times 0x0101... is a word of true bytes.
        row = (units.view(np.uint8).astype(word) * word(sum(1 << 8 * j for j in range(columns)))).view(bool)
        wide = row.reshape(down, 1, across * columns, 1)
        wide = wide if rows == 1 else np.broadcast_to(wide, (down, rows, across * columns, 1))
    else:
        wide = np.broadcast_to(units[:, None, :, None, :], (down, rows, across, columns, pixels))
    return np.asarray(wide.reshape(down * rows, across * columns, pixels)[: shape[0], : shape[1]])


def first_where(condition: Array, value: float, values: Array) -> Array:
    """Give `value` where `condition` holds and `values` elsewhere, in the dtype of `values`."""
    return np.where(condition, values.dtype.type(value), values)


def count(mask: Array) -> int:
    """Count the true elements."""
    return int(np.count_nonzero(mask))


def every(groups: Array) -> Array:
    """Tell for each row of (groups, size) whether all of it is true."""
    return np.asarray(groups.all(axis=1))


def filled(shape: tuple[int, ...], value: bool, like: Array) -> Array:  # noqa: ARG001  torch needs the device
    """Make a boolean array of one value."""
    return np.full(shape, value, dtype=bool)
