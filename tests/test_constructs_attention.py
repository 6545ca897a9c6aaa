"""Attention as every exporter spells it out, with its positions, masks, caches and norms; shapes that are computed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.constructs.sketch import Sketch, check, reasons

N, T, C, OUT = 2, 5, 11, 13
HEADS, D, E = 4, 6, 10  # D is the size of a head in queries and keys, E in values
INT64 = np.int64


def start(*shape: int | str) -> tuple[Sketch, str]:
    s = Sketch()
    return s, s.input(*(shape or (N, T, C)))


def apart(s: Sketch, x: str, heads: int, size: int) -> str:
    """(n, t, h*d) to (n, h, t, d)."""
    return s.transpose(s.reshape(x, 0, 0, heads, size), 0, 2, 1, 3)


def together(s: Sketch, x: str, width: int) -> str:
    """(n, h, t, d) to (n, t, h*d)."""
    return s.reshape(s.transpose(x, 0, 2, 1, 3), 0, 0, width)


def attend(s: Sketch, q: str, k: str, v: str, mask: str = "") -> str:
    """Attention over (n, h, t, d)."""
    scores = s("Mul", s("MatMul", q, s.transpose(k, 0, 1, 3, 2)), s.number(0.4))
    return s("MatMul", s("Softmax", s("Add", scores, mask) if mask else scores, axis=-1), v)


def projected(s: Sketch, x: str, heads: int = HEADS, key_heads: int = HEADS) -> list[str]:
    return [
        apart(s, s.linear(x, C, heads * D), heads, D),
        apart(s, s.linear(x, C, key_heads * D), key_heads, D),
        apart(s, s.linear(x, C, key_heads * E), key_heads, E),
    ]


def finish(s: Sketch, z: str) -> str:
    return s.linear(together(s, z, HEADS * E), HEADS * E, OUT)


FREE = {"heads": [HEADS], "head_dim": [f"{HEADS}x{D}", f"{HEADS}x{E}"]}


def test_plain() -> None:
    s, x = start()
    check(s.model(finish(s, attend(s, *projected(s, x)))), FREE)


def test_torchscript_computes_its_shapes() -> None:
    """Shape, Gather, Unsqueeze and Concat in front of every Reshape; the head size is a division, the scale a root."""
    s, x = start("n", "t", C)

    def dim(value: str, k: int) -> str:
        return s("Unsqueeze", s("Gather", s("Shape", value), s.number(k, INT64), axis=0), s.ints(0))

    def split(value: str) -> str:
        width = s("Div", s("Gather", s("Shape", value), s.number(2, INT64), axis=0), s.number(HEADS, INT64))
        target = s("Concat", dim(value, 0), dim(value, 1), s.ints(HEADS), s("Unsqueeze", width, s.ints(0)), axis=0)
        return s.transpose(s("Reshape", value, target), 0, 2, 1, 3)

    q, k, v = (split(s.linear(x, C, HEADS * d)) for d in (D, D, E))
    scores = s("Div", s("MatMul", q, s.transpose(k, 0, 1, 3, 2)), s.number(np.sqrt(D)))
    z = s.transpose(s("MatMul", s("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
    whole = s("Unsqueeze", s("Mul", s.number(HEADS, INT64), s.number(E, INT64)), s.ints(0))
    flat = s("Reshape", z, s("Concat", dim(z, 0), dim(z, 1), whole, axis=0))
    check(s.model(s.linear(flat, HEADS * E, OUT)), FREE)


def test_dynamo_scales_both_sides() -> None:
    s, x = start()
    q, k, v = projected(s, x)
    root = s.number(D**-0.25)
    scores = s("MatMul", s("Mul", q, root), s("Mul", s.transpose(k, 0, 1, 3, 2), root))
    check(s.model(finish(s, s("MatMul", s("Softmax", scores, axis=-1), v))), FREE)


def test_the_scale_is_computed_from_the_head_size() -> None:
    """Root of the last size of q, by Shape, Slice, Cast and Sqrt: smaller heads keep the scale of the whole ones."""
    s, x = start()
    q, k, v = projected(s, x)
    last = s("Slice", s("Shape", q), s.ints(-1), s.ints(np.iinfo(INT64).max), s.ints(0))
    scale = s("Div", s.number(1.0), s("Sqrt", s("Cast", last, to=1)))
    scores = s("MatMul", s("Mul", q, s("Sqrt", scale)), s("Mul", s.transpose(k, 0, 1, 3, 2), s("Sqrt", scale)))
    y = finish(s, s("MatMul", s("Softmax", scores, axis=-1), v))
    check(s.model(y), FREE)


@pytest.mark.parametrize("taken_by", ["gather", "split", "slice"])
def test_one_product_for_all_three(taken_by: str) -> None:
    """timm: (n, t, 3, h, d), moved in front, taken one by one."""
    s, x = start()
    qkv = s.transpose(s.reshape(s.linear(x, C, 3 * HEADS * D), N, T, 3, HEADS, D), 2, 0, 3, 1, 4)
    if taken_by == "gather":
        parts = [s("Gather", qkv, s.number(k, INT64), axis=0) for k in range(3)]
    elif taken_by == "split":
        parts = [s("Squeeze", p, s.ints(0)) for p in s.call("Split", qkv, outputs=3, axis=0)]
    else:
        cuts = [s("Slice", qkv, s.ints(k), s.ints(k + 1), s.ints(0)) for k in range(3)]
        parts = [s("Squeeze", p, s.ints(0)) for p in cuts]
    y = s.linear(together(s, attend(s, *parts), HEADS * D), HEADS * D, OUT)
    check(s.model(y), {"heads": [HEADS], "head_dim": [f"{HEADS}x{D}"]})


def test_gpt2_splits_the_product() -> None:
    s, x = start()
    parts = s.call("Split", s.linear(x, C, 3 * HEADS * D), s.ints(*[HEADS * D] * 3), outputs=3, axis=2)
    z = attend(s, *(apart(s, p, HEADS, D) for p in parts))
    y = s.linear(together(s, z, HEADS * D), HEADS * D, OUT)
    check(s.model(y), {"heads": [HEADS], "head_dim": [f"{HEADS}x{D}", f"{HEADS}x{D}"]})


def test_neox_keeps_the_three_inside_a_head() -> None:
    s, x = start()
    heads = s.reshape(s.linear(x, C, HEADS * 3 * D), 0, 0, HEADS, 3 * D)
    ends = (0, D, 2 * D, 3 * D)
    cuts = [s("Slice", heads, s.ints(a), s.ints(b), s.ints(3)) for a, b in pairwise(ends)]
    z = attend(s, *(s.transpose(p, 0, 2, 1, 3) for p in cuts))
    y = s.linear(together(s, z, HEADS * D), HEADS * D, OUT)
    check(s.model(y), {"heads": [HEADS], "head_dim": [D, D]})


def test_torch_folds_the_batch_into_the_heads() -> None:
    """nn.MultiheadAttention: (t, n, c), then (t, n*h, d), then (n*h, t, d)."""
    s, x = start(T, N, C)

    def folded(value: str, size: int) -> str:
        return s.transpose(s.reshape(value, T, N * HEADS, size), 1, 0, 2)

    q, k, v = (folded(s.linear(x, C, HEADS * d), d) for d in (D, D, E))
    scores = s("Softmax", s("Mul", s("MatMul", q, s.transpose(k, 0, 2, 1)), s.number(0.4)), axis=-1)
    z = s.reshape(s.transpose(s("MatMul", scores, v), 1, 0, 2), T * N, HEADS * E)
    y = s("Gemm", z, s.w(OUT, HEADS * E), s.w(OUT), transB=1)
    check(s.model(s.reshape(y, T, N, OUT)), FREE)


def test_tensorflow_flattens_the_batch() -> None:
    """tf2onnx BERT: (n*t, c) products, reshaped to (n, t, h, d) with constants."""
    s, x = start()
    rows = s.reshape(x, -1, C)

    def heads(size: int) -> str:
        product = s("Gemm", rows, s.w(C, HEADS * size), s.w(HEADS * size))
        return s.transpose(s.reshape(product, N, T, HEADS, size), 0, 2, 1, 3)

    z = attend(s, heads(D), heads(D), heads(E))
    y = s("Gemm", s.reshape(s.transpose(z, 0, 2, 1, 3), N * T, HEADS * E), s.w(HEADS * E, OUT), s.w(OUT))
    check(s.model(s.reshape(y, N, T, OUT)), FREE)


def test_paddle_slices_and_reshapes_with_zeros() -> None:
    s, x = start()
    qkv = s.transpose(s.reshape(s.linear(x, C, 3 * HEADS * D), 0, -1, 3, HEADS, D), 2, 0, 3, 1, 4)
    q, k, v = (s("Squeeze", s("Slice", qkv, s.ints(i), s.ints(i + 1), s.ints(0)), s.ints(0)) for i in range(3))
    scores = s("Softmax", s("MatMul", s("Mul", q, s.number(0.4)), s.transpose(k, 0, 1, 3, 2)), axis=-1)
    z = s.reshape(s.transpose(s("MatMul", scores, v), 0, 2, 1, 3), 0, -1, HEADS * D)
    check(s.model(s.linear(z, HEADS * D, OUT)), {"heads": [HEADS], "head_dim": [f"{HEADS}x{D}"]})


@pytest.mark.parametrize("how", ["expand", "broadcast", "tile"])
def test_queries_share_keys(how: str) -> None:
    """2 heads of keys, each read by 3 heads of queries."""
    s, x = start()
    q = apart(s, s.linear(x, C, 6 * D), 6, D)
    k, v = apart(s, s.linear(x, C, 2 * D), 2, D), apart(s, s.linear(x, C, 2 * E), 2, E)
    if how == "broadcast":
        grouped = s.reshape(q, N, 2, 3, T, D)
        keys = s.transpose(s("Unsqueeze", k, s.ints(2)), 0, 1, 2, 4, 3)
        weights = s("Softmax", s("MatMul", grouped, keys), axis=-1)
        z = s.reshape(s("MatMul", weights, s("Unsqueeze", v, s.ints(2))), N, 6, T, E)
    else:
        wide = []
        for value, size in ((k, D), (v, E)):
            up = s("Unsqueeze", value, s.ints(2))
            up = s("Expand", up, s.ints(N, 2, 3, T, size)) if how == "expand" else s("Tile", up, s.ints(1, 1, 3, 1, 1))
            wide.append(s.reshape(up, N, 6, T, size))
        z = attend(s, q, *wide)
    y = s.linear(together(s, z, 6 * E), 6 * E, OUT)
    check(s.model(y), {"heads": [2, "2x3"], "head_dim": [f"2x{D}", f"2x{E}"]})


def test_all_queries_share_one_key() -> None:
    """Multi-query: keys and values have no axis of heads and are stretched by the product."""
    s, x = start()
    q = apart(s, s.linear(x, C, HEADS * D), HEADS, D)
    k, v = (s("Unsqueeze", s.linear(x, C, size), s.ints(1)) for size in (D, E))
    y = finish(s, attend(s, q, k, v))
    check(s.model(y), {"heads": [HEADS], "head_dim": [D, E]})


def rotated(s: Sketch, x: str, size: int, cos: str, sin: str) -> str:
    half = size // 2
    front = s("Slice", x, s.ints(0), s.ints(half), s.ints(3))
    back = s("Slice", x, s.ints(half), s.ints(np.iinfo(INT64).max), s.ints(3))
    turned = s("Concat", s("Neg", back), front, axis=-1)
    return s("Add", s("Mul", x, cos), s("Mul", turned, sin))


@pytest.mark.parametrize("angles", ["doubled", "joined"])
def test_rotary_positions_by_halves(angles: str) -> None:
    """Llama: the second half of the angles repeats the first, stored so or joined in the graph."""
    s, x = start()
    q, k, v = projected(s, x)
    tables = []
    for _ in range(2):
        table = s.w(1, 1, T, D if angles == "doubled" else D // 2)
        tables.append(table if angles == "doubled" else s("Concat", table, table, axis=-1))
    z = attend(s, rotated(s, q, D, *tables), rotated(s, k, D, *tables), v)
    check(s.model(finish(s, z)), {"heads": [HEADS], "head_dim": [D // 2, f"{HEADS}x{E}"]})


def test_rotary_positions_interleaved() -> None:
    """GPT-J: even and odd indices, by slices of step two, stacked back."""
    s, x = start()
    q, k, v = projected(s, x)
    cos, sin = s.w(1, 1, T, D // 2), s.w(1, 1, T, D // 2)

    def turn(value: str) -> str:
        end = np.iinfo(INT64).max
        even = s("Slice", value, s.ints(0), s.ints(end), s.ints(3), s.ints(2))
        odd = s("Slice", value, s.ints(1), s.ints(end), s.ints(3), s.ints(2))
        one = s("Sub", s("Mul", even, cos), s("Mul", odd, sin))
        two = s("Add", s("Mul", even, sin), s("Mul", odd, cos))
        pair = s("Concat", s("Unsqueeze", one, s.ints(4)), s("Unsqueeze", two, s.ints(4)), axis=4)
        return s.reshape(pair, N, HEADS, T, D)

    y = finish(s, attend(s, turn(q), turn(k), v))
    check(s.model(y), {"heads": [HEADS], "head_dim": [D // 2, f"{HEADS}x{E}"]})


def test_rotary_positions_over_a_part_of_the_head() -> None:
    """The first 4 indices turn, the rest passes."""
    s, x = start()
    q, k, v = projected(s, x)
    cos, sin = s.w(1, 1, T, 4), s.w(1, 1, T, 4)

    def turn(value: str) -> str:
        front = s("Slice", value, s.ints(0), s.ints(4), s.ints(3))
        rest = s("Slice", value, s.ints(4), s.ints(np.iinfo(INT64).max), s.ints(3))
        return s("Concat", rotated(s, front, 4, cos, sin), rest, axis=-1)

    model = s.model(finish(s, attend(s, turn(q), turn(k), v)))
    check(model, {"heads": [HEADS], "head_dim": [2, 2, f"{HEADS}x{E}"]})


def test_relative_positions_from_a_table_of_heads() -> None:
    """T5: a table (buckets, heads), gathered, moved and added to the scores."""
    s, x = start()
    buckets = s.tensor(s.rng.integers(0, 7, (T, T)), "buckets")
    bias = s("Unsqueeze", s.transpose(s("Gather", s.w(7, HEADS), buckets), 2, 0, 1), s.ints(0))
    check(s.model(finish(s, attend(s, *projected(s, x), mask=bias))), FREE)


def test_slopes_of_heads_and_a_causal_mask() -> None:
    """ALiBi: distances times a slope per head; -inf above the diagonal by Where."""
    s, x = start()
    distances = s.tensor(-np.abs(np.arange(T)[:, None] - np.arange(T)).astype(np.float32), "distances")
    slopes = s("Mul", s.w(HEADS, 1, 1), distances)
    future = s.tensor(np.triu(np.ones((1, 1, T, T), bool), 1), "future")
    q, k, v = projected(s, x)
    scores = s("Add", s("MatMul", q, s.transpose(k, 0, 1, 3, 2)), slopes)
    masked = s("Where", future, s.number(-np.inf), scores)
    check(s.model(finish(s, s("MatMul", s("Softmax", masked, axis=-1), v))), FREE)


def test_a_mask_from_the_input() -> None:
    """BERT: (1 - mask) * -10000, from int64 to float, stretched over heads and queries."""
    s, x = start()
    given = s.input(N, T, kind=7, name="attention_mask")
    mask = s("Cast", s("Unsqueeze", given, s.ints(1, 2)), to=1)
    bias = s("Mul", s("Sub", s.number(1.0), mask), s.number(-10000.0))
    check(s.model(finish(s, attend(s, *projected(s, x), mask=bias))), FREE)


def test_caches_in_the_signature_stay() -> None:
    """Past keys and values are joined in front; what is given back keeps its heads and sizes."""
    s, x = start()
    q, k, v = projected(s, x)
    keys = s("Concat", s.input(N, HEADS, 3, D, name="past_k"), k, axis=2)
    values = s("Concat", s.input(N, HEADS, 3, E, name="past_v"), v, axis=2)
    y = s.linear(s("Relu", finish(s, attend(s, q, keys, values))), OUT, 7)
    check(s.model(y, keys, values), {"features": [OUT]}, still=[keys, values])


def test_queries_from_one_side_keys_from_another() -> None:
    s, x = start()
    memory = s.input(N, 7, 9, name="memory")
    q = apart(s, s.linear(x, C, HEADS * D), HEADS, D)
    k, v = (apart(s, s.linear(memory, 9, HEADS * size), HEADS, size) for size in (D, E))
    check(s.model(finish(s, attend(s, q, k, v))), FREE)


def test_learned_queries_pool() -> None:
    """An attention pool: three stored queries, whose own width may go too: both sides of its product are stored."""
    s, x = start()
    q = apart(s, s.linear(s.w(1, 3, C), C, HEADS * D), HEADS, D)
    k, v = (apart(s, s.linear(x, C, HEADS * size), HEADS, size) for size in (D, E))
    expected = {"features": [C, D], "heads": [HEADS], "head_dim": [f"{HEADS}x{E}"]}
    check(s.model(finish(s, attend(s, q, k, v))), expected)


def test_linear_attention() -> None:
    """elu(q) + 1 and elu(k) + 1, keys times values first: a product of ones where units are gone, so approximate."""
    s, x = start()
    q, k, v = projected(s, x)
    one = s.number(1.0)
    q, k = (s("Add", s("Elu", value), one) for value in (q, k))
    z = s("MatMul", q, s("MatMul", s.transpose(k, 0, 1, 3, 2), v))
    expected = {"heads": [HEADS], "~head_dim": [f"{HEADS}x{D}"], "head_dim": [f"{HEADS}x{E}"]}
    check(s.model(finish(s, z)), expected)


@pytest.mark.parametrize("norm", ["fused", "decomposed"])
def test_norms_of_queries_and_keys(norm: str) -> None:
    """Qwen3: RMSNorm over the size of a head, with one gain for all heads."""
    s = Sketch(23 if norm == "fused" else 17)
    x = s.input(N, T, C)
    q, k, v = projected(s, x)

    def normed(value: str) -> str:
        if norm == "fused":
            return s("RMSNormalization", value, s.w(D))
        mean = s("ReduceMean", s("Pow", value, s.number(2.0)), axes=[-1], keepdims=1)
        return s("Mul", s("Div", value, s("Sqrt", s("Add", mean, s.number(1e-6)))), s.w(D))

    y = finish(s, attend(s, normed(q), normed(k), v))
    check(s.model(y), {"heads": [HEADS], "~head_dim": [D], "head_dim": [f"{HEADS}x{E}"]})


def test_talking_heads() -> None:
    """A product over the heads ties none of them to themselves: every head of the input goes with a column."""
    s, x = start()
    q, k, v = projected(s, x)
    scores = s("MatMul", q, s.transpose(k, 0, 1, 3, 2))
    mixed = s.transpose(s("MatMul", s.transpose(scores, 0, 2, 3, 1), s.w(HEADS, HEADS)), 0, 3, 1, 2)
    y = finish(s, s("MatMul", s("Softmax", mixed, axis=-1), v))
    check(s.model(y), {"heads": [HEADS, HEADS], "head_dim": [f"{HEADS}x{D}", f"{HEADS}x{E}"]})


def test_a_block_with_gated_features() -> None:
    """A whole Llama block: RMSNorm, attention, SwiGLU, two shortcuts."""
    s, ids = start(N, T)
    s.inputs.clear()
    ids = s.input(N, T, kind=7)
    h = s("Gather", s.w(17, C), ids)

    def normed(value: str) -> str:
        mean = s("ReduceMean", s("Mul", value, value), axes=[-1], keepdims=1)
        return s("Mul", s("Mul", value, s("Reciprocal", s("Sqrt", s("Add", mean, s.number(1e-6))))), s.w(C))

    z = attend(s, *projected(s, normed(h)))
    h = s("Add", h, s.linear(together(s, z, HEADS * E), HEADS * E, C))
    gate, up = s.linear(normed(h), C, 14), s.linear(normed(h), C, 14)
    h = s("Add", h, s.linear(s("Mul", s("Mul", gate, s("Sigmoid", gate)), up), 14, C))
    check(s.model(s.linear(normed(h), C, 17)), {**FREE, "~embedding": [C], "features": [14]})


# --- shapes that are computed ---


def shape_item(s: Sketch, x: str, k: int) -> str:
    return s("Slice", s("Shape", x), s.ints(k), s.ints(k + 1), s.ints(0))


@pytest.mark.parametrize("how", ["reduce_prod", "mul", "size", "minus_one"])
def test_flattening_by_a_product_of_sizes(how: str) -> None:
    s = Sketch()
    x = s.input("n", 3, 6, 4)
    h = s.conv(x, 3, 8, 3)
    if how == "reduce_prod":
        rest = s("Slice", s("Shape", h), s.ints(1), s.ints(4), s.ints(0))
        width = s("ReduceProd", rest, axes=[0], keepdims=1)
    elif how == "mul":
        width = s("Mul", s("Mul", shape_item(s, h, 1), shape_item(s, h, 2)), shape_item(s, h, 3))
    elif how == "size":
        width = s("Div", s("Unsqueeze", s("Size", h), s.ints(0)), shape_item(s, h, 0))
    else:
        width = s.ints(-1)
    flat = s("Reshape", h, s("Concat", shape_item(s, h, 0), width, axis=0))
    flat = s("Reshape", flat, s.ints(0, 192)) if how in ("size", "minus_one") else flat
    model = s.model(s.linear(flat, 192, 7))
    if how == "size":
        check(model, {})
        assert "computed from it in a way that cannot be rewritten" in reasons(model, s.nodes[0].input[1], 0)
    else:
        check(model, {"channels": [8]})


def test_a_shape_with_a_channel_scattered_into_it() -> None:
    """Range, Gather and Concat put the sizes in another order; Transpose does the same to the tensor."""
    s = Sketch()
    x = s.input("n", 3, 6, 4)
    h = s.conv(x, 3, 8, 3)
    order = s("Range", s.number(0, INT64), s.number(2, INT64), s.number(1, INT64))
    target = s("Concat", s("Gather", s("Shape", h), order, axis=0), s.ints(-1), axis=0)
    tokens = s.transpose(s("Reshape", h, target), 0, 2, 1)
    check(s.model(s.linear(tokens, 8, 7)), {"channels": [8]})


def test_zeros_of_the_shape_of_another() -> None:
    s = Sketch()
    x = s.input("n", T, C)
    h = s.linear(x, C, 8)
    zeros = s("ConstantOfShape", s("Shape", h))
    y = s.linear(s("Concat", s("Relu", h), zeros, axis=1), 8, 7)
    check(s.model(y), {"features": [8]})


def test_a_token_stretched_over_the_batch() -> None:
    """ViT: the class token is expanded to (n, 1, c), joined in front, and read alone at the end."""
    s = Sketch()
    x = s.input("n", T, C)
    h = s.linear(x, C, 8)
    target = s("Concat", shape_item(s, x, 0), s.ints(1, 8), axis=0)
    token = s("Expand", s.w(1, 1, 8), target)
    h = s("Add", s("Concat", token, h, axis=1), s.w(1, T + 1, 8))
    h = s("Add", h, s("ReduceMean", h, axes=[1], keepdims=1))
    first = s("Gather", h, s.number(0, INT64), axis=1)
    check(s.model(s("Gemm", first, s.w(7, 8), s.w(7), transB=1)), {"features": [8]})


def test_expand_with_minus_one_behind_where() -> None:
    """torch exports expand(-1, ...) as Where(shape == -1, ones, shape)."""
    s = Sketch()
    x = s.input("n", T, C)
    wish = s.ints(2, -1, -1)
    ones = s("ConstantOfShape", s.ints(3), value=_one())
    target = s("Where", s("Equal", wish, s("Mul", ones, s.number(-1, INT64))), ones, wish)
    token = s("Expand", s.w(1, 1, 8), target)
    h = s("Add", s.linear(x, C, 8), s("ReduceSum", token, s.ints(0, 1), keepdims=0))
    check(s.model(s.linear(s("Relu", h), 8, 7)), {"features": [8]})


def _one() -> object:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([1], INT64))


def test_reshape_with_zero_allowed() -> None:
    """allowzero: a target without zeros means what it says."""
    s = Sketch()
    h = s.linear(s.input(N, T, C), C, 12)
    y = s.linear(s.reshape(s.reshape(h, N, T, 3, 4, allowzero=1), N, T, 12), 12, 7)
    check(s.model(y), {"features": [3, "3x4"]})
