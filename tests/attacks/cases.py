"""Hostile models: every case is a small function that writes one into a folder, and the reason it must be refused for.

A case gives the path of the model. What it is made of is written out, so that nothing here is a binary to be trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Case = Callable[[Path], Path]
CASES: dict[str, tuple[Case, str]] = {}
HUGE = 2**40


def refused(reason: str) -> Callable[[Case], Case]:
    """Register a case with a pattern that the message must match."""

    def register(case: Case) -> Case:
        CASES[case.__name__] = (case, reason)
        return case

    return register


def linear(**weights: onnx.TensorProto) -> onnx.ModelProto:
    """Two products in a row; a weight can be replaced."""
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 5] x) => (float[n, 3] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"""
    )
    w = weights.get("w", numpy_helper.from_array(np.arange(35, dtype=np.float32).reshape(5, 7), "w"))
    v = weights.get("v", numpy_helper.from_array(np.arange(21, dtype=np.float32).reshape(7, 3), "v"))
    model.graph.initializer.extend([w, v])
    return model


def written(folder: Path, model: onnx.ModelProto) -> Path:
    """Write a model as it is; onnx.save would touch its external data."""
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def outside(location: str | None, *dims: int, **entries: str) -> onnx.TensorProto:
    """Make the weight `w` a reference."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims or (5, 7))
    tensor.data_location = TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_data(folder: Path, tensor: onnx.TensorProto) -> Path:
    """Write a model whose weight is `tensor`, beside a data file of the right size and a secret outside."""
    (folder.parent / "secret").write_bytes(bytes(140))
    (folder / "w.bin").write_bytes(bytes(140))
    return written(folder, linear(w=tensor))


# --- where data lies ---

RELATIVE = "must be a relative path inside the model's folder"


@refused(RELATIVE)
def parent(folder: Path) -> Path:
    return with_data(folder, outside("../secret"))


@refused(RELATIVE)
def parent_behind_a_folder(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return with_data(folder, outside("sub/../../secret"))


@refused(RELATIVE)
def parent_in_the_other_notation(folder: Path) -> Path:
    return with_data(folder, outside("..\\secret"))


@refused(RELATIVE)
def absolute(folder: Path) -> Path:
    return with_data(folder, outside(str(folder.parent / "secret")))


@refused(RELATIVE)
def absolute_with_a_drive(folder: Path) -> Path:
    return with_data(folder, outside("C:\\secret"))


@refused(RELATIVE)
def zero_character(folder: Path) -> Path:
    return with_data(folder, outside("w.bin\0.txt"))


@refused(RELATIVE)
def empty_location(folder: Path) -> Path:
    return with_data(folder, outside(""))


@refused(RELATIVE)
def no_location(folder: Path) -> Path:
    return with_data(folder, outside(None, offset="0"))


@refused("leads outside the model's folder")
def link_to_a_secret(folder: Path) -> Path:
    path = with_data(folder, outside("link.bin"))
    (folder / "link.bin").symlink_to(folder.parent / "secret")
    return path


@refused("leads outside the model's folder")
def folder_that_is_a_link(folder: Path) -> Path:
    path = with_data(folder, outside("up/secret"))
    (folder / "up").symlink_to(folder.parent)
    return path


@refused("leads outside the model's folder")
def link_to_a_device(folder: Path) -> Path:
    path = with_data(folder, outside("zero.bin"))
    (folder / "zero.bin").symlink_to("/dev/zero")
    return path


@refused("no such file|outside")
def links_in_a_circle(folder: Path) -> Path:
    path = with_data(folder, outside("a.bin"))
    (folder / "a.bin").symlink_to("b.bin")
    (folder / "b.bin").symlink_to("a.bin")
    return path


@refused("is a pipe")
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.bin")
    return with_data(folder, outside("pipe.bin"))


@refused("is a folder")
def data_that_is_a_folder(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return with_data(folder, outside("sub"))


@refused("is the model itself")
def data_that_is_the_model(folder: Path) -> Path:
    return with_data(folder, outside("m.onnx"))


@refused("no such file")
def data_that_is_not_there(folder: Path) -> Path:
    return with_data(folder, outside("nothing.bin"))


# --- what references say ---

NOT_ALL = "are not all there"


@refused(NOT_ALL)
def negative_offset(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", offset="-4"))


@refused(NOT_ALL)
def offset_beyond(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", offset="4"))


@refused(NOT_ALL)
def offset_that_wraps(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", offset=str(2**63 - 1)))


@refused(NOT_ALL)
def length_below_the_shape(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", length="139"))


@refused(NOT_ALL)
def length_that_is_huge(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", length=str(2**60)))


@refused(NOT_ALL)
def shape_that_is_huge(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", HUGE, 7))


@refused(NOT_ALL)
def shape_that_wraps(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", 2**62, 2**62, 16))


@refused("must be integers")
def offset_in_python_notation(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", offset="1_0"))


@refused("must be integers")
def length_without_end(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", length="9" * 5000))


@refused("the key '__class__' is unknown")
def key_that_is_an_attribute(folder: Path) -> Path:
    return with_data(folder, outside("w.bin", __class__="x"))


@refused("the key 'location' is given twice")
def key_given_twice(folder: Path) -> Path:
    tensor = outside("w.bin")
    tensor.external_data.add(key="location", value="../secret")
    return with_data(folder, tensor)


@refused("has data of its own")
def data_inside_and_outside(folder: Path) -> Path:
    tensor = outside("w.bin")
    tensor.raw_data = bytes(140)
    return with_data(folder, tensor)


@refused("name the same bytes again and again")
def one_file_a_thousand_times(folder: Path) -> Path:
    model = linear(w=outside("w.bin"))
    for k in range(1000):
        tensor = outside("w.bin")
        tensor.name = f"w{k}"
        model.graph.initializer.append(tensor)
    (folder / "w.bin").write_bytes(bytes(140))
    return written(folder, model)


# --- tensors that are easily passed over ---


@refused(RELATIVE)
def in_a_branch(folder: Path) -> Path:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[5, 5] x, bool c) => (float[5, 7] y) {
          y = If (c) <then_branch = t () => (float[5, 7] a) { a = MatMul (x, w) },
                      else_branch = e () => (float[5, 7] b) { b = MatMul (x, w) }>
        }"""
    )
    branch = model.graph.node[0].attribute[0].g
    branch.initializer.append(outside("../secret"))
    return written(folder, model)


