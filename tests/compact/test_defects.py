"""What other structured sparsifiers get wrong, each as a network that must come out right."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import unit_scores
from onnxprune.axes.analysis import analyze_model
from onnxprune.compaction import compact
from onnxprune.graph.model import serialize
from tests.compact.networks import Network, compacted, removed, weights_of


@pytest.mark.parametrize("activation", ["Sigmoid", "Softplus", "HardSigmoid", "LogSigmoid"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias pruned", "never a bias"])
def test_act_of_zero_is_folded(activation: str, bias: bool) -> None:
    """18: with the bias pruned or without one, a removed unit still gives act(0)."""
    net = Network(("n", 6))
    net.linear("a", 6, 8, bias=bias)
    if activation == "LogSigmoid":
        net.op("Neg")
        net.op("Softplus")
        net.op("Neg")
    else:
        net.op(activation)
    net.linear("b", 8, 5)
    net.mask_rows("a", [1, 6], prune_bias=True)
    assert removed(compacted(net.model())) == {"constant": (1, 6)}


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("prune_bias", [True, False])
def test_a_pool_with_padding(count_include_pad: int, prune_bias: bool) -> None:
    """19: an average over zeros of the padding is no constant; one channel carries it for the others."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 6)
    net.op("Sigmoid")
    net.op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1], count_include_pad=count_include_pad)
    net.conv("b", 6, 4)
    net.mask_rows("a", [0, 3, 4], prune_bias=prune_bias)
    result = compacted(net.model())
    group = next(g for g in result.groups if g.size == 6)
    assert group.n_removed == (2 if count_include_pad else 3)
    assert len(group.kept) == (1 if count_include_pad else 0)


@pytest.mark.parametrize("order", ["run first", "not run"])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
@pytest.mark.parametrize("prune_bias", [True, False])
def test_the_next_conv_is_padded(activation: str, prune_bias: bool, order: str) -> None:
    """20: a zero goes at any padding, a constant but for one carrier; nothing depends on what ran before."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op(activation)
    net.conv("b", 8, 4, pad=1)
    net.weights["a.bias"][[1, 2, 7]] = [0.5, 0.25, 2.0]
    net.mask_rows("a", [1, 2, 7], prune_bias=prune_bias)
    model = net.model()
    if order == "run first":
        compacted(model)
    group = next(g for g in compacted(model).groups if g.size == 8)
    if activation == "Relu" and prune_bias:
        assert group.removed == {"zero": (1, 2, 7)}
    else:
        # The largest constant carries the others; equal ones leave the first.
        carrier = 1 if prune_bias else 7
        assert group.removed == {"constant": tuple(u for u in (1, 2, 7) if u != carrier)}
        ((unit, reason),) = group.kept
        assert unit == carrier
        assert "everywhere alike; it carries 2 more" in reason


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad: str) -> None:
    """21: padding by name."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Sigmoid")
    net.conv("b", 8, 4, auto_pad=auto_pad)
    net.mask_rows("a", [1, 2, 7], prune_bias=True)
    assert removed(compacted(net.model())) == {"constant": (1, 2, 7) if auto_pad == "VALID" else (2, 7)}


def test_conv_without_bias_to_flatten() -> None:
    """22: nothing to move, and still everything to cut."""
    net = Network(("n", 3, 8, 9))
    net.conv("a", 3, 6, bias=False)
    net.op("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.op("Flatten")
    net.linear("b", 6 * 9, 5, bias=False)
    net.mask_rows("a", [2, 5], prune_bias=True)
    assert removed(compacted(net.model())) == {"zero": (2, 5)}


@pytest.mark.parametrize("prune_bias", [True, False])
def test_a_depthwise_conv_between(prune_bias: bool) -> None:
    """23: channels go through a depthwise convolution with its own rows."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Relu")
    net.conv("depthwise", 8, 8, pad=1, group=8)
    net.op("Relu")
    net.conv("b", 8, 5, 1)
    net.mask_rows("a", [1, 4], prune_bias=prune_bias)
    net.mask_rows("depthwise", [1, 4], prune_bias=prune_bias)
    result = compacted(net.model())
    assert sum(map(len, removed(result).values())) == 2
    assert weights_of(result.model)["depthwise.weight"].shape == (6, 1, 3, 3)


def test_a_constant_before_a_depthwise_conv_with_padding() -> None:
    """23: at its border the depthwise convolution makes something else of every channel, so the channels stay."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Sigmoid")
    net.conv("depthwise", 8, 8, pad=1, group=8)
    net.conv("b", 8, 5, 1)
    net.mask_rows("a", [1, 4], prune_bias=True)
    result = compacted(net.model())
    assert not result.n_removed
    group = next(g for g in result.groups if g.size == 8)
    assert [u for u, _ in group.kept] == [1, 4]


