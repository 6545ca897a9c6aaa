"""Chains of nodes: every default chain in every spelling, near misses, branches, wildcards, registration."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune import chains
from onnxprune.chains import Any, Branch, OneOf, Op, Optional, Output, Part, Pattern, Repeat, match
from onnxprune.chains import registry as chain_registry
from onnxprune.chains import walk as chain_walk
from onnxprune.chains.activations import SPELLINGS
from onnxprune.errors import ModelError, OptionError, UnknownNameError


class Net:
    """A model written node by node; a number or an array given as an input becomes an initializer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def const(self, value: object, name: str = "") -> str:
        array = np.asarray(value, np.int64 if isinstance(value, list) else np.float32)
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def __call__(self, op: str, *inputs: object, n_outputs: int = 1, domain: str = "", **attrs: object) -> str:
        names = [x if isinstance(x, str) else self.const(x) for x in inputs]
        name = f"{op.lower()}{len(self.nodes)}"
        outputs = [f"{name}_y{i or ''}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op, names, outputs, name=name, domain=domain, **attrs))
        return outputs[0]

    def conv(self, x: str, name: str = "") -> str:
        return self("Conv", x, self.const(np.zeros((4, 3, 1, 1)), name and f"{name}.weight"))

    def gemm(self, x: str, name: str = "") -> str:
        return self("Gemm", x, self.const(np.zeros((4, 3)), name and f"{name}.weight"), np.zeros(3))

    def graph(self, *outputs: str) -> gs.Graph:
        return gs.import_onnx(self.model(*outputs))

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *outputs)]
        graph = helper.make_graph(self.nodes, "g", infos[:1], infos[1:], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def names(hits: list[chains.Match]) -> list[str]:
    return [hit.name for hit in hits]


def ops(hit: chains.Match) -> list[str]:
    return [node.op for node in hit.nodes]


def sigmoid(n, x):
    return n("Reciprocal", n("Add", n("Exp", n("Neg", x)), 1.0))


def cube(n, x):
    return n("Mul", n("Mul", x, x), x)


def erf(n, x):
    return n("Add", n("Erf", n("Div", x, math.sqrt(2))), 1.0)


def tanh_gelu(n, x, inner):
    return n("Mul", n("Mul", x, 0.5), n("Add", n("Tanh", inner), 1.0))


def root(n, x):
    return n("Mul", x, math.sqrt(2 / math.pi))


def cubic(n, x, cubed):
    return root(n, n("Add", x, n("Mul", cubed, 0.044715)))


def gate(n, x):
    return n("Clip", n("Add", x, 3.0), 0.0, 6.0)


def half_shrink(n, x, first, second, joint):
    return n(joint, n(first, x, 0.5), n(second, x, -0.5))


def softplus_where(n, x):
    return n("Where", n("Greater", x, 20.0), x, n("Log", n("Add", n("Exp", x), 1.0)))


BUILDS = {
    "relu": [
        lambda n, x: n("Relu", x),
        lambda n, x: n("Max", x, 0.0),
        lambda n, x: n("Clip", x, 0.0),
    ],
    "rrelu": [
        lambda n, x: n("LeakyRelu", x, alpha=11 / 48),
        lambda n, x: n("PRelu", x, n("RandomUniformLike", x, low=0.125, high=1 / 3)),
    ],
    "hardtanh": [
        lambda n, x: n("Clip", x, -1.0, 1.0),
        lambda n, x: n("Clip", x, min=-2.0, max=2.0),
        lambda n, x: n("Min", n("Max", x, -1.0), 1.0),
        lambda n, x: n("Max", n("Min", x, 1.0), -1.0),
        lambda n, x: n("Min", n("Max", x, 0.0), 1.0),
    ],
    "relu6": [
        lambda n, x: n("Clip", x, 0.0, 6.0),
        lambda n, x: n("Clip", x, min=0.0, max=6.0),
        lambda n, x: n("Clip", n("Relu", x), 0.0, 6.0),
        lambda n, x: n("Min", n("Relu", x), 6.0),
        lambda n, x: n("Min", n("Max", x, 0.0), 6.0),
        lambda n, x: n("Clip", n("Relu", x), "", 6.0),
    ],
    "sigmoid": [
        lambda n, x: n("Sigmoid", x),
        sigmoid,
        lambda n, x: n("Div", 1.0, n("Add", n("Exp", n("Neg", x)), 1.0)),
    ],
    "hardsigmoid": [
        lambda n, x: n("HardSigmoid", x, alpha=1 / 6),
        lambda n, x: n("Div", gate(n, x), 6.0),
        lambda n, x: n("Mul", gate(n, x), 1 / 6),
        lambda n, x: n("Div", n("Min", n("Relu", n("Add", 3.0, x)), 6.0), 6.0),
    ],
    "tanh": [lambda n, x: n("Tanh", x)],
    "silu": [
        lambda n, x: n("Mul", x, n("Sigmoid", x)),
        lambda n, x: n("Mul", n("Sigmoid", x), x),
        lambda n, x: n("Mul", x, sigmoid(n, x)),
        lambda n, x: n("Div", x, n("Add", n("Exp", n("Neg", x)), 1.0)),
        lambda n, x: n("Swish", x),
        lambda n, x: n("QuickGelu", x, domain="com.microsoft", alpha=1.0),
    ],
    "mish": [
        lambda n, x: n("Mish", x),
        lambda n, x: n("Mul", x, n("Tanh", n("Softplus", x))),
        lambda n, x: n("Mul", n("Tanh", n("Log", n("Add", n("Exp", x), 1.0))), x),
        lambda n, x: n("Mul", x, n("Tanh", softplus_where(n, x))),
    ],
    "hardswish": [
        lambda n, x: n("HardSwish", x),
        lambda n, x: n("Mul", x, n("HardSigmoid", x, alpha=1 / 6)),
        lambda n, x: n("Div", n("Mul", x, gate(n, x)), 6.0),
        lambda n, x: n("Mul", x, n("Div", gate(n, x), 6.0)),
        lambda n, x: n("Mul", n("Mul", x, 1 / 6), gate(n, x)),
    ],
    "elu": [
        lambda n, x: n("Elu", x, alpha=0.7),
        lambda n, x: n("Where", n("Greater", x, 0.0), x, n("Sub", n("Exp", x), 1.0)),
        lambda n, x: n("Where", n("Greater", x, 0.0), x, n("Mul", n("Sub", n("Exp", x), 1.0), 0.7)),
    ],
    "celu": [
        lambda n, x: n("Celu", x, alpha=2.0),
        lambda n, x: n("Mul", 2.0, n("Elu", n("Div", x, 2.0))),
        lambda n, x: n("Mul", n("Elu", n("Mul", x, 0.5)), 2.0),
    ],
    "selu": [
        lambda n, x: n("Selu", x),
        lambda n, x: n("Mul", n("Elu", x, alpha=1.67326319), 1.05070102),
    ],
    "hardshrink": [
        lambda n, x: n("Shrink", x, lambd=0.5),
        lambda n, x: n("Where", half_shrink(n, x, "Greater", "Less", "Or"), x, 0.0),
        lambda n, x: n("Where", n("Greater", n("Abs", x), 0.5), x, 0.0),
        lambda n, x: n("Where", n("LessOrEqual", n("Abs", x), 0.5), 0.0, x),
        lambda n, x: n("Where", half_shrink(n, x, "LessOrEqual", "GreaterOrEqual", "And"), 0.0, x),
    ],
    "leaky_relu": [
        lambda n, x: n("LeakyRelu", x),
        lambda n, x: n("LeakyRelu", x, alpha=0.2),
        lambda n, x: n("Where", n("Greater", x, 0.0), x, n("Mul", x, 0.1)),
        lambda n, x: n("Where", n("Less", x, 0.0), n("Mul", x, 0.1), x),
        lambda n, x: n("Max", x, n("Mul", x, 0.1)),
    ],
    "logsigmoid": [
        lambda n, x: n("Log", n("Sigmoid", x)),
        lambda n, x: n("Log", sigmoid(n, x)),
        lambda n, x: n("Neg", n("Softplus", n("Neg", x))),
        lambda n, x: n("Neg", n("Log", n("Add", n("Exp", n("Neg", x)), 1.0))),
        lambda n, x: n("Sub", n("Min", x, 0.0), n("Log", n("Add", n("Exp", n("Neg", n("Abs", x))), 1.0))),
    ],
    "softplus": [
        lambda n, x: n("Softplus", x),
        lambda n, x: n("Log", n("Add", n("Exp", x), 1.0)),
        lambda n, x: n("Div", n("Softplus", n("Mul", x, 2.0)), 2.0),
        softplus_where,
    ],
    "prelu": [
        lambda n, x: n("PRelu", x, np.full((4, 1, 1), 0.25)),
        lambda n, x: n("PRelu", x, 0.25),
        lambda n, x: n("Where", n("Greater", x, 0.0), x, n("Mul", x, np.full((4, 1, 1), 0.25))),
        lambda n, x: n("Add", n("Relu", x), n("Mul", n("Min", x, 0.0), np.full((4, 1, 1), 0.25))),
        lambda n, x: n("Sub", n("Relu", x), n("Mul", n("Relu", n("Neg", x)), np.full((4, 1, 1), 0.25))),
        lambda n, x: n("Add", n("Relu", x), n("Neg", n("Mul", n("Relu", n("Neg", x)), np.full((4, 1, 1), 0.25)))),
        lambda n, x: n("Add", n("Relu", x), n("Mul", n("Neg", n("Relu", n("Neg", x))), np.full((4, 1, 1), 0.25))),
    ],
    "softsign": [
        lambda n, x: n("Softsign", x),
        lambda n, x: n("Div", x, n("Add", n("Abs", x), 1.0)),
    ],
    "tanhshrink": [
        lambda n, x: n("Sub", x, n("Tanh", x)),
        lambda n, x: n("Add", n("Neg", n("Tanh", x)), x),
    ],
    "gelu": [
        lambda n, x: n("Gelu", x),
        lambda n, x: n("Gelu", x, domain="com.microsoft"),
        lambda n, x: n("FastGelu", x, domain="com.microsoft"),
        lambda n, x: n("Mul", n("Mul", x, erf(n, x)), 0.5),
        lambda n, x: n("Mul", n("Mul", x, 0.5), erf(n, x)),
        lambda n, x: n("Mul", x, n("Mul", erf(n, x), 0.5)),
        lambda n, x: n("Mul", x, n("Add", n("Mul", n("Erf", n("Mul", x, math.sqrt(0.5))), 0.5), 0.5)),
        lambda n, x: tanh_gelu(n, x, cubic(n, x, n("Pow", x, 3.0))),
        lambda n, x: tanh_gelu(n, x, cubic(n, x, cube(n, x))),
        lambda n, x: tanh_gelu(n, x, root(n, n("Add", x, n("Mul", n("Mul", n("Mul", x, 0.044715), x), x)))),
        lambda n, x: tanh_gelu(n, x, n("Mul", root(n, x), n("Add", n("Mul", n("Mul", x, 0.044715), x), 1.0))),
        lambda n, x: tanh_gelu(n, x, root(n, n("Mul", x, n("Add", n("Mul", n("Mul", x, x), 0.044715), 1.0)))),
    ],
}
SPELLED = [
    pytest.param(name, build, id=f"{name}-{i}") for name, builds in BUILDS.items() for i, build in enumerate(builds)
]


def pool(n, x):
    return n("MaxPool", x, kernel_shape=[2, 2])


def flat_pool(n, x):
    return n("Flatten", n("GlobalAveragePool", x))


def test_the_table_has_the_21_activations_and_every_one_is_tested():
    assert len(SPELLINGS) == 21
    assert set(BUILDS) == set(SPELLINGS)
    assert len(chains.default) == 7 + 6 * 21


@pytest.mark.parametrize(("name", "build"), SPELLED)
def test_every_spelling_is_found_on_every_chain_and_under_no_other_name(name, build):
    net = Net()
    x = net.gemm(build(net, net.gemm("x")))
    first = len(net.nodes)
    x = net.conv(build(net, net.conv(x)))
    last = len(net.nodes)
    x = net.conv(pool(net, build(net, x)))
    x = net.conv(build(net, pool(net, x)))
    x = net.gemm(flat_pool(net, build(net, x)))
    graph = net.graph(x)
    wanted = [f"linear-{name}-linear", f"conv-{name}-conv", f"conv-{name}-pool-conv", f"conv-pool-{name}-conv"]
    wanted += [f"conv-{name}-adaptive_pool-flatten-linear", "linear-output"]
    hits = match(graph, "default")
    assert names(hits) == wanted
    assert match(graph, chains.default) == hits
    assert [match(graph, one) for one in wanted] == [[hit] for hit in hits]
    outside = sum(node.op_type == "RandomUniformLike" for node in net.nodes[:first])
    assert {hit.nodes[0].name for hit in hits[:1]} == {net.nodes[0].name}
    assert [len(hit.nodes) for hit in hits[:2]] == [first - outside, last - first - outside]
    (part,) = hits[0].captured(f"activation.{name}")
    assert part.nodes == hits[0].nodes[1:-1] == hits[0].steps[1]


@pytest.mark.parametrize(("name", "build"), SPELLED)
def test_a_spelling_alone_is_found_whole_and_once(name, build):
    net = Net()
    net.nodes.append(helper.make_node("Identity", ["x"], ["v"], name="start"))
    hits = match(net.graph(build(net, "v")), f"activation.{name}")
    whole = {node.name for node in net.nodes[1:] if node.op_type != "RandomUniformLike"}
    assert [set(hit.node_names) for hit in hits if len(hit.nodes) == len(whole)] == [whole]
    assert all(set(hit.node_names) <= whole for hit in hits)


SAME = sorted(set(BUILDS) - {"hardtanh", "elu", "celu", "leaky_relu", "softplus", "prelu", "rrelu"})


@pytest.mark.parametrize("name", SAME)
def test_spellings_without_parameters_compute_the_same(name):
    x = np.linspace(-8, 8, 101, dtype=np.float32).reshape(1, 1, 101, 1)
    found = []
    for build in BUILDS[name]:
        net = Net()
        model = net.model(build(net, "x"))
        if all(
            node.domain == "" and node.op_type != "Swish" and "min" not in str(node.attribute) for node in net.nodes
        ):
            found.append(ReferenceEvaluator(model).run(None, {"x": x})[0])
    assert np.ptp(found[0]) > 0.5
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-3 if name == "gelu" else 1e-5)


