"""How units of weights are scored and counted: one small value that every pattern takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import OptionError, unknown_name

Reduce: TypeAlias = Literal["mean", "sum", "max"]
Rounding: TypeAlias = Literal["nearest", "down"] | Callable[[float], int]

_ROUNDINGS = ("nearest", "down")
_REDUCES = ("mean", "sum", "max")
# 0.29 * 100 is 28.999999999999996: what a product of floats loses must not cost a unit.
_SLACK = 1e-9


@dataclass(frozen=True)
class Rule:
    """How the score of a unit comes from its elements, and how many units go at a level.

    `rounding`: "nearest" rounds level * units to the nearest whole number, halves to the even one; "down" never
    exceeds the level; a callable maps the float product to a count. `min_keep`: so many units of a tensor survive
    any level below 1. `reduce` and `power`: a unit scores the mean (sum, max) of its real elements' scores raised
    to `power`, so that 2 is the mean of squares.
    """

    rounding: Rounding = "nearest"
    min_keep: int = 1
    reduce: Reduce = "mean"
    power: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuse what no rule can mean."""
        if not callable(self.rounding) and self.rounding not in _ROUNDINGS:
            raise unknown_name("rounding", str(self.rounding), _ROUNDINGS)
        if self.reduce not in _REDUCES:
            raise unknown_name("reduction", str(self.reduce), _REDUCES)
        if self.min_keep < 0:
            raise OptionError(f"min_keep is {self.min_keep}; it counts units that survive and cannot be negative")

    def count(self, level: float, n_units: int) -> int:
        """Give how many of `n_units` go at `level`: none at 0 or below, all at 1 or above.

        Raises `OptionError` for a level that is not a number.
        """
        if math.isnan(level):
            raise OptionError("the sparsity is not a number; give a fraction between 0 and 1")
        if level <= 0:
            return 0
        if level >= 1:
            return n_units
        return max(0, min(self.rounded(level * n_units), n_units - self.min_keep))

    def rounded(self, amount: float) -> int:
        """Round an amount of units to a count."""
        if callable(self.rounding):
            return int(self.rounding(amount))
        return round(amount) if self.rounding == "nearest" else math.floor(amount + _SLACK)
