"""Blocks: other dimensions in every head, other channels in every group, equally many of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.blocks import find_contexts
from onnxprune.axes.layers import label
from onnxprune.errors import PlanError
from onnxprune.graph.model import Model
from onnxprune.rewrite.apply import apply_plan
from onnxprune.verification.twin import masked_twin
from tests.test_engine import model_of, node
from tests.test_properties import constants, distance, plan_for, run

RTOL = 1e-5  # of an output's range, float32
HEADS, DIM, LENGTH, IN, OUT = 3, 4, 5, 7, 6
WIDTH = HEADS * DIM


def attention(*between: onnx.NodeProto, queries: str = "qh", **weights: tuple[int, ...]) -> Model:
    """Attention with a weight each for queries, keys and values; `between` turns `qh` into `queries`."""
    nodes = [
        *[node("MatMul", f"x w{k}", k) for k in "qkv"],
        *[node("Reshape", f"{k} apart", f"{k}s") for k in "qkv"],
        node("Transpose", "qs", "qh", perm=[1, 0, 2]),
        node("Transpose", "ks", "kh", perm=[1, 2, 0]),
        node("Transpose", "vs", "vh", perm=[1, 0, 2]),
        *between,
        node("MatMul", f"{queries} kh", "scores"),
        node("Softmax", "scores", "p"),
        node("MatMul", "p vh", "o"),
        node("Transpose", "o", "ot", perm=[1, 0, 2]),
        node("Reshape", "ot flat", "of"),
        node("MatMul", "of wo", "y"),
    ]
    sizes = {f"w{k}": (IN, WIDTH) for k in "qkv"} | {"wo": (WIDTH, OUT)} | weights
    ints = {"apart": [LENGTH, HEADS, DIM], "flat": [LENGTH, WIDTH]}
    return model_of(nodes, sizes, (LENGTH, IN), (LENGTH, OUT), **ints)


def described(analysis: Analysis) -> set[tuple[str, int, int]]:
    return {(g.kind, g.blocks, g.width) for g in analysis.groups}


def cut(model: Model, name: str, removed: Sequence[int]) -> dict[str, np.ndarray]:
    """Remove units of the group that the initializer `name` produces, prove it, and give the weights."""
    analysis = analyze_model(model)
    group = next(g for g in analysis.groups if g.kind != "heads" and any(m.initializer == name for m in g.members))
    plan = plan_for(analysis, {group.id: removed})
    pruned = apply_plan(analysis, plan)
    proto = pruned.proto
    onnx.checker.check_model(proto, full_check=True)
    feeds = {"x": np.random.default_rng(1).standard_normal((LENGTH, IN)).astype(np.float32)}
    twin = masked_twin(model, plan, pruned)
    assert distance(run(proto, feeds), run(twin, feeds)) <= RTOL
    assert distance(run(model.proto, feeds), run(twin, feeds)) > 100 * RTOL, "the removal must show"
    return constants(proto)


def test_every_head_may_lose_other_dimensions() -> None:
    model = attention()
    assert described(analyze_model(model)) == {("heads", 1, 3), ("head_dim", 3, 4)}
    after = cut(model, "wo", [0, 6, 11])
    before = constants(model.proto)
    kept = [1, 2, 3, 4, 5, 7, 8, 9, 10]
    np.testing.assert_array_equal(after["wv"], before["wv"][:, kept])
    np.testing.assert_array_equal(after["wo"], before["wo"][kept])
    assert after["wq"].shape == (IN, WIDTH)
    after = cut(model, "wk", [1, 3, 4, 5, 8, 10])
    np.testing.assert_array_equal(after["wk"], before["wk"][:, [0, 2, 6, 7, 9, 11]])
    np.testing.assert_array_equal(after["wq"], before["wq"][:, [0, 2, 6, 7, 9, 11]])


def test_heads_and_their_dimensions_go_together() -> None:
    model = attention()
    analysis = analyze_model(model)
    heads = next(g for g in analysis.groups if g.kind == "heads")
    dims = [g for g in analysis.groups if g.kind == "head_dim"]
    plan = plan_for(analysis, {heads.id: [0], **{g.id: [3, 4, 9] for g in dims}})
    pruned = apply_plan(analysis, plan)
    assert constants(pruned.proto)["wo"].shape == (6, OUT)
    assert analysis.costs(analysis.alive({g.id: g.removed for g in plan.groups})).params == 4 * 6 * IN - 6 * (IN - OUT)
    feeds = {"x": np.random.default_rng(1).standard_normal((LENGTH, IN)).astype(np.float32)}
    assert distance(run(pruned.proto, feeds), run(masked_twin(model, plan, pruned), feeds)) <= RTOL


def test_the_choice_follows_the_weights_of_each_head() -> None:
    model = attention()
    weights = constants(model.proto)
    weak = [2, 4, 9]  # another dimension of each head
    for t in model.proto.graph.initializer:
        if t.name == "wv":
            array = weights["wv"].copy()
            array[:, weak] *= 1e-3
            t.CopyFrom(onnx.numpy_helper.from_array(array, "wv"))
    plan = onnxprune.plan(Model(model.proto), ratio=0.25, kinds=["head_dim"])
    rows = {s.initializer: list(s.removed) for s in plan.slices}
    assert rows["wv"] == rows["wo"] == weak


def test_unequal_blocks_are_refused() -> None:
    analysis = analyze_model(attention())
    group = next(g for g in analysis.groups if g.kind == "head_dim")
    with pytest.raises(PlanError, match="unequal numbers from the 3 blocks"):
        apply_plan(analysis, plan_for(analysis, {group.id: [0, 1, 4]}))


ROTATED = [
    node("Split", "qh", "q1 q2", axis=2, num_outputs=2),
    node("Concat", "q2 q1", "qt", axis=2),
]


@pytest.mark.parametrize(
    ("between", "weights", "widths"),
    [
        ([node("Mul", "qh table", "qt")], {"table": (LENGTH, DIM)}, {4}),
        ([node("MatMul", "qh shared", "qt")], {"shared": (DIM, DIM)}, {4}),
        (ROTATED, {}, {2}),
    ],
    ids=["a table all heads read", "a matrix all heads share", "a rotation"],
)
def test_what_all_heads_share_ties_their_dimensions(
    between: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], widths: set[int]
) -> None:
    analysis = analyze_model(attention(*between, queries="qt", **weights))
    of_keys = [g for g in analysis.groups if g.kind == "head_dim" and any(m.initializer == "wk" for m in g.members)]
    assert {(g.blocks, g.width) for g in of_keys} == {(1, width) for width in widths}
    of_values = [g for g in analysis.groups if g.kind == "head_dim" and any(m.initializer == "wv" for m in g.members)]
    assert [(g.blocks, g.width) for g in of_values] == [(3, 4)]


def test_the_order_of_factors_matters() -> None:
    """Groups of 3 channels, shuffled: what counts the blocks comes to lie inside, and nothing keeps it apart."""
    nodes = [
        node("MatMul", "x w", "h"), node("Reshape", "h apart", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]),
        node("Reshape", "b flat", "c"), node("MatMul", "c v", "y"),
    ]  # fmt: skip
    model = model_of(nodes, {"w": (IN, 12), "v": (12, OUT)}, (LENGTH, IN), (LENGTH, OUT), apart=[5, 4, 3], flat=[5, 12])
    assert all(g.blocks == 1 for g in analyze_model(model).groups)
    straight = [node("MatMul", "x w", "h"), node("Reshape", "h apart", "a"), node("Softmax", "a", "b", axis=2)]
    straight += [node("Reshape", "b flat", "c"), node("MatMul", "c v", "y")]
    model = model_of(
        straight, {"w": (IN, 12), "v": (12, OUT)}, (LENGTH, IN), (LENGTH, OUT), apart=[5, 4, 3], flat=[5, 12]
    )
    assert {(g.blocks, g.width, g.exact) for g in analyze_model(model).groups} == {(1, 4, True), (4, 3, False)}


@pytest.mark.parametrize("shown", [False, True])
def test_blocks_read_apart(*, shown: bool) -> None:
    """The last of four blocks has a reader of its own; where that is the graph's output, none may lose anything."""
    nodes = [
        node("MatMul", "x w", "h"), node("Reshape", "h apart", "a"), node("Relu", "a", "b"),
        node("Reshape", "b flat", "c"), node("Split", "c halves", "d e", axis=1), node("MatMul", "d v", "f"),
        *([node("Concat", "f e", "y", axis=1)] if shown else [node("MatMul", "e u", "g"), node("Add", "f g", "y")]),
    ]  # fmt: skip
    weights = {"w": (IN, 12), "v": (9, OUT), **({} if shown else {"u": (3, OUT)})}
    out = (LENGTH, OUT + 3 * shown)
    model = model_of(nodes, weights, (LENGTH, IN), out, apart=[5, 4, 3], flat=[5, 12], halves=[9, 3])
    analysis = analyze_model(model)
    collection, factors = analysis.collection, analysis.factors
    contexts = find_contexts(collection, factors)
    assert contexts
    assert (label(factors, collection.relations, {}).block < 0).all()
    assert (label(factors, collection.relations, contexts).block < 0).all() == shown
    assert described(analysis) == ({("features", 1, 3)} if shown else {("features", 1, 4), ("features", 4, 3)})
    if not shown:
        group = next(g for g in analysis.groups if g.blocks == 4)
        plan = plan_for(analysis, {group.id: [0, 4, 7, 11]})
        pruned = apply_plan(analysis, plan)
        feeds = {"x": np.random.default_rng(1).standard_normal((LENGTH, IN)).astype(np.float32)}
        assert constants(pruned.proto)["u"].shape == (2, OUT)
        assert distance(run(pruned.proto, feeds), run(masked_twin(model, plan, pruned), feeds)) <= RTOL


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_round_to_counts_within_a_block(ratio: float) -> None:
    nodes = [
        node("Conv", "x wa", "a"), node("Conv", "a wb", "b", group=2), node("Relu", "b", "c"), node("Conv", "c wc", "y")
    ]  # fmt: skip
    weights = {"wa": (6, 3, 1, 1), "wb": (16, 3, 1, 1), "wc": (5, 16, 1, 1)}
    model = model_of(nodes, weights, (2, 3, 4, 5), (2, 5, 4, 5))
    plan = onnxprune.plan(model, ratio=ratio, round_to=4, kinds=["channels"])
    group = next(g for g in plan.groups if g.blocks == 2)
    assert (group.size, len(group.removed)) == (16, 0 if ratio < 0.5 else 8)
    assert group.to_json()["blocks"] == 2


