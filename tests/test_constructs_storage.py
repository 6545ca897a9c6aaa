"""How weights are stored, what stands between them and their use, and who shares them."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import onnxprune
from tests.constructs.sketch import Sketch, check, counts, reasons, shape_of

N, C, OUT = 3, 5, 7
BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


# --- types ---


@pytest.mark.parametrize("kind", [np.float16, BF16, np.float64], ids=["fp16", "bf16", "double"])
def test_weights_are_cast_where_they_are_used(kind: type) -> None:
    s = Sketch(21)
    w = s.tensor(s.rng.standard_normal((C, 8)).astype(kind), "stored0")
    h = s("MatMul", s.input(N, C), s("Cast", w, to=T.FLOAT))
    result = check(s.model(s.linear(s("Relu", h), 8, OUT)), {"features": [8]})
    assert result is not None
    assert shape_of(result.model.proto, w) == (C, 4)


@pytest.mark.parametrize("kind", [np.float16, np.float64], ids=["fp16", "double"])
def test_a_whole_model_of_another_type(kind: type) -> None:
    """Inputs and outputs are float32, what is between is cast."""
    s = Sketch()

    def stored(*shape: int) -> str:
        return s.tensor((s.rng.standard_normal(shape) / 3).astype(kind), "w")

    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    h = s("Cast", s.input(N, C), to=number)
    h = s("Relu", s("Gemm", h, stored(C, 8), stored(8)))
    model = s.model(s("Cast", s("Gemm", h, stored(8, OUT), stored(OUT)), to=T.FLOAT))
    assert counts(onnxprune.analyze(model)) == {"features": ["8"]}
    result = onnxprune.prune(model, ratio=0.5)
    assert result.report.exact["max_rel"] < (2e-3 if kind is np.float16 else 1e-6)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4, F8, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("axis", [None, 1])
def test_codes_that_are_dequantized(kind: type, axis: int | None) -> None:
    s = Sketch(21)
    codes = s.rng.integers(0, 7, (C, 8)).astype(kind)
    scale = s.w(8, low=0.1) if axis is not None else s.number(0.1)
    more = {"axis": axis} if axis is not None else {}
    w = s("DequantizeLinear", s.tensor(codes, "codes"), scale, **more)
    h = s("MatMul", s.input(N, C), w)
    check(s.model(s.linear(s("Relu", h), 8, OUT)), {"features": [8]})


def test_codes_dequantized_by_hand() -> None:
    """Cast, subtract a zero point, multiply by a scale per column."""
    s = Sketch()
    codes = s.tensor(s.rng.integers(-90, 90, (C, 8)).astype(np.int8), "codes")
    w = s("Mul", s("Sub", s("Cast", codes, to=T.FLOAT), s.number(3.0)), s.w(1, 8, low=0.01))
    h = s("MatMul", s.input(N, C), w)
    check(s.model(s.linear(s("Relu", h), 8, OUT)), {"features": [8]})


# --- between a weight and its use ---

Behind = Callable[[Sketch, np.ndarray], str]


def constant_node(s: Sketch, array: np.ndarray) -> str:
    return s("Constant", value=numpy_helper.from_array(array))


def identity(s: Sketch, array: np.ndarray) -> str:
    return s("Identity", s("Identity", s.tensor(array, "w")))


def transposed(s: Sketch, array: np.ndarray) -> str:
    return s("Transpose", s.tensor(np.ascontiguousarray(array.T), "w"))


def reshaped(s: Sketch, array: np.ndarray) -> str:
    return s.reshape(s.tensor(array.reshape(C, 2, 4), "w"), C, 8)


def squeezed(s: Sketch, array: np.ndarray) -> str:
    return s("Squeeze", s.tensor(array[:, None, :], "w"), s.ints(1))


def joined(s: Sketch, array: np.ndarray) -> str:
    return s("Concat", s.tensor(array[:, :3], "w"), s.tensor(array[:, 3:], "w"), axis=1)


def sliced(s: Sketch, array: np.ndarray) -> str:
    wide = np.concatenate([np.ones((C, 2), np.float32), array], 1)
    return s("Slice", s.tensor(wide, "w"), s.ints(2), s.ints(10), s.ints(1))


def low_rank(s: Sketch, array: np.ndarray) -> str:
    """LoRA left in the graph: w + a @ b * 0.5."""
    update = s("Mul", s("MatMul", s.w(C, 3), s.w(3, 8)), s.number(0.5))
    return s("Add", s.tensor(array, "w"), update)


def spectral(s: Sketch, array: np.ndarray) -> str:
    """Divided by a number computed from the whole weight: u' w v."""
    w = s.tensor(array, "w")
    sigma = s("ReduceSum", s("Mul", s("MatMul", s("MatMul", s.w(1, C), w), s.w(8, 1)), s.number(1.0)), keepdims=0)
    return s("Div", w, sigma)


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        (constant_node, {"features": [8]}),
        (identity, {"features": [8]}),
        (transposed, {"features": [8]}),
        (reshaped, {"features": [2, 4]}),
        (squeezed, {"features": [8]}),
        (joined, {"features": [3, 5]}),
        (sliced, {"features": [2, 8]}),
        (low_rank, {"features": [3, 8]}),
        (spectral, {"features": [8]}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_weights_behind_other_nodes(behind: Behind, expected: dict[str, list[int | str]]) -> None:
    s = Sketch()
    w = behind(s, s.rng.standard_normal((C, 8)).astype(np.float32))
    h = s("Relu", s("Add", s("MatMul", s.input(N, C), w), s.w(8)))
    check(s.model(s.linear(h, 8, OUT)), expected)


def test_weight_normalization_of_a_product() -> None:
    s = Sketch()
    v = s.w(8, C)
    w = s("Mul", s("Div", v, s("Sqrt", s("ReduceSumSquare", v, axes=[1]))), s.w(8, 1))
    h = s("Gemm", s.input(N, C), w, s.w(8), transB=1)
    check(s.model(s.linear(s("Relu", h), 8, OUT)), {"features": [8]})


def test_weight_standardization() -> None:
    """Mean and deviation of every filter are taken over its own inputs: filters go exactly, their inputs do not."""
    s = Sketch()
    h = s.conv(s.input(N, 2, 6, 4), 2, C)
    w = s.w(8, C, 3, 3)
    centered = s("Sub", w, s("ReduceMean", w, axes=[1, 2, 3]))
    deviation = s("Sqrt", s("Add", s("ReduceMean", s("Mul", centered, centered), axes=[1, 2, 3]), s.number(1e-4)))
    g = s("Conv", h, s("Div", centered, deviation), pads=[1] * 4)
    check(s.model(s.conv(g, 8, OUT)), {"channels": [8], "~channels": [C]})


# --- shared ---


def test_a_table_that_is_also_the_head() -> None:
    """One initializer, two uses: read by rows at the start, transposed at the end. One set of units."""
    s = Sketch()
    table = s.w(11, 8, name="table0")
    h = s("Gather", table, s.input(N, 4, kind=T.INT64))
    h = s("Add", h, s.linear(s("Relu", s.linear(h, 8, 6)), 6, 8))
    result = check(s.model(s("MatMul", h, s("Transpose", table))), {"embedding": [8], "features": [6]})
    assert result is not None
    assert shape_of(result.model.proto, table) == (11, 4)
    assert len(result.model.proto.graph.initializer) == len(s.tensors)


def test_two_branches_with_the_same_weights() -> None:
    """A siamese network: every weight is used twice and cut once."""
    s = Sketch()
    a, b = s.input(N, C, name="a"), s.input(N, C, name="b")
    w, bias, v = s.w(C, 8), s.w(8), s.w(8, OUT)
    one, two = (s("MatMul", s("Relu", s("Add", s("MatMul", x, w), bias)), v) for x in (a, b))
    result = check(s.model(s("Sub", one, two)), {"features": [8]})
    assert result is not None
    assert len(result.model.proto.graph.initializer) == 3


def test_vectors_merged_because_they_were_equal() -> None:
    """Two layers' zero biases and unit gains are one tensor each: separate units, a copy per use once they differ."""
    s = Sketch()
    gain, bias = s.tensor(np.ones(8, np.float32), "ones"), s.tensor(np.full(8, 0.3, np.float32), "bias")
    h = s.input(N, C)
    for inner in (C, 8):
        h = s("Relu", s("Mul", s("Add", s("MatMul", h, s.w(inner, 8)), bias), gain))
    result = check(s.model(s.linear(h, 8, OUT)), {"features": [8, 8]})
    assert result is not None


def test_shape_constants_shared_by_layers_of_different_width() -> None:
    """One constant (0, 0, 2, 4) reshapes three projections; after pruning they need not be alike."""
    s = Sketch()
    x = s.input(N, 6, C)
    split, whole = s.ints(0, 0, 2, 4), s.ints(0, 0, 8)
    heads = [s("Transpose", s("Reshape", s.linear(x, C, 8), split), perm=[0, 2, 1, 3]) for _ in range(3)]
    scores = s("Softmax", s("MatMul", heads[0], s("Transpose", heads[1], perm=[0, 1, 3, 2])), axis=-1)
    z = s("Reshape", s("Transpose", s("MatMul", scores, heads[2]), perm=[0, 2, 1, 3]), whole)
    check(s.model(s.linear(z, 8, OUT)), {"heads": [2], "head_dim": ["2x4", "2x4"]})


def test_experts_of_stored_products() -> None:
    """Every expert computes, a softmax weighs them: the width inside an expert, and whole experts approximately."""
    s = Sketch()
    x = s.input(6, C)
    wide = s("Unsqueeze", x, s.ints(0))
    h = s("Relu", s("MatMul", wide, s.w(4, C, 8)))
    made = s("MatMul", h, s.w(4, 8, OUT))
    router = s("Softmax", s("MatMul", x, s.w(C, 4)), axis=-1)
    gate = s("Unsqueeze", s("Transpose", router), s.ints(2))
    y = s("ReduceSum", s("Mul", made, gate), s.ints(0), keepdims=0)
    found = counts(onnxprune.analyze(s.model(y)))
    widths = found.pop("features")
    assert widths in (["8"], ["4x8"])
    assert found in ({"~features": ["4"]}, {"~experts": ["4"]})
    assert onnxprune.prune(s.model(y), ratio=0.5).report.ok
    assert onnxprune.prune(s.model(y), ratio=0.5, allow_inexact=True).report.ok


# --- what passes through ---


def test_sequences_freeze_what_they_hold_and_nothing_else() -> None:
    s = Sketch()
    x = s.input(N, C)
    h, g = s.linear(x, C, 8), s.linear(x, C, 8)
    sequence = s("SequenceConstruct", h, g)
    taken = s("SequenceAt", sequence, s.number(1, np.int64))
    s.declare(taken, N, 8)
    y = s.linear(s("Relu", s.linear(taken, 8, 6)), 6, OUT)
    model = s.model(y)
    check(model, {"features": [6]})
    assert reasons(model, s.nodes[0].input[1], 1)


def test_a_classifier_as_scikit_learn_exports_it() -> None:
    """Scaler, products, softmax, the label by ArgMax and a table, the probabilities as a sequence of maps."""
    s = Sketch(15)
    labels = np.arange(OUT)
    scaled = s(
        "Scaler", s.input(N, C), domain="ai.onnx.ml", offset=[0.1] * C, scale=[2.0] * C
    )  # fmt: skip
    h = s("Relu", s("Add", s("MatMul", s("Cast", scaled, to=T.FLOAT), s.w(C, 8)), s.w(1, 8)))
    h = s("Relu", s("Add", s("MatMul", h, s.w(8, 6)), s.w(1, 6)))
    scores = s("Softmax", s("Add", s("MatMul", h, s.w(6, OUT)), s.w(1, OUT)), axis=1)
    best = s("ArgMax", scores, axis=1, keepdims=0)
    label = s("Cast", s("ArrayFeatureExtractor", s.ints(*labels), best, domain="ai.onnx.ml"), to=T.INT64)
    maps = s("ZipMap", scores, domain="ai.onnx.ml", classlabels_int64s=labels.tolist())
    values = [
        helper.make_tensor_value_info(label, T.INT64, [1, N]),
        helper.make_value_info(
            maps, helper.make_sequence_type_proto(
                helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
            )
        ),
    ]  # fmt: skip
    graph = helper.make_graph(s.nodes, "classifier", s.inputs, values, s.tensors)
    opsets = [helper.make_opsetid("", s.opset), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    onnx.checker.check_model(model)
    assert counts(onnxprune.analyze(model)) == {"features": ["6", "8"]}
    result = onnxprune.prune(model, ratio=0.5)
    assert result.report.exact["max_rel"] < 1e-5
    assert [v.SerializeToString() for v in result.model.proto.graph.output] == [v.SerializeToString() for v in values]


def test_random_and_logical_operators_keep_the_axes() -> None:
    """Bernoulli draws per entry, so what goes changes what is drawn; Not passes."""
    s = Sketch(15)
    h = s.linear(s.input(N, C), C, 8)
    mask = s("Not", s("Greater", h, s.number(0.2)))
    y = s.linear(s("Mul", h, s("Cast", mask, to=T.FLOAT)), 8, OUT)
    check(s.model(y), {"features": [8]})
    s = Sketch(15)
    drawn = s("Bernoulli", s("Sigmoid", s.linear(s.input(N, C), C, 8)), seed=3.0)
    assert counts(onnxprune.analyze(s.model(s.linear(drawn, 8, OUT)))) == {"~features": ["8"]}
