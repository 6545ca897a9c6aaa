"""The node graph that analysis and patterns read: an onnx-graphsurgeon view of a model.

graphsurgeon reads; it never writes a file here, since a round trip through it loses metadata, attribute types and
more. The view shares no data with the proto, and every node knows its position in it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from ..errors import ModelError
from .model import Model

KEEP_DATA_BELOW = 1024


@dataclass(frozen=True)
class View:
    """`graph` holds the main graph's nodes in file order; `positions[i]` is node i's index in the proto's node list.

    graphsurgeon folds Constant nodes into constants, so the positions have gaps.
    """

    graph: gs.Graph
    positions: tuple[int, ...]
    protos: tuple[onnx.NodeProto, ...]


def view(model: Model, proto: onnx.ModelProto | None = None) -> View:
    """Build the view, from the model's `skeleton` when it was made before: analysis needs shapes, not weights."""
    proto = skeleton(model.proto) if proto is None else proto
    with _errors_only():
        try:
            graph = gs.import_onnx(proto)
        except Exception as error:
            raise ModelError(f"{model.label}: the graph cannot be read ({type(error).__name__}: {error})") from error
    by_output = {out: k for k, n in enumerate(model.proto.graph.node) for out in n.output if out}
    positions = []
    for node in graph.nodes:
        outputs = [t.name for t in node.outputs if t.name]
        if not outputs or outputs[0] not in by_output:
            raise ModelError(f"{model.label}: node {node.name!r} has no output")
        positions.append(by_output[outputs[0]])
    nodes = model.proto.graph.node
    return View(graph, tuple(positions), tuple(nodes[p] for p in positions))


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Keep graphsurgeon's warnings off the terminal, and its logger as the user has it."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = before


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without the data of its large initializers (they keep type, name and dimensions)."""
    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph, source = bare.graph, proto.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(v for v in source.output if v.type.WhichOneof("value") != "optional_type")
    graph.value_info.extend(source.value_info)
    for tensor in source.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > KEEP_DATA_BELOW:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            graph.initializer.append(tensor)
    _undecodable_strings_emptied(graph)
    return bare


def _undecodable_strings_emptied(graph: onnx.GraphProto) -> None:
    """Empty string attributes that are no UTF-8, which graphsurgeon cannot read (blobs of custom operators)."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRING:
                try:
                    attribute.s.decode()
                except UnicodeDecodeError:
                    attribute.s = b""
