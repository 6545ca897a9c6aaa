"""Tensors and nodes of a model in every scope: the main graph and the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper

from ..graph.flatten import flatten, is_open
from ..graph.model import Model

Array = np.ndarray[Any, Any]
Scope = tuple[tuple[str, str], ...]

_FLOAT_PREFIXES = ("FLOAT", "DOUBLE", "BFLOAT16")
FLOAT_TYPES = frozenset(v for n, v in TensorProto.DataType.items() if n.startswith(_FLOAT_PREFIXES))
# Types of quantized weights and, INT32, of quantized biases.
CODE_TYPES = frozenset(getattr(TensorProto, n) for n in ("INT8", "UINT8", "INT4", "UINT4", "INT32"))
_HEADER_BYTES = 1024


@dataclass(frozen=True)
class Held:
    """A tensor that a graph holds: an initializer, or the value of a Constant node."""

    tensor: TensorProto
    graph: onnx.GraphProto
    scope: Scope


@dataclass(frozen=True)
class Use:
    """One input slot that reads a tensor.

    `node` has the flat names of `graph.flatten`; `site` is the node itself, to be edited.
    """

    scope: Scope
    node: onnx.NodeProto
    slot: int
    site: onnx.NodeProto


def graphs(proto: onnx.ModelProto) -> Iterator[tuple[Scope, onnx.GraphProto]]:
    """Walk the main graph and all bodies, outer before inner.

    A scope is named by the (first output, attribute) of the nodes it lies in; both survive pruning.
    """
    waiting: list[tuple[Scope, onnx.GraphProto]] = [((), proto.graph)]
    while waiting:
        scope, graph = waiting.pop()
        yield scope, graph
        for node in reversed(graph.node):
            for label, body in _bodies(node):
                waiting.append(((*scope, (node.output[0] if node.output else "", label)), body))


def named_graphs(proto: onnx.ModelProto) -> Iterator[tuple[Scope, onnx.GraphProto, Mapping[str, str]]]:
    """Walk like `graphs`, with the flat names of the values each graph sees; a name that is missing is flat already.

    Plans name values of bodies by flat names, since bodies may reuse a name.
    """
    if not any(_bodies(node) for node in proto.graph.node):
        yield (), proto.graph, {}
        return
    flat = flatten(proto)
    containers = iter([names for k, names in enumerate(flat.flat_names) if k not in flat.function_bodies])

    def walk(
        scope: Scope, graph: onnx.GraphProto, names: Mapping[str, str]
    ) -> Iterator[tuple[Scope, onnx.GraphProto, Mapping[str, str]]]:
        yield scope, graph, names
        for node in graph.node:
            for label, body in _bodies(node):
                inner = next(containers) if is_open(node) else names
                yield from walk((*scope, (node.output[0] if node.output else "", label)), body, inner)

    yield from walk((), proto.graph, next(containers))


def _bodies(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    found = []
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        found += [(f"{attribute.name}{k}", body) for k, body in enumerate(bodies)]
    return found


def named_node(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Give a node with flat names: itself where they are its own."""
    inputs, outputs = ([names.get(n, n) for n in part] for part in (node.input, node.output))
    if inputs == list(node.input) and outputs == list(node.output):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = inputs, outputs
    return copy


def held_tensors(proto: onnx.ModelProto) -> dict[str, Held]:
    """Give initializers and Constant values by flat name."""
    found: dict[str, Held] = {}
    for scope, graph, names in named_graphs(proto):
        for tensor in graph.initializer:
            found.setdefault(names.get(tensor.name, tensor.name), Held(tensor, graph, scope))
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        name = names.get(node.output[0], node.output[0])
                        found.setdefault(name, Held(attribute.t, graph, scope))
    return found


def uses_by_name(proto: onnx.ModelProto) -> dict[str, list[Use]]:
    """Give the input slots that read each value, by flat name, in the order the nodes run."""
    uses: dict[str, list[Use]] = {}
    for scope, graph, names in named_graphs(proto):
        for site in graph.node:
            node = named_node(site, names)
            for slot, name in enumerate(node.input):
                if name:
                    uses.setdefault(name, []).append(Use(scope, node, slot, site))
    return uses


def to_array(model: Model, tensor: TensorProto) -> Array:
    """Read a tensor of `model`, from where its data lies; raises `ModelError` when it cannot be read."""
    return model.read(tensor)


def same_bits(a: Array, b: Array) -> bool:
    """Say whether two arrays agree in type, shape and every bit, NaN payloads and signed zeros included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.hasobject:
        return bool(a.tolist() == b.tolist())
    x, y = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    return bool(np.array_equal(x, y))


def skeleton(proto: onnx.ModelProto, *, keep_dims: bool) -> onnx.ModelProto:
    """Copy a model without the data of its large tensors, for tools that need none and cannot take 2 GB or data files.

    With `keep_dims` a tensor points to a data file that is not there, which shape inference accepts; without, it is
    empty, which the checker accepts.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for held in held_tensors(copy).values():
        tensor = held.tensor
        outside = external_data_helper.uses_external_data(tensor)
        if not outside and tensor.ByteSize() <= _HEADER_BYTES:
            continue
        bare = TensorProto(name=tensor.name, data_type=tensor.data_type)
        if keep_dims:
            bare.dims.extend(tensor.dims)
            bare.data_location = TensorProto.EXTERNAL
            bare.external_data.add(key="location", value="absent")
        else:
            bare.dims.append(0)
            bare.raw_data = b""
        tensor.CopyFrom(bare)
    return copy
