"""Rows of convolutions, checked against onnxruntime: weight times patches must be the convolution's own output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxprune.calibration import Probe, gather, views, wanted
from onnxprune.calibration.reading import read
from onnxprune.graph.model import Model

Array = np.ndarray[Any, Any]

CONVOLUTIONS = [
    ("Conv", (2, 6, 13), (8, 6, 3), {"pads": [1, 2], "strides": [2]}),
    ("Conv", (2, 6, 9, 11), (8, 3, 3, 2), {"group": 2, "pads": [1, 0, 2, 1]}),
    ("Conv", (1, 5, 9, 12), (5, 1, 3, 3), {"group": 5, "dilations": [2, 1], "strides": [1, 3]}),
    ("Conv", (3, 4, 7, 10), (7, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("Conv", (3, 4, 7, 10), (7, 4, 2, 4), {"auto_pad": "SAME_LOWER"}),
    ("Conv", (3, 4, 7, 10), (7, 4, 2, 4), {"auto_pad": "VALID"}),
    ("Conv", (2, 4, 5, 6, 7), (6, 2, 2, 3, 2), {"group": 2, "pads": [1, 0, 1, 0, 1, 0]}),
    ("ConvTranspose", (2, 6, 7), (6, 5, 3), {"pads": [1, 0], "strides": [2]}),
    ("ConvTranspose", (2, 6, 5, 4), (6, 3, 3, 2), {"group": 2, "strides": [2, 3], "output_padding": [1, 0]}),
    ("ConvTranspose", (1, 4, 5, 6), (4, 7, 3, 3), {"dilations": [2, 1], "pads": [3, 1, 2, 1]}),
    ("ConvTranspose", (1, 4, 5, 6), (4, 7, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", (1, 4, 5, 6), (4, 7, 3, 4), {"strides": [2, 3], "output_shape": [10, 17]}),
    ("ConvTranspose", (2, 3, 2, 3, 4), (3, 5, 2, 1, 3), {"strides": [2, 1, 2]}),
]


def model_of(op: str, x: tuple[int, ...], w: Array, attributes: dict[str, Any]) -> Model:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.tobytes(), raw=True)],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def logical(w: Array, op: str, group: int) -> Array:
    """Give the weight as (groups, outputs of a group, features)."""
    if op == "Conv":
        return w.reshape(group, w.shape[0] // group, -1)
    return w.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2).reshape(group, w.shape[1], -1)


@pytest.mark.parametrize("small_chunks", [False, True])
@pytest.mark.parametrize(("op", "x_shape", "w_shape", "attributes"), CONVOLUTIONS)
def test_weight_times_patches_is_the_output(
    op: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    attributes: dict[str, Any],
    small_chunks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if small_chunks:
        monkeypatch.setattr(views, "CHUNK_BYTES", 1)
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape))
    model = model_of(op, x_shape, w, attributes)
    want = ort.InferenceSession(model.proto.SerializeToString()).run(None, {"x": x})[0]
    view = read(wanted(0, 0, "gram"), model.flat.nodes[0], model.flat, Probe(model).shapes({}))
    assert not isinstance(view, str), view
    chunks = list(view.chunks([x]))
    assert len(chunks) > x_shape[0] if small_chunks else len(chunks) == x_shape[0]
    rows = np.concatenate(chunks, axis=1)
    got = logical(w, op, attributes.get("group", 1)) @ rows.swapaxes(1, 2)
    n, _, *space = want.shape
    got = got.reshape(-1, n, *space).swapaxes(0, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert view.extent([x_shape]) == (rows.shape[0], rows.shape[2])


def test_gram_of_a_grouped_convolution() -> None:
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((3, 6, 7, 5)).astype(np.float32), rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    model = model_of("Conv", x.shape, w, {"group": 2, "pads": [1, 1, 1, 0]})
    w_all = wanted(0, 0, "gram", "mean", "square", "variance", "zeros")
    found = gather(model, [w_all], [{"x": x}, {"x": 2 * x + 1}])[w_all]
    rows = []
    for values in (x, 2 * x + 1):
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 0)))
        for n in range(3):
            for i in range(7):
                rows += [padded[n, :, i : i + 3, j : j + 2].reshape(2, 18) for j in range(5)]
    stacked = np.stack(rows, axis=1).astype(np.float64)
    assert (found.n_rows, found.n_samples) == (stacked.shape[1], 6)
    np.testing.assert_allclose(
        found.get("gram"), stacked.swapaxes(1, 2) @ stacked / stacked.shape[1], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found.get("mean"), stacked.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.get("square"), (stacked**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.get("variance"), stacked.var(1), rtol=1e-5)
    np.testing.assert_array_equal(found.get("zeros"), (stacked == 0).mean(1))
    assert found.get("zeros").min() < found.get("zeros").max()
