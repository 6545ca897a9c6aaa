"""Weights as matrices: every layout, through every node that only stores or rearranges them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune import load
from onnxprune.sparsity.contents import contents
from onnxprune.sparsity.layout import Layout
from onnxprune.sparsity.slots import einsum
from onnxprune.sparsity.weights import find_weights

RNG = np.random.default_rng(11)


def model(nodes, inputs, outputs, tensors, *, opset=17, functions=(), domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    return load(proto)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def one(found):
    assert len(found.found) == 1, found
    return found.found[0]


X = {"x": (TensorProto.FLOAT, [2, 6])}


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_in_either_layout(trans):
    w = floats(5, 6) if trans else floats(6, 5)
    m = model([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=trans)], X, ["y"], {"w": w})
    weight = one(find_weights(m))
    assert (weight.name, weight.kind, weight.op, weight.shape, weight.makes_output) == (
        "w",
        "linear",
        "Gemm",
        (5, 6),
        True,
    )
    np.testing.assert_array_equal(weight.values(m), w if trans else w.T)


def test_matmul_weight_on_either_side_and_data_beside_it():
    w, v, table = floats(6, 5), floats(7, 2), floats(4, 6)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["v", "h"], ["y"]),
        helper.make_node("MatMul", ["table", "w"], ["z"]),
    ]
    m = model(nodes, X, ["y", "z"], {"w": w, "v": v, "table": table})
    found = {k.name: k for k in find_weights(m).found}
    assert set(found) == {"w", "v"}
    assert (found["w"].shape, found["v"].shape) == ((5, 6), (7, 2))
    np.testing.assert_array_equal(found["v"].values(m), v)
    assert (found["w"].data, found["v"].data) == (0, 1)


def test_a_constant_operand_beside_a_weight_is_data():
    m = model(
        [helper.make_node("MatMul", ["table", "w"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])],
        {"x": (TensorProto.FLOAT, [4, 5])},
        ["y"],
        {"w": floats(6, 5), "table": floats(4, 6)},
    )
    assert one(find_weights(m)).name == "w"


def test_batched_weights_are_matrices_of_their_own():
    w = floats(3, 6, 5)
    m = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (TensorProto.FLOAT, [3, 2, 6])}, ["y"], {"w": w})
    found = find_weights(m).found
    assert [k.name for k in found] == ["w[0]", "w[1]", "w[2]"]
    for k, weight in enumerate(found):
        assert (weight.part, weight.n_parts, weight.shape) == (k, 3, (5, 6))
        np.testing.assert_array_equal(weight.values(m), w[k].T)


def test_convolutions():
    w, v = floats(9, 2, 3, 1), floats(9, 4, 2, 5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], group=3, name="down"),
        helper.make_node("ConvTranspose", ["h", "v"], ["y"], group=3, name="up"),
    ]
    m = model(nodes, {"x": (TensorProto.FLOAT, [1, 6, 8, 8])}, ["y"], {"w": w, "v": v})
    down, up = find_weights(m).found
    assert (down.shape, down.groups, up.shape, up.groups) == ((9, 2, 3, 1), 3, (12, 3, 2, 5), 3)
    np.testing.assert_array_equal(down.values(m), w)
    expected = v.reshape(3, 3, 4, 2, 5).transpose(0, 2, 1, 3, 4).reshape(12, 3, 2, 5)
    np.testing.assert_array_equal(up.values(m), expected)


def test_each_output_of_a_transposed_convolution_depends_on_its_row():
    """What is written to row k of the view changes channel k of the output and no other."""
    v = floats(6, 4, 2, 3)
    m = model(
        [helper.make_node("ConvTranspose", ["x", "v"], ["y"], group=2)],
        {"x": (TensorProto.FLOAT, [1, 6, 3, 3])},
        ["y"],
        {"v": v},
    )
    weight = one(find_weights(m))
    feed = {"x": floats(1, 6, 3, 3)}
    before = session(m.proto).run(None, feed)[0]
    for row in (0, 5):
        keep = np.ones(weight.shape, dtype=bool)
        keep[row] = False
        after = session(written(m, weight, keep)).run(None, feed)[0]
        changed = np.flatnonzero(np.abs(after - before).max(axis=(0, 2, 3)) > 0)
        assert changed.tolist() == [row]


def session(proto):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def written(m, weight, *keep):
    proto = onnx.ModelProto()
    proto.CopyFrom(m.proto)
    (tensor,) = [t for t in proto.graph.initializer if t.name == weight.tensor]
    tensor.CopyFrom(numpy_helper.from_array(contents(m, weight.source, keep), tensor.name))
    return proto


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_by_direction(op):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    w, r = floats(2, gates * 5, 6), floats(2, gates * 5, 5)
    node = helper.make_node(op, ["x", "w", "r"], ["y"], hidden_size=5, direction="bidirectional")
    m = model([node], {"x": (TensorProto.FLOAT, [3, 1, 6])}, ["y"], {"w": w, "r": r})
    found = find_weights(m).found
    assert [(k.name, k.shape, k.kind) for k in found] == [
        ("w[0]", (gates * 5, 6), "recurrent"), ("w[1]", (gates * 5, 6), "recurrent"),
        ("r[0]", (gates * 5, 5), "recurrent"), ("r[1]", (gates * 5, 5), "recurrent"),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[3].values(m), r[1])


def test_weights_that_are_put_together_gate_by_gate():
    """The order of the gates is exchanged in the graph, as some exporters do; the tensors behind it are the weights."""
    w, r = floats(20, 6), floats(20, 5)
    nodes, cut = [], {"zero": [0], "one": [5], "four": [20]}
    for name in ("w", "r"):
        nodes += [
            helper.make_node("Slice", [name, "one", "four", "zero"], [f"{name}b"]),
            helper.make_node("Slice", [name, "zero", "one", "zero"], [f"{name}a"]),
            helper.make_node("Concat", [f"{name}b", f"{name}a"], [f"{name}c"], axis=0),
            helper.make_node("Unsqueeze", [f"{name}c", "zero"], [f"{name}d"]),
        ]
    nodes.append(helper.make_node("LSTM", ["x", "wd", "rd"], ["y"], hidden_size=5))
    tensors = {"w": w, "r": r, **{n: np.array(v, dtype=np.int64) for n, v in cut.items()}}
    m = model(nodes, {"x": (TensorProto.FLOAT, [3, 1, 6])}, ["y"], tensors)
    found = find_weights(m)
    assert [(k.name, k.shape) for k in found.found] == [("w", (20, 6)), ("r", (20, 5))]
    np.testing.assert_array_equal(found.found[0].values(m), w)


def test_through_transpose_cast_identity_and_reshape():
    w = floats(5, 2, 3)
    nodes = [
        helper.make_node("Identity", ["w"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="fc"),
    ]
    m = model(nodes, X, ["y"], {"w": w.astype(np.float16), "shape": np.array([0, -1], dtype=np.int64)})
    weight = one(find_weights(m))
    assert (weight.shape, weight.dtype, weight.node) == ((5, 6), "float16", "fc")
    np.testing.assert_array_equal(weight.values(m), w.astype(np.float16).astype(np.float32).reshape(5, 6))


def test_a_constant_node_is_a_weight_too():
    w = floats(6, 5)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    m = model(nodes, X, ["y"], {})
    np.testing.assert_array_equal(one(find_weights(m)).values(m), w.T)


def test_tied_table_is_listed_once_as_the_product():
    table = floats(9, 6)
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["h"], name="look"),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="head"),
    ]
    m = model(nodes, {"i": (TensorProto.INT64, [3])}, ["y"], {"table": table})
    weight = one(find_weights(m))
    assert (weight.kind, weight.shape, weight.nodes) == ("linear", (9, 6), ("look", "head"))


def test_a_table_alone_is_an_embedding():
    m = model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        {"i": (TensorProto.INT64, [3])},
        ["y"],
        {"table": floats(9, 6)},
    )
    assert one(find_weights(m)).kind == "embedding"


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_stand_for_numbers_and_zero_is_the_zero_point(axis):
    codes = RNG.integers(-128, 128, size=(6, 5)).astype(np.int8)
    n = 1 if axis is None else codes.shape[axis]
    scale = RNG.uniform(0.5, 2, size=n).astype(np.float32)
    point = RNG.integers(-20, 20, size=n).astype(np.int8)
    if axis is None:
        scale, point = scale[0], point[0]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **({} if axis is None else {"axis": axis})),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    m = model(nodes, X, ["y"], {"w": codes, "s": np.asarray(scale), "z": np.asarray(point)})
    weight = one(find_weights(m))
    shape = [1, 1]
    if axis is not None:
        shape[axis] = n
    spread, zero = np.asarray(scale).reshape(shape), np.asarray(point).reshape(shape)
    expected = (codes.astype(np.float32) - zero) * spread
    np.testing.assert_array_equal(weight.values(m), expected.T)
    keep = RNG.random(weight.shape) < 0.5
    new = contents(m, weight.source, [keep])
    assert new.dtype == np.int8
    np.testing.assert_array_equal(new, np.where(keep.T, codes, zero))
    # Codes of the values that are there already are the codes themselves.
    again = contents(m, weight.source, [keep], [weight.values(m)])
    np.testing.assert_array_equal(again, new)


def test_codes_in_blocks():
    codes = RNG.integers(-8, 8, size=(6, 5)).astype(np.int8)
    scale = RNG.uniform(0.5, 2, size=(3, 5)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    m = model(nodes, X, ["y"], {"w": codes, "s": scale}, opset=21)
    values = one(find_weights(m)).values(m)
    np.testing.assert_array_equal(values, (codes.astype(np.float32) * np.repeat(scale, 2, axis=0)).T)


def test_quantized_convolution_and_integer_product():
    conv = RNG.integers(0, 256, size=(4, 3, 2, 2)).astype(np.uint8)
    point = RNG.integers(100, 150, size=4).astype(np.uint8)
    scale = RNG.uniform(0.5, 2, size=4).astype(np.float32)
    head = RNG.integers(-128, 128, size=(7, 5)).astype(np.int8)
    nodes = [
        helper.make_node("QLinearConv", ["x", "xs", "xz", "conv", "ws", "wz", "xs", "xz"], ["q"], name="conv"),
        helper.make_node("MatMulInteger", ["a", "head"], ["i"], name="head"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["as", "hs"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    tensors = {
        "conv": conv, "ws": scale, "wz": point, "xs": np.float32(0.1), "xz": np.uint8(3), "head": head,
        "hs": np.float32(0.25),
    }  # fmt: skip
    inputs = {
        "x": (TensorProto.UINT8, [1, 3, 4, 4]), "a": (TensorProto.INT8, [2, 7]), "as": (TensorProto.FLOAT, []),
    }  # fmt: skip
    m = model(nodes, inputs, ["y"], {n: np.asarray(a) for n, a in tensors.items()})
    found = {k.name: k for k in find_weights(m).found}
    shape = (4, 1, 1, 1)
    expected = (conv.astype(np.float32) - point.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    np.testing.assert_array_equal(found["conv"].values(m), expected)
    np.testing.assert_array_equal(found["head"].values(m), head.T.astype(np.float32) * np.float32(0.25))
    new = contents(m, found["conv"].source, [np.zeros(conv.shape, dtype=bool)])
    np.testing.assert_array_equal(new, np.broadcast_to(point.reshape(shape), conv.shape))


def test_recurrent_codes_by_direction():
    w, r = (RNG.integers(-128, 128, size=(2, n, 20)).astype(np.int8) for n in (6, 5))
    scale = RNG.uniform(0.5, 2, size=(2, 20)).astype(np.float32)
    zero = np.zeros((2, 20), dtype=np.int8)
    given = ["x", "w", "r", "", "", "", "", "", "s", "z", "s", "z"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", given, ["y"], domain="com.microsoft", hidden_size=5, direction="bidirectional"
    )
    tensors = {"w": w, "r": r, "s": scale, "z": zero}
    m = model([node], {"x": (TensorProto.FLOAT, [3, 1, 6])}, ["y"], tensors, domains=["com.microsoft"])
    found = find_weights(m).found
    assert [(k.name, k.shape) for k in found] == [
        ("w[0]", (20, 6)),
        ("w[1]", (20, 6)),
        ("r[0]", (20, 5)),
        ("r[1]", (20, 5)),
    ]
    np.testing.assert_array_equal(found[3].values(m), (r[1].astype(np.float32) * scale[1]).T)


def test_weights_in_branches_are_found_in_order():
    w, v, inner = floats(6, 5), floats(5, 4), floats(6, 5)
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"], name="then")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(inner, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["e"], name="else")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["c"], ["h"], then_branch=then, else_branch=other, name="if"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="last"),
    ]
    m = model(nodes, {**X, "c": (TensorProto.BOOL, [])}, ["y"], {"w": w, "v": v})
    assert [k.name for k in find_weights(m).found] == ["w", "inner", "v"]


def test_what_cannot_be_sparsified_says_why():
    values = numpy_helper.from_array(np.array([1.0, 2.0], dtype=np.float32))
    indices = numpy_helper.from_array(np.array([0, 7], dtype=np.int64))
    sparse = helper.make_sparse_tensor(values, indices, [6, 5])
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "s"], ["a"], name="a"),
        helper.make_node("Mul", ["g", "v"], ["gv"], name="norm"),
        helper.make_node("MatMul", ["x", "gv"], ["b"], name="b"),
        helper.make_node("MatMul", ["x", "vector"], ["c"], name="c"),
        helper.make_node("MatMul", ["x", "shared"], ["d"], name="d"),
        helper.make_node("Add", ["d", "shared"], ["e"], name="sum"),
        helper.make_node("MatMul", ["x", "x2"], ["f"], name="dynamic"),
    ]
    tensors = {"g": floats(6, 1), "v": floats(6, 5), "vector": floats(6), "shared": floats(6, 6)}
    inputs = {"x": (TensorProto.FLOAT, [6, 6]), "x2": (TensorProto.FLOAT, [6, 6])}
    found = find_weights(model(nodes, inputs, ["a", "b", "c", "e", "f"], tensors))
    assert found.found == ()
    reasons = {row.node: row.reason for row in found.refused}
    assert set(reasons) == {"a", "b", "c", "d"}
    assert "sparse tensor" in reasons["a"]
    assert "computed by Mul 'norm'" in reasons["b"]
    assert "1 axis" in reasons["c"]
    assert "Add 'sum' reads it too" in reasons["d"]


def test_integers_without_a_scale_are_no_weights():
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"], name="fc"),
    ]
    m = model(nodes, X, ["y"], {"w": np.ones((6, 5), dtype=np.int8)})
    (row,) = find_weights(m).refused
    assert row.reason == "it holds integers without a scale"


@pytest.mark.parametrize(
    ("equation", "slot", "shape", "expected"),
    [
        ("bi,oi->bo", 1, (5, 6), (1, 5, 6)),
        ("bi,io->bo", 1, (6, 5), (1, 5, 6)),
        ("ebi,eio->ebo", 1, (3, 6, 5), (3, 5, 6)),
        ("bhi,hio->bo", 1, (2, 6, 5), (1, 5, 12)),
        ("oi,bi->bo", 0, (5, 6), (1, 5, 6)),
    ],
)
def test_einsum_operands(equation, slot, shape, expected):
    layout = einsum(equation, slot, Layout(shape))
    assert layout.shape == expected
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(layout.back(layout.view(array)), array)


@pytest.mark.parametrize("equation", ["bi,bi->b", "bo,oo->bo", "bi,...i->b", "bi->b"])
def test_other_equations_are_no_products_of_a_matrix(equation):
    with pytest.raises(ValueError, match=r"\w"):
        einsum(equation, len(equation.split(",")) - 1, Layout((6, 5)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_layout_leads_there_and_back(data):
    sizes = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=4)))
    layout = Layout(sizes)
    for _ in range(data.draw(st.integers(0, 4))):
        if data.draw(st.booleans()):
            layout = layout.transpose(*data.draw(st.permutations(range(len(layout.shape)))))
        else:
            layout = layout.reshape(*data.draw(st.sampled_from([(-1,), (1, -1), layout.shape[::-1]])))
    array = np.arange(np.prod(sizes)).reshape(sizes)
    seen = layout.view(array)
    assert seen.shape == layout.shape
    np.testing.assert_array_equal(layout.back(seen), array)
    assert sorted(seen.reshape(-1).tolist()) == list(range(array.size))
