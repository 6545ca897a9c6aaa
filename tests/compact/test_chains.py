"""Every chain that torch.ao's structured sparsifier prunes, with the biases of pruned rows kept and zeroed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compact.networks import Network, compacted, removed, weights_of

# act(0) is zero for the first ones.
KEEPS_ZERO = ("Relu", "Tanh", "Gelu", "HardSwish", "LeakyRelu", "Elu", "Selu", "Softsign", "Mish")
MOVES_ZERO = ("Sigmoid", "Softplus", "HardSigmoid")
ACTIVATIONS = ("", *KEEPS_ZERO, *MOVES_ZERO)
OPSETS = {"Gelu": 20, "Mish": 18, "HardSwish": 14}
both = pytest.mark.parametrize("prune_bias", [True, False], ids=["bias pruned", "bias kept"])


@both
@pytest.mark.parametrize("next_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear(activation: str, next_bias: bool, prune_bias: bool) -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    if activation:
        net.op(activation)
    net.linear("b", 8, 5, bias=next_bias)
    net.mask_rows("a", [0, 3, 6], prune_bias=prune_bias)
    result = compacted(net.model())
    how = removed(result)
    assert sorted(u for units in how.values() for u in units) == [0, 3, 6]
    if prune_bias:
        assert set(how) == {"zero" if activation not in MOVES_ZERO else "constant"}
    after = weights_of(result.model)
    assert after["a.weight"].shape == (5, 6)
    assert after["b.weight"].shape == (5, 5)
    np.testing.assert_array_equal(after["a.weight"], net.weights["a.weight"][[1, 2, 4, 5, 7]])


@both
@pytest.mark.parametrize("activation", ["", "Relu", "Sigmoid", "Tanh"])
def test_tokens(activation: str, prune_bias: bool) -> None:
    """Linear layers over tokens are MatMul and Add; the constant goes into the Add that is there."""
    net = Network(("n", "t", 6))
    net.product("a", 6, 9)
    if activation:
        net.op(activation)
    net.product("b", 9, 4)
    net.mask_rows("a", [2, 7], prune_bias=False, axis=1)
    if prune_bias:
        net.weights["a.bias"][[2, 7]] = 0
    model = net.model()
    result = compacted(model, sizes={"n": 2, "t": 5})
    assert sum(map(len, removed(result).values())) == 2
    assert len(result.model.proto.graph.node) == len(model.proto.graph.node)


def test_a_product_without_a_bias_gets_one() -> None:
    net = Network(("n", "t", 6))
    net.product("a", 6, 9)
    net.op("Sigmoid")
    net.product("b", 9, 4, bias=False)
    net.mask_rows("a", [2, 7], prune_bias=True, axis=1)
    result = compacted(net.model(), sizes={"n": 2, "t": 5})
    assert removed(result) == {"constant": (2, 7)}
    assert [n.op_type for n in result.model.proto.graph.node] == ["MatMul", "Add", "Sigmoid", "MatMul", "Add"]
    assert [v.name for v in result.model.proto.graph.output] == ["y"]


@both
@pytest.mark.parametrize("activation", ["", "Relu", "Sigmoid", "Softplus", "HardSwish"])
@pytest.mark.parametrize("next_bias", [True, False], ids=["bias", "no bias"])
def test_conv(activation: str, next_bias: bool, prune_bias: bool) -> None:
    net = Network(("n", 3, "h", "w"))
    net.conv("a", 3, 8)
    if activation:
        net.op(activation)
    net.conv("b", 8, 4, bias=next_bias)
    net.mask_rows("a", [1, 2, 7], prune_bias=prune_bias)
    result = compacted(net.model(), sizes={"n": 2, "h": 9, "w": 11})
    assert sum(map(len, removed(result).values())) == 3


@both
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pool_first", [True, False])
def test_conv_and_pool(pool: str, pool_first: bool, prune_bias: bool) -> None:
    net = Network(("n", 3, 12, 14))
    net.conv("a", 3, 8)
    if pool_first:
        net.op(pool, kernel_shape=[2, 2], strides=[2, 2])
    net.op("Sigmoid")
    if not pool_first:
        net.op(pool, kernel_shape=[2, 2], strides=[2, 2])
    net.conv("b", 8, 4)
    net.mask_rows("a", [0, 5], prune_bias=prune_bias)
    assert removed(compacted(net.model())) == {"constant": (0, 5)}


@both
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "AveragePool", ""])
@pytest.mark.parametrize("activation", ["", "Relu", "Sigmoid"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_conv_flatten_linear(activation: str, pool: str, bias: bool, prune_bias: bool) -> None:
    """A channel owns a run of the linear layer's columns, as many as there are positions."""
    net = Network(("n", 3, 8, 10))
    net.conv("a", 3, 6, bias=bias)
    if activation:
        net.op(activation)
    sizes = {"GlobalAveragePool": 1, "AveragePool": 2 * 2, "": 6 * 8}
    if pool:
        net.op(pool, **({} if pool.startswith("Global") else {"kernel_shape": [3, 4], "strides": [3, 4]}))
    net.op("Flatten")
    net.linear("b", 6 * sizes[pool], 5)
    net.mask_rows("a", [0, 4], prune_bias=prune_bias)
    result = compacted(net.model())
    assert sum(map(len, removed(result).values())) == 2
    assert weights_of(result.model)["b.weight"].shape == (5, 4 * sizes[pool])


@both
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_recurrent(cell: str, prune_bias: bool) -> None:
    """Masked rows of every gate leave a state of zero where the state gate has no bias, else one that moves."""
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell], 7
    net = Network(("t", "n", 5))
    w, r, b = (
        net.weight("w", 1, gates * hidden, 5),
        net.weight("r", 1, gates * hidden, hidden),
        net.weight("b", 1, 2 * gates * hidden),
    )
    net.op(cell, "x", w, r, b, hidden_size=hidden)
    net.op("Squeeze", net.value, net.constant("one", [1], np.int64))
    net.product("out", hidden, 3)
    for name in ("w", "r", "b") if prune_bias else ("w", "r"):
        array = net.weights[name].reshape(-1, hidden, *net.weights[name].shape[2:])
        array[:, [1, 4]] = 0
    result = compacted(net.model(), sizes={"t": 6, "n": 2})
    group = next(g for g in result.groups if g.size == hidden)
    if prune_bias:
        assert group.removed == {"zero": (1, 4)}
        assert weights_of(result.model)["w"].shape == (1, gates * 5, 5)
    else:
        # Paths are no multiples of each other, but in an RNN, where they rest after one step.
        carried = (1,) if cell == "RNN" else ()
        assert sum(map(len, group.removed.values())) == len(carried)
        assert [u for u, _ in group.kept] == [u for u in (1, 4) if u not in carried]
        assert all("moving from step to step" in why for _, why in group.kept)


@both
def test_a_constant_flows_into_a_recurrent_layer(prune_bias: bool) -> None:
    net = Network(("t", "n", 5))
    net.product("a", 5, 8)
    net.op("Sigmoid")
    net.op("LSTM", net.value, net.weight("w", 1, 12, 8), net.weight("r", 1, 12, 3), hidden_size=3)
    net.op("Squeeze", net.value, net.constant("one", [1], np.int64))
    net.mask_rows("a", [2, 5], prune_bias=prune_bias, axis=1)
    assert removed(compacted(net.model(), sizes={"t": 6, "n": 2})) == {"constant": (2, 5)}
