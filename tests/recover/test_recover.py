"""Repairs: exact where they can be, never worse on what was held out, and proved by verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import DataError, OptionError, UnknownNameError
from onnxprune.graph.model import Model, save
from onnxprune.planfile import Plan
from onnxprune.recover.fit import Fit, Moments, error, proposals
from onnxprune.recover.outputs import Outputs
from onnxprune.recover.split import held_out, split
from onnxprune.recover.walk import Walk
from tests.recover.test_products import draw, model_of, run

Array = np.ndarray[Any, Any]

MLP = """g (float[n, 6] x) => (float[n, 5] y)
{ a = Gemm (x, w1, b1)  h = Relu (a)  c = Gemm (h, w2, b2)  k = Relu (c)  y = Gemm (k, w3, b3) }"""
CNN = """g (float[n, 3, 8, 7] x) => (float[n, 5, 8, 7] y)
{ a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  h = Relu (a)
  c = Conv <pads = [1, 1, 1, 1], group = 2> (h, w2, b2)  k = Relu (c)  y = Conv (k, w3) }"""


def mlp(seed: int = 0) -> Model:
    return model_of(
        MLP, w1=draw(6, 12, seed=seed), b1=draw(12, seed=seed), w2=draw(12, 10, seed=seed), b2=draw(10, seed=seed),
        w3=draw(10, 5, seed=seed), b3=draw(5, seed=seed),
    )  # fmt: skip


def cnn(seed: int = 0) -> Model:
    return model_of(
        CNN, w1=draw(8, 3, 3, 3, seed=seed), b1=draw(8, seed=seed), w2=draw(12, 4, 3, 3, seed=seed),
        b2=draw(12, seed=seed), w3=draw(5, 12, 1, 1, seed=seed),
    )  # fmt: skip


def feeds(shape: tuple[int, ...], n: int = 12) -> list[dict[str, Array]]:
    return [{"x": draw(*shape, seed=100 + k)} for k in range(n)]


def without(analysis: Any, group: str, removed: list[int]) -> Plan:
    """Plan to remove certain units of one group."""
    from onnxprune.axes.cuts import make_plan
    from onnxprune.planfile import PlanGroup

    rows = [
        PlanGroup(g.id, g.kind, g.size, tuple(removed) if g.id == group else (), g.exact, {}, None, None, g.blocks)
        for g in analysis.groups
    ]
    return make_plan(analysis, rows)


def test_a_unit_that_is_a_sum_of_others_is_made_up_for_exactly() -> None:
    model = mlp()
    w1, b1 = model.array("w1").copy(), model.array("b1").copy()
    w1[:, 3], b1[3] = 2 * w1[:, 7], 2 * b1[7]
    model = model_of(MLP, **{n: model.array(n) for n in ("w2", "b2", "w3", "b3")}, w1=w1, b1=b1)
    analysis = onnxprune.analyze(model)
    plan = without(analysis, "w1", [3])
    samples = feeds((16, 6))
    recovery = onnxprune.repair(analysis, plan, samples)
    assert recovery.before is not None
    assert recovery.before > 1e-3
    pruned = onnxprune.apply(analysis, plan, recover=recovery)
    x = draw(9, 6, seed=5)
    np.testing.assert_allclose(run(pruned, {"x": x}), run(model, {"x": x}), rtol=5e-3, atol=5e-3)
    onnxprune.verify(model, pruned, plan=plan, recovered=True).raise_if_failed()


def test_a_constant_unit_goes_into_the_bias() -> None:
    model = mlp()
    w1 = model.array("w1").copy()
    w1[:, 4] = 0
    b1 = np.abs(model.array("b1"))
    model = model_of(MLP, **{n: model.array(n) for n in ("w2", "b2", "w3", "b3")}, w1=w1, b1=b1)
    analysis = onnxprune.analyze(model)
    plan = without(analysis, "w1", [4])
    pruned = onnxprune.apply(analysis, plan, recover="bias", data=feeds((16, 6)))
    x = draw(9, 6, seed=5)
    np.testing.assert_allclose(run(pruned, {"x": x}), run(model, {"x": x}), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (16, 6)), (cnn, (2, 3, 8, 7))])
@pytest.mark.parametrize("how", ["bias", "lstsq"])
def test_repairs_help_and_are_proved(make: Any, shape: tuple[int, ...], how: str) -> None:
    model = make()
    samples = feeds(shape, 24)
    result = onnxprune.prune(model, ratio=0.4, data=samples, recover=how)
    assert result.report.ok
    assert result.recovery is not None
    recovery = result.recovery
    assert recovery.before is not None
    assert recovery.after is not None
    assert recovery.after < (0.75 if how == "lstsq" else 0.98) * recovery.before
    for repair in recovery.repairs:
        assert repair.after is not None
        assert repair.before is not None
        assert repair.after <= repair.before
    assert (recovery.n_samples, recovery.n_held_out) == (18, 6)
    again = onnxprune.prune(model, ratio=0.4, data=samples, recover=how)
    assert again.model.proto.SerializeToString(deterministic=True) == result.model.proto.SerializeToString(
        deterministic=True
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), ratio=st.sampled_from([0.2, 0.5, 0.8]))
def test_no_layer_is_ever_worse_on_what_was_held_out(seed: int, ratio: float) -> None:
    model = cnn(seed)
    plan = onnxprune.plan(model, ratio=ratio)
    recovery = onnxprune.repair(model, plan, feeds((1, 3, 8, 7), 8))
    assert recovery.repairs
    assert all(r.after <= r.before for r in recovery.repairs if r.before is not None and r.after is not None)
    for name, array in recovery.values.items():
        assert array.shape == onnxprune.load(model).array(name).shape
        assert np.isfinite(array).all()


def test_lstsq_solves_the_normal_equations() -> None:
    random = np.random.default_rng(3)
    z = random.standard_normal((400, 6)) + 1.5
    x = z + 0.1 * random.standard_normal(z.shape)
    weight, keep = random.standard_normal((4, 6)), np.array([1, 1, 0, 1, 0, 1], bool)
    n = len(x)
    moments = Moments(x.mean(0), z.mean(0), x.T @ x / n, x.T @ z / n)
    fits = [f for f in proposals(weight, weight * keep, keep, moments, bias=True, how="lstsq") if f.how == "lstsq"]
    ones = np.column_stack([x[:, keep], np.ones(n)])
    wish, *_ = np.linalg.lstsq(ones, z @ weight.T, rcond=None)
    np.testing.assert_allclose(fits[0].weight[:, keep], wish[:-1].T, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(fits[0].shift, wish[-1], rtol=2e-2, atol=2e-2)
    assert not fits[0].weight[:, ~keep].any()
    x32 = x.astype(np.float32)
    target = (z @ weight.T).astype(np.float32)
    rows = np.ones(4, bool)
    nothing = error(Fit(weight * keep, np.zeros(4), "none"), target, rows, x32)
    assert error(fits[0], target, rows, x32) < 0.5 * nothing


def test_a_walk_gives_what_one_run_gives() -> None:
    from onnxprune.calibration.probe import Probe

    model = cnn()
    samples = feeds((1, 3, 8, 7), 3)
    weights: dict[str, Array] = {}
    walk = Walk(Probe(model), samples, weights, 1)
    first = [v["h"] for v in walk.step(["h"])]
    weights["w2"] = 2 * model.array("w2")
    second = [v["k"] for v in walk.step(["k"])]
    outputs = Walk(Probe(model), samples, weights, 1).step(["h", "k"])
    for h, k, whole in zip(first, second, outputs, strict=True):
        np.testing.assert_array_equal(h, whole["h"])
        np.testing.assert_allclose(k, whole["k"], rtol=1e-6)


def test_what_is_asked_for_wrongly() -> None:
    model = mlp()
    plan = onnxprune.plan(model, ratio=0.4)
    with pytest.raises(UnknownNameError, match="lstsq"):
        onnxprune.apply(model, plan, recover="lstsqq", data=feeds((16, 6)))
    with pytest.raises(OptionError, match="needs data"):
        onnxprune.apply(model, plan, recover="lstsq")
    with pytest.raises(DataError, match="too few"):
        onnxprune.apply(model, plan, data=[{"x": draw(1, 6)}])
    with pytest.raises(OptionError, match="needs data"):
        onnxprune.plan(model, ratio=0.4, criterion="obs")


def test_data_that_is_not_finite_leaves_the_weights_alone() -> None:
    model = mlp()
    plan = onnxprune.plan(model, ratio=0.4)
    bad = [{"x": np.full((4, 6), np.inf, np.float32)} for _ in range(4)]
    recovery = onnxprune.repair(model, plan, bad)
    assert not recovery.values
    assert all("not finite" in r.why for r in recovery.repairs)


def test_the_command_line_repairs_and_reports(tmp_path: Path) -> None:
    save(mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=draw(96, 6, seed=8))
    base = [
        "prune",
        str(tmp_path / "model.onnx"),
        "-o",
        str(tmp_path / "out.onnx"),
        "--data",
        str(tmp_path / "data.npz"),
    ]
    found = CliRunner().invoke(main, [*base, "--target", "macs=0.6", "--json"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["plan"]["groups"][0]["score"]["criterion"] == "obs"
    assert document["recovery"]["recover"] == "lstsq"
    assert document["recovery"]["error_after"] < document["recovery"]["error_before"]
    assert document["verification"]["ok"]
    shown = CliRunner().invoke(main, [*base, "--ratio", "0.3", "--recover", "bias"])
    assert "repaired" in shown.output
    assert "held out" in shown.output
    plain = CliRunner().invoke(main, [*base, "--ratio", "0.3", "--recover", "none", "--json"])
    assert json.loads(plain.stdout)["recovery"] is None
    lacking = CliRunner().invoke(main, [*base[:4], "--ratio", "0.3", "--recover", "lstsq"])
    assert lacking.exit_code == 2
    assert "--data" in lacking.output


def lstm() -> Model:
    """A recurrent tagger whose input has fewer directions than features, so that some of them say nothing new."""
    text = """g (float[6, n, 9] x) => (float[6, n, 4] y)
    { e = MatMul (x, w0)  s, h, c = LSTM <hidden_size = 7> (e, w, r, b)  t = Squeeze (s, one)  y = MatMul (t, w1) }"""
    low = draw(9, 3) @ draw(3, 12, seed=1)
    return model_of(
        text, w0=low, w=0.3 * draw(1, 28, 12), r=0.3 * draw(1, 28, 7), b=0.3 * draw(1, 56), w1=draw(7, 4),
        one=np.array([1], np.int64),
    )  # fmt: skip


def test_what_a_recurrent_layer_reads_is_repaired_before_its_own_state() -> None:
    model = lstm()
    samples = feeds((6, 5, 9), 12)
    analysis = onnxprune.analyze(model)
    plan = without(analysis, "w0", [0, 2, 3, 5, 7, 8, 10])
    recovery = onnxprune.repair(analysis, plan, samples)
    assert [r.weight for r in recovery.repairs] == ["w0", "w", "r", "w1"]
    assert recovery.before is not None
    assert recovery.after is not None
    assert recovery.before > 1e-2
    assert recovery.after < 1e-6
    pruned = onnxprune.apply(analysis, plan, recover=recovery)
    onnxprune.verify(model, pruned, plan=plan, data=samples, recovered=True).raise_if_failed()


def test_hidden_units_are_repaired_too() -> None:
    result = onnxprune.prune(lstm(), ratio=0.3, data=feeds((6, 5, 9), 24), kinds=["hidden"])
    assert result.recovery is not None
    assert result.recovery.before is not None
    assert result.recovery.after is not None
    assert result.recovery.after < 0.7 * result.recovery.before


def test_samples_are_held_out_in_no_regular_order() -> None:
    assert held_out(1) == [False]
    assert sum(held_out(2)) == 1
    apart = np.flatnonzero(held_out(400))
    assert len(apart) == 100
    np.testing.assert_array_equal(apart // 4, np.arange(100))
    assert min(np.bincount(apart % 4)) > 10
    learn, judge = split(feeds((1, 3), 1))
    assert learn == judge


def test_probabilities_are_compared_before_they_are_squashed() -> None:
    from onnxprune.calibration.probe import Probe

    text = "g (float[n, 6] x) => (float[n, 4] y) { a = MatMul (x, w)  b = Softmax (a)  y = Identity (b) }"
    sure = model_of(text, w=100 * draw(6, 4))
    outputs = Outputs(Probe(sure), feeds((8, 6)), 1)
    assert outputs.distance({}) == 0
    np.testing.assert_allclose(outputs.distance({"w": 50 * draw(6, 4)}), 0.25, rtol=0.1)


def test_what_no_sample_reaches_goes_last() -> None:
    text = """g (float[n, 6] x, bool c) => (float[n, 5] y)
    { y = If (c) <
        then_branch = t () => (float[n, 5] ty) { a = MatMul (x, w1)  h = Relu (a)  ty = MatMul (h, w2) },
        else_branch = e () => (float[n, 5] ey) { b = MatMul (x, w3)  k = Relu (b)  ey = MatMul (k, w4) }
    > }"""
    model = model_of(text, w1=draw(6, 12), w2=draw(12, 5), w3=draw(6, 11), w4=draw(11, 5))
    samples = [{"x": draw(16, 6, seed=k), "c": np.array(True)} for k in range(12)]
    plan = onnxprune.plan(model, target={"macs": 0.75}, data=samples)
    removed = {g.id: len(g.removed) for g in plan.groups}
    assert removed == {"w1": removed["w1"], "w3": 0}
    assert removed["w1"] > 3
    assert "no sample reaches" in next(g.score["why"] for g in plan.groups if g.id == "w3")
