"""Quantized operators, each on a graph made by hand: unit counts, and the pruned model against its masked twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.axes.analysis import Analysis
from onnxprune.criteria import group_scores
from onnxprune.criteria.values import weight_values

MS = "com.microsoft"
Arrays = Mapping[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(11)


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    names = ["" if name == "_" else name for name in inputs.split()]
    made = outputs.split()
    return helper.make_node(op, names, made, name=f"{op}_{made[0]}", domain=domain, **attributes)


def model_of(
    nodes: list[onnx.NodeProto],
    tensors: Arrays,
    x: Sequence[int],
    y: Sequence[int],
    opset: int = 21,
    x_type: int = T.FLOAT,
    y_type: int = T.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", x_type, list(x))],
        [helper.make_tensor_value_info("y", y_type, list(y))],
        [numpy_helper.from_array(a, name) for name, a in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def sizes(analysis: Analysis) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for g in analysis.groups:
        found.setdefault(g.kind, []).append(g.width)
    return {k: sorted(v) for k, v in found.items()}


def pruned_as_masked(model: onnx.ModelProto, **options: Any) -> onnxprune.PruneResult:
    """Prune half of everything; the verdict must compare with the twin, and the twin must differ from the original."""
    result = onnxprune.prune(model, ratio=0.5, **options)
    exact = result.report.exact
    assert exact is not None, result.report.exact_reason
    assert all(o["moved"] and o["varies"] for o in exact["outputs"].values())
    assert exact["max_rel"] < 1e-5
    return result


def shape_of(result: onnxprune.PruneResult, name: str) -> tuple[int, ...]:
    return tuple(result.model.tensors[name].dims)


def number(value: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.array(value, dtype=dtype)


def codes(*shape: int, low: int = -100, high: int = 100, dtype: Any = np.int8) -> np.ndarray[Any, Any]:
    return RNG.integers(low, high, shape).astype(dtype)


def positive(*shape: int, size: float = 0.01) -> np.ndarray[Any, Any]:
    return (RNG.random(shape) * size + size).astype(np.float32)


class Qdq:
    """Nodes and tensors of a QDQ graph, put together step by step."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray[Any, Any]] = {"s": number(0.05), "zp": number(100, np.uint8)}

    def pair(self, name: str) -> str:
        """Quantize and dequantize an activation with the numbers that all activations share."""
        self.nodes += [
            node("QuantizeLinear", f"{name} s zp", f"{name}_q"),
            node("DequantizeLinear", f"{name}_q s zp", f"{name}_d"),
        ]
        return f"{name}_d"

    def weight(self, name: str, *shape: int, axis: int | None = 0, zero_point: bool = True) -> str:
        self.tensors[name] = codes(*shape)
        n = () if axis is None else (shape[axis],)
        self.tensors[f"{name}_s"] = positive(*n)
        self.tensors[f"{name}_zp"] = np.zeros(n, dtype=np.int8) if zero_point else codes(*n, low=-9, high=9)
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(node("DequantizeLinear", f"{name} {name}_s {name}_zp", f"{name}_f", **attributes))
        return f"{name}_f"

    def bias(self, name: str, n: int, *, vector: bool) -> str:
        self.tensors[name] = codes(n, low=-5000, high=5000, dtype=np.int32)
        self.tensors[f"{name}_s"] = positive(*([n] if vector else []), size=0.0001)
        self.nodes.append(node("DequantizeLinear", f"{name} {name}_s", f"{name}_f", axis=0))
        return f"{name}_f"

    def add(self, op: str, inputs: str, output: str, **attributes: Any) -> str:
        self.nodes.append(node(op, inputs, output, **attributes))
        return self.pair(output)


# --- QuantizeLinear and DequantizeLinear ---


