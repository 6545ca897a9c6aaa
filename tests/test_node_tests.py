"""Pruning around the node tests of the `onnx` package gives what the masked twin gives."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.rules import coverage

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/node_tests.py"
# Families that differ in what they do with axes; element-wise operators are all alike.
MODULES = (
    "argmax", "batch_normalization", "clip", "concat", "conv", "convtranspose", "depthtospace", "expand", "gather",
    "gemm", "groupnormalization", "layernormalization", "matmul", "maxpool", "pad", "prelu", "reducesum", "reshape",
    "resize", "slice", "softmax", "split", "squeeze", "tile", "topk", "transpose", "unsqueeze", "where",
)  # fmt: skip
VARIANTS = 3
CASES_PER_OPERATOR = 2


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("node_tests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def present(modules):
    """The modules that the installed version of onnx has."""
    folder = "onnx.backend.test.case.node"
    return [name for name in modules if importlib.util.find_spec(f"{folder}.{name}") is not None]


def test_a_few_cases_of_each_family(benchmark):
    taken = Counter()
    results = []
    for case in benchmark.node_cases(present(MODULES)):
        taken[case.op] += 1
        if taken[case.op] <= CASES_PER_OPERATOR:
            results.append(benchmark.examine(case, VARIANTS))
    outcomes = Counter(r.outcome for r in results)
    assert [f"{r.case}: {r.detail}" for r in results if r.outcome == "WRONG"] == []
    assert outcomes["pruned"] > len(results) / 2, outcomes


def relu_case(benchmark, op="Relu"):
    def info(name):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (3, 5))

    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "case", [info("x")], [info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    return benchmark.Case("case", op, model.SerializeToString(), [data])


def test_a_case_is_pruned_along_both_axes(benchmark):
    result = benchmark.examine(relu_case(benchmark))
    assert (result.outcome, result.exact, result.inexact) == ("pruned", 3, 0)


def test_a_rule_that_says_something_false_is_noticed(benchmark, monkeypatch):
    def forgets_the_sum(op):
        op.broadcast(slots=[0])

    monkeypatch.setitem(benchmark.op_rules._entries, "Softmax", forgets_the_sum)
    result = benchmark.examine(relu_case(benchmark, "Softmax"))
    assert result.outcome == "WRONG"
    assert result.detail.startswith("masked twin: output")


def test_a_rule_that_fails_is_noticed(benchmark, monkeypatch):
    monkeypatch.setitem(benchmark.op_rules._entries, "Relu", lambda op: op.x()[7])
    result = benchmark.examine(relu_case(benchmark))
    assert result.outcome == "WRONG"
    assert result.detail.startswith("RuleDefect: the rule for 'Relu' fails")


def test_the_table_counts_outcomes_and_tells_how_to_reproduce(benchmark):
    results = [
        benchmark.Result("a", "Relu", "pruned", exact=3),
        benchmark.Result("b", "Relu", "frozen", "why"),
        benchmark.Result("c", "Conv", "WRONG", "differs"),
    ]
    text = "\n".join(benchmark.table(results))
    assert "3 cases of 2 operators: 1 pruned, 1 frozen, 0 not run, 1 wrong; 3 twins compared" in text
    assert "WRONG Conv c: differs" in text
    assert "--case c" in text


def test_figures_are_counts_per_operator(benchmark):
    results = [
        benchmark.Result("a", "Relu", "pruned", exact=3),
        benchmark.Result("b", "Relu", "not run", "why"),
        benchmark.Result("c", "Conv", "frozen", "why", exact=2),
    ]
    figures = json.loads(benchmark.figures(results, "onnx 1"))
    assert figures["operators"] == {"Conv": [0, 1, 0, 0], "Relu": [1, 0, 1, 0]}
    assert figures["twins"] == 5
    assert figures["versions"] == "onnx 1"


def test_a_case_without_a_kernel_runs_under_an_older_operator_set(benchmark):
    case = relu_case(benchmark)
    model = onnx.load_model_from_string(case.model)
    model.opset_import[0].version = benchmark.NEWEST_OPSET + 9
    newer = benchmark.Case("case", "Relu", model.SerializeToString(), case.data)
    with pytest.raises(Exception, match="opset"):
        benchmark.open_model(model)
    assert benchmark.examine(newer).outcome == "pruned"


def test_stored_figures_are_right_everywhere_and_on_the_page(benchmark):
    figures = json.loads(coverage.FIGURES.read_text(encoding="utf-8"))
    wrong = figures["outcomes"].index("WRONG")
    assert {name: row for name, row in figures["operators"].items() if row[wrong]} == {}
    page = coverage.page()
    for name, row in figures["operators"].items():
        if name in benchmark.op_rules:
            assert f"| `{name}` | {sum(row)} |" in page


def test_the_page_does_without_figures(tmp_path):
    assert "## Node tests" not in coverage.page(tmp_path / "none.json")


@pytest.mark.slow
def test_every_case(benchmark):
    results = [benchmark.examine(case) for case in benchmark.node_cases()]
    assert [f"{r.case}: {r.detail}" for r in results if r.outcome == "WRONG"] == []
    assert sum(r.outcome == "pruned" for r in results) > len(results) / 2
