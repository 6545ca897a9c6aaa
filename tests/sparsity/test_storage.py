"""Stores of sparse weights: every dtype and place, each file valid, running and equal to the dense one bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnx.version_converter
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import OptionError, UnknownNameError
from onnxprune.graph.model import Model, serialize
from onnxprune.sparsity.storage import STORES, Stored, store, unpack
from onnxprune.sparsity.storage.bits import filler_of, put_together, take_apart

Array = np.ndarray[Any, Any]
DTYPES: dict[str, Any] = {
    **{n: np.dtype(n) for n in ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def weight(
    dtype: Any, shape: tuple[int, ...] = (40, 56), density: float = 0.25, fill: float = 0, seed: int = 3
) -> Array:
    rng = np.random.default_rng(seed)
    values = np.rint(rng.uniform(1, 100, shape))
    return np.where(rng.random(shape) < density, values, fill).astype(dtype)


def model_of(
    nodes: list[onnx.NodeProto],
    tensors: dict[str, Array],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    *,
    opset: int = 13,
    ir: int = 8,
    functions: list[onnx.FunctionProto] | None = None,
) -> Model:
    def declare(values: dict[str, Any]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in values.items()]

    graph = helper.make_graph(
        nodes, "g", declare(inputs), declare(outputs), [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    )
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid("own", 1)] * bool(functions)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions or [])
    proto.ir_version = ir
    return Model(proto)


def product(w: Array, *, opset: int = 13, ir: int = 8) -> Model:
    """Give y = x @ cast(w), or x + cast(w) where w is no matrix."""
    if w.ndim == 2:
        x, y = [5, w.shape[0]], [5, w.shape[1]]
    else:
        x, y = list(w.shape), list(w.shape)
    nodes = [
        helper.make_node("Cast", ["W"], ["F"], to=TensorProto.FLOAT),
        helper.make_node("MatMul" if w.ndim == 2 else "Add", ["x", "F"], ["y"]),
    ]
    model = model_of(nodes, {"W": w}, {"x": x}, {"y": y}, opset=opset, ir=ir)
    model.proto.graph.value_info.append(
        helper.make_tensor_value_info("W", helper.np_dtype_to_tensor_dtype(w.dtype), list(w.shape))
    )
    return model


def check(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def outputs_of(proto: onnx.ModelProto, *, folds: bool = True) -> list[Array]:
    """Run a model with onnxruntime's defaults; `folds`: no decoding operator may be left when it runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(serialize(proto), options, providers=["CPUExecutionProvider"])
    if folds:
        assert_folded(proto)
    rng = np.random.default_rng(11)
    feeds = {
        i.name: np.array(True) if i.type == "tensor(bool)" else rng.standard_normal(i.shape).astype(np.float32)
        for i in session.get_inputs()
    }
    return [np.asarray(y) for y in session.run(None, feeds)]


def assert_folded(proto: onnx.ModelProto) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        ort.InferenceSession(serialize(proto), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(Path(folder) / "o.onnx").graph
        left = {n.op_type for g in all_graphs(graph) for n in g.node}
    assert not left & {"CumSum", "Where", "Gather", "Reshape"}, left


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    bodies = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [graph, *(g for b in bodies for g in all_graphs(b))]


def assert_same_bits(a: Array, b: Array) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(f"u{a.itemsize}"), np.ascontiguousarray(b).view(f"u{b.itemsize}")
    )


def assert_equal_stores(model: Model, weights: dict[str, Array], **options: Any) -> dict[str, Stored]:
    """Store in every way: all files are valid, give the same bits, and unpack to the contents."""
    made = {how: store(model, weights, how, **options) for how in STORES}
    expected = outputs_of(made["dense"].model.proto)
    assert all(np.unique(y).size > 1 for y in expected)
    for stored in made.values():
        check(stored.model.proto)
        for a, b in zip(outputs_of(stored.model.proto), expected, strict=True):
            assert_same_bits(a, b)
        back = unpack(stored.model)
        check(back.proto)
        for name in weights:
            assert_same_bits(back.array(name), made["dense"].model.array(name))
        assert len(back.proto.graph.initializer) == len(made["dense"].model.proto.graph.initializer)
        assert len(back.proto.graph.node) <= len(model.proto.graph.node)
    return made


