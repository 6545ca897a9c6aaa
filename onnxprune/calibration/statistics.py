"""What is wanted about the data that flows into a node, and what was found: values, nothing that runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import unknown_name

Floats = np.ndarray[Any, np.dtype[np.float64]]

NEEDS = ("cross", "gram", "mean", "square", "variance", "zeros")


@dataclass(frozen=True)
class Wanted:
    """Statistics of the data in input `slot` of flat node `node`.

    `needs` names some of "mean", "square", "variance", "zeros", "gram" and "cross"; see `Statistics`. The features are
    what the node's weight multiplies (see `reading.read`), or, with `axis`, the indices of that axis of the tensor
    itself, whatever the node does with it. The hidden state that a recurrent layer's R multiplies is slot 5, given or
    not. Raises `UnknownNameError` for another need.
    """

    node: int
    slot: int
    needs: frozenset[str] = field(default_factory=frozenset)
    axis: int | None = None

    def __post_init__(self) -> None:
        for need in sorted(self.needs - set(NEEDS)):
            raise unknown_name("statistic", need, NEEDS)


def wanted(node: int, slot: int, *needs: str, axis: int | None = None) -> Wanted:
    """Spell a `Wanted` with its needs as arguments."""
    return Wanted(node, slot, frozenset(needs), axis)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a pass over the samples gave for one `Wanted`, float64; None where it was not wanted.

    A row is one vector that the weight multiplies: a token, a position of a convolution's output, a step of a
    recurrent layer. Rows are divided into `groups`: those of a grouped convolution, the directions of a recurrence,
    otherwise 1. Sums are divided by `n_rows`, the rows seen by each group:

        mean      (groups, features)             E[x]
        square    (groups, features)             E[x^2]
        variance  (groups, features)             E[x^2] - E[x]^2
        zeros     (groups, features)             fraction of x == 0 (APoZ)
        gram      (groups, features, features)   E[x x^T]
        cross     (groups, features, features)   E[x z^T], z the same row with the reference's weights

    `n_samples` counts samples along axis 0 of the feeds. `missing` says why there is nothing; it is empty otherwise.
    """

    n_samples: int = 0
    n_rows: int = 0
    mean: Floats | None = None
    square: Floats | None = None
    variance: Floats | None = None
    zeros: Floats | None = None
    gram: Floats | None = None
    cross: Floats | None = None
    missing: str = ""

    def get(self, need: str) -> Floats:
        """Give one statistic by name; raises `LookupError` with the reason when it is not there."""
        value: Floats | None = getattr(self, need)
        if value is None:
            raise LookupError(self.missing or f"{need!r} was not gathered")
        return value


def union(needs: Iterable[frozenset[str]]) -> frozenset[str]:
    """Join the needs of several."""
    return frozenset().union(*needs)
