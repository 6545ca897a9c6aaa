"""Verification: the masked twin means what it says, and every check fails on the model it is there to catch."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.data import Data
from onnxprune.errors import DataError, ModelError, OptionError, PlanError, TooLargeError, VerificationError
from onnxprune.graph.memory import available_memory
from onnxprune.graph.model import Model
from onnxprune.planfile import Plan, PlanGroup, PlanSlice
from onnxprune.verification import Verdict, mask, masked_twin, measure_latency, open_session, run, verify
from onnxprune.verification.compare import Comparison, OutputComparison
from onnxprune.verification.figures import check_twin
from onnxprune.verification.outputs import Outputs
from onnxprune.verification.tensors import held_tensors
from onnxprune.verification.verifier import runnable_feeds

RTOL = 1e-5  # float32, sums of at most some hundred terms
RNG = np.random.default_rng(7)


def build(
    nodes: Iterable[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    x: tuple[int, list[int | str]] = (T.FLOAT, ["n", 5]),
    y: tuple[int, list[int | str]] = (T.FLOAT, ["n", 3]),
    opset: int = 17,
) -> Model:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )
    return Model(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]))


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def mlp(hidden: str = "Sigmoid") -> Model:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1"),
        helper.make_node(hidden, ["h"], ["a"], name="act"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="fc2"),
    ]
    return build(nodes, {"w1": floats(5, 7), "b1": floats(7), "w2": floats(7, 3), "b2": floats(3)})


def plan_of(*rows: tuple[Any, ...], removed: tuple[int, ...] = (1, 4), size: int = 7, **group: Any) -> Plan:
    slices = [PlanSlice(r[0], r[1], r[2], removed, r[3] if len(r) > 3 else r[0]) for r in rows]
    return Plan("", (PlanGroup("fc1", "features", size, removed, **{"exact": True, **group}),), tuple(slices))


MLP_PLAN = plan_of(("w1", 1, "output"), ("b1", 0, "parameter"), ("w2", 0, "input"))


def cut(model: Model, plan: Plan, change: Callable[[onnx.ModelProto], None] | None = None) -> Model:
    """Prune by deleting slices; `change` then spoils or mends the result."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    tensors = {t.name: t for t in proto.graph.initializer}
    arrays: dict[str, np.ndarray] = {}
    for row in plan.slices:
        array = arrays.get(row.result, numpy_helper.to_array(tensors[row.initializer]))
        arrays[row.result] = np.delete(array, list(row.removed), axis=row.axis)
    for name, array in arrays.items():
        target = tensors.get(name) or proto.graph.initializer.add()
        target.CopyFrom(numpy_helper.from_array(array, name))
    if change is not None:
        change(proto)
    return Model(proto)


def set_array(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def measure(model: Model, shapes: Any) -> SimpleNamespace:  # noqa: ARG001 - the signature verify calls
    params = sum(int(np.prod(t.dims)) for t in model.proto.graph.initializer)
    return SimpleNamespace(params=params, macs=params, bytes=4 * params)


def judge(original: Model, pruned: Model, plan: Plan | None = None, **options: Any) -> Verdict:
    return verify(original, pruned, plan=plan, **{"measure": measure, **options})


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failures}


def assert_twin_holds(original: Model, plan: Plan, pruned: Model, **options: Any) -> Verdict:
    """The verdict is ok, and the twin differs from the original, so that agreeing with it means something."""
    verdict = judge(original, pruned, plan, **{"rtol": RTOL, **options})
    assert verdict.ok, verdict.failures
    assert verdict.exact is not None
    assert all(row["moved"] and row["varies"] for row in verdict.exact["outputs"].values())
    return verdict


def test_a_right_model_passes_every_check() -> None:
    model = mlp()
    verdict = assert_twin_holds(model, MLP_PLAN, cut(model, MLP_PLAN))
    assert {c.name for c in verdict.checks} == {
        "checker", "shape inference", "interface", "slices", "unlisted weights", "runs", "finite", "masked twin",
    }  # fmt: skip
    assert verdict.raise_if_failed() is verdict
    assert verdict.params == {"before": 66, "after": 48, "ratio": 48 / 66}
    assert verdict.agreement is not None
    assert -1 <= verdict.agreement["cosine"] < 1


