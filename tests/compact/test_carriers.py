"""Dead units that no bias can replace: as few of them stay as say what all of them do, and the reason says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.compaction import GroupOutcome
from onnxprune.compaction.carriers import MAX_RATIO, View, choose_carriers, parts
from onnxprune.graph.model import Model
from tests.compact.networks import Array, Network, compacted, input_for, removed, weights_of
from tests.test_properties import run


def probe(model: Model, name: str, feeds: dict[str, Array]) -> Array:
    """Run a model up to a value."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(proto, feeds)[-1]


def group_of(groups: tuple[GroupOutcome, ...], size: int) -> GroupOutcome:
    """Find the only group of a size."""
    (group,) = (g for g in groups if g.size == size)
    return group


# --- choosing ---


def test_as_many_carriers_as_there_are_directions() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 40))
    view = View(0, tuple(range(12)), np.ones(12, dtype=bool), rows, np.zeros(12))
    chosen = choose_carriers(12, [view])
    assert len(chosen) == 3
    np.testing.assert_allclose(parts(view, chosen) @ rows[chosen], rows, atol=1e-9)
    assert np.abs(parts(view, chosen)).max() < MAX_RATIO


def test_one_choice_serves_all_views() -> None:
    rng = np.random.default_rng(4)
    rows = [np.outer(rng.random(9), [1, 2]) for _ in range(2)]
    views = [View(k, tuple(range(9)), np.ones(9, dtype=bool), r, np.zeros(9)) for k, r in enumerate(rows)]
    assert len(choose_carriers(9, views)) == 1


def test_units_that_nobody_needs_carry_nothing() -> None:
    view = View(0, (0, 1), np.zeros(2, dtype=bool), np.eye(2), np.zeros(2))
    assert choose_carriers(2, [view]) == []


# --- maps ---


def before_padding(size: int | str, width: int) -> Network:
    """Make a wide convolution before a padded one, with constants of all sizes and signs."""
    net = Network(("n", 40, size, 5))
    net.conv("a", 40, 8, 3)
    net.op("Sigmoid")
    net.conv("b", 8, width, 3, pad=1)
    net.op("Relu")
    net.conv("c", width, 3, 1)
    net.mask_rows("a", [1, 2, 7], prune_bias=False)
    return net


def test_a_map_that_is_smaller_takes_the_carrier_out() -> None:
    """A carrier is 40 * 9 numbers and more; sums of 4 channels at 3 * 3 places are 36."""
    result = compacted(before_padding(5, 4).model(), sizes={"n": 3})
    assert removed(result) == {"constant": (1, 2, 7)}
    (added,) = (n for n in result.model.proto.graph.node if n.op_type == "Add")
    assert weights_of(result.model)[added.input[1]].shape == (1, 4, 3, 3)


@pytest.mark.parametrize(("size", "width"), [("h", 4), (21, 60)])
def test_a_map_that_is_larger_or_has_no_size_is_not_made(size: int | str, width: int) -> None:
    result = compacted(before_padding(size, width).model(), sizes={"n": 3, "h": 5})
    group = group_of(result.groups, 8)
    assert (group.n_removed, len(group.kept)) == (2, 1)
    assert "Add" not in [n.op_type for n in result.model.proto.graph.node]


# --- normalizations written out ---


def normalized(net: Network, size: int) -> str:
    """Write a LayerNorm out as it comes out of JAX: sums times a constant, not means."""
    x = net.value
    axis = net.constant("axis", [-1], np.int64)
    mean = net.op("Mul", net.op("ReduceSum", x, axis, keepdims=1), net.constant("share", 1 / size))
    square = net.op("Mul", net.op("ReduceSum", net.op("Mul", x, x), axis, keepdims=1), "share")
    variance = net.op("Sub", square, net.op("Mul", mean, mean))
    scale = net.op("Reciprocal", net.op("Sqrt", net.op("Add", variance, net.constant("epsilon", 1e-5))))
    net.op("Mul", net.op("Sub", x, mean), net.op("Mul", scale, net.weight("gamma", size)))
    return net.op("Add", net.value, net.weight("beta", size))


def test_two_units_stay_behind_a_layer_norm_written_out() -> None:
    """(c - mean) * scale: all dead units together say what the mean and the deviation are, which two can say."""
    net = Network(("n", 6))
    net.linear("a", 6, 11)
    net.op("Tanh")
    out = normalized(net, 11)
    net.linear("b", 11, 5)
    dead = [1, 2, 4, 7, 8, 10]
    net.mask_rows("a", dead, prune_bias=False)
    model = net.model()
    result = compacted(model, sizes={"n": 40})
    group = group_of(result.groups, 11)
    assert len(group.kept) == 2
    assert group.n_removed == 4
    assert all("scaled or shifted by other values" in why for _, why in group.kept)
    x = np.random.default_rng(2).standard_normal((50, 6)).astype(np.float32)
    values = probe(model, out, {"x": x})[:, dead]
    # Less than two cannot do: beside a constant, what the dead units give has two directions.
    assert np.linalg.matrix_rank(values - values.mean(axis=0), tol=1e-3) == 2