# --- dtypes, opsets, shapes ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.02, 0.25])
def test_every_dtype_in_every_store(dtype: str, density: float) -> None:
    model = product(weight(DTYPES[dtype], (40, 560), 1.0))
    new = weight(DTYPES[dtype], (40, 560), density)
    made = assert_equal_stores(model, {"W": new})
    assert made["packed"].rows[0].stored == "packed", made["packed"].rows
    assert made["mask"].rows[0].stored == "mask", made["mask"].rows
    if density < 0.1:
        assert made["sparse"].rows[0].stored == "sparse", made["sparse"].rows
    for how in ("packed", "sparse"):
        row = made[how].rows[0]
        assert (row.bytes_after < row.bytes_before) == (row.stored == how)
    mask = made["mask"].model
    np.testing.assert_array_equal(mask.array("W.mask"), new != 0)
    assert_same_bits(mask.array("W")[new == 0], model.array("W")[new == 0])


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_opset(opset: int, dtype: str) -> None:
    model = product(weight(DTYPES[dtype], (41, 113), 1.0), opset=opset)
    made = assert_equal_stores(model, {"W": weight(DTYPES[dtype], (41, 113), 0.04)})
    assert [made[how].rows[0].stored for how in STORES] == list(STORES)
    for stored in made.values():
        assert stored.model.proto.opset_import == model.proto.opset_import


@pytest.mark.parametrize(
    ("how", "opset", "dtype", "reason"),
    [
        ("packed", 9, "float32", "decoding needs opset 11"),
        ("packed", 12, "bfloat16", "decoding needs opset 13"),
        ("sparse", 10, "float32", "sparse constants need opset 11"),
        ("sparse", 12, "bfloat16", "need opset 13"),
        ("mask", 8, "float32", "the mask needs opset 9"),
        ("mask", 12, "bfloat16", "the mask needs opset 13"),
    ],
)
def test_an_older_opset_stays_and_so_does_the_dense_weight(how: str, opset: int, dtype: str, reason: str) -> None:
    model = product(weight(DTYPES[dtype], (41, 113), 1.0), opset=opset)
    stored = store(model, {"W": weight(DTYPES[dtype], (41, 113), 0.04)}, how)
    assert stored.rows[0].stored == "dense"
    assert reason in stored.rows[0].why
    assert stored.model.proto.opset_import == model.proto.opset_import


@pytest.mark.parametrize("shape", [(9001,), (7, 1501), (16, 24, 3, 5), (2, 3, 5, 7, 31), (8, 1000), (4093, 1)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    made = assert_equal_stores(product(weight(np.float32, shape, 1.0)), {"W": weight(np.float32, shape, 0.1)})
    assert [made[how].rows[0].stored for how in STORES] == list(STORES)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
def test_what_is_small_stays_dense(shape: tuple[int, ...]) -> None:
    new = (
        np.where(np.arange(15) % 4 == 0, np.arange(15) + 1.5, 0)[: int(np.prod(shape))]
        .reshape(shape)
        .astype(np.float32)
    )
    model = product(weight(np.float32, shape, 1.0))
    for how in ("packed", "sparse"):
        row = store(model, {"W": new}, how).rows[0]
        assert row.stored == "dense"
        assert row.why
        assert row.bytes_after == row.bytes_before
    assert store(model, {"W": new}, "mask").rows[0].stored == "mask"


def test_tables_must_pay_off() -> None:
    model = product(weight(np.float32, (25, 36), 1.0))
    stored = store(model, {"W": weight(np.float32, (25, 36), 0.25)}, "packed")
    assert stored.rows[0].why == "the packed tensors save less than the tables take that decode them"
    assert stored.shared_bytes == 0
    assert not any(t.name.startswith("unpack") for t in stored.model.proto.graph.initializer)


def test_all_zero_and_no_zero() -> None:
    full = weight(np.float32, (64, 72), 1.0)
    model = product(full)
    for how, expected in (("packed", "packed"), ("sparse", "sparse"), ("mask", "mask")):
        stored = store(model, {"W": np.zeros_like(full)}, how)
        check(stored.model.proto)
        assert stored.rows[0].stored == expected
        np.testing.assert_array_equal(outputs_of(stored.model.proto)[0], np.zeros((5, 72), np.float32))
        if how != "mask":
            assert_same_bits(unpack(stored.model).array("W"), np.zeros_like(full))
    for how in ("packed", "sparse"):
        assert store(model, {"W": full}, how).rows[0].stored == "dense"
    assert_equal_stores(model, {"W": full})


# --- exact values ---


def test_zeros_are_true_zeros_and_other_bits_survive() -> None:
    old = weight(np.float32, (64, 72), 1.0)
    keep = np.random.default_rng(5).random(old.shape) < 0.1
    old[keep] = np.resize(np.array([np.nan, -np.inf, -0.0, 1e-42, -3.5], np.float32), int(keep.sum()))
    product_of_mask = np.where(keep, old, -0.0)
    product_of_mask[~keep & (np.arange(72) % 2 == 0)] = np.nan
    model = product(old)
    expected = np.where(keep & (old != 0), old, np.float32(0))
    for how in STORES:
        stored = store(model, {"W": product_of_mask}, how, keep={"W": keep})
        assert stored.rows[0].stored == how
        if how == "mask":
            stored.model.proto.graph.output.append(
                helper.make_tensor_value_info("W.masked", TensorProto.FLOAT, [64, 72])
            )
            assert_same_bits(outputs_of(stored.model.proto)[1], expected)
        else:
            assert_same_bits(unpack(stored.model).array("W"), expected)


def test_without_a_mask_no_negative_zero_is_written() -> None:
    old = -weight(np.float32, (64, 72), 1.0)
    stored = store(product(old), {"W": old * (old < -50)}, "dense")
    assert not np.signbit(stored.model.array("W")[stored.model.array("W") == 0]).any()


def quantized(codes: Array, zero: Array, axis: int | None) -> Model:
    scale = np.linspace(0.01, 0.03, max(zero.size, 1)).astype(np.float32).reshape(zero.shape)
    more = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["W", "S", "Z"], ["F"], **more),
        helper.make_node("MatMul", ["x", "F"], ["y"]),
    ]
    tensors = {"W": codes, "S": scale, "Z": zero}
    return model_of(nodes, tensors, {"x": [5, codes.shape[0]]}, {"y": [5, codes.shape[1]]})