@pytest.mark.parametrize("axis", [0, None])
def test_a_qdq_network_prunes_like_its_float_one(axis: int | None) -> None:
    q = Qdq()
    x = q.pair("x")
    stem = q.add(
        "Conv",
        f"{x} {q.weight('w0', 12, 3, 3, 3, axis=axis)} {q.bias('b0', 12, vector=axis == 0)}",
        "stem",
        pads=[1] * 4,
    )
    q.nodes.append(node("Relu", stem, "stem_r"))
    stem = q.pair("stem_r")
    deep = q.add("Conv", f"{stem} {q.weight('w1', 16, 12, 1, 1, axis=axis)} {q.bias('b1', 16, vector=False)}", "deep")
    back = q.add("Conv", f"{deep} {q.weight('w2', 12, 16, 1, 1, axis=axis)}", "back")
    total = q.add("Add", f"{stem} {back}", "total")
    side = q.add("Conv", f"{total} {q.weight('w3', 14, 12, 1, 1, axis=axis)}", "side")
    both = q.add("Concat", f"{total} {side}", "both", axis=1)
    pooled = q.add("GlobalAveragePool", both, "pooled")
    flat = q.add("Flatten", pooled, "flat")
    q.nodes.append(
        node("Gemm", f"{flat} {q.weight('w4', 5, 26, axis=axis)} {q.bias('b4', 5, vector=axis == 0)}", "y", transB=1)
    )
    model = model_of(q.nodes, q.tensors, (2, 3, 8, 8), (2, 5))
    assert sizes(onnxprune.analyze(model)) == {"channels": [12, 14, 16]}
    result = pruned_as_masked(model)
    assert shape_of(result, "w2") == (6, 8, 1, 1)
    assert shape_of(result, "w4") == (5, 13)
    assert shape_of(result, "w2_s") == (() if axis is None else (6,))
    assert result.model.array("s") == number(0.05)


@pytest.mark.parametrize("axis", [0, None])
def test_a_removed_weight_is_at_its_zero_point(axis: int | None) -> None:
    q = Qdq()
    nodes = [
        node("Gemm", f"x {q.weight('w0', 8, 6, axis=axis, zero_point=False)}", "h", transB=1),
        node("Relu", "h", "r"),
    ]
    nodes.append(node("Gemm", f"r {q.weight('w1', 3, 8, axis=axis, zero_point=False)}", "y", transB=1))
    model = model_of([*q.nodes, *nodes], q.tensors, (4, 6), (4, 3))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    pruned_as_masked(model)


STORED = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float8": ml_dtypes.float8_e4m3fn,
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_of_every_stored_type(stored: str, axis: int) -> None:
    dtype = STORED[stored]
    low = 0 if stored.startswith("u") else -7

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return RNG.integers(low, 8, shape).astype(dtype)

    zero = 3 if "int" in stored else 0
    tensors = {"w0": weight(6, 8), "w1": weight(8, 5)}
    tensors |= {"s0": positive((6, 8)[axis]), "s1": positive((8, 5)[axis])}
    tensors |= {"z0": np.full((6, 8)[axis], zero).astype(dtype), "z1": np.full((8, 5)[axis], zero).astype(dtype)}
    nodes = [
        node("DequantizeLinear", "w0 s0 z0", "f0", axis=axis),
        node("MatMul", "x f0", "h"),
        node("DequantizeLinear", "w1 s1 z1", "f1", axis=axis),
        node("MatMul", "h f1", "y"),
    ]
    model = model_of(nodes, tensors, (3, 6), (3, 5))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    result = pruned_as_masked(model)
    assert shape_of(result, "w0") == (6, 4)
    assert result.model.tensors["w0"].data_type == numpy_helper.from_array(tensors["w0"]).data_type


