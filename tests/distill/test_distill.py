"""Distillation: better on what was held out or undone, the same every time, and proved by verification."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.distill.anchors import Anchor, chosen
from onnxprune.errors import ModelError, OptionError
from onnxprune.graph.model import Model, save
from onnxprune.recover import Recovery
from onnxprune.recover.outputs import spread
from tests.recover.test_products import draw, model_of
from tests.recover.test_recover import cnn, feeds, mlp

pytest.importorskip("torch")

SOFT = """g (float[n, 6] x) => (float[n, 5] y)
{ a = Gemm (x, w1, b1)  h = Relu (a)  c = Gemm (h, w2, b2)  k = Tanh (c)  z = Gemm (k, w3, b3)  y = Softmax (z) }"""


def soft() -> Model:
    plain = mlp()
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    return model_of(SOFT, **{n: plain.array(n) for n in names})


CASES = {"mlp": (mlp, (1, 6)), "cnn": (cnn, (1, 3, 8, 7)), "softmax": (soft, (1, 6))}


@pytest.mark.parametrize("case", CASES)
def test_the_error_falls_further_than_least_squares_takes_it(case: str) -> None:
    make, shape = CASES[case]
    model, samples = make(), feeds(shape, 40)
    analysis = onnxprune.analyze(model)
    plan = onnxprune.plan(analysis, ratio=0.4, data=samples, threads=1)
    closed = onnxprune.repair(analysis, plan, samples, threads=1)
    tuned = onnxprune.repair(analysis, plan, samples, how="distill", distill_steps=60, threads=1)
    assert tuned.tuning is not None
    assert tuned.tuning.kept
    assert tuned.tuning.before == pytest.approx(closed.after, rel=1e-3)
    assert tuned.after is not None
    assert tuned.after == tuned.tuning.after < tuned.tuning.before
    assert {n: v.shape for n, v in tuned.values.items()} == {n: model.array(n).shape for n in tuned.values}
    smaller = onnxprune.apply(analysis, plan, recover=tuned)
    verdict = onnxprune.verify(model, smaller, plan=plan, data=samples)
    verdict.raise_if_failed()
    assert any(p.key == "onnxprune.repaired" for p in smaller.proto.metadata_props)


def test_one_thread_gives_the_same_bits_and_another_seed_others() -> None:
    model, samples = mlp(), feeds((1, 6), 24)
    plan = onnxprune.plan(model, ratio=0.4, data=samples, threads=1)
    tuned = [
        onnxprune.repair(model, plan, samples, how="distill", distill_steps=20, seed=s, threads=1) for s in (0, 0, 1)
    ]
    first, again, other = ({n: v.tobytes() for n, v in t.values.items()} for t in tuned)
    assert first == again
    assert first != other


def test_what_is_no_better_on_feeds_held_out_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxprune.distill.train as steps

    monkeypatch.setattr(steps, "RATES", (30.0,))
    model, samples = mlp(), feeds((1, 6), 24)
    plan = onnxprune.plan(model, ratio=0.4, data=samples, threads=1)
    closed = onnxprune.repair(model, plan, samples, threads=1)
    tuned = onnxprune.repair(model, plan, samples, how="distill", distill_steps=5, threads=1)
    assert tuned.tuning is not None
    assert not tuned.tuning.kept
    assert tuned.after == closed.after
    assert {n: v.tobytes() for n, v in tuned.values.items()} == {n: v.tobytes() for n, v in closed.values.items()}


def test_samples_that_cannot_be_joined_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxprune.distill.run as stage

    # Without the repair before it, there is much to gain.
    monkeypatch.setattr(stage, "recover", lambda *_, **__: Recovery("lstsq", {}))
    text = "g (float[5, 6] x) => (float[5, 4] y) { a = MatMul (x, w1)  h = Relu (a)  y = MatMul (h, w2) }"
    model = model_of(text, w1=draw(6, 12), w2=draw(12, 4))
    samples = feeds((5, 6), 12)
    plan = onnxprune.plan(model, ratio=0.5, data=samples, threads=1)
    tuned = onnxprune.repair(model, plan, samples, how="distill", distill_steps=40, threads=1)
    assert tuned.tuning is not None
    assert tuned.tuning.kept
    assert tuned.tuning.after < 0.9 * tuned.tuning.before


def test_a_tensor_that_is_empty_for_some_feed_holds_on_to_nothing() -> None:
    rng = np.random.default_rng(0)
    wanted = [rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 0, 4))]
    made = [0.9 * w for w in wanted]
    anchors = [Anchor("h", {})]
    assert [a.name for a in chosen(anchors, [[m] for m in made[:1]], [[w] for w in wanted[:1]])] == ["h"]
    for some in (slice(None), slice(1, None)):
        assert chosen(anchors, [[m] for m in made[some]], [[w] for w in wanted[some]]) == []
    assert spread([np.zeros((2, 0, 4)), np.zeros((2, 0, 4))]) == 0


def test_masks_and_scalars_are_no_weights() -> None:
    from onnxprune.calibration.probe import Probe
    from onnxprune.distill.tunable import tunable

    text = """g (float[n, 6] x) => (float[n, 6] y)
    { a = MatMul (x, w)  b = Add (a, bias)  c = Mul (b, two)  d = Add (c, mask)  t = Reshape (v, s)  y = Add (d, t) }"""
    model = model_of(
        text, w=draw(6, 6), bias=draw(6), two=np.float32([2]), mask=np.float32([0, 0, 0, 0, 0, -1e9]), v=draw(1, 6),
        s=np.array([6]),
    )  # fmt: skip
    assert tunable(Probe(model)) == ["w", "bias", "v"]


def test_mixtures_are_between_samples() -> None:
    from onnxprune.distill.batches import mixed

    rng = np.random.default_rng(0)
    low, high = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    floats = mixed({"x": np.concatenate([low, high])}, rng)["x"]
    assert floats.dtype == np.float32
    assert ((floats > 0) & (floats < 1)).all()
    assert (floats == floats[:, :1]).all()
    tokens = np.array([[1] * 9, [2] * 9])
    spliced = mixed({"x": tokens, "mask": tokens * 10}, rng)
    assert set(spliced["x"].ravel()) == {1, 2}
    assert (spliced["mask"] == spliced["x"] * 10).all()


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model, samples = mlp(), feeds((1, 6), 8)
    plan = onnxprune.plan(model, ratio=0.4)
    with pytest.raises(OptionError, match=r"pip install 'onnxprune\[torch\]'"):
        onnxprune.repair(model, plan, samples, how="distill")
    with pytest.raises(OptionError, match=r"criterion 'taylor' needs torch: pip install"):
        onnxprune.plan(model, ratio=0.4, criterion="taylor", data=samples)


def test_options_that_say_nothing_are_refused() -> None:
    model, samples = mlp(), feeds((1, 6), 8)
    plan = onnxprune.plan(model, ratio=0.4)
    with pytest.raises(OptionError, match="distill_steps counts"):
        onnxprune.repair(model, plan, samples, distill_steps=5)
    with pytest.raises(OptionError, match="at least 1"):
        onnxprune.repair(model, plan, samples, how="distill", distill_steps=0)


def test_weights_in_the_branch_that_runs_are_tuned() -> None:
    plain, others = mlp(), mlp()
    body = "a = Gemm (x, w1, b1)  h = Relu (a)  z = Gemm (h, w2, b2)"
    model = model_of(
        "g (float[n, 6] x, bool[] c) => (float[n, 9] y) { y = If (c) <"
        f"then_branch = g1 () => (float[n, 9] z) {{ {body} }}, else_branch = g2 () => (float[n, 9] z) {{ {body} }}> }}"
    )
    for k, attribute in enumerate(model.skeleton.graph.node[0].attribute):
        for name in ("w1", "b1", "w2", "b2"):
            array = (plain, others)[k].array(name)
            attribute.g.initializer.append(numpy_helper.from_array(array * (1 + k), name))
    model = Model(model.skeleton)
    samples = [{**f, "c": np.array(True)} for f in feeds((1, 6), 40)]
    analysis = onnxprune.analyze(model)
    plan = onnxprune.plan(analysis, ratio=0.4, data=samples, threads=1)
    tuned = onnxprune.repair(analysis, plan, samples, how="distill", distill_steps=60, threads=1)
    assert tuned.tuning is not None
    assert tuned.tuning.kept
    taken = {n for n, value in tuned.values.items() if (value != model.array(n))[value != 0].any()}
    then, other = model.flat.flat_names[1:]
    assert {then["w1"], then["w2"]} <= taken
    assert not taken & set(other.values()) - set(then.values())
    verdict = onnxprune.verify(model, onnxprune.apply(analysis, plan, recover=tuned), plan=plan, data=samples)
    verdict.raise_if_failed()


def test_a_model_without_weights_to_tune_is_refused() -> None:
    """Numbers this large are taken for a mask."""
    model = model_of(
        "g (float[n, 6] x) => (float[n, 5] y) { a = MatMul (x, w1)  h = Relu (a)  y = MatMul (h, w2) }",
        w1=draw(6, 8) * 1e5,
        w2=draw(8, 5) * 1e5,
    )
    samples = feeds((1, 6), 8)
    plan = onnxprune.plan(model, ratio=0.4, data=samples)
    with pytest.raises(ModelError, match="no weight to tune"):
        onnxprune.repair(model, plan, samples, how="distill")


def test_an_operator_without_a_counterpart_is_named() -> None:
    text = """g (float[n, 6] x) => (float[n, 4] y)
    { a = MatMul (x, w1)  q, s, z = DynamicQuantizeLinear (a)  h = DequantizeLinear (q, s, z)  y = MatMul (h, w2) }"""
    model, samples = model_of(text, w1=draw(6, 12), w2=draw(12, 4)), feeds((1, 6), 8)
    plan = onnxprune.plan(model, ratio=0.5)
    assert not plan.empty
    with pytest.raises(ModelError, match=r"DequantizeLinear.*--recover lstsq"):
        onnxprune.repair(model, plan, samples, how="distill")


def test_the_command_line_tells_what_tuning_did(tmp_path: Path) -> None:
    source, out, data = tmp_path / "m.onnx", tmp_path / "out.onnx", tmp_path / "d.npz"
    save(mlp(), source)
    np.savez(data, x=np.concatenate([f["x"] for f in feeds((1, 6), 24)]))
    call = ["prune", str(source), "-o", str(out), "--ratio", "0.4", "--data", str(data), "--threads", "1"]
    result = CliRunner().invoke(main, [*call, "--recover", "distill", "--distill-steps", "30", "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.output)
    tuning = document["recovery"]["tuning"]
    assert document["recovery"]["recover"] == "distill"
    assert tuning["steps"] <= 30
    assert tuning["error_after"] < tuning["error_before"]
    assert document["verification"]["ok"]
    wrong = CliRunner().invoke(main, [*call, "--distill-steps", "30"])
    assert wrong.exit_code == 2
    assert "--recover distill" in wrong.output