@pytest.mark.parametrize("zero", [0, 128, 7])
def test_codes_stay_on_their_zero_point(zero: int) -> None:
    old = np.random.default_rng(2).integers(0, 256, (64, 144)).astype(np.uint8)
    keep = np.random.default_rng(3).random(old.shape) < 0.25
    new = np.where(keep, old, np.uint8(zero)).astype(np.uint8)
    made = assert_equal_stores(quantized(old, np.array(zero, np.uint8), None), {"W": new}, keep={"W": keep})
    assert made["packed"].rows[0].stored == "packed"
    assert made["mask"].rows[0].stored == "mask"
    assert_same_bits(made["mask"].model.array("W"), old)


def test_codes_with_a_zero_point_per_channel() -> None:
    old = np.random.default_rng(2).integers(0, 256, (64, 144)).astype(np.uint8)
    keep = np.random.default_rng(3).random(old.shape) < 0.25
    zeros = (100 + np.arange(144) % 7).astype(np.uint8)
    new = np.where(keep, old, zeros).astype(np.uint8)
    made = assert_equal_stores(quantized(old, zeros, 1), {"W": new}, keep={"W": keep})
    assert made["mask"].model.array("W.fill").shape == (1, 144)
    assert made["packed"].rows[0].stored == "dense"


def test_a_mask_over_many_values_is_no_mask() -> None:
    old = np.random.default_rng(2).integers(1, 127, (64, 144)).astype(np.int8)
    keep = np.random.default_rng(3).random(old.shape) < 0.25
    stored = store(product(old), {"W": old}, "mask", keep={"W": keep})
    assert (stored.rows[0].stored, stored.rows[0].why) == ("dense", "what is masked out has several values")