def test_a_graph_is_only_read():
    net = Net()
    net.initializers.append(helper.make_tensor("six", TensorProto.BFLOAT16, [], [6.0]))
    x = net("Cast", "six", to=TensorProto.FLOAT)
    graph = net.graph(net.conv(net("Clip", net.conv("x"), 0.0, x)))
    assert names(match(graph, "default")) == ["conv-relu6-conv", "conv-output"]
    held = [vars(value)["_values"] for value in graph.tensors().values() if isinstance(value, gs.Constant)]
    assert {type(values).__name__ for values in held} == {"LazyValues"}


NEAR_MISSES = {
    "softshrink": lambda n, x: n("Shrink", x, lambd=0.5, bias=0.5),
    "tanh-minus-x": lambda n, x: n("Sub", n("Tanh", x), x),
    "gelu-without-half": lambda n, x: n("Mul", x, erf(n, x)),
    "gelu-of-another-root": lambda n, x: n("Mul", n("Mul", x, n("Add", n("Erf", n("Div", x, 2.0)), 1.0)), 0.5),
    "log-then-sigmoid": lambda n, x: n("Sigmoid", n("Log", x)),
    "sigmoid-of-another": lambda n, x: n("Mul", x, n("Sigmoid", n("Sin", x))),
    "quick-gelu": lambda n, x: n("Mul", x, n("Sigmoid", n("Mul", x, 1.702))),
    "clip-above": lambda n, x: n("Clip", x, "", 1.0),
    "clip-unknown": lambda n, x: n("Clip", x, "x", "x"),
    "custom-relu": lambda n, x: n("Relu", x, domain="my.domain"),
    "softsign-turned": lambda n, x: n("Div", n("Add", n("Abs", x), 1.0), x),
    "square": lambda n, x: n("Mul", x, x),
    "two-activations": lambda n, x: n("Tanh", n("Relu", x)),
}


