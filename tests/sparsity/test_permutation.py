"""Units in another order compute the same, a wrong order is refused, and N:M keeps more under the one that is found."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.analysis import Analysis, analyze_model
from onnxprune.axes.collect import op_rules
from onnxprune.axes.op import Op
from onnxprune.errors import OptionError, UnknownNameError
from onnxprune.graph.model import Model, load, serialize
from onnxprune.masks import keep_mask
from onnxprune.rewrite import permute
from onnxprune.rewrite.permute import Symmetries, orbits, permute_units
from onnxprune.rewrite.positions import ALIKE, STATISTICS
from onnxprune.sparsity.permutation import NOT_NEIGHBORS, permute_for
from onnxprune.sparsity.weights import find_weights
from tests.random_graphs import build

RTOL = 1e-5  # of an output's range: float32, sums in another order
DEEP_RTOL = 1e-4  # the same through some ten random layers, as in tests/test_properties.py
ZOO = os.environ.get("ONNXPRUNE_ZOO")
REAL = Path(ZOO) / "real" if ZOO else None


class Net:
    """A small model under construction: weights are drawn as they are named."""

    def __init__(self, seed: int, **inputs: tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.infos: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> None:
        names = outputs.split()
        self.nodes.append(helper.make_node(kind, inputs.split(), names, f"n_{names[0]}", domain=domain, **attributes))

    def weight(self, name: str, *shape: int) -> str:
        self.tensors[name] = self.rng.standard_normal(shape).astype(np.float32)
        return name

    def ints(self, name: str, *values: int) -> str:
        self.tensors[name] = np.array(values, dtype=np.int64)
        return name

    def model(self, *outputs: str, opset: int = 17) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.tensors.items()],
            value_info=self.infos,
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
        return load(helper.make_model(graph, opset_imports=opsets, ir_version=8))

    def feeds(self) -> dict[str, np.ndarray]:
        return {n: self.rng.standard_normal(s).astype(np.float32) for n, s in self.inputs.items()}


def run(model: Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(serialize(model.proto), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, dict(feeds))]


def assert_same(model: Model, moved: Model, feeds: Mapping[str, np.ndarray], rtol: float = RTOL) -> None:
    for one, two in zip(run(model, feeds), run(moved, feeds), strict=True):
        assert np.ptp(one) > 0
        np.testing.assert_allclose(two, one, rtol=0, atol=rtol * float(np.ptp(one)))


def shuffled(analysis: Analysis, seed: int) -> dict[str, list[int]]:
    """Draw an order of every group that its orbits allow."""
    rng, symmetries = np.random.default_rng(seed), Symmetries(analysis)
    orders = {}
    for group in analysis.groups:
        order = np.arange(group.size)
        for units in symmetries.orbits(group.id).classes:
            order[list(units)] = rng.permutation(units)
        orders[group.id] = order.tolist()
    return orders


def changed(model: Model, moved: Model) -> set[str]:
    """Names of the tensors whose content differs."""
    old, new = model.tensors, moved.tensors
    return {n for n in new if n not in old or not np.array_equal(model.array(n), moved.array(n))}


def mlp(seed: int = 0, hidden: int = 24) -> Net:
    net = Net(seed, x=(3, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, hidden)} {net.weight('b1', hidden)}", "h")
    net.op("Relu", "h", "r")
    net.op("Gemm", f"r {net.weight('w2', hidden, 5)}", "y")
    return net


# --- the function stays ---


@pytest.mark.parametrize("block", range(5))
def test_random_orders_leave_random_graphs_alone(block: int) -> None:
    movable = total = 0
    for seed in range(block * 12, block * 12 + 12):
        graph = build(seed)
        model = Model(graph.model)
        analysis = analyze_model(model)
        orders = shuffled(analysis, seed)
        movable += sum(bool(orbits(analysis, g.id).classes) for g in analysis.groups)
        total += len(analysis.groups)
        moved = permute_units(analysis, orders)
        onnx.checker.check_model(moved.proto)
        assert_same(model, moved, graph.feeds(), DEEP_RTOL)
    # Soundness is not precision: what only a window or a block of pixels holds in place is rare.
    assert movable >= 0.95 * total


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_random_orders_leave_more_random_graphs_alone(block: int) -> None:
    for seed in range(1000 + block * 60, 1000 + block * 60 + 60):
        graph = build(seed)
        model = Model(graph.model)
        analysis = analyze_model(model)
        moved = permute_units(analysis, shuffled(analysis, seed))
        assert_same(model, moved, graph.feeds(), DEEP_RTOL)


def test_every_tensor_along_a_group_moves() -> None:
    """Convolution, normalization, slope, depthwise convolution, residual sum, and a table that is added."""
    net = Net(1, x=(2, 3, 6, 5))
    net.op("Conv", f"x {net.weight('w1', 11, 3, 1, 1)} {net.weight('b1', 11)}", "c1")
    vectors = [net.weight(n, 11) for n in ("scale", "shift", "mean", "var")]
    net.tensors["var"] = np.abs(net.tensors["var"]) + 0.5
    net.op("BatchNormalization", f"c1 {' '.join(vectors)}", "n1")
    net.op("PRelu", f"n1 {net.weight('slope', 11, 1, 1)}", "p1")
    net.op("Conv", f"p1 {net.weight('w2', 11, 1, 3, 3)}", "d1", group=11, pads=[1, 1, 1, 1])
    net.op("Add", f"d1 {net.weight('table', 11, 6, 5)}", "a1")
    net.op("Add", "a1 p1", "s1")
    net.op("Conv", f"s1 {net.weight('w3', 4, 11, 1, 1)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    (group,) = analysis.groups
    order = np.random.default_rng(2).permutation(11)
    moved = permute_units(analysis, {group.id: order.tolist()})
    assert changed(model, moved) == set(net.tensors)
    np.testing.assert_array_equal(moved.array("w1"), model.array("w1")[order])
    np.testing.assert_array_equal(moved.array("w3"), model.array("w3")[:, order])
    assert_same(model, moved, net.feeds())


def test_heads_take_their_own_head_dims_along() -> None:
    graph = build(3, ["sequence_input", "attention", "layer_norm", "attention_grouped", "ffn"])
    model = Model(graph.model)
    analysis = analyze_model(model)
    kinds = {g.id: g.kind for g in analysis.groups}
    assert {"heads", "head_dim"} <= set(kinds.values())
    for kind in ("heads", "head_dim"):
        orders = {n: p for n, p in shuffled(analysis, 5).items() if kinds[n] == kind}
        assert any(p != sorted(p) for p in orders.values())
        assert_same(model, permute_units(analysis, orders), graph.feeds(), DEEP_RTOL)


def test_head_dims_stay_in_their_head() -> None:
    graph = build(3, ["sequence_input", "attention"])
    analysis = analyze_model(Model(graph.model))
    blocked = [g for g in analysis.groups if g.blocks > 1]
    assert blocked
    for group in blocked:
        assert len(orbits(analysis, group.id).classes) == group.blocks
        order = np.arange(group.size)
        strangers = [0, int(np.flatnonzero(group.block != group.block[0])[0])]
        order[strangers] = order[strangers[::-1]]
        with pytest.raises(OptionError, match="cannot change places"):
            permute_units(analysis, {group.id: order.tolist()})


def test_constant_index_lists_are_renumbered() -> None:
    net = Net(4, x=(3, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 9)}", "h")
    net.op("Gather", f"h {net.ints('index', 8, 1, 0, 7, 2, 6, -6, 5, 4)}", "g", axis=1)
    net.op("Add", "g h", "s")
    net.op("Relu", "g", "r")
    net.op("Concat", "s r", "c", axis=1)
    net.op("MatMul", f"c {net.weight('w2', 18, 4)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    orders = shuffled(analysis, 1)
    assert_same(model, permute_units(analysis, orders), net.feeds())

    # Copies 0 1 0 1 0 1, of which 1 0 1 0 go on: exchanging the units moves the list, not only what it picks from.
    net = Net(5, x=(3, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 2)}", "h")
    net.op("Concat", "h h h", "c", axis=1)
    net.op("Gather", f"c {net.ints('index', 1, 2, 3, -2)}", "g", axis=1)
    net.op("Tanh", "g", "t")
    net.op("MatMul", f"t {net.weight('w2', 4, 5)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    (group,) = analysis.groups
    moved = permute_units(analysis, {group.id: [1, 0]})
    np.testing.assert_array_equal(moved.array("w1"), model.array("w1")[:, ::-1])
    assert [list(n.input) for n in moved.proto.graph.node if n.op_type == "Gather"] == [["c", "index.onnxprune.1"]]
    assert_same(model, moved, net.feeds())


def test_a_bias_of_two_layers_is_written_twice() -> None:
    net = Net(6, x=(3, 7))
    net.weight("b", 10)
    net.op("Gemm", f"x {net.weight('w1', 7, 10)} b", "h1")
    net.op("Gemm", f"h1 {net.weight('w2', 10, 10)} b", "h2")
    net.op("MatMul", f"h2 {net.weight('w3', 10, 4)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    first, second = analysis.groups
    reverse = list(range(10))[::-1]
    moved = permute_units(analysis, {first.id: reverse})
    assert sorted(n for n in moved.tensors if n.startswith("b")) == ["b", "b.onnxprune.1"]
    assert_same(model, moved, net.feeds())
    both = permute_units(analysis, {first.id: reverse, second.id: reverse})
    assert [n for n in both.tensors if n.startswith("b")] == ["b"]
    assert_same(model, both, net.feeds())


def test_scales_and_zero_points_move_along() -> None:
    net = Net(7, x=(3, 6))
    rng = net.rng
    net.tensors |= {
        "q": rng.integers(-90, 90, (8, 6)).astype(np.int8),
        "scale": rng.uniform(0.01, 0.1, 8).astype(np.float32),
        "zero": rng.integers(-9, 9, 8).astype(np.int8),
    }
    net.op("DequantizeLinear", "q scale zero", "w1", axis=0)
    net.op("Gemm", "x w1", "h", transB=1)
    net.op("Softmax", "h", "s", axis=1)
    net.op("MatMul", f"s {net.weight('w2', 8, 5)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    (group,) = analysis.groups
    moved = permute_units(analysis, shuffled(analysis, 2))
    assert group.why_inexact is not None
    assert changed(model, moved) == {"q", "scale", "zero", "w2"}
    assert_same(model, moved, net.feeds())


def test_the_present_order_gives_the_model_itself() -> None:
    model = mlp().model("y")
    analysis = analyze_model(model)
    assert permute_units(analysis, {}) is model
    assert permute_units(analysis, {analysis.groups[0].id: list(range(24))}) is model


# --- what must be refused ---


def sliced() -> Net:
    """The first 3 of 8 hidden units go one way, the other 5 another."""
    net = Net(8, x=(4, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 8)} {net.weight('b1', 8)}", "h")
    net.ints("zero", 0), net.ints("three", 3), net.ints("eight", 8), net.ints("axis", 1)
    net.op("Slice", "h zero three axis", "first")
    net.op("Slice", "h three eight axis", "last")
    net.op("Tanh", "first", "t")
    net.op("Concat", "t last", "c", axis=1)
    net.op("MatMul", f"c {net.weight('w2', 8, 5)}", "y")
    return net


def test_a_wrong_claim_of_interchangeable_units_is_refused() -> None:
    net = sliced()
    model = net.model("y")
    analysis = analyze_model(model)
    first, last = sorted(analysis.groups, key=lambda g: g.size)
    assert (first.size, last.size) == (3, 5)
    # Claim that all eight units are one group.
    whole = replace(
        last,
        id="claimed",
        size=8,
        roots=np.concatenate([first.roots, last.roots]),
        block=np.zeros(8, dtype=np.int64),
    )
    analysis.groups = (whole,)
    exchange = [7, *range(1, 7), 0]
    with pytest.raises(OptionError, match=r"'claimed' cannot change places like this: on axis 1 of 'first'"):
        permute_units(analysis, {"claimed": exchange})
    inside = [1, 2, 0, 7, 6, 5, 4, 3]
    feeds = net.feeds()
    assert_same(model, permute_units(analysis, {"claimed": inside}), feeds)
    found = orbits(analysis, "claimed")
    assert found.classes == ((0, 1, 2), (3, 4, 5, 6, 7))
    assert found.reason is not None
    assert "'first'" in found.reason
    # Written all the same, it computes something else.
    wrong = permute._write(analysis, Symmetries(analysis).movement({"claimed": exchange}))
    difference = max(float(np.abs(a - b).max()) for a, b in zip(run(model, feeds), run(wrong, feeds), strict=True))
    assert difference > 0.1


def test_copies_in_another_order_hold_units_in_place() -> None:
    """Of the copies 0 1 0 1 0 1, a slice lets 1 0 1 0 on: after an exchange it would have to be 0 1 0 1."""
    net = Net(9, x=(4, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 2)}", "h")
    net.op("Concat", "h h h", "c", axis=1)
    net.ints("starts", 1), net.ints("ends", 5), net.ints("axis", 1)
    net.op("Slice", "c starts ends axis", "s")
    net.op("Tanh", "s", "t")
    net.op("MatMul", f"t {net.weight('w2', 4, 5)}", "y")
    model = net.model("y")
    analysis = analyze_model(model)
    for group in analysis.groups:
        assert orbits(analysis, group.id).classes == ()
        assert "Slice 'n_s' treats them differently" in str(orbits(analysis, group.id).reason)
    assert permute_units(analysis, shuffled(analysis, 0)) is model


def test_neighbors_that_are_compared_stay() -> None:
    net = Net(10, x=(2, 3, 5, 4))
    net.op("Conv", f"x {net.weight('w1', 9, 3, 1, 1)}", "c")
    net.op("LRN", "c", "n", size=3, alpha=0.5)
    net.op("Conv", f"n {net.weight('w2', 6, 9, 1, 1)}", "y")
    analysis = analyze_model(net.model("y"))
    (group,) = analysis.groups
    assert group.size == 9
    found = orbits(analysis, group.id)
    assert found.classes == ()
    assert found.reason is not None
    assert "LRN" in found.reason
    with pytest.raises(OptionError, match="LRN"):
        permute_units(analysis, {group.id: [1, 0, *range(2, 9)]})


def test_an_unknown_operator_may_tell_positions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(op: Op) -> None:
        op.broadcast(slots=[0])
        op.zeros("all", 0)

    monkeypatch.setitem(op_rules._entries, "custom::Ripple", rule)
    net = Net(11, x=(2, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 6)}", "h")
    net.op("Ripple", "h", "p", domain="custom")
    net.infos.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, (2, 6)))
    net.op("MatMul", f"p {net.weight('w2', 6, 4)}", "y")
    analysis = analyze_model(net.model("y"))
    (group,) = analysis.groups
    found = orbits(analysis, group.id)
    assert found.classes == ()
    assert found.reason is not None
    assert "may tell positions apart" in found.reason


def test_the_list_of_operators_names_rules_that_exist() -> None:
    assert set(op_rules) >= ALIKE | STATISTICS
    # Their outputs are positions, random numbers or running sums along the axes they mention most.
    assert not ALIKE & {"Bernoulli", "GatherElements", "EyeLike", "Range", "NonZero"}


@pytest.mark.parametrize("order", [[0, 1], [*range(23), 22], [*range(1, 25)], [[0] * 24]])
def test_what_is_no_order_is_refused(order: list[int]) -> None:
    analysis = analyze_model(mlp().model("y"))
    with pytest.raises(OptionError, match="no permutation of its 24 units"):
        permute_units(analysis, {analysis.groups[0].id: order})


def test_unknown_groups_are_named() -> None:
    analysis = analyze_model(mlp().model("y"))
    with pytest.raises(UnknownNameError, match=r"Did you mean 'w1'"):
        permute_units(analysis, {"w11": [0]})


# --- what the new order is for ---


def kept(model: Model, pattern: str = "2:4", names: tuple[str, ...] | None = None) -> float:
    """Sum what the pattern keeps, with the masks that sparsify uses."""
    total = 0.0
    for weight in find_weights(model).found:
        if names is None or weight.name in names:
            values = weight.values(model)
            total += float(np.abs(values[keep_mask(values, pattern=pattern)]).sum(dtype=np.float64))
    return total


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_more_magnitude_survives(pattern: str) -> None:
    net = mlp(12)
    net.tensors["w2"][:12] *= 8  # strong channels side by side: the worst order there is
    model = net.model("y")
    found = permute_for(model, pattern, work=100_000_000)
    np.testing.assert_allclose(found.before, kept(model, pattern), rtol=1e-6)
    np.testing.assert_allclose(found.after, kept(found.model, pattern), rtol=1e-6)
    np.testing.assert_allclose(found.total, sum(np.abs(net.tensors[n]).sum() for n in ("w1", "w2")), rtol=1e-6)
    assert found.after > 1.05 * found.before
    (row,) = found.rows
    assert (row.group, row.units, row.weights, row.reason) == ("w1", 24, ("w2",), None)
    assert row.after - row.before == pytest.approx(found.after - found.before)
    assert_same(model, found.model, net.feeds())
    again = permute_for(analyze_model(model), pattern, work=100_000_000)
    assert serialize(again.model.proto) == serialize(found.model.proto)
    assert again == found or again.permutations == found.permutations


def branches() -> Net:
    """Two consumers of one group, one of them behind a concatenation where it begins inside a group of four."""
    net = Net(13, x=(3, 7))
    net.op("Gemm", f"x {net.weight('w1', 7, 16)}", "h")
    net.op("Gemm", f"x {net.weight('w2', 7, 6)}", "g")
    net.op("Concat", "g h", "c", axis=1)
    net.op("MatMul", f"h {net.weight('w3', 16, 9)}", "y1")
    net.op("MatMul", f"c {net.weight('w4', 22, 5)}", "y2")
    return net


def test_only_the_chosen_layers_count() -> None:
    net = branches()
    net.tensors["w3"][:8] *= 8
    net.tensors["w4"][6:14] *= 8
    model = net.model("y1", "y2")
    gained = {}
    for layers in (["w3"], ["w4"], ["w3", "w4"], ["w1"]):
        found = permute_for(model, layers=layers, work=100_000_000)
        before, after = (kept(m, names=tuple(layers)) for m in (model, found.model))
        np.testing.assert_allclose((found.before, found.after), (before, after), rtol=1e-6)
        gained[tuple(layers)] = after - before
        assert_same(model, found.model, net.feeds())
    assert min(gained["w3",], gained["w4",], gained["w3", "w4"]) > 0
    assert gained["w1",] == 0
    assert gained["w3", "w4"] >= gained["w3",] * 0.9


def test_convolutions_count_every_pixel() -> None:
    net = Net(14, x=(2, 3, 8, 7))
    net.op("Conv", f"x {net.weight('w1', 20, 3, 3, 3)} {net.weight('b1', 20)}", "c")
    net.op("Relu", "c", "r")
    net.op("Conv", f"r {net.weight('w2', 6, 20, 3, 2)}", "d")
    net.op("Flatten", "d", "f")
    net.op("MatMul", f"f {net.weight('w3', 6 * 4 * 4, 5)}", "y")
    net.tensors["w2"][:, :8] *= 5
    model = net.model("y")
    found = permute_for(model, work=100_000_000)
    first, second = found.rows
    np.testing.assert_allclose(found.after, kept(found.model), rtol=1e-6)
    assert first.after > first.before
    # Each of the six channels has 16 columns of its own, so their order makes no difference.
    assert (second.reason, second.after) == (NOT_NEIGHBORS, second.before)
    assert_same(model, found.model, net.feeds())


def test_groups_that_stay_say_why() -> None:
    net = Net(15, x=(2, 3, 5, 4))
    net.op("Conv", f"x {net.weight('w1', 9, 3, 1, 1)}", "c")
    net.op("LRN", "c", "n", size=3, alpha=0.5)
    net.op("Conv", f"n {net.weight('w2', 6, 9, 1, 1)}", "y")
    model = net.model("y")
    found = permute_for(model)
    assert found.model is model
    assert found.before == found.after
    assert found.rows[0].reason is not None
    assert "LRN" in found.rows[0].reason
    assert found.to_json()["groups"][0]["reason"] == found.rows[0].reason


def test_patterns_without_groups_and_unknown_layers_are_refused() -> None:
    model = mlp().model("y")
    with pytest.raises(OptionError, match="N:M"):
        permute_for(model, "4x1")
    with pytest.raises(UnknownNameError, match="w22"):
        permute_for(model, layers=["w22"])


# --- real models ---

REAL_MODELS = ("crepe_tiny", "fmnist_resnet", "fmnist_vit", "g2p_en_gru", "py_gpt2")


def real_model(name: str) -> Model | None:
    if REAL is None:
        return None
    path = REAL / "models" / f"{name}.onnx"
    return load(path) if path.is_file() else None


def calibration(name: str) -> list[dict[str, np.ndarray]]:
    """Give samples from the model's own evaluation."""
    assert REAL is not None
    folder = str(REAL / "eval")
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"eval_{name}", REAL / "eval" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.calib(2))[:2]


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="ONNXPRUNE_ZOO names no folder")
@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models_keep_more(name: str) -> None:
    model = real_model(name)
    if model is None:
        pytest.skip(f"the zoo has no {name}")
    found = permute_for(model, work=200_000_000)
    assert found.after > found.before
    for feeds in calibration(name):
        assert_same(model, found.model, feeds)