def test_four_bit_codes_stay_dense_and_say_why() -> None:
    old = np.arange(-8, 8).repeat(100).reshape(40, 40).astype(ml_dtypes.int4)
    nodes = [
        helper.make_node("DequantizeLinear", ["W", "S"], ["F"]),
        helper.make_node("MatMul", ["x", "F"], ["y"]),
    ]
    tensors = {"W": old, "S": np.array(0.1, np.float32)}
    model = model_of(nodes, tensors, {"x": [5, 40]}, {"y": [5, 40]}, opset=21, ir=10)
    new = np.where(np.arange(1600).reshape(40, 40) % 5 == 0, old, old.dtype.type(0))
    for how in ("packed", "sparse", "mask"):
        stored = store(model, {"W": new}, how)
        check(stored.model.proto)
        assert stored.rows[0].stored == "dense"
        assert "INT4" in stored.rows[0].why
        np.testing.assert_array_equal(stored.model.array("W"), new)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_taking_apart_and_putting_together(data: st.DataObject) -> None:
    dtype = DTYPES[data.draw(st.sampled_from(sorted(DTYPES)))]
    shape = data.draw(st.lists(st.integers(1, 7), max_size=4).map(tuple))
    raw = data.draw(st.binary(min_size=1, max_size=40))
    n = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer((raw * n)[:n], dtype=np.uint8).view(dtype).reshape(shape)
    pieces = take_apart(array)
    assert pieces.mask.size == -(-array.size // 8)
    assert_same_bits(put_together(pieces), array)
    if array.dtype.kind in "iu":
        values, counts = np.unique(array, return_counts=True)
        assert counts[values == filler_of(array)[0]] == counts.max()


# --- places ---


def test_a_weight_used_twice_and_given_as_an_output() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["a", "W"], ["y"]),
        helper.make_node("Relu", ["W"], ["r"]),
        helper.make_node("Identity", ["W"], ["z"]),
    ]
    outputs = {"y": [5, 48], "r": [48, 48], "z": [48, 48]}
    model = model_of(nodes, {"W": weight(np.float32, (48, 48), 1.0)}, {"x": [5, 48]}, outputs)
    assert_equal_stores(model, {"W": weight(np.float32, (48, 48), 0.2)})
    model.proto.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [48, 48]))
    given_out = Model(model.proto)
    made = assert_equal_stores(given_out, {"W": weight(np.float32, (48, 48), 0.2)})
    assert made["packed"].rows[0].stored == "packed"
    assert "output of its graph" in made["mask"].rows[0].why


def constant_node(name: str, array: Array) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], [name], name=f"{name}_node", value=numpy_helper.from_array(array, name))
    node.doc_string = "kept"
    return node


def test_a_weight_that_is_a_constant_node() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["p"]),
        constant_node("W", weight(np.float32, (40, 56), 1.0)),
        helper.make_node("MatMul", ["p", "W"], ["y"]),
    ]
    model = model_of(nodes, {}, {"x": [5, 40]}, {"y": [5, 56]})
    made = {how: store(model, {"W": weight(np.float32, (40, 56), 0.2)}, how) for how in STORES}
    expected = outputs_of(made["dense"].model.proto)[0]
    for how, stored in made.items():
        assert stored.rows[0].stored == how
        check(stored.model.proto)
        assert_same_bits(outputs_of(stored.model.proto)[0], expected)
        node = next(n for n in stored.model.proto.graph.node if "W" in n.output)
        assert (node.name, node.doc_string) == ("W_node", "kept")
        if how in ("packed", "sparse"):
            assert_same_bits(unpack(stored.model).array("W"), made["dense"].model.array("W"))


def branches(*, constant: bool = False) -> Model:
    """Give If(c) with a weight of its own in each branch, of the same name, and one from outside."""
    bodies = []
    for k in range(2):
        inner = weight(np.float32, (40, 56), 1.0, seed=k)
        nodes = [
            helper.make_node("MatMul", ["x", "W"], [f"m{k}"]),
            helper.make_node("MatMul", [f"m{k}", "V"], [f"o{k}"]),
        ]
        tensors = [] if constant else [numpy_helper.from_array(inner, "W")]
        out = [helper.make_tensor_value_info(f"o{k}", TensorProto.FLOAT, [5, 64])]
        nodes = [constant_node("W", inner), *nodes] if constant else nodes
        bodies.append(helper.make_graph(nodes, f"b{k}", [], out, tensors))
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    model = model_of([node], {"V": weight(np.float32, (56, 64), 1.0)}, {"x": [5, 40]}, {"y": [5, 64]}, opset=16)
    model.proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("constant", [False, True])
def test_weights_in_branches(constant: bool) -> None:
    model = branches(constant=constant)
    names = sorted(model.tensors)
    assert len(names) == 3
    weights = {n: weight(np.float32, model.array(n).shape, 0.2, seed=k) for k, n in enumerate(names)}
    made = {how: store(model, weights, how) for how in STORES}
    for how, stored in made.items():
        assert [r.stored for r in stored.rows] == [how] * 3
        check(stored.model.proto)
        assert_same_bits(outputs_of(stored.model.proto)[0], outputs_of(made["dense"].model.proto)[0])
        if how in ("packed", "sparse"):
            back = unpack(stored.model)
            for n in names:
                assert_same_bits(back.array(n), weights[n])
            assert len(back.proto.graph.initializer) == 1


def test_weights_in_a_loop() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["s", "W"], ["m"]),
            helper.make_node("Tanh", ["m"], ["t"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [5, 48]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, [5, 48]),
        ],
        [numpy_helper.from_array(weight(np.float32, (48, 48), 1.0) / 500, "W")],
    )
    node = helper.make_node("Loop", ["n", ""], ["y"], body=body)
    node.input[:] = ["n", "", "x"]
    model = model_of([node], {"n": np.array(3, np.int64)}, {"x": [5, 48]}, {"y": [5, 48]})
    made = assert_equal_stores(model, {"W": weight(np.float32, (48, 48), 0.2) / np.float32(500)})
    assert [made[how].rows[0].stored for how in STORES] == list(STORES)