@pytest.mark.parametrize("build", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_of_activations_make_no_chain(build):
    net = Net()
    graph = net.graph(net("Sin", net.conv(build(net, net.conv("x")))))
    assert match(graph, "default") == []


def test_gated_halves_of_a_split_are_no_silu():
    net = Net()
    a = net("Split", net.conv("x"), n_outputs=2, num_outputs=2)
    y = net("Mul", a, net("Sigmoid", f"{a}1"))
    assert match(net.graph(y), "activation.silu") == []


def linear_spellings():
    def reshaped(n, x):
        return n("Reshape", n.gemm(n("Reshape", x, [-1, 4])), [-1, 2, 3])

    def transposed(n, x):
        return n("MatMul", x, n("Transpose", np.zeros((3, 4))))

    def constant_node(n, x):
        return n("MatMul", x, n("Constant", value=numpy_helper.from_array(np.zeros((4, 3), np.float32))))

    return {
        "gemm": lambda n, x: n.gemm(x),
        "matmul": lambda n, x: n("MatMul", x, np.zeros((4, 3))),
        "matmul-add": lambda n, x: n("Add", n("MatMul", x, np.zeros((4, 3))), np.zeros(3)),
        "add-matmul": lambda n, x: n("Add", np.zeros(3), n("MatMul", x, np.zeros((4, 3)))),
        "reshaped": reshaped,
        "transposed": transposed,
        "constant-node": constant_node,
    }


@pytest.mark.parametrize("build", linear_spellings().values(), ids=linear_spellings())
def test_every_spelling_of_linear(build):
    net = Net()
    graph = net.graph(build(net, net("Relu", build(net, "x"))))
    hits = match(graph, "default")
    assert sorted(names(hits)) == ["linear-output", "linear-relu-linear"]
    (hit,) = match(graph, "linear-relu-linear")
    assert [ops(hit).count(op) for op in ("Gemm", "MatMul", "Relu")] in ([2, 0, 1], [0, 2, 1])
    assert len(hit.nodes) == sum(node.op not in ("Transpose", "Constant") for node in graph.nodes)


@pytest.mark.parametrize("weight", [np.zeros((5, 4, 3)), "x"], ids=["batched", "computed"])
def test_a_product_without_a_constant_matrix_is_no_linear(weight):
    net = Net()
    assert match(net.graph(net("MatMul", net("MatMul", "x", weight), weight)), "linear") == []


def test_plain_layer_pairs_and_outputs():
    net = Net()
    y = net.conv(net.conv("x"))
    z = net.gemm(net.gemm("x"))
    assert names(match(net.graph(y, z), "default")) == ["conv-conv", "conv-output", "linear-linear", "linear-output"]


POOLS = {
    "global": flat_pool,
    "global-max": lambda n, x: n("Squeeze", n("GlobalMaxPool", x), [2, 3]),
    "window": lambda n, x: n("Reshape", n("AveragePool", x, kernel_shape=[7, 7]), [0, -1]),
    "max": lambda n, x: n("Flatten", n("MaxPool", x, kernel_shape=[7, 7])),
    "mean": lambda n, x: n("Flatten", n("ReduceMean", x, [2, 3])),
    "mean-from-the-end": lambda n, x: n("Flatten", n("ReduceMean", x, [-1, -2])),
    "mean-attribute": lambda n, x: n("Flatten", n("ReduceMean", x, axes=[2, 3])),
    "mean-flat": lambda n, x: n("ReduceMean", x, [2, 3], keepdims=0),
}


@pytest.mark.parametrize("build", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("act", [None, "before", "after"])
def test_adaptive_pools_to_linear(build, act):
    net = Net()
    x = net.conv("x")
    x = net("Tanh", x) if act == "before" else x
    x = build(net, x)
    if act == "after":
        flatten = net.nodes.pop() if net.nodes[-1].op_type in ("Flatten", "Reshape", "Squeeze") else None
        x = net("Tanh", flatten.input[0] if flatten else x)
        x = net(flatten.op_type, x, *flatten.input[1:]) if flatten else x
    wanted = {
        None: "conv-adaptive_pool-flatten-linear",
        "before": "conv-tanh-adaptive_pool-flatten-linear",
        "after": "conv-adaptive_pool-tanh-flatten-linear",
    }[act]
    graph = net.graph(net("Sin", net.gemm(x)))
    assert names(match(graph, "default")) == [wanted]
    assert names(match(graph, wanted)) == [wanted]


@pytest.mark.parametrize("axes", [[1], [0, 2, 3], [1, 2, 3], [-3]])
def test_a_mean_over_channels_or_batch_is_no_adaptive_pool(axes):
    net = Net()
    graph = net.graph(net("Sin", net.gemm(net("Flatten", net("ReduceMean", net.conv("x"), axes)))))
    assert match(graph, "default") == []


def lstm(n, x, name="lstm"):
    weights = [
        n.const(np.zeros(shape), f"{name}.{k}") for k, shape in {"w": (1, 12, 5), "r": (1, 12, 3), "b": (1, 24)}.items()
    ]
    return n("LSTM", x, *weights, n_outputs=3, hidden_size=3)


def layernorm(n, x, *, twice=False):
    d = n("Sub", x, n("ReduceMean", x, [-1]))
    square = n("Mul", d, d) if twice else n("Pow", d, 2.0)
    deviation = n("Sqrt", n("Add", n("ReduceMean", square, [-1]), 1e-5))
    return n("Add", n("Mul", n("Div", d, deviation), np.ones(3)), np.zeros(3))


def test_lstm_chains():
    net = Net()
    y = net("Squeeze", lstm(net, net("Transpose", "x", perm=[1, 0, 2])), [1])
    one = net("MatMul", net("Transpose", y, perm=[1, 0, 2]), np.zeros((3, 4)))
    two = net.gemm(net("LayerNormalization", y, np.ones(3)))
    graph = net.graph(net("Sin", one), net("Sin", two))
    hits = match(graph, "default")
    assert names(hits) == ["lstm-linear", "lstm-layernorm-linear"]
    assert chains.chain_weights(hits) == {"lstm.w", "lstm.r", "lstm.b"}


@pytest.mark.parametrize("twice", [False, True])
def test_layernorm_in_pieces(twice):
    net = Net()
    y = net.gemm(layernorm(net, net("Squeeze", lstm(net, "x"), [1]), twice=twice))
    assert names(match(net.graph(net("Sin", y)), "default")) == ["lstm-layernorm-linear"]


def test_stacked_lstms_are_one_layer_and_the_last_state_is_none():
    net = Net()
    y = net("Squeeze", lstm(net, net("Squeeze", lstm(net, "x", "l0"), [1]), "l1"), [1])
    hits = match(net.graph(net("Sin", net.gemm(net("Squeeze", y, [0])))), "default")
    assert [ops(hit).count("LSTM") for hit in hits] == [2]
    assert chains.chain_weights(hits) == {f"l{k}.{w}" for k in (0, 1) for w in "wrb"}
    net = Net()
    hidden = f"{lstm(net, 'x')}1"
    assert match(net.graph(net("Sin", net.gemm(net("Squeeze", hidden, [0])))), "default") == []


def test_quantization_and_casts_may_stand_between_layers_but_belong_to_no_step():
    net = Net()

    def qdq(x):
        return net("DequantizeLinear", net("QuantizeLinear", x, 0.1), 0.1)

    def conv(x, name):
        net.initializers.append(numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.int8), name))
        return net("Conv", x, net("DequantizeLinear", name, np.full(3, 0.1)))

    a = qdq(conv("x", "w1"))
    b = qdq(net("Mul", a, net("Sigmoid", a)))
    graph = net.graph(qdq(conv(net("Cast", b, to=TensorProto.FLOAT), "w2")))
    hits = match(graph, "default")
    assert names(hits) == ["conv-silu-conv", "conv-output"]
    assert [node.op for step in hits[0].steps for node in step] == ["Conv", "Sigmoid", "Mul", "Conv"]
    assert len(hits[0].nodes) == 9
    assert chains.chain_weights(hits) == {"w1"}
    assert match(graph, ("Conv", "activation.silu", "Conv")) == []


