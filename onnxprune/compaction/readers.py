"""Readers: nodes that sum a value away against a constant weight, and what each index adds to the sum.

What a unit leaves behind when it goes is the sum of its columns times its value. A reader says what those columns
are, whether the value is zero, the same constant everywhere, a constant that differs from place to place, or alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.op import Op, Value
from ..axes.relations import Axis
from .facts import Facts, Step, is_understood
from .known import Array, Mask
from .moving import ONE, Moving
from .transfer_linear import window_sums
from .transfer_state import GATES, read_weights, zero_states

Floats = np.ndarray[Any, np.dtype[np.float64]]
_EDITABLE = frozenset(("float16", "float32", "float64"))


class Status(IntEnum):
    """What an index of a value is, from the easiest to remove to what cannot be."""

    ZERO = 0
    CONSTANT = 1
    SHAPED = 2
    ALIVE = 3


@dataclass(frozen=True)
class Reader:
    """One value summed away at one node, against a constant weight or, with `weight_slot` None, as it is.

    `axis` is the data's axis, of length I; `outputs` the axes whose indices, one after another, are the O sums.
    `weight` is (I, O, taps): what index i adds to sum o, one number for each place of a window. `status` is (I,).
    `level` (I,) is the constant where the status says there is one. `table` (I, K) has what indices with a SHAPED
    status give at K places, moments or signals, which is all that they give; `one` (K,) is what a bias gives there,
    None where no bias can be added. `why` and `why_alive` put into words what SHAPED and ALIVE mean here.
    """

    op: Op
    data: Value
    axis: Axis
    outputs: tuple[Axis, ...]
    weight: Array = field(repr=False)
    status: Array = field(repr=False)
    level: Floats = field(repr=False)
    table: Array | None = field(repr=False)
    one: Array | None = field(repr=False)
    weight_slot: int | None
    can_fold: bool
    can_edit: bool
    why: str = "does not see its constant everywhere alike"
    why_alive: str = "does not find the same at every run"

    @property
    def is_padded(self) -> bool:
        """Say whether zeros of a padding are all that makes a constant differ: at a convolution."""
        return self.op.node.op == "Conv" and self.why == Reader.why and self.one is None

    @property
    def touches(self) -> Mask:
        """Where an index adds to a sum at all: (I, O)."""
        return np.asarray((self.weight != 0).any(axis=2))

    def kept_sums(self, analysis: Analysis, alive: Keep) -> Keep:
        """Give which of the sums stay: (O,)."""
        if not self.outputs:
            return np.ones(self.weight.shape[1], dtype=bool)
        return np.concatenate([analysis.keep(a.id, alive) for a in self.outputs])

    def sums(self, index: Array) -> Floats:
        """Give what the indices add to every sum for a value of one: (len(index), O)."""
        return np.asarray(self.weight[index].astype(np.float64).sum(axis=2))


def readers(facts: Facts) -> list[Reader]:
    """List the readers of a model, in the order of its nodes."""
    found: list[Reader] = []
    for op in facts.analysis.collection.ops:
        make = _KINDS.get(op.node.op)
        # Where a shape is unknown no rule has looked at the others.
        complete = is_understood(op) and None not in op.inputs[:2] and any(v is not None for v in op.outputs)
        if make is None or not complete or op.node.domain not in (None, "", "ai.onnx", "com.microsoft"):
            continue
        for row in make(op):
            data = op.x(row.slot)
            if data.constant or data[row.axis].size <= 1:
                continue
            array = _plain_sum(facts, op) if row.weight_slot is None else _constant(facts, op, row.weight_slot)
            if array is not None and array.dtype.name in _EDITABLE:
                reader = _reader(facts, op, row, array)
                # A value of a shape that was declared, and not the operator's own, is not read here but in the way.
                if sum(a.size for a in reader.outputs) in (0, reader.weight.shape[1]):
                    found.append(reader)
        if op.node.op in GATES:
            found += _states(facts, op)
    return found


class Row(NamedTuple):
    """Where a reader finds its data and its weight, the data's axis, and the axes of the sums."""

    slot: int
    weight_slot: int | None
    axis: int
    outputs: tuple[Axis, ...]


def _constant(facts: Facts, op: Op, slot: int) -> Array | None:
    return Step(facts, op, facts.proto(op)).constant(slot)


def _plain_sum(facts: Facts, op: Op) -> Array:
    """Give a one of the type that a sum without a weight is made in."""
    return np.ones((), dtype=facts.dtype(op.y().name) or facts.usual_dtype)