def test_a_constant_of_a_function_is_refused_and_functions_survive() -> None:
    function = helper.make_function(
        "own",
        "Twice",
        ["a", "w"],
        ["b"],
        [
            constant_node("K", weight(np.float32, (56, 56), 1.0)),
            helper.make_node("MatMul", ["a", "w"], ["m"]),
            helper.make_node("MatMul", ["m", "K"], ["b"]),
        ],
        [helper.make_opsetid("", 13)],
    )
    nodes = [helper.make_node("Twice", ["x", "W"], ["y"], domain="own")]
    model = model_of(
        nodes, {"W": weight(np.float32, (40, 56), 1.0)}, {"x": [5, 40]}, {"y": [5, 56]}, functions=[function]
    )
    made = assert_equal_stores(model, {"W": weight(np.float32, (40, 56), 0.2)})
    for how, stored in made.items():
        assert stored.rows[0].stored == how
        assert stored.model.proto.functions == model.proto.functions
    inside = next(n.output[0] for n in model.flat.nodes if n.op_type == "Constant")
    with pytest.raises(OptionError, match="inline that"):
        store(model, {inside: weight(np.float32, (56, 56), 0.2)}, "dense")


def test_initializers_among_the_inputs() -> None:
    old, new = weight(np.float32, (40, 56), 1.0), weight(np.float32, (40, 56), 0.2)
    for ir in (3, 8):
        model = model_of(
            [helper.make_node("MatMul", ["x", "W"], ["y"])],
            {"W": old},
            {"x": [5, 40], "W": [40, 56]},
            {"y": [5, 56]},
            opset=11,
            ir=ir,
        )
        made = {how: store(model, {"W": new}, how) for how in STORES}
        for how, stored in made.items():
            check(stored.model.proto)
            is_input = "W" in {v.name for v in stored.model.proto.graph.input}
            if ir == 3:
                assert stored.rows[0].stored == how
                assert is_input == (how in ("dense", "mask"))
                assert_same_bits(outputs_of(stored.model.proto)[0], outputs_of(made["dense"].model.proto)[0])
                assert_same_bits(unpack(made["packed"].model).array("W"), new)
                check(unpack(made["packed"].model).proto)
            else:
                assert is_input
                assert stored.rows[0].stored == (how if how == "mask" else "dense")
                assert how in ("dense", "mask") or "an input that may be fed" in stored.rows[0].why


# --- files ---


def chain(n: int = 3, size: int = 256) -> Model:
    rng = np.random.default_rng(1)
    nodes, tensors, last = [], {}, "x"
    for k in range(n):
        tensors[f"layer{k}.weight"] = (rng.standard_normal((size, size)) / size).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [last, f"layer{k}.weight"], [f"h{k}"]))
        last = f"h{k}"
    return model_of(nodes, tensors, {"x": [5, size]}, {last: [5, size]})


def sparse_weights(model: Model, density: float) -> dict[str, Array]:
    rng = np.random.default_rng(9)
    return {n: np.where(rng.random(model.array(n).shape) < density, model.array(n), 0) for n in model.tensors}


@pytest.mark.parametrize(("density", "limit"), [(0.5, 0.56), (0.25, 0.30), (0.1, 0.15)])
def test_packed_files_are_small(density: float, limit: float, tmp_path: Any) -> None:
    model = chain()
    made = assert_equal_stores(model, sparse_weights(model, density))
    sizes = {}
    for how, stored in made.items():
        onnxprune.save(stored.model, tmp_path / f"{how}.onnx")
        sizes[how] = (tmp_path / f"{how}.onnx").stat().st_size
        saved = sum(r.bytes_before - r.bytes_after for r in stored.rows) - stored.shared_bytes
        assert abs(sizes["dense"] - sizes[how] - saved) < 100
    assert sizes["packed"] <= limit * sizes["dense"]
    assert sizes["sparse"] <= sizes["dense"]


