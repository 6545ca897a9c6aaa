"""The node graph that analysis and patterns read: an onnx-graphsurgeon view of a model.

graphsurgeon reads; it never writes a file here, since a round trip through it loses metadata, attribute types and
more. The view shares no data with the proto, and every node knows its position in it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from ..errors import ModelError
from .flatten import DOMAIN, Flat, Place
from .model import Model

KEEP_DATA_BELOW = 1024


@dataclass(frozen=True)
class View:
    """`graph` holds the flat nodes of a model in order; `places[i]` says where node i lies in the proto.

    A place is (container, index), None for a node that only says how values of bodies meet.
    """

    graph: gs.Graph
    places: tuple[Place | None, ...]


def view(model: Model, bare: onnx.ModelProto | None = None) -> View:
    """Build the view, from the model's `skeleton` when it was made before: analysis needs shapes, not weights."""
    bare = skeleton(model.skeleton, model.flat) if bare is None else bare
    with _errors_only():
        try:
            graph = gs.import_onnx(bare)
        except Exception as error:
            raise ModelError(f"{model.label}: the graph cannot be read ({type(error).__name__}: {error})") from error
    flat = model.flat
    by_output = {out: place for n, place in zip(flat.nodes, flat.places, strict=True) for out in n.output if out}
    places = []
    for node in graph.nodes:
        outputs = [t.name for t in node.outputs if t.name]
        if not outputs or outputs[0] not in by_output:
            raise ModelError(f"{model.label}: node {node.name!r} has no output")
        places.append(by_output[outputs[0]])
    return View(graph, tuple(places))


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Keep graphsurgeon's warnings off the terminal, and its logger as the user has it."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = before


def skeleton(proto: onnx.ModelProto, flat: Flat) -> onnx.ModelProto:
    """Make one flat graph without the data of large initializers (they keep type, name and dimensions)."""
    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    if any(place is None for place in flat.places):
        bare.opset_import.add(domain=DOMAIN, version=1)
    graph, source = bare.graph, proto.graph
    graph.name = source.name
    graph.node.extend(flat.nodes)
    graph.input.extend(source.input)
    graph.output.extend(v for v in source.output if v.type.WhichOneof("value") != "optional_type")
    graph.value_info.extend(flat.value_info)
    for name, tensor in flat.tensors.items():
        if flat.tensor_places[name][1] != "initializer":
            continue
        if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > KEEP_DATA_BELOW:
            graph.initializer.add(name=name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    _undecodable_strings_emptied(graph.node)
    return bare


def _undecodable_strings_emptied(nodes: Iterable[onnx.NodeProto]) -> None:
    """Empty string attributes that are no UTF-8, which graphsurgeon cannot read (blobs of custom operators)."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.STRING and not _is_text(attribute.s):
                attribute.s = b""
            elif attribute.type == onnx.AttributeProto.STRINGS and not all(map(_is_text, attribute.strings)):
                attribute.strings[:] = [s if _is_text(s) else b"" for s in attribute.strings]
            else:
                for body in [attribute.g, *attribute.graphs]:
                    _undecodable_strings_emptied(body.node)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