def blocked(k: int, n: int, block: int, dtype: Any = np.int8) -> dict[str, np.ndarray[Any, Any]]:
    low = 0 if dtype in (np.uint8, ml_dtypes.uint4) else -8
    weight = RNG.integers(low, 8, (k, n)).astype(dtype)
    shape = (-(-k // block), n)
    return {"w": weight, "w_s": positive(*shape), "w_z": RNG.integers(0, 5, shape).astype(dtype)}


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.uint4])
def test_a_blocked_axis_loses_whole_blocks(dtype: Any) -> None:
    tensors = {**blocked(64, 10, 16, dtype), "first": RNG.standard_normal((6, 64)).astype(np.float32)}
    tensors["last"] = RNG.standard_normal((10, 3)).astype(np.float32)
    nodes = [
        node("MatMul", "x first", "h"),
        node("DequantizeLinear", "w w_s w_z", "f", axis=0, block_size=16),
        node("MatMul", "h f", "t"),
        node("MatMul", "t last", "y"),
    ]
    model = model_of(nodes, tensors, (5, 6), (5, 3))
    analysis = onnxprune.analyze(model)
    assert sizes(analysis) == {"features": [4, 10]}
    blocks = next(g for g in analysis.groups if g.size == 4)
    assert next(m for m in blocks.members if m.initializer == "first").unit.tolist() == [
        u for u in range(4) for _ in range(16)
    ]
    result = pruned_as_masked(model)
    assert shape_of(result, "w") == (32, 5)
    assert shape_of(result, "w_s") == (2, 5)


def test_a_blocked_axis_with_a_shorter_last_block_stays() -> None:
    tensors = {**blocked(40, 10, 16), "first": RNG.standard_normal((6, 40)).astype(np.float32)}
    tensors["last"] = RNG.standard_normal((10, 3)).astype(np.float32)
    nodes = [
        node("MatMul", "x first", "h"),
        node("DequantizeLinear", "w w_s w_z", "f", axis=0, block_size=16),
        node("MatMul", "h f", "t"),
        node("MatMul", "t last", "y"),
    ]
    model = model_of(nodes, tensors, (5, 6), (5, 3))
    analysis = onnxprune.analyze(model)
    assert sizes(analysis) == {"features": [10]}
    assert any("last block is shorter" in row.reason for row in analysis.locked)
    pruned_as_masked(model)


def test_a_quantized_float_weight_keeps_its_scales() -> None:
    q = Qdq()
    q.tensors |= {
        "w": RNG.standard_normal((8, 6)).astype(np.float32),
        "v": RNG.standard_normal((3, 8)).astype(np.float32),
    }
    q.tensors |= {"ws": positive(8), "wz": np.zeros(8, dtype=np.int8)}
    nodes = [
        node("QuantizeLinear", "w ws wz", "wq", axis=0),
        node("DequantizeLinear", "wq ws wz", "wf", axis=0),
        node("Gemm", "x wf", "h", transB=1),
        node("Gemm", "h v", "y", transB=1),
    ]
    model = model_of(nodes, q.tensors, (4, 6), (4, 3))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    assert shape_of(pruned_as_masked(model), "ws") == (4,)


# --- integers computed at run time ---


def dynamic_chain(activation: str) -> onnx.ModelProto:
    """Two products of integers; the input of the second is quantized by its range."""
    tensors = {"w0": codes(6, 8, dtype=np.uint8, low=0), "z0": codes(8, dtype=np.uint8, low=40, high=60)}
    tensors |= {"w1": codes(8, 5), "z1": number(3, np.int8), "k": number(0.001)}
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("MatMulInteger", "xq w0 xz z0", "i"),
        node("Cast", "i", "f", to=T.FLOAT),
        node("Mul", "xs k", "c"),
        node("Mul", "f c", "g"),
        node(activation, "g", "h"),
        node("DynamicQuantizeLinear", "h", "hq hs hz"),
        node("MatMulInteger", "hq w1 hz z1", "j"),
        node("Cast", "j", "y", to=T.FLOAT),
    ]
    return model_of(nodes, tensors, (4, 6), (4, 5))


def test_a_range_is_exact_where_zeros_reach() -> None:
    model = dynamic_chain("Relu")
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    result = pruned_as_masked(model)
    assert shape_of(result, "z0") == (4,)


