"""Histories: what dead units of a recurrent layer go through, which no input has a part in.

A unit whose rows are zero in every gate is driven by its biases alone: it runs from where it starts to where it stays,
on the same path at every run. What it gives depends on how many steps were made, and on nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .known import Array, Mask
from .moving import Moving, Signal, follows
from .transfer_state import read_weights, silent_inputs, zero_states

if TYPE_CHECKING:
    from .facts import Step

# Steps a unit gets to come to rest, and those that are looked at: early ones all, later ones ever less often.
N_STEPS = 256
MOMENTS = np.unique(np.concatenate([np.arange(24), np.geomspace(24, N_STEPS - 1, 14).astype(np.int64)]))
REST = 1e-6
MOST_STARTS = 64


@follows("LSTM", "GRU", "RNN")
def recurrent(step: Step) -> list[Moving | None]:
    """Give the path of every unit that is driven by its biases alone; as the layer itself computes it."""
    op = step.op
    weights = read_weights(step)
    if weights is None or op.attr("layout", 0):
        return []
    zero = zero_states(step, *weights)
    starts = _starts(step, _driven(step, weights[0], weights[1], zero))
    if starts is None:
        return []
    start, mask = starts
    if not (mask & ~zero).any():
        return []
    path = _run(step, start)
    if path is None:
        return []
    # path: (steps, directions, starts, hidden); each direction in the order of its own steps
    last, change = np.abs(path).max(axis=(0, 2)), np.abs(path[-1] - path[-2]).max(axis=1)
    mask = mask & (change <= REST * last)
    if not mask.any():
        return []
    seen = path[MOMENTS]
    step.facts.states[op.index] = mask, _side_by_side(np.concatenate([start[None], seen]))
    outputs: list[Moving | None] = []
    for k, y in enumerate(op.outputs):
        if y is None or k > 1:
            outputs.append(None)
            continue
        shape = (1, mask.shape[0], 1, mask.shape[1]) if k == 0 else (mask.shape[0], 1, mask.shape[1])
        terms: dict[Signal, Array] = {
            (f"{y.name}@{s}@{t}",): np.where(mask, seen[t, :, s], 0).astype(np.float64).reshape(shape)
            for s in range(start.shape[1])
            for t in range(len(seen))
        }
        outputs.append(Moving(mask.reshape(shape), terms, moments=True))
    return outputs


def _side_by_side(path: Array) -> Array:
    """Lay the states of all moments, directions and starts side by side: (hidden, moments * directions * starts)."""
    return np.moveaxis(path, -1, 0).reshape(path.shape[-1], -1).astype(np.float64)


def _driven(step: Step, w: Array, r: Array, zero: Mask) -> Mask:
    """Say which units no input and no other unit drives: (directions, hidden)."""
    directions, hidden = r.shape[0], r.shape[2]
    reads = ((w != 0) & ~silent_inputs(step, w)).any(axis=2)
    reads |= ((r != 0) & ~zero[:, None, :]).any(axis=2)
    return np.asarray(~reads.reshape(directions, -1, hidden).any(axis=1))


def _starts(step: Step, driven: Mask) -> tuple[Array, Mask] | None:
    """Give every state that units may start from, (directions, starts, hidden), and the units it is known of."""
    directions, hidden = driven.shape
    dtype = step.facts.usual_dtype
    if step.op.given(6):
        # A cell that starts anywhere but at zero is left out.
        cell = step.x(6)
        if cell is None:
            return None
        driven = driven & cell.zero.all(axis=1)
    if not step.op.given(5):
        return np.zeros((directions, 1, hidden), dtype=dtype), driven
    moving, known = step.facts.moving(step.op.x(5).name), step.x(5)
    if moving is not None and moving.moments and moving.shape[1] == 1 and len(moving.terms) <= MOST_STARTS:
        rows = [np.broadcast_to(term[:, 0], (directions, hidden)) for term in moving.terms.values()]
        return np.stack(rows, axis=1).astype(dtype), driven & moving.mask[:, 0]
    if known is None or known.shape[1] != 1:
        return None
    start = np.broadcast_to(known.filled(0.0), (directions, 1, hidden)).astype(dtype)
    return start, driven & known.mask[:, 0]


def _run(step: Step, start: Array) -> Array | None:
    """Run the layer on zeros: its path is that of the model for every unit which no input drives."""
    op = step.op
    weights = [step.constant(k) if op.given(k) else None for k in range(1, 4)]
    x = np.zeros((N_STEPS, start.shape[1], op.x(1).shape[2]), dtype=start.dtype)
    peepholes = [None, step.constant(7)] if op.given(7) else []
    path = step.run([x, *weights, None, start, *peepholes])
    if path is None:
        return None
    direction = op.attr("direction", "forward")
    backward = {"reverse": [0], "bidirectional": [1]}.get(direction if isinstance(direction, str) else "", [])
    path = np.array(path)
    for k in backward:
        path[:, k] = path[::-1, k].copy()
    return path
