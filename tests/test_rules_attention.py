"""Attention, rotary embeddings and normalizations in one node: unit counts, sizes in attributes, the masked twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.graph.model import Model

B, S, C, OUT = 2, 5, 11, 13
MS = "com.microsoft"


class Graph:
    """A graph under construction: x (B, S, C) and whatever inputs, projections, one operator, y (B, S, OUT)."""

    def __init__(self, opset: int = 23, seed: int = 3) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [("x", T.FLOAT, (B, S, C))]
        self.outputs: list[tuple[str, Sequence[int | str] | None]] = []

    def weight(self, name: str, *shape: int, value: Any = None) -> str:
        array = self.rng.standard_normal(shape).astype(np.float32) if value is None else np.asarray(value)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def input(self, name: str, elem: int, *shape: int | str) -> str:
        self.inputs.append((name, elem, shape))  # type: ignore[arg-type]
        return name

    def output(self, name: str, *shape: int | str) -> str:
        self.outputs.append((name, shape or None))
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(op, list(inputs), list(outputs), f"the_{outputs[0]}", domain=domain, **attributes)
        )
        return outputs[0]

    def linear(self, x: str, name: str, inner: int, outer: int) -> str:
        hidden = self.node("MatMul", [x, self.weight(f"{name}.weight", inner, outer)], [f"{name}.product"])
        return self.node("Add", [hidden, self.weight(f"{name}.bias", outer)], [name])

    def heads(self, x: str, n: int, d: int, length: int = S) -> str:
        shape = self.weight(f"{x}.shape", value=np.array([B, length, n, d], dtype=np.int64))
        flat = self.node("Reshape", [x, shape], [f"{x}.split"])
        return self.node("Transpose", [flat], [f"{x}.heads"], perm=[0, 2, 1, 3])

    def model(self, last: str, width: int, length: int = S) -> Model:
        self.node("MatMul", [last, self.weight("o.weight", width, OUT)], ["y"])
        values = [("y", (B, length, OUT)), *self.outputs]
        graph = helper.make_graph(
            self.nodes,
            "attention",
            [helper.make_tensor_value_info(n, e, s) for n, e, s in self.inputs],
            [helper.make_tensor_value_info(n, T.FLOAT, s) for n, s in values],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        return Model(helper.make_model(graph, ir_version=10, opset_imports=opsets))


def units(model: Model) -> dict[str, list[int]]:
    """Give the sizes of the groups by kind."""
    found: dict[str, list[int]] = {}
    for group in onnxprune.analyze(model).groups:
        found.setdefault(group.kind, []).append(group.width)
    return {kind: sorted(sizes) for kind, sizes in sorted(found.items())}


def half(model: Model, **options: Any) -> Model:
    """Remove half of every group and check the result against the masked twin."""
    result = onnxprune.prune(model, ratio=0.5, criterion="random", **options)
    assert result.report is not None
    assert result.plan.slices
    result.report.raise_if_failed()
    return result.model


def reasons(model: Model, initializer: str, axis: int) -> set[str]:
    """Give why an axis of an initializer is locked."""
    return {row.reason for row in onnxprune.analyze(model).locked if (row.initializer, row.axis) == (initializer, axis)}


def attributes(model: Model, op: str) -> dict[str, Any]:
    node = next(n for n in model.proto.graph.node if n.op_type == op)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def shape(model: Model, name: str) -> list[int]:
    return list(next(t for t in model.proto.graph.initializer if t.name == name).dims)


# --- ai.onnx Attention ---


def attention(
    heads: int,
    kv: int,
    d: int,
    e: int,
    *,
    rank: int = 3,
    mask: tuple[int, ...] = (),
    mask_type: type = np.float32,
    **more: Any,
) -> Model:
    g = Graph(more.pop("opset", 23))
    q, k, v = g.linear("x", "q", C, heads * d), g.linear("x", "k", C, kv * d), g.linear("x", "v", C, kv * e)
    inputs = [q, k, v]
    if rank == 4:
        inputs = [g.heads(q, heads, d), g.heads(k, kv, d), g.heads(v, kv, e)]
    else:
        more.update(q_num_heads=heads, kv_num_heads=kv)
    if mask:
        value = g.rng.standard_normal(mask) > 0 if mask_type is bool else None
        inputs.append(g.weight("mask", *mask, value=value))
    y = g.node("Attention", inputs, ["z"], **more)
    if rank == 4:
        moved = g.node("Transpose", [y], ["z.moved"], perm=[0, 2, 1, 3])
        y = g.node("Reshape", [moved, g.weight("flat", value=np.array([B, S, heads * e], dtype=np.int64))], ["z.flat"])
    return g.model(y, heads * e)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("opset", [23, 24])
def test_heads_and_both_head_sizes(rank: int, opset: int) -> None:
    model = attention(4, 4, 6, 8, rank=rank, opset=opset)
    assert units(model) == {"head_dim": [6, 8], "heads": [4]}
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    smaller = half(model)
    assert shape(smaller, "q.weight") == [C, 2 * 3]
    assert shape(smaller, "v.weight") == [C, 2 * 4]
    assert attributes(smaller, "Attention")["scale"] == pytest.approx(1 / math.sqrt(6))
    if rank == 3:
        assert attributes(smaller, "Attention")["q_num_heads"] == 2


def test_the_scale_is_written_only_where_heads_get_smaller() -> None:
    model = attention(4, 4, 6, 8)
    assert "scale" not in attributes(half(model, kinds=["heads"]), "Attention")
    given = attributes(half(attention(4, 4, 6, 8, scale=0.3)), "Attention")
    assert given["scale"] == pytest.approx(0.3)


@pytest.mark.parametrize("rank", [3, 4])
def test_groups_of_query_heads(rank: int) -> None:
    model = attention(12, 3, 6, 8, rank=rank)
    assert units(model) == {"head_dim": [6, 8], "heads": [3, 4]}
    smaller = half(model)
    assert shape(smaller, "q.weight") == [C, 2 * 2 * 3]
    assert shape(smaller, "k.weight") == [C, 2 * 3]


def test_one_key_head_for_all() -> None:
    assert units(attention(4, 1, 6, 8)) == {"head_dim": [6, 8], "heads": [4]}
    smaller = half(attention(4, 1, 6, 8))
    assert attributes(smaller, "Attention")["kv_num_heads"] == 1
    assert attributes(smaller, "Attention")["q_num_heads"] == 2


@pytest.mark.parametrize("shape_", [(S, S), (B, 4, S, S), (B, 1, S, S), (4, S, S)])
@pytest.mark.parametrize("mask_type", [np.float32, bool])
def test_masks(shape_: tuple[int, ...], mask_type: type) -> None:
    model = attention(4, 4, 6, 8, mask=shape_, mask_type=mask_type, softcap=2.0)
    assert units(model) == {"head_dim": [6, 8], "heads": [4]}
    smaller = half(model)
    assert shape(smaller, "mask") == [2 if d == 4 else d for d in shape_]


def test_a_mask_of_other_heads_freezes_with_a_reason() -> None:
    model = attention(4, 4, 6, 8, mask=(B, 1, S, S))
    next(t for t in model.proto.graph.initializer if t.name == "mask").dims[1] = 3
    assert any("does not fit its 4 heads" in r for r in reasons(Model(model.proto), "q.weight", 1))


def test_causal_attention() -> None:
    model = attention(4, 4, 6, 8, is_causal=1)
    assert units(model) == {"head_dim": [6, 8], "heads": [4]}
    half(model)


def test_learned_queries_go_approximately_no_further_than_the_output() -> None:
    g = Graph()
    queries = g.weight("queries", B, 7, 3 * 6)
    k, v = g.linear("x", "k", C, 18), g.linear("x", "v", C, 24)
    z = g.node("Attention", [queries, k, v], ["z"], q_num_heads=3, kv_num_heads=3)
    pooled = g.node("ReduceSum", [z, g.weight("axes", value=np.array([1], dtype=np.int64))], ["pooled"])
    model = g.model(pooled, 24, length=1)
    kinds = {(group.kind, group.width, group.exact) for group in onnxprune.analyze(model).groups}
    assert ("heads", 3, True) in kinds
    assert ("head_dim", 6, True) in kinds
    assert all(not exact for _, size, exact in kinds if size == 7)
    half(model)


def test_a_product_of_unzeroed_sides_is_approximate() -> None:
    g = Graph()
    q = g.node("Sigmoid", [g.linear("x", "q", C, 18)], ["q.gate"])
    k = g.node("Sigmoid", [g.linear("x", "k", C, 18)], ["k.gate"])
    z = g.node("Attention", [q, k, g.linear("x", "v", C, 24)], ["z"], q_num_heads=3, kv_num_heads=3)
    groups = {(group.kind, group.width): group.exact for group in onnxprune.analyze(g.model(z, 24)).groups}
    assert groups == {("heads", 3): True, ("head_dim", 6): False, ("head_dim", 8): True}


def test_one_zeroed_side_is_enough() -> None:
    g = Graph()
    q = g.node("Sigmoid", [g.linear("x", "q", C, 18)], ["q.gate"])
    z = g.node(
        "Attention", [q, g.linear("x", "k", C, 18), g.linear("x", "v", C, 24)], ["z"], q_num_heads=3, kv_num_heads=3
    )
    model = g.model(z, 24)
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    assert units(model) == {"head_dim": [6, 8], "heads": [3]}
    half(model)


@pytest.mark.parametrize("opset", [23, 24])
def test_caches_of_the_signature_stay(opset: int) -> None:
    g = Graph(opset)
    past = [g.input("past_k", T.FLOAT, B, 3, 7, 6), g.input("past_v", T.FLOAT, B, 3, 7, 8)]
    inputs = [g.linear("x", "q", C, 12 * 6), g.linear("x", "k", C, 3 * 6), g.linear("x", "v", C, 3 * 8), "", *past]
    outputs = ["z", g.output("present_k", B, 3, 7 + S, 6), g.output("present_v", B, 3, 7 + S, 8)]
    z = g.node("Attention", inputs, outputs, q_num_heads=12, kv_num_heads=3, is_causal=1)
    model = g.model(z, 12 * 8)
    assert units(model) == {"heads": [4]}
    smaller = half(model)
    assert attributes(smaller, "Attention")["q_num_heads"] == 6
    assert attributes(smaller, "Attention")["kv_num_heads"] == 3
    assert "scale" not in attributes(smaller, "Attention")
    assert any("past_k" in r or "present_k" in r for r in reasons(model, "k.weight", 1))


def test_scores_in_the_signature_keep_the_heads() -> None:
    g = Graph()
    inputs = [g.linear("x", "q", C, 18), g.linear("x", "k", C, 18), g.linear("x", "v", C, 24)]
    outputs = ["z", "", "", g.output("scores", B, 3, S, S)]
    model = g.model(g.node("Attention", inputs, outputs, q_num_heads=3, kv_num_heads=3), 24)
    assert units(model) == {"head_dim": [6, 8]}
    half(model)


def test_queries_and_keys_of_different_rank_are_not_guessed() -> None:
    g = Graph()
    q = g.heads(g.linear("x", "q", C, 18), 3, 6)
    z = g.node(
        "Attention", [q, g.linear("x", "k", C, 18), g.linear("x", "v", C, 24)], ["z"], kv_num_heads=3, q_num_heads=3
    )
    g.nodes[-1].output[0] = z
    model = g.model(z, 24)
    assert any("rank" in r or "shape" in r for r in reasons(model, "k.weight", 1))
    assert units(model) == {}


# --- rotary embeddings ---


def rotary(
    heads: int, d: int, turned: int, *, domain: str = "", interleaved: int = 0, rank: int = 3, cache_rank: int = 2
) -> Model:
    g = Graph()
    q, k, v = g.linear("x", "q", C, heads * d), g.linear("x", "k", C, heads * d), g.linear("x", "v", C, heads * 3)
    more: dict[str, Any] = {"interleaved": interleaved}
    if rank == 3 or turned < d:
        more["num_heads"] = heads
    if turned < d:
        more["rotary_embedding_dim"] = turned
    angles = (17, turned // 2) if cache_rank == 2 else (B, S, turned // 2)
    caches = [g.weight("cos", *angles), g.weight("sin", *angles)]
    positions = g.weight("positions", value=np.tile(np.arange(S, dtype=np.int64), (B, 1))) if cache_rank == 2 else ""
    rotated = []
    for name, value in (("q", q), ("k", k)):
        x = g.heads(value, heads, d) if rank == 4 else value
        inputs = [x, positions, *caches] if domain else [x, *caches, *([positions] if positions else [])]
        rotated.append(g.node("RotaryEmbedding", inputs, [f"{name}.rotated"], domain, **more))
    values = g.heads(v, heads, 3) if rank == 4 else v
    counts = {} if rank == 4 else {"q_num_heads": heads, "kv_num_heads": heads}
    z = g.node("Attention", [*rotated, values], ["z"], **counts)
    if rank == 4:
        moved = g.node("Transpose", [z], ["z.moved"], perm=[0, 2, 1, 3])
        z = g.node("Reshape", [moved, g.weight("flat", value=np.array([B, S, heads * 3], dtype=np.int64))], ["z.flat"])
    return g.model(z, heads * 3)


@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_pairs(domain: str, interleaved: int, rank: int) -> None:
    model = rotary(4, 20, 20, domain=domain, interleaved=interleaved, rank=rank)
    assert units(model) == {"head_dim": [3, 10], "heads": [4]}
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    smaller = half(model)
    assert shape(smaller, "cos") == [17, 5]
    assert shape(smaller, "k.weight") == [C, 2 * 10]


@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_over_a_part_of_the_head(domain: str, interleaved: int, rank: int) -> None:
    model = rotary(4, 19, 12, domain=domain, interleaved=interleaved, rank=rank)
    assert units(model) == {"head_dim": [3, 6, 7], "heads": [4]}
    smaller = half(model)
    assert attributes(smaller, "RotaryEmbedding")["rotary_embedding_dim"] == 6
    assert shape(smaller, "sin") == [17, 3]


def test_rotary_with_angles_per_position() -> None:
    model = rotary(4, 20, 20, cache_rank=3)
    assert units(model) == {"head_dim": [3, 10], "heads": [4]}
    assert shape(half(model), "cos") == [B, S, 5]


# --- com.microsoft Attention ---


def ms_attention(
    heads: int, d: int, e: int, *, sizes: bool = True, extra: dict[int, Any] | None = None, **more: Any
) -> Graph:
    g = Graph(17)
    hidden = g.linear("x", "h", C, 10)
    width = heads * (2 * d + e)
    inputs = [hidden, g.weight("qkv.weight", 10, width), g.weight("qkv.bias", width)]
    if sizes:
        more["qkv_hidden_sizes"] = [heads * d, heads * d, heads * e]
    for slot, value in sorted((extra or {}).items()):
        inputs += [""] * (slot - len(inputs))
        inputs.append(g.weight(f"in{slot}", value=value))
    g.node("Attention", inputs, ["z"], MS, num_heads=heads, **more)
    return g


def test_fused_projection() -> None:
    model = ms_attention(4, 6, 8).model("z", 32)
    assert units(model) == {"features": [10], "head_dim": [6, 8], "heads": [4]}
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    smaller = half(model)
    assert shape(smaller, "qkv.weight") == [5, 2 * (3 + 3 + 4)]
    assert shape(smaller, "qkv.bias") == [20]
    found = attributes(smaller, "Attention")
    assert found["qkv_hidden_sizes"] == [6, 6, 8]
    assert found["num_heads"] == 2
    assert found["scale"] == pytest.approx(1 / math.sqrt(6))


def test_fused_projection_without_sizes_gets_them() -> None:
    model = ms_attention(4, 6, 6, sizes=False, unidirectional=1, scale=0.0).model("z", 24)
    assert units(model) == {"features": [10], "head_dim": [6, 6], "heads": [4]}
    smaller = half(model, kinds=["heads", "head_dim"])
    found = attributes(smaller, "Attention")
    assert found["qkv_hidden_sizes"] == [6, 6, 6]
    assert found["scale"] == pytest.approx(1 / math.sqrt(6))
    only_values = onnxprune.analyze(model).groups
    dims = [g for g in only_values if g.kind == "head_dim" and any(m.initializer == "o.weight" for m in g.members)]
    assert attributes(half(model, include=[dims[0].id]), "Attention")["qkv_hidden_sizes"] == [24, 24, 12]


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        (3, np.array([4, 3], dtype=np.int32)),
        (3, np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype=np.int32)),
        (3, np.tril(np.ones((B, S, S), dtype=np.int32))),
        (5, np.random.default_rng(0).standard_normal((B, 4, S, S)).astype(np.float32)),
        (5, np.random.default_rng(0).standard_normal((1, 1, S, S)).astype(np.float32)),
    ],
)
def test_fused_projection_with_masks(slot: int, value: Any) -> None:
    model = ms_attention(4, 6, 8, extra={slot: value}).model("z", 32)
    assert units(model) == {"features": [10], "head_dim": [6, 8], "heads": [4]}
    smaller = half(model)
    if value.ndim == 4:
        assert shape(smaller, "in5")[1] == min(value.shape[1], 2)


def test_fused_projection_with_its_caches_in_the_signature() -> None:
    g = ms_attention(4, 6, 6, sizes=False)
    node = g.nodes[-1]
    node.input.extend(["", g.input("past", T.FLOAT, 2, B, 4, 7, 6)])
    node.output.append(g.output("present", 2, B, 4, 7 + S, 6))
    model = g.model("z", 24)
    assert units(model) == {"features": [10]}
    half(model)


def test_rotation_inside_the_projection_is_not_guessed() -> None:
    model = ms_attention(4, 16, 16, sizes=False, do_rotary=1).model("z", 64)
    assert any("it rotates queries and keys inside" in r for r in reasons(model, "qkv.weight", 1))


def test_quantized_projection() -> None:
    g = Graph(17)
    width = 4 * 3 * 6
    quantized = [f"x.{n}" for n in ("codes", "scale", "zero")]
    g.node("DynamicQuantizeLinear", ["x"], quantized)
    weight = g.weight("qkv.weight", value=g.rng.integers(-100, 100, (C, width)).astype(np.int8))
    scale = g.weight("qkv.scale", value=(g.rng.random(width) * 0.02 + 0.01).astype(np.float32))
    zero = g.weight("qkv.zero", value=np.zeros(width, dtype=np.int8))
    inputs = ["x.codes", weight, g.weight("qkv.bias", width), "x.scale", scale, "", "x.zero", zero]
    z = g.node("QAttention", inputs, ["z"], MS, num_heads=4)
    model = g.model(z, 24)
    assert units(model) == {"head_dim": [6], "heads": [4]}
    smaller = half(model)
    assert shape(smaller, "qkv.weight") == [C, 3 * 2 * 3]
    assert shape(smaller, "qkv.scale") == [3 * 2 * 3]
    assert shape(smaller, "qkv.zero") == [3 * 2 * 3]


# --- com.microsoft MultiHeadAttention ---


def multi_head(
    heads: int, d: int, e: int, extra: dict[int, Any] | None = None, *, bias: bool = True, **more: Any
) -> Graph:
    g = Graph(17)
    inputs = [g.linear("x", "q", C, heads * d), g.linear("x", "k", C, heads * d), g.linear("x", "v", C, heads * e)]
    if bias:
        inputs.append(g.weight("bias", heads * (2 * d + e)))
    for slot, value in sorted((extra or {}).items()):
        inputs += [""] * (slot - len(inputs))
        inputs.append(g.weight(f"in{slot}", value=value) if not isinstance(value, str) else value)
    g.node("MultiHeadAttention", inputs, ["z"], MS, num_heads=heads, **more)
    return g


@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention(bias: bool) -> None:
    model = multi_head(4, 6, 8, bias=bias).model("z", 32)
    assert units(model) == {"head_dim": [6, 8], "heads": [4]}
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    smaller = half(model)
    assert attributes(smaller, "MultiHeadAttention")["num_heads"] == 2
    assert attributes(smaller, "MultiHeadAttention")["scale"] == pytest.approx(1 / math.sqrt(6))
    if bias:
        assert shape(smaller, "bias") == [2 * (3 + 3 + 4)]


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        (4, np.array([4, 3], dtype=np.int32)),
        (4, np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype=np.int32)),
        (5, np.random.default_rng(0).standard_normal((1, 4, S, S)).astype(np.float32)),
        (5, np.random.default_rng(0).standard_normal((B, 1, S, S)).astype(np.float32)),
    ],
)
def test_multi_head_attention_with_masks(slot: int, value: Any) -> None:
    model = multi_head(4, 6, 8, {slot: value}).model("z", 32)
    assert units(model) == {"head_dim": [6, 8], "heads": [4]}
    half(model)


def test_multi_head_attention_with_caches_in_the_signature() -> None:
    g = multi_head(4, 6, 6, unidirectional=1)
    node = g.nodes[-1]
    node.input.extend(["", "", g.input("past_k", T.FLOAT, B, 4, 7, 6), g.input("past_v", T.FLOAT, B, 4, 7, 6)])
    node.output.extend([g.output("present_k", B, 4, 7 + S, 6), g.output("present_v", B, 4, 7 + S, 6)])
    assert units(g.model("z", 24)) == {}


def test_packed_queries_keys_and_values() -> None:
    g = Graph(17)
    shape5 = g.weight("five", value=np.array([B, S, 4, 3, 6], dtype=np.int64))
    g.node("Reshape", [g.linear("x", "qkv", C, 72), shape5], ["packed"])
    model = g.model(g.node("MultiHeadAttention", ["packed"], ["z"], MS, num_heads=4), 24)
    assert units(model) == {"head_dim": [6], "heads": [4]}
    # onnxruntime's CPU kernel has no such form: the result is looked at, not run.
    smaller = onnxprune.apply(model, onnxprune.plan(model, ratio=0.5))
    assert shape(smaller, "qkv.weight") == [C, 2 * 3 * 3]
    assert attributes(smaller, "MultiHeadAttention")["num_heads"] == 2


def test_packed_keys_and_values() -> None:
    g = Graph(17)
    shape5 = g.weight("five", value=np.array([B, S, 4, 2, 6], dtype=np.int64))
    g.node("Reshape", [g.linear("x", "kv", C, 48), shape5], ["packed"])
    z = g.node("MultiHeadAttention", [g.linear("x", "q", C, 24), "packed"], ["z"], MS, num_heads=4)
    model = g.model(z, 24)
    assert units(model) == {"head_dim": [6], "heads": [4]}
    smaller = onnxprune.apply(model, onnxprune.plan(model, ratio=0.5))
    assert shape(smaller, "kv.weight") == [C, 2 * 2 * 3]
    assert shape(smaller, "q.weight") == [C, 2 * 3]


def test_keys_and_values_by_heads() -> None:
    g = Graph(17)
    k, v = g.heads(g.linear("x", "k", C, 24), 4, 6), g.heads(g.linear("x", "v", C, 24), 4, 6)
    z = g.node("MultiHeadAttention", [g.linear("x", "q", C, 24), k, v], ["z"], MS, num_heads=4)
    model = g.model(z, 24)
    assert units(model) == {"head_dim": [6, 6], "heads": [4]}
    half(model, kinds=["heads"])


def test_an_unknown_packing_is_not_guessed() -> None:
    g = Graph(17)
    z = g.node("MultiHeadAttention", [g.linear("x", "q", C, 24), g.linear("x", "k", C, 24)], ["z"], MS, num_heads=4)
    model = g.model(z, 24)
    model.proto.graph.value_info.append(helper.make_tensor_value_info("z", T.FLOAT, [B, S, 24]))
    assert any("packed in a way no rule knows" in r for r in reasons(model, "q.weight", 1))


def test_decoder_masked_attention() -> None:
    g = Graph(17)
    one = g.node("ReduceMean", ["x"], ["one"], axes=[1])
    inputs = [g.linear(one, n, C, 24) for n in ("q", "k", "v")]
    bias = g.weight("bias", 72)
    z = g.node("DecoderMaskedMultiHeadAttention", [*inputs, *[""] * 7, bias], ["z"], MS, num_heads=4)
    model = g.model(z, 24, length=1)
    assert units(model) == {"head_dim": [6, 6], "heads": [4]}
    assert shape(half(model), "bias") == [3 * 2 * 3]


# --- com.microsoft GroupQueryAttention ---


def group_query(
    d: int, *, packed: bool = False, rotary: bool = False, signature: bool = False, sink: bool = False, **more: Any
) -> Model:
    heads, kv = 12, 3
    g = Graph(17)
    # After a past, a batch of several runs goes one position at a time.
    x, length, past = (g.node("ReduceMean", ["x"], ["one"], axes=[1]), 1, 7) if signature else ("x", S, 0)
    if packed:
        inputs = [g.linear(x, "qkv", C, (heads + 2 * kv) * d), "", ""]
    else:
        inputs = [g.linear(x, "q", C, heads * d), g.linear(x, "k", C, kv * d), g.linear(x, "v", C, kv * d)]
    caches = [g.input(f"past_{n}", T.FLOAT, B, kv, past, d) for n in "kv"] if signature else ["", ""]
    lengths = g.weight("lengths", value=np.full(B, past + length - 1, dtype=np.int32))
    inputs += [*caches, lengths, g.weight("total", value=np.array(past + length, dtype=np.int32))]
    if rotary:
        inputs += [g.weight("cos", 31, d // 2), g.weight("sin", 31, d // 2)]
    if sink:
        inputs += [""] * (11 - len(inputs)) + [g.weight("sink", heads)]
    outputs = ["z"]
    if signature:
        outputs += [g.output(f"present_{n}", B, kv, past + length, d) for n in "kv"]
    g.node("GroupQueryAttention", inputs, outputs, MS, num_heads=heads, kv_num_heads=kv, do_rotary=int(rotary), **more)
    return g.model("z", heads * d, length)


@pytest.mark.parametrize("packed", [False, True])
def test_group_query_attention(packed: bool) -> None:
    model = group_query(40, packed=packed)
    assert units(model) == {"head_dim": [5], "heads": [3, 4]}
    assert all(group.exact for group in onnxprune.analyze(model).groups)
    smaller = half(model)
    found = attributes(smaller, "GroupQueryAttention")
    assert (found["num_heads"], found["kv_num_heads"]) == (4, 2)
    assert found["scale"] == pytest.approx(1 / math.sqrt(40))
    assert shape(smaller, "o.weight")[0] == 4 * 24


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_group_query_attention_that_rotates(packed: bool, interleaved: int) -> None:
    model = group_query(80, packed=packed, rotary=True, rotary_interleaved=interleaved)
    assert units(model) == {"head_dim": [5], "heads": [3, 4]}
    smaller = half(model)
    assert shape(smaller, "cos") == [31, 24]
    assert shape(smaller, "o.weight")[0] == 4 * 48


def test_group_query_attention_with_caches_in_the_signature() -> None:
    model = group_query(16, signature=True, rotary=True)
    assert units(model) == {"heads": [4]}
    smaller = half(model)
    assert attributes(smaller, "GroupQueryAttention")["num_heads"] == 6
    assert attributes(smaller, "GroupQueryAttention")["kv_num_heads"] == 3
    assert "scale" not in attributes(smaller, "GroupQueryAttention")


def test_head_sinks_go_with_their_heads() -> None:
    model = group_query(40, sink=True, softcap=3.0, local_window_size=3)
    assert units(model) == {"head_dim": [5], "heads": [3, 4]}
    assert shape(half(model), "sink") == [4]


def test_quantized_caches_are_not_guessed() -> None:
    model = group_query(40, k_quant_type="PER_TENSOR")
    assert any("its caches are quantized" in r for r in reasons(model, "q.weight", 1))


# --- normalizations ---


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("summed", [False, True])
def test_skip_normalizations(op: str, summed: bool) -> None:
    g = Graph(17)
    a, b = g.linear("x", "a", C, 14), g.linear("x", "b", C, 14)
    vectors = ["gamma", "beta", "bias"] if op == "SkipLayerNormalization" else ["gamma", "bias"]
    outputs = ["z", "", "", "sum"] if summed else ["z"]
    last = g.node(op, [a, b, *(g.weight(f"n.{v}", 14) for v in vectors)], outputs, MS)
    if summed:
        last = g.node("Add", ["z", "sum"], ["both"])
    model = g.model(last, 14)
    assert units(model) == {"embedding": [14]}
    assert [group.exact for group in onnxprune.analyze(model).groups] == [False]
    assert {m.initializer for m in onnxprune.analyze(model).groups[0].members} >= {f"n.{v}" for v in vectors}
    smaller = half(model, allow_inexact=True)
    assert shape(smaller, "n.gamma") == [7]


def test_a_skip_without_leading_axes() -> None:
    g = Graph(17)
    skip = g.weight("skip", S, 14)
    z = g.node("SkipLayerNormalization", [g.linear("x", "a", C, 14), skip, g.weight("gamma", 14)], ["z"], MS)
    model = g.model(z, 14)
    assert shape(half(model, allow_inexact=True), "skip") == [S, 7]


def test_simplified_normalization() -> None:
    g = Graph(17)
    z = g.node("SimplifiedLayerNormalization", [g.linear("x", "a", C, 14), g.weight("gamma", 14)], ["z"], axis=-1)
    model = g.model(g.linear(z, "b", 14, 9), 9)
    assert units(model) == {"features": [9, 14]} or units(model) == {"embedding": [14], "features": [9]}
    # onnx's checker knows no such operator in the standard domain, where onnxruntime's optimizer puts it.
    decided = onnxprune.plan(model, ratio=0.5, allow_inexact=True)
    smaller = onnxprune.apply(model, decided)
    feeds = {"x": np.random.default_rng(2).standard_normal((B, S, C)).astype(np.float32)}
    y = ort.InferenceSession(smaller.proto.SerializeToString()).run(None, feeds)[0]
    # RMSNorm over half of the features: the masked twin divides by the size of all of them.
    twin = onnxprune.mask(model, decided)
    scale = next(t for t in twin.proto.graph.initializer if t.name == "gamma")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(math.sqrt(1 / 2)), "gamma"))
    expected = ort.InferenceSession(twin.proto.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert y.std() > 0.1
    assert shape(smaller, "gamma") == [7]
    assert shape(smaller, "b.weight") == [7, 5]


def test_embedding_and_normalization() -> None:
    g = Graph(17)
    g.inputs = []
    ids, segments = g.input("ids", T.INT32, B, S), g.input("segments", T.INT32, B, S)
    tables = [g.weight("words", 37, 14), g.weight("positions", 19, 14), g.weight("kinds", 3, 14)]
    z = g.node(
        "EmbedLayerNormalization", [ids, segments, *tables, g.weight("gamma", 14), g.weight("beta", 14)], ["z"], MS
    )
    model = g.model(z, 14)
    model.proto.graph.node[0].output.append("mask_index")
    assert units(model) == {"embedding": [14]}
    rng = np.random.default_rng(1)
    feeds = {"ids": rng.integers(0, 37, (B, S)), "segments": rng.integers(0, 3, (B, S))}
    result = onnxprune.prune(model, ratio=0.5, allow_inexact=True, verify=False)
    report = onnxprune.verify(
        model, result.model, plan=result.plan, data=[{k: v.astype(np.int32) for k, v in feeds.items()}]
    )
    report.raise_if_failed()
    assert shape(result.model, "words") == [37, 7]
    assert shape(result.model, "beta") == [7]
