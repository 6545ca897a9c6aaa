"""Mixtures of experts: whole experts with their router, and the width inside, in the forms that exporters write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.axes.analysis import Analysis
from onnxprune.axes.groups import Group
from tests.test_engine import node

MS = "com.microsoft"
TOKENS, WIDTH, EXPERTS, INNER = 7, 10, 6, 14
Arrays = dict[str, np.ndarray[Any, Any]]


def model_of(nodes: Sequence[onnx.NodeProto], arrays: Arrays, width: int = WIDTH) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [TOKENS, width])],
        [helper.make_tensor_value_info("y", T.FLOAT, [TOKENS, width])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def run(proto: onnx.ModelProto, feed: Arrays) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


FEEDS = [{"x": normal(40 + k, TOKENS, WIDTH) * 5} for k in range(3)]


def groups(analysis: Analysis) -> tuple[Group, Group]:
    """Give the group of whole experts, on axis 0 of the first weight, and that of the width inside."""
    (experts,) = [g for g in analysis.groups if any(m.initializer == "w1" and m.axis == 0 for m in g.members)]
    (inner,) = [g for g in analysis.groups if g is not experts]
    return experts, inner


def exact_half(proto: onnx.ModelProto, analysis: Analysis, inner: Group) -> None:
    """Prune the width inside at one half: the pruned model equals its masked twin."""
    plan = onnxprune.plan(analysis, ratio=0.5, include=[inner.id])
    verdict = onnxprune.verify(proto, onnxprune.apply(analysis, plan), plan=plan, data=FEEDS)
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact, verdict.exact_reason


def kept_experts(proto: onnx.ModelProto, analysis: Analysis, experts: Group) -> tuple[onnx.ModelProto, list[int]]:
    """Prune whole experts at one half; give the smaller model and the experts that it has left."""
    plan = onnxprune.plan(analysis, ratio=0.5, include=[experts.id], allow_inexact=True)
    pruned = onnxprune.apply(analysis, plan)
    assert onnxprune.verify(proto, pruned, plan=plan, data=FEEDS).ok
    (row,) = [s for s in plan.slices if s.initializer == "w1"]
    assert row.axis == 0
    return pruned.proto, [e for e in range(EXPERTS) if e not in row.removed]


# --- every expert computes, a gate weighs them ---

GATES: dict[str, list[onnx.NodeProto]] = {
    "softmax": [node("Identity", "p", "gate")],
    "scatter into a constant": [node("TopK", "p k", "v i"), node("ScatterElements", "zeros i v", "gate", axis=1)],
    "scatter into zeros of a shape": [
        node("Shape", "p", "s"), node("ConstantOfShape", "s", "z"), node("TopK", "p k", "v i"),
        node("ScatterElements", "z i v", "gate", axis=1),
    ],
    "scatter normalized weights": [
        node("TopK", "p k", "v i"), node("ReduceSum", "v one", "sum"), node("Div", "v sum", "w"),
        node("Sub", "p p", "z"), node("ScatterElements", "z i w", "gate", axis=-1),
    ],
    "choose by the logits": [
        node("TopK", "l k", "v i"), node("Softmax", "v", "w"), node("Sub", "p p", "z"),
        node("ScatterElements", "z i w", "gate", axis=-1),
    ],
    "one hot": [
        node("TopK", "p k", "v i"), node("Cast", "i", "i32", to=6), node("Cast", "i32", "i64", to=7),
        node("OneHot", "i64 depth ends", "hot", axis=-1), node("Unsqueeze", "v two", "u"),
        node("Mul", "hot u", "m"), node("ReduceSum", "m one", "gate", keepdims=0),
    ],
    "one hot, experts first": [
        node("TopK", "p k", "v i"), node("OneHot", "i depth ends", "hot", axis=0), node("Mul", "hot v", "m"),
        node("ReduceSum", "m two", "back", keepdims=0), node("Transpose", "back", "gate", perm=[1, 0]),
    ],
    "above the last chosen": [
        node("TopK", "p k", "v i"), node("ReduceMin", "v", "least", axes=[1]), node("Sub", "p p", "z"),
        node("GreaterOrEqual", "p least", "q"), node("Where", "q p z", "gate"),
    ],
}  # fmt: skip


def dense(gate: str | Sequence[onnx.NodeProto], experts: Sequence[int] = range(EXPERTS)) -> onnx.ModelProto:
    """Build a mixture in which every expert computes, with the experts listed."""
    chosen = list(experts)
    arrays: Arrays = {
        "wr": normal(1, WIDTH, EXPERTS)[:, chosen],
        "w1": normal(2, EXPERTS, WIDTH, INNER)[chosen],
        "b1": normal(3, EXPERTS, 1, INNER)[chosen],
        "w2": normal(4, EXPERTS, INNER, WIDTH)[chosen],
        "zeros": np.zeros((TOKENS, len(chosen)), np.float32),
        "ends": np.array([0, 1], np.float32),
        "depth": np.array(len(chosen)),
    }
    arrays |= {name: np.array([v]) for name, v in {"k": 2, "zero": 0, "one": 1, "two": 2}.items()}
    nodes = [
        node("MatMul", "x wr", "l"),
        node("Softmax", "l", "p"),
        *(GATES[gate] if isinstance(gate, str) else gate),
        node("MatMul", "x w1", "h"),
        node("Add", "h b1", "hb"),
        node("Relu", "hb", "a"),
        node("MatMul", "a w2", "o"),
        node("Transpose", "gate", "turned", perm=[1, 0]),
        node("Unsqueeze", "turned two", "column"),
        node("Mul", "o column", "weighed"),
        node("ReduceSum", "weighed zero", "y", keepdims=0),
    ]
    read = {name for n in nodes for name in n.input}
    return model_of(nodes, {name: array for name, array in arrays.items() if name in read})


@pytest.mark.parametrize("gate", GATES)
def test_whole_experts_of_a_dense_mixture(gate: str) -> None:
    proto = dense(gate)
    onnx.checker.check_model(proto, full_check=True)
    analysis = onnxprune.analyze(proto)
    experts, inner = groups(analysis)
    least = 1 if gate == "softmax" else 2
    assert (experts.size, experts.least, experts.exact) == (EXPERTS, least, False)
    assert (inner.size, inner.exact) == (INNER, True)
    exact_half(proto, analysis, inner)
    smaller, kept = kept_experts(proto, analysis, experts)
    assert len(kept) == max(EXPERTS // 2, least)
    for feed in FEEDS:
        found, full = run(smaller, feed), run(proto, feed)
        np.testing.assert_allclose(found, run(dense(gate, kept), feed), rtol=1e-5, atol=1e-5)
        assert found.std() > 0.1
        assert np.abs(found - full).max() > 1e-2


UNFOLLOWED = {
    "compared one by one": (
        [node("TopK", "p k", "v i"), node("Equal", "i one", "q"), node("Cast", "q", "f", to=1), node("Mul", "f v", "m"),
         node("ReduceSum", "m one", "s"), node("Mul", "p s", "gate")],
        "Equal reads positions along it",
    ),
    "scattered into a longer axis": (
        [node("TopK", "p k", "v i"), node("ScatterElements", "longer i v", "wide", axis=1),
         node("ReduceSum", "wide one", "s"), node("Mul", "p s", "gate")],
        "ScatterElements reads positions along it",
    ),
    "all chosen": (
        [node("TopK", "p six", "v i"), node("ScatterElements", "zeros i v", "gate", axis=1)],
        "TopK picks 6 of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_positions_that_nobody_renumbers_keep_the_experts(name: str) -> None:
    nodes, reason = UNFOLLOWED[name]
    proto = dense(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((TOKENS, 9), np.float32), "longer"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([6]), "six"))
    analysis = onnxprune.analyze(proto)
    assert [(g.size, g.exact) for g in analysis.groups] == [(INNER, True)]
    (row,) = [row for row in analysis.locked if (row.initializer, row.axis) == ("wr", 1)]
    assert reason in row.reason
    exact_half(proto, analysis, analysis.groups[0])


def test_positions_given_away_keep_the_experts() -> None:
    proto = dense("scatter into a constant")
    proto.graph.output.append(helper.make_tensor_value_info("i", T.INT64, [TOKENS, 2]))
    analysis = onnxprune.analyze(proto)
    assert [g.size for g in analysis.groups] == [INNER]


def test_a_router_that_all_experts_are_unrolled_behind() -> None:
    """Every expert is a subgraph that compares the chosen positions with its own number."""
    arrays: Arrays = {"wr": normal(1, WIDTH, 3), "k": np.array([2]), "one": np.array([1])}
    nodes = [node("MatMul", "x wr", "l"), node("Softmax", "l", "p"), node("TopK", "p k", "v i")]
    for e in range(3):
        arrays |= {f"u{e}": normal(5 + e, WIDTH, 8 + e), f"d{e}": normal(9 + e, 8 + e, WIDTH), f"e{e}": np.array(e)}
        nodes += [
            node("Equal", f"i e{e}", f"q{e}"), node("Cast", f"q{e}", f"f{e}", to=1), node("Mul", f"f{e} v", f"m{e}"),
            node("ReduceSum", f"m{e} one", f"g{e}"), node("MatMul", f"x u{e}", f"h{e}"), node("Relu", f"h{e}", f"r{e}"),
            node("MatMul", f"r{e} d{e}", f"o{e}"), node("Mul", f"o{e} g{e}", f"t{e}"),
        ]  # fmt: skip
    proto = model_of([*nodes, node("Sum", "t0 t1 t2", "y")], arrays)
    analysis = onnxprune.analyze(proto)
    assert [(g.size, g.exact) for g in analysis.groups] == [(8, True), (9, True), (10, True)]
    (row,) = [row for row in analysis.locked if (row.initializer, row.axis) == ("wr", 1)]
    assert "Equal reads positions along it" in row.reason
    plan = onnxprune.plan(analysis, ratio=0.5)
    verdict = onnxprune.verify(proto, onnxprune.apply(analysis, plan), plan=plan, data=FEEDS)
    assert verdict.ok
    assert verdict.exact


# --- the operators of onnxruntime ---


def fused(
    experts: Sequence[int] = range(EXPERTS), *, gated: int = 0, biases: bool = True, **attributes: Any
) -> onnx.ModelProto:
    """Build a mixture as one MoE node; `gated` is its swiglu_fusion."""
    chosen, rows = list(experts), (2 if gated else 1) * INNER
    arrays: Arrays = {
        "wr": normal(1, WIDTH, EXPERTS)[:, chosen],
        "w1": normal(2, EXPERTS, rows, WIDTH)[chosen],
        "w2": normal(4, EXPERTS, WIDTH, INNER)[chosen],
    }
    if biases:
        arrays |= {"b1": normal(3, EXPERTS, rows)[chosen], "b2": normal(5, EXPERTS, WIDTH)[chosen]}
    inputs = ["x", "l", "w1", "b1" if biases else "", "w2", "b2" if biases else ""]
    mixture = helper.make_node("MoE", inputs, ["y"], "moe", domain=MS, swiglu_fusion=gated, **attributes)
    return model_of([node("MatMul", "x wr", "l"), mixture], arrays)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1, "activation_type": "relu"},
        {"k": 2, "activation_type": "gelu", "biases": False},
        {"k": 3, "activation_type": "silu", "normalize_routing_weights": 1},
        {"k": 2, "activation_type": "swiglu", "gated": 1},
    ],
    ids=str,
)
def test_the_moe_operator(options: dict[str, Any]) -> None:
    proto = fused(**options)
    analysis = onnxprune.analyze(proto)
    experts, inner = groups(analysis)
    assert (experts.kind, experts.size, experts.exact) == ("groups", EXPERTS, False)
    assert "picks the best" in str(experts.why_inexact)
    assert (inner.size, inner.exact) == (INNER, True)
    exact_half(proto, analysis, inner)
    smaller, kept = kept_experts(proto, analysis, experts)
    assert len(kept) == max(EXPERTS // 2, options["k"])
    for feed in FEEDS:
        found = run(smaller, feed)
        np.testing.assert_allclose(found, run(fused(kept, **options), feed), rtol=1e-5, atol=1e-5)
        assert found.std() > 0.1
        assert np.abs(found - run(proto, feed)).max() > 1e-2


def test_the_moe_operator_where_every_expert_is_chosen() -> None:
    analysis = onnxprune.analyze(fused(k=EXPERTS, activation_type="relu"))
    assert [(g.size, g.exact) for g in analysis.groups] == [(INNER, True)]
    assert any("MoE picks 6 of it" in row.reason for row in analysis.locked)


def test_the_moe_operator_behind_three_axes() -> None:
    """Tokens lie in two axes, and the router lists them in one; layers before and behind share its width."""
    arrays: Arrays = {"wa": normal(6, 5, WIDTH), "wb": normal(7, WIDTH, 5), "flat": np.array([-1, WIDTH])}
    arrays |= {
        "wr": normal(1, WIDTH, EXPERTS),
        "w1": normal(2, EXPERTS, INNER, WIDTH),
        "w2": normal(4, EXPERTS, WIDTH, INNER),
    }
    nodes = [
        node("MatMul", "x wa", "a"),
        node("Reshape", "a flat", "f"),
        node("MatMul", "f wr", "l"),
        helper.make_node("MoE", ["a", "l", "w1", "", "w2"], ["m"], "moe", domain=MS, k=2, activation_type="relu"),
        node("MatMul", "m wb", "y"),
    ]
    proto = model_of(nodes, arrays)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, T.FLOAT, [2, TOKENS, 5]))
    analysis = onnxprune.analyze(proto)
    assert sorted((g.size, g.exact) for g in analysis.groups) == [(EXPERTS, False), (WIDTH, True), (INNER, True)]
    plan = onnxprune.plan(analysis, ratio=0.5)
    verdict = onnxprune.verify(proto, onnxprune.apply(analysis, plan), plan=plan, data=[{"x": normal(8, 2, TOKENS, 5)}])
    assert verdict.ok, [c for c in verdict.checks if not c.ok]
    assert verdict.exact


def quantized(experts: Sequence[int] = range(EXPERTS), **attributes: Any) -> onnx.ModelProto:
    chosen, rng = list(experts), np.random.default_rng(3)
    arrays: Arrays = {"wr": normal(1, 32, EXPERTS)[:, chosen]}
    for k, (rows, columns) in {1: (48, 32), 2: (32, 48)}.items():
        arrays[f"w{k}"] = rng.integers(0, 256, (EXPERTS, rows, columns // 2), dtype=np.uint8)[chosen]
        arrays[f"s{k}"] = (rng.random((EXPERTS, rows)) * 0.05).astype(np.float32)[chosen]
        arrays[f"b{k}"] = normal(k, EXPERTS, rows)[chosen]
    inputs = ["x", "l", "w1", "s1", "b1", "w2", "s2", "b2"]
    attributes = {"k": 2, "expert_weight_bits": 4, "activation_type": "silu", **attributes}
    return model_of(
        [node("MatMul", "x wr", "l"), helper.make_node("QMoE", inputs, ["y"], "moe", domain=MS, **attributes)],
        arrays,
        32,
    )


def test_the_quantized_moe_operator_loses_whole_experts() -> None:
    proto = quantized()
    analysis = onnxprune.analyze(proto)
    (experts,) = analysis.groups
    assert (experts.kind, experts.size, experts.exact) == ("groups", EXPERTS, False)
    plan = onnxprune.plan(analysis, ratio=0.5, allow_inexact=True)
    feed = {"x": normal(8, TOKENS, 32)}
    pruned = onnxprune.apply(analysis, plan)
    assert onnxprune.verify(proto, pruned, plan=plan, data=[feed]).ok
    (row,) = [s for s in plan.slices if s.initializer == "w1"]
    kept = [e for e in range(EXPERTS) if e not in row.removed]
    np.testing.assert_allclose(run(pruned.proto, feed), run(quantized(kept), feed), rtol=1e-5, atol=1e-5)
    assert np.abs(run(pruned.proto, feed) - run(proto, feed)).max() > 1e-3
    assert any("packed weights of experts" in row.reason for row in analysis.locked)
