"""The benchmark runs on a tiny model and says what it measured."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/core_models.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("core_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def two_layers() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 18]>
    tiny (float[3, 5] x) => (float[3, 7] y)
    {
        a = MatMul (x, first)
        b = MatMul (x, second)
        c = Relu (a)
        d = Add (c, b)
        y = MatMul (d, last)
    }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("first", (5, 20)), ("second", (5, 20)), ("last", (20, 7))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


@pytest.fixture
def folder(tmp_path):
    onnx.save(two_layers(), tmp_path / "tiny.onnx")
    (tmp_path / "baseline.csv").write_text("name,torch_pruning_kept\ntiny,0.5\nother,\n", encoding="utf-8")
    return tmp_path


def test_every_part_gives_its_figures(benchmark, folder, capsys):
    assert benchmark.main([str(folder), "--baseline", str(folder / "baseline.csv"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["onnxprune"]
    (row,) = document["models"]
    assert not [key for key in row if key.startswith(("error_", "failed"))]
    assert {"model", *(name for columns in benchmark.COLUMNS.values() for name in columns)} <= set(row)
    assert (row["nodes"], row["groups"]) == (5, 1)
    assert row["kept"] == row["kept_exact"] == 0.5
    assert (row["peer"], row["good"], row["exit"], row["exit_exact"]) == (0.5, True, 0, 0)
    assert 0 <= row["twin_error"] < 1e-5
    assert row["params_e"] == row["macs_i"] == 0.5
    assert row["params_e8"] == pytest.approx(0.4)
    assert row["empty"] is row["order"] is True
    assert document["summary"]["good"] == "1/1"


def test_table_has_the_parts_asked_for(benchmark, folder, capsys):
    names = folder / "names.txt"
    names.write_text("tiny\n", encoding="utf-8")
    assert benchmark.main([str(folder), "--names", str(names), "--only", "empty", "--only", "analysis"]) == 0
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("model"))
    assert head.split() == ["model", "nodes", "seconds", "s_per_1k", "groups", "locked", "empty"]
    row = next(line for line in text.splitlines() if line.startswith("tiny"))
    assert row.split()[-1] == "yes"


def test_a_missing_model_is_said(benchmark, folder):
    (folder / "names.txt").write_text("tiny absent", encoding="utf-8")
    with pytest.raises(SystemExit, match="absent"):
        benchmark.main([str(folder), "--names", str(folder / "names.txt")])


def test_an_error_in_one_part_does_not_end_the_others(benchmark, folder, capsys):
    (folder / "broken.onnx").write_bytes(b"\x08")
    assert benchmark.main([str(folder), "--only", "analysis", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert "ModelError" in rows["broken"]["error_analysis"]
    assert rows["tiny"]["groups"] == 1


def test_shuffling_keeps_every_node_and_its_inputs_first(benchmark):
    graph = two_layers().graph
    orders = set()
    for seed in range(20):
        nodes = list(benchmark.shuffled(graph, random.Random(seed)))  # noqa: S311  no secret
        written = {"x", "first", "second", "last"}
        for node in nodes:
            assert set(node.input) <= written
            written.update(node.output)
        assert len(nodes) == len(graph.node)
        orders.add(tuple(node.output[0] for node in nodes))
    assert len(orders) > 1


@pytest.mark.slow
def test_cost_against_size_is_measured(tmp_path):
    command = [sys.executable, str(SCRIPT.with_name("sizes.py")), "--folder", str(tmp_path)]
    paths = os.pathsep.join([str(SCRIPT.parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [*command, "--nodes", "100", "--bytes", "1e7"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    heads = [line.split() for line in done.stdout.splitlines()]
    assert ["nodes", "groups", "cpu", "s", "per", "1,000"] in heads
    (nodes, *_), (size, largest, peak, anonymous, *_) = (
        [float(value) for value in row] for row in heads if row and row[0].replace(".", "").isdecimal()
    )
    assert nodes == 129
    assert size == pytest.approx(0.01, abs=0.01)
    assert 0 < anonymous < peak
    assert 0 < largest < size
    assert not list(tmp_path.iterdir())