def test_fused_convolutions_of_onnxruntime_are_both_steps():
    net = Net()
    x = net("FusedConv", "x", np.zeros((4, 3, 1, 1)), domain="com.microsoft", activation="Relu")
    graph = net.graph(net("Sin", net.conv(x)))
    assert names(match(graph, "default")) == ["conv-relu-conv"]
    assert match(graph, "conv-tanh-conv") == []


def residual():
    net = Net()
    x = net.conv("x", "stem")
    y = net.conv(net("Relu", net.conv(x, "a")), "b")
    return net, net("Add", x, y)


def test_branches_leave_one_value_and_meet():
    net, y = residual()
    graph = net.graph(y)
    block = ("Conv", Branch(("Conv", "Relu", "Conv"), ()), "Add")
    (hit,) = match(graph, block)
    assert ops(hit) == ["Conv", "Conv", "Relu", "Conv", "Add"]
    assert hit.node_names == tuple(node.name for node in graph.nodes)
    assert [len(step) for step in hit.steps] == [1, 3, 1]
    assert match(graph, ("Conv", Branch(("Conv", "Conv"), ()), "Add")) == []
    (same,) = match(graph, ("Conv", Branch((), ("Conv", "Relu", "Conv"), ordered=True), "Add"))
    assert same.node_names == hit.node_names
    assert match(graph, ("Conv", Branch(("Conv", "Relu", "Conv"), (), ordered=True), "Add")) == []
    (same,) = match(graph, ("Conv", Branch((Any(1, 3),), ()), "Add"))
    assert same.node_names == hit.node_names