def test_a_range_is_approximate_where_zeros_do_not_reach() -> None:
    analysis = onnxprune.analyze(dynamic_chain("Sigmoid"))
    (group,) = analysis.groups
    assert not group.exact
    assert "DynamicQuantizeLinear" in str(group.why_inexact)
    result = onnxprune.prune(dynamic_chain("Sigmoid"), ratio=0.5, allow_inexact=True)
    assert result.report.ok


@pytest.mark.parametrize("vector", [False, True])
def test_conv_integer(vector: bool) -> None:
    # onnxruntime takes one zero point for all channels; shapes and groups follow the specification.
    tensors = {"w0": codes(8, 3, 3, 3, dtype=np.uint8, low=0), "w1": codes(5, 8, 1, 1, dtype=np.uint8, low=0)}
    tensors["z0"] = codes(8, dtype=np.uint8, low=5, high=9) if vector else number(9, np.uint8)
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("ConvInteger", "xq w0 xz z0", "i"),
        node("Cast", "i", "f", to=T.FLOAT),
        node("Mul", "f xs", "g"),
        node("Relu", "g", "h"),
        node("DynamicQuantizeLinear", "h", "hq hs hz"),
        node("ConvInteger", "hq w1 hz", "j"),
        node("Cast", "j", "y", to=T.FLOAT),
    ]
    model = model_of(nodes, tensors, (2, 3, 6, 5), (2, 5, 4, 3))
    assert sizes(onnxprune.analyze(model)) == {"channels": [8]}
    if not vector:
        assert shape_of(pruned_as_masked(model), "w1") == (5, 4, 1, 1)


@pytest.mark.parametrize("vector", [False, True])
def test_dynamic_quantize_matmul(vector: bool) -> None:
    n = [8] if vector else []
    tensors = {"w0": codes(6, 8), "s0": positive(*n), "z0": codes(*n, low=-5, high=5), "b0": positive(8)}
    tensors |= {"w1": codes(8, 5), "s1": positive(), "z1": number(4, np.int8)}
    nodes = [
        node("DynamicQuantizeMatMul", "x w0 s0 z0 b0", "g", MS),
        node("Relu", "g", "h"),
        node("DynamicQuantizeMatMul", "h w1 s1 z1", "y", MS),
    ]
    model = model_of(nodes, tensors, (4, 6), (4, 5))
    (group,) = onnxprune.analyze(model).groups
    assert (group.size, group.exact) == (8, True)
    assert shape_of(pruned_as_masked(model), "b0") == (4,)


def test_matmul_integer_to_float() -> None:
    tensors = {"w0": codes(6, 8), "s0": positive(8), "z0": codes(8, low=-5, high=5), "b0": positive(8)}
    tensors |= {"w1": codes(8, 5), "s1": positive()}
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("MatMulIntegerToFloat", "xq w0 xs s0 xz z0 b0", "g", MS),
        node("Relu", "g", "h"),
        node("DynamicQuantizeLinear", "h", "hq hs hz"),
        node("MatMulIntegerToFloat", "hq w1 hs s1 hz", "y", MS),
    ]
    model = model_of(nodes, tensors, (4, 6), (4, 5))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    assert shape_of(pruned_as_masked(model), "s0") == (4,)


# --- QLinear operators ---


