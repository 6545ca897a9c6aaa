"""onnxruntime's attention operators: with the projection inside, with a bias, with shared keys, with quantized weights.

Source: onnxruntime docs/ContribOperators.md, and what its CPU kernels check.
"""

from __future__ import annotations

from typing import NamedTuple

from ..axes.collect import op_rule
from ..axes.op import Op, Unruly
from ..axes.relations import Axis
from .attention import (
    POSITIONS,
    Heads,
    Steps,
    attend,
    bias_scores,
    cache,
    default_scale,
    hold_positions,
    make_heads,
    output,
    pair_up,
    scores,
    share,
    turn,
)

MICROSOFT = "com.microsoft"
# Source: onnxruntime contrib_ops/cpu/bert/group_query_attention_helper.h, which refuses other head sizes.
HEAD_BLOCK, ROTARY_HEAD_BLOCK = 8, 16


@op_rule("RotaryEmbedding", domain=MICROSOFT)
def rotary(op: Op) -> None:
    """x, y: (n, t, h*(2*p + r)) | (n, h, t, 2*p + r)  positions: (n, t) | (1)  cos, sin: (m, p).

    Tie x with y; i and i + p (2i and 2i + 1 when interleaved) go together; the r last indices of a head are free.
    """
    x, cos = op.x(), op.x(2)
    turned = int(op.attr("rotary_embedding_dim", 0)) or 2 * cos.shape[-1]
    n_heads = int(op.attr("num_heads", 0)) or share(op, x.shape[2], turned) if x.ndim == 3 else x.shape[1]
    turn(op, (0, 2, 3, 1), n_heads, turned)


class Projection(NamedTuple):
    """Where an attention with its projection inside keeps its inputs."""

    bias: int
    mask: int
    past: int
    attention_bias: int | None


@op_rule("Attention", domain=MICROSOFT)
def attention(op: Op) -> None:
    """x: (n, t, i)  w: (i, h*d + h*d + h*e)  b: (h*d + h*d + h*e)  y: (n, t, h*e)  past: (2, n, h, m, d).

    Contract i; the columns of w and the bias are three ranges, each (h d) or (h e); tie y with the last; contract d.
    Without `scale` it is 1/sqrt(d), of the d before.
    """
    _projected(op, Projection(bias=2, mask=3, past=4, attention_bias=5))


@op_rule("QAttention", domain=MICROSOFT)
def quantized_attention(op: Op) -> None:
    """x: (n, t, i)  w: (i, 3*h*d), codes  b: (3*h*d)  scale, zero point of w: (3*h*d) | ()  y: (n, t, h*d).

    As Attention, with values as wide as keys. Scales and zero points run along the columns of w.
    """
    _projected(op, Projection(bias=2, mask=5, past=8, attention_bias=None))
    w = op.x(1)
    for slot in (4, 7):
        op.parameter(slot, w[1])
    spread = (1, w.shape[1]) if op.x(4).shape == (w.shape[1],) else None
    op.codes(1, scale=4, zero_point=7, spread=spread)


def _projected(op: Op, slots: Projection) -> None:
    x, w, y = op.x(0), op.x(1), op.y()
    if op.attr("do_rotary", 0):
        raise Unruly("it rotates queries and keys inside")
    sizes = [int(s) for s in op.attr("qkv_hidden_sizes", ())] or [share(op, w.shape[1], 3)] * 3
    if len(sizes) != 3 or sum(sizes) != w.shape[1] or sizes[0] != sizes[1]:
        raise Unruly(f"the hidden sizes {sizes} do not make the {w.shape[1]} columns of its weight")
    n = int(op.attr("num_heads"))
    op.otherwise = POSITIONS
    heads = make_heads(op, n, n, share(op, sizes[0], n), share(op, sizes[2], n))
    steps = Steps(x[0], x[1], x[1], None if op.given(slots.past) else x[1])
    op.contract(x[2], w[0])
    op.role(w[0], "input")
    op.role(w[1], "output")
    parts = _three(op, w[1], heads)
    if op.given(slots.bias):
        op.tie(op.x(slots.bias)[0], w[1])
        op.role(op.x(slots.bias)[0], "parameter")
    op.tie(y[0], steps.batch)
    op.tie(y[1], steps.query)
    op.regroup([y[2]], [heads.query, heads.v_size])
    op.macs(*x.axes, w[1])
    attend(op, heads, steps)
    if slots.attention_bias is not None:
        bias_scores(op, slots.attention_bias, heads, steps)
    caches = [v for v in (op.x(slots.past) if op.given(slots.past) else None, output(op, 1)) if v is not None]
    for value in caches:
        _stacked_cache(op, value.axes, heads, steps)
    if caches or op.given(slots.mask) or op.attr("unidirectional", 0):
        hold_positions(op, steps)
    op.size("num_heads", heads.query)
    if op.node.op == "QAttention":
        op.tie(heads.q_size, heads.v_size)
    else:
        for item, part in enumerate(parts):
            op.size("qkv_hidden_sizes", part, item=item)
    default_scale(op, heads, zero_is_default=True)
    if not caches:
        op.zeros("all", *(s for s in (1, slots.bias) if op.given(s)))


