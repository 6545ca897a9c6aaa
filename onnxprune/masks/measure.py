"""Sparsity as it is, counted from the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError
from .pattern import Pattern, kernels_for
from .patterns import parse_pattern


@dataclass(frozen=True)
class Measured:
    """What a mask holds: weights and zeros, and how they fall into the pattern's units.

    `complete` units are as sparse as the pattern asks (a block all zero, a group with M - N zeros); `held` zeros lie
    in them, the others gain nothing from the pattern.
    """

    elements: int
    zeros: int
    units: int
    complete: int
    held: int

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero."""
        return self.zeros / self.elements if self.elements else 0.0

    @property
    def complete_fraction(self) -> float:
        """The fraction of units that are complete: 1 for a weight that is N:M throughout."""
        return self.complete / self.units if self.units else 0.0

    @property
    def valid_fraction(self) -> float:
        """The fraction of zeros that lie in complete units: 1 where every zero serves the pattern."""
        return self.held / self.zeros if self.zeros else 1.0


def measure(mask: Any, pattern: str | Pattern | Any = "unstructured", zeros_per_block: int | None = None) -> Measured:
    """Count a keep mask (bool, any shape) by a pattern, numpy or torch; a group's padding counts as zeros.

    Raises `OptionError` for a mask that is not boolean.
    """
    chosen = parse_pattern(pattern, zeros_per_block)
    if not isinstance(mask, np.ndarray) and not hasattr(mask, "detach"):
        mask = np.asarray(mask)
    if "bool" not in str(mask.dtype):
        raise OptionError(f"the mask's dtype is {mask.dtype}; give booleans, True where the weight survives")
    kernels = kernels_for(mask)
    zero = ~mask
    done = chosen.complete(zero)
    return Measured(
        elements=int(np.prod(mask.shape, dtype=np.int64)),
        zeros=kernels.count(zero),
        units=len(done),
        complete=kernels.count(done),
        held=kernels.count(chosen.lock(zero)),
    )
