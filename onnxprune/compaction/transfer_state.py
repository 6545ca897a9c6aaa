"""Transfers of recurrent layers and of attention in one node: units that stay zero, heads that stay constant."""

from __future__ import annotations

import numpy as np

from .facts import Step, transfer
from .known import Array, Known, Mask, known_or_none, regrouped

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# The gate that everything in the state comes from, in ONNX's order i, o, f, c and z, r, h.
STATE_GATE = {"LSTM": 3, "GRU": 2, "RNN": 0, "DynamicQuantizeLSTM": 3}
_DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
    "DynamicQuantizeLSTM": ("Sigmoid", "Tanh", "Tanh"),
}


def read_weights(step: Step) -> tuple[Array, Array, Array | None] | None:
    """Give the weights of a recurrent layer as LSTM has them, up to a factor; None where one is computed.

    w: (directions, gates * hidden, i)  r: (directions, gates * hidden, hidden)  b: (directions, 2 * gates * hidden)
    """
    w, r, b = (step.constant(k) if step.op.given(k) else None for k in (1, 2, 3))
    if w is None or r is None or (step.op.given(3) and b is None):
        return None
    if step.op.node.op == "DynamicQuantizeLSTM":
        points = step.constant(9), step.constant(11)
        if any(p is None for p in points):
            return None
        w, r = (_codes(a, p).transpose(0, 2, 1) for a, p in zip((w, r), points, strict=True) if p is not None)
    return w, r, b


def _codes(array: Array, zero_point: Array) -> Array:
    """Take the zero point from codes: one for each direction, or for each of its columns."""
    along = (len(zero_point), 1, -1)
    return np.asarray(array.astype(np.int32) - zero_point.astype(np.int32).reshape(along))


def silent_inputs(step: Step, w: Array) -> Mask:
    """Say which columns of a weight read zeros: (i,)."""
    x = step.x()
    silent = np.zeros(w.shape[2], dtype=bool)
    return silent if x is None else np.broadcast_to(x.zero.all(axis=(0, 1)), silent.shape)


@transfer("LSTM", "GRU", "RNN")
@transfer("DynamicQuantizeLSTM", domain="com.microsoft")
def recurrent(step: Step) -> list[Known | None]:
    """A unit whose state gate is zero at every step, and whose state starts at zero, stays zero.

    Any other constant gate makes a sequence that changes over time.
    """
    op = step.op
    weights = read_weights(step)
    if weights is None:
        return [None]
    w, r, b = weights
    zero = zero_states(step, w, r, b)
    if not zero.any():
        return [None]
    # zero: (directions, hidden)
    first = bool(op.attr("layout", 0))
    outputs: list[Known | None] = []
    for k, y in enumerate(op.outputs):
        if y is None:
            outputs.append(None)
            continue
        shape = _output_shape(zero.shape, k, first)
        outputs.append(known_or_none(zero.reshape(shape), np.zeros(shape, dtype=step.facts.dtype(y.name))))
    return outputs


def _output_shape(zero: tuple[int, ...], slot: int, batch_first: bool) -> tuple[int, ...]:
    directions, hidden = zero
    if slot == 0:
        return (1, 1, directions, hidden) if batch_first else (1, directions, 1, hidden)
    return (1, directions, hidden) if batch_first else (directions, 1, hidden)


def zero_states(step: Step, w: Array, r: Array, b: Array | None) -> Array:
    """Find the units, per direction, whose state is zero at every step."""
    op = step.op
    directions, hidden = r.shape[0], r.shape[2]
    gates, gate = r.shape[1] // hidden, STATE_GATE[op.node.op]
    usual = _DEFAULTS[op.node.op] * directions
    if tuple(op.attr("activations", usual)) != usual:
        return np.zeros((directions, hidden), dtype=bool)
    rows = slice(gate * hidden, (gate + 1) * hidden)
    zero = ~((w[:, rows] != 0) & ~silent_inputs(step, w)).any(axis=2)
    if b is not None:
        bias = b.reshape(directions, 2, gates, hidden)[:, :, gate].astype(np.float64)
        # GRU multiplies the second bias alone by a gate, with linear_before_reset.
        zero &= (bias == 0).all(axis=1) if op.node.op == "GRU" else bias.sum(axis=1) == 0
    for slot in (5, 6):
        if op.given(slot):
            zero &= _starts_at_zero(step, slot, directions, hidden)
    while True:
        # A row of the recurrence may read units that are zero themselves.
        quiet = ~((r[:, rows] != 0) & ~zero[:, None, :]).any(axis=2)
        if (zero <= quiet).all():
            return np.asarray(zero)
        zero &= quiet