@refused(RELATIVE)
def in_a_constant(folder: Path) -> Path:
    model = linear()
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=outside("../secret")))
    return written(folder, model)


@refused(RELATIVE)
def in_a_function(folder: Path) -> Path:
    model = linear()
    function = model.functions.add(name="F", domain="f")
    function.opset_import.add(domain="", version=18)
    function.output.append("o")
    function.node.append(helper.make_node("Constant", [], ["o"], value=outside("../secret")))
    model.opset_import.add(domain="f", version=1)
    return written(folder, model)


@refused("of a function, or a sparse one, lies in a data file")
def in_a_function_though_contained(folder: Path) -> Path:
    path = in_a_function(folder)
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.functions[0].node[0].attribute[0].t.external_data[0].value = "w.bin"
    (folder / "w.bin").write_bytes(bytes(140))
    return written(folder, model)


@refused(RELATIVE)
def in_a_sparse_tensor(folder: Path) -> Path:
    model = linear()
    indices = helper.make_tensor("i", TensorProto.INT64, [35], list(range(35)))
    values = outside("../secret", 35)
    values.name = "s"
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[5, 7])
    return written(folder, model)


@refused(RELATIVE)
def in_a_list_attribute(folder: Path) -> Path:
    model = linear()
    node = helper.make_node("Thing", ["x"], ["z"], domain="d")
    attribute = node.attribute.add(name="held", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(outside("../secret"))
    model.graph.node.append(node)
    model.opset_import.add(domain="d", version=1)
    return written(folder, model)


@refused(RELATIVE)
def in_a_graph_for_training(folder: Path) -> Path:
    model = linear()
    model.training_info.add().algorithm.initializer.append(outside("../secret"))
    return written(folder, model)


# --- sizes ---


def raw(size: int, *dims: int, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    """Make the weight `w` with so many raw bytes."""
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=bytes(size))


@refused("holds 16 bytes")
def huge_and_empty(folder: Path) -> Path:
    return written(folder, linear(w=raw(16, HUGE, 7)))


@refused("holds 16 bytes")
def product_that_wraps_to_zero(folder: Path) -> Path:
    return written(folder, linear(w=raw(16, 2**32, 2**32)))


@refused("declares the dimension -4")
def negative_dimension(folder: Path) -> Path:
    return written(folder, linear(w=raw(16, -4)))


@refused("has 70 axes")
def seventy_axes(folder: Path) -> Path:
    return written(folder, linear(w=raw(4, *[1] * 70)))


@refused("holds 139 bytes")
def one_byte_short(folder: Path) -> Path:
    return written(folder, linear(w=raw(139, 5, 7)))


@refused("holds 34 values")
def one_value_short(folder: Path) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(5, 7), float_data=[0.5] * 34)
    return written(folder, linear(w=tensor))


@refused("the unknown type 99")
def unknown_type(folder: Path) -> Path:
    return written(folder, linear(w=raw(140, 5, 7, kind=99)))


@refused("cannot hold raw data")
def raw_text(folder: Path) -> Path:
    return written(folder, linear(w=raw(140, 5, 7, kind=TensorProto.STRING)))


@refused("is a segment")
def segment(folder: Path) -> Path:
    tensor = raw(140, 5, 7)
    tensor.segment.begin = 0
    return written(folder, linear(w=tensor))


