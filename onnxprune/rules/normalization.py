"""Normalizations: per-channel ones are exact, those whose statistics run over the axis are approximate."""

from __future__ import annotations

from ..axes.collect import op_rule
from ..axes.op import Op


@op_rule("BatchNormalization")
def batch_norm(op: Op) -> None:
    """x, y: (n, c, ...)  scale, bias, mean, var: (c)  and in training the new mean, var: (c).

    Tie every axis; the vectors run along c. In training, statistics run over all the others.
    """
    x = op.x()
    op.broadcast(slots=[0])
    for slot in range(1, 5):
        op.parameter(slot, x[1])
    for y in op.outputs[1:]:
        if y is not None and y.shape == (x.shape[1],):
            op.tie(y[0], x[1])
    if op.attr("training_mode", 0):
        for k, axis in enumerate(x.axes):
            if k != 1:
                op.mix(axis, "BatchNormalization takes statistics over it")
    op.zeros("all", 1, 2)


@op_rule("InstanceNormalization")
def instance_norm(op: Op) -> None:
    """x, y: (n, c, ...)  scale, bias: (c).

    Tie every axis; statistics run over the spatial axes, inside each channel.
    """
    x = op.x()
    op.broadcast(slots=[0])
    for axis in x.axes[2:]:
        op.mix(axis, "InstanceNormalization takes statistics over it")
    for slot in (1, 2):
        op.parameter(slot, x[1])
    op.zeros("all", 1, 2)


@op_rule("GroupNormalization")
def group_norm(op: Op) -> None:
    """x, y: (n, g*c, ...)  scale, bias: (g*c) from opset 21, (g) before.

    Split channels into (g c); statistics run over c and the spatial axes. Whole groups go exactly.
    """
    x = op.x()
    op.broadcast(slots=[0])
    g = int(op.attr("num_groups"))
    group, c = op.local(g, x.shape[1] // g)
    op.regroup([x[1]], [group, c])
    for axis in (c, *x.axes[2:]):
        op.mix(axis, "GroupNormalization takes statistics over it")
    for slot in (1, 2):
        op.parameter(slot, x[1] if op.x(slot).shape == (x.shape[1],) else group)
    op.hint(group, "groups")
    op.size("num_groups", group)
    op.zeros("all", 1, 2)


@op_rule("LayerNormalization", "RMSNormalization")
def layer_norm(op: Op) -> None:
    """x, y: (a..., b...)  scale, bias: (b...); statistics run over the axes from `axis` on.

    Tie every axis; mixing over b.
    """
    x = op.x()
    at = int(op.attr("axis", -1)) % x.ndim
    for k, y in enumerate(op.outputs):
        if y is not None:
            op.broadcast(slots=[0] if k == 0 else [], output=k)
            if k:
                for a, b in zip(x.axes[:at], y.axes, strict=False):
                    op.tie(a, b)
    for axis in x.axes[at:]:
        op.mix(axis, f"{op.node.op} takes statistics over it")
    slots = [s for s in (1, 2) if op.given(s)]
    op.broadcast(slots=slots)
    for slot in slots:
        for axis in op.x(slot).axes:
            op.role(axis, "parameter")
    op.zeros("all", *slots)


@op_rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization", "LRN")
def normalize_over_axes(op: Op) -> None:
    """x, y: (...); the output at an index depends on the others along some axes.

    Tie every axis; mixing over those.
    """
    x = op.x()
    op.broadcast(slots=[0])
    kind = op.node.op
    if kind == "LRN":
        axes = [1]
    elif kind == "MeanVarianceNormalization":
        axes = [int(a) for a in op.attr("axes", (0, 2, 3))]
    else:
        at = int(op.attr("axis", -1 if op.opset >= 13 or kind == "LpNormalization" else 1)) % x.ndim
        axes = [at] if op.opset >= 13 or kind == "LpNormalization" else list(range(at, x.ndim))
    for axis in axes:
        op.mix(x[axis], f"{kind} compares the indices along it")
    if kind in ("LpNormalization", "LRN", "MeanVarianceNormalization"):
        op.zeros("all", 0)