def test_external_data_takes_the_pieces(tmp_path: Any) -> None:
    model = chain()
    onnxprune.save(model, tmp_path / "big.onnx", external_data=True)
    source = onnxprune.load(tmp_path / "big.onnx")
    weights = sparse_weights(model, 0.5)
    folder = tmp_path / "out"
    folder.mkdir()
    for how in STORES:
        stored = store(source, {"layer1.weight": weights["layer1.weight"]}, how)
        onnxprune.save(stored.model, folder / f"{how}.onnx")
        assert (folder / f"{how}.onnx").stat().st_size < 10_000
        session = ort.InferenceSession(folder / f"{how}.onnx")
        x = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
        expected = outputs_of(store(model, {"layer1.weight": weights["layer1.weight"]}, "dense").model.proto)
        assert expected[0].shape == session.run(None, {"x": x})[0].shape
        if how != "dense":
            dense = ort.InferenceSession(folder / "dense.onnx").run(None, {"x": x})[0]
            assert_same_bits(session.run(None, {"x": x})[0], dense)
        back = unpack(onnxprune.load(folder / f"{how}.onnx"))
        if how == "packed":
            assert_same_bits(back.array("layer1.weight"), weights["layer1.weight"])
    data = (folder / "packed.onnx.data").stat().st_size
    assert data < 0.9 * (folder / "dense.onnx.data").stat().st_size


def test_everything_else_survives_and_the_source_too() -> None:
    model = chain()
    model.proto.doc_string = "a model"
    model.proto.metadata_props.add(key="author", value="someone")
    model.proto.graph.initializer[1].doc_string = "the middle"
    model.proto.graph.initializer[1].metadata_props.add(key="k", value="v")
    before = serialize(model.proto)
    weights = sparse_weights(model, 0.25)
    for how in STORES:
        stored = store(model, weights, how)
        assert serialize(stored.model.proto) == serialize(store(model, weights, how).model.proto)
        assert stored.model.proto.graph.input == model.proto.graph.input
        assert stored.model.proto.graph.output == model.proto.graph.output
        assert (stored.model.proto.doc_string, stored.model.proto.metadata_props[0].key) == ("a model", "author")
        back = unpack(stored.model).tensors["layer1.weight"]
        assert (back.doc_string, back.metadata_props[0].value) == ("the middle", "v")
    assert serialize(model.proto) == before


