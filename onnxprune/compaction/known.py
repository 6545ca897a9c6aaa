"""What is known of one value before any input is: which elements are the same at every run, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
CanStretch = Callable[[int], bool]


@dataclass(frozen=True)
class Known:
    """`mask` is True where an element is known, `value` holds it (anything elsewhere).

    Both have the value's rank and one shape. An axis of length one stands for all its indices, so that a channel that
    is constant everywhere takes one element whatever the size of the image.
    """

    mask: Mask
    value: Array

    @staticmethod
    def constant(array: Array) -> Known:
        """Know every element."""
        return Known(np.broadcast_to(np.True_, array.shape), array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored lengths of the axes."""
        return tuple(self.value.shape)

    @property
    def zero(self) -> Mask:
        """Where elements are known to be zero."""
        return np.asarray(self.mask & (self.value == 0))

    @property
    def complete(self) -> bool:
        """Say whether every element is known."""
        return bool(self.mask.all())

    def filled(self, filler: float) -> Array:
        """Give the values, with `filler` for what is unknown."""
        return np.where(self.mask, self.value, np.asarray(filler).astype(self.value.dtype))

    def stretched(self, shape: Sequence[int]) -> Known:
        """Repeat axes of length one up to `shape`."""
        return Known(np.broadcast_to(self.mask, shape), np.broadcast_to(self.value, shape))

    def mapped(self, move: Callable[[Array], Array]) -> Known:
        """Move elements: the same way in both arrays."""
        return Known(move(self.mask), move(self.value))


def known_or_none(mask: Any, value: Array) -> Known | None:
    """Give what is known, None for nothing."""
    mask = np.asarray(mask, dtype=bool)
    if not mask.any():
        return None
    shape = np.broadcast_shapes(mask.shape, value.shape)
    return Known(np.broadcast_to(mask, shape), np.broadcast_to(value, shape))


def nothing(rank: int, dtype: Any) -> Known:
    """Know no element of a value of this rank."""
    return Known(np.zeros((1,) * rank, dtype=bool), np.ones((1,) * rank, dtype=dtype))


def regrouped(known: Known, before: Sequence[int], after: Sequence[int], can_stretch: CanStretch) -> Known | None:
    """Carry over a reshape from shape `before` to `after`, both with their full sizes.

    Axes that are split or joined are stored in full for it; None where one of them `can_stretch` denies, since its
    size differs from run to run.
    """
    stored, lengths = list(known.shape), list(known.shape)
    result: list[int] = []
    for left, right in _segments(before, after):
        if all(stored[k] == 1 for k in left):
            result += [1] * len(right)
            continue
        # A batch of one that other axes are joined to only repeats what is known of them.
        if any(stored[k] == 1 < before[k] and not can_stretch(k) for k in left):
            return None
        for k in left:
            lengths[k] = before[k]
        result += [after[k] for k in right]
    full = known.stretched(lengths)
    return full.mapped(lambda a: a.reshape(result))


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Divide two shapes of one product into the shortest runs of axes with equal products."""
    segments: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        p = q = 1
        while not (left and right and p == q) and (i < len(before) or j < len(after)):
            take_left = i < len(before) and (not left or (bool(right) and p < q) or j >= len(after))
            if take_left:
                left.append(i)
                p, i = p * before[i], i + 1
            else:
                right.append(j)
                q, j = q * after[j], j + 1
        segments.append((left, right))
    return segments


def full_size(known: Known, shape: Sequence[int], can_stretch: CanStretch, *, keep: Sequence[int] = ()) -> Known | None:
    """Store every axis in full except those in `keep`; None where the size of one may differ from run to run."""
    lengths = list(known.shape)
    for k, size in enumerate(shape):
        if k not in keep and lengths[k] != size:
            if not can_stretch(k):
                return None
            lengths[k] = size
    return known.stretched(lengths)
