"""Models in torch give what onnxruntime and the operators' specification give, or say what they cannot do."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.model import Model, load
from onnxprune.graph.session import open_session
from tests.recover.test_products import draw, model_of

torch = pytest.importorskip("torch")
from onnxprune.autograd.call import key, torch_functions  # noqa: E402  torch comes first
from onnxprune.autograd.network import Network  # noqa: E402
from onnxprune.autograd.tensors import to_tensor  # noqa: E402

ZOO = Path(os.environ.get("ONNXPRUNE_ZOO", "")) / "real" / "models"
FLOAT_MODELS = (
    "crepe_tiny", "fmnist_resnet", "fmnist_vit", "g2p_en_gru", "magika_v3_3", "mobilenet_v2_imagenet",
    "paraphrase_minilm_l3", "ppocr_cls_mobile", "ppocrv4_det_mobile", "ppocrv4_rec_mobile", "py_gpt2", "silero_vad",
)  # fmt: skip
# Factors that leave a part of a pixel: here as in onnxruntime, which counts whole ones.
OTHERWISE = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}

SMALL = {
    "gru": '(float[5, 2, 4] x) => (float[a, b, c, d] y) { y, h = GRU <hidden_size = 3, direction = "bidirectional">'
    " (x, w, r, b) }",
    "conv": "(float[2, 4, 9, 8] x) => (float[a, b, c, d] y) { h = Conv <pads = [1, 0, 2, 1], group = 2> (x, w)"
    " y = AveragePool <kernel_shape = [3, 2], ceil_mode = 1, strides = [2, 2], pads = [1, 0, 0, 1]> (h) }",
}  # fmt: skip
WEIGHTS = {
    "gru": {"w": (2, 9, 4), "r": (2, 9, 3), "b": (2, 18)},
    "conv": {"w": (6, 2, 3, 3)},
}


def in_torch(model: Model, feed: dict[str, Any]) -> list[Any]:
    with torch.no_grad():
        return [y.numpy() for y in Network(model)({n: to_tensor(a) for n, a in feed.items()})]


@pytest.mark.parametrize("name", SMALL)
def test_small_models_give_what_onnxruntime_gives(name: str) -> None:
    model = model_of(f"g {SMALL[name]}", **{n: draw(*s) for n, s in WEIGHTS[name].items()})
    shape = [d.dim_value for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": draw(*shape, seed=3)}
    expected = open_session(model, threads=1).run(None, feed)
    np.testing.assert_allclose(in_torch(model, feed)[0], expected[0], atol=1e-5)
    assert np.ptp(expected[0]) > 0.1


def test_a_gradient_is_the_slope() -> None:
    model = model_of("g (float[3, 4] x) => (float[3, 2] y) { h = MatMul (x, w)  y = Tanh (h) }", w=draw(4, 2))
    network = Network(model, ["w"])
    x = draw(3, 4, seed=1)
    (y,) = network({"x": to_tensor(x)})
    y.sum().backward()
    step = np.zeros((4, 2))
    step[1, 1] = 1e-4
    w = draw(4, 2).astype(np.float64)
    slope = (np.tanh(x @ (w + step)).sum() - np.tanh(x @ (w - step)).sum()) / 2e-4
    assert float(network.weights["w"].grad[1, 1]) == pytest.approx(slope, rel=1e-3)


def test_an_operator_without_a_counterpart_is_named() -> None:
    model = model_of("g (float[3, 4] x) => (float[3, 4] y) { h = Relu (x)  y = FusedThing (h) }")
    with pytest.raises(ModelError, match=r"none of FusedThing \(node 'y'\).*lstsq"):
        Network(model)
    pool = "g (float[1, 1, 9] x) => (float[a, b, c] y) { y = AveragePool <kernel_shape = [2], dilations = [2]> (x) }"
    with pytest.raises(ModelError, match="AveragePool with dilations"):
        in_torch(model_of(pool), {"x": draw(1, 1, 9)})


@pytest.mark.slow
def test_the_node_tests_of_onnx_pass_or_are_refused() -> None:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        cases = load_model_tests(kind="node")
    passed, wrong = 0, set()
    for case in cases:
        graph = case.model.graph
        if any(key(n.domain, n.op_type) not in torch_functions for n in graph.node):
            continue
        given, expected = ([_array(t) for t in part] for part in case.data_sets[0])
        if any(a is None for a in [*given, *expected]):
            continue
        try:
            found = in_torch(Model(case.model), {v.name: a for v, a in zip(graph.input, given, strict=True)})
        except ModelError:
            continue
        close = all(_close(y, z) for y, z in zip(found, expected, strict=True))
        passed += close
        if not close:
            wrong.add(case.name)
    assert wrong == OTHERWISE
    assert passed > 800


def _array(value: Any) -> Any:
    """Give arrays of types that torch has; None for others."""
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    kinds = {np.dtype(t) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")}
    return array if isinstance(array, np.ndarray) and array.dtype in kinds else None


def _close(y: Any, z: Any) -> bool:
    if y.shape != z.shape or z.dtype.kind != "f":
        return bool(np.array_equal(y, z))
    tolerance = 2e-2 if z.dtype.itemsize == 2 else 1e-5
    return bool(np.allclose(y.astype(np.float64), z.astype(np.float64), rtol=1e-3, atol=tolerance, equal_nan=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_trained_models_give_what_onnxruntime_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ZOO / f"{name}.onnx"
    if not path.exists():
        pytest.skip("needs the trained models of ONNXPRUNE_ZOO")
    model = load(path)
    monkeypatch.syspath_prepend(ZOO.parent / "eval")
    (feed,) = importlib.import_module(name).calib(1)
    for y, z in zip(in_torch(model, feed), open_session(model, threads=1).run(None, feed), strict=True):
        assert y.shape == z.shape
        assert np.abs(y - z).max() <= 1e-4 * np.ptp(z)


def test_branches_run_as_the_condition_says() -> None:
    bodies = [
        helper.make_graph([helper.make_node(op, ["x", "x"], ["out"])], op, [], [onnx.ValueInfoProto(name="out")])
        for op in ("Add", "Mul")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    ends = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("x", 1, [3]), ("c", 9, []), ("y", 1, [3]))]
    graph = helper.make_graph([node], "g", ends[:2], ends[2:])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    x = draw(3)
    for c, expected in ((True, x + x), (False, x * x)):
        np.testing.assert_allclose(in_torch(model, {"x": x, "c": np.array(c)})[0], expected, rtol=1e-6)