class QLinear:
    """Nodes and tensors of a graph in the QLinear operators; all activations share one scale and zero point."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray[Any, Any]] = {"s": number(0.05), "z": number(90, np.uint8)}
        self.nodes = [node("QuantizeLinear", "x s z", "xq")]

    def conv(
        self, x: str, y: str, out: int, inner: int, *, vector: bool = True, bias: bool = True, **attributes: Any
    ) -> str:
        n = [out] if vector else []
        self.tensors |= {
            f"{y}_w": codes(out, inner, 1, 1),
            f"{y}_s": positive(*n),
            f"{y}_z": np.zeros(n, dtype=np.int8),
        }
        more = ""
        if bias:
            self.tensors[f"{y}_b"] = codes(out, low=-4000, high=4000, dtype=np.int32)
            more = f" {y}_b"
        self.nodes.append(node("QLinearConv", f"{x} s z {y}_w {y}_s {y}_z s z{more}", y, **attributes))
        return y

    def ms(self, op: str, inputs: str, y: str, **attributes: Any) -> str:
        self.nodes.append(node(op, inputs, y, MS, **attributes))
        return y

    def model(self, last: str, x: Sequence[int], y: Sequence[int]) -> onnx.ModelProto:
        return model_of([*self.nodes, node("DequantizeLinear", f"{last} s z", "y")], self.tensors, x, y)


@pytest.mark.parametrize("vector", [True, False])
def test_a_qlinear_network(vector: bool) -> None:
    q = QLinear()
    stem = q.conv("xq", "stem", 12, 3, vector=vector)
    active = q.ms("QLinearLeakyRelu", f"{stem} s z s z", "active", alpha=0.1)
    deep = q.conv(active, "deep", 16, 12, vector=vector, bias=False)
    back = q.conv(deep, "back", 12, 16, vector=vector)
    total = q.ms("QLinearAdd", f"{active} s z {back} s z s z", "total")
    side = q.conv(total, "side", 14, 12, vector=vector)
    both = q.ms("QLinearConcat", f"s z {total} s z {side} s z", "both", axis=1)
    small = q.ms("QLinearAveragePool", f"{both} s z s z", "small", kernel_shape=[2, 2], strides=[2, 2])
    pooled = q.ms("QLinearGlobalAveragePool", f"{small} s z s z", "pooled", channels_last=0)
    q.nodes.append(node("Flatten", pooled, "flat"))
    n = [5] if vector else []
    q.tensors |= {"w": codes(5, 26), "ws": positive(*n), "wz": np.zeros(n, dtype=np.int8)}
    q.tensors["c"] = codes(5, low=-500, high=500, dtype=np.int32)
    q.ms("QGemm", "flat s z w ws wz c s z", "out", transB=1)
    model = q.model("out", (2, 3, 8, 8), (2, 5))
    assert sizes(onnxprune.analyze(model)) == {"channels": [12, 14, 16]}
    result = pruned_as_masked(model)
    assert shape_of(result, "back_w") == (6, 8, 1, 1)
    assert shape_of(result, "w") == (5, 13)


@pytest.mark.parametrize("product", ["conv", "gemm"])
def test_a_removed_integer_bias_is_zero(product: str) -> None:
    """Behind the layer its range is taken, which a bias left standing would move."""
    q = QLinear()
    weight = np.repeat(np.array([[1], [100]], dtype=np.int8), 6, axis=0)
    q.tensors |= {"w": np.tile(weight, 3), "ws": number(0.01), "wz": number(0, np.int8)}
    q.tensors["b"] = np.repeat(np.array([16000, 0], dtype=np.int32), 6)
    if product == "conv":
        shapes = ((2, 3, 4, 4), (2, 5, 4, 4))
        q.tensors |= {"w": q.tensors["w"].reshape(12, 3, 1, 1), "v": codes(5, 12, 1, 1, low=0, dtype=np.uint8)}
        q.nodes.append(node("QLinearConv", "xq s z w ws wz s z b", "a"))
        reader = node("ConvInteger", "hq v hz", "i")
    else:
        shapes = ((4, 3), (4, 5))
        q.tensors["v"] = codes(12, 5, low=0, dtype=np.uint8)
        q.ms("QGemm", "xq s z w ws wz b s z", "a", transB=1)
        reader = node("MatMulInteger", "hq v hz", "i")
    q.nodes += [
        node("DequantizeLinear", "a s z", "h"),
        node("DynamicQuantizeLinear", "h", "hq hs hz"),
        reader,
        node("Cast", "i", "f", to=T.FLOAT),
        node("Mul", "f hs", "y"),
    ]
    pruned_as_masked(model_of(q.nodes, q.tensors, *shapes))


def test_a_grouped_qlinear_convolution() -> None:
    q = QLinear()
    q.conv("xq", "a", 12, 3)
    q.conv("a", "d", 12, 1, group=12)
    q.conv("d", "out", 5, 12)
    model = q.model("out", (2, 3, 4, 4), (2, 5, 4, 4))
    assert sizes(onnxprune.analyze(model)) == {"channels": [12]}
    result = pruned_as_masked(model)
    grouped = next(n for n in result.model.proto.graph.node if n.output[0] == "d")
    assert helper.get_node_attr_value(grouped, "group") == 6


def test_a_qlinear_gate_is_tied_to_what_it_gates() -> None:
    q = QLinear()
    q.conv("xq", "a", 12, 3)
    q.conv("xq", "b", 12, 3)
    q.ms("QLinearSigmoid", "b s z s z", "gate")
    q.ms("QLinearMul", "a s z gate s z s z", "m")
    q.conv("m", "out", 5, 12)
    model = q.model("out", (2, 3, 4, 4), (2, 5, 4, 4))
    assert sizes(onnxprune.analyze(model)) == {"channels": [12]}
    pruned_as_masked(model)


def test_a_qlinear_softmax_mixes_its_axis() -> None:
    q = QLinear()
    q.conv("xq", "a", 12, 3)
    q.ms("QLinearSoftmax", "a s z s z", "p", axis=1, opset=13)
    q.conv("p", "out", 5, 12)
    (group,) = onnxprune.analyze(q.model("out", (2, 3, 4, 4), (2, 5, 4, 4))).groups
    assert (group.size, group.exact) == (12, False)
    assert "QLinearSoftmax" in str(group.why_inexact)


@pytest.mark.parametrize("vector", [False, True])
def test_qlinear_matmul(vector: bool) -> None:
    n = [8] if vector else []
    tensors = {
        "s": number(0.05),
        "z": number(90, np.uint8),
        "w0": codes(6, 8),
        "s0": positive(*n),
        "z0": np.zeros(n, np.int8),
    }
    tensors |= {"w1": codes(8, 5), "s1": positive(), "z1": number(3, np.int8)}
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("QLinearMatMul", "xq s z w0 s0 z0 s z", "h"),
        node("QLinearMatMul", "h s z w1 s1 z1 s z", "o"),
        node("DequantizeLinear", "o s z", "y"),
    ]
    model = model_of(nodes, tensors, (4, 6), (4, 5))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    assert shape_of(pruned_as_masked(model), "w1") == (4, 5)


# --- few bits ---


def nbits(k: int, n: int, block: int, bits: int = 4, points: str = "none") -> dict[str, np.ndarray[Any, Any]]:
    blocks = k // block
    found = {
        "w": RNG.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8),
        "w_s": positive(n * blocks),
    }
    if points == "packed":
        found["w_z"] = RNG.integers(0, 256, (n * -(-blocks * bits // 8),)).astype(np.uint8)
    elif points == "float":
        found["w_z"] = RNG.integers(0, 15, (n, blocks)).astype(np.float32)
    return found


def nbits_model(k: int, n: int, block: int, bits: int = 4, points: str = "none", bias: bool = True) -> onnx.ModelProto:
    tensors = {**nbits(k, n, block, bits, points), "first": RNG.standard_normal((6, k)).astype(np.float32)}
    tensors |= {"last": RNG.standard_normal((n, 3)).astype(np.float32), "b": positive(n, size=1)}
    inputs = f"h w w_s {'w_z' if points != 'none' else '_'} _ {'b' if bias else '_'}"
    nodes = [
        node("MatMul", "x first", "h"),
        node("MatMulNBits", inputs, "t", MS, K=k, N=n, bits=bits, block_size=block),
        node("MatMul", "t last", "y"),
    ]
    return model_of(nodes, tensors, (5, 6), (5, 3))


@pytest.mark.parametrize(
    ("bits", "points", "groups"),
    [
        (4, "none", [4, 10]),
        (4, "packed", [2, 10]),
        (4, "float", [4, 10]),
        (8, "none", [4, 10]),
        (8, "packed", [4, 10]),
    ],
)
def test_matmul_nbits_loses_rows_and_whole_blocks(bits: int, points: str, groups: list[int]) -> None:
    model = nbits_model(128, 10, 32, bits, points)
    assert sizes(onnxprune.analyze(model)) == {"features": groups}
    result = pruned_as_masked(model)
    assert shape_of(result, "w") == (5, 2, 16 * bits // 4)
    product = next(n for n in result.model.proto.graph.node if n.op_type == "MatMulNBits")
    assert (helper.get_node_attr_value(product, "K"), helper.get_node_attr_value(product, "N")) == (64, 5)


def test_zero_points_of_an_odd_number_of_blocks_keep_them() -> None:
    model = nbits_model(96, 10, 32, 4, "packed", bias=False)
    assert sizes(onnxprune.analyze(model)) == {"features": [10]}
    assert shape_of(pruned_as_masked(model), "w_z") == (10,)


def test_a_gathered_table_in_blocks() -> None:
    table = RNG.integers(0, 256, (20, 64)).astype(np.uint8)
    tensors = {"w": table, "w_s": positive(20, 4), "last": RNG.standard_normal((128, 3)).astype(np.float32)}
    nodes = [
        node("GatherBlockQuantized", "w x w_s", "e", MS, gather_axis=0, quantize_axis=1, block_size=32, bits=4),
        node("MatMul", "e last", "y"),
    ]
    model = model_of(nodes, tensors, (2, 7), (2, 7, 3), x_type=T.INT64)
    assert sizes(onnxprune.analyze(model)) == {"embedding": [4]}
    feeds = [{"x": RNG.integers(0, 20, (2, 7))} for _ in range(2)]
    result = onnxprune.prune(model, ratio=0.5, verify=False)
    verdict = onnxprune.verify(model, result.model, plan=result.plan, data=feeds)
    assert verdict.ok
    assert verdict.exact["max_rel"] < 1e-5
    assert shape_of(result, "w") == (20, 32)


# --- recurrent ---


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamic_quantize_lstm(vector: bool, directions: int) -> None:
    i, h = 6, 8
    rows = [directions, 4 * h] if vector else [directions]
    tensors = {
        "w": codes(directions, i, 4 * h),
        "r": codes(directions, h, 4 * h),
        "b": positive(directions, 8 * h, size=0.5),
        "ws": positive(*rows),
        "wz": np.zeros(rows, dtype=np.int8) if vector else codes(*rows, low=-4, high=4),
        "rs": positive(*rows),
        "rz": np.zeros(rows, dtype=np.int8) if vector else codes(*rows, low=-4, high=4),
        "v": codes(directions * h, 3),
        "vs": positive(),
        "shape": np.array([5, 2, -1]),
    }
    nodes = [
        node(
            "DynamicQuantizeLSTM", "x w r b _ _ _ _ ws wz rs rz", "l", MS, hidden_size=h,
            direction="forward" if directions == 1 else "bidirectional",
        ),
        node("Transpose", "l", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t shape", "f"),
        node("DynamicQuantizeMatMul", "f v vs", "y", MS),
    ]  # fmt: skip
    model = model_of(nodes, tensors, (5, 2, i), (5, 2, 3))
    (group,) = onnxprune.analyze(model).groups
    assert (group.kind, group.size, group.exact) == ("hidden", 8, True)
    result = pruned_as_masked(model)
    assert shape_of(result, "w") == (directions, i, 16)
    assert shape_of(result, "r") == (directions, 4, 16)
    assert shape_of(result, "v") == (directions * 4, 3)


def test_a_table_of_codes_is_absent_at_its_zero_point() -> None:
    tensors = {"w": codes(20, 8, dtype=np.uint8, low=0), "s": number(0.02), "z": number(50, np.uint8)}
    tensors |= {"v": codes(8, 3), "vs": positive()}
    nodes = [
        node("Gather", "w x", "e"),
        node("DequantizeLinear", "e s z", "f"),
        node("DynamicQuantizeMatMul", "f v vs", "y", MS),
    ]
    model = model_of(nodes, tensors, (2, 7), (2, 7, 3), x_type=T.INT64)
    analysis = onnxprune.analyze(model)
    (group,) = analysis.groups
    assert (group.kind, group.size, group.exact) == ("embedding", 8, True)
    result = onnxprune.prune(model, ratio=0.5, verify=False)
    feeds = [{"x": RNG.integers(0, 20, (2, 7))} for _ in range(2)]
    verdict = onnxprune.verify(model, result.model, plan=result.plan, data=feeds)
    assert verdict.ok
    assert verdict.exact["max_rel"] < 1e-5
    assert np.allclose(weight_values(analysis, "w"), (tensors["w"].astype(float) - 50) * np.float32(0.02))


# --- scores ---


def test_units_are_ranked_by_what_their_codes_mean() -> None:
    weight = np.full((4, 6), 120, dtype=np.uint8)
    tensors = {
        "w": weight,
        "s": np.array([1, 5, 2, 4], dtype=np.float32),
        "z": np.array([110, 119, 100, 118], dtype=np.uint8),
    }
    tensors["v"] = np.ones((3, 4), dtype=np.float32)
    nodes = [
        node("DequantizeLinear", "w s z", "f", axis=0),
        node("Gemm", "x f", "h", transB=1),
        node("Gemm", "h v", "y", transB=1),
    ]
    analysis = onnxprune.analyze(model_of(nodes, tensors, (2, 6), (2, 3)))
    scores, _ = group_scores(analysis, analysis.groups[0], "l2")
    assert np.argsort(scores).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(("bits", "points"), [(4, "none"), (4, "packed"), (4, "float"), (8, "none")])
def test_the_values_of_packed_codes_are_those_onnxruntime_computes(bits: int, points: str) -> None:
    import onnxruntime as ort

    k, n, block = 96, 10, 32
    tensors = nbits(k, n, block, bits, points)
    inputs = f"x w w_s {'w_z' if points != 'none' else ''}"
    nodes = [node("MatMulNBits", inputs, "y", MS, K=k, N=n, bits=bits, block_size=block)]
    model = model_of(nodes, tensors, (k, k), (k, n))
    found = weight_values(onnxprune.analyze(model), "w").reshape(n, k)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": np.eye(k, dtype=np.float32)})
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-6)


def test_blocked_values_are_those_of_the_specification() -> None:
    tensors = blocked(40, 10, 16)
    nodes = [node("DequantizeLinear", "w w_s w_z", "f", axis=0, block_size=16), node("MatMul", "x f", "y")]
    analysis = onnxprune.analyze(model_of(nodes, tensors, (5, 40), (5, 10)))
    spread = {k: np.repeat(tensors[k].astype(float), 16, axis=0)[:40] for k in ("w_s", "w_z")}
    np.testing.assert_allclose(weight_values(analysis, "w"), (tensors["w"] - spread["w_z"]) * spread["w_s"])


@pytest.mark.parametrize(("shape", "n"), [((), 1), ((1, 1), 1), ((1, 1, 1), 1), ((1, 5, 8), 0)])
def test_one_scale_may_have_any_rank(shape: tuple[int, ...], n: int) -> None:
    tensors = {"w": codes(5, 8), "s": positive(*shape), "z": np.zeros(shape, np.int8), "v": positive(8, 7)}
    nodes = [node("DequantizeLinear", "w s z", "f"), node("MatMul", "x f", "h"), node("MatMul", "h v", "y")]
    groups = onnxprune.analyze(model_of(nodes, tensors, (3, 5), (3, 7))).groups
    assert [group.size for group in groups] == [8] * n
