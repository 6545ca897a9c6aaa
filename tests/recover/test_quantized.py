"""Quantized weights: a cut is seen as codes at the zero point, so that it costs what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.calibration.probe import Probe
from onnxprune.recover.masked import hidden_from_masks, masked_weights
from onnxprune.recover.outputs import Outputs
from tests.recover.test_products import draw, model_of

Array = np.ndarray[Any, Any]

TABLE = """g (int64[n] x) => (float[n, 5] y)
{ e = Gather (table, x)  f = DequantizeLinear (e, scale, point)  h = Gemm (f, w1)  k = Relu (h)  y = Gemm (k, w2) }"""
DENSE = """g (float[n, 6] x) => (float[n, 5] y)
{ w = DequantizeLinear <axis = 1> (codes, scale, point)  h = MatMul (x, w)  k = Relu (h)  y = MatMul (k, w2) }"""


def codes(*shape: int) -> Array:
    return np.random.default_rng(3).integers(0, 255, shape).astype(np.uint8)


def table() -> Any:
    return model_of(
        TABLE, table=codes(11, 8), scale=np.array(0.02, np.float32), point=np.array(117, np.uint8), w1=draw(8, 7),
        w2=draw(7, 5),
    )  # fmt: skip


def test_what_is_cut_from_codes_stands_at_the_zero_point() -> None:
    analysis = onnxprune.analyze(table())
    (group,) = [g for g in analysis.groups if any(m.initializer == "table" for m in g.members)]
    alive = analysis.alive({group.id: [2, 5]})
    masked = masked_weights(analysis, alive)["table"]
    assert masked.dtype == np.uint8
    assert (masked[:, [2, 5]] == 117).all()
    assert (masked[:, 3] == analysis.model.array("table")[:, 3]).all()
    assert hidden_from_masks(analysis, alive) is None


def test_a_cut_of_codes_is_not_for_free() -> None:
    model = table()
    samples = [{"x": np.arange(11)[k::3]} for k in range(3)] * 4
    analysis = onnxprune.analyze(model)
    (group,) = [g for g in analysis.groups if any(m.initializer == "table" for m in g.members)]
    outputs = Outputs(Probe(model), samples, 1)
    assert outputs.distance(masked_weights(analysis, analysis.alive({group.id: list(range(7))}))) > 0.1
    plan = onnxprune.plan(analysis, target={"macs": 0.6}, data=samples, threads=1)
    recovery = onnxprune.repair(analysis, plan, samples)
    assert recovery.before is not None
    assert recovery.before > 1e-3


@pytest.mark.parametrize("differ", [False, True])
def test_zero_points_that_differ_hide_a_cut(differ: bool) -> None:
    points = np.full(7, 9, np.uint8)
    points[3] += differ
    model = model_of(DENSE, codes=codes(6, 7), scale=np.full(7, 0.1, np.float32), point=points, w2=draw(7, 5))
    analysis = onnxprune.analyze(model)
    (group,) = analysis.groups
    alive = analysis.alive({group.id: [1]})
    assert (hidden_from_masks(analysis, alive) == "codes") is differ
    assert ("codes" in masked_weights(analysis, alive)) is not differ
    samples = [{"x": draw(4, 6, seed=k)} for k in range(8)]
    plan = onnxprune.plan(analysis, ratio=0.4, data=samples)
    recovery = onnxprune.repair(analysis, plan, samples)
    assert any("zero points" in r.why for r in recovery.repairs) is differ
    assert bool(recovery.values) is not differ
    onnxprune.verify(model, onnxprune.apply(analysis, plan, recover=recovery), plan=plan).raise_if_failed()