def test_a_grouped_conv_behind() -> None:
    """23: whole groups go; a constant goes where all that reads it is in its group."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Relu")
    net.conv("grouped", 8, 12, group=4, pad=1)
    net.op("Relu")
    net.conv("b", 12, 5, 1)
    net.mask_rows("a", [2, 3], prune_bias=True)
    net.mask_rows("grouped", [3, 4, 5], prune_bias=True)
    result = compacted(net.model())
    assert result.n_removed
    assert weights_of(result.model)["grouped.weight"].shape[0] == 9


@pytest.mark.parametrize("prune_bias", [True, False])
def test_batch_norm_between(prune_bias: bool) -> None:
    """24: the constant goes through BatchNorm, and is not forgotten there."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.batch_norm("norm", 8)
    net.op("Relu")
    net.conv("b", 8, 5)
    net.mask_rows("a", [1, 4], prune_bias=prune_bias)
    assert sum(map(len, removed(compacted(net.model())).values())) == 2


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_batch_norm_scale_of_zero(activation: str) -> None:
    """An L1-trained BatchNorm scale of zero leaves its shift, whatever the convolution in front of it computes."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8, bias=False)
    net.batch_norm("norm", 8)
    net.op(activation)
    net.conv("b", 8, 5)
    net.weights["norm.weight"][[0, 6]] = 0
    assert sum(map(len, removed(compacted(net.model())).values())) == 2


def test_dropout_between() -> None:
    """24: Dropout does nothing in inference."""
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Dropout")
    net.op("Sigmoid")
    net.linear("b", 8, 5)
    net.mask_rows("a", [1, 4], prune_bias=False)
    assert removed(compacted(net.model())) == {"constant": (1, 4)}


def test_the_model_given_is_never_half_modified() -> None:
    """24: whatever happens, the source stays as it was."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Erf")
    net.conv("b", 8, 5, pad=1)
    net.mask_rows("a", [1, 4], prune_bias=False)
    model = net.model()
    before = serialize(model.proto)
    compact(analyze_model(model))
    assert serialize(model.proto) == before


@pytest.mark.parametrize("prune_bias", [True, False])
def test_two_consumers(prune_bias: bool) -> None:
    """25: every reader gets the constant, each through its own weight."""
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    hidden = net.op("Sigmoid")
    net.linear("b", 8, 5)
    first = net.value
    net.value = hidden
    net.op("Relu")
    net.linear("c", 8, 5, bias=False)
    net.op("Add", first, net.value)
    net.mask_rows("a", [2, 3], prune_bias=prune_bias)
    assert removed(compacted(net.model())) == {"constant": (2, 3)}


@pytest.mark.parametrize("dead", ["both", "one"])
def test_residual(dead: str) -> None:
    """25: a sum is constant where both operands are; where one is alive the unit stays."""
    net = Network(("n", 6))
    net.linear("stem", 6, 8)
    trunk = net.op("Sigmoid")
    net.linear("b", 8, 8)
    net.op("Tanh")
    net.op("Add", trunk, net.value)
    net.linear("head", 8, 5)
    net.mask_rows("stem", [1, 5], prune_bias=False)
    if dead == "both":
        net.mask_rows("b", [1, 5], prune_bias=False)
    result = compacted(net.model())
    if dead == "both":
        assert removed(result) == {"constant": (1, 5)}
    else:
        assert not result.n_removed
        reasons = {u: why for g in result.groups for u, why in g.kept}
        assert set(reasons) == {1, 5}
        assert all("does not find the same at every run" in why for why in reasons.values())


def test_a_module_used_twice() -> None:
    """25: one weight read by two nodes is one set of units, and both biases take their constants."""
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Sigmoid")
    hidden = net.linear("b", 8, 8)
    net.op("Sigmoid")
    net.op("Gemm", net.value, "b.weight", "b.bias", transB=1)
    net.op("Add", net.value, hidden)
    net.linear("head", 8, 3)
    net.mask_rows("a", [2], prune_bias=False)
    net.mask_rows("b", [2], prune_bias=False)
    compacted(net.model())


