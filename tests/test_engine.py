"""The engine: connected labels, factors all regroupings agree on, classes, leaves, units, locked axes and cost."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.factors import DisjointSets, _aligned, _common, factorize
from onnxprune.axes.labels import connected_components
from onnxprune.axes.layers import label
from onnxprune.axes.relations import Contract, Freeze, Regroup, Select, Tie
from onnxprune.errors import OnnxPruneError, OptionError, RuleDefect, UnknownNameError
from onnxprune.graph.model import Model


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    x: tuple[int | str, ...],
    y: tuple[int | str, ...],
    opset: int = 17,
    **integers: list[int],
) -> Model:
    rng = np.random.default_rng(5)
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    tensors += [numpy_helper.from_array(np.array(v, dtype=np.int64), n) for n, v in integers.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", T.FLOAT, list(y))],
        tensors,
    )
    return Model(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]))


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{outputs.partition(' ')[0]}", **attributes)


# --- connected components ---


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_connected_components_agree_with_union_find(n: int, pairs: list[tuple[int, int]]) -> None:
    edges = [(a % n, b % n) for a, b in pairs]
    sets = DisjointSets(n)
    for a, b in edges:
        sets.union(a, b)
    a = [np.array([e[0] for e in edges], dtype=np.int64)]
    b = [np.array([e[1] for e in edges], dtype=np.int64)]
    np.testing.assert_array_equal(connected_components(n, a, b), [sets.find(i) for i in range(n)])


def test_components_are_named_by_their_smallest_member() -> None:
    chain = np.arange(9, dtype=np.int64)
    np.testing.assert_array_equal(connected_components(10, [chain[::-1] + 1], [chain[::-1]]), [0] * 10)
    np.testing.assert_array_equal(connected_components(4, [], []), [0, 1, 2, 3])


# --- factors ---


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([12], [3, 4], ([[3, 4]], [[3], [4]])),
        ([3, 8], [6, 4], ([[3], [2, 4]], [[3, 2], [4]])),
        ([2, 3, 5], [30], ([[2], [3], [5]], [[2, 3, 5]])),
        ([7], [7], ([[7]], [[7]])),
        ([4, 9], [6, 6], None),
    ],
)
def test_common_factors(left: list[int], right: list[int], expected: object) -> None:
    assert _common(left, right) == expected


@given(st.lists(st.integers(2, 5), min_size=1, max_size=5), st.data())
def test_common_factors_of_cuts_of_one_product(factors: list[int], data: st.DataObject) -> None:
    def cut() -> list[int]:
        merged = [factors[0]]
        for f in factors[1:]:
            if data.draw(st.booleans()):
                merged[-1] *= f
            else:
                merged.append(f)
        return merged

    left, right = cut(), cut()
    found = _common(left, right)
    assert found is not None
    assert [math.prod(p) for p in found[0]] == left
    assert [math.prod(p) for p in found[1]] == right
    assert [f for p in found[0] for f in p] == [f for p in found[1] for f in p]


def test_leaves_are_aligned_where_products_and_sizes_meet() -> None:
    assert _aligned([(0, 2), (1, 6)], [(2, 2), (3, 3), (4, 2)]) == [(0, 2)]
    assert _aligned([(0, 2), (1, 3)], [(2, 2), (3, 3)]) == [(0, 2), (1, 3)]


def test_ties_make_classes_and_regroupings_make_leaves() -> None:
    # 0: (h d) = 12, 1: h = 3, 2: d = 4, 3 is tied to 0, 4 to 1
    found = factorize([12, 3, 4, 12, 3, 5], [Regroup((0,), (1, 2), 0), Tie(0, 3, 1), Contract(1, 4, 2)])
    assert found.class_of == [0, 1, 2, 0, 1, 5]
    assert found.leaves[0] == (found.leaves[1][0], found.leaves[2][0])
    assert [found.leaf_size[leaf] for leaf in found.leaves[0]] == [3, 4]
    assert [found.leaf_size[leaf] for leaf in found.leaves[5]] == [5]
    assert not found.conflicts


def test_the_coarsest_factors_that_two_regroupings_agree_on() -> None:
    found = factorize([24, 4, 6, 8, 3], [Regroup((0,), (1, 2), 0), Regroup((0,), (3, 4), 1)])
    assert [found.leaf_size[leaf] for leaf in found.leaves[0]] == [4, 2, 3]
    assert found.leaves[2] == found.leaves[0][1:]


def test_regroupings_that_do_not_nest_freeze_their_axes() -> None:
    found = factorize([6, 2, 3, 3, 2], [Regroup((0,), (1, 2), 0), Regroup((0,), (3, 4), 1)])
    assert {f.axis for f in found.conflicts} >= {0, 3, 4}


def test_tied_axes_of_different_sizes_are_a_defect_of_a_rule() -> None:
    with pytest.raises(RuleDefect, match="sizes 3 and 4"):
        factorize([3, 4], [Tie(0, 1, 0)])
    assert not issubclass(RuleDefect, OnnxPruneError)


def test_labels_join_through_selections_and_freeze_with_them() -> None:
    # axis 1 is axis 0 reversed; axis 2 its first two; index 0 of axis 2 is frozen
    relations = [
        Select(0, np.array([3, 2, 1, 0]), 1, 0),
        Select(0, np.array([0, 1]), 2, 1),
        Freeze(2, "why", 2, np.array([0])),
    ]
    factors = factorize([4, 4, 2], relations)
    labeling = label(factors, relations, {})
    (first,) = labeling.roots(0, 4)
    (reverse,) = labeling.roots(1, 4)
    (part,) = labeling.roots(2, 2)
    np.testing.assert_array_equal(first[::-1], reverse)
    np.testing.assert_array_equal(first[:2], part)
    assert labeling.frozen[first].tolist() == [True, False, False, False]


# --- whole analyses ---


def two_layers() -> Model:
    nodes = [
        node("Gemm", "x w1 b1", "h", transB=1),
        node("Relu", "h", "a"),
        node("Gemm", "a w2 b2", "y", transB=1),
    ]
    return model_of(nodes, {"w1": (7, 5), "b1": (7,), "w2": (3, 7), "b2": (3,)}, ("n", 5), ("n", 3))


def test_a_hidden_width_is_one_group_with_its_members_and_roles() -> None:
    analysis = analyze_model(two_layers())
    (group,) = analysis.groups
    assert (group.kind, group.size, group.exact) == ("features", 7, True)
    assert {(m.initializer, m.axis, m.role) for m in group.members} == {
        ("w1", 0, "output"), ("b1", 0, "parameter"), ("w2", 1, "input"),
    }  # fmt: skip
    for m in group.members:
        np.testing.assert_array_equal(m.unit, np.arange(7))


def test_locked_axes_say_what_freezes_them() -> None:
    locked = {(row.initializer, row.axis): row.reason for row in analyze_model(two_layers()).locked}
    assert set(locked) == {("w1", 1), ("w2", 0), ("b2", 0)}
    assert "graph input 'x'" in locked["w1", 1]
    assert "graph output 'y'" in locked["w2", 0]


def test_the_chain_leads_from_the_axis_to_what_freezes_it() -> None:
    analysis = analyze_model(two_layers())
    b2 = next(v for v in analysis.collection.parameters if v.name == "b2")
    chain = analysis.chain(b2[0].id)
    assert [step[:2] for step in chain.steps] == [("b2", 0), ("y", 1)]
    assert str(chain).endswith("graph output 'y' (the graph)")


def test_cost_follows_what_stays() -> None:
    analysis = analyze_model(two_layers())
    assert analysis.cost.params == 7 * 5 + 7 + 3 * 7 + 3
    assert analysis.cost.macs == 7 * 5 + 7 * 3
    assert analysis.cost.bytes == 4 * analysis.cost.params
    after = analysis.costs(analysis.alive({analysis.groups[0].id: [0, 6]}))
    assert (after.params, after.macs) == (5 * 5 + 5 + 3 * 5 + 3, 5 * 5 + 5 * 3)


def test_an_operator_without_a_rule_freezes_what_it_touches() -> None:
    nodes = [
        node("MatMul", "x w1", "h"),
        helper.make_node("Unheard", ["h"], ["a"], name="odd", domain="my.domain"),
        node("MatMul", "a w2", "y"),
    ]
    model = model_of(nodes, {"w1": (5, 7), "w2": (7, 3)}, (2, 5), (2, 3))
    model.proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    model.proto.graph.value_info.append(helper.make_tensor_value_info("a", T.FLOAT, [2, 7]))
    analysis = analyze_model(model)
    assert analysis.groups == ()
    assert analysis.collection.without_rule == {"my.domain::Unheard": 1}
    assert any("no rule for 'my.domain::Unheard'" in row.reason for row in analysis.locked)


def test_an_unknown_group_is_named_with_the_nearest() -> None:
    analysis = analyze_model(two_layers())
    with pytest.raises(UnknownNameError, match="Did you mean"):
        analysis.group(analysis.groups[0].id + "x")


def test_input_shapes_give_dynamic_axes_a_size() -> None:
    at_four = analyze_model(two_layers(), {"x": (4, 5)})
    assert at_four.cost.macs == 4 * analyze_model(two_layers()).cost.macs
    with pytest.raises(OptionError, match="fixed at 5"):
        analyze_model(two_layers(), {"x": (4, 6)})
    with pytest.raises(UnknownNameError):
        analyze_model(two_layers(), {"z": (4, 5)})


def concat_of_products() -> Model:
    """q and k of 2 heads of 3, v of 2 heads of 4, in one product: what a plain axis takes over from its parts."""
    nodes = [
        node("MatMul", "x w", "qkv"),
        node("Split", "qkv sizes", "q k v", axis=1),
        node("Reshape", "q narrow", "qh"),
        node("Reshape", "k narrow", "kh"),
        node("Reshape", "v wide", "vh"),
        node("Mul", "qh kh", "s"),
        node("ReduceSum", "s last", "t", keepdims=1),
        node("Mul", "vh t", "o"),
        node("Reshape", "o flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    return model_of(
        nodes, {"w": (5, 20), "w2": (8, 7)}, (3, 5), (3, 7),
        sizes=[6, 6, 8], narrow=[3, 2, 3], wide=[3, 2, 4], flat=[3, 8], last=[2],
    )  # fmt: skip


def test_units_of_a_fused_product_are_heads_and_two_widths() -> None:
    groups = analyze_model(concat_of_products()).groups
    assert sorted((g.width, g.blocks) for g in groups) == [(2, 1), (3, 2), (4, 2)]
    by_size = {g.width: g for g in groups}
    unit = {m.initializer: m.unit.tolist() for m in by_size[2].members}
    assert unit["w"] == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 + [0] * 4 + [1] * 4
    assert unit["w2"] == [0] * 4 + [1] * 4
    assert {m.initializer: m.unit.tolist() for m in by_size[3].members} == {"w": [0, 1, 2, 3, 4, 5] * 2 + [-1] * 8}
    assert by_size[3].block.tolist() == [0] * 3 + [1] * 3
    assert {m.initializer for m in by_size[4].members} == {"w", "w2"}


def test_analysis_is_read_only_and_deterministic() -> None:
    model = concat_of_products()
    before = model.proto.SerializeToString(deterministic=True)

    def described(a: Analysis) -> list[tuple[object, ...]]:
        return [(g.id, g.kind, g.size, [(m.initializer, m.axis, m.role) for m in g.members]) for g in a.groups]

    one, two = analyze_model(model), analyze_model(model)
    assert described(one) == described(two)
    assert model.proto.SerializeToString(deterministic=True) == before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), unique=True, max_size=6))
def test_keep_is_what_the_removed_units_leave(removed: list[int]) -> None:
    analysis = analyze_model(two_layers())
    (group,) = analysis.groups
    alive = analysis.alive({group.id: removed})
    for m in group.members:
        assert np.flatnonzero(~analysis.keep(m.axis_id, alive)).tolist() == sorted(removed)
