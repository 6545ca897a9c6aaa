"""Units whose removal changes a statistic: the result is a smaller network, built here from weights cut by hand.

`network` makes a model of any width from its weights. The pruned model must equal the network of the cut weights, and
neither the original nor the masked twin, or the removal would not have been approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from tests.constructs.sketch import Array, Sketch, counts, open_session, random_feeds, reasons
from tests.test_properties import plan_for

Weights = Mapping[str, Array]
Network = Callable[[Sketch, str, Mapping[str, str]], str]
N, C, T, OUT = 3, 5, 6, 7
WIDTH, REMOVED = 8, (1, 6)
RTOL = 1e-5  # of the output's range
MS = "com.microsoft"


def build(network: Network, weights: Weights, shape: Sequence[int], opset: int) -> onnx.ModelProto:
    """Make the model of these weights; its initializers carry the weights' names."""
    s = Sketch(opset)
    x = s.input(*shape)
    names = {name: s.tensor(array, f"{name}0") for name, array in weights.items()}
    return s.model(network(s, x, names), check=opset >= 21 or opset == 17)


def run(model: onnx.ModelProto) -> Array:
    return np.asarray(open_session(model).run(None, random_feeds(model))[0])


def distance(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.ptp(b))


def agree(
    network: Network,
    weights: Weights,
    cut: Mapping[str, int],
    removed: Sequence[int] = REMOVED,
    shape: Sequence[int] = (N, C),
    opset: int = 17,
) -> None:
    """Prune `removed` along the first axis of `cut`, and compare with the network of weights cut along all of them."""
    model = build(network, weights, shape, opset)
    analysis = onnxprune.analyze(model)
    first, axis = next(iter(cut.items()))
    size = weights[first].shape[axis]
    groups = [g for g in analysis.groups for m in g.members if (m.initializer, m.axis) == (f"{first}0", axis)]
    (group,) = (g for g in groups if g.size == size)
    assert not group.exact
    assert group.why_inexact
    (member,) = (m for m in group.members if (m.initializer, m.axis) == (f"{first}0", axis))
    plan = plan_for(analysis, {group.id: sorted(int(member.unit[k]) for k in removed)})
    pruned = onnxprune.apply(analysis, plan)
    smaller = {name: np.delete(a, removed, cut[name]) if name in cut else a for name, a in weights.items()}
    expected = run(build(network, smaller, shape, opset))
    assert distance(run(pruned.proto), expected) < RTOL
    assert distance(run(model), expected) > 100 * RTOL
    twin = run(onnxprune.mask(model, plan).proto)
    assert not np.isfinite(twin).all() or distance(twin, expected) > 100 * RTOL
    verdict = onnxprune.verify(model, pruned, plan=plan)
    assert verdict.ok, verdict.failures


def normal(seed: int = 4, **shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) + 0.2).astype(np.float32) for name, shape in shapes.items()}


def dense(middle: Callable[[Sketch, str, Mapping[str, str]], str]) -> Network:
    """x (n, c) @ w + b, something over the last axis, @ v."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        return s("MatMul", middle(s, s("Add", s("MatMul", x, p["w"]), p["b"]), p), p["v"])

    return network


DENSE = {"w": (C, WIDTH), "b": (WIDTH,), "v": (WIDTH, OUT)}
DENSE_CUT = {"w": 1, "b": 0, "v": 0}


def images(middle: Callable[[Sketch, str, Mapping[str, str]], str]) -> Network:
    """x (n, 5, 4, 3) convolved with w, something over the channels, convolved with v."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        return s("Conv", middle(s, s("Conv", x, p["w"], p["b"]), p), p["v"])

    return network


IMAGES = {"w": (WIDTH, C, 1, 1), "b": (WIDTH,), "v": (OUT, WIDTH, 1, 1)}
IMAGES_CUT = {"w": 0, "b": 0, "v": 1}
IMAGE = (N, C, 4, 3)


# --- over the last axis ---


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Softmax", {"axis": -1}),
        ("LogSoftmax", {"axis": -1}),
        ("LpNormalization", {"axis": -1, "p": 2}),
        ("LpNormalization", {"axis": -1, "p": 1}),
        ("Hardmax", {"axis": -1}),
    ],
    ids=lambda v: str(v) if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_normalizations_over_the_last_axis(op: str, attributes: dict[str, int]) -> None:
    """What is masked has the largest place of a Hardmax, and a part in a norm."""
    before = {"LpNormalization": ["Sigmoid"], "Hardmax": ["Abs", "Neg"]}.get(op, [])

    def middle(s: Sketch, h: str, _: Mapping[str, str]) -> str:
        for name in before:
            h = s(name, h)
        return s(op, h, **attributes)

    agree(dense(middle), normal(**DENSE), DENSE_CUT, shape=(16, C))