def test_paths_of_a_branch_share_no_node_and_enter_by_inputs_of_their_own():
    net = Net()
    a = net("Relu", "x")
    graph = net.graph(net("Mul", a, a), net("Add", net("Tanh", a), net("Tanh", a)))
    assert [ops(hit) for hit in match(graph, ("Relu", Branch(("Tanh",), ("Tanh",)), "Add"))] == [
        ["Relu", "Tanh", "Tanh", "Add"]
    ]
    assert len(match(graph, ("Relu", Branch((), ()), "Mul"))) == 1
    assert match(graph, ("Relu", Branch((), (), ()), "Mul")) == []
    net = Net()
    b = net("Neg", "x")
    assert match(net.graph(net("Add", b, net("Tanh", b))), (Branch(("Tanh",), ("Tanh",)), "Add")) == []


def test_nested_branches_and_three_paths():
    net = Net()
    inner = net("Mul", "x", net("Sigmoid", "x"))
    y = net("Concat", "x", inner, net("Tanh", "x"), axis=1)
    (hit,) = match(net.graph(y), (Branch((), (Branch(("Sigmoid",), ()), "Mul"), ("Tanh",)), "Concat"))
    assert ops(hit) == ["Sigmoid", "Mul", "Tanh", "Concat"]


def test_wildcards_repeats_options_and_choices():
    net = Net()
    x = net.conv("x")
    for _ in range(3):
        x = net("Relu", x)
    graph = net.graph(net("MaxPool", net.conv(x), kernel_shape=[2, 2]))
    assert match(graph, ("Conv", Any(), "Conv")) == []
    assert [ops(hit) for hit in match(graph, ("Conv", Any(0, 3), "Conv"))] == [["Conv", "Relu", "Relu", "Relu", "Conv"]]
    assert match(graph, ("Conv", Any(0, 2), "Conv")) == []
    assert match(graph, ("Conv", Repeat("Relu", 1, 2), "Conv")) == []
    assert len(match(graph, ("Conv", Repeat("Relu", 3, 9), "Conv"))) == 1
    (hit,) = match(
        graph, ("Conv", Repeat(OneOf("Relu", "Tanh"), 0, 9), Optional("Dropout"), Op("Conv", "ConvTranspose"))
    )
    assert [len(step) for step in hit.steps] == [1, 3, 0, 1]
    assert [ops(hit) for hit in match(graph, ("Conv", Optional("MaxPool")))] == [["Conv"], ["Conv", "MaxPool"]]
    assert [len(hit.nodes) for hit in match(graph, (Optional(Any(1, 9)), "MaxPool"))] == [6]
    assert len(match(graph, (Any(),))) == 6
    assert len(match(graph, ("MaxPool", Output()))) == 1
    assert match(graph, ("Conv", Output())) == []


