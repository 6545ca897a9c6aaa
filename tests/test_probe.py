"""The numeric probe: what it finds of known operators equals what their rules say, and traps are frozen."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
import onnxprune.rules  # registers the built-in rules
from onnxprune.axes import probe
from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.collect import op_rules
from onnxprune.axes.relations import Contract, Freeze, Tie
from onnxprune.axes.trials import Facts, Question, Spot, Tensor, establish, subsets
from onnxprune.graph.model import Model
from tests.test_engine import model_of, node

MS = "com.microsoft"
LOCAL = "test.local"


@contextlib.contextmanager
def forgotten(*names: str) -> Iterator[None]:
    """Take rules out of the registry for a while."""
    kept = {name: op_rules._entries.pop(name) for name in names}
    try:
        yield
    finally:
        op_rules._entries.update(kept)


def features(middle: Sequence[onnx.NodeProto], weights: dict[str, tuple[int, ...]] | None = None, **more: Any) -> Model:
    """Put nodes from `h` (2, 6, 14) to `t`, as large, between two products."""
    nodes = [node("MatMul", "x wa", "h"), *middle, node("MatMul", "t wb", "y")]
    model = model_of(nodes, {"wa": (5, 14), "wb": (14, 3), **(weights or {})}, (2, 6, 5), (2, 6, 3), 20, **more)
    model.proto.opset_import.add(domain=MS, version=1)
    return model


def channels(middle: Sequence[onnx.NodeProto], weights: dict[str, tuple[int, ...]] | None = None) -> Model:
    """Put nodes from `h` (2, 14, 6, 7) to `t`, as large, between two convolutions of kernel one."""
    nodes = [node("Conv", "x wa", "h"), *middle, node("Conv", "t wb", "y")]
    size = {"wa": (14, 5, 1, 1), "wb": (3, 14, 1, 1), **(weights or {})}
    return model_of(nodes, size, (2, 5, 6, 7), (2, 3, 6, 7), 20)


def units(analysis: Analysis) -> list[tuple[int, bool, set[tuple[str, int]]]]:
    rows = [(g.size, g.exact, {(m.initializer, m.axis) for m in g.members}) for g in analysis.groups]
    return sorted(rows, key=lambda row: (row[0], sorted(row[2])))


def prunes(model: Model, analysis: Analysis) -> None:
    """Prune at one half and compare with the masked twin in onnxruntime."""
    plan = onnxprune.plan(analysis, ratio=0.5)
    assert not plan.empty
    rng = np.random.default_rng(2)
    shape = [d.dim_value or 4 for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    verdict = onnxprune.verify(model, onnxprune.apply(analysis, plan), plan=plan, data=feeds)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact, verdict.exact_reason


SAME = {
    "Gelu": (("Gelu",), features([node("Gelu", "h", "t")])),
    "Sigmoid": (("Sigmoid",), features([node("Sigmoid", "h", "t")])),
    "Sqrt": (("Sqrt",), features([node("Abs", "h", "p"), node("Sqrt", "p", "t")])),
    "Log": (("Log",), features([node("Sigmoid", "h", "p"), node("Log", "p", "t")])),
    "Add": (("Add",), features([node("Add", "h b", "t")], {"b": (14,)})),
    "Mul of two": (("Mul",), features([node("Sigmoid", "h", "s"), node("Mul", "h s", "t")])),
    "Mul of one": (("Mul",), features([node("Mul", "h h", "t")])),
    "CumSum beside": (("CumSum",), features([node("CumSum", "h at", "t")], at=[1])),
    "CumSum along": (("CumSum",), features([node("CumSum", "h at", "t")], at=[2])),
    "MatMul": (
        ("MatMul",),
        features(
            [node("MatMul", "h u", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "t")],
            {"u": (14, 9), "v": (9, 14)},
        ),
    ),
    "Gemm": (
        ("Gemm",),
        model_of(
            [node("Gemm", "x u a", "p", transB=1), node("Relu", "p", "q"), node("Gemm", "q v b", "y")],
            {"u": (14, 5), "a": (14,), "v": (14, 3), "b": (3,)},
            (2, 5),
            (2, 3),
        ),
    ),
    "Einsum": (
        ("Einsum",),
        model_of(
            [
                node("Einsum", "x u", "p", equation="btd,edh->beth"),
                node("Relu", "p", "q"),
                node("Einsum", "q v", "y", equation="beth,ehd->btd"),
            ],
            {"u": (4, 5, 9), "v": (4, 9, 5)},
            (2, 6, 5),
            (2, 6, 5),
        ),
    ),
    "BatchNormalization": (
        ("BatchNormalization",),
        channels([node("BatchNormalization", "h g b m v", "t")], dict.fromkeys("gbmv", (14,))),
    ),
    "InstanceNormalization": (
        ("InstanceNormalization",),
        channels([node("InstanceNormalization", "h g b", "t")], dict.fromkeys("gb", (14,))),
    ),
    "PRelu": (("PRelu",), channels([node("PRelu", "h s", "t")], {"s": (14, 1, 1)})),
    "GlobalAveragePool": (
        ("GlobalAveragePool",),
        channels([node("GlobalAveragePool", "h", "p"), node("Mul", "h p", "t")]),
    ),
    "Conv": (
        ("Conv",),
        channels(
            [node("Conv", "h u a", "p", pads=[1] * 4), node("Relu", "p", "q"), node("Conv", "q v", "t")],
            {"u": (9, 14, 3, 3), "a": (9,), "v": (14, 9, 1, 1)},
        ),
    ),
    "BiasGelu": ((f"{MS}::BiasGelu",), features([node("BiasGelu", "h b", "t", domain=MS)], {"b": (14,)})),
    "FusedMatMul": (
        (f"{MS}::FusedMatMul",),
        features(
            [
                node("FusedMatMul", "h u", "p", domain=MS, alpha=0.3, transB=1),
                node("Relu", "p", "q"),
                node("MatMul", "q v", "t"),
            ],
            {"u": (9, 14), "v": (9, 14)},
        ),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_elementwise_operators_and_sums_are_found_as_their_rules_say(name: str) -> None:
    missing, model = SAME[name]
    ruled = analyze_model(model)
    with forgotten(*missing):
        tried = analyze_model(model)
        assert set(tried.collection.without_rule) == set(missing)
        assert tried.collection.probed
        assert units(tried) == units(ruled)
        assert tried.cost == ruled.cost
        if tried.groups:
            prunes(model, tried)


FEWER = {
    "Softmax": (("Softmax",), features([node("Softmax", "h", "t")])),
    "LayerNormalization": (
        ("LayerNormalization",),
        features([node("LayerNormalization", "h g b", "t")], dict.fromkeys("gb", (14,))),
    ),
    "Reshape": (
        ("Reshape",),
        features(
            [node("Reshape", "h s", "p"), node("Relu", "p", "q"), node("Reshape", "q u", "t")],
            s=[2, 6, 2, 7],
            u=[2, 6, 14],
        ),
    ),
    "Concat": (
        ("Concat",),
        features(
            [node("MatMul", "x wc", "g"), node("Concat", "h g", "c", axis=2), node("MatMul", "c wd", "t")],
            {"wc": (5, 8), "wd": (22, 14)},
        ),
    ),
    "depthwise Conv": (("Conv",), channels([node("Conv", "h u", "t", pads=[1] * 4, group=14)], {"u": (14, 1, 3, 3)})),
    "Transpose": (
        ("Transpose",),
        features([node("Transpose", "h", "p", perm=[0, 2, 1]), node("Transpose", "p", "t", perm=[0, 2, 1])]),
    ),
    "Split": (
        ("Split",),
        features([node("Split", "h parts", "p q", axis=2), node("Concat", "q p", "t", axis=2)], parts=[9, 5]),
    ),
    "ReduceMean": (("ReduceMean",), features([node("ReduceMean", "h at", "m"), node("Mul", "h m", "t")], at=[2])),
    "ReduceMax": (("ReduceMax",), features([node("ReduceMax", "h at", "m"), node("Mul", "h m", "t")], at=[1])),
}  # fmt: skip


@pytest.mark.parametrize("name", FEWER)
def test_nothing_is_found_that_the_rule_does_not_allow(name: str) -> None:
    missing, model = FEWER[name]
    allowed = {(m.initializer, m.axis): m.unit for g in analyze_model(model).groups for m in g.members}
    with forgotten(*missing):
        tried = analyze_model(model)
        for group in tried.groups:
            for m in group.members:
                ruled = allowed[m.initializer, m.axis]
                pairs = set(zip(m.unit[m.unit >= 0].tolist(), ruled[m.unit >= 0].tolist(), strict=True))
                assert len({b for _, b in pairs}) == len(pairs), "a unit of the trial is part of one of the rule"
        if any(g.exact for g in tried.groups):
            prunes(model, tried)


def test_a_transposition_is_followed() -> None:
    missing, model = FEWER["Transpose"]
    ruled = units(analyze_model(model))
    with forgotten(*missing):
        assert units(analyze_model(model)) == ruled


# --- traps: functions of the model that stay closed, as their operator set is another ---


def constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], f"n_{name}", value=numpy_helper.from_array(np.asarray(value), name))


def closed(
    body: Sequence[onnx.NodeProto], n_inputs: int = 1, weights: dict[str, tuple[int, ...]] | None = None
) -> Model:
    """Put a call of a function that analysis cannot look into between two products."""
    names = " ".join(["h", *(weights or {})])
    proto = features([node("Own", names, "t", domain=LOCAL)], weights).proto
    proto.opset_import.add(domain=LOCAL, version=1)
    proto.graph.value_info.append(helper.make_tensor_value_info("t", T.FLOAT, [2, 6, 14]))
    inputs = [f"a{k}" for k in range(n_inputs)]
    proto.functions.append(helper.make_function(LOCAL, "Own", inputs, ["z"], list(body), [helper.make_opsetid("", 19)]))
    return Model(proto)


SIZE = [node("Shape", "a0", "s"), constant("two", np.int64(2)), node("Gather", "s two", "n")]
TRAPS = {
    "counts positions": (
        [*SIZE, constant("o", np.int64(0)), constant("i", np.int64(1)), node("Range", "o n i", "r"),
         node("Cast", "r", "f", to=1), node("Add", "a0 f", "z")],
        "other numbers for the rest",
    ),
    "reads its size": ([*SIZE, node("Cast", "n", "f", to=1), node("Div", "a0 f", "z")], "other numbers for the rest"),
    "has a size inside": (
        [constant("v", np.arange(1, 15, dtype=np.float32)), node("Mul", "a0 v", "z")],
        "does not run it",
    ),
    "takes even sizes": (
        [constant("u", [0, 0, -1, 2]), node("Reshape", "a0 u", "p"), node("Relu", "p", "q"),
         constant("v", [0, 0, -1]), node("Reshape", "q v", "z")],
        "does not run it",
    ),
    "takes a statistic": (
        [constant("at", [2]), node("ReduceSum", "a0 at", "m"), node("Add", "a0 m", "z")],
        "other indices move with it",
    ),
    "reverses": (
        [constant("b", [-1]), constant("e", [-99]), constant("at", [2]), node("Slice", "a0 b e at b", "z")],
        "other indices move with it",
    ),
    "compares": (
        [constant("one", [1]), node("TopK", "a0 one", "m w"), node("Equal", "a0 m", "q"),
         node("Cast", "q", "f", to=1), node("Mul", "a0 f", "z")],
        "other indices move with it",
    ),
    "draws": ([node("RandomNormalLike", "a0", "r"), node("Add", "a0 r", "z")], "different outputs for the same inputs"),
    "gives nothing finite": ([node("Sub", "a0 a0", "o"), node("Div", "o o", "z")], "no finite numbers"),
    "always gives the same": ([node("Sub", "a0 a0", "z")], "no output moves with it"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_traps_are_frozen_with_what_was_seen(name: str) -> None:
    body, seen = TRAPS[name]
    analysis = analyze_model(closed(body))
    assert not analysis.groups
    (row,) = [row for row in analysis.locked if (row.initializer, row.axis) == ("wa", 1)]
    assert row.reason.startswith(f"no rule for '{LOCAL}::Own'"), row.reason
    assert seen in row.reason


def test_a_closed_function_that_works_element_by_element_prunes() -> None:
    model = closed([node("Relu", "a0", "r"), node("Exp", "r", "e"), node("Mul", "e a0", "z")])
    analysis = analyze_model(model)
    assert units(analysis) == [(14, True, {("wa", 1), ("wb", 0)})]
    prunes(model, analysis)


def test_a_closed_product_with_equal_sizes_is_not_mixed_up() -> None:
    model = closed([node("MatMul", "a0 a1", "p"), node("Relu", "p", "z")], 1 + 1, {"u": (14, 14)})
    analysis = analyze_model(model)
    # A Relu after the sum: what is cut away adds nothing, as in a plain product.
    assert [(g.size, {(m.initializer, m.axis) for m in g.members}) for g in analysis.groups] == [
        (14, {("wa", 1), ("u", 0)}),
        (14, {("u", 1), ("wb", 0)}),
    ]
    prunes(model, analysis)


def test_zeros_that_do_not_stay_zero_make_a_later_product_inexact() -> None:
    """`Cos` moves zero, so a sum over two computed values changes; with `Sin` it does not."""
    for op, exact in (("Cos", False), ("Sin", True)):
        nodes = [
            node("MatMul", "x wa", "a"), node(op, "a", "s"), node("MatMul", "x wb", "b"), node("Cos", "b", "c"),
            node("Transpose", "c", "d", perm=[1, 0]), node("MatMul", "s d", "y"),
        ]  # fmt: skip
        model = model_of(nodes, {"wa": (5, 8), "wb": (5, 8)}, (4, 5), (4, 4))
        with forgotten("Sin", "Cos"):
            (group,) = analyze_model(model).groups
        assert (group.size, group.exact) == (8, exact)


def test_contrib_operators_without_a_rule_or_a_declared_shape() -> None:
    """The output of each is measured before what lies behind it can be tried."""
    nodes = [node("TransposeMatMul", "h u", "p", domain=MS, transB=1), node("ScaledSiLU", "p", "t", domain=MS)]
    model = features(nodes, {"u": (14, 14)})
    analysis = analyze_model(model)
    assert set(analysis.collection.probed) == {1, 2}
    assert units(analysis) == [(14, True, {("u", 0), ("wb", 0)}), (14, True, {("wa", 1), ("u", 1)})]
    prunes(model, analysis)


def test_outputs_of_dynamic_models_are_not_measured() -> None:
    """One size of a dynamic axis shows nothing of the others."""
    proto = features([node("ScaledSiLU", "h", "t", domain=MS)]).proto
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    analysis = analyze_model(Model(proto))
    assert not analysis.groups
    assert any("not tried, the shape of 't' is unknown" in row.reason for row in analysis.locked)
    value = helper.make_tensor_value_info("t", T.FLOAT, [2, "n", 14])
    proto.graph.value_info.append(value)
    analysis = analyze_model(Model(proto))
    assert units(analysis) == [(14, True, {("wa", 1), ("wb", 0)})]
    prunes(Model(proto), analysis)


# --- what the probe costs and says ---


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = closed([node("Relu", "a0", "z")])
    assert onnxprune.analyze(model).groups
    off = onnxprune.analyze(model, probe=False)
    assert not off.groups
    assert not off.collection.probed
    monkeypatch.setenv("ONNXPRUNE_PROBE", "off")
    assert not onnxprune.analyze(model).groups


def test_it_gives_the_same_relations_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    missing, model = SAME["Conv"]
    with forgotten(*missing):
        first = analyze_model(model).collection.relations
        monkeypatch.setattr(probe, "_known", {})
        again = analyze_model(model).collection.relations
    for a, b in zip(first, again, strict=True):
        assert str(a) == str(b)
    assert any(isinstance(r, Contract) for r in first)
    assert any(isinstance(r, Tie) for r in first)
    assert any(isinstance(r, Freeze) for r in first)


def test_alike_nodes_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = probe._ask

    def counted(questions: Sequence[Question]) -> tuple[list[Facts], str]:
        asked.append(len(questions))
        return ask(questions)

    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setattr(probe, "_ask", counted)
    nodes = [node("Mish", f"{'h' if k == 0 else f'm{k}'}", f"{'t' if k == 5 else f'm{k + 1}'}") for k in range(6)]
    with forgotten("Mish"):
        model = features(nodes)
        analysis = analyze_model(model)
        analyze_model(model)
    assert asked == [1]
    assert len(analysis.collection.probed) == 6


def test_large_and_integer_inputs_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_ELEMENTS", 300)
    with forgotten("Relu"):
        reasons = {row.reason for row in analyze_model(features([node("Relu", "h", "t")])).locked}
    assert any("not tried, it has 336 elements" in reason for reason in reasons)
    with forgotten("Cast"):
        back = [node("Cast", "h", "i", to=7), node("Cast", "i", "t", to=1)]
        reasons = {row.reason for row in analyze_model(features(back)).locked}
    assert any("is of type int64, which is not varied" in reason for reason in reasons)


def test_the_work_is_bounded_whatever_was_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Mish", "h", "a"), node("Elu", "a", "b"), node("Celu", "b", "t")]
    monkeypatch.setattr(probe, "MAX_WORK", 2 * 336)
    with forgotten("Mish", "Elu", "Celu"):
        for _ in range(2):
            analysis = analyze_model(features(nodes))
            assert set(analysis.collection.probed) == {1, 2}
            assert any("not tried, the probe has tried enough others" in row.reason for row in analysis.locked)


def test_an_operator_that_ends_the_process_freezes_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is made to die at Tanh, whatever the reason would be."""
    monkeypatch.setattr(probe, "_known", {})
    fatal = (
        "import onnx, os; from onnxprune.axes import trials; establish = trials.establish\n"
        "def dies(q):\n"
        "    if onnx.load_from_string(q.model).graph.node[0].op_type == 'Tanh': os._exit(9)\n"
        "    return establish(q)\n"
        "trials.establish = dies; trials.main()"
    )
    monkeypatch.setattr(probe, "_START", fatal)
    with forgotten("Relu", "Tanh", "Abs"):
        nodes = [node("Relu", "x", "r"), node("Tanh", "r", "s"), node("MatMul", "s wz", "z"), node("Abs", "z", "y")]
        analysis = analyze_model(model_of(nodes, {"wz": (5, 8)}, (4, 5), (4, 8)))
    found = {analysis.collection.ops[k].node.op for k in analysis.collection.probed}
    assert found == {"Relu", "Abs"}
    assert any("onnxruntime crashed on it" in r.why for r in analysis.collection.relations if isinstance(r, Freeze))


