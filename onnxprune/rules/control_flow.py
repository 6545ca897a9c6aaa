"""Where the bodies of If, Loop, Scan and functions meet their surroundings; see `graph.flatten`."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from ..graph.flatten import DOMAIN


@op_rule("Join", domain=DOMAIN)
def join(op: Op) -> None:
    """a, b: (...)  y: (...), one of them.

    Tie every axis. Zero where all are.
    """
    y = op.y()
    for k in range(len(op.inputs)):
        x = op.x(k)
        if x.shape != y.shape:
            raise Unruly("the sides that meet here differ in shape")
        op.ties(x.axes, y.axes)
    op.zeros("all", *range(len(op.inputs)))


@op_rule("Enter", domain=DOMAIN)
def enter(op: Op) -> None:
    """a: (...)  y: (...), what the first round starts from.

    Tie every axis; later rounds bring other values, so nothing is said of zeros.
    """
    op.ties(op.x().axes, op.y().axes)


@op_rule("Stack", domain=DOMAIN)
def stack(op: Op) -> None:
    """a: (...)  y: (..., rounds, ...).

    Tie the axes of a; the rounds stay.
    """
    x, y = op.x(), op.y()
    at = int(op.attr("axis")) % y.ndim
    op.otherwise = "one per round of a loop"
    op.ties(x.axes, [a for k, a in enumerate(y.axes) if k != at])
    op.zeros("all", 0)


@op_rule("Unstack", domain=DOMAIN)
def unstack(op: Op) -> None:
    """a: (..., rounds, ...)  y: (...).

    Tie the axes of y; the rounds stay.
    """
    x, y = op.x(), op.y()
    at = int(op.attr("axis")) % x.ndim
    op.otherwise = "one per round of a loop"
    op.ties([a for k, a in enumerate(x.axes) if k != at], y.axes)
    op.zeros("all", 0)


@op_rule("Counter", "Read", domain=DOMAIN)
def plain_numbers(op: Op) -> None:
    """Numbers and conditions that control flow reads or gives.

    Nothing may go.
    """
    op.otherwise = "control flow reads it"
