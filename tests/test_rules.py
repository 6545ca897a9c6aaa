"""Every rule family on the smallest graph that shows it: which groups there are, of what size, tied to what."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
import onnxprune.rules  # registers the built-in rules
from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.collect import op_rule, op_rules
from onnxprune.axes.op import Op
from onnxprune.errors import OptionError, RuleDefect
from onnxprune.graph.model import Model
from tests.test_engine import model_of, node

Shapes = Mapping[str, tuple[int, ...]]


def analyzed(
    nodes: list[onnx.NodeProto],
    weights: Shapes,
    x: tuple[int, ...],
    y: tuple[int, ...],
    opset: int = 17,
    **ints: list[int],
) -> Analysis:
    model = model_of(nodes, dict(weights), x, y, opset, **ints)
    onnx.checker.check_model(model.proto, full_check=True)
    return analyze_model(model)


def between(
    middle: list[onnx.NodeProto],
    *,
    out: tuple[int, ...] | None = None,
    opset: int = 17,
    weights: Shapes | None = None,
    channels: int = 8,
    after: int | None = None,
    **ints: list[int],
) -> Analysis:
    """Put nodes from `h` (2, channels, 6, 4) to `t` between two convolutions of kernel one."""
    nodes = [node("Conv", "x wa", "h"), *middle, node("Conv", "t wb", "y")]
    size = {"wa": (channels, 3, 1, 1), "wb": (5, after or channels, 1, 1), **(weights or {})}
    return analyzed(nodes, size, (2, 3, 6, 4), out or (2, 5, 6, 4), opset, **ints)


def sizes(analysis: Analysis) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for g in analysis.groups:
        found.setdefault(g.kind, []).append(g.width)
    return {k: sorted(v) for k, v in found.items()}


def members(analysis: Analysis, k: int = 0) -> dict[tuple[str, int], list[int]]:
    return {(m.initializer, m.axis): m.unit.tolist() for m in analysis.groups[k].members}


# --- elementwise ---


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Softplus", "Sqrt"])
def test_unary(op: str) -> None:
    analysis = between([node(op, "h", "t")])
    assert sizes(analysis) == {"channels": [8]}
    assert analysis.groups[0].exact


def test_a_broadcast_vector_is_a_parameter_of_the_group() -> None:
    analysis = between([node("Mul", "h v", "t")], weights={"v": (8, 1, 1)})
    (group,) = analysis.groups
    assert {(m.initializer, m.axis, m.role) for m in group.members} >= {("v", 0, "parameter")}


def test_an_addition_ties_both_producers() -> None:
    nodes = [node("Conv", "x wa", "a"), node("Conv", "x wb", "b"), node("Add", "a b", "s"), node("Conv", "s wc", "y")]
    analysis = analyzed(nodes, {"wa": (8, 3, 1, 1), "wb": (8, 3, 1, 1), "wc": (5, 8, 1, 1)}, (2, 3, 6, 4), (2, 5, 6, 4))
    assert sizes(analysis) == {"channels": [8]}
    assert set(members(analysis)) == {("wa", 0), ("wb", 0), ("wc", 1)}


def test_where_ties_its_branches() -> None:
    nodes = [node("Greater", "h zero", "c"), node("Where", "c h v", "t")]
    analysis = between(nodes, weights={"zero": (1,), "v": (8, 1, 1)})
    assert set(members(analysis)) == {("wa", 0), ("v", 0), ("wb", 1)}


# --- convolution ---


def test_a_depthwise_convolution_follows_its_input() -> None:
    analysis = between([node("Conv", "h wd", "t", group=8)], weights={"wd": (8, 1, 1, 1)})
    assert sizes(analysis) == {"channels": [8]}
    assert set(members(analysis)) == {("wa", 0), ("wd", 0), ("wb", 1)}


def test_a_depthwise_multiplier_is_a_width_of_its_own() -> None:
    analysis = between([node("Conv", "h wd", "t", group=8)], weights={"wd": (24, 1, 1, 1)}, after=24)
    assert sorted((g.width, g.blocks) for g in analysis.groups) == [(3, 8), (8, 1)]
    by_size = {g.width: k for k, g in enumerate(analysis.groups)}
    assert members(analysis, by_size[8])["wd", 0] == [u for u in range(8) for _ in range(3)]
    assert members(analysis, by_size[3])["wd", 0] == list(range(24))


def test_a_grouped_convolution_has_groups_and_widths_inside() -> None:
    analysis = between([node("Conv", "h wg", "t", group=2)], weights={"wg": (10, 4, 1, 1)}, after=10)
    assert sizes(analysis) == {"groups": [2], "channels": [4, 5]}


def test_a_grouped_transposed_convolution_has_groups_and_widths_inside() -> None:
    analysis = between([node("ConvTranspose", "h wg", "t", group=2)], weights={"wg": (8, 5, 1, 1)}, after=10)
    assert sizes(analysis) == {"groups": [2], "channels": [4, 5]}


# --- products ---


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    w1, w2 = ((5, 7), (7, 3)) if not transposed else ((7, 5), (3, 7))
    nodes = [node("Gemm", "x w1 b1", "h", transB=transposed), node("Gemm", "h w2", "y", transB=transposed)]
    analysis = analyzed(nodes, {"w1": w1, "b1": (7,), "w2": w2}, (2, 5), (2, 3))
    assert sizes(analysis) == {"features": [7]}
    assert set(members(analysis)) == {("w1", 1 - transposed), ("b1", 0), ("w2", transposed)}


@pytest.mark.parametrize("equation", ["ntc,dc->ntd", "...c,dc->...d", "abc,ec->abe"])
def test_einsum(equation: str) -> None:
    nodes = [node("Einsum", "x w1", "h", equation=equation), node("MatMul", "h w2", "y")]
    analysis = analyzed(nodes, {"w1": (7, 5), "w2": (7, 3)}, (2, 4, 5), (2, 4, 3))
    assert sizes(analysis) == {"features": [7]}
    assert {(m.initializer, m.role) for m in analysis.groups[0].members} == {("w1", "output"), ("w2", "input")}


def test_batched_products_of_constants_are_experts() -> None:
    nodes = [node("MatMul", "x w1", "h"), node("MatMul", "h w2", "o"), node("ReduceSum", "o axes", "y", keepdims=0)]
    analysis = analyzed(nodes, {"w1": (4, 5, 7), "w2": (4, 7, 3)}, (1, 2, 5), (2, 3), axes=[0])
    assert sorted(g.size for g in analysis.groups) == [4, 7]


def test_one_matrix_used_twice_is_one_set_of_units() -> None:
    nodes = [node("Gemm", "x w", "h", transB=1), node("MatMul", "h w", "o"), node("MatMul", "o v", "y")]
    analysis = analyzed(nodes, {"w": (7, 5), "v": (5, 3)}, (2, 5), (2, 3))
    assert sizes(analysis) == {"features": [7]}
    (m,) = analysis.groups[0].members
    assert (m.initializer, m.axis, m.use) == ("w", 0, None)


# --- normalizations ---


def test_batch_norm_is_exact_and_carries_four_vectors() -> None:
    analysis = between([node("BatchNormalization", "h g b m v", "t")], weights=dict.fromkeys("gbmv", (8,)))
    assert analysis.groups[0].exact
    assert {m.initializer for m in analysis.groups[0].members} == {"wa", "g", "b", "m", "v", "wb"}


def test_layer_norm_over_the_axis_is_approximate_and_says_why() -> None:
    nodes = [node("MatMul", "x w1", "h"), node("LayerNormalization", "h g b", "t"), node("MatMul", "t w2", "y")]
    analysis = analyzed(nodes, {"w1": (5, 7), "g": (7,), "b": (7,), "w2": (7, 3)}, (2, 5), (2, 3))
    (group,) = analysis.groups
    assert not group.exact
    assert "LayerNormalization" in str(group.why_inexact)


@pytest.mark.parametrize(("op", "exact"), [("ReduceSum", True), ("ReduceMean", False), ("ReduceMax", False)])
def test_reductions_over_the_axis(op: str, *, exact: bool) -> None:
    nodes = [node("MatMul", "x w1", "h"), *reduce_last(op), node("Mul", "x r", "y")]
    analysis = analyzed(nodes, {"w1": (5, 7)}, (2, 5), (2, 5), axes=[1])
    (group,) = analysis.groups
    assert (group.size, group.exact) == (7, exact)


def reduce_last(op: str) -> list[onnx.NodeProto]:
    if op == "ReduceSum":
        return [node(op, "h axes", "r", keepdims=1)]
    return [node(op, "h", "r", axes=[1], keepdims=1)]


def test_a_sum_over_values_that_are_not_zero_is_approximate() -> None:
    nodes = [node("MatMul", "x w1", "h"), node("Sigmoid", "h", "s"), *reduce_last("ReduceSum"), node("Mul", "x r", "y")]
    nodes[2] = node("ReduceSum", "s axes", "r", keepdims=1)
    (group,) = analyzed(nodes, {"w1": (5, 7)}, (2, 5), (2, 5), axes=[1]).groups
    assert not group.exact
    assert "zeros do not reach" in str(group.why_inexact)


def test_softmax_over_the_axis_is_approximate_and_along_another_exact() -> None:
    nodes = [node("MatMul", "x w1", "h"), node("Softmax", "h", "t", axis=-1), node("MatMul", "t w2", "y")]
    (group,) = analyzed(nodes, {"w1": (5, 7), "w2": (7, 3)}, (4, 5), (4, 3)).groups
    assert not group.exact
    nodes[1] = node("Softmax", "h", "t", axis=0)
    (group,) = analyzed(nodes, {"w1": (5, 7), "w2": (7, 3)}, (4, 5), (4, 3)).groups
    assert group.exact


def test_group_normalization_is_exact_for_groups_and_approximate_inside() -> None:
    nodes = [node("GroupNormalization", "h g b", "t", num_groups=2)]
    analysis = between(nodes, opset=21, weights={"g": (8,), "b": (8,)})
    assert {(g.size, g.blocks, g.exact) for g in analysis.groups} == {(2, 1, True), (8, 2, False)}


# --- movement ---


def test_a_channel_shuffle_splits_channels_into_two_factors() -> None:
    nodes = [
        node("Reshape", "h apart", "r"), node("Transpose", "r", "s", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "s back", "t"),
    ]  # fmt: skip
    analysis = between(nodes, apart=[2, 2, 4, 6, 4], back=[2, 8, 6, 4])
    assert sorted(g.size for g in analysis.groups) == [2, 4]
    by_size = {g.size: k for k, g in enumerate(analysis.groups)}
    assert members(analysis, by_size[2])["wa", 0] == [0] * 4 + [1] * 4
    assert members(analysis, by_size[2])["wb", 1] == [0, 1] * 4


@pytest.mark.parametrize(("mode", "unit"), [("DCR", [0, 1] * 4), ("CRD", [0] * 4 + [1] * 4)])
def test_depth_to_space(mode: str, unit: list[int]) -> None:
    analysis = between([node("DepthToSpace", "h", "t", blocksize=2, mode=mode)], after=2, out=(2, 5, 12, 8))
    assert sizes(analysis) == {"channels": [2]}
    assert members(analysis)["wa", 0] == unit


def test_space_to_depth() -> None:
    analysis = between([node("SpaceToDepth", "h", "t", blocksize=2)], after=32, out=(2, 5, 3, 2))
    assert sizes(analysis) == {"channels": [8]}
    assert members(analysis)["wb", 1] == list(range(8)) * 4


def test_flatten_leaves_the_windows_axes_whole() -> None:
    nodes = [node("Conv", "x wa", "h"), node("Flatten", "h", "f"), node("Gemm", "f wb", "y")]
    analysis = analyzed(nodes, {"wa": (8, 3, 1, 1), "wb": (192, 5)}, (2, 3, 6, 4), (2, 5))
    assert sizes(analysis) == {"channels": [8]}
    assert members(analysis)["wb", 0] == [u for u in range(8) for _ in range(24)]


def test_tile_repeats_units() -> None:
    analysis = between([node("Tile", "h times", "t")], after=16, times=[1, 2, 1, 1])
    by_size = {g.size: k for k, g in enumerate(analysis.groups)}
    assert members(analysis, by_size[8])["wb", 1] == list(range(8)) * 2


# --- indexing ---


def test_concat_joins_ranges() -> None:
    nodes = [
        node("Conv", "x wa", "a"), node("Conv", "x wb", "b"), node("Concat", "a b", "t", axis=1),
        node("Conv", "t wc", "y"),
    ]  # fmt: skip
    analysis = analyzed(
        nodes, {"wa": (8, 3, 1, 1), "wb": (7, 3, 1, 1), "wc": (5, 15, 1, 1)}, (2, 3, 6, 4), (2, 5, 6, 4)
    )
    assert sizes(analysis) == {"channels": [7, 8]}
    by_size = {g.size: k for k, g in enumerate(analysis.groups)}
    assert members(analysis, by_size[7])["wc", 1] == [-1] * 8 + list(range(7))


def test_split_parts_are_groups_of_their_own() -> None:
    nodes = [node("Split", "h parts", "p q", axis=1), node("Relu", "p", "r"), node("Concat", "q r", "t", axis=1)]
    analysis = between(nodes, parts=[3, 5])
    assert sizes(analysis) == {"channels": [3, 5]}
    by_size = {g.size: k for k, g in enumerate(analysis.groups)}
    assert members(analysis, by_size[3])["wa", 0] == [0, 1, 2] + [-1] * 5
    assert members(analysis, by_size[3])["wb", 1] == [-1] * 5 + [0, 1, 2]


def test_gated_halves_are_tied_index_by_index() -> None:
    nodes = [node("Split", "h parts", "p q", axis=1), node("Mul", "p q", "t")]
    analysis = between(nodes, after=4, parts=[4, 4])
    assert sizes(analysis) == {"channels": [4]}
    assert members(analysis)["wa", 0] == [0, 1, 2, 3] * 2


def test_slice_keeps_what_it_drops_removable() -> None:
    nodes = [node("Slice", "h from to along", "t")]
    analysis = between(nodes, after=5, **{"from": [2], "to": [7], "along": [1]})
    by_size = {g.size: k for k, g in enumerate(analysis.groups)}
    assert sorted(by_size) == [3, 5]
    assert members(analysis, by_size[5])["wa", 0] == [-1, -1, 0, 1, 2, 3, 4, -1]


def test_gather_permutes_units() -> None:
    order = [6, 1, 7, 3, 0, 2, 5, 4]
    analysis = between([node("Gather", "h order", "t", axis=1)], order=order)
    assert sizes(analysis) == {"channels": [8]}
    found = members(analysis)
    assert [found["wa", 0][k] for k in order] == found["wb", 1]


def test_an_embedding_keeps_its_vocabulary() -> None:
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e w", "y")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", T.INT64, [2, 6])],
        [helper.make_tensor_value_info("y", T.FLOAT, [2, 6, 3])],
        [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in {"table": (11, 7), "w": (7, 3)}.items()],
    )  # fmt: skip
    analysis = analyze_model(Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))
    assert sizes(analysis) == {"embedding": [7]}
    assert "vocabulary" in {(r.initializer, r.axis): r.reason for r in analysis.locked}["table", 0]


# --- pooling ---


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_passes_channels(op: str) -> None:
    analysis = between([node(op, "h", "t", kernel_shape=[2, 2])], out=(2, 5, 5, 3))
    assert sizes(analysis) == {"channels": [8]}


def test_global_pooling_passes_channels() -> None:
    nodes = [node("Conv", "x wa", "h"), node("GlobalAveragePool", "h", "p"), node("Conv", "p wb", "y")]
    analysis = analyzed(nodes, {"wa": (8, 3, 1, 1), "wb": (5, 8, 1, 1)}, (2, 3, 6, 4), (2, 5, 1, 1))
    assert sizes(analysis) == {"channels": [8]}


# --- rules of users ---


def test_a_rule_is_registered_once_unless_replaced() -> None:
    before = op_rules["Relu"]
    with pytest.raises(OptionError, match="already registered"):
        op_rule("Relu")(lambda _: None)
    try:
        op_rule("Relu", replace=True)(lambda op: op.ties(op.x().axes, op.y().axes))
        assert sizes(between([node("Relu", "h", "t")])) == {"channels": [8]}
    finally:
        op_rule("Relu", replace=True)(before)


def test_a_rule_that_contradicts_itself_is_a_defect() -> None:
    before = op_rules["Relu"]

    def wrong(op: Op) -> None:
        op.tie(op.x()[1], op.y()[2])

    try:
        op_rule("Relu", replace=True)(wrong)
        with pytest.raises(RuleDefect, match="tied axes of sizes 8 and 6"):
            between([node("Relu", "h", "t")])
    finally:
        op_rule("Relu", replace=True)(before)


def test_an_axis_that_no_relation_mentions_is_frozen() -> None:
    before = op_rules["Relu"]
    try:
        op_rule("Relu", replace=True)(lambda op: op.tie(op.x()[0], op.y()[0]))
        assert not between([node("Relu", "h", "t")]).groups
    finally:
        op_rule("Relu", replace=True)(before)


def test_padded_channels_go_with_what_they_are_added_to() -> None:
    """A shortcut that pads channels (before 2, after 4): the padding's widths follow what stays."""
    random = np.random.default_rng(0)
    weights = {"a": (8, 3, 1, 1), "ab": (8,), "b": (14, 8, 3, 3), "bb": (14,), "e": (5, 14, 1, 1)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    arrays["pads"] = np.array([0, 2, 0, 0, 0, 4, 0, 0])
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["c"]),
        helper.make_node("Conv", ["c", "b", "bb"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Pad", ["c", "pads"], ["p"]),
        helper.make_node("Add", ["d", "p"], ["s"]),
        helper.make_node("Conv", ["s", "e"], ["y"]),
    ]
    sizes = {"x": [1, 3, 7, 9], "y": [1, 5, 7, 9]}
    shapes = [helper.make_tensor_value_info(name, T.FLOAT, size) for name, size in sizes.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    result = onnxprune.prune(model, ratio=0.5)
    assert [(g.id, g.size, g.exact) for g in result.analysis.groups] == [("a", 8, True), ("b", 6, True)]
    removed = {g.id: g.removed for g in result.plan.groups}
    pads = next(numpy_helper.to_array(t) for t in result.model.proto.graph.initializer if t.name == "pads")
    before, after = sum(u >= 2 for u in removed["b"]), sum(u < 2 for u in removed["b"])
    assert (pads[1], pads[5]) == (2 - after, 4 - before)
    assert result.report.exact["max_rel"] < 1e-5