def test_every_reader_is_followed_unless_the_chain_is_exclusive():
    net = Net()
    a = net("Relu", net.conv("x"))
    graph = net.graph(net.conv(a), net.conv(a), net("Sin", a))
    pattern = ("Conv", "Relu", "Conv")
    assert [hit.node_names for hit in match(graph, pattern)] == [
        ("conv0", "relu1", "conv2"),
        ("conv0", "relu1", "conv3"),
    ]
    assert match(graph, pattern, exclusive=True) == []
    assert match(graph, Pattern(pattern, exclusive=True)) == []
    assert len(match(graph, Pattern(pattern, exclusive=True), exclusive=False)) == 2
    net, y = residual()
    graph = net.graph(y)
    assert len(match(graph, ("Conv", Branch(("Conv", "Relu", "Conv"), ()), "Add"), exclusive=True)) == 1
    assert match(graph, ("Conv", "Conv"), exclusive=True) == []
    net = Net()
    a = net("Relu", net.conv("x"))
    assert match(net.graph(net.conv(a), a), pattern, exclusive=True) == []


def test_op_slots_predicates_and_domains():
    net = Net()
    a = net("Sin", "x")
    graph = net.graph(net("Sub", 1.0, a), net("Foo", a, domain="my"), net("Split", a, n_outputs=2, num_outputs=2))
    assert match(graph, ("Sin", Op("Sub", input=0))) == []
    assert len(match(graph, ("Sin", Op("Sub", input=1)))) == 1
    assert match(graph, ("Sin", "Foo")) == []
    assert len(match(graph, ("Sin", "my::Foo"))) == 1
    assert match(graph, ("Sin", Op("Split", where=lambda node: len(node.outputs) > 2))) == []
    assert len(match(graph, (Op("Split", output=0), Output()))) == 1
    assert match(graph, (Op("Split", output=1), Output())) == []