def test_a_model_whose_operators_have_rules_starts_no_process() -> None:
    code = (
        "import sys, subprocess\n"
        "subprocess.run = None\n"
        "import onnxprune, onnx\n"
        "onnxprune.analyze('samples/digits_cnn.onnx')\n"
        "print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_inspect_names_what_was_found_by_trial(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from onnxprune.cli import main

    path = tmp_path / "own.onnx"
    onnx.save(closed([node("Relu", "a0", "z")]).proto, path)
    found = CliRunner().invoke(main, ["inspect", str(path)], catch_exceptions=False)
    assert found.exit_code == 0
    assert "no rule, found by running: Own 'Own_t'" in found.output
    assert f"what {LOCAL}::Own does with its axes was found by running it: Own_t" in found.output


# --- trials ---


@given(st.integers(2, 300))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_subsets_part_every_two_indices(n: int) -> None:
    kept = np.zeros((len(subsets(n)), n), dtype=bool)
    for row, keep in zip(kept, subsets(n), strict=True):
        assert 0 < len(keep) < n
        assert (np.diff(keep) > 0).all()
        row[keep] = True
    with_without = kept.T.astype(int) @ (~kept).astype(int)
    assert (with_without + np.eye(n, dtype=int) > 0).all()
    assert {1, n - 1} <= {len(keep) for keep in subsets(n)}


def test_facts_of_a_product() -> None:
    graph = helper.make_graph(
        [node("MatMul", "x0 x1", "y0")],
        "g",
        [helper.make_tensor_value_info(f"x{k}", T.FLOAT, [None, None]) for k in range(2)],
        [helper.make_empty_tensor_value_info("y0")],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    a, b = Tensor(0, "x0", (4, 6), "float32"), Tensor(1, "x1", (6, 9), "float32")
    facts = establish(Question(proto.SerializeToString(), (a, b), (Tensor(0, "y0", (4, 9)),)))
    rows, columns = (Spot("x", 0, 0), Spot("y", 0, 0)), (Spot("x", 1, 1), Spot("y", 0, 1))
    assert facts == Facts((rows, columns), ((Spot("x", 0, 1), Spot("x", 1, 0)),), ("any", (0, 1)), ())
