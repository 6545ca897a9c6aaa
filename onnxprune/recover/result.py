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
class Tuning:
    """How gradients went on from the closed form: steps done and the best one, and tensors tuned.

    `before` and `after` are the errors at the outputs on samples held out, of the smaller model as it was repaired and
    as it was tuned. `kept` says that tuning was better there; else the repair stands as it was.
    """

    steps: int
    best: int
    n_tensors: int
    before: float
    after: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """Give the tuning as reports spell it."""
        return {
            "steps": self.steps,
            "best_step": self.best,
            "tensors": self.n_tensors,
            "error_before": self.before,
            "error_after": self.after,
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Recovery:
    """New contents of initializers by name, in the original's shapes, and what was done to which product.

    `how` is what was asked for. `n_samples` and `n_held_out` count the samples. `before` and `after` are the errors at
    the model's outputs on those held out, over the outputs' variance. `tuning` is None where no gradients were taken.
    """

    how: str
    values: Mapping[str, Array] = field(repr=False)
    repairs: tuple[Repair, ...] = ()
    n_samples: int = 0
    n_held_out: int = 0
    before: float | None = None
    after: float | None = None
    tuning: Tuning | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the recovery as reports spell it, without the values."""
        return {
            "recover": self.how,
            "samples": self.n_samples,
            "held_out": self.n_held_out,
            "error_before": self.before,
            "error_after": self.after,
            "layers": [r.to_json() for r in self.repairs],
            **({"tuning": self.tuning.to_json()} if self.tuning is not None else {}),
        }
