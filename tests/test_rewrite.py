"""The rewrite: what it cuts, what it copies, which numbers it corrects, and everything it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.collect import op_rule, op_rules
from onnxprune.axes.op import Op
from onnxprune.errors import PlanError
from onnxprune.graph.model import Model, serialize
from onnxprune.planfile import Plan
from onnxprune.rewrite.apply import apply_plan
from onnxprune.verification.twin import masked_twin
from tests.random_graphs import build
from tests.test_engine import concat_of_products, model_of, node, two_layers
from tests.test_properties import constants, distance, everywhere, plan_for, run

RTOL = 1e-5  # of an output's range: float32, two or three layers


def cut(model: Model, removed: Mapping[int, Sequence[int]]) -> tuple[Analysis, Plan, onnx.ModelProto]:
    """Remove units by the width of their group, which these tests keep distinct; in every block of it alike."""
    analysis = analyze_model(model)
    widths = [g.width for g in analysis.groups]
    assert len(set(widths)) == len(widths), widths
    plan = plan_for(analysis, {g.id: everywhere(g, removed[g.width]) for g in analysis.groups if g.width in removed})
    assert not plan.empty
    return analysis, plan, apply_plan(analysis, plan).proto


def assert_equals_twin(model: Model, plan: Plan, pruned: onnx.ModelProto, **feeds: np.ndarray) -> None:
    expected = run(masked_twin(model, plan, Model(pruned)), feeds)
    assert distance(run(pruned, feeds), expected) <= RTOL
    assert distance(run(model.proto, feeds), expected) > 100 * RTOL, "the removal must show"
    onnx.checker.check_model(pruned, full_check=True)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# --- cutting ---


def test_slices_are_the_original_indexed() -> None:
    model = two_layers()
    _, plan, pruned = cut(model, {7: [1, 4]})
    before, after = constants(model.proto), constants(pruned)
    kept = [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(after["w1"], before["w1"][kept])
    np.testing.assert_array_equal(after["b1"], before["b1"][kept])
    np.testing.assert_array_equal(after["w2"], before["w2"][:, kept])
    assert_equals_twin(model, plan, pruned, x=random(4, 5))


def test_a_fused_product_loses_different_indices_per_part() -> None:
    model = concat_of_products()
    _, plan, pruned = cut(model, {2: [0], 3: [1], 4: [0, 3]})
    after = constants(pruned)
    assert after["w"].shape == (5, 2 + 2 + 2)
    assert after["sizes"].tolist() == [2, 2, 2]
    assert_equals_twin(model, plan, pruned, x=random(3, 5))


def test_the_source_is_not_touched_and_the_output_is_reproducible() -> None:
    model = two_layers()
    before = serialize(model.proto)
    one, two = cut(model, {7: [2]})[2], cut(model, {7: [2]})[2]
    assert serialize(model.proto) == before
    assert serialize(one) == serialize(two)


def test_a_plan_for_another_model_is_refused() -> None:
    _, plan, _ = cut(two_layers(), {7: [2]})
    with pytest.raises(PlanError, match="another file"):
        apply_plan(analyze_model(concat_of_products()), plan)


def test_a_plan_that_removes_everything_is_refused() -> None:
    analysis = analyze_model(two_layers())
    with pytest.raises(PlanError, match="1 units always stay"):
        apply_plan(analysis, plan_for(analysis, {analysis.groups[0].id: range(7)}))


# --- sharing ---


def two_norms() -> Model:
    """Two layers of one width read the same scale and shift: an exporter merged equal vectors."""
    nodes = [
        node("Conv", "x wa", "a"),
        node("BatchNormalization", "a s b m v", "c"),
        node("Relu", "c", "d"),
        node("Conv", "d wb", "e"),
        node("BatchNormalization", "e s b m v", "f"),
        node("Conv", "f wc", "y"),
    ]
    model = model_of(
        nodes,
        {"wa": (8, 3, 1, 1), "wb": (8, 8, 1, 1), "wc": (5, 8, 1, 1), **dict.fromkeys("sbmv", (8,))},
        (2, 3, 4, 6),
        (2, 5, 4, 6),
    )
    for t in model.proto.graph.initializer:
        if t.name == "v":
            t.CopyFrom(numpy_helper.from_array(np.linspace(0.5, 1.5, 8, dtype=np.float32), "v"))
    return model


def test_merged_vectors_get_a_copy_per_use() -> None:
    model = two_norms()
    analysis = analyze_model(model)
    first, second = analysis.groups
    plan = plan_for(analysis, {first.id: [0, 1], second.id: [5]})
    pruned = apply_plan(analysis, plan).proto
    before, after = constants(model.proto), constants(pruned)
    np.testing.assert_array_equal(after["s"], np.delete(before["s"], [0, 1]))
    np.testing.assert_array_equal(after["s.onnxprune.1"], np.delete(before["s"], [5]))
    norms = [n for n in pruned.graph.node if n.op_type == "BatchNormalization"]
    assert list(norms[0].input[1:]) == ["s", "b", "m", "v"]
    assert list(norms[1].input[1:]) == [f"{n}.onnxprune.1" for n in "sbmv"]
    assert {(s.initializer, s.result) for s in plan.slices if s.initializer == "s"} == {
        ("s", "s"),
        ("s", "s.onnxprune.1"),
    }
    assert_equals_twin(model, plan, pruned, x=random(2, 3, 4, 6))


def test_merged_vectors_that_lose_the_same_stay_one_tensor() -> None:
    model = two_norms()
    analysis = analyze_model(model)
    plan = plan_for(analysis, {g.id: [2, 3] for g in analysis.groups})
    pruned = apply_plan(analysis, plan).proto
    assert not [t.name for t in pruned.graph.initializer if "onnxprune" in t.name]
    assert_equals_twin(model, plan, pruned, x=random(2, 3, 4, 6))


def test_the_use_that_loses_nothing_keeps_the_whole_vector() -> None:
    model = two_norms()
    analysis = analyze_model(model)
    pruned = apply_plan(analysis, plan_for(analysis, {analysis.groups[1].id: [4]})).proto
    after = constants(pruned)
    assert (after["s"].shape, after["s.onnxprune.1"].shape) == ((8,), (7,))


def test_a_tied_matrix_is_cut_once_for_both_uses() -> None:
    nodes = [
        node("Gemm", "x w", "h", transB=1),
        node("Relu", "h", "r"),
        node("MatMul", "r w", "o"),
        node("MatMul", "o v", "y"),
    ]
    model = model_of(nodes, {"w": (7, 5), "v": (5, 3)}, (4, 5), (4, 3))
    _, plan, pruned = cut(model, {7: [0, 6]})
    assert [t.name for t in pruned.graph.initializer] == ["w", "v"]
    assert constants(pruned)["w"].shape == (5, 5)
    assert_equals_twin(model, plan, pruned, x=random(4, 5))


def test_shared_shape_constants_are_never_edited_in_place() -> None:
    nodes = [
        node("MatMul", "x wa", "a"), node("Reshape", "a shape", "b"), node("MatMul", "x wb", "c"),
        node("Reshape", "c shape", "d"), node("Reshape", "b flat", "e"), node("Reshape", "d flat", "f"),
        node("MatMul", "e wc", "g"), node("MatMul", "f wd", "h"), node("Add", "g h", "y"),
    ]  # fmt: skip
    weights = {"wa": (5, 6), "wb": (5, 6), "wc": (6, 4), "wd": (6, 4)}
    model = model_of(nodes, weights, (3, 5), (3, 4), shape=[3, 2, 3], flat=[3, 6])
    analysis = analyze_model(model)
    group = next(g for g in analysis.groups if g.width == 3 and {m.initializer for m in g.members} == {"wb", "wd"})
    plan = plan_for(analysis, {group.id: [0, 4]})
    pruned = apply_plan(analysis, plan).proto
    after = constants(pruned)
    assert after["shape"].tolist() == [3, 2, 3]
    assert after["shape.onnxprune.1"].tolist() == [3, 2, 2]
    assert after["flat"].tolist() == [3, 6]
    assert after["flat.onnxprune.1"].tolist() == [3, 4]
    assert_equals_twin(model, plan, pruned, x=random(3, 5))


# --- sizes ---


def heads(before: list[onnx.NodeProto], x: tuple[int | str, ...] = (3, 5), **integers: list[int]) -> Model:
    """(n, 4*3) -> (n, 4, 3), scaled per head and per width, -> (n, 12)."""
    nodes = [
        node("MatMul", "x wa", "a"), *before, node("Reshape", "a shape", "b"), node("Mul", "b s", "c"),
        node("Mul", "c r", "d"), node("Reshape", "d flat", "e"), node("MatMul", "e wb", "y"),
    ]  # fmt: skip
    weights = {"wa": (5, 12), "s": (4, 1), "r": (3,), "wb": (12, 7)}
    return model_of(nodes, weights, x, (x[0], 7), flat=[0, -1], **integers)


@pytest.mark.parametrize(
    ("target", "expected"),
    [([3, 4, 3], [3, 2, 2]), ([0, 4, -1], [0, 2, -1]), ([0, -1, 3], [0, -1, 2]), ([-1, 4, 3], [-1, 2, 2])],
)
def test_literal_targets(target: list[int], expected: list[int]) -> None:
    model = heads([], shape=target)
    _, plan, pruned = cut(model, {4: [0, 3], 3: [1]})
    assert constants(pruned)["shape"].tolist() == expected
    assert constants(pruned)["flat"].tolist() == [0, -1]
    assert_equals_twin(model, plan, pruned, x=random(3, 5))


@pytest.mark.parametrize("n", [3, "n"])
@pytest.mark.parametrize("removed", [{4: [0, 3]}, {3: [1]}, {4: [0, 3], 3: [1]}, {4: [1, 2, 3], 3: [0]}])
def test_computed_targets(n: int | str, removed: dict[int, list[int]]) -> None:
    """The width comes out of a division by the number of heads: (n, 4, c / 4)."""
    shape = [
        node("Shape", "a", "sa"), node("Gather", "sa zero", "sn", axis=0), node("Gather", "sa one", "sc", axis=0),
        node("Div", "sc four", "sd"), node("Concat", "sn four sd", "shape", axis=0),
    ]  # fmt: skip
    model = heads(shape, (n, 5), zero=[0], one=[1], four=[4])
    _, plan, pruned = cut(model, removed)
    assert_equals_twin(model, plan, pruned, x=random(3, 5))
    assert_equals_twin(model, plan, pruned, x=random(3, 5)[:2]) if n == "n" else None


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_an_even_split_is_told_its_sizes_once_it_is_uneven(opset: int) -> None:
    form = {"num_outputs": 2} if opset >= 18 else {}
    nodes = [
        node("MatMul", "x wa", "a"), node("Split", "a", "b c", axis=1, **form), node("Relu", "b", "d"),
        node("Concat", "c d", "e", axis=1), node("MatMul", "e wb", "y"),
    ]  # fmt: skip
    model = model_of(nodes, {"wa": (5, 12), "wb": (12, 7)}, (3, 5), (3, 7), opset)
    for first, second in (([0], []), ([], [0]), ([1, 2, 3, 4], [5]), ([1], [2])):
        analysis = analyze_model(model)
        assert [g.size for g in analysis.groups] == [6, 6]
        plan = plan_for(analysis, dict(zip([g.id for g in analysis.groups], (first, second), strict=True)))
        pruned = apply_plan(analysis, plan).proto
        assert_equals_twin(model, plan, pruned, x=random(3, 5))


def test_slice_bounds_count_what_stays() -> None:
    nodes = [
        node("MatMul", "x wa", "a"), node("Slice", "a from to along", "b"), node("Slice", "a to end along", "c"),
        node("Relu", "b", "d"), node("Concat", "c d", "e", axis=1), node("MatMul", "e wb", "y"),
    ]  # fmt: skip
    model = model_of(
        nodes,
        {"wa": (5, 12), "wb": (12, 7)},
        (3, 5),
        (3, 7),
        **{"from": [0], "to": [5], "along": [1], "end": [2**63 - 1]},
    )
    _, plan, pruned = cut(model, {5: [0, 4], 7: [1]})
    after = constants(pruned)
    assert (after["from"].tolist(), after["to"].tolist(), after["end"].tolist()) == ([0], [3], [2**63 - 1])
    assert_equals_twin(model, plan, pruned, x=random(3, 5))


def test_groups_of_a_convolution_follow() -> None:
    nodes = [node("Conv", "x wa", "a"), node("Conv", "a wd", "b", group=8), node("Conv", "b wb", "y")]
    model = model_of(nodes, {"wa": (8, 3, 1, 1), "wd": (8, 1, 3, 3), "wb": (5, 8, 1, 1)}, (2, 3, 6, 4), (2, 5, 4, 2))
    _, plan, pruned = cut(model, {8: [0, 2, 5]})
    assert helper.get_attribute_value(pruned.graph.node[1].attribute[0]) == 5
    assert_equals_twin(model, plan, pruned, x=random(2, 3, 6, 4))


def test_gather_indices_are_renumbered() -> None:
    nodes = [
        node("MatMul", "x wa", "a"),
        node("Gather", "a order", "b", axis=1),
        node("Mul", "b s", "c"),
        node("MatMul", "c wb", "y"),
    ]
    model = model_of(nodes, {"wa": (5, 6), "s": (6,), "wb": (6, 7)}, (3, 5), (3, 7), order=[4, 0, 5, 2, 1, 3])
    _, plan, pruned = cut(model, {6: [0, 2]})
    assert sorted(constants(pruned)["order"].tolist()) == [0, 1, 2, 3]
    assert_equals_twin(model, plan, pruned, x=random(3, 5))


def test_a_lone_integer_keeps_its_rank() -> None:
    """A rule may bind an integer that is a scalar; so is what takes its place."""

    def repeat(op: Op) -> None:
        op.tie(op.x()[0], op.y()[0])
        op.tie(op.x()[1], op.y()[1])
        op.reads_sizes(1)
        op.size(1, op.x()[1])

    nodes = [
        node("MatMul", "x wa", "a"), helper.make_node("Sized", ["a", "width"], ["b"], domain="my.domain"),
        node("MatMul", "b wb", "y"),
    ]  # fmt: skip
    model = model_of(nodes, {"wa": (5, 6), "wb": (6, 7)}, (3, 5), (3, 7))
    model.proto.graph.initializer.append(numpy_helper.from_array(np.array(6, dtype=np.int64), "width"))
    model.proto.graph.value_info.append(helper.make_tensor_value_info("b", T.FLOAT, [3, 6]))
    model.proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    op_rule("Sized", domain="my.domain")(repeat)
    try:
        width = constants(cut(model, {6: [0, 2]})[2])["width"]
    finally:
        op_rules._entries.pop("my.domain::Sized")
    assert (width.shape, width.item()) == ((), 4)


# --- what stays as it is ---


def test_everything_nobody_asked_to_change_survives() -> None:
    model = two_layers()
    proto = model.proto
    proto.doc_string, proto.graph.doc_string = "about", "more"
    proto.producer_name = "someone"
    proto.metadata_props.add(key="author", value="me")
    proto.graph.node[0].doc_string = "the first layer"
    proto.graph.node[0].metadata_props.add(key="scope", value="body")
    for t in proto.graph.initializer:
        t.doc_string = f"about {t.name}"
    proto.graph.quantization_annotation.add(tensor_name="h")
    proto.MergeFromString(b"\xfa\x3e\x03abc")
    _, plan, pruned = cut(Model(proto), {7: [3]})
    assert (pruned.doc_string, pruned.graph.doc_string, pruned.producer_name) == ("about", "more", "someone")
    assert pruned.graph.node[0] == proto.graph.node[0]
    assert [t.doc_string for t in pruned.graph.initializer] == [t.doc_string for t in proto.graph.initializer]
    assert pruned.graph.quantization_annotation == proto.graph.quantization_annotation
    assert b"\xfa\x3e\x03abc" in pruned.SerializeToString()
    props = {p.key: p.value for p in pruned.metadata_props}
    assert props["author"] == "me"
    assert props["onnxprune.source_sha256"] == plan.source_sha256
    assert props["onnxprune.plan_sha256"] == plan.sha256
    assert props["onnxprune.version"]


def test_declared_shapes_follow_and_the_interface_stays() -> None:
    proto = onnx.shape_inference.infer_shapes(two_layers().proto)
    assert len(proto.graph.value_info) == 2
    _, _, pruned = cut(Model(proto), {7: [3, 5]})
    for info in pruned.graph.value_info:
        dims = info.type.tensor_type.shape.dim
        assert (dims[0].dim_param, dims[1].dim_value) == ("n", 5)
    assert list(pruned.graph.input) == list(proto.graph.input)
    assert list(pruned.graph.output) == list(proto.graph.output)


def test_constant_nodes_are_cut_in_place() -> None:
    model = two_layers()
    graph = model.proto.graph
    weight = next(t for t in graph.initializer if t.name == "w1")
    graph.node.insert(0, helper.make_node("Constant", [], ["w1"], name="c", value=weight))
    graph.initializer.remove(weight)
    _, plan, pruned = cut(model, {7: [0]})
    assert pruned.graph.node[0].op_type == "Constant"
    assert list(pruned.graph.node[0].attribute[0].t.dims) == [6, 5]
    assert_equals_twin(model, plan, pruned, x=random(4, 5))


def test_a_constant_node_read_twice_keeps_a_right_declaration() -> None:
    """Its copy serves the second reader; the declared shape of the first follows its tensor."""
    graph = build(367, ["image_input", "merged_vectors"])
    model = Model(onnx.shape_inference.infer_shapes(graph.model))
    analysis = analyze_model(model)
    group = next(g for g in analysis.groups if g.size == 13)
    pruned = apply_plan(analysis, plan_for(analysis, {group.id: [0, 8, 9]})).proto
    onnx.shape_inference.infer_shapes(pruned, check_type=True, strict_mode=True, data_prop=True)
    run(pruned, graph.feeds())


# --- approximate groups: what pruning means there, built by hand ---


def normalized(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    centered = x - x.mean(axis=axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + 1e-5)


def test_layer_norm_computes_its_statistics_over_what_stays() -> None:
    nodes = [node("MatMul", "x wa", "a"), node("LayerNormalization", "a g b", "c"), node("MatMul", "c wb", "y")]
    model = model_of(nodes, {"wa": (5, 8), "g": (8,), "b": (8,), "wb": (8, 7)}, (3, 5), (3, 7))
    analysis, plan, pruned = cut(model, {8: [1, 6]})
    assert not analysis.groups[0].exact
    kept = [0, 2, 3, 4, 5, 7]
    w, x = constants(model.proto), random(3, 5)
    expected = (normalized(x @ w["wa"][:, kept], (1,)) * w["g"][kept] + w["b"][kept]) @ w["wb"][kept]
    np.testing.assert_allclose(run(pruned, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
    assert distance(run(masked_twin(model, plan, Model(pruned)), {"x": x}), [expected]) > 0.01


def test_group_norm_computes_its_statistics_over_what_stays() -> None:
    nodes = [
        node("Conv", "x wa", "a"), node("Reshape", "a parts", "b"), node("InstanceNormalization", "b one zero", "c"),
        node("Reshape", "c whole", "d"), node("Mul", "d g", "e"), node("Conv", "e wb", "y"),
    ]  # fmt: skip
    weights = {"wa": (12, 3, 1, 1), "one": (3,), "zero": (3,), "g": (12, 1, 1), "wb": (5, 12, 1, 1)}
    model = model_of(nodes, weights, (2, 3, 6, 5), (2, 5, 6, 5), parts=[0, 3, -1], whole=[2, 12, 6, 5])
    for t in model.proto.graph.initializer:
        if t.name in ("one", "zero"):
            t.CopyFrom(numpy_helper.from_array(np.full(3, float(t.name == "one"), np.float32), t.name))
    analysis, _, pruned = cut(model, {4: [1], 3: [2]})
    assert {(g.size, g.blocks): g.exact for g in analysis.groups} == {(12, 3): False, (3, 1): True}
    kept = [0, 2, 3, 4, 6, 7]
    w, x = constants(model.proto), random(2, 3, 6, 5)
    a = np.einsum("nchw,dc->ndhw", x, w["wa"][kept, :, 0, 0])
    d = normalized(a.reshape(2, 2, 3, 6, 5), (2, 3, 4)).reshape(2, 6, 6, 5) * w["g"][kept]
    expected = np.einsum("nchw,dc->ndhw", d, w["wb"][:, kept, 0, 0])
    np.testing.assert_allclose(run(pruned, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_a_softmax_runs_over_what_stays() -> None:
    nodes = [node("MatMul", "x wa", "a"), node("Softmax", "a", "b", axis=-1), node("MatMul", "b wb", "y")]
    model = model_of(nodes, {"wa": (5, 8), "wb": (8, 7)}, (3, 5), (3, 7))
    _, _, pruned = cut(model, {8: [0, 3, 4]})
    kept = [1, 2, 5, 6, 7]
    w, x = constants(model.proto), random(3, 5)
    e = np.exp(x @ w["wa"][:, kept])
    np.testing.assert_allclose(
        run(pruned, {"x": x})[0], e / e.sum(1, keepdims=True) @ w["wb"][kept], rtol=1e-4, atol=1e-5
    )


def test_a_mean_divides_by_what_stays() -> None:
    nodes = [node("MatMul", "x wa", "a"), node("ReduceMean", "a", "b", axes=[1], keepdims=1), node("Add", "x b", "y")]
    model = model_of(nodes, {"wa": (5, 8)}, (3, 5), (3, 5))
    _, _, pruned = cut(model, {8: [2, 7]})
    w, x = constants(model.proto), random(3, 5)
    expected = x + (x @ w["wa"][:, [0, 1, 3, 4, 5, 6]]).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(run(pruned, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