@pytest.mark.parametrize("fused", [True, False])
def test_layer_normalization(fused: bool) -> None:
    def middle(s: Sketch, h: str, p: Mapping[str, str]) -> str:
        if fused:
            return s("LayerNormalization", h, p["g"], p["a"], axis=-1)
        centered = s("Sub", h, s("ReduceMean", h, axes=[-1]))
        variance = s("ReduceMean", s("Pow", centered, s.number(2.0)), axes=[-1])
        scaled = s("Div", centered, s("Sqrt", s("Add", variance, s.number(1e-5))))
        return s("Add", s("Mul", scaled, p["g"]), p["a"])

    agree(dense(middle), normal(**DENSE, g=(WIDTH,), a=(WIDTH,)), DENSE_CUT | {"g": 0, "a": 0})


@pytest.mark.parametrize("removed", [(1, 6), (0, 3, 5)])
def test_layer_normalization_over_two_axes(removed: tuple[int, ...]) -> None:
    """(n, t, c) normalized over t and c, with gains of both axes."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        h = s("Add", s("MatMul", x, p["w"]), p["b"])
        return s("MatMul", s("LayerNormalization", h, p["g"], p["a"], axis=1), p["v"])

    weights = normal(**DENSE, g=(T, WIDTH), a=(T, WIDTH))
    agree(network, weights, DENSE_CUT | {"g": 1, "a": 1}, removed, (N, T, C))


def test_layer_normalization_over_three_axes_of_an_image() -> None:
    network = images(lambda s, h, p: s("LayerNormalization", h, p["g"], p["a"], axis=1))
    weights = normal(**IMAGES, g=(WIDTH, 4, 3), a=(WIDTH, 4, 3))
    agree(network, weights, IMAGES_CUT | {"g": 0, "a": 0}, shape=IMAGE)


@pytest.mark.parametrize("how", ["fused", "simplified", "decomposed", "reciprocal"])
def test_root_mean_square_normalization(how: str) -> None:
    def middle(s: Sketch, h: str, p: Mapping[str, str]) -> str:
        if how == "fused":
            return s("RMSNormalization", h, p["g"], axis=-1)
        if how == "simplified":
            return s("SimplifiedLayerNormalization", h, p["g"], axis=-1, domain="")
        squares = s("Mul", h, h) if how == "reciprocal" else s("Pow", h, s.number(2.0))
        root = s("Sqrt", s("Add", s("ReduceMean", squares, axes=[-1]), s.number(1e-5)))
        scaled = s("Mul", h, s("Reciprocal", root)) if how == "reciprocal" else s("Div", h, root)
        return s("Mul", scaled, p["g"])

    opset = {"fused": 23, "simplified": 16}.get(how, 17)
    agree(dense(middle), normal(**DENSE, g=(WIDTH,)), DENSE_CUT | {"g": 0}, opset=opset)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("summed", [False, True])
def test_normalization_with_a_residual(op: str, summed: bool) -> None:
    """The sum of both inputs is normalized, and may be given on as the last output."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        h, r = s("MatMul", x, p["w"]), s("MatMul", x, p["u"])
        vectors = [p["g"], p["a"]] if op == "SkipLayerNormalization" else [p["g"]]
        made = s.call(op, h, r, *vectors, outputs=4 if summed else 1, domain=MS)
        if summed:
            s.nodes[-1].output[1] = s.nodes[-1].output[2] = ""
        z = s("Add", made[0], made[3]) if summed else made[0]
        return s("MatMul", z, p["v"])

    weights = normal(w=(C, WIDTH), u=(C, WIDTH), g=(WIDTH,), a=(WIDTH,), v=(WIDTH, OUT))
    agree(network, weights, {"w": 1, "u": 1, "g": 0, "a": 0, "v": 0}, shape=(N, T, C))


# --- over channels ---


@pytest.mark.parametrize("size", [3, 5])
def test_local_response_normalization(size: int) -> None:
    """The neighbors of what stays are the next that stay."""
    network = images(lambda s, h, _: s("LRN", h, size=size, alpha=0.5, bias=1.5))
    agree(network, normal(**IMAGES), IMAGES_CUT, shape=IMAGE)


@pytest.mark.parametrize("axes", [[1], [1, 2, 3], [0, 1, 2, 3]])
def test_mean_variance_normalization(axes: list[int]) -> None:
    network = images(lambda s, h, _: s("MeanVarianceNormalization", h, axes=axes))
    agree(network, normal(**IMAGES), IMAGES_CUT, shape=IMAGE)


def test_softmax_over_channels_before_opset_13_runs_over_the_rest_too() -> None:
    network = images(lambda s, h, _: s("Softmax", h, axis=1))
    agree(network, normal(**IMAGES), IMAGES_CUT, shape=IMAGE, opset=12)