def _by_groups(weight: Array, groups: int) -> Array:
    """Spread a grouped convolution's columns (i, g*o, taps) over all its input channels: (g*i, g*o, taps)."""
    n_in, n_out, taps = weight.shape
    full = np.zeros((groups, n_in, groups, n_out // groups, taps), dtype=weight.dtype)
    for g in range(groups):
        full[g, :, g] = weight.reshape(n_in, groups, n_out // groups, taps)[:, g]
    return full.reshape(groups * n_in, n_out, taps)


def columns(op: Op, slot: int, array: Array) -> Array:
    """View the weight in input `slot` of a reader as (I, O, taps), to be read or written through."""
    kind = op.node.op
    if kind in GATES:
        return np.asarray(array.reshape(-1, array.shape[2]).T[:, :, None])
    if kind in ("Conv", "FusedConv"):
        return np.asarray(array.reshape(*array.shape[:2], -1).transpose(1, 0, 2))
    if kind == "ConvTranspose":
        return np.asarray(array.reshape(*array.shape[:2], -1))
    turned = bool(op.attr("transB", 0)) if kind != "Attention" else False
    return np.asarray((array.T if turned != (slot == 0) else array)[:, :, None])


def _matmul(op: Op) -> list[Row]:
    plain = not any(op.attr(n, 0) for n in ("transA", "transBatchA", "transBatchB"))
    left, right = op.x(0), op.x(1)
    if right.constant and right.ndim == 2 and plain and left.ndim > 1:
        return [Row(0, 1, -1, (op.y()[-1],))]
    if left.constant and left.ndim == 2 and plain and right.ndim > 1 and not op.attr("transB", 0):
        return [Row(1, 0, -2, (op.y()[-2],))]
    return []


def _gemm(op: Op) -> list[Row]:
    return [Row(0, 1, 0 if op.attr("transA", 0) else 1, (op.y()[1],))]


def _conv(op: Op) -> list[Row]:
    # Depthwise: a channel goes with its own output, and leaves nothing behind.
    depthwise = int(op.attr("group", 1)) > 1 and op.x(1).shape[1] == 1
    return [] if depthwise else [Row(0, 1, 1, (op.y()[1],))]


def _conv_transpose(op: Op) -> list[Row]:
    return [Row(0, 1, 1, (op.y()[1],))] if int(op.attr("group", 1)) == 1 else []


def _recurrent(op: Op) -> list[Row]:
    return [Row(0, 1, 2, tuple([op.x(1)[1]] * op.x(1).shape[0]))]


def _sum(op: Op) -> list[Row]:
    given = op.attr("axes") if "axes" in op.node.attrs else op.fixed_ints(1) if op.given(1) else None
    return [Row(0, None, int(given[0]), ())] if given is not None and len(given) == 1 else []


def _attention(op: Op) -> list[Row]:
    return [Row(0, 1, 2, (op.x(1)[1],))] if op.node.domain == "com.microsoft" else []


_KINDS = {
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvTranspose": _conv_transpose,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "ReduceSum": _sum,
}


def _reader(facts: Facts, op: Op, row: Row, array: Array) -> Reader:
    data, at = op.x(row.slot), row.axis % op.x(row.slot).ndim
    scale, groups = float(op.attr("alpha", 1.0)), int(op.attr("group", 1))
    if row.weight_slot is None:
        weight = np.ones((data.shape[at], 1, 1), dtype=array.dtype)
    else:
        weight = columns(op, row.weight_slot, array)
    if groups > 1:
        weight = _by_groups(weight, groups)
    if scale != 1.0:
        weight = weight * np.asarray(scale, dtype=weight.dtype)
    known = facts.known(data.name)
    size = data.shape[at]
    status = np.full(size, int(Status.ALIVE))
    level = np.zeros(size)
    reachable = is_reachable(facts, op)
    can_fold = reachable and _has_bias_slot(op)
    everywhere = can_fold and _sums_everywhere(op)
    table, why = np.zeros((size, 1)), Reader.why
    if known is not None:
        mask, table = _rows(known.mask, at, size), _rows(known.value, at, size)
        whole = mask.all(axis=1)
        flat = (table == table[:, :1]).all(axis=1)
        # Only whole rows are looked at, so what stands at unknown places does not count.
        zero = whole & flat & (table[:, 0] == 0)
        level = np.where(whole, table[:, 0].astype(np.float64), 0.0)
        status[whole & reachable] = int(Status.SHAPED)
        if everywhere:
            status[whole & flat] = int(Status.CONSTANT)
        status[zero] = int(Status.ZERO)
    one = np.ones(table.shape[1])
    moving = facts.moving(data.name)
    if moving is not None and reachable:
        moves = (status == int(Status.ALIVE)) & _rows(moving.mask, at, size).all(axis=1)
        constant, signals = _signals(moving, at, size)
        table = np.hstack([np.where(moves[:, None], constant, table), np.where(moves[:, None], signals, 0)])
        one = np.concatenate([one, np.zeros(signals.shape[1])])
        status[moves] = int(Status.SHAPED)
        why = "finds it scaled or shifted by other values" if not moving.moments else MOVES
    can_edit = (
        reachable and row.weight_slot is not None and op.x(row.weight_slot).initializer and scale == 1.0 and groups == 1
    )
    return Reader(
        op,
        data,
        data[at],
        row.outputs,
        weight,
        status,
        level,
        table,
        one if everywhere else None,
        row.weight_slot,
        can_fold,
        can_edit,
        why,
    )


def _signals(moving: Moving, at: int, size: int) -> tuple[Array, Array]:
    """Lay out what moves index by index: the constant part (size, 1) and the coefficients of signals (size, K)."""
    rows = {signal: _rows(term, at, size) for signal, term in moving.terms.items()}
    constant = np.zeros((size, 1))
    if ONE in rows and (rows[ONE] == rows[ONE][:, :1]).all():
        constant = rows.pop(ONE)[:, :1]
    return constant, np.hstack(list(rows.values()))


MOVES = "finds it moving from step to step"


def _rows(array: Array, at: int, size: int) -> Array:
    """Lay out what is stored of a value index by index: (size, places)."""
    rows = np.moveaxis(array, at, 0)
    return np.asarray(np.broadcast_to(rows, (size, *rows.shape[1:])).reshape(size, -1))


BIAS_SLOT = {
    "Conv": 2,
    "FusedConv": 2,
    "ConvTranspose": 2,
    "Gemm": 2,
    "FusedGemm": 2,
    "Attention": 2,
    **dict.fromkeys(GATES, 3),
}
CLOSED = frozenset(("FusedConv", "FusedGemm", "Attention", *GATES))


def _has_bias_slot(op: Op) -> bool:
    """Say whether a number can be added to the sums: in a bias, or behind the node where nothing else comes first."""
    slot = BIAS_SLOT.get(op.node.op)
    return op.node.op not in CLOSED or slot is None or not op.given(slot) or op.x(slot).initializer


def is_reachable(facts: Facts, op: Op) -> bool:
    """Say whether a node can be edited by its names: not in a function, nor where a body reuses a name of another."""
    flat = facts.analysis.model.flat
    place = facts.analysis.collection.view.places[op.index]
    if place is None or place[0] in flat.function_bodies:
        return False
    names = flat.flat_names[place[0]]
    made = next(t.name for t in op.node.outputs if t.name)
    return place[0] == 0 or all(names.get(n, n) == n for n in [made, *(t.name for t in op.node.inputs)])


def _sums_everywhere(op: Op) -> bool:
    """Say whether every sum sees all of a constant: no zeros of a padding in between, no window that is spread."""
    if op.node.op in ("Conv", "FusedConv"):
        return window_sums(op)
    if op.node.op == "ConvTranspose":
        shape = op.x(1).shape[2:]
        return window_sums(op) and set(shape) <= {1} and set(op.attr("strides", (1,))) <= {1}
    return True


def _states(facts: Facts, op: Op) -> list[Reader]:
    """Describe how a recurrent layer reads its own state: a unit that is always zero adds nothing."""
    step = Step(facts, op, facts.proto(op))
    weights = read_weights(step)
    if weights is None:
        return []
    value, r = op.x(2), weights[1]
    zero = zero_states(step, *weights).all(axis=0)
    status = np.where(zero, int(Status.ZERO), int(Status.ALIVE))
    can_edit = is_reachable(facts, op) and value.initializer
    mask, table = facts.states.get(op.index, (np.zeros(r.shape[::2], dtype=bool), None))
    # A GRU that resets before it multiplies reads another multiple of the state in one of its gates.
    if can_edit and (op.node.op != "GRU" or op.attr("linear_before_reset", 0)):
        status[mask.all(axis=0) & ~zero] = int(Status.SHAPED)
    rows, weight, level = tuple([value[1]] * r.shape[0]), columns(op, 2, r), np.zeros(r.shape[2])
    why = f"{MOVES}, in a way that no other unit says"
    return [Reader(op, value, value[2], rows, weight, status, level, table, None, 2, False, can_edit, MOVES, why)]
