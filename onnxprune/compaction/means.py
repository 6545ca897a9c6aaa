"""`fold_means`: the same fold for units that are alive, with the mean of what they were in place of a constant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..axes.analysis import Analysis
from ..errors import PlanError
from ..graph.model import Model
from ..planfile import Plan
from ..rewrite.apply import apply_plan
from .facts import Facts
from .fold import Correction, fold, shift_of
from .known import Array
from .readers import readers


def fold_means(analysis: Analysis, plan: Plan, means: Mapping[str, Array]) -> Model:
    """Apply a plan, and add what the removed units gave on average to the biases behind them.

    `means` maps the name of a value to its mean over samples and positions, one number (float) for each index of the
    axis that a product, a convolution or a recurrent layer sums away; `wanted_means` lists them. A value without a
    mean is left as it is. Zeros of a padding are taken for what the inside is on average.

    Raises `PlanError` for a mean of the wrong length.

    Source: b <- b + W_P mu_P, the zero-order term of Optimal Brain Surgeon's repair.
    """
    smaller = apply_plan(analysis, plan)
    alive = analysis.alive({group.id: group.removed for group in plan.groups})
    found = []
    for reader in readers(Facts(analysis)):
        gone = np.flatnonzero(~analysis.keep(reader.axis.id, alive))
        mean = means.get(reader.data.name)
        if mean is None or not len(gone) or not reader.can_fold:
            continue
        level = np.asarray(mean, dtype=np.float64).reshape(-1)
        if len(level) != reader.axis.size:
            raise PlanError(
                f"the mean of {reader.data.name!r} has {len(level)} entries; its axis has {reader.axis.size}"
            )
        shift = shift_of(analysis, alive, reader, gone, level)
        if shift is not None:
            found.append(Correction(reader, shift, {}))
    return fold(smaller, found)


def wanted_means(analysis: Analysis, plan: Plan) -> dict[str, int]:
    """List the values whose means `fold_means` can use for a plan, with the axis that the mean runs along."""
    alive = analysis.alive({group.id: group.removed for group in plan.groups})
    wanted: dict[str, int] = {}
    for reader in readers(Facts(analysis)):
        if reader.can_fold and not analysis.keep(reader.axis.id, alive).all():
            wanted[reader.data.name] = next(k for k, a in enumerate(reader.data.axes) if a.id == reader.axis.id)
    return wanted