def _starts_at_zero(step: Step, slot: int, directions: int, hidden: int) -> Array:
    state = step.x(slot)
    if state is None:
        return np.zeros((directions, hidden), dtype=bool)
    batch = 0 if step.op.attr("layout", 0) else 1
    return np.broadcast_to(state.zero.all(axis=batch), (directions, hidden))


@transfer("Attention")
def attention(step: Step) -> list[Known | None]:
    """Weights of attention sum to one: values that are the same at every position come out as they are."""
    op = step.op
    if op.given(5) or op.given(4) or len([y for y in op.outputs if y is not None]) > 1:
        return [None]
    flat = op.x().ndim == 3
    n_query = int(op.attr("q_num_heads", 0)) if flat else op.x(0).shape[1]
    n_key = int(op.attr("kv_num_heads", 0)) if flat else op.x(2).shape[1]
    return [_values_pass(step.x(2), n_query, n_key, step.shape(2), flat)]


@transfer("MultiHeadAttention", domain="com.microsoft")
def multi_head_attention(step: Step) -> list[Known | None]:
    """As Attention, where keys and values come in by themselves; a bias of theirs is added first."""
    op = step.op
    if not op.given(2) or op.x(2).ndim != 3 or any(op.given(k) for k in (6, 7)):
        return [None]
    values = step.x(2)
    if op.given(3) and values is not None:
        bias = step.constant(3)
        if bias is None:
            return [None]
        size = op.x(2).shape[2]
        wide = values.stretched((*values.shape[:2], size))
        values = Known(wide.mask, wide.value + bias[-size:])
    n = int(op.attr("num_heads", 1))
    return [_values_pass(values, n, n, step.shape(2), True)]


@transfer("GroupQueryAttention", domain="com.microsoft")
def group_query_attention(step: Step) -> list[Known | None]:
    """As Attention; only values that are zero, since a cache of earlier positions may come in."""
    op = step.op
    if not op.given(2) or op.given(4):
        return [None]
    values = step.x(2)
    if values is None or op.attr("smooth_softmax", 0):
        return [None]
    n_query, n_key = int(op.attr("num_heads", 1)), int(op.attr("kv_num_heads", 1))
    return [_values_pass(values, n_query, n_key, step.shape(2), True)]


@transfer("Attention", domain="com.microsoft")
def projected_attention(step: Step) -> list[Known | None]:
    """As Attention, with the projection inside: a head whose columns are zero gives its bias."""
    op = step.op
    w, b = step.constant(1), step.constant(2) if op.given(2) else None
    if w is None or (op.given(2) and b is None) or op.given(4):
        return [None]
    width = op.y().shape[2]
    x = step.x()
    silent = np.zeros(w.shape[0], dtype=bool)
    if x is not None:
        silent = np.broadcast_to(x.zero.all(axis=(0, 1)), silent.shape)
    mask = ~((w[:, -width:] != 0) & ~silent[:, None]).any(axis=0)
    value = np.zeros(width, dtype=w.dtype) if b is None else b[-width:]
    return [known_or_none(mask.reshape(1, 1, -1), value.reshape(1, 1, -1))]


def _values_pass(values: Known | None, n_query: int, n_key: int, shape: tuple[int, ...], flat: bool) -> Known | None:
    """Give every query head the value of the key head it reads, where that is the same at every position."""
    if values is None or n_key < 1:
        return None
    if flat:
        split = regrouped(values, shape, (*shape[:2], n_key, shape[2] // n_key), lambda k: k == 2)
        if split is None or split.shape[1] != 1:
            return None
        heads = split.stretched((*split.shape[:2], n_key, split.shape[3]))
        spread = heads.mapped(lambda a: np.repeat(a, n_query // n_key, axis=2))
        wide = spread.stretched((*spread.shape[:3], shape[2] // n_key))
        return wide.mapped(lambda a: a.reshape(*a.shape[:2], -1))
    if values.shape[2] != 1:
        return None
    heads = values.stretched((values.shape[0], n_key, *values.shape[2:]))
    return heads.mapped(lambda a: np.repeat(a, n_query // n_key, axis=1))
