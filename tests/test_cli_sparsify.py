"""`onnxprune sparsify`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from tests.test_cli import document, fails, here, ok, output_of, process, run

__all__ = ["here"]


def arrays(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_writes_zeros_and_keeps_every_shape():
    found = document("sparsify", "m.onnx", "-o", "out.onnx", "--sparsity", "0.5")
    before, after = arrays("m.onnx"), arrays("out.onnx")
    assert {n: a.shape for n, a in before.items()} == {n: a.shape for n, a in after.items()}
    rows = {row["name"]: row for row in found["layers"]}
    assert set(rows) == {"a.weight", "b.weight", "c.weight"}
    for name, row in rows.items():
        assert np.count_nonzero(after[name] == 0) == row["zeros"] == round(0.5 * before[name].size)
        assert row["sparsity"] == row["pruned"] == 0.5
    total = found["total"]
    assert (total["layers"], total["size"], total["zeros"]) == (3, 1140, 570)
    assert found["output"] == "out.onnx"
    assert found["verification"]["ok"]
    assert found["verification"]["same_as_dense"]
    x = np.random.default_rng(1).normal(size=(2, 3, 10, 11)).astype(np.float32)
    assert np.abs(output_of("out.onnx", x) - output_of("m.onnx", x)).max() > 1e-2


def test_for_people():
    text = ok("sparsify", "m.onnx", "-o", "out.onnx", "--pattern", "2:4")
    for part in (
        "a.weight",
        "8x3x3x3",
        "2:4",
        "50.0 %",
        "dense",
        "the same as zeros in place",
        "verified",
        "wrote out",
    ):
        assert part in text


def test_dry_run_and_masks():
    ok("sparsify", "m.onnx", "--dry-run", "--sparsity", "0.25", "--save-masks", "masks.npz")
    assert sorted(p.name for p in Path().iterdir()) == ["m.onnx", "masks.npz"]
    with np.load("masks.npz") as masks:
        assert {n: np.count_nonzero(~masks[n]) for n in masks.files} == {
            "a.weight": 54,
            "b.weight": 216,
            "c.weight": 15,
        }
    found = document("sparsify", "m.onnx", "-o", "out.onnx", "--masks", "masks.npz", "--sparsity", "0.5")
    assert found["total"]["zeros"] == 570


@pytest.mark.parametrize("store", ["packed", "sparse", "mask"])
def test_stores(store):
    common = ("--pattern", "4x1", "--sparsity", "0.9", "--include", "b")
    ok("sparsify", "m.onnx", "-o", "dense.onnx", *common)
    found = document("sparsify", "m.onnx", "-o", "out.onnx", "--store", store, *common)
    (row,) = found["layers"]
    # What the table of a store costs may exceed what one small weight saves; then it stays dense, and says why.
    assert row["stored"] == store or row["note"]
    x = np.random.default_rng(1).normal(size=(2, 3, 10, 11)).astype(np.float32)
    np.testing.assert_array_equal(output_of("out.onnx", x), output_of("dense.onnx", x))


def test_two_runs_give_the_same_bytes():
    for name in ("one.onnx", "two.onnx"):
        ok("sparsify", "m.onnx", "-o", name, "--pattern", "1x4", "--scope", "global", "--max-ratio", "0.7")
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_recipe_with_settings_by_layer():
    Path("recipe.toml").write_text(
        """
        pattern = "2:4"
        keep-zeros = true
        [layers."c*"]
        pattern = "unstructured"
        sparsity = 0.75
        [layers."a.weight"]
        skip = true
        """
    )
    found = document("sparsify", "m.onnx", "-o", "out.onnx", "--config", "recipe.toml")
    assert {row["name"]: (row["pattern"], row["sparsity"]) for row in found["layers"]} == {
        "b.weight": ("2:4", 0.5),
        "c.weight": ("unstructured", 0.75),
    }
    assert [(row["name"], row["reason"]) for row in found["left"]] == [("a.weight", "excluded")]
    # On the command line the same, one setting at a time; a later one wins.
    given = ["--layers", "c*:sparsity=0.5", "--layers", "c*:sparsity=0.25", "--layers", "a*:pattern=1:4"]
    found = document("sparsify", "m.onnx", "-o", "out.onnx", *given)
    assert {row["name"]: (row["pattern"], row["asked"]) for row in found["layers"]} == {
        "a.weight": ("1:4", 0.75),
        "b.weight": ("unstructured", 0.5),
        "c.weight": ("unstructured", 0.25),
    }


def test_data_weighs_and_repairs():
    np.savez("samples.npz", x=np.random.default_rng(0).normal(size=(12, 3, 10, 11)).astype(np.float32))
    for criterion in ("wanda", "sparsegpt"):
        found = document("sparsify", "m.onnx", "-o", "out.onnx", "--criterion", criterion, "--data", "samples.npz")
        assert {row["criterion"] for row in found["layers"]} == {criterion}
        assert found["verification"]["data"] == "samples.npz"


def test_eligibility():
    rows = {r["name"]: r for r in json.loads(ok("sparsify", "m.onnx", "--eligibility", "--json"))["eligibility"]}
    assert rows["b.weight"]["tensorrt"] is None
    assert "multiple of 4" in rows["a.weight"]["tensorrt"]
    assert rows["b.weight"]["two_four"] == 0
    text = ok("sparsify", "m.onnx", "--eligibility")
    assert "tensorrt" in text
    assert "openvino unpacks sparse weights" in text
    assert [p.name for p in Path().iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "-o OUT"),
        (["-o", "out.onnx", "--sparsity", "1.5"], "from 0 to 1"),
        (["-o", "out.onnx", "--sparsity", "nan"], "from 0 to 1"),
        (["-o", "out.onnx", "--pattern", "4:2"], "4:2 keeps 4 of every 2"),
        (["-o", "out.onnx", "--pattern", "2:4", "--sparsity", "0.7"], "at most 0.5"),
        (["-o", "out.onnx", "--pattern", "2by4"], "unknown mask pattern '2by4'"),
        (["-o", "out.onnx", "--min-ratio", "0.7"], "min_ratio 0.7 is above"),
        (["-o", "out.onnx", "--layers", "z*:sparsity=0.1"], "unknown layer 'z*'"),
        (["-o", "out.onnx", "--layers", "a*:sparcity=0.1"], "Did you mean 'sparsity'"),
        (["-o", "out.onnx", "--layers", "a*"], "GLOB:KEY=VALUE"),
        (["-o", "out.onnx", "--include", "a.wieght"], "Did you mean 'a.weight'"),
        (["-o", "out.onnx", "--store", "zip"], "unknown store 'zip'"),
        (["-o", "out.onnx", "--scope", "all"], "unknown scope 'all'"),
        (["-o", "out.onnx", "--criterion", "wanda"], "needs samples"),
        (["-o", "out.onnx", "--zeros-per-block", "2"], None),
        (["-o", "out.onnx", "--pattern", "2:4", "--zeros-per-block", "2"], "belongs to block patterns"),
        (["-o", "m.onnx"], "overwrite"),
        (["-o", "out.onnx", "--save-masks", "out.onnx"], "is the file of"),
    ],
)
def test_refused_before_anything_is_written(options, says):
    if says is None:
        says = "zeros_per_block"
    fails(2, "sparsify", "m.onnx", *options, says=(says,))


def test_weights_that_are_not_finite():
    proto = onnx.load("m.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "c.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, "c.weight"))
    onnx.save(proto, "nan.onnx")
    fails(3, "sparsify", "nan.onnx", "-o", "out.onnx", says=("'c.weight'", "1 values", "--allow-nonfinite"))
    ok("sparsify", "nan.onnx", "-o", "out.onnx", "--allow-nonfinite")


def test_what_does_not_hold_is_exit_code_1():
    fails(1, "sparsify", "m.onnx", "-o", "out.onnx", "--exclude", "*", says=("no weight",))
    fails(1, "sparsify", "m.onnx", "-o", "out.onnx", "--scope", "global", "--max-ratio", "0.2", says=("at most 0.2",))


def test_a_failed_verification_writes_nothing(monkeypatch):
    from onnxprune.sparsity import proof

    def wrong(source, _):
        return onnxprune.load(source.proto)

    monkeypatch.setattr(proof, "in_place", wrong)
    result = run("sparsify", "m.onnx", "-o", "out.onnx", "--json")
    assert result.exit_code == 1
    assert "do not compute what they stand for" in result.stderr
    assert json.loads(result.stdout)["output"] is None
    assert not Path("out.onnx").exists()


def test_external_data():
    ok("sparsify", "m.onnx", "-o", "out.onnx", "--external-data")
    assert Path("out.onnx.data").exists()
    found = document("sparsify", "out.onnx", "-o", "again.onnx", "--sparsity", "0.75", "--store", "packed")
    assert found["total"]["zeros"] == 855
    x = np.random.default_rng(1).normal(size=(2, 3, 10, 11)).astype(np.float32)
    assert np.isfinite(output_of("again.onnx", x)).all()


def test_one_document_and_a_silent_stderr():
    result = process("-m", "onnxprune", "sparsify", "m.onnx", "-o", "out.onnx", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["command"] == "sparsify"
    assert result.stderr == ""