def test_groups_together_never_empty_an_axis() -> None:
    """5 + 5 channels meet a convolution in 2 groups: group 0 and its 5 channels are all of the first part."""
    nodes = [
        node("Conv", "x wa", "a"), node("Conv", "x wb", "b"), node("Concat", "a b", "c", axis=1),
        node("Conv", "c wg", "d", group=2), node("Conv", "d wc", "y"),
    ]  # fmt: skip
    weights = {"wa": (6, 3, 1, 1), "wb": (4, 3, 1, 1), "wg": (14, 5, 1, 1), "wc": (5, 14, 1, 1)}
    model = model_of(nodes, weights, (2, 3, 4, 6), (2, 5, 4, 6))
    analysis = analyze_model(model)
    for seed in range(8):
        plan = onnxprune.plan(analysis, ratio=0.8, criterion="random", seed=seed)
        shapes = [a.shape for a in constants(apply_plan(analysis, plan).proto).values()]
        assert all(0 not in shape for shape in shapes)
    whole = {g.id: list(range(g.size - 1)) for g in analysis.groups if g.blocks == 1}
    if analysis.emptied(analysis.alive(whole)) is not None:
        with pytest.raises(PlanError, match="together remove every index"):
            apply_plan(analysis, plan_for(analysis, whole))
