"""Dead and equal units planted in networks of every kind, and what must stay as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.axes.analysis import analyze_model
from onnxprune.compaction import compact, fold_means, wanted_means
from onnxprune.errors import OptionError, PlanError, UnknownNameError
from onnxprune.graph.model import Model, load, serialize
from tests.compact.networks import Network, compacted, input_for, removed, weights_of
from tests.test_properties import plan_for, run

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"


# --- equal units ---


def test_equal_rows_are_merged() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 9)
    net.op("Tanh")
    net.linear("b", 9, 5)
    for copy in (4, 7):
        net.weights["a.weight"][copy] = net.weights["a.weight"][2]
        net.weights["a.bias"][copy] = net.weights["a.bias"][2]
    result = compacted(net.model())
    assert removed(result) == {"duplicate": (4, 7)}
    expected = net.weights["b.weight"][:, [2, 4, 7]].astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(weights_of(result.model)["b.weight"][:, 2], expected, rtol=1e-6)


def test_equal_rows_with_another_bias_are_not() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 9)
    net.op("Tanh")
    net.linear("b", 9, 5)
    net.weights["a.weight"][4] = net.weights["a.weight"][2]
    assert not compacted(net.model()).n_removed


def test_equal_channels_are_merged_at_any_padding() -> None:
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8, pad=1)
    net.batch_norm("norm", 8)
    net.op("Relu")
    net.conv("b", 8, 5, pad=1)
    for name in ("a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        net.weights[name][6] = net.weights[name][1]
    assert removed(compacted(net.model())) == {"duplicate": (6,)}


def test_equal_units_of_a_recurrent_layer_are_merged() -> None:
    net = Network(("t", "n", 5))
    w, r, b = net.weight("w", 1, 24, 5), net.weight("r", 1, 24, 6), net.weight("b", 1, 48)
    net.op("LSTM", "x", w, r, b, hidden_size=6)
    net.op("Squeeze", net.value, net.constant("one", [1], np.int64))
    net.product("out", 6, 3)
    for name, parts in (("w", 4), ("r", 4), ("b", 8)):
        rows = net.weights[name].reshape(parts, 6, *net.weights[name].shape[2:])
        rows[:, 5] = rows[:, 1]
    assert removed(compacted(net.model(), sizes={"t": 7, "n": 2})) == {"duplicate": (5,)}


def test_a_weight_that_others_read_is_copied_before_it_is_changed() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Sigmoid")
    first = net.linear("b", 8, 8)
    net.op("Sigmoid")
    net.op("Gemm", net.value, net.weight("c.weight", 5, 8), net.weight("c.bias", 5), transB=1)
    left = net.value
    net.op("Gemm", net.op("Relu", first), "c.weight", "c.bias", transB=1)
    net.op("Add", left, net.value)
    net.mask_rows("b", [1, 4], prune_bias=False)
    net.weights["b.bias"][[1, 4]] = [0.7, -0.7]
    result = compacted(net.model())
    assert result.n_removed == 2
    assert {"c.bias", "c.bias.onnxprune.1"} & set(weights_of(result.model))


# --- attention ---


def attention(net: Network, heads: int, size: int, *, key_heads: int | None = None) -> None:
    """Add attention as exporters decompose it; fewer heads of keys are repeated."""
    width, keys = heads * size, key_heads or heads
    x = net.value

    def part(name: str, n: int) -> str:
        net.value = x
        net.product(name, width, n * size)
        net.op("Reshape", net.value, net.constant(f"{name}.shape", [0, 0, n, size], np.int64))
        net.op("Transpose", perm=[0, 2, 1, 3])
        if n < heads:
            net.op("Unsqueeze", net.value, net.constant(f"{name}.axis", [2], np.int64))
            net.op("Expand", net.value, net.constant(f"{name}.repeat", [1, 1, heads // n, 1, 1], np.int64))
            net.op("Reshape", net.value, net.constant(f"{name}.joined", [0, heads, -1, size], np.int64))
        return net.value

    q, k, v = part("q", heads), part("k", keys), part("v", keys)
    net.op("Transpose", k, perm=[0, 1, 3, 2])
    net.op("MatMul", q, net.value)
    net.op("Mul", net.value, net.constant("scale", size**-0.5))
    net.op("Softmax", axis=-1)
    net.op("MatMul", net.value, v)
    net.op("Transpose", perm=[0, 2, 1, 3])
    net.op("Reshape", net.value, net.constant("flat", [0, 0, width], np.int64))
    net.product("o", width, width)


@pytest.mark.parametrize("prune_bias", [True, False])
def test_dead_heads(prune_bias: bool) -> None:
    net = Network(("n", "t", 20))
    attention(net, 5, 4)
    for name in ("q", "k", "v"):
        net.mask_rows(name, [*range(4, 8), *range(16, 20)], prune_bias=False, axis=1)
        if prune_bias:
            net.weights[f"{name}.bias"][[*range(4, 8), *range(16, 20)]] = 0
    result = compacted(net.model(), sizes={"n": 2, "t": 6})
    (heads,) = (g for g in result.groups if g.kind == "heads")
    assert heads.removed == {"zero" if prune_bias else "constant": (1, 4)}
    assert weights_of(result.model)["v.weight"].shape == (20, 12)


def test_a_head_whose_values_alone_are_dead() -> None:
    """Weights of attention sum to one, so constant values come out as they are, whatever the scores."""
    net = Network(("n", "t", 20))
    attention(net, 5, 4)
    net.mask_rows("v", range(8, 12), prune_bias=False, axis=1)
    result = compacted(net.model(), sizes={"n": 2, "t": 6})
    assert next(g for g in result.groups if g.kind == "heads").removed == {"constant": (2,)}


def test_head_dims_of_keys_that_are_constant_over_positions() -> None:
    """They shift all scores of a query alike, which Softmax takes back."""
    net = Network(("n", "t", 20))
    attention(net, 5, 4)
    net.mask_rows("k", range(1, 20, 4), prune_bias=False, axis=1)
    result = compacted(net.model(), sizes={"n": 2, "t": 6})
    assert result.n_removed == 5
    assert weights_of(result.model)["k.weight"].shape == (20, 15)
    assert weights_of(result.model)["v.weight"].shape == (20, 20)


def test_dead_groups_of_heads_that_share_keys() -> None:
    net = Network(("n", "t", 24))
    attention(net, 6, 4, key_heads=3)
    net.mask_rows("q", range(8, 16), prune_bias=False, axis=1)
    for name in ("k", "v"):
        net.mask_rows(name, range(4, 8), prune_bias=False, axis=1)
    result = compacted(net.model(), sizes={"n": 2, "t": 5})
    after = weights_of(result.model)
    assert after["k.weight"].shape == (24, 8)
    assert after["q.weight"].shape == (24, 16)
    assert after["o.weight"].shape == (16, 24)


@pytest.mark.parametrize("operator", ["Attention", "MultiHeadAttention", "com.microsoft.Attention"])
def test_dead_heads_of_attention_in_one_node(operator: str) -> None:
    net = Network(("n", "t", 20))
    if operator == "com.microsoft.Attention":
        net.op("Attention", "x", net.weight("w", 20, 60), net.weight("b", 60), domain="com.microsoft", num_heads=5)
        for start in (0, 20, 40):
            net.weights["w"][:, start + 8 : start + 12] = 0
    else:
        parts = []
        for name in "qkv":
            net.value = "x"
            parts.append(net.product(name, 20, 20))
            net.mask_rows(name, range(8, 12), prune_bias=False, axis=1)
        if operator == "Attention":
            net.op("Attention", *parts, q_num_heads=5, kv_num_heads=5)
        else:
            net.op("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=5)
    net.product("o", 20, 7)
    model = net.model(opset=23)
    del model.proto.graph.output[0].type.tensor_type.shape.dim[:]
    for dim in ("n", "t"):
        model.proto.graph.output[0].type.tensor_type.shape.dim.add(dim_param=dim)
    model.proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=7)
    result = compacted(model, sizes={"n": 2, "t": 6})
    assert next(g for g in result.groups if g.kind == "heads").removed == {"constant": (2,)}


# --- other producers ---


def test_embedding_columns() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("MatMul", ["e", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 5])],
        [
            numpy_helper.from_array(np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32), "table"),
            numpy_helper.from_array(np.random.default_rng(2).standard_normal((8, 5)).astype(np.float32), "w"),
        ],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    table = numpy_helper.to_array(graph.initializer[0]).copy()
    table[:, 3], table[:, 6] = 0, 0.5
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    result = compact(analyze_model(Model(proto)), verified=False)
    assert removed(result) == {"zero": (3,), "constant": (6,)}
    feeds = {"ids": np.arange(12, dtype=np.int64).reshape(3, 4)}
    (expected,), (found,) = run(proto, feeds), run(result.model.proto, feeds)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert weights_of(result.model)["table"].shape == (30, 6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_16_bits_and_32(dtype: type) -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Sigmoid")
    net.linear("b", 8, 5)
    net.mask_rows("a", [2, 5], prune_bias=False)
    net.weights = {name: array.astype(dtype) for name, array in net.weights.items()}
    model = net.model()
    for value in (*model.proto.graph.input, *model.proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    result = compact(analyze_model(Model(model.proto)))
    assert removed(result) == {"constant": (2, 5)}
    assert result.report is not None
    assert result.report.ok
    assert weights_of(result.model)["b.bias"].dtype == dtype


def test_quantized_weights() -> None:
    """Codes at their zero point are zero rows; the constant is added behind, for a quantized bias is too coarse."""
    net = Network(("n", 6))
    rng = np.random.default_rng(4)
    for name, shape in (("a", (8, 6)), ("b", (5, 8))):
        net.constant(f"{name}.codes", rng.integers(-90, 90, shape), np.int8)
        net.constant(f"{name}.scale", 0.02)
        net.constant(f"{name}.zero", 3, np.int8)
    net.weights["a.codes"][[1, 6]] = 3
    w = net.op("DequantizeLinear", "a.codes", "a.scale", "a.zero")
    net.op("Gemm", "x", w, net.weight("a.bias", 8), transB=1)
    hidden = net.op("Sigmoid")
    w = net.op("DequantizeLinear", "b.codes", "b.scale", "b.zero")
    net.op("Gemm", hidden, w, net.weight("b.bias", 5), transB=1)
    result = compacted(net.model())
    assert removed(result) == {"constant": (1, 6)}
    assert weights_of(result.model)["a.codes"].shape == (6, 6)


def test_units_in_the_branches_of_an_if() -> None:
    def branch(name: str, seed: int) -> onnx.GraphProto:
        net = Network(("n", 6), seed=seed)
        net.linear(f"{name}.a", 6, 8)
        net.op("Sigmoid")
        net.linear(f"{name}.b", 8, 5)
        net.mask_rows(f"{name}.a", [1, 5], prune_bias=False)
        for k, made in enumerate(net.nodes):
            made.output[0] = f"{name}.{made.output[0]}"
            if k:
                made.input[0] = f"{name}.{made.input[0]}"
        return helper.make_graph(
            net.nodes,
            name,
            [],
            [helper.make_tensor_value_info(net.nodes[-1].output[0], TensorProto.FLOAT, ["n", 5])],
            [numpy_helper.from_array(a, n) for n, a in net.weights.items()],
        )

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 2))],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    result = compact(analyze_model(Model(proto)), verified=False)
    assert [g.removed for g in result.groups] == [{"constant": (1, 5)}] * 2
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        (expected,), (found,) = run(proto, feeds), run(result.model.proto, feeds)
        np.testing.assert_allclose(found, expected, atol=1e-5)


# --- chains of removals ---


def test_what_only_feeds_removed_units_goes_too() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 7)
    net.op("Tanh")
    net.linear("b", 7, 8)
    net.op("Tanh")
    net.linear("c", 8, 5)
    net.weights["c.weight"][:, [2, 3]] = 0  # c ignores units 2 and 3 of b
    net.weights["b.weight"][[0, 1, 4, 5, 6, 7], 4] = 0  # only those read unit 4 of a
    result = compacted(net.model())
    assert [g.removed for g in result.groups] == [{"ignored": (4,)}, {"ignored": (2, 3)}]


def test_one_unit_of_a_group_always_stays() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 4)
    net.op("Sigmoid")
    first = net.linear("b", 4, 5)
    net.value = "x"
    net.linear("c", 6, 5)
    net.op("Add", first, net.value)
    net.mask_rows("a", range(4), prune_bias=False)
    result = compacted(net.model())
    (group,) = (g for g in result.groups if g.size == 4)
    assert group.n_removed == 3
    assert group.kept == ((0, "one unit of a group always stays"),)


def test_compacting_again_finds_nothing() -> None:
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Sigmoid")
    net.conv("b", 8, 6, pad=1)
    net.op("Relu")
    net.conv("c", 6, 4)
    net.mask_rows("a", [1, 2, 7], prune_bias=False)
    net.mask_rows("b", [0, 3], prune_bias=False)
    once = compacted(net.model())
    assert once.n_removed
    again = compact(analyze_model(once.model))
    assert not again.n_removed
    assert again.model is once.model


# --- nothing to do ---


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
def test_a_model_with_nothing_dead_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    source = SAMPLES / f"{name}.onnx"
    result = onnxprune.compact(source, tmp_path / "out.onnx")
    assert not result.n_removed
    assert result.report is None
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_the_same_model_gives_the_same_bytes() -> None:
    net = Network(("n", 3, 9, 11))
    net.conv("a", 3, 8)
    net.op("Sigmoid")
    net.conv("b", 8, 6, pad=1)
    net.mask_rows("a", [1, 2, 7], prune_bias=False)
    model = net.model()
    one, two = (serialize(compact(analyze_model(model), verified=False).model.proto) for _ in range(2))
    assert one == two


def test_what_is_written_says_where_it_comes_from(tmp_path: Path) -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Sigmoid")
    net.linear("b", 8, 5)
    net.mask_rows("a", [2, 5], prune_bias=False)
    path = tmp_path / "masked.onnx"
    onnxprune.save(net.model(), path)
    source = load(path)
    result = onnxprune.compact(source, tmp_path / "out.onnx")
    stamped = {p.key: p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert stamped["onnxprune.source_sha256"] == source.sha256 == result.plan.source_sha256
    assert stamped["onnxprune.plan_sha256"] == result.plan.sha256
    assert result.report.ok
    assert [c.name for c in result.report.checks][-1] == "same outputs"


# --- data ---


def dying_relu() -> Network:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Relu")
    net.linear("b", 8, 5)
    net.weights["a.bias"][[3, 4]] = -100
    return net


def test_units_that_are_constant_on_the_data() -> None:
    model = dying_relu().model()
    feeds = [input_for(model, {"n": 9}, seed) for seed in range(3)]
    result = compacted(model, data=feeds)
    assert not result.n_removed
    assert [g.observed for g in result.groups] == [(3, 4)]
    result = compacted(model, data=feeds, assume_data=True)
    assert removed(result) == {"zero": (3, 4)}


def test_assuming_needs_data() -> None:
    with pytest.raises(OptionError, match="needs data"):
        compact(analyze_model(dying_relu().model()), assume_data=True)


def test_groups_can_be_left_out() -> None:
    net = Network(("n", 6))
    net.linear("a", 6, 8)
    net.op("Tanh")
    net.linear("b", 8, 9)
    net.op("Tanh")
    net.linear("c", 9, 5)
    net.mask_rows("a", [2], prune_bias=True)
    net.mask_rows("b", [4], prune_bias=True)
    model = net.model()
    assert removed(compacted(model, include=["b*"])) == {"zero": (4,)}
    assert removed(compacted(model, exclude=["b"]), "a") == {"zero": (2,)}
    with pytest.raises(UnknownNameError, match="nowhere"):
        compact(analyze_model(model), include=["nowhere*"])


# --- means ---


def test_means_of_what_goes_are_added_to_the_bias_behind() -> None:
    net = Network(("n", "t", 6))
    net.product("a", 6, 8)
    hidden = net.op("Sigmoid")
    net.product("b", 8, 5)
    model = net.model()
    analysis = analyze_model(model)
    plan = plan_for(analysis, {analysis.groups[0].id: [1, 6]})
    assert wanted_means(analysis, plan) == {hidden: 2}
    mean = np.linspace(0.1, 0.8, 8)
    folded = weights_of(fold_means(analysis, plan, {hidden: mean}))
    expected = net.weights["b.bias"] + mean[[1, 6]] @ net.weights["b.weight"][[1, 6]]
    np.testing.assert_allclose(folded["b.bias"], expected, rtol=1e-6)
    with pytest.raises(PlanError, match="has 3 entries"):
        fold_means(analysis, plan, {hidden: mean[:3]})
