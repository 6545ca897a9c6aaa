"""`onnxprune compact`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import onnxprune
from onnxprune.cli import main
from onnxprune.planfile import Plan
from tests.compact.networks import Network, input_for
from tests.compact.test_planted import dying_relu
from tests.test_properties import run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compact", *map(str, arguments)])


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Give a network with dead channels: one zero, one constant, and two behind a padding."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Relu")
    net.conv("b", 8, 6)
    net.op("Sigmoid")
    net.conv("c", 6, 4, pad=1)
    net.weights["a.bias"][[1, 4]] = [-1.0, 2.0]
    net.weights["b.bias"][[0, 3]] = [0.0, 2.0]
    net.mask_rows("a", [1, 4], prune_bias=False)
    net.mask_rows("b", [0, 3], prune_bias=False)
    onnxprune.save(net.model(), tmp_path / "masked.onnx")
    return tmp_path / "masked.onnx"


def test_a_masked_model_gets_smaller_and_computes_the_same(masked: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    result = call(masked, "-o", out, "--save-plan", plan, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["command"] == "compact"
    assert document["removed"] == 3
    assert [g["removed"] for g in document["groups"]] == [{"zero": [1], "constant": [4]}, {"constant": [0]}]
    assert [len(g["kept"]) for g in document["groups"]] == [0, 1]
    assert document["verification"]["ok"]
    assert document["params"]["after"] < document["params"]["before"]
    saved = Plan.load(plan)
    assert saved.sha256 == document["plan"]["sha256"]
    assert {g.id: g.removed for g in saved.groups} == {"a": (1, 4), "b": (0,)}
    feeds = input_for(onnxprune.load(masked))
    (expected,), (found,) = run(onnx.load(masked), feeds), run(onnx.load(out), feeds)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.ptp(expected)))


def test_the_tables_say_what_went_and_why_the_rest_stayed(masked: Path, tmp_path: Path) -> None:
    result = call(masked, "-o", tmp_path / "out.onnx", "--quiet")
    assert result.exit_code == 0, result.output
    for text in ("zero everywhere", "folded into biases", "kept: b[3]", "same outputs", "verified", "parameters"):
        assert text in result.stdout


def test_nothing_dead_is_said_and_copied(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parent.parent / "samples/digits_cnn.onnx"
    result = call(source, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0
    assert "nothing is dead" in result.stdout
    assert "as it was" in result.stdout
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_data_lists_and_assume_data_removes(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnxprune.save(dying_relu().model(), model)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32))
    result = call(model, "-o", tmp_path / "a.onnx", "--data", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    assert "2 more units; --assume-data removes them" in result.stdout
    assert (tmp_path / "a.onnx").read_bytes() == model.read_bytes()
    result = call(model, "-o", tmp_path / "b.onnx", "--data", tmp_path / "x.npz", "--assume-data", "--json")
    assert json.loads(result.stdout)["removed"] == 2


def test_a_dry_run_writes_nothing(masked: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = call(masked, "--dry-run")
    assert result.exit_code == 0
    assert "wrote no model" in result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_a_result_that_differs_is_not_written(masked: Path, tmp_path: Path) -> None:
    """No sum in another order is equal to the last bit."""
    result = call(masked, "-o", tmp_path / "out.onnx", "--rtol", "0")
    assert result.exit_code == 1
    assert "same outputs" in result.output
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "say where to write"),
        (["-o", "masked.onnx"], 2, "overwrite"),
        (["-o", "out.onnx", "--assume-data"], 2, "needs data"),
        (["-o", "out.onnx", "--include", "nowhere*"], 2, "nowhere"),
        (["-o", "out.onnx", "--kinds", "chanels"], 2, "channels"),
        (["-o", "out.onnx", "--data", "missing.npz"], 3, "missing.npz"),
    ],
)
def test_what_cannot_be_done_is_refused(
    masked: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(masked.parent)
    result = call(masked.name, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not Path("out.onnx").exists()


def test_weights_in_a_data_file(masked: Path, tmp_path: Path) -> None:
    result = call(masked, "-o", tmp_path / "out.onnx", "--external-data")
    assert result.exit_code == 0, result.output
    again = call(tmp_path / "out.onnx", "-o", tmp_path / "again.onnx", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["removed"] == 0
