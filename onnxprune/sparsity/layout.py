"""How a tensor as it is stored turns into matrices (output, input, *kernel): reshapes and transposes, both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A reshape to `shape` or, where `permutation` is given, a transposition that ends in `shape`."""

    shape: Shape
    permutation: tuple[int, ...] | None = None

    def apply(self, array: Array) -> Array:
        """Take the step."""
        return array.reshape(self.shape) if self.permutation is None else array.transpose(self.permutation)


@dataclass(frozen=True)
class Layout:
    """The way from a tensor of shape `stored` to another arrangement of the same elements.

    `view` follows it, `back` returns; both give views where numpy can.
    """

    stored: Shape
    steps: tuple[Step, ...] = ()

    @property
    def shape(self) -> Shape:
        """Shape at the end of the way."""
        return self.steps[-1].shape if self.steps else self.stored

    def reshape(self, *shape: int) -> Layout:
        """Go on with a reshape; one size may be -1."""
        n = math.prod(self.stored)
        if -1 in shape:
            rest = math.prod(s for s in shape if s != -1)
            shape = tuple(n // max(1, rest) if s == -1 else s for s in shape)
        if math.prod(shape) != n:
            raise ValueError(f"{self.shape} has other elements than {shape}")
        return Layout(self.stored, (*self.steps, Step(shape)))

    def transpose(self, *permutation: int) -> Layout:
        """Go on with a transposition; raises `ValueError` for what is none of these axes."""
        if sorted(permutation) != list(range(len(self.shape))):
            raise ValueError(f"{list(permutation)} is no order of {len(self.shape)} axes")
        shape = tuple(self.shape[p] for p in permutation)
        return Layout(self.stored, (*self.steps, Step(shape, permutation)))

    def swap(self, a: int, b: int) -> Layout:
        """Go on with two axes exchanged."""
        order = list(range(len(self.shape)))
        order[a], order[b] = order[b], order[a]
        return self.transpose(*order)

    def view(self, array: Array) -> Array:
        """Bring an array of shape `stored` to `shape`."""
        for step in self.steps:
            array = step.apply(array)
        return array

    def back(self, array: Array) -> Array:
        """Bring an array of shape `shape` to `stored`."""
        before: Sequence[Shape] = [self.stored, *(s.shape for s in self.steps)]
        for step, shape in zip(reversed(self.steps), reversed(before[:-1]), strict=True):
            array = (
                array.reshape(shape)
                if step.permutation is None
                else array.transpose(np.argsort(step.permutation).tolist())
            )
        return array