def test_one_unit_stays_where_a_gate_scales_all() -> None:
    net = Network(("n", "t", 6))
    gate = net.product("gate", 6, 1)
    net.value = "x"
    net.product("a", 6, 9)
    net.op("Mul", net.op("Sigmoid"), net.op("Sigmoid", gate))
    net.product("b", 9, 4)
    net.mask_rows("a", [0, 3, 5], prune_bias=False, axis=1)
    result = compacted(net.model(), sizes={"n": 2, "t": 5})
    group = group_of(result.groups, 9)
    assert (group.n_removed, len(group.kept)) == (2, 1)


def test_a_signal_at_other_places_is_another_signal() -> None:
    """Scaled by one position's gate and by the next one's: the difference is no zero."""
    net = Network(("n", 4, 6))
    gate = net.op("Sigmoid", net.product("gate", 6, 1))
    net.value = "x"
    net.product("a", 6, 9)
    scaled = net.op("Mul", net.op("Sigmoid"), gate)
    places = [net.constant(f"place{k}", [k], np.int64) for k in range(4)]
    first = net.op("Slice", scaled, places[0], places[2], places[1])
    second = net.op("Slice", scaled, places[2], net.constant("end", [4], np.int64), places[1])
    net.op("Sub", first, second)
    net.product("b", 9, 4)
    net.mask_rows("a", [0, 3, 5], prune_bias=False, axis=1)
    group = group_of(compacted(net.model(), sizes={"n": 3}).groups, 9)
    assert (group.n_removed, len(group.kept)) == (2, 1)


# --- recurrent layers ---


