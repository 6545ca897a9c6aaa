"""onnxruntime's normalizations with a residual sum or an embedding inside: statistics over the last axis."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from .normalization import layer_norm

MICROSOFT = "com.microsoft"
op_rule("SimplifiedLayerNormalization")(layer_norm)
op_rule("SimplifiedLayerNormalization", domain=MICROSOFT)(layer_norm)


@op_rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(op: Op) -> None:
    """x, skip, y, sum: (..., c)  scale, shift, bias: (c); statistics run over c, skip may lack leading axes.

    Tie every axis; mixing over c. The fourth output is the sum before the normalization.
    """
    x, y = op.x(), op.y()
    vectors = range(2, 5 if op.node.op == "SkipLayerNormalization" else 4)
    op.broadcast(slots=[0, 1])
    for value in op.outputs[1:3]:
        if value is not None:
            op.ties(value.axes[: x.ndim - 1], x.axes[:-1])
    summed = len(op.outputs) > 3 and op.outputs[3] is not None
    if summed:
        op.broadcast(slots=[0], output=3)
    for slot in vectors:
        op.parameter(slot, y[-1])
    op.mix(x[-1], f"{op.node.op} takes statistics over it")
    # The normalized output is zero with its parameters, the sum with its terms: only one of them can be stated.
    if not summed:
        op.zeros("all", *(s for s in vectors[:-1] if op.given(s)))


@op_rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_norm(op: Op) -> None:
    """ids, segments, positions: (n, t)  tables: (m, c)  scale, shift: (c)  mask: (n, t)  y, sum: (n, t, c).

    Tie n, t and c; mixing over c. What the ids pick from stays: it is a vocabulary.
    """
    y = op.y()
    if y.ndim != 3:
        raise Unruly("its output is not of rank 3")
    op.otherwise = "it is a table's vocabulary"
    for slot in (0, 1, 7, 8):
        if op.given(slot):
            for axis, target in zip(op.x(slot).axes, y.axes[:2], strict=True):
                if axis.size > 1:
                    op.tie(axis, target)
    for slot in (2, 3, 4):
        if op.given(slot):
            table = op.x(slot)
            op.tie(table[1], y[2])
            op.role(table[1], "output")
            op.hint(table[1], "embedding")
    for slot in (5, 6):
        op.parameter(slot, y[2])
    if len(op.outputs) > 1 and op.outputs[1] is not None:
        for axis in op.outputs[1].axes:
            op.tie(axis, y[0])
        op.freeze(y[1], "the mask counts positions")
    if len(op.outputs) > 2 and op.outputs[2] is not None:
        op.ties(op.outputs[2].axes, y.axes)
    else:
        op.zeros("all", 5, 6)
    op.mix(y[2], f"{op.node.op} takes statistics over it")
