"""What a recovery changed: values, nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Repair:
    """What became of one product.

    `before` and `after` are the errors of its output on samples held out, as parts of the output's variance in the
    original: 0 is no error, 1 is a constant output. `how` is "lstsq", "bias" or "none" with the reason in `why`.
    """

    node: str
    weight: str
    how: str
    before: float | None = None
    after: float | None = None
    ridge: float | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the repair as reports spell it."""
        return {
            "node": self.node,
            "weight": self.weight,
            "how": self.how,
            "error_before": self.before,
            "error_after": self.after,
            "ridge": self.ridge,
            "why": self.why or None,
        }


@dataclass(frozen=True)
class Recovery:
    """New contents of initializers by name, in the original's shapes, and what was done to which product.

    `how` is what was asked for. `n_samples` and `n_held_out` count the samples. `before` and `after` are the errors at
    the model's outputs on those held out, over the outputs' variance.
    """

    how: str
    values: Mapping[str, Array] = field(repr=False)
    repairs: tuple[Repair, ...] = ()
    n_samples: int = 0
    n_held_out: int = 0
    before: float | None = None
    after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the recovery as reports spell it, without the values."""
        return {
            "recover": self.how,
            "samples": self.n_samples,
            "held_out": self.n_held_out,
            "error_before": self.before,
            "error_after": self.after,
            "layers": [r.to_json() for r in self.repairs],
        }
