"""Schedules: how the sparsity grows from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import OptionError
from ..registry import Registry

# (start, end, progress in [0, 1]) -> level
Curve: TypeAlias = Callable[[float, float, float], float]

curves: Registry[Curve] = Registry("schedule")


@dataclass(frozen=True)
class Schedule:
    """The level at each step: `start` at step `first`, `end` from step `first + steps` on, `curve` in between.

    `curve` is a registered name (linear, cubic, late_cubic, exponential, cosine) or a function of
    (start, end, progress). Levels stay between start and end, whichever is higher. Before `first` the level is
    `start`, or 0 with `initially_zero`.
    """

    curve: str | Curve
    end: float
    steps: int
    start: float = 0.0
    first: int = 0
    initially_zero: bool = False

    def __post_init__(self) -> None:
        """Refuse levels and lengths that cannot be."""
        for name, level in (("start", self.start), ("end", self.end)):
            if not 0 <= level <= 1:
                raise OptionError(f"the schedule's {name} is {level}; levels are fractions between 0 and 1")
        if self.steps < 1:
            raise OptionError(f"the schedule has {self.steps} steps; give 1 or more")
        if isinstance(self.curve, str):
            curves[self.curve]

    def __call__(self, step: float) -> float:
        """Give the level at a step."""
        if step < self.first and self.initially_zero:
            return 0.0
        progress = min(max((step - self.first) / self.steps, 0.0), 1.0)
        curve = curves[self.curve] if isinstance(self.curve, str) else self.curve
        low, high = sorted((self.start, self.end))
        return min(max(curve(self.start, self.end, progress), low), high)


def scaled(base: float, factor: Callable[[int], float]) -> Callable[[int], float]:
    """Make the schedule base * factor(step). Source: torch.ao.pruning.LambdaSL."""
    return lambda step: base * factor(step)


@curves.register("linear")
def linear(start: float, end: float, progress: float) -> float:
    """Grow evenly."""
    return start + (end - start) * progress


@curves.register("cubic")
def cubic(start: float, end: float, progress: float) -> float:
    """Grow fast at first. Source: Zhu and Gupta, To Prune, or Not to Prune, 2017, eq. 1."""
    return float(end + (start - end) * (1 - progress) ** 3)


@curves.register("late_cubic")
def late_cubic(start: float, end: float, progress: float) -> float:
    """Grow fast at last. Source: neural-compressor's "cube" decay."""
    return float(start + (end - start) * progress**3)


@curves.register("exponential")
def exponential(start: float, end: float, progress: float) -> float:
    """Shrink what survives by one factor per step. Source: neural-compressor's "exp" decay."""
    if start >= 1:
        return linear(start, end, progress)
    return float(1 - (1 - start) * ((1 - end) / (1 - start)) ** progress)


@curves.register("cosine")
def cosine(start: float, end: float, progress: float) -> float:
    """Grow slowly at first, along a quarter of a cosine. Source: neural-compressor's "cos" decay."""
    return start + (end - start) * (1 - math.cos(math.pi * progress / 2))