def _three(op: Op, axis: Axis, heads: Heads) -> list[Axis]:
    """Divide the queries, keys and values that lie side by side on one axis; give the three ranges."""
    widths = ((heads.query, heads.q_size), (heads.key, heads.k_size), (heads.key, heads.v_size))
    parts = op.local(*(head.size * size.size for head, size in widths))
    start = 0
    for part, (head, size) in zip(parts, widths, strict=True):
        op.select(axis, range(start, start + part.size), part)
        op.regroup([part], [head, size])
        start += part.size
    return parts


def _stacked_cache(op: Op, axes: tuple[Axis, ...], heads: Heads, steps: Steps) -> None:
    """Describe keys and values in one tensor (2, n, heads, positions, size): they have one size."""
    op.tie(axes[1], steps.batch)
    op.tie(axes[2], heads.key)
    op.freeze(axes[3], POSITIONS)
    op.tie(axes[4], heads.k_size)
    op.tie(axes[4], heads.v_size)


class MultiHead(NamedTuple):
    """Where an attention over projected inputs keeps its optional inputs."""

    bias: int
    mask: int
    attention_bias: int
    past: int
    beams: int


@op_rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(op: Op) -> None:
    """q: (n, t, h*d) | (n, t, h, 3, d)  k: (n, s, h*d) | (n, s, h, 2, d) | (n, h, s, d)  v: as k (e)  y: (n, t, h*e).

    Split the hidden axes into heads; contract d; the bias (h*d + h*d + h*e) is three ranges. Past and present keys
    and values are (n, h, m, d | e). Without `scale` it is 1/sqrt(d), of the d before.
    """
    _multi_head(op, MultiHead(bias=3, mask=4, attention_bias=5, past=6, beams=9))