def test_the_document_has_the_promised_fields_and_is_json() -> None:
    model = mlp()
    document = json.loads(json.dumps(judge(model, cut(model, MLP_PLAN), MLP_PLAN).to_json(), allow_nan=False))
    assert {"ok", "exact", "agreement", "params", "macs", "bytes", "latency_ms"} <= set(document)
    assert {"max_abs", "max_rel"} <= set(document["exact"])
    assert {"before", "after", "ratio"} == set(document["macs"])


def test_without_a_plan_all_but_the_twin_is_checked() -> None:
    model = mlp()
    verdict = judge(model, cut(model, MLP_PLAN))
    assert verdict.ok
    assert (verdict.exact, verdict.exact_reason) == (None, "no plan given")


def test_an_inexact_plan_names_its_group() -> None:
    model = mlp()
    plan = plan_of(*[(s.initializer, s.axis, s.role) for s in MLP_PLAN.slices], exact=False, why_inexact="ln mixes it")
    verdict = judge(model, cut(model, plan), plan)
    assert verdict.ok
    assert verdict.exact is None
    assert verdict.exact_reason == "group 'fc1' is not exact: ln mixes it"


# One wrong model per check.


def test_the_checker_catches_an_unknown_input() -> None:
    model = mlp()
    pruned = cut(model, MLP_PLAN, lambda p: p.graph.node[2].input.__setitem__(0, "nowhere"))
    assert "checker" in failed(judge(model, pruned, MLP_PLAN))


def test_shape_inference_catches_a_stale_shape() -> None:
    model = mlp()
    stale = helper.make_tensor_value_info("h", T.FLOAT, ["n", 7])
    pruned = cut(model, MLP_PLAN, lambda p: p.graph.value_info.append(stale))
    assert "shape inference" in failed(judge(model, pruned, MLP_PLAN))


def test_shape_inference_asks_no_more_than_the_original_gives() -> None:
    model = mlp()
    stale = helper.make_tensor_value_info("h", T.FLOAT, ["n", 8])
    model.proto.graph.value_info.append(stale)
    verdict = judge(model, cut(model, MLP_PLAN), MLP_PLAN)
    check = next(c for c in verdict.checks if c.name == "shape inference")
    assert check.ok
    assert "as by the original" in check.detail


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].output[0] = proto.graph.output[0].name = "z"


