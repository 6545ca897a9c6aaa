"""Operators fused by onnxruntime's optimizers, each on a graph made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from tests.test_rules_quantization import MS, RNG, model_of, node, pruned_as_masked, shape_of, sizes


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def between_convolutions(
    middle: list[onnx.NodeProto], channels: int, after: int, last: tuple[int, int], **more: Any
) -> onnx.ModelProto:
    """Put nodes from `h` (2, channels, 6, 5) to `t` between two convolutions of kernel one."""
    nodes = [node("FusedConv", "x wa ba", "h", MS, activation="Relu"), *middle, node("Conv", "t wb", "y")]
    tensors = weights(wa=(channels, 3, 1, 1), ba=(channels,), wb=(7, after, 1, 1), **more)
    return model_of(nodes, tensors, (2, 3, 6, 5), (2, 7, *last))


def test_a_fused_residual_is_tied_to_the_output() -> None:
    middle = [
        node("FusedConv", "h w1 b1", "u", MS, activation="Relu", pads=[1] * 4),
        node("FusedConv", "u w2 b2 h", "t", MS, activation="Relu"),
    ]
    model = between_convolutions(middle, 8, 8, (6, 5), w1=(10, 8, 3, 3), b1=(10,), w2=(8, 10, 1, 1), b2=(8,))
    analysis = onnxprune.analyze(model)
    assert sizes(analysis) == {"channels": [8, 10]}
    result = pruned_as_masked(model)
    assert shape_of(result, "w2") == (4, 5, 1, 1)


def test_a_grouped_fused_convolution() -> None:
    middle = [node("FusedConv", "h w1", "t", MS, activation="Clip", activation_params=[0.0, 6.0], group=2)]
    model = between_convolutions(middle, 8, 10, (6, 5), w1=(10, 4, 1, 1))
    assert sizes(onnxprune.analyze(model)) == {"groups": [2], "channels": [4, 5]}
    pruned_as_masked(model)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Tanh", "Sigmoid", "HardSigmoid"])
def test_fused_gemm(activation: str) -> None:
    extra = {"activation_alpha": 0.1} if activation in ("LeakyRelu", "HardSigmoid") else {}
    extra |= {"activation_beta": 0.4} if activation == "HardSigmoid" else {}
    nodes = [
        node("FusedGemm", "x w0 b0", "h", MS, transB=1, activation=activation, **extra),
        node("FusedGemm", "h w1", "g", MS, activation="Relu"),
        node("Gemm", "g w2", "y"),
    ]
    model = model_of(nodes, weights(w0=(8, 6), b0=(8,), w1=(8, 10), w2=(10, 3)), (4, 6), (4, 3))
    assert sizes(onnxprune.analyze(model)) == {"features": [8, 10]}
    assert shape_of(pruned_as_masked(model), "w1") == (4, 5)


@pytest.mark.parametrize(
    ("activation", "exact"), [("Relu", True), ("Tanh", True), ("Sigmoid", False), ("HardSigmoid", False)]
)
def test_zeros_pass_the_activations_that_keep_them(activation: str, exact: bool) -> None:
    nodes = [node("FusedConv", "x w b", "h", MS, activation=activation), node("ReduceSum", "h axes", "t", keepdims=1)]
    nodes.append(node("Conv", "t v", "y"))
    tensors = {**weights(w=(8, 3, 1, 1), b=(8,), v=(5, 1, 1, 1)), "axes": np.array([1])}
    (group,) = onnxprune.analyze(model_of(nodes, tensors, (2, 3, 6, 4), (2, 5, 6, 4))).groups
    assert (group.size, group.exact) == (8, exact)


@pytest.mark.parametrize("transposed", [0, 1])
def test_fused_matmul(transposed: int) -> None:
    w0, w1 = ((8, 6), (3, 8)) if transposed else ((6, 8), (8, 3))
    nodes = [
        node("FusedMatMul", "x w0", "h", MS, transB=transposed, alpha=0.5),
        node("FusedMatMul", "h w1", "y", MS, transB=transposed),
    ]
    model = model_of(nodes, weights(w0=w0, w1=w1), (4, 6), (4, 3))
    assert sizes(onnxprune.analyze(model)) == {"features": [8]}
    assert shape_of(pruned_as_masked(model), "w0") == tuple(4 if d == 8 else d for d in w0)


def test_a_fused_attention_product_has_heads() -> None:
    """Queries against keys: (2, 5, 4, 6) with the heads moved in front by the product itself."""
    tensors = weights(wq=(7, 24), wk=(7, 24), wv=(7, 24), wo=(24, 3)) | {
        "s": np.array([2, 5, 4, 6]),
        "m": np.array([2, 5, 24]),
    }
    nodes = [
        *[node("MatMul", f"x w{k}", k) for k in "qkv"],
        *[node("Reshape", f"{k} s", f"{k}s") for k in "qkv"],
        *[node("Transpose", f"{k}s", f"{k}t", perm=[0, 2, 1, 3]) for k in "qkv"],
        node("FusedMatMul", "qt kt", "a", MS, transB=1, alpha=0.25),
        node("Softmax", "a", "p"),
        node("FusedMatMul", "p vt", "c", MS),
        node("Transpose", "c", "ct", perm=[0, 2, 1, 3]),
        node("Reshape", "ct m", "cm"),
        node("MatMul", "cm wo", "y"),
    ]
    model = model_of(nodes, tensors, (2, 5, 7), (2, 5, 3))
    assert sizes(onnxprune.analyze(model)) == {"heads": [4], "head_dim": [6, 6]}
    assert shape_of(pruned_as_masked(model), "wq") == (7, 6)


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_axes_behind_the_rows(trans: int) -> None:
    """a lies as (m, n, k), or (k, n, m): the product moves its first axis behind the batch axis n."""
    tensors = weights(w=(7, 8), b=(4, 8, 6), v=(6, 3))
    nodes = [
        node("MatMul", "x w", "h"),
        *([node("Transpose", "h", "a", perm=[2, 1, 0])] if trans else [node("Identity", "h", "a")]),
        node("FusedMatMul", "a b", "t", MS, transBatchA=1, transA=trans),
        node("MatMul", "t v", "y"),
    ]
    model = model_of(nodes, tensors, (5, 4, 7), (4, 5, 3))
    assert sizes(onnxprune.analyze(model)) == {"features": [6, 8]}
    assert shape_of(pruned_as_masked(model), "b") == (4, 4, 3)


@pytest.mark.parametrize(
    "fused",
    [
        node("Gelu", "h", "t", MS),
        node("QuickGelu", "h", "t", MS, alpha=1.702),
        node("FastGelu", "h", "t", MS),
        node("FastGelu", "h b", "t", MS),
        node("BiasGelu", "h b", "t", MS),
    ],
    ids=lambda n: f"{n.op_type}{len(n.input)}",
)
def test_fused_activations_keep_zero(fused: onnx.NodeProto) -> None:
    tensors = weights(w=(6, 8), b=(8,), v=(8, 3))
    if "b" not in fused.input:
        del tensors["b"]
    nodes = [
        node("MatMul", "x w", "h"),
        fused,
        node("DynamicQuantizeLinear", "t", "q s z"),
        node("Cast", "q", "c", to=1),
    ]
    nodes.append(node("MatMul", "c v", "y"))
    model = model_of(nodes, tensors, (4, 6), (4, 3))
    (group,) = onnxprune.analyze(model).groups
    assert (group.size, group.exact) == (8, True)
    pruned_as_masked(model)


def test_lower_triangles_keep_their_batch() -> None:
    nodes = [node("FusedConv", "x w", "h", MS), node("Trilu", "h", "t", MS, upper=0), node("Conv", "t v", "y")]
    model = model_of(nodes, weights(w=(8, 3, 1, 1), v=(5, 8, 1, 1)), (2, 3, 6, 4), (2, 5, 6, 4))
    assert sizes(onnxprune.analyze(model)) == {"channels": [8]}
    pruned_as_masked(model)


# --- operators without a CPU kernel: groups only ---


def test_a_split_gelu_halves_its_axis() -> None:
    nodes = [node("MatMul", "x w", "h"), node("BiasSplitGelu", "h b", "t", MS), node("MatMul", "t v", "y")]
    analysis = onnxprune.analyze(model_of(nodes, weights(w=(6, 16), b=(16,), v=(8, 3)), (2, 4, 6), (2, 4, 3)))
    (group,) = analysis.groups
    assert group.size == 8
    assert next(m for m in group.members if m.initializer == "b").unit.tolist() == [*range(8), *range(8)]


@pytest.mark.parametrize("skip", [(2, 8), (2, 5, 4, 8)])
def test_a_fused_group_norm(skip: tuple[int, ...]) -> None:
    shape = (2, 5, 4, 8)
    tensors = weights(w=(3, 8), g=(8,), b=(8,), c=(8,), v=(8, 7), k=skip)
    norm = node("SkipGroupNorm", "h g b k c", "t sum", MS, groups=4, activation=1, channels_last=1)
    nodes = [node("MatMul", "x w", "h"), norm, node("Add", "t sum", "a"), node("MatMul", "a v", "y")]
    analysis = onnxprune.analyze(model_of(nodes, tensors, (*shape[:3], 3), (*shape[:3], 7)))
    assert sorted((g.kind, g.size, g.exact) for g in analysis.groups) == [("features", 8, False), ("groups", 4, True)]
    assert all(any(m.initializer == "k" for m in g.members) for g in analysis.groups)


@pytest.mark.parametrize("layout", ["oihw", "ohwi"])
def test_a_convolution_with_channels_last(layout: str) -> None:
    def kernel(out: int, inner: int) -> tuple[int, ...]:
        return (out, inner, 3, 3) if layout == "oihw" else (out, 3, 3, inner)

    nodes = [
        node("NhwcConv", "x w b", "h", MS, kernel_shape=[3, 3], pads=[1] * 4),
        node("NhwcMaxPool", "h", "p", MS, kernel_shape=[2, 2], strides=[2, 2]),
        node("NhwcConv", "p v", "y", MS, kernel_shape=[3, 3], pads=[1] * 4),
    ]
    model = model_of(nodes, weights(w=kernel(8, 5), b=(8,), v=kernel(7, 8)), (2, 6, 4, 5), (2, 3, 2, 7))
    assert sizes(onnxprune.analyze(model)) == {"channels": [8]}


@pytest.mark.parametrize(
    ("bias", "known"), [((2, 1, 1, 5), True), ((2, 4, 5, 5), True), ((5,), True), ((2, 1, 5), False)]
)
def test_a_softmax_with_a_bias_mixes_its_axis(bias: tuple[int, ...], known: bool) -> None:
    nodes = [node("Conv", "x w", "h"), node("BiasSoftmax", "h b", "p", MS, axis=3), node("Conv", "p v", "y")]
    model = model_of(nodes, weights(w=(4, 3, 1, 1), v=(7, 4, 1, 1), b=bias), (2, 3, 5, 5), (2, 7, 5, 5))
    assert len(onnxprune.analyze(model).groups) == known


def test_bias_operators_of_three_operands() -> None:
    tensors = weights(w=(6, 8), b=(8,), u=(6, 8), v=(8, 3))
    for op in ("BiasAdd", "BiasDropout"):
        nodes = [
            node("MatMul", "x w", "h"),
            node("MatMul", "x u", "r"),
            node(op, "h b r", "t", MS),
            node("MatMul", "t v", "y"),
        ]
        analysis = onnxprune.analyze(model_of(nodes, tensors, (2, 4, 6), (2, 4, 3)))
        (group,) = analysis.groups
        assert {m.initializer for m in group.members} == {"w", "b", "u", "v"}


# --- shapes that onnx does not infer ---


@pytest.mark.parametrize(
    ("op", "attributes", "inputs", "expected"),
    [
        ("FusedConv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [(2, 3, 9, 8), (5, 3, 3, 3)], (2, 5, 5, 4)),
        ("NhwcConv", {"kernel_shape": [3, 3]}, [(2, 9, 8, 3), (5, 3, 3, 3)], (2, 7, 6, 5)),
        ("FusedGemm", {"transA": 1, "transB": 1}, [(3, 4), (5, 3)], (4, 5)),
        ("FusedMatMul", {"transA": 1}, [(2, 3, 4), (3, 5)], (2, 4, 5)),
        ("FusedMatMul", {"transBatchA": 1}, [(4, 2, 3), (2, 3, 5)], (2, 4, 5)),
        ("GemmFastGelu", {}, [(2, 3, 4), (4, 5), (5,)], (2, 3, 5)),
        ("BiasSplitGelu", {}, [(2, 3, 8), (8,)], (2, 3, 4)),
        ("Gelu", {}, [(2, 3, 8)], (2, 3, 8)),
    ],
)
def test_shapes_of_fused_operators(
    op: str, attributes: dict[str, Any], inputs: list[tuple[int, ...]], expected: tuple[int, ...]
) -> None:
    names = ["x", *(f"i{k}" for k in range(1, len(inputs)))]
    tensors = weights(**dict(zip(names[1:], inputs[1:], strict=True)))
    nodes = [node(op, " ".join(names), "t", MS, **attributes), node("Relu", "t", "y")]
    model = model_of(nodes, tensors, inputs[0], expected)
    assert onnxprune.analyze(model).collection.shapes.sizes["t"] == expected