@op_rule("DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def decoder_masked_attention(op: Op) -> None:
    """q: (n, 1, h*d)  k: (n, 1, h*d) | (n, h, s, d)  v: (n, 1, h*e) | (n, h, s, e)  y: (n, 1, h*e).

    As MultiHeadAttention, for a single position.
    """
    _multi_head(op, MultiHead(bias=10, mask=3, attention_bias=4, past=5, beams=9))


def _multi_head(op: Op, slots: MultiHead) -> None:
    y = op.y()
    op.otherwise = POSITIONS
    if op.given(slots.beams):
        raise Unruly("its cache is read through an indirection")
    past = op.given(slots.past)
    heads, steps = _packing(op, past)
    for value in (*(op.x(s) for s in (1, 2) if op.given(s)), y):
        op.tie(value[0], steps.batch)
    op.tie(y[1], steps.query)
    op.regroup([y[2]], [heads.query, heads.v_size])
    if op.given(slots.bias):
        if op.given(1) and op.x(1).ndim == 4:
            raise Unruly("a bias is added to keys that are projected already")
        _three(op, op.x(slots.bias)[0], heads)
        op.role(op.x(slots.bias)[0], "parameter")
    attend(op, heads, steps)
    bias_scores(op, slots.attention_bias, heads, steps)
    _caches(op, slots.past, heads, steps)
    scores(op, 3, heads, steps)
    alone = sum(o is not None for o in op.outputs) == 1
    if past or not alone or op.given(slots.mask) or op.attr("unidirectional", 0):
        hold_positions(op, steps)
    op.size("num_heads", heads.query)
    default_scale(op, heads, zero_is_default=True)
    if alone:
        values = next(s for s in (2, 1, 0) if op.given(s))
        op.zeros("all", values, *([slots.bias] if op.given(slots.bias) else []))


def _packing(op: Op, past: bool) -> tuple[Heads, Steps]:
    """Divide queries, keys and values, apart or packed along an axis of two or three, into heads."""
    q, n = op.x(0), int(op.attr("num_heads"))
    key, value = (op.x(s) if op.given(s) else None for s in (1, 2))
    packed = q if q.ndim == 5 and key is None else key if key is not None and key.ndim == 5 else None
    if packed is not None and value is None:
        heads = make_heads(op, n, n, packed.shape[4], packed.shape[4])
        key_steps = packed[1]
        op.tie(packed[2], heads.key)
        op.tie(packed[4], heads.q_size if packed is q else heads.k_size)
        op.tie(packed[4], heads.v_size)
    elif q.ndim == 3 and key is not None and value is not None and key.ndim == value.ndim == 4:
        heads = make_heads(op, n, n, key.shape[3], value.shape[3])
        key_steps = key[2]
        for kept, size in ((key, heads.k_size), (value, heads.v_size)):
            op.ties(kept.axes[1:], (heads.key, key_steps, size))
    elif q.ndim == 3 and key is not None and value is not None and key.ndim == value.ndim == 3:
        heads = make_heads(op, n, n, share(op, key.shape[2], n), share(op, value.shape[2], n))
        key_steps = key[1]
        op.tie(value[1], key_steps)
        op.regroup([key[2]], [heads.key, heads.k_size])
        op.regroup([value[2]], [heads.key, heads.v_size])
    else:
        raise Unruly("queries, keys and values are packed in a way no rule knows")
    if q.ndim == 3:
        op.regroup([q[2]], [heads.query, heads.q_size])
    return heads, Steps(q[0], q[1], key_steps, None if past else key_steps)


def _caches(op: Op, past: int, heads: Heads, steps: Steps) -> None:
    """Describe past keys and values, from the slot `past` on, and the present ones, outputs 1 and 2."""
    for k, size in enumerate((heads.k_size, heads.v_size)):
        if op.given(past + k):
            cache(op, op.x(past + k), steps, heads.key, size)
        kept = output(op, 1 + k)
        if kept is not None:
            cache(op, kept, steps, heads.key, size)


@op_rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(op: Op) -> None:
    """q: (n, t, k*g*d) | (n, t, k*g*d + k*d + k*d)  k, v: (n, s, k*d)  past, present: (n, k, m, d)  y: (n, t, k*g*d).

    Split the hidden axes into heads; contract d, which is one size for keys and values and goes in blocks of 8, or of
    16 in pairs with the rotary embedding inside. Heads of queries go within every group alike. Without `scale` it is
    1/sqrt(d), of the d before.
    """
    _refuse_group_query(op)
    q, y = op.x(0), op.y()
    n_query, n_key = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    packed = not op.given(1)
    size = share(op, q.shape[2], n_query + 2 * n_key if packed else n_query)
    op.otherwise = POSITIONS
    heads = make_heads(op, n_query, n_key, size, size)
    op.tie(heads.q_size, heads.v_size)
    key = q if packed else op.x(1)
    steps = Steps(q[0], q[1], key[1], None)
    hold_positions(op, steps)
    if packed:
        _three(op, q[2], heads)
    else:
        op.regroup([q[2]], [heads.query, heads.q_size])
        for slot, width in ((1, heads.k_size), (2, heads.v_size)):
            op.tie(op.x(slot)[0], steps.batch)
            op.tie(op.x(slot)[1], steps.key)
            op.regroup([op.x(slot)[2]], [heads.key, width])
    op.ties(y.axes[:2], (steps.batch, steps.query))
    op.regroup([y[2]], [heads.query, heads.v_size])
    attend(op, heads, steps)
    _head_blocks(op, heads)
    bias_scores(op, 10, heads, steps)
    _caches(op, 3, heads, steps)
    scores(op, 3, heads, steps)
    if op.given(11):
        op.tie(op.x(11)[0], heads.query)
        op.role(op.x(11)[0], "parameter")
    op.size("num_heads", heads.query)
    op.size("kv_num_heads", heads.key)
    default_scale(op, heads, zero_is_default=True)


def _refuse_group_query(op: Op) -> None:
    """Give up on variants whose further inputs run along the heads in ways not described here."""
    quantized = any(op.attr(name, "NONE") not in ("NONE", b"NONE") for name in ("k_quant_type", "v_quant_type"))
    if quantized or op.attr("kv_cache_bit_width", 0):
        raise Unruly("its caches are quantized")
    if any(op.given(slot) for slot in range(12, len(op.inputs))):
        raise Unruly("it scales or normalizes queries and keys inside")


def _head_blocks(op: Op, heads: Heads) -> None:
    """Keep the head size a multiple of what the kernels take, and whole pairs where they rotate."""
    size = heads.q_size
    if op.attr("do_rotary", 0):
        if not (op.given(7) and op.given(8)):
            raise Unruly("it rotates without angles")
        angles = [op.x(7)[-1], op.x(8)[-1]]
        if 2 * angles[0].size == size.size and size.size % ROTARY_HEAD_BLOCK == 0:
            interleaved = bool(op.attr("rotary_interleaved", 0))
            pair_up(op, size, size.size, angles, interleaved=interleaved, block=ROTARY_HEAD_BLOCK // 2)
            for slot in (7, 8):
                op.role(op.x(slot)[-1], "parameter")
        else:
            op.freeze(size, "a part of every head is rotated inside")
    elif size.size % HEAD_BLOCK == 0:
        blocks, within = op.local(size.size // HEAD_BLOCK, HEAD_BLOCK)
        op.regroup([size], [blocks, within])
        op.freeze(within, f"head sizes are multiples of {HEAD_BLOCK}")
    else:
        op.freeze(size, f"head sizes are multiples of {HEAD_BLOCK}")