@pytest.mark.parametrize(("opset", "size", "dtype"), [(11, 33, "float32"), (13, 40, "float32"), (18, 47, "float16")])
def test_small_tensors_share_a_decoder(opset: int, size: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    nodes, tensors, last = [], {}, "x"
    for k in range(6):
        tensors[f"w{k}"] = (rng.standard_normal((size + k, size + k + 1)) / 8).astype(dtype)
        nodes.append(helper.make_node("Cast", [f"w{k}"], [f"f{k}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [last, f"f{k}"], [f"h{k}"]))
        last = f"h{k}"
    codes = rng.integers(-20, 20, (2, size + 6, size)).astype(np.int8)
    for k in range(2):
        nodes.insert(2 * k, constant_node(f"c{k}", codes[k]))
        nodes += [
            helper.make_node("Cast", [f"c{k}"], [f"d{k}"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [last, f"d{k}"], [f"y{k}"]),
        ]
    model = model_of(nodes, tensors, {"x": [5, size]}, {"y0": [5, size], "y1": [5, size]}, opset=opset)
    model.proto.graph.initializer[5].doc_string = "stands alone"
    weights = {n: np.where(rng.random(model.array(n).shape) < 0.1, model.array(n), 0) for n in model.tensors}
    weights = {n: array.astype(model.array(n).dtype) for n, array in weights.items()}
    made = {how: store(model, weights, how) for how in STORES}
    packed = made["packed"]
    check(packed.model.proto)
    expected = outputs_of(made["dense"].model.proto)
    for a, b in zip(outputs_of(packed.model.proto), expected, strict=True):
        assert_same_bits(a, b)
    assert [r.stored for r in packed.rows] == ["packed"] * 8, packed.rows
    assert [n.op_type for n in packed.model.proto.graph.node].count("Split") == 2
    assert [n.op_type for n in packed.model.proto.graph.node].count("CumSum") == 3
    saved = sum(r.bytes_before - r.bytes_after for r in packed.rows) - packed.shared_bytes
    difference = made["dense"].model.proto.ByteSize() - packed.model.proto.ByteSize()
    assert abs(saved - difference) < 30 * len(weights)
    back = unpack(packed.model)
    check(back.proto)
    assert len(back.proto.graph.initializer) == 8
    assert len(back.proto.graph.node) == len(nodes) - 2
    assert back.tensors["w5"].doc_string == "stands alone"
    for name, array in weights.items():
        assert_same_bits(back.array(name), made["dense"].model.array(name))
        assert array.any()


def test_names_that_are_taken() -> None:
    model = chain(n=1)
    for old, new in (("x", "layer0.weight.bits"), ("h0", "unpack.rank")):
        for node in model.proto.graph.node:
            node.input[:] = [new if n == old else n for n in node.input]
            node.output[:] = [new if n == old else n for n in node.output]
        for value in [*model.proto.graph.input, *model.proto.graph.output]:
            value.name = new if value.name == old else value.name
    model.proto.graph.input[0].name = "layer0.weight.bits"
    made = assert_equal_stores(Model(model.proto), sparse_weights(Model(model.proto), 0.5))
    assert made["packed"].rows[0].stored == "packed"


def test_a_renamed_packed_file_unpacks_and_a_tampered_one_is_left_alone() -> None:
    model = chain(n=2)
    weights = sparse_weights(model, 0.25)
    packed = store(model, weights, "packed").model.proto
    renamed, tampered = onnx.ModelProto(), onnx.ModelProto()
    renamed.CopyFrom(packed)
    tampered.CopyFrom(packed)
    names: dict[str, str] = {}
    for node in renamed.graph.node:
        for part in (node.input, node.output):
            part[:] = [n if n in ("x", "h1", *weights) else names.setdefault(n, f"n{len(names)}") for n in part]
    for tensor in renamed.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for name, array in weights.items():
        assert_same_bits(unpack(Model(renamed)).array(name), array)
    ranks = next(t for t in tampered.graph.initializer if t.name == "unpack.ranks")
    ranks.raw_data = bytes(reversed(ranks.raw_data))
    assert unpack(Model(tampered)).proto is tampered


@pytest.mark.parametrize("how", ["packed", "mask"])
def test_other_tools_read_them(how: str) -> None:
    model = chain(n=2)
    weights = sparse_weights(model, 0.25)
    stored = store(model, weights, how).model.proto
    expected = outputs_of(store(model, weights, "dense").model.proto)[0]
    through = gs.export_onnx(gs.import_onnx(stored))
    converted = onnx.version_converter.convert_version(stored, 21)
    for proto in (through, converted):
        assert_same_bits(outputs_of(proto)[0], expected)
    for proto in (stored, through, converted):
        watched = onnx.ModelProto()
        watched.CopyFrom(proto)
        read = [n.input[1] for n in proto.graph.node if n.op_type == "MatMul"]
        watched.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [256, 256]) for n in read)
        found = onnx.reference.ReferenceEvaluator(watched).run(read, {"x": np.zeros((5, 256), np.float32)})
        for array, given_array in zip(found, weights.values(), strict=True):
            assert_same_bits(array, given_array)


def test_without_optimization_the_weights_are_decoded_as_they_are_needed() -> None:
    model = chain(n=2)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    found = []
    for how in STORES:
        proto = store(model, sparse_weights(model, 0.25), how).model.proto
        found.append(ort.InferenceSession(serialize(proto), options).run(None, {"x": x})[0])
        # Without folding the kernel does not know that the weight is constant, and sums in another order.
        np.testing.assert_allclose(found[-1], found[0], rtol=1e-4, atol=1e-9)


def test_our_own_reading_of_stored_files() -> None:
    """Analysis opens every store: what it cannot cut is frozen, and nothing breaks."""
    model = chain()
    weights = {"layer1.weight": sparse_weights(model, 0.1)["layer1.weight"]}
    for how in STORES:
        stored = store(model, weights, how)
        analysis = onnxprune.analyze(stored.model)
        if how == "dense":
            assert len(analysis.groups) == 2
        assert onnxprune.analyze(unpack(stored.model)).groups


@pytest.mark.parametrize("how", ["packed", "sparse", "mask"])
def test_a_stored_file_is_sparsified_again_and_comes_back_dense(how: str, tmp_path: Path) -> None:
    """What was stored is a weight as any other: the same zeros in another form, or all of it dense, to the bit."""
    model = chain()
    first = onnxprune.sparsify(model, sparsity=0.75, store=how, verify=False)
    dense = onnxprune.sparsify(model, sparsity=0.75, verify=False).model
    onnxprune.save(first.model, tmp_path / "stored.onnx")
    again = onnxprune.sparsify(tmp_path / "stored.onnx", sparsity=0.75, store="packed")
    back = onnxprune.sparsify(tmp_path / "stored.onnx", sparsity=0.0)
    undone = onnxprune.unpack(tmp_path / "stored.onnx", tmp_path / "undone.onnx")
    assert again.proof.ok
    assert back.proof.ok
    assert [layer.stored for layer in again.layers] == ["packed"] * len(first.layers)
    for layer in first.layers:
        for other in (back.model, undone, onnxprune.load(tmp_path / "undone.onnx"), unpack(again.model)):
            assert_same_bits(other.array(layer.tensor), dense.array(layer.tensor))
    assert len(onnxprune.analyze(undone).groups) == len(onnxprune.analyze(model).groups)


@pytest.mark.parametrize("command", ["prune", "compact", "inspect"])
def test_commands_say_how_to_open_a_packed_file(command: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.onnx"
    onnxprune.sparsify(chain(), path, sparsity=0.75, store="packed", verify=False)
    rest = {"prune": ["--ratio", "0.5", "--dry-run"], "compact": ["--dry-run"], "inspect": []}[command]
    result = CliRunner().invoke(main, [command, str(path), *rest])
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("note:"))
    assert "weights are packed" in note
    assert "onnxprune sparsify MODEL -o DENSE --sparsity 0" in note
    opened = CliRunner().invoke(main, ["sparsify", str(path), "-o", str(tmp_path / "dense.onnx"), "--sparsity", "0"])
    assert opened.exit_code == 0, opened.stderr
    result = CliRunner().invoke(main, [command, str(tmp_path / "dense.onnx"), *rest])
    assert result.exit_code == 0, result.stderr
    assert "note:" not in result.stderr


def test_a_mask_of_another_kind_is_left_alone() -> None:
    """A Where that broadcasts its mask, or whose weight others read as well, hides nothing of ours."""
    w = weight(np.float32, (40, 56), 1.0)
    for mask, reads in ((np.ones((1, 56), bool), ["y"]), (np.ones((40, 56), bool), ["y", "z"])):
        nodes = [
            helper.make_node("Where", ["M", "W", "zero"], ["V"]),
            helper.make_node("MatMul", ["x", "V"], ["y"]),
            helper.make_node("MatMul", ["x", "W"], ["z"]),
        ][: 1 + len(reads)]
        tensors = {"M": mask, "W": w, "zero": np.zeros((), np.float32)}
        model = model_of(nodes, tensors, {"x": [5, 40]}, {y: [5, 56] for y in reads})
        assert unpack(model) is model


# --- errors ---


SLICES = [
    "c = Slice(x, zero, six)\n w = Reshape(c, shape)",
    "c = Slice(x, zero, six, zero)\n w = Reshape(c, shape)",
    "c = Slice(x, zero, six, zero, one)\n w = Reshape(c, shape)",
    "c = Slice(x, zero, six)\n r = Reshape(c, minus)\n w = Reshape(r, shape)",
]


@pytest.mark.parametrize("body", SLICES)
def test_what_begins_like_a_decoder_is_left_alone(body: str, tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[8] x) => (float[2, 3] w)'
        " <int64[1] zero = {0}, int64[1] one = {1}, int64[1] six = {6}, int64[1] minus = {-1}, int64[2] shape = {2, 3}>"
        f" {{ {body} }}"
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    assert unpack(onnxprune.load(path)).proto == onnx.load(path)
    assert CliRunner().invoke(main, ["inspect", str(path)]).exit_code == 0


def test_wrong_calls() -> None:
    model = product(weight(np.float32, (40, 56), 1.0))
    new = weight(np.float32, (40, 56), 0.2)
    with pytest.raises(UnknownNameError, match="Did you mean 'packed'"):
        store(model, {"W": new}, "packd")
    with pytest.raises(UnknownNameError, match="Known: W"):
        store(model, {"V.weight": new}, "dense")
    with pytest.raises(UnknownNameError, match="tensor with new content"):
        store(model, {"W": new}, "dense", keep={"V": new != 0})
    with pytest.raises(OptionError, match="it is stored as float32"):
        store(model, {"W": new.astype(np.float64)}, "dense")
    with pytest.raises(OptionError, match="it is stored as float32"):
        store(model, {"W": new.T}, "dense")
    with pytest.raises(OptionError, match="must be bool"):
        store(model, {"W": new}, "dense", keep={"W": new})
    packed = store(model, {"W": new}, "packed").model
    with pytest.raises(OptionError, match=r"'W' is given by the node 'Reshape'.*unpack the model first"):
        store(packed, {"W": new}, "packed")
    assert store(model, {}, "packed").model is model
    assert unpack(model) is model
    assert [
        r.stored
        for r in store(
            product(weight(np.float32, (40, 560), 1.0)), {"W": weight(np.float32, (40, 560), 0.02)}, "coo"
        ).rows
    ] == ["sparse"]
