"""Attention in one node: heads, the size of a head, and the rotary embedding that pairs its indices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly, Value
from ..axes.relations import Axis

POSITIONS = "attention runs over its positions"


@dataclass(frozen=True, slots=True)
class Heads:
    """The factors of attention: `query` heads are (key group), `group` of them share a head of keys and values.

    A head has `q_size` = `k_size` indices in queries and keys, which are summed away, and `v_size` in values.
    """

    query: Axis
    key: Axis
    group: Axis
    q_size: Axis
    k_size: Axis
    v_size: Axis


@dataclass(frozen=True, slots=True)
class Steps:
    """The axes of a run: batch, query positions, key positions, and with those of the past (None: not an input's)."""

    batch: Axis
    query: Axis
    key: Axis
    total: Axis | None


def make_heads(op: Op, n_query: int, n_key: int, size: int, v_size: int) -> Heads:
    """Make the factors, with their names and the sum over the head size; whole groups of query heads share a key."""
    if n_key < 1 or n_query % n_key:
        raise Unruly(f"{n_query} query heads do not share {n_key} key heads evenly")
    key, group, query, q, k, v = op.local(n_key, n_query // n_key, n_query, size, size, v_size)
    op.regroup([query], [key, group])
    op.contract(q, k)
    for axis, kind in ((key, "heads"), (group, "heads"), (q, "head_dim"), (v, "head_dim")):
        op.hint(axis, kind)
    return Heads(query, key, group, q, k, v)


def share(op: Op, total: int, parts: int) -> int:
    """Divide a width evenly, or give up."""
    if parts < 1 or total % parts:
        raise Unruly(f"{op.node.op} has {total} indices for {parts} heads")
    return total // parts


def attend(op: Op, heads: Heads, steps: Steps) -> None:
    """State what the products cost, what the default scale is, and that positions are compared."""
    op.macs(steps.batch, heads.query, steps.query, steps.key, heads.q_size)
    op.macs(steps.batch, heads.query, steps.query, steps.key, heads.v_size)
    op.mix(steps.key, "attention compares the positions along it")
    op.free(steps.query)


def default_scale(op: Op, heads: Heads, *, zero_is_default: bool) -> None:
    """Keep the scale of the products, 1/sqrt(head size), when heads get smaller."""
    scale = op.attr("scale")
    if scale is None or (zero_is_default and float(scale) == 0.0):
        op.default("scale", 1 / math.sqrt(heads.q_size.size), heads.q_size)


def hold_positions(op: Op, steps: Steps, why: str = POSITIONS) -> None:
    """Freeze the positions: masks, caches and causality count them."""
    for axis in (steps.query, steps.key, *((steps.total,) if steps.total is not None else ())):
        op.freeze(axis, why)


def bias_scores(op: Op, slot: int, heads: Heads, steps: Steps) -> None:
    """Tie a mask or bias (n | 1, heads | 1, t | 1, total) that is added to the scores; what it lacks stretches."""
    if not op.given(slot):
        return
    value = op.x(slot)
    targets = (steps.total, steps.query, heads.query, steps.batch)
    for k, (axis, target) in enumerate(zip(reversed(value.axes), targets, strict=False)):
        if axis.size == 1:
            continue
        if target is not None and axis.size == target.size:
            op.tie(axis, target)
        elif k >= 2:
            raise Unruly(f"a mask of shape {list(value.shape)} does not fit its {heads.query.size} heads")
        else:
            op.freeze(axis, POSITIONS)
            hold_positions(op, steps)
        if value.constant and k == 2:
            op.role(axis, "parameter")


def cache(op: Op, value: Value, steps: Steps, head: Axis, size: Axis) -> None:
    """Describe keys or values kept between runs: (n, heads, positions, size); those outside the model stay."""
    op.tie(value[0], steps.batch)
    op.tie(value[1], head)
    op.freeze(value[2], POSITIONS)
    op.tie(value[3], size)


def output(op: Op, slot: int) -> Value | None:
    """Give an optional output, None when it is left out."""
    return op.outputs[slot] if slot < len(op.outputs) else None


def scores(op: Op, slot: int, heads: Heads, steps: Steps) -> None:
    """Describe the scores as an output: (n, heads, t, total)."""
    value = output(op, slot)
    if value is not None:
        op.tie(value[0], steps.batch)
        op.tie(value[1], heads.query)
        for axis in value.axes[2:]:
            op.freeze(axis, POSITIONS)
        hold_positions(op, steps)


@op_rule("Attention")
def attention(op: Op) -> None:
    """q: (n, t, k*g*d) | (n, k*g, t, d)  k: (n, s, k*d) | (n, k, s, d)  v: (n, s, k*e) | (n, k, s, e)  y: as q, with e.

    Split the hidden axes of q, k, v and y into heads; contract d; tie n and t; mixing over s. Masks run along k*g,
    caches along k and d or e. Without `scale` it is 1/sqrt(d), of the d before.
    """
    q, k, v, y = op.x(0), op.x(1), op.x(2), op.y()
    flat = q.ndim == 3
    if {q.ndim, k.ndim, v.ndim} != {3 if flat else 4}:
        raise Unruly("queries, keys and values are not all of rank 3, or all of rank 4")
    n_query = int(op.attr("q_num_heads", 0)) if flat else q.shape[1]
    n_key = int(op.attr("kv_num_heads", 0)) if flat else k.shape[1]
    size = share(op, q.shape[2], n_query) if flat else q.shape[3]
    v_size = share(op, v.shape[2], n_key) if flat else v.shape[3]
    op.otherwise = POSITIONS
    heads = make_heads(op, n_query, n_key, size, v_size)
    at = 1 if flat else 2
    past, present = op.given(4), output(op, 1)
    steps = Steps(q[0], q[at], k[at], None if past else k[at])
    for value, head, width in (
        (q, heads.query, heads.q_size),
        (k, heads.key, heads.k_size),
        (v, heads.key, heads.v_size),
        (y, heads.query, heads.v_size),
    ):
        op.tie(value[0], steps.batch)
        _split_heads(op, value, head, width)
    op.tie(v[at], steps.key)
    op.tie(y[at], steps.query)
    attend(op, heads, steps)
    bias_scores(op, 3, heads, steps)
    counts = op.attr("is_causal", 0) or op.attr("left_window_size", -1) >= 0 or op.attr("right_window_size", -1) >= 0
    if counts or past or present is not None or op.given(6):
        hold_positions(op, steps)
    for slot, size_axis in ((4, heads.k_size), (5, heads.v_size)):
        if op.given(slot):
            cache(op, op.x(slot), steps, heads.key, size_axis)
        kept = output(op, slot - 3)
        if kept is not None:
            cache(op, kept, steps, heads.key, size_axis)
    scores(op, 3, heads, steps)
    if op.given(6):
        op.tie(op.x(6)[0], steps.batch)
    for name, axis in (("q_num_heads", heads.query), ("kv_num_heads", heads.key)):
        if name in op.node.attrs:
            op.size(name, axis)
    default_scale(op, heads, zero_is_default=False)
    # Heads that share a value are not zero without their queries; the caches of keys are not zero with the values.
    if heads.group.size == 1 and len([o for o in op.outputs if o is not None]) == 1:
        op.zeros("all", 2)


def _split_heads(op: Op, value: Value, head: Axis, size: Axis) -> None:
    """Divide (n, t, heads*size), or name the axes of (n, heads, t, size)."""
    if value.ndim == 3:
        op.regroup([value[2]], [head, size])
    else:
        op.tie(value[1], head)
        op.tie(value[3], size)


@op_rule("RotaryEmbedding")
def rotary(op: Op) -> None:
    """x, y: (n, t, h*(2*p + r)) | (n, h, t, 2*p + r)  cos, sin: (m, p) | (n, t, p)  positions: (n, t).

    Tie x with y; i and i + p (2i and 2i + 1 when interleaved) go together; the r last indices of a head are free.
    """
    x, cos = op.x(), op.x(1)
    n_heads = int(op.attr("num_heads", 0)) if x.ndim == 3 else x.shape[1]
    turn(op, (0, 1, 2, 3), n_heads, int(op.attr("rotary_embedding_dim", 0)) or 2 * cos.shape[-1])


def turn(op: Op, slots: tuple[int, int, int, int], n_heads: int, turned: int) -> None:
    """Describe a rotary embedding; `slots` hold x, cos, sin and the positions, `turned` counts indices per head."""
    x = op.x(slots[0])
    op.otherwise = "positions pick from it"
    op.broadcast(slots=[slots[0]])
    head, size = op.local(n_heads, share(op, x.shape[2], n_heads) if x.ndim == 3 else x.shape[3])
    _split_heads(op, x, head, size)
    time = x[1] if x.ndim == 3 else x[2]
    caches = [op.x(s) for s in slots[1:3]]
    for value in [*caches, *([op.x(slots[3])] if op.given(slots[3]) else [])]:
        if value.ndim == 3 or (value.ndim == 2 and value not in caches):
            for axis, target in zip(value.axes, (x[0], time), strict=False):
                if axis.size == target.size:
                    op.tie(axis, target)
                elif axis.size > 1:
                    op.freeze(target, op.otherwise)
        elif value not in caches:
            op.freeze(time, op.otherwise)
    rotated = pair_up(op, size, turned, [c[-1] for c in caches], interleaved=bool(op.attr("interleaved", 0)))
    for value in caches:
        op.role(value[-1], "parameter")
    if op.attr("num_heads", 0):
        op.size("num_heads", head)
    if op.attr("rotary_embedding_dim", 0):
        op.size("rotary_embedding_dim", rotated)
    op.hint(size, "head_dim")
    op.hint(head, "heads")
    op.zeros("all", slots[0])


def pair_up(op: Op, size: Axis, turned: int, angles: list[Axis], *, interleaved: bool, block: int = 1) -> Axis:
    """Pair the `turned` first indices of a head, one pair per angle, and give their axis; pairs go in whole blocks."""
    if turned > size.size or turned % 2 or any(a.size * 2 != turned for a in angles) or (turned // 2) % block:
        raise Unruly(f"angles for {turned} indices do not fit a head of {size.size}")
    rotated = size
    if turned < size.size:
        rotated, rest = op.local(turned, size.size - turned)
        op.select(size, range(turned), rotated)
        op.select(size, range(turned, size.size), rest)
    halves, blocks, within = op.local(2, turned // 2 // block, block)
    pair = [blocks, within, halves] if interleaved else [halves, blocks, within]
    op.regroup([rotated], pair)
    op.freeze(halves, "a rotation turns pairs of indices")
    op.freeze(within, f"pairs go {block} at a time")
    for axis in angles:
        op.regroup([axis], [blocks, within])
    return rotated
