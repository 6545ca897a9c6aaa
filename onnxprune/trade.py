"""What a search over sizes saw: one point for every smaller model that was made and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One model: the fraction of the original's size that is left, its measure, and whether that is good enough."""

    fraction: float
    value: float
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Give the point as `prune --json` spells it."""
        return {"fraction": self.fraction, "value": self.value, "holds": self.holds}


@dataclass(frozen=True)
class Trade:
    """A measure against size, as far as a search followed it.

    `by` is the size that was varied: "macs", "params" or "bytes". `measure` is "latency", the time of a run over the
    original's, or "metric", what the caller measures; `original` is the original's value and `bound` what `value` must
    not exceed (latency) or fall below (metric). `points` rise in size; `chosen` is the fraction of the one taken, and
    `figures` are what was measured of it: before, after, ratio.
    """

    by: str
    measure: str
    original: float
    bound: float
    points: tuple[Point, ...]
    chosen: float
    figures: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Give the curve as `prune --json` spells it."""
        return {
            "by": self.by,
            "measure": self.measure,
            "original": self.original,
            "bound": self.bound,
            "chosen": self.chosen,
            "figures": dict(self.figures),
            "points": [point.to_json() for point in self.points],
        }