@pytest.mark.parametrize("fused", [True, False])
def test_group_normalization_inside_the_groups(fused: bool) -> None:
    """12 channels in 4 groups: one goes from every group, not the same one."""

    def middle(s: Sketch, h: str, p: Mapping[str, str]) -> str:
        if fused:
            return s("GroupNormalization", h, p["g"], p["a"], num_groups=4)
        one = s.tensor(np.ones(4, np.float32), "one")
        zero = s.tensor(np.zeros(4, np.float32), "zero")
        h = s("InstanceNormalization", s.reshape(h, 0, 4, -1), one, zero)
        h = s.reshape(h, N, next(t.dims[0] for t in s.tensors if t.name == p["g"]), 4, 3)
        gain, shift = (s.reshape(p[name], -1, 1, 1) for name in "ga")
        return s("Add", s("Mul", h, gain), shift)

    weights = normal(w=(12, C, 1, 1), b=(12,), g=(12,), a=(12,), v=(OUT, 12, 1, 1))
    cut = {"w": 0, "b": 0, "g": 0, "a": 0, "v": 1}
    agree(images(middle), weights, cut, (0, 5, 7, 9), IMAGE, 21 if fused else 17)


# --- reductions ---


@pytest.mark.parametrize(
    "op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ReduceL2"]
)
def test_reductions_over_the_axis(op: str) -> None:
    """Of numbers of which a masked one is not zero: in the twin it takes part, or is the largest or smallest."""
    before = {"ReduceMax": ["Abs", "Sigmoid", "Neg"], "ReduceMin": ["Abs", "Sigmoid"]}.get(op, ["Sigmoid"])

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        h = s("Add", s("MatMul", x, p["w"]), p["b"])
        for name in before:
            h = s(name, h)
        return s("Add", s("MatMul", h, p["v"]), s(op, h, axes=[-1], keepdims=1))

    agree(network, normal(**DENSE), DENSE_CUT)


def test_a_mean_over_tokens_that_are_mixed() -> None:
    """(n, c, t) @ w mixes t tokens to 8, whose mean is read: one that goes is not counted."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        h = s("Add", s("MatMul", x, p["w"]), p["b"])
        return s("Mul", s("ReduceMean", h, axes=[2], keepdims=0), p["u"])

    agree(network, normal(w=(T, WIDTH), b=(WIDTH,), u=(C,)), {"w": 1, "b": 0}, shape=(N, C, T))


def test_a_pool_over_tokens_that_are_mixed() -> None:
    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        return s("GlobalAveragePool", s("Add", s("MatMul", x, p["w"]), p["b"]))

    agree(network, normal(w=(T, WIDTH), b=(WIDTH,)), {"w": 1, "b": 0}, shape=(N, C, T))


def test_attention_over_tokens_that_are_mixed() -> None:
    """Keys and values of 8 mixed tokens: the softmax runs over those that stay."""

    def network(s: Sketch, x: str, p: Mapping[str, str]) -> str:
        mixed = s("Add", s("MatMul", s.transpose(x, 0, 2, 1), p["w"]), p["b"])
        scores = s("Softmax", s("MatMul", x, mixed), axis=-1)
        return s("MatMul", scores, s.transpose(mixed, 0, 2, 1))

    agree(network, normal(w=(T, WIDTH), b=(WIDTH,)), {"w": 1, "b": 0}, shape=(N, T, C))


# --- an order, or positions: frozen ---


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("ArgMax", "positions along it are an output"),
        ("ArgMin", "positions along it are an output"),
        ("CumSum", "its order matters"),
        ("TopK", "positions along it"),
    ],
)
def test_an_order_is_frozen_with_a_reason(op: str, why: str) -> None:
    s = Sketch()
    w = s.w(C, WIDTH, name="w0")
    h = s("MatMul", s.input(N, C), w)
    if op == "TopK":
        outputs = s.call("TopK", h, s.ints(3), outputs=2)
    elif op == "CumSum":
        outputs = [s("MatMul", s("CumSum", h, s.number(1, np.int64)), s.w(WIDTH, OUT))]
    else:
        outputs = [s(op, h, axis=1)]
    model = s.model(*outputs)
    assert counts(onnxprune.analyze(model)) == {}
    assert why in reasons(model, w, 1)


@pytest.mark.parametrize("op", ["ArgMax", "CumSum", "TopK"])
def test_an_order_along_another_axis_frees_the_channels(op: str) -> None:
    s = Sketch()
    h = s("Conv", s.input(N, C, T), s.w(WIDTH, C, 1))
    extra: dict[str, Any] = {"axis": 2} if op != "CumSum" else {}
    if op == "TopK":
        h, _ = s.call("TopK", h, s.ints(3), outputs=2, **extra)
    elif op == "CumSum":
        h = s("CumSum", h, s.number(2, np.int64))
    else:
        h = s("Cast", s("ArgMax", h, **extra), to=1)
    model = s.model(s("Conv", h, s.w(OUT, WIDTH, 1)))
    found = counts(onnxprune.analyze(model))
    assert found in ({"channels": ["8"]}, {"~channels": ["8"]})
    assert onnxprune.prune(model, ratio=0.5, allow_inexact=True).report.ok
