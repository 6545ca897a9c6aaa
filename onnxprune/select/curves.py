"""Error curves: what a group loses with its cheapest units, by how many of them go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .choose import Ranking


@dataclass(frozen=True)
class ErrorCurve:
    """What removing the cheapest units of one group loses.

    `removed` are the counts that its limits allow, rising from 0; `error[k]` is the sum of the scores of the first
    `removed[k]` units in the measure of the criterion: without data, in units of average importance in the group.
    """

    group: str
    removed: tuple[int, ...]
    error: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the curve as lists."""
        return {"group": self.group, "removed": list(self.removed), "error": list(self.error)}


def error_curves(ranking: Ranking) -> tuple[ErrorCurve, ...]:
    """Give the curve of every group that may be pruned, in the order of the groups."""
    curves = []
    for candidate in ranking.candidates:
        counts = (0, *(n for n, _ in candidate.steps()))
        total = np.concatenate([[0.0], np.cumsum(candidate.scores)])
        curves.append(ErrorCurve(candidate.group.id, counts, tuple(float(total[n]) for n in counts)))
    return tuple(curves)
