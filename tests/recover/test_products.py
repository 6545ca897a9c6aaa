"""Products: the matrices and rows that are seen must give what the node gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.calibration.probe import Probe
from onnxprune.graph.model import Model
from onnxprune.recover.moments import Sampler, feed_shapes, view_of
from onnxprune.recover.products import Product, find_products

Array = np.ndarray[Any, Any]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def model_of(text: str, **weights: Array) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(proto)


def run(model: Model, feed: dict[str, Array]) -> Array:
    session = ort.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def rows_of(model: Model, product: Product, feed: dict[str, Array]) -> Array:
    probe = Probe(model)
    view = view_of(product, probe, feed_shapes(probe, [feed]))
    assert not isinstance(view, str), view
    parts = [part for (part,) in Sampler(view, 10**9, 1).rows(feed)]
    return np.concatenate(parts, axis=1)


CASES = {
    "matmul": ("(float[5, 7] x) => (float[5, 4] y) { y = MatMul (x, w) }", (7, 4), (5, 7), None),
    "matmul on the left": ("(float[2, 7, 3] x) => (float[2, 4, 3] y) { y = MatMul (w, x) }", (4, 7), (2, 7, 3), -2),
    "gemm": ("(float[5, 7] x) => (float[5, 4] y) { y = Gemm <transB = 1, alpha = 0.5> (x, w) }", (4, 7), (5, 7), None),
    "conv": (
        "(float[2, 6, 9, 8] x) => (float[a, b, c, d] y) { y = Conv <strides = [2, 1], pads = [1, 0, 2, 1]> (x, w) }",
        (4, 6, 3, 2), (2, 6, 9, 8), 1,
    ),
    "grouped conv": (
        "(float[2, 6, 9] x) => (float[a, b, c] y) { y = Conv <group = 3, dilations = [2], pads = [2, 2]> (x, w) }",
        (12, 2, 3), (2, 6, 9), 1,
    ),
    "depthwise conv": (
        '(float[2, 5, 7, 8] x) => (float[a, b, c, d] y) { y = Conv <group = 5, auto_pad = "SAME_UPPER"> (x, w) }',
        (5, 1, 3, 3), (2, 5, 7, 8), 1,
    ),
    "transposed conv": (
        "(float[2, 6, 5, 4] x) => (float[a, b, c, d] y) { y = ConvTranspose <group = 2, strides = [2, 3]> (x, w) }",
        (6, 5, 3, 2), (2, 6, 5, 4), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_matrices_times_rows_are_the_outputs(case: str) -> None:
    text, weight_shape, data_shape, channel = CASES[case]
    model = model_of(f"g {text}", w=draw(*weight_shape))
    feed = {"x": draw(*data_shape, seed=1)}
    (product,), refused = find_products(analyze_model(model))
    assert not refused
    weight = model.array("w")
    matrices = product.matrices(weight)
    assert matrices.shape == product.shape
    np.testing.assert_array_equal(product.stored(matrices, weight), weight)
    made = rows_of(model, product, feed) @ matrices.swapaxes(1, 2).astype(np.float32)
    wish = np.moveaxis(run(model, feed), -1 if channel is None else channel, 0)
    made = np.moveaxis(made, 2, 1).reshape(len(wish), -1)
    np.testing.assert_allclose(made, wish.reshape(len(wish), -1), rtol=1e-4, atol=1e-5)


def test_sampled_windows_are_rows_of_all_windows() -> None:
    text, weight_shape, data_shape, _ = CASES["grouped conv"]
    model = model_of(f"g {text}", w=draw(*weight_shape))
    feed = {"x": draw(*data_shape, seed=1)}
    (product,), _ = find_products(analyze_model(model))
    every = rows_of(model, product, feed)
    probe = Probe(model)
    view = view_of(product, probe, feed_shapes(probe, [feed]))
    assert not isinstance(view, str)
    some = np.concatenate([p for (p,) in Sampler(view, 5, 1).rows(feed)], axis=1)
    np.testing.assert_array_equal(some, every[:, :: every.shape[1] // 5])
    both = [p for pair in Sampler(view, 5, 1).rows(feed, {"x": 2 * feed["x"]}) for p in pair]
    np.testing.assert_array_equal(both[1], 2 * both[0])


def test_a_convolution_by_channel_is_the_same_weight() -> None:
    text, weight_shape, _, _ = CASES["conv"]
    model = model_of(f"g {text}", w=draw(*weight_shape))
    (product,), _ = find_products(analyze_model(model))
    coarse = product.by_channel()
    assert coarse.shape == (1, 4 * 6, 6)
    weight = model.array("w")
    matrices = coarse.matrices(weight)
    np.testing.assert_allclose(matrices[0].reshape(4, 6, 6)[1, :, 5], weight[1, 5].ravel(), rtol=0)
    np.testing.assert_array_equal(coarse.stored(matrices, weight), weight)
    np.testing.assert_allclose(coarse.per_bias(np.ones((1, 24))), [6, 6, 6, 6], rtol=0)


BIASES = {
    "slot": "g (float[2, 3, 6] x) => (float[a, b, c] y) { y = Conv (x, w, b) }",
    "norm": "g (float[2, 3, 6] x) => (float[a, b, c] y) { t = Conv (x, w)  y = BatchNormalization (t, s, o, b, v) }",
    "add": "g (float[2, 6, 3] x) => (float[a, b, c] y) { t = MatMul (x, m)  y = Add (b, t) }",
    "gru": "g (float[2, 5, 3] x) => (float[a, b, c, d] y) { y, h = GRU <hidden_size = 4> (x, w3, r, bb) }",
}


@pytest.mark.parametrize("case", ["slot", "norm", "add"])
def test_a_shifted_bias_shifts_the_sums(case: str) -> None:
    arrays = {
        "w": draw(4, 3, 2), "b": draw(4), "s": np.full(4, 0.5, np.float32), "o": draw(4, seed=2),
        "v": np.ones(4, np.float32), "m": draw(3, 4),
    }  # fmt: skip
    text = BIASES[case]
    model = model_of(text, **{n: a for n, a in arrays.items() if f"{n}" in text.replace("(", " ").replace(")", " ")})
    model = model_of(text, **{n: arrays[n] for n in _read(model)})
    (product,), _ = find_products(analyze_model(model))
    assert product.bias is not None
    name = product.bias.name
    assert name == "b"
    shift = np.array([1.0, -2.0, 3.0, 0.25])
    shape = (2, 6, 3) if case == "add" else (2, 3, 6)
    feed = {"x": draw(*shape, seed=3)}
    before = run(model, feed)
    for tensor in model.proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(product.bias.shifted(model.array(name), shift), name))
    after = run(Model(model.proto), feed)
    moved = shift * (0.5 / np.sqrt(1 + 1e-5) if case == "norm" else 1.0)
    axis = 2 if case == "add" else 1
    wish = before + moved.reshape([-1 if k == axis else 1 for k in range(3)])
    np.testing.assert_allclose(after, wish, rtol=1e-5, atol=1e-5)


def _read(model: Model) -> list[str]:
    made = {out for n in model.proto.graph.node for out in n.output} | {"x"}
    return [n for node in model.proto.graph.node for n in node.input if n not in made]


def test_weights_that_cannot_be_repaired_are_refused_with_a_reason() -> None:
    text = "g (float[5, 4] x) => (float[5, 4] y) { t = MatMul (x, w)  u = Relu (t)  y = MatMul (u, w) }"
    found, refused = find_products(analyze_model(model_of(text, w=draw(4, 4))))
    assert not found
    assert [r.weight for r in refused] == ["w", "w"]
    assert "several nodes" in refused[0].reason


def test_recurrent_layers_are_two_products() -> None:
    shapes = {"w": (2, 12, 5), "r": (2, 12, 3), "b": (2, 24)}
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=3, direction="bidirectional")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [7, 2, 5])],
        [helper.make_tensor_value_info("y", 1, [7, 2, 2, 3])],
        [numpy_helper.from_array(draw(*shape), name) for name, shape in shapes.items()],
    )  # fmt: skip
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    found, _ = find_products(Analysis(model))
    assert [(p.slot, p.shape) for p in found] == [(0, (1, 24, 5)), (5, (2, 12, 3))]
    weight = model.array("w")
    np.testing.assert_array_equal(found[0].matrices(weight)[0, 12:], weight[1])
    assert found[0].bias is not None
    shifted = found[0].bias.shifted(model.array("b"), np.arange(24.0))
    np.testing.assert_allclose((shifted - model.array("b"))[1, :12], np.arange(12.0, 24.0), rtol=1e-5)
    np.testing.assert_array_equal(shifted[:, 12:], model.array("b")[:, 12:])
