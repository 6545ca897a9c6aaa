"""What mutation found, as small models, and a handful of mutants for every run of the tests.

`python benchmarks/fuzz.py --count 10000` is the real thing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from tests.attacks.cases import linear

from .seeds import control_model, function_model, mixed_model, recurrent_model
from .trial import COMMANDS, arguments, input_bytes, run

Change = Callable[[onnx.ModelProto], object]


def changed(make: Callable[[], onnx.ModelProto], change: Change) -> onnx.ModelProto:
    model = make()
    change(model)
    return model


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def attribute(model: onnx.ModelProto, op: str, name: str) -> onnx.AttributeProto:
    return next(a for a in node(model, op).attribute if a.name == name)


def without(model: onnx.ModelProto, op: str, name: str) -> None:
    kept = [a for a in node(model, op).attribute if a.name != name]
    held = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node(model, op).attribute[:]
    node(model, op).attribute.extend(held)


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], Change]] = {
    "loop without body": (control_model, lambda m: without(m, "Loop", "body")),
    "scan without count": (control_model, lambda m: without(m, "Scan", "num_scan_inputs")),
    "scan with too many": (control_model, lambda m: setattr(attribute(m, "Scan", "num_scan_inputs"), "i", 9)),
    "if without a branch": (control_model, lambda m: without(m, "If", "else_branch")),
    "if without outputs": (control_model, lambda m: node(m, "If").output.pop()),
    "no groups": (mixed_model, lambda m: setattr(attribute(m, "Conv", "kernel_shape"), "type", 1)),
    "group of none": (mixed_model, lambda m: m.graph.node[2].attribute[0].__setattr__("i", 0)),
    "missing input": (mixed_model, lambda m: node(m, "Gemm").input.__delitem__(slice(1, None))),
    "later version": (mixed_model, lambda m: setattr(m.opset_import[0], "version", 2**62)),
    "version 0": (mixed_model, lambda m: setattr(m.opset_import[0], "version", 0)),
    "function without its output": (function_model, lambda m: m.functions[1].node.pop()),
    "unknown input type": (mixed_model, lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77)),
    "typed data too short": (mixed_model, lambda m: m.graph.sparse_initializer[0].values.float_data.pop()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_runtime_loads_is_refused_when_it_is_opened(name: str, tmp_path: Path) -> None:
    model = changed(*REFUSED[name])
    with pytest.raises(onnxprune.ModelError):
        onnxprune.load(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for command in COMMANDS:
        outcome = run(arguments(command, path, 0))
        assert (outcome.code, outcome.trace) == (3, None), outcome


def declared_outputs(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


def declared_values(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 7, 8, 8]))


def other_order(model: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def no_samples(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0


RUNS: dict[str, tuple[Callable[[], onnx.ModelProto], Change]] = {
    "outputs declared otherwise": (mixed_model, declared_outputs),
    "values declared otherwise": (mixed_model, declared_values),
    "nodes in another order": (mixed_model, other_order),
    "recurrent nodes in another order": (recurrent_model, other_order),
    "no samples at all": (mixed_model, no_samples),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_onnxruntime_passes_over_makes_no_command_fail_unforeseen(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(changed(*RUNS[name]).SerializeToString())
    for command in COMMANDS:
        outcome = run(arguments(command, path, 1))
        assert outcome.trace is None, outcome.trace
        assert outcome.code in (0, 1, 3)


def stale(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 9]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8


@pytest.mark.parametrize("change", [stale, other_order])
def test_neither_order_nor_stale_shapes_change_what_can_go(change: Change) -> None:
    analysis = onnxprune.analyze(changed(linear, change))
    assert [(group.kind, group.size, group.exact) for group in analysis.groups] == [("features", 7, True)]


@pytest.mark.parametrize("name", ["h", "r", "p"])
@pytest.mark.parametrize("shape", [(1, 7, 4, 4, 4), (1, 7, 4), (1, 9, 4, 4), (2, 7, 4, 4)])
def test_stale_shapes_do_not_change_what_is_dead(name: str, shape: tuple[int, ...]) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1, 5, 4, 4] x) => (float[1, 3, 2, 2] y) {
          h = Conv (x, w, b) r = Relu (h) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) y = Conv (p, v)
        }"""
    )
    rng = np.random.default_rng(1)
    arrays = {"w": rng.standard_normal((7, 5, 1, 1)), "b": np.ones(7), "v": rng.standard_normal((3, 7, 1, 1))}
    arrays["w"][2] = 0
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    result = onnxprune.compact(model)
    assert [group.removed for group in result.plan.groups] == [(2,)]
    assert result.model.array("v").shape == (3, 6, 1, 1)


def test_a_product_of_wrong_rank_beside_an_unknown_shape_is_no_defect(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[5] x) => (float[1, 7] y) { c = own.Unknown (x) y = Gemm (x, w, c) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 7), np.float32), "w"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for command in COMMANDS:
        outcome = run(arguments(command, path, 0))
        assert outcome.trace is None, outcome.trace