def fix_batch(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2


@pytest.mark.parametrize(
    ("change", "detail"), [(rename_output, "outputs are z; were y"), (fix_batch, r"\[2, 3\]; was")]
)
def test_the_interface_must_stay(change: Callable[[onnx.ModelProto], None], detail: str) -> None:
    model = mlp()
    verdict = judge(model, cut(model, MLP_PLAN, change), MLP_PLAN)
    assert "interface" in failed(verdict)
    with pytest.raises(VerificationError, match=detail):
        verdict.raise_if_failed()


def test_a_model_that_does_not_load_fails_the_run() -> None:
    model = mlp()
    pruned = cut(model, plan_of(("w1", 1, "output")))
    verdict = judge(model, pruned, latency=True, metric=lambda _: 1.0)
    assert "runs" in failed(verdict)
    assert verdict.agreement is None
    assert verdict.latency_ms is None
    with pytest.raises(VerificationError):
        verdict.raise_if_failed()


def test_a_model_that_loads_but_does_not_run_fails_the_run() -> None:
    shape = np.array([-1, 7], np.int64)
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    model = build(nodes, {"w1": floats(5, 7), "shape": shape, "w2": floats(7, 3)})
    plan = plan_of(("w1", 1, "output"), ("w2", 0, "input"))
    verdict = judge(model, cut(model, plan), plan)
    assert "runs" in failed(verdict)
    assert verdict.exact is None


@pytest.mark.parametrize("name", ["w1", "b1", "w2"])
def test_kept_weights_must_be_the_originals_bit_for_bit(name: str) -> None:
    model = mlp()
    pruned = cut(model, MLP_PLAN, lambda p: set_array(p, name, lambda a: np.nextafter(a, np.float32(9))))
    assert failed(judge(model, pruned, MLP_PLAN)) == {"slices"}


def test_the_wrong_units_removed_are_caught() -> None:
    model = mlp()
    other = plan_of(*[(s.initializer, s.axis, s.role) for s in MLP_PLAN.slices], removed=(2, 4))
    verdict = judge(model, cut(model, other), MLP_PLAN)
    assert failed(verdict) == {"slices", "masked twin"}
    assert verdict.exact is not None
    assert verdict.exact["max_rel"] > 0.01


def test_columns_out_of_step_with_rows_are_caught() -> None:
    model = mlp()
    pruned = cut(model, MLP_PLAN, lambda p: set_array(p, "w2", lambda a: a[::-1].copy()))
    assert failed(judge(model, pruned, MLP_PLAN)) == {"slices", "masked twin"}


def test_other_weights_must_not_change() -> None:
    model = mlp()
    pruned = cut(model, MLP_PLAN, lambda p: set_array(p, "b2", lambda a: a + 1))
    assert failed(judge(model, pruned, MLP_PLAN)) == {"unlisted weights", "masked twin"}


def test_a_smaller_weight_that_the_plan_does_not_list_is_caught() -> None:
    model = mlp("Relu")
    partial = plan_of(("w1", 1, "output"), ("w2", 0, "input"))
    verdict = judge(model, cut(model, MLP_PLAN), partial)
    assert "unlisted weights" in failed(verdict)
    assert any("b1" in c.detail for c in verdict.failures)


def test_new_infinities_are_caught() -> None:
    model = mlp("Relu")
    pruned = cut(model, MLP_PLAN, lambda p: set_array(p, "w1", lambda a: a * np.float32(1e38)))
    assert "finite" in failed(judge(model, pruned))


# What the twin zeroes, and what it must not.


def test_the_twin_has_the_originals_shapes_and_exact_zeros() -> None:
    model = mlp()
    set_array(model.proto, "w1", lambda a: np.where(a == a[0, 1], np.float32("inf"), a))
    twin = {n: numpy_helper.to_array(h.tensor) for n, h in held_tensors(masked_twin(model, MLP_PLAN)).items()}
    assert twin["w1"].shape == (5, 7)
    assert twin["w1"][:, [1, 4]].tobytes() == bytes(4 * 10)
    assert np.array_equal(twin["w1"][:, [0, 2]], model.array("w1")[:, [0, 2]])
    assert not twin["b1"][[1, 4]].any()
    assert not twin["w2"][[1, 4]].any()
    assert np.array_equal(mask(model, MLP_PLAN).array("w1"), twin["w1"])


def test_values_of_constant_nodes_are_zeroed() -> None:
    weights = {"w2": floats(7, 3)}
    nodes = [
        helper.make_node("Constant", [], ["w1"], value=numpy_helper.from_array(floats(5, 7))),
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    twin = held_tensors(masked_twin(build(nodes, weights), plan_of(("w1", 1, "output"), ("w2", 0, "input"))))
    assert not numpy_helper.to_array(twin["w1"].tensor)[:, [1, 4]].any()


def test_divisors_and_exponents_stay() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Div", ["h", "d"], ["q"]),
        helper.make_node("Cast", ["e16"], ["e"], to=T.FLOAT),
        helper.make_node("Abs", ["q"], ["p"]),
        helper.make_node("Pow", ["p", "e"], ["r"]),
        helper.make_node("Sqrt", ["s2"], ["s"]),
        helper.make_node("Mul", ["r", "s"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"]),
    ]
    weights = {"w1": floats(5, 7), "d": floats(7), "e16": np.full(7, 1.5, np.float16), "w2": floats(7, 3)}
    model = build(nodes, {**weights, "s2": np.abs(floats(7)) + 1})
    vectors = [(name, 0, "parameter") for name in ("d", "e16", "s2")]
    plan = plan_of(("w1", 1, "output"), *vectors, ("w2", 0, "input"))
    twin = held_tensors(masked_twin(model, plan))
    for name in ("d", "e16", "s2"):
        assert np.array_equal(numpy_helper.to_array(twin[name].tensor), model.array(name)), name
    assert_twin_holds(model, plan, cut(model, plan))


def test_weight_normalization_does_not_divide_by_a_zero_norm() -> None:
    nodes = [
        helper.make_node("ReduceL2", ["v"], ["norm"], axes=[0], keepdims=1),
        helper.make_node("Div", ["v", "norm"], ["u"]),
        helper.make_node("Mul", ["u", "g"], ["w1"]),
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    model = build(nodes, {"v": floats(5, 7), "g": floats(1, 7), "w2": floats(7, 3)})
    plan = plan_of(("v", 1, "output"), ("g", 1, "parameter"), ("w2", 0, "input"))
    assert_twin_holds(model, plan, cut(model, plan))


def test_batch_normalization_with_its_variance() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], epsilon=0.0),
        helper.make_node("Sigmoid", ["n"], ["a"]),
        helper.make_node("Conv", ["a", "w2"], ["y"]),
    ]
    vectors = {"s": floats(7), "b": floats(7), "m": floats(7), "v": np.abs(floats(7)) + 1}
    weights = {"w1": floats(7, 2, 3, 3), "w2": floats(4, 7, 1, 1), **vectors}
    model = build(nodes, weights, (T.FLOAT, ["n", 2, 6, 5]), (T.FLOAT, ["n", 4, 4, 3]))
    plan = plan_of(("w1", 0, "output"), *[(k, 0, "parameter") for k in vectors], ("w2", 1, "input"))
    assert_twin_holds(model, plan, cut(model, plan))


@pytest.mark.parametrize("per_axis", [False, True])
def test_quantized_weights_go_to_their_zero_point(per_axis: bool) -> None:
    codes = RNG.integers(-120, 120, (5, 7)).astype(np.int8)
    points = RNG.integers(-9, -2, 7).astype(np.int8) if per_axis else np.array(-3, np.int8)
    scales = np.full(7, 0.02, np.float32) if per_axis else np.array(0.02, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w1"], axis=1),
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    model = build(nodes, {"q": codes, "s": scales, "z": points, "w2": floats(7, 3)})
    along = [("s", 0, "parameter"), ("z", 0, "parameter")] if per_axis else []
    plan = plan_of(("q", 1, "output"), *along, ("w2", 0, "input"))
    twin = held_tensors(masked_twin(model, plan))
    expected = points[[1, 4]] if per_axis else np.full(2, -3)
    assert np.array_equal(numpy_helper.to_array(twin["q"].tensor)[:, [1, 4]], np.tile(expected, (5, 1)))
    assert np.array_equal(numpy_helper.to_array(twin["s"].tensor), scales)
    assert_twin_holds(model, plan, cut(model, plan))


def test_index_tensors_stay() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Gather", ["h", "order"], ["g"], axis=1),
        helper.make_node("MatMul", ["g", "w2"], ["y"]),
    ]
    order = np.array([6, 5, 4, 3, 2, 1, 0])
    model = build(nodes, {"w1": floats(5, 7), "order": order, "w2": floats(7, 3)})
    plan = plan_of(("w1", 1, "output"), ("order", 0, "parameter"), ("w2", 0, "input"))
    assert np.array_equal(numpy_helper.to_array(held_tensors(masked_twin(model, plan))["order"].tensor), order)


def test_bodies_of_control_flow_are_zeroed_too() -> None:
    def body(name: str, node: onnx.NodeProto, weights: Mapping[str, np.ndarray]) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(w, k) for k, w in weights.items()]
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(node.output[0], T.FLOAT, None)], tensors
        )

    then = body("then", helper.make_node("MatMul", ["x", "inner"], ["t"]), {"inner": floats(5, 7)})
    other = body("else", helper.make_node("MatMul", ["x", "w1"], ["e"]), {})
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"]),
        helper.make_node("If", ["cond"], ["h"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    model = build(nodes, {"zero": np.float32(0), "w1": floats(5, 7), "w2": floats(7, 3)})
    plan = plan_of(("inner", 1, "output"), ("w1", 1, "output"), ("w2", 0, "input"))
    twin = held_tensors(masked_twin(model, plan))
    assert not numpy_helper.to_array(twin["inner"].tensor)[:, [1, 4]].any()

    def shrink(proto: onnx.ModelProto) -> None:
        bodies = {a.name: a.g for a in proto.graph.node[2].attribute}
        tensor = bodies["then_branch"].initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(np.delete(numpy_helper.to_array(tensor), [1, 4], 1), "inner"))

    outer = Plan("", plan.groups, plan.slices[1:])
    assert_twin_holds(model, plan, cut(model, outer, shrink))


def shared() -> tuple[Model, Plan, Model]:
    """One gain for two hidden layers, of which each loses other units."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Mul", ["h", "g"], ["hg"], name="first"),
        helper.make_node("MatMul", ["hg", "w2"], ["k"]),
        helper.make_node("Mul", ["k", "g"], ["kg"], name="second"),
        helper.make_node("MatMul", ["kg", "w3"], ["y"]),
    ]
    model = build(nodes, {"w1": floats(5, 7), "g": floats(7), "w2": floats(7, 7), "w3": floats(7, 3)})
    a, b = (1, 4), (0, 4)
    slices = (
        PlanSlice("w1", 1, "output", a, "w1"),
        PlanSlice("g", 0, "parameter", a, "g"),
        PlanSlice("w2", 0, "input", a, "w2"),
        PlanSlice("w2", 1, "output", b, "w2"),
        PlanSlice("g", 0, "parameter", b, "g.onnxprune.1"),
        PlanSlice("w3", 0, "input", b, "w3"),
    )
    groups = tuple(PlanGroup(name, "features", 7, removed, exact=True) for name, removed in (("h", a), ("k", b)))
    plan = Plan("", groups, slices)
    return model, plan, cut(model, plan, lambda p: p.graph.node[3].input.__setitem__(1, "g.onnxprune.1"))


def test_uses_of_a_shared_weight_get_their_own_zeros() -> None:
    model, plan, pruned = shared()
    assert_twin_holds(model, plan, pruned)
    by_order, by_model = masked_twin(model, plan), masked_twin(model, plan, pruned)
    assert by_order.SerializeToString(deterministic=True) == by_model.SerializeToString(deterministic=True)
    copies = [t for name, t in held_tensors(by_model).items() if name.startswith("g")]
    assert sorted(np.flatnonzero(numpy_helper.to_array(h.tensor) == 0).tolist() for h in copies) == [[0, 4], [1, 4]]


def test_a_third_use_makes_the_plan_alone_ambiguous() -> None:
    model, plan, _ = shared()
    model.proto.graph.node.append(helper.make_node("Mul", ["k", "g"], ["unused"], name="third"))
    with pytest.raises(PlanError, match="'g' is shared by 3 nodes and becomes 2 tensors"):
        masked_twin(model, plan)
    set_array(model.proto, "g", np.zeros_like)
    masked_twin(model, plan)


def test_a_use_that_loses_nothing_keeps_the_whole_tensor() -> None:
    model, plan, _ = shared()
    rows = tuple(s for s in plan.slices if s.removed == (0, 4))
    late = Plan("", plan.groups[1:], rows)
    pruned = cut(model, late, lambda p: p.graph.node[3].input.__setitem__(1, "g.onnxprune.1"))
    assert_twin_holds(model, late, pruned)


@pytest.mark.parametrize(
    ("row", "message"),
    [(("w9", 1, "output"), "'w9'"), (("b1", 1, "parameter"), "has 1 axes"), (("b2", 0, "parameter"), "index 4")],
)
def test_a_plan_for_another_model_is_refused(row: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        masked_twin(mlp(), plan_of(row))


def test_recovered_weights_are_checked_by_shape_and_by_their_own_twin() -> None:
    model = mlp()

    def repair(proto: onnx.ModelProto) -> None:
        set_array(proto, "w2", lambda a: a * np.float32(1.5))
        set_array(proto, "b2", lambda a: a + np.float32(0.5))

    pruned = cut(model, MLP_PLAN, repair)
    assert failed(judge(model, pruned, MLP_PLAN)) == {"slices", "unlisted weights", "masked twin"}
    assert_twin_holds(model, MLP_PLAN, pruned, recovered=True)
    swapped = cut(model, MLP_PLAN, lambda p: p.graph.node[1].__setattr__("op_type", "Tanh"))
    assert "masked twin" in failed(judge(model, swapped, MLP_PLAN, recovered=True))


# Comparing.


def compared(reference: Any, candidate: Any) -> OutputComparison:
    output = OutputComparison("y")
    output.add(reference, candidate)
    return output


def test_nan_and_infinity_equal_their_like_only() -> None:
    a = np.array([1.0, np.nan, np.inf], np.float32)
    assert compared(a, a.copy()).max_abs == 0
    assert compared(a, np.array([1.0, np.nan, -np.inf], np.float32)).max_abs == float("inf")
    assert compared(a, np.array([1.0, 2.0, np.inf], np.float32)).max_abs == float("inf")
    assert compared(a, np.array([1.5, np.nan, np.inf], np.float32)).max_rel == pytest.approx(0.5)


def test_discrete_outputs_count_what_differs() -> None:
    output = compared(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]))
    assert output.mismatch == 0.25
    assert not output.within(0.1, 0.0)


def test_sequences_of_maps_are_compared_inside() -> None:
    rows = [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]
    assert compared(rows, [dict(row) for row in rows]).within(0.0, 0.0)
    assert compared(rows, [{0: 0.25, 1: 0.5}, rows[1]]).max_abs == pytest.approx(0.25)
    assert compared(rows, rows[:1]).problem is not None
    assert compared(rows, [{0: 0.25, 2: 0.75}, rows[1]]).mismatch > 0


def test_shapes_that_differ_never_agree() -> None:
    assert not compared(np.zeros((2, 3)), np.zeros((3, 2))).within(1.0, 1.0)


def test_constant_outputs_are_said_to_prove_little() -> None:
    model = mlp()
    set_array(model.proto, "w2", np.zeros_like)
    verdict = judge(model, cut(model, MLP_PLAN), MLP_PLAN)
    assert verdict.ok
    assert verdict.exact is not None
    assert verdict.exact["outputs"]["y"]["varies"] is False
    assert "constant on this data" in next(c.detail for c in verdict.checks if c.name == "masked twin")


def test_agreement_uses_the_data() -> None:
    model = mlp()
    data = {"x": floats(13, 5)}
    verdict = judge(model, cut(model, MLP_PLAN), MLP_PLAN, data=data)
    assert verdict.agreement is not None
    row = verdict.agreement["outputs"]["y"]
    before, after = (run(open_session(m), data, "m")[0] for m in (model, cut(model, MLP_PLAN)))
    assert row["top1"] == pytest.approx(np.mean(before.argmax(1) == after.argmax(1)))
    assert row["relative_error"] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-5)


# Running.


def test_an_original_that_onnxruntime_refuses_is_an_error() -> None:
    model = mlp()
    model.proto.graph.node[1].op_type = "NoSuchOp"
    with pytest.raises(ModelError, match=r"onnxruntime does not load it: .*NoSuchOp"):
        judge(model, model)


def test_external_data_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    for name, m in (("a", model), ("b", cut(model, MLP_PLAN))):
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(m.proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir("/")
    assert_twin_holds(tmp_path / "a" / "m.onnx", MLP_PLAN, tmp_path / "b" / "m.onnx")  # type: ignore[arg-type]


def test_models_too_large_for_one_buffer_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    expected = run(open_session(model), {"x": np.ones((2, 5), np.float32)}, "m")[0]
    monkeypatch.setattr("onnxprune.graph.session.SINGLE_FILE_LIMIT", 10)
    assert np.array_equal(run(open_session(model), {"x": np.ones((2, 5), np.float32)}, "m")[0], expected)
    assert_twin_holds(model, MLP_PLAN, cut(model, MLP_PLAN))


def test_latency_is_paired() -> None:
    model = mlp()
    timed = measure_latency(model, model, {"x": np.ones((2, 5), np.float32)}, threads=1, rounds=9)
    assert timed.rounds == 9
    assert 0 < timed.before <= timed.before_p90
    assert timed.ratio > 0
    verdict = judge(model, cut(model, MLP_PLAN), latency=True, threads=1)
    assert verdict.latency_ms is not None
    assert {"before", "after", "ratio"} <= set(verdict.latency_ms)
    with pytest.raises(OptionError, match="threads"):
        measure_latency(model, model, {}, threads=0)


def test_the_users_metric_is_evaluated_on_both(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import numpy as np\ndef score(session):\n"
        "    return np.abs(session.run(None, {'x': np.ones((1, 5), 'f4')})[0]).sum()\n"
        "def bad(session): return 'high'\n"
    )
    model = mlp()
    verdict = judge(model, cut(model, MLP_PLAN), metric=f"{tmp_path / 'm.py'}:score")
    assert verdict.metric is not None
    assert verdict.metric["before"] != verdict.metric["after"]
    with pytest.raises(OptionError, match="the metric failed"):
        judge(model, model, metric=f"{tmp_path / 'm.py'}:bad")
    with pytest.raises(OptionError, match="Did you mean 'score'"):
        judge(model, model, metric=f"{tmp_path / 'm.py'}:scor")


def test_parameters_come_from_the_cost_model_by_default() -> None:
    model = mlp()
    verdict = verify(model, cut(model, MLP_PLAN), plan=MLP_PLAN)
    assert (verdict.params["before"], verdict.params["after"]) == (66, 48)
    assert verdict.macs["ratio"] == pytest.approx(5 / 7)


def test_a_pruned_model_that_cannot_be_measured_fails_a_check() -> None:
    model = mlp()

    def refuses_small(m: Model, shapes: Any) -> SimpleNamespace:
        if m is not model:
            raise ModelError("stale shape")
        return measure(m, shapes)

    verdict = judge(model, cut(model, MLP_PLAN), MLP_PLAN, measure=refuses_small)
    assert failed(verdict) == {"costs"}
    assert verdict.params == {"before": 66, "after": None, "ratio": None}


def test_verification_knows_nothing_of_rewriting() -> None:
    folder = Path(verify.__code__.co_filename).parent
    for path in folder.glob("*.py"):
        assert "rewrite" not in "".join(line for line in path.read_text().splitlines() if "import" in line), path


@pytest.mark.parametrize(("magnitude", "ok"), [(1.0, True), (1e-3, False)])
def test_outputs_that_collapsed_are_compared_at_the_resolution_of_the_original(magnitude: float, *, ok: bool) -> None:
    """A detector's Sigmoid gave up to 1, its twin 1e-6 everywhere: steps of float32 around 0.5 are what differs."""
    before = np.linspace(0.1, magnitude, 12, dtype=np.float32).reshape(3, 4)
    masked = np.linspace(1e-6, 1.3e-6, 12, dtype=np.float32).reshape(3, 4)
    twin, moved = Comparison.of(["y"]), Comparison.of(["y"])
    twin.add([masked], [masked + np.float32(1.5e-7)])
    moved.add([before * magnitude], [masked])
    assert check_twin(twin, moved, 1e-3, 1e-7).ok is ok
    assert check_twin(twin, moved, 1e-3, 1e-7, {"y": 1.0}).ok


# Memory.


def test_a_model_larger_than_memory_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    monkeypatch.setattr("onnxprune.verification.room.available_memory", lambda: 100)
    monkeypatch.setattr("onnxprune.verification.trial.open_session", None)
    with pytest.raises(TooLargeError, match=r"verifying it takes about .* GB of memory, and 0\.0 GB are available"):
        judge(model, cut(model, MLP_PLAN), MLP_PLAN)
    assert TooLargeError.exit_code == 3


def test_nothing_is_refused_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.verification.room.available_memory", lambda: None)
    model = mlp()
    assert_twin_holds(model, MLP_PLAN, cut(model, MLP_PLAN))


def test_available_memory_is_the_least_of_all_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = available_memory()
    if free is None:
        pytest.skip("this system does not say")
    assert 0 < free < 1 << 50
    limits = {"memory.max": "3000000", "memory.current": "1000000", "memory.stat": "anon 5\ninactive_file 500000\n"}
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("onnxprune.graph.memory.GROUP", tmp_path)
    assert available_memory() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() != 2_500_000


def test_one_model_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()
    most = []

    def opened(*args: Any, **options: Any) -> ort.InferenceSession:
        session = open_session(*args, **options)
        alive.add(session)
        most.append(len(alive))
        return session

    monkeypatch.setattr("onnxprune.verification.trial.open_session", opened)
    model = mlp()
    assert_twin_holds(model, MLP_PLAN, cut(model, MLP_PLAN))
    assert most == [1, 1, 1]


def test_samples_that_change_from_pass_to_pass_are_refused() -> None:
    rng = np.random.default_rng(0)
    data = Data("mine", lambda: iter([{"x": rng.random((2, 5), np.float32)} for _ in range(2)]))
    model = mlp()
    with pytest.raises(DataError, match=r"mine: feed 1 is another one on a later pass"):
        judge(model, cut(model, MLP_PLAN), MLP_PLAN, data=data)


def test_outputs_are_kept_on_disk_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.verification.outputs.IN_MEMORY", 10)
    model = mlp()
    kept = judge(model, cut(model, MLP_PLAN), MLP_PLAN)
    monkeypatch.undo()
    assert kept == judge(model, cut(model, MLP_PLAN), MLP_PLAN)


class Rewound:
    """A reader as onnxruntime calibrates with: one place that it stands at, however often it is started."""

    def __init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        self.feeds = iter([{"x": np.full((2, 5), k, np.float32)} for k in range(1, 6)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def test_a_reader_that_is_rewound_is_read_one_pass_at_a_time() -> None:
    model = mlp()
    verify(model, cut(model, MLP_PLAN), plan=MLP_PLAN, data=Rewound()).raise_if_failed()


def peak_bytes(work: Callable[[], object]) -> int:
    """Count what `work` takes at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(20, 10, 100), (20_000,)])
def test_large_outputs_are_compared_block_by_block(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    y = x + rng.standard_normal(shape).astype(np.float32) / 3
    for k, value in ((700, np.nan), (1500, np.inf), (19_999, np.inf)):
        x.flat[k] = y.flat[k] = value

    def compared() -> OutputComparison:
        found = OutputComparison("y")
        found.add(x, y)
        return found

    whole = compared()
    assert whole.max_abs > 1
    assert whole.n_top1 < whole.n_rows == (200 if len(shape) == 3 else 0) or len(shape) == 1
    monkeypatch.setattr("onnxprune.verification.compare.BLOCK", 999)
    found = compared()
    for name in ("max_abs", "scale", "problem", "rank", "n_rows", "n_top1"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert found.relative_error == pytest.approx(whole.relative_error, rel=1e-12)
    assert peak_bytes(compared) < 4 * x.nbytes


def test_large_outputs_go_to_disk_without_a_copy_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.verification.outputs.IN_MEMORY", 1 << 20)
    large = np.arange(1 << 20, dtype=np.float32)
    kept = Outputs()
    assert peak_bytes(lambda: kept.add({}, [large])) < large.nbytes / 2
    np.testing.assert_array_equal(next(kept.alone())[0], large)


def test_a_model_that_runs_on_no_sizes_leaves_nothing_for_the_collector() -> None:
    class Refusing:
        def run(self, *_: object) -> None:
            raise RuntimeError("no such size")

    session = Refusing()
    gone = weakref.ref(session)
    gc.disable()
    try:
        with pytest.raises(ModelError, match="no such size"):
            runnable_feeds(mlp(), session, 0, [(None, 2, None), (None, 1, None)])
        del session
        assert gone() is None
    finally:
        gc.enable()


def test_memory_that_runs_out_is_told_as_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("onnxprune.api.stages.analyze_model", full)
    path = tmp_path / "m.onnx"
    onnx.save(mlp().proto, path)
    for model, label in ((path, str(path)), (str(path), str(path)), (mlp(), "model 'g'"), (mlp().proto, "the model")):
        with pytest.raises(TooLargeError, match="memory ran out in 'analyze'") as caught:
            onnxprune.analyze(model)
        assert str(caught.value).startswith(f"{label}: ")
    with pytest.raises(TooLargeError, match="memory ran out in 'analyze'"):
        onnxprune.compact(path)