@refused("stands for")
def sparse_bomb(folder: Path) -> Path:
    model = linear()
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [0.5])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [HUGE]))
    return written(folder, model)


@refused("axes of up to|declares|random samples")
def input_without_end(folder: Path) -> Path:
    model = linear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = HUGE
    return written(folder, model)


# --- bombs ---


@refused("functions come to more than")
def function_that_doubles(folder: Path) -> Path:
    """Each of 60 functions calls the one before twice: a trillion nodes when laid open."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "f" : 1]> g (float[3] x) => (float[3] y) {y = f.F30 (x)}'
    )
    for k in range(31):
        function = model.functions.add(name=f"F{k}", domain="f", input=["a"], output=["c"])
        function.opset_import.add(domain="", version=18)
        function.opset_import.add(domain="f", version=1)
        inner, domain = (f"F{k - 1}", "f") if k else ("Relu", "")
        function.node.append(helper.make_node(inner, ["a"], ["b"], domain=domain))
        function.node.append(helper.make_node(inner, ["b"], ["c"], domain=domain))
    return written(folder, model)


@refused("calls itself")
def functions_in_a_circle(folder: Path) -> Path:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "f" : 1]> g (float[3] x) => (float[3] y) {y = f.A (x)}'
    )
    for name, other in (("A", "B"), ("B", "A")):
        function = model.functions.add(name=name, domain="f", input=["a"], output=["b"])
        function.opset_import.add(domain="f", version=1)
        function.node.append(helper.make_node(other, ["a"], ["b"], domain="f"))
    return written(folder, model)


@refused("not an ONNX model")
def graphs_nested_deep(folder: Path) -> Path:
    """A branch within a branch, 200 deep, written byte by byte since protobuf refuses to make it."""

    def field(number: int, content: bytes) -> bytes:
        size, digits = len(content), []
        while size >= 128:
            digits.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *digits, size]) + content

    graph = field(2, b"b") + field(1, field(1, b"x") + field(2, b"z") + field(4, b"Relu")) + field(12, field(1, b"z"))
    for _ in range(200):
        branch = field(5, field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 255 | 0, 1, 5]))
        node = field(1, b"c") + field(2, b"z") + field(4, b"If") + branch
        graph = field(2, b"b") + field(1, node) + field(12, field(1, b"z"))
    path = folder / "m.onnx"
    path.write_bytes(bytes([8, 9]) + field(7, graph) + field(8, bytes([16, 18])))
    return path


@refused("waits for its own result")
def nodes_in_a_circle(folder: Path) -> Path:
    model = linear()
    model.graph.node[0].input[0] = "r"
    return written(folder, model)


@refused("is not valid|nothing gives")
def name_from_nowhere(folder: Path) -> Path:
    model = linear()
    model.graph.node[1].input[0] = "nowhere"
    return written(folder, model)


@refused("'h' is given by two nodes")
def name_given_twice(folder: Path) -> Path:
    model = linear()
    model.graph.node[1].output[0] = "h"
    model.graph.node[2].input[0] = "h"
    return written(folder, model)


@refused("is not UTF-8")
def name_that_is_no_text(folder: Path) -> Path:
    path = written(folder, linear())
    path.write_bytes(path.read_bytes().replace(b"Relu", b"R\xfflu"))
    return path


@refused("is not UTF-8")
def sparse_name_that_is_no_text(folder: Path) -> Path:
    model = linear()
    values = helper.make_tensor("sparse", onnx.TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("places", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[4])
    path = written(folder, model)
    path.write_bytes(path.read_bytes().replace(b"sparse", b"sp\xffrse"))
    return path


@refused("does not fit its body")
def loop_without_rounds(folder: Path) -> Path:
    model = linear()
    body = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["q"])], "b", [], [helper.make_empty_tensor_value_info("q")]
    )
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=body))
    return written(folder, model)


@refused("laid out for one machine's hardware")
def hardware_inside_a_branch(folder: Path) -> Path:
    path = in_a_branch(folder)
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.node[0].attribute[0].g.node[0].domain = "com.microsoft.nchwc"
    return written(folder, model)


@refused("not an ONNX model|holds no graph")
def pickle_instead_of_a_model(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
    return path


@refused("is 4294967296")
def attribute_that_wraps(folder: Path) -> Path:
    """Readers differ: 2^32 is true, and 0 in 32 bits."""
    model = linear()
    model.graph.node.append(helper.make_node("ReduceSum", ["r"], ["s"], keepdims=2**32))
    return written(folder, model)


@refused("is a pipe")
def model_that_is_a_pipe(folder: Path) -> Path:
    path = folder / "m.onnx"
    os.mkfifo(path)
    return path


@refused("is a device")
def model_that_is_a_device(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.symlink_to("/dev/zero")
    return path