def test_bodies_of_control_flow_are_searched():
    net = Net()
    c = net.conv("x")
    body = helper.make_graph(
        [helper.make_node("Relu", [c], ["r"], name="inner")], "b", [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    flag = net("Constant", value=numpy_helper.from_array(np.array(True)))
    y = net("If", flag, then_branch=body, else_branch=body)
    hits = match(net.graph(y), ("Conv", "Relu"))
    assert [hit.node_names[1] for hit in hits] == ["inner", "inner"]
    assert hits[0] != hits[1]


def test_sources(tmp_path):
    net = Net()
    model = net.model(net.conv(net("Relu", net.conv("x"))))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = gs.import_onnx(model)
    found = [
        match(source, "conv-relu-conv") for source in (graph, model, path, str(path), SimpleNamespace(graph=graph))
    ]
    assert [hits[0].node_names for hits in found] == [("conv0", "relu1", "conv2")] * 5
    assert found[0] == found[-1]
    assert len({*found[0], *found[-1]}) == 1
    assert str(found[0][0]) == "conv-relu-conv: conv0 -> relu1 -> conv2"
    with pytest.raises(OptionError, match="not int"):
        match(3, "default")
    (tmp_path / "bad.onnx").write_bytes(b"\x01nothing")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        match(tmp_path / "bad.onnx", "default")
    with pytest.raises(ModelError, match="absent"):
        match(tmp_path / "absent.onnx", "default")


@pytest.fixture
def _registry(monkeypatch):
    monkeypatch.setattr(chain_registry.CHAINS, "_entries", dict(chain_registry.CHAINS._entries))


@pytest.mark.usefixtures("_registry")
def test_users_register_chains():
    net, y = residual()
    graph = net.graph(y)
    chains.register_chain("residual", ("Conv", Branch(("Conv", "Relu", "Conv"), ()), "Add"))
    assert names(match(graph, "residual")) == ["residual"]
    assert "residual" in chains.chains()
    assert "residual" not in chains.default
    assert names(match(graph, {"residual", "conv-relu-conv"})) == ["residual", "conv-relu-conv"]
    assert len(match(graph, ("residual", Output()))) == 1
    with pytest.raises(OptionError, match="already registered"):
        chains.register_chain("residual", ("Conv",))
    chains.register_chain("residual", ("Add",), replace=True)
    assert [ops(hit) for hit in match(graph, "residual")] == [["Add"]]
    for taken in ("default", "activation.silu", ""):
        with pytest.raises(OptionError):
            chains.register_chain(taken, ("Conv",))
    chains.register_chain("self", ("Conv", "self"))
    with pytest.raises(OptionError, match="names itself"):
        match(graph, "self")


def test_unknown_names_suggest():
    graph = Net().graph()
    with pytest.raises(UnknownNameError, match="'conv-silu-conv'"):
        match(graph, "conv-slu-conv")
    with pytest.raises(UnknownNameError, match=r"activation\.silu"):
        match(graph, ("Conv", "activation.sliu"))
    with pytest.raises(UnknownNameError, match="default"):
        match(graph, "defualt")
    with pytest.raises(UnknownNameError, match="node chain"):
        match(graph, ["Conv"])


@pytest.mark.parametrize(
    "make",
    [
        Op,
        lambda: Op(3),
        lambda: Any(2, 1),
        lambda: Any(-1, 1),
        lambda: Any(0, 0),
        lambda: Repeat("Relu", 0, 0),
        Optional,
        OneOf,
        lambda: Branch(("Relu",)),
        lambda: Pattern(()),
        lambda: Pattern(("Conv", 3)),
        lambda: Pattern(("Conv", Branch((), ("Relu",)))),
        lambda: Pattern((Branch((), ("Relu",)), Branch((), ("Relu",)), "Add")),
        lambda: Pattern((Branch((), ("Relu",)), Output())),
        lambda: Part("p"),
        lambda: match(Net().graph(), 3),
    ],
)
def test_malformed_patterns_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_a_pattern_too_loose_is_refused_and_a_deep_graph_is_not(monkeypatch):
    net = Net()
    x = "x"
    for _ in range(20):
        x = net("Add", net("Relu", x), net("Tanh", x))
    graph = net.graph(x)
    monkeypatch.setattr(chain_walk, "LIMIT", 5000)
    with pytest.raises(OptionError, match="ways to go on from node"):
        match(graph, ("Relu", Any(0, 60), "Conv"))
    net = Net()
    x = "x"
    for _ in range(1500):
        x = net("Relu", net.conv(x))
    assert len(match(net.graph(x), "default")) == 1499


def test_order_is_that_of_the_graph_and_does_not_change():
    net = Net()
    a = net.conv("x")
    b = net.conv("x")
    graph = net.graph(net.conv(net("Relu", b)), net.conv(net("Tanh", a)))
    hits = match(graph, "default")
    assert names(hits) == ["conv-tanh-conv", "conv-relu-conv", "conv-output", "conv-output"]
    assert match(graph, "default") == hits


def test_chain_weights_are_those_of_all_layers_but_the_last():
    net = Net()
    x = net("Conv", "x", net.const(np.zeros((4, 3, 1, 1)), "a.weight"), net.const(np.zeros(4), "a.bias"))
    x = net.conv(net("Relu", net.conv(net("Relu", x), "b")), "c")
    graph = net.graph(x)
    assert chains.chain_weights(match(graph, "default")) == {"a.weight", "a.bias", "b.weight"}
    assert chains.chain_weights(match(graph, "conv-output")) == set()
    assert chains.chain_weights([]) == set()


def test_chain_weights_look_through_what_stands_before_a_weight():
    net = Net()
    v, g = net.const(np.ones((4, 3, 1, 1)), "v"), net.const(np.ones((4, 1, 1, 1)), "g")
    x = net("Conv", "x", net("Mul", g, net("Div", v, net("ReduceL2", v))))
    x = net("Flatten", net("GlobalMaxPool", x))
    x = net("MatMul", x, net("Transpose", net("Cast", net.const(np.ones((3, 4)), "w"), to=1)))
    x = net.conv(x)
    hits = match(net.graph(x), ("Conv", Any(2, 2), "MatMul", "Conv"))
    assert chains.chain_weights(hits) == {"v", "g", "w"}
