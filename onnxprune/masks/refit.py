"""The best weights on a given support: what stays makes up for what went, as well as it can.

Source: Meng et al., ALPS: Improved Optimization for Highly Sparse One-Shot Pruning, NeurIPS 2024, algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OptionError
from .wanda import Keep, grouped_rows

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
STEPS = 50
_CONVERGED = 1e-6


def refit(
    weight: Array,
    keep: Keep,
    gram: Array,
    *,
    cross: Array | None = None,
    start: Array | None = None,
    damp: float = 0.01,
    steps: int = STEPS,
) -> Array:
    """Give weights V on the support `keep`, zero elsewhere, that bring V x close to the dense layer's output W z.

    `weight` W is (output, input, *kernel), of any float type; the result has its shape and type. `gram` is E[x x^T] of
    the inputs that the new weights will see, as in `sparsegpt`; `cross` is E[x z^T] with the inputs z of the dense
    model, in the same scale, by default the same inputs. A ridge of `damp` of the mean of the diagonal pulls V towards
    W. `start` is where to begin, by default the masked weight; the error is never above the start's. `steps` bounds the
    conjugate gradient steps, which run for all rows at once.

    Raises `OptionError` for sizes that do not fit and values that are not finite.
    """
    gram = np.asarray(gram, dtype=np.float64)
    gram = gram[None] if gram.ndim == 2 else gram
    cross = gram if cross is None else np.asarray(cross, dtype=np.float64).reshape(gram.shape)
    dense = grouped_rows(weight, gram.shape[0])
    n = dense.shape[2]
    if gram.shape != (len(dense), n, n) or keep.shape != weight.shape:
        raise OptionError(
            f"a weight of shape {weight.shape} needs a mask of that shape and Gram matrices of {n} features; "
            f"theirs are {keep.shape} and {gram.shape}"
        )
    if not all(np.isfinite(values).all() for values in (gram, cross, dense)):
        raise OptionError("the weight or a Gram matrix holds values that are not finite")
    energy = np.mean(np.diagonal(gram, axis1=1, axis2=2), axis=1)
    ridge = (damp * np.where(energy > 0, energy, 1.0))[:, None, None] * np.eye(n)
    support = np.asarray(keep, dtype=bool).reshape(dense.shape)
    begin = np.where(support, dense if start is None else grouped_rows(start, len(dense)), 0.0)
    goal = dense @ (cross + ridge).swapaxes(1, 2)
    new = [_descend(b, s, h, v, steps) for b, s, h, v in zip(goal, support, gram + ridge, begin, strict=True)]
    return np.asarray(np.stack(new).reshape(weight.shape).astype(weight.dtype))


def _descend(goal: Floats, support: Keep, gram: Floats, new: Floats, steps: int) -> Floats:
    """Solve V gram = goal on the support by conjugate gradients, preconditioned by the diagonal."""
    scale = 1.0 / np.diagonal(gram)
    residual = np.where(support, goal - new @ gram, 0.0)
    ahead = residual * scale
    step = ahead
    power = np.sum(residual * ahead, axis=1, keepdims=True)
    enough = _CONVERGED**2 * power
    for _ in range(steps):
        if (power <= enough).all():
            break
        image = np.where(support, step @ gram, 0.0)
        curvature = np.sum(step * image, axis=1, keepdims=True)
        # Rows that are done stay: their step is zero.
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)
        new = new + length * step
        residual = residual - length * image
        ahead = residual * scale
        before, power = power, np.sum(residual * ahead, axis=1, keepdims=True)
        step = ahead + np.divide(power, before, out=np.zeros_like(power), where=before > 0) * step
    return new
