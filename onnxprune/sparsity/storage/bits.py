"""An array as the elements that differ from a filler, and one bit per element that says which do.

Elements are compared by their bits, so that -0.0 and NaN come back as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pieces:
    """What is left of an array of `shape`.

    `mask`: uint8, (ceil(n / 8),); bit j of byte b, lowest first, says that element 8 b + j, row-major, is kept.
    `values`: the array's dtype, (1 + kept,): the filler, then the kept elements in order.
    """

    shape: tuple[int, ...]
    mask: Array
    values: Array


def take_apart(array: Array) -> Pieces:
    """Split an array of whole bytes per element into its filler, the elements that differ from it, and their mask."""
    flat = np.ascontiguousarray(array).reshape(-1)
    filler = filler_of(array)
    differs = as_bits(flat) != as_bits(filler)
    values = np.concatenate([filler, flat[differs]])
    return Pieces(array.shape, np.packbits(differs, bitorder="little"), values)


def put_together(pieces: Pieces) -> Array:
    """Undo `take_apart`."""
    size = math.prod(pieces.shape)
    flat = np.repeat(pieces.values[:1], size)
    flat[np.unpackbits(pieces.mask, count=size, bitorder="little").astype(bool)] = pieces.values[1:]
    return flat.reshape(pieces.shape)


def filler_of(array: Array) -> Array:
    """Give what an array mostly holds, as (1,): +0.0 for floats, the most frequent of integer codes.

    Of codes that are as frequent, it is the one with the lowest bits. Where codes were pruned, it is their zero point.
    """
    bits = as_bits(np.ascontiguousarray(array).reshape(-1))
    if not is_integer(array.dtype) or not bits.size:
        return np.zeros(1, array.dtype)
    values, counts = np.unique(bits, return_counts=True) if array.itemsize > 1 else (None, np.bincount(bits))
    mode = np.argmax(counts) if values is None else values[np.argmax(counts)]
    return np.array([mode], bits.dtype).view(array.dtype)


def as_bits(array: Array) -> Array:
    """View the elements as unsigned integers of their own size."""
    return array.view(f"u{array.itemsize}")


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Say whether a dtype holds integer codes (or truth values) and no floats."""
    return dtype.kind in "iub"
