"""Recurrent layers: a hidden unit is one row in every gate, one column of the recurrence, one state."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Value
from ..axes.relations import Axis

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@op_rule("LSTM", "GRU", "RNN")
def recurrent(op: Op) -> None:
    """x: (t, n, i)  w: (d, k*h, i)  r: (d, k*h, h)  b: (d, 2*k*h)  p: (d, 3*h)  y: (t, d, n, h)  states: (d, n, h).

    Contract i; the k gates stay, h is one axis throughout, in both directions. Layout 1 puts n before t and d.
    """
    layer(op, GATES[op.node.op])


def layer(op: Op, k: int, rows: int = 1, columns: int = 2) -> Axis:
    """Describe a recurrent layer of k gates, whose weights have their gates on axis `rows`; give its hidden axis."""
    x, w, r = op.x(0), op.x(1), op.x(2)
    (hidden,) = op.local(r.shape[columns])
    batch_first = bool(op.attr("layout", 0))
    time, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    op.otherwise = "the directions of a recurrent layer stay"
    op.mix(time, f"{op.node.op} carries a state along it")
    op.contract(x[2], w[columns])
    stack_gates(op, w[rows], [k], hidden)
    stack_gates(op, r[rows], [k], hidden)
    op.tie(r[columns], hidden)
    if op.given(3):
        stack_gates(op, op.x(3)[1], [2, k], hidden)
        op.role(op.x(3)[1], "parameter")
    if op.given(4):
        op.tie(op.x(4)[0], batch)
    for slot in (5, 6):
        if op.given(slot):
            _state(op, op.x(slot), batch, hidden, batch_first)
    if op.given(7):
        stack_gates(op, op.x(7)[1], [3], hidden)
        op.role(op.x(7)[1], "parameter")
    for k_out, y in enumerate(op.outputs):
        if y is not None and k_out == 0:
            op.tie(y[1] if batch_first else y[0], time)
            op.tie(y[0] if batch_first else y[2], batch)
            op.tie(y[3], hidden)
        elif y is not None:
            _state(op, y, batch, hidden, batch_first)
    for weight in (w, r):
        op.role(weight[rows], "output")
        op.role(weight[columns], "input")
        op.macs(time, batch, *weight.axes)
    op.hint(hidden, "hidden")
    op.size("hidden_size", hidden)
    if "activations" not in op.node.attrs:
        op.zeros("all", *(s for s in (1, 2, 3, 5, 6) if op.given(s)))
    return hidden


def stack_gates(op: Op, axis: Axis, counts: list[int], hidden: Axis) -> None:
    """Divide an axis into stacked gates, which stay, of one row per hidden unit."""
    gates = op.local(*counts)
    op.regroup([axis], [*gates, hidden])
    for gate in gates:
        op.freeze(gate, f"{op.node.op} has this many gates")


def _state(op: Op, state: Value, batch: Axis, hidden: Axis, batch_first: bool) -> None:
    """Describe a state: (d, n, h), or (n, d, h) with layout 1."""
    op.tie(state[0] if batch_first else state[1], batch)
    op.tie(state[2], hidden)
    op.role(state[2], "parameter")
