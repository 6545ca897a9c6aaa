"""What a pattern is: a value that turns scores into a keep mask, and the base of those that remove units."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from ..errors import OptionError
from . import numpy_kernels
from .rule import Rule

# A numpy array or a torch tensor: patterns are written once and pick their kernels by the array they get.
Array: TypeAlias = Any
Shape3: TypeAlias = tuple[int, int, int]

DEFAULT_RULE = Rule()
FIRST_TO_GO = float("-inf")


def kernels_for(array: Array) -> ModuleType:
    """Give the functions that work on `array`: those of numpy, or of torch for a tensor."""
    if isinstance(array, np.ndarray):
        return numpy_kernels
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        from . import torch_kernels

        return torch_kernels
    raise OptionError(f"expected a numpy array or a torch tensor, not {type(array).__name__}")


def logical_shape(shape: tuple[int, ...]) -> Shape3:
    """Read a weight's shape (output, input, *kernel) as (output, input, pixels); a vector is one output."""
    if not shape:
        raise OptionError("a single number has no pattern; give a weight of one axis or more")
    if len(shape) == 1:
        return 1, shape[0], 1
    pixels = 1
    for size in shape[2:]:
        pixels *= size
    return shape[0], shape[1], pixels


class Pattern(ABC):
    """Where zeros may fall. Patterns are frozen values: equal ones give equal masks."""

    @property
    def own_sparsity(self) -> float | None:
        """The fraction of zeros that the pattern stands for, or None where any fraction fits it."""
        return None

    @abstractmethod
    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Make a keep mask (bool, True survives) from one score per weight, higher = keep.

        `scores` has the weight's shape (output, input, *kernel) and is floating and free of NaN. `sparsity` is the
        fraction of zeros wanted; without it, `own_sparsity` or a half. `locked` marks what must be zero whatever its
        score; it counts towards the sparsity. Raises `OptionError` for a shape or a sparsity that does not fit.
        """

    def complete(self, zero: Array) -> Array:
        """Mark the units that already are as sparse as the pattern asks, given where a weight is zero: flat bool."""
        return zero.reshape(-1)

    def lock(self, zero: Array) -> Array:
        """Mark the zeros that the pattern holds on to: those that lie in complete units."""
        return zero


class UnitPattern(Pattern):
    """A pattern that ranks units of weights and zeroes within the lowest: blocks, groups, rows."""

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Zero within the lowest units, as many as the sparsity asks and no more; see `Pattern.keep`."""
        shape = tuple(scores.shape)
        kernels = kernels_for(scores)
        n_units = self.n_units(shape)
        k = self.count(self.level(sparsity), n_units, rule)
        if locked is not None:
            scores = kernels.first_where(locked, FIRST_TO_GO, scores)
        if k <= 0:
            cut = kernels.filled(shape, False, scores)
        elif k >= n_units:
            cut = self.cut(scores, None)
        else:
            units = self.unit_scores(scores, rule)
            if locked is not None:
                k = max(k, kernels.count(units == FIRST_TO_GO))
            cut = self.cut(scores, kernels.lowest(units, k))
        if locked is not None:
            cut = cut | locked
        return ~cut

    def count(self, level: float, n_units: int, rule: Rule) -> int:
        """Give how many units go at a level."""
        return rule.count(level, n_units)

    def level(self, sparsity: float | None) -> float:
        """Give the fraction of units that a sparsity stands for."""
        return 0.5 if sparsity is None else sparsity

    @abstractmethod
    def n_units(self, shape: tuple[int, ...]) -> int:
        """Count the units of a weight; raises `OptionError` for a shape that does not fit."""

    @abstractmethod
    def unit_scores(self, scores: Array, rule: Rule) -> Array:
        """Score every unit: flat, by the index of its first weight; -inf where all that could go is locked."""

    @abstractmethod
    def cut(self, scores: Array, chosen: Array | None) -> Array:
        """Mark the weights that go when the `chosen` units do (flat bool; None: all of them)."""

    @abstractmethod
    def zeros_of(self, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Count the weights that go with each unit: flat int64, in the order of `unit_scores`."""


@dataclass(frozen=True)
class Custom(Pattern):
    """A user's pattern: a function of scores and sparsity, or an object with such a method `keep`."""

    name: str
    entry: Any

    def keep(
        self, scores: Array, sparsity: float | None = None, locked: Array | None = None, *, rule: Rule = DEFAULT_RULE
    ) -> Array:
        """Ask the user's code for the mask, check it, and zero what is locked."""
        make: Callable[[Array, float], Array] = getattr(self.entry, "keep", self.entry)
        values = scores * scores if rule.power == 2 else scores
        mask = make(values, 0.5 if sparsity is None else sparsity)
        if tuple(getattr(mask, "shape", ())) != tuple(scores.shape) or "bool" not in str(getattr(mask, "dtype", "")):
            raise OptionError(
                f"pattern {self.name!r} gave {type(mask).__name__} of shape {tuple(getattr(mask, 'shape', ()))} and "
                f"dtype {getattr(mask, 'dtype', None)} for scores of shape {tuple(scores.shape)}; return a boolean "
                "array of that shape, True where the weight survives"
            )
        return mask if locked is None else mask & ~locked