def test_a_permutation_of_other_axes_is_not_followed(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 5] x) => (float[2, 7] y) { t = Transpose <perm = [3, 1]> (w) y = MatMul (x, t) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((7, 5), np.float32), "w"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    outcome = run(arguments("sparsify", path, 0))
    assert (outcome.code, outcome.trace) == (1, None), "nothing that can be sparsified"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_mutants_meet_typed_errors_only(command: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    codes = set()
    for k in range(60):
        path.write_bytes(input_bytes(k))
        outcome = run(arguments(command, path, k))
        assert outcome.trace is None, f"python benchmarks/fuzz.py --start {k} --count 1\n{outcome.trace}"
        codes.add(outcome.code)
    assert codes <= {0, 1, 2, 3}
    assert 3 in codes
    assert 0 in codes


def test_values_in_the_field_of_another_type_are_refused() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT64, dims=[1, 4], float_data=[1.0, 2.0, 3.0, 4.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 4])],
        [tensor],
    )
    with pytest.raises(onnxprune.ModelError, match="'w' holds values in float_data"):
        onnxprune.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def test_a_slice_that_leaves_nothing_is_frozen() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Slice", ["h", "from", "to", "along"], ["s"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n]) for name, n in (("h", 5), ("s", 0))],
        [
            numpy_helper.from_array(np.ones((4, 5), np.float32), "w"),
            *(numpy_helper.from_array(np.array([k]), name) for name, k in (("from", 2), ("to", 2), ("along", 0))),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    assert onnxprune.analyze(model).groups == ()


def einsum_model(equation: str) -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
      g (float[2, 3, 4] a, float[5, 4] b) => (float[2, 3, 5] y) {{ y = Einsum <equation = "{equation}"> (a, b) }}"""
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("equation", ["a..bc,dc->abd", "...c,dc.->...d", "ab1c,dc->abd", "ab......c,dc->abd"])
def test_equations_that_shape_inference_never_ends_with_are_refused(equation: str) -> None:
    with pytest.raises(onnxprune.ModelError, match="equation of node '' "):
        onnxprune.load(einsum_model(equation))


@pytest.mark.parametrize("equation", ["abc,dc->abd", "... c, dc -> ... d", "abC,dC"])
def test_equations_that_are_read_are_not(equation: str) -> None:
    onnxprune.analyze(einsum_model(equation))


@pytest.mark.parametrize("parts", ["h s", "s h", "h s h"])
def test_an_empty_part_joins_nothing_to_a_vector(parts: str) -> None:
    joined = ", ".join(parts.split())
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 9]>
        g (float[4] x) => (float[7] z) {{
          h = MatMul (x, w)
          s = Slice <starts = [2], ends = [2]> (h)
          y = Concat <axis = 0> ({joined})
          z = MatMul (y, v)
        }}"""
    )
    n = 5 * parts.count("h")
    arrays = {"w": np.ones((4, 5), np.float32), "v": np.ones((n, 7), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    assert onnxprune.analyze(model).groups == ()


@pytest.mark.parametrize(
    ("op", "dims", "sizes"), [("Reshape", [5, 7], [5, 7, 0]), ("Unsqueeze", [5, 7], [0, 0]), ("Squeeze", [], [0])]
)
def test_a_weight_that_is_rearranged_to_what_cannot_be_is_refused(
    op: str, dims: list[int], sizes: list[int], tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 5] x) => (float[2, 7] y) {{ m = {op} (w, s) y = MatMul (x, m) }}"""
    )
    arrays = {"w": np.ones(dims, np.float32), "s": np.array(sizes)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    outcome = run(arguments("sparsify", path, 0))
    assert (outcome.code, outcome.trace) == (1, None), "nothing that can be sparsified"


@pytest.mark.parametrize("op", ["Constant <value = float[1] {1.0}> ()", "ConstantOfShape <value = float[1] {1.0}> (s)"])
def test_a_number_that_is_not_there_is_refused(op: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 5] x) => (float[2, 5] y) {{ s = Shape (x) c = {op} y = Mul (x, c) }}"""
    )
    onnxprune.load(model)
    model.graph.node[1].attribute[0].t.ClearField("float_data")
    with pytest.raises(onnxprune.ModelError, match=r"holds 0 values; its dimensions are \[1\], 1 elements"):
        onnxprune.load(model)


def test_sizes_that_contradict_each_other_where_nothing_runs_are_frozen() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1, 5, 4, 4] x) => (float[1, 3, 4, 4] y) {
          h = Conv (x, w)
          no = Constant <value = bool {0}> ()
          y = If (no) <then_branch = a () => (float[1, 3, 4, 4] t) { t = Conv (h, u) },
                       else_branch = b () => (float[1, 3, 4, 4] e) { e = Conv (h, v) }>
        }"""
    )
    shapes = {"w": (7, 5, 1, 1), "u": (3, 6, 1, 1), "v": (3, 7, 1, 1)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()
    )
    analysis = onnxprune.analyze(model)
    assert analysis.groups == ()
    assert any("it lies in a body that need not run" in row.reason for row in analysis.locked)


def test_a_recurrent_layer_is_not_run_on_nothing() -> None:
    """The second axis is named as what a cache holds at first: no samples, where onnxruntime ends the process."""
    model = recurrent_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "past_sequence_length"
    with pytest.raises(onnxprune.ModelError, match="input 'x' is empty, and onnxruntime runs no recurrent layer on"):
        onnxprune.verify(model, model)


def test_sizes_that_are_declared_as_text_stay_unknown() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 5] x) => (float[2, 7] y) {
          n = Shape (x) one = Constant <value_ints = [1]> () s = Concat <axis = 0> (n, one)
          u = Reshape (x, s) v = Squeeze (u, two) y = MatMul (v, w)
        }"""
    )
    arrays = {"two": np.array([2]), "w": np.ones((5, 7), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.STRING, [3]))
    onnxprune.analyze(model)