@pytest.mark.parametrize("t", [4, 5, 6])
def test_linear_over_tokens(t: int) -> None:
    """26: the bias runs over features, not over steps, also where both are as long."""
    net = Network(("n", "t", 5))
    net.product("a", 5, 6)
    net.op("Sigmoid")
    net.product("b", 6, t)
    net.mask_rows("a", [0, 3], prune_bias=False, axis=1)
    assert removed(compacted(net.model(), sizes={"n": 2, "t": t})) == {"constant": (0, 3)}


@pytest.mark.parametrize("prune_bias", [True, False])
def test_prelu_with_a_slope_per_channel(prune_bias: bool) -> None:
    """27: the slope is cut along, and a negative constant passes through it."""
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("PRelu", net.value, net.weight("slope", 8, 1, 1))
    net.conv("b", 8, 5)
    net.weights["a.bias"][[1, 4]] = -1.5
    net.mask_rows("a", [1, 4], prune_bias=prune_bias)
    result = compacted(net.model())
    assert removed(result) == {"zero" if prune_bias else "constant": (1, 4)}
    assert weights_of(result.model)["slope"].shape == (6, 1, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_gates_masked_apart(directions: int, bias: bool) -> None:
    """28: a unit goes where the gate that feeds its state is dead in every direction; masks of others do not do."""
    hidden = 6
    net = Network(("t", "n", 5))
    w, r = net.weight("w", directions, 4 * hidden, 5), net.weight("r", directions, 4 * hidden, hidden)
    given = [net.weight("b", directions, 8 * hidden)] if bias else []
    net.op("LSTM", "x", w, r, *given, hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward")
    net.op("Transpose", perm=[0, 2, 1, 3])
    net.op("Reshape", net.value, net.constant("shape", [0, 0, -1], np.int64))
    net.product("out", directions * hidden, 3)
    gates = {
        name: net.weights[name].reshape(directions, -1, hidden, *net.weights[name].shape[2:]) for name in ("w", "r")
    }
    for array in gates.values():
        array[:, 0, 2] = 0  # only the input gate
        array[:, 3, 4] = 0  # the cell gate, which all of the state comes from
    if bias:
        net.weights["b"].reshape(directions, 2, 4, hidden)[:, :, 3, 4] = 0
    result = compacted(net.model(), sizes={"t": 7, "n": 2})
    assert removed(result) == {"zero": (4,)}


@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
def test_a_layer_norm_behind_a_dead_unit(norm: str) -> None:
    """28: statistics run over the dead unit too, so it stays, and the reason says so."""
    net = Network(("n", "t", 5))
    net.product("a", 5, 8)
    names = [net.weight("norm.weight", 8), *([net.weight("norm.bias", 8)] if norm.startswith("Layer") else [])]
    net.op(norm, net.value, *names, axis=-1)
    net.product("b", 8, 4)
    net.mask_rows("a", [1, 4], prune_bias=True, axis=1)
    result = compact(analyze_model(net.model(opset=23)), verified=False)
    assert not result.n_removed
    (group,) = (g for g in result.groups if g.kept)
    assert [u for u, _ in group.kept] == [1, 4]
    assert all("takes statistics over it" in why for _, why in group.kept)


def test_equally_far_filters_are_scored_alike_again() -> None:
    """16: scores follow from the weight alone, so that asking twice gives the same answer twice."""
    weight = np.array([3.0, 2.0, 0.1, 2.5])[:, None] * np.ones((4, 7))
    first = np.argsort(unit_scores(weight, criterion="fpgm"), kind="stable")[:1].tolist()
    assert first == np.argsort(unit_scores(weight, criterion="fpgm"), kind="stable")[:1].tolist() == [1]


def test_distances_of_far_away_filters_are_right() -> None:
    """17: filters close to each other and far from zero."""
    rng = np.random.default_rng(3)
    weight = (1000 + 1e-3 * np.arange(40))[:, None] + 1e-4 * rng.standard_normal((40, 9))
    exact = np.sqrt(((weight[:, None] - weight[None]) ** 2).sum(axis=2)).sum(axis=1)
    np.testing.assert_allclose(unit_scores(weight, criterion="fpgm"), exact, rtol=1e-6)


def test_large_negative_weights_are_worth_keeping() -> None:
    """29: magnitude, not the signed value."""
    scores = unit_scores(np.array([[-5.0], [-4.0], [1.0], [2.0]]), criterion="l1")
    assert np.argsort(scores)[:2].tolist() == [2, 3]