def recurrent(cell: str, hidden: int, *, directions: int = 1, lengths: bool = False, **attributes: int) -> Network:
    """Make a recurrent layer over (t, n, 5) with a linear layer behind it."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    net = Network(("t", 3, 5))
    given = [net.weight("w", directions, gates * hidden, 5), net.weight("r", directions, gates * hidden, hidden)]
    given.append(net.weight("b", directions, 2 * gates * hidden))
    if lengths:
        given.append(net.constant("lengths", [4, 1, 6], np.int32))
    both = {"direction": "bidirectional"} if directions == 2 else {}
    net.op(cell, "x", *given, hidden_size=hidden, **both, **attributes)
    net.op("Transpose", perm=[0, 2, 1, 3])
    net.op("Reshape", net.value, net.constant("shape", [0, 0, -1], np.int64))
    net.product("out", directions * hidden, 4)
    return net


def silence(net: Network, hidden: int, units: list[int]) -> None:
    """Write the rows of units as zero in every gate and direction; their biases stay."""
    for name in ("w", "r"):
        array = net.weights[name]
        array.reshape(array.shape[0], -1, hidden, array.shape[2])[:, :, units] = 0


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("cell", "attributes"), [("GRU", {"linear_before_reset": 1}), ("LSTM", {}), ("RNN", {})])
def test_paths_of_dead_units_carry_each_other(
    cell: str, attributes: dict[str, int], directions: int, lengths: bool
) -> None:
    """Biases alone drive dead units, on paths that few of them span; at any number of steps."""
    hidden, dead = 60, list(range(3, 55))
    net = recurrent(cell, hidden, directions=directions, lengths=lengths, **attributes)
    silence(net, hidden, dead)
    model = net.model()
    for t in (6, 41):
        result = compacted(model, sizes={"t": t})
    group = group_of(result.groups, hidden)
    assert group.n_removed + len(group.kept) == len(dead)
    assert group.n_removed >= {"GRU": 25, "LSTM": 8, "RNN": 50}[cell]
    assert all("moving from step to step; it carries" in why for _, why in group.kept)
    assert weights_of(result.model)["w"].shape[1] % (hidden - group.n_removed) == 0


def test_a_unit_that_moves_in_one_direction_only() -> None:
    net = recurrent("LSTM", 20, directions=2)
    dead = list(range(2, 18))
    silence(net, 20, dead)
    net.weights["b"].reshape(2, 8, 20)[1][:, dead] = 0
    group = group_of(compacted(net.model(), sizes={"t": 9}).groups, 20)
    assert group.n_removed >= 2
    assert group.n_removed + len(group.kept) == len(dead)


def test_a_decoder_that_starts_where_the_encoder_ends() -> None:
    hidden, dead = 40, list(range(2, 34))
    net = Network(("t", 3, 5))
    for part in ("encoder", "decoder"):
        names = [net.weight(f"{part}.{n}", 1, 3 * hidden, k) for n, k in (("w", 5), ("r", hidden))]
        names.append(net.weight(f"{part}.b", 1, 6 * hidden, scale=0.1))
        for name in names[:2]:
            net.weights[name].reshape(3, hidden, -1)[:, dead] = 0
        start = ["", net.nodes[-1].output[1]] if net.nodes else []
        net.op("GRU", "x", *names, *start, hidden_size=hidden, linear_before_reset=1, outputs=2 if not net.nodes else 1)
    net.op("Squeeze", net.value, net.constant("one", [1], np.int64))
    net.product("out", hidden, 4)
    group = group_of(compacted(net.model(), sizes={"t": 9}).groups, hidden)
    assert group.n_removed >= 10
    assert group.n_removed + len(group.kept) == len(dead)


def test_a_path_is_no_multiple_of_another() -> None:
    """Why one of two dead units with a bias cannot go: their paths are two directions, at two steps already."""
    net = recurrent("GRU", 7, linear_before_reset=1)
    silence(net, 7, [1, 4])
    model = net.model()
    group = group_of(compacted(model, sizes={"t": 6}).groups, 7)
    assert [u for u, _ in group.kept] == [1, 4]
    y = model.proto.graph.node[0].output[0]
    path = probe(model, y, input_for(model, {"t": 6}))[:, 0, :, [1, 4]]
    # path: (units, steps, samples)
    assert (path == path[:, :, :1]).all(), "no input has a part in it"
    assert np.linalg.matrix_rank(path[:, :, 0], tol=1e-3) == 2


def test_a_gru_that_resets_first_keeps_what_moves() -> None:
    net = recurrent("GRU", 7)
    silence(net, 7, [1, 4])
    group = group_of(compacted(net.model(), sizes={"t": 6}).groups, 7)
    assert [u for u, _ in group.kept] == [1, 4]
    assert all("in a way that no other unit says" in why for _, why in group.kept)


# --- quantization at run time ---


def quantized_lstm(dead: list[int], *, prune_bias: bool) -> Model:
    """Make a DynamicQuantizeLSTM with dead units, and a product behind it that is quantized at run time too."""
    hidden, rng = 9, np.random.default_rng(5)
    net = Network(("t", 1, 5))
    codes = {"w": rng.integers(-90, 90, (1, 5, 36)), "r": rng.integers(-90, 90, (1, hidden, 36))}
    for name, array in codes.items():
        array.reshape(*array.shape[:2], 4, hidden)[..., dead] = 3
        net.constant(name, array, np.int8)
        net.constant(f"{name}.scale", [0.01])
        net.constant(f"{name}.zero", [3], np.int8)
    net.weight("b", 1, 72)
    if prune_bias:
        net.weights["b"].reshape(8, hidden)[:, dead] = 0
    parts = ["w.scale", "w.zero", "r.scale", "r.zero"]
    given = ["x", "w", "r", "b", "", "", "", "", *parts]
    net.op("DynamicQuantizeLSTM", *given, domain="com.microsoft", hidden_size=hidden)
    net.op("Squeeze", net.value, net.constant("one", [1], np.int64))
    net.op("DynamicQuantizeLinear", outputs=3)
    q, scale, zero = net.nodes[-1].output
    net.constant("out", rng.integers(-90, 90, (hidden, 4)), np.int8)
    net.op("MatMulInteger", q, "out", zero)
    net.op("Mul", net.op("Cast", to=TensorProto.FLOAT), scale)
    model = net.model()
    shape = model.proto.graph.output[0].type.tensor_type.shape
    for size in ({"dim_param": "t"}, {"dim_value": 1}, {"dim_value": 4}):
        shape.dim.add(**size)
    return Model(model.proto)


def test_units_that_stay_zero_go_from_a_lstm_quantized_at_run_time() -> None:
    """A range takes in zero anyway, so zeros neither change it nor are rounded."""
    model = quantized_lstm([1, 6], prune_bias=True)
    result = compacted(model, sizes={"t": 8}, rtol=0)
    assert removed(result) == {"zero": (1, 6)}
    assert weights_of(result.model)["r"].shape == (1, 7, 28)


def test_units_that_move_stay_in_a_lstm_quantized_at_run_time() -> None:
    result = compacted(quantized_lstm([1, 6], prune_bias=False), sizes={"t": 8})
    assert not result.n_removed
    kept = group_of(result.groups, 9).kept
    assert [u for u, _ in kept] == [1, 6]
    assert all("rounds what is not zero by the range" in why for _, why in kept)


def test_what_a_constant_is_rounded_to_follows_from_the_others() -> None:
    """Why they stay: one constant, quantized beside other numbers, is another number at every run."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]), ir_version=10, opset_imports=[helper.make_opsetid("", 17)]
    )
    found = {float(run(proto, {"x": np.array([0.1, other], np.float32)})[0][0]) for other in (0.3, 0.7, 0.9, -0.8)}
    assert len(found) >= 3
