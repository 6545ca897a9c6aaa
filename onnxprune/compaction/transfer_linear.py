"""Transfers of operators that sum: products, convolutions, pools and reductions.

A sum is known where every term is: where its weight is zero, its input is known to be zero, or both factors are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .facts import Step, transfer
from .known import Array, Known, full_size, known_or_none

_SAME_ROWS = frozenset(("Cast", "Identity", "Dropout"))


@transfer("MatMul")
@transfer("FusedMatMul", domain="com.microsoft")
def matmul(step: Step) -> Known | None:
    """a: (..., m, k)  b: (..., k, n)."""
    op = step.op
    if any(op.attr(n, 0) for n in ("transA", "transB", "transBatchA", "transBatchB")) or op.attr("alpha", 1.0) != 1.0:
        return None
    a, b = step.blank(0), step.blank(1)
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if b.shape[-2] == 1 and b.mask.any() and sums_to_one(step):
        return known_or_none(b.mask, b.value)
    if not (step.counts(op.x(0).ndim - 1, 0) and step.counts(op.x(1).ndim - 2, 1)):
        return None
    fixed = step.facts.is_fixed(op.x(0).name, op.x(0).ndim - 1) or step.facts.is_fixed(op.x(1).name, op.x(1).ndim - 2)
    return _product(a, b, step.shape(0)[-1], fixed)


def _product(a: Known, b: Known, inner: int, fixed: bool) -> Known | None:
    """Multiply what is known; the inner axis is stored in full where either operand has it."""
    if not (a.mask.any() or b.mask.any()):
        return None
    if a.shape[-1] != b.shape[-2]:
        if not fixed:
            return None
        a, b = a.stretched((*a.shape[:-1], inner)), b.stretched((*b.shape[:-2], inner, b.shape[-1]))
    may_a, may_b = ~a.zero, ~b.zero
    unknown = _counts(~a.mask, may_b) + _counts(may_a, ~b.mask)
    mask = unknown == 0
    if not mask.any():
        return None
    value = np.matmul(a.filled(0.0).astype(np.float64), b.filled(0.0).astype(np.float64))
    if a.shape[-1] == 1 < inner:
        mask = mask & (value == 0) if not fixed else mask
        value = value * inner
    return known_or_none(mask, value.astype(a.value.dtype))


def _counts(a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(a.astype(np.float32), b.astype(np.float32)))


def sums_to_one(step: Step) -> bool:
    """Say whether the rows of the first operand come out of a Softmax: then it averages the second."""
    tensor = step.op.node.inputs[0]
    while tensor.inputs and tensor.inputs[0].op in _SAME_ROWS:
        tensor = tensor.inputs[0].inputs[0]
    if not tensor.inputs or tensor.inputs[0].op != "Softmax":
        return False
    rank = step.op.x(0).ndim
    return int(tensor.inputs[0].attrs.get("axis", -1 if step.op.opset >= 13 else 1)) % rank == rank - 1


@transfer("Gemm")
def gemm(step: Step) -> Known | None:
    """a: (m, k) or transposed  b: (k, n) or transposed  c: broadcast to (m, n)."""
    op = step.op
    a, b = step.blank(0), step.blank(1)
    if a is None or b is None:
        return None
    a = a.mapped(np.transpose) if op.attr("transA", 0) else a
    b = b.mapped(np.transpose) if op.attr("transB", 0) else b
    inner = step.shape(0)[0 if op.attr("transA", 0) else 1]
    found = _product(a, b, inner, True)
    if found is None:
        return None
    mask, value = found.mask, found.value.astype(np.float64) * float(op.attr("alpha", 1.0))
    if op.given(2):
        c = step.x(2)
        if c is None:
            return None
        lead = (1,) * (2 - len(c.shape))
        c = c.mapped(lambda m: m.reshape(lead + m.shape))
        mask, value = mask & c.mask, value + float(op.attr("beta", 1.0)) * c.value.astype(np.float64)
    return known_or_none(mask, value.astype(found.value.dtype))


def window_sums(step_or_op: Any) -> bool:
    """Say whether every position of a convolution sees the whole window: no padding."""
    op = step_or_op
    return not any(op.attr("pads", ())) and op.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")


@transfer("Conv")
def conv(step: Step) -> Known | None:
    """x: (n, g*i, ...)  w: (g*o, i, ...)  b: (g*o)  y: (n, g*o, ...)."""
    op = step.op
    weight = step.constant(1)
    bias = step.constant(2) if op.given(2) else None
    if weight is None or (op.given(2) and bias is None):
        return None
    groups = int(op.attr("group", 1))
    n_out, n_in = weight.shape[:2]
    matters = (weight != 0).reshape(n_out, n_in, -1).any(axis=2)
    x = step.x()
    batch = x is not None and x.shape[0] != 1
    unknown = np.ones(groups * n_in, dtype=bool)
    live = unknown.copy()
    if x is not None and not batch:
        x = x.stretched((1, groups * n_in, *x.shape[2:]))
        unknown = np.asarray(~x.mask.all(axis=tuple(k for k in range(len(x.shape)) if k != 1)))
        live = np.asarray((~x.zero).any(axis=tuple(k for k in range(len(x.shape)) if k != 1)))
    into = np.arange(n_out) // (n_out // groups)
    source = into[:, None] * n_in + np.arange(n_in)
    known_out = ~(matters & unknown[source]).any(axis=1)
    if not known_out.any():
        return None
    along = (1, n_out) + (1,) * (weight.ndim - 2)
    base = np.zeros(n_out) if bias is None else bias.astype(np.float64)
    driven = known_out & (matters & live[source]).any(axis=1)
    if not driven.any() or x is None:
        return known_or_none(known_out.reshape(along), base.astype(weight.dtype).reshape(along))
    if window_sums(op) and all(d == 1 for d in x.shape[2:]):
        sums = weight.reshape(n_out, n_in, -1).astype(np.float64).sum(axis=2)
        level = np.where(unknown, 0.0, x.filled(0.0).astype(np.float64).reshape(-1))
        total = base + (sums * level[source]).sum(axis=1)
        return known_or_none(known_out.reshape(along), total.astype(weight.dtype).reshape(along))
    wide = full_size(x, step.shape(), step.can_stretch(), keep=(0,))
    if wide is None:
        steady = known_out & ~driven
        return known_or_none(steady.reshape(along), base.astype(weight.dtype).reshape(along))
    value = step.run([wide.filled(0.0), weight, *([bias] if bias is not None else [])])
    return None if value is None else known_or_none(known_out.reshape(along), value)


@transfer("ConvTranspose")
def conv_transpose(step: Step) -> Known | None:
    """x: (n, g*i, ...)  w: (g*i, o, ...)  b: (g*o)  y: (n, g*o, ...). Known where nothing but the bias arrives."""
    op = step.op
    weight = step.constant(1)
    bias = step.constant(2) if op.given(2) else None
    if weight is None or (op.given(2) and bias is None):
        return None
    groups = int(op.attr("group", 1))
    n_in, n_out = weight.shape[:2]
    matters = (weight != 0).reshape(n_in, n_out, -1).any(axis=2)
    x = step.x()
    live = np.ones(n_in, dtype=bool)
    if x is not None:
        x = x.stretched([n_in if k == 1 else d for k, d in enumerate(x.shape)])
        live = np.asarray((~x.zero).any(axis=tuple(k for k in range(len(x.shape)) if k != 1)))
    reached = (matters & live[:, None]).reshape(groups, n_in // groups, n_out).any(axis=1).reshape(-1)
    along = (1, groups * n_out) + (1,) * (weight.ndim - 2)
    base = np.zeros(groups * n_out, dtype=weight.dtype) if bias is None else bias
    return known_or_none(~reached.reshape(along), base.reshape(along))


@transfer("MaxPool", "AveragePool", "LpPool")
def pool(step: Step) -> list[Known | None]:
    """A channel that is the same everywhere stays so, but where zeros of the padding are averaged in."""
    x, op = step.x(), step.op
    if x is None or (len(op.outputs) > 1 and op.outputs[1] is not None):
        return [None]
    steady = op.node.op == "MaxPool" or (
        op.node.op == "AveragePool"
        and not op.attr("ceil_mode", 0)
        and (window_sums(op) or not op.attr("count_include_pad", 0))
    )
    if steady and all(d == 1 for d in x.shape[2:]):
        return [x]
    return [_windowed(step, x)]


def _windowed(step: Step, x: Known) -> Known | None:
    """Run a window over what is known: channel by channel, with the positions stored in full."""
    if x.shape[0] != 1:
        return None
    positions = tuple(range(2, len(x.shape)))
    whole = x.mask.all(axis=positions, keepdims=True)
    zero = x.zero.all(axis=positions, keepdims=True)
    wide = full_size(x, step.shape(), step.can_stretch(), keep=(0, 1))
    if wide is None:
        return known_or_none(zero, np.zeros_like(x.value[:1, :1]))
    value = step.run([wide.filled(0.0)])
    return None if value is None else known_or_none(whole, value)


@transfer("GlobalAveragePool", "GlobalMaxPool")
def global_pool(step: Step) -> Known | None:
    """The channel, where it is the same everywhere."""
    x = step.x()
    if x is None:
        return None
    return x if all(d == 1 for d in x.shape[2:]) else _windowed(step, x)


@transfer("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce(step: Step) -> Known | None:
    """Known where all that is reduced is. The mean and the extremes of equal elements are those elements."""
    x, op = step.x(), step.op
    if x is None:
        return None
    rank = len(x.shape)
    given = op.attr("axes") if "axes" in op.node.attrs else op.fixed_ints(1) if op.given(1) else None
    if op.given(1) and given is None:
        return None
    if not given and op.attr("noop_with_empty_axes", 0):
        return x
    axes = sorted({int(a) % rank for a in given} if given else range(rank))
    if not all(step.counts(k) for k in axes):
        return None
    if op.node.op not in ("ReduceMean", "ReduceMax", "ReduceMin") and not x.zero[x.mask].all():
        keep = [k for k in range(rank) if k not in axes]
        wide = full_size(x, step.shape(), step.can_stretch(), keep=keep)
        if wide is None:
            return None
        x = wide
    value = step.run([x.filled(0.0), *([step.constant(1)] if op.given(1) else [])])
    if value is None:
        return None
    mask = x.mask.all(axis=tuple(axes), keepdims=bool(op.attr("keepdims", 1)))
    return known_or_none(mask.reshape(value.shape), value)
