"""`Probe`: a model made to give inner tensors as its outputs.

Tensors of the main graph become outputs as they are. Bodies of functions are laid open first, where no control flow is
in the way. A tensor inside a branch of an If is passed out through the If, whose other branch gives an empty tensor in
its place. What happens once per round of a Loop or Scan cannot be told from outside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import OptionError, unknown_name
from ..graph.flatten import DOMAIN, bodies, is_open, opens
from ..graph.model import Model
from ..graph.shapes import Shapes, concrete_shapes
from ..graph.view import skeleton
from .reading import HIDDEN

Array = np.ndarray[Any, Any]
_NOT_FETCHED = frozenset(
    (TensorProto.BFLOAT16, *(v for n, v in TensorProto.DataType.items() if n.startswith("FLOAT8")))
)
_LIFTED = "onnxprune/lifted"
_CAST = "onnxprune/float"


class Home(NamedTuple):
    """Where a body hangs: the body around it, the node there and the node's attribute; `way` is its operator."""

    parent: int
    node: int
    attribute: str
    way: str


class Probe:
    """A model with what is known about it, ready to be made into models that give other outputs."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.flat = model.flat
        self._bare = skeleton(model.skeleton, model.flat)
        self._shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], Shapes] = {}

    def shapes(self, input_shapes: Mapping[str, Sequence[int]]) -> Shapes:
        """Give the shape of every value for inputs of these shapes."""
        key = tuple(sorted((name, tuple(shape)) for name, shape in input_shapes.items()))
        if key not in self._shapes:
            self._shapes[key] = concrete_shapes(self.flat, self._bare, dict(input_shapes))
        return self._shapes[key]

    def node(self, index: int) -> onnx.NodeProto:
        """Give a flat node; raises `OptionError` when there is none of that number."""
        if not 0 <= index < len(self.flat.nodes):
            raise OptionError(f"the model has {len(self.flat.nodes)} nodes; there is no node {index}")
        return self.flat.nodes[index]

    @cached_property
    def inputs(self) -> frozenset[str]:
        """Names that every feed holds."""
        constants = {t.name for t in self.model.skeleton.graph.initializer}
        return frozenset(v.name for v in self.model.skeleton.graph.input) - constants

    @cached_property
    def is_laid_open(self) -> bool:
        """Say whether all bodies are bodies of functions, so that the flat nodes can run as one graph."""
        joins = [n for n, place in zip(self.flat.nodes, self.flat.places, strict=True) if place is None]
        return all(n.op_type in ("Join", "Constant") and len(n.input) <= 1 for n in joins)

    @cached_property
    def _homes(self) -> list[Home]:
        """Where each container hangs, in the order of `graph.flatten`; the main graph hangs nowhere."""
        proto, homes = self.model.proto, [Home(-1, -1, "", "")]
        functions = {(f.domain, f.name): f for f in proto.functions if opens(f, proto)}

        def walk(nodes: Sequence[onnx.NodeProto], container: int) -> None:
            for index, node in enumerate(nodes):
                function = functions.get((node.domain, node.op_type))
                if function is not None:
                    homes.append(Home(container, index, "", f"function {node.op_type!r}"))
                    walk(function.node, len(homes) - 1)
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH and is_open(node):
                        homes.append(Home(container, index, attribute.name, node.op_type))
                        walk(attribute.g.node, len(homes) - 1)

        walk(proto.graph.node, 0)
        return homes

    @cached_property
    def _defined(self) -> dict[str, tuple[int, str]]:
        """Container and own name of every flat name: the outermost body that knows it."""
        found: dict[str, tuple[int, str]] = {}
        for container, names in enumerate(self.flat.flat_names):
            for own, name in names.items():
                found.setdefault(name, (container, own))
        return found

    def why_hidden(self, name: str) -> str:
        """Say why a tensor cannot be fetched, "" when it can."""
        if name in self.inputs or name in self.flat.tensors or name.startswith(HIDDEN):
            return ""
        if name not in self._defined:
            return f"{name!r} is no value of the model"
        if self.is_laid_open:
            return ""
        container, _ = self._defined[name]
        while container:
            home = self._homes[container]
            if home.way != "If":
                return f"it lies in the body of a {home.way}"
            container = home.parent
        return ""

    def constant(self, name: str, weights: Mapping[str, Array]) -> Array | None:
        """Give the value of an initializer or a Constant, None for a computed one."""
        if name in weights:
            return weights[name]
        return self.model.array(name) if name in self.flat.tensors else None

    # --- building ---

    def build(self, fetch: Collection[str], weights: Mapping[str, Array]) -> tuple[Model, dict[str, str]]:
        """Make a model that gives the tensors `fetch`, with other values for some `weights`; see which output is which.

        Nodes that no output needs are left out. Raises `UnknownNameError` for a weight that the model does not have.
        """
        for name in weights:
            if name not in self.flat.tensors:
                raise unknown_name("weight", name, self.flat.tensors)
        proto = self._open(weights) if self.is_laid_open else self._closed(weights)
        outputs: dict[str, str] = {}
        for name in fetch:
            if name.startswith(HIDDEN):
                node = int(name.rpartition("/")[2])
                outputs[name] = self._tap(proto, node, name)
            elif self.is_laid_open:
                outputs[name] = name
            else:
                outputs[name] = self._lift(proto, name)
        types = self._known.types
        for name, output in outputs.items():
            if types.get(name) in _NOT_FETCHED:
                outputs[name] = f"{_CAST}/{output}"
                proto.graph.node.add().CopyFrom(
                    helper.make_node("Cast", [output], [outputs[name]], to=TensorProto.FLOAT)
                )
        _keep_only(proto.graph, list(outputs.values()))
        return Model(proto, self.model.path), outputs

    @property
    def _known(self) -> Shapes:
        """Shapes and types at any sizes of the inputs."""
        return next(iter(self._shapes.values()), None) or self.shapes({})

    def _open(self, weights: Mapping[str, Array]) -> onnx.ModelProto:
        """Write the flat nodes as one graph."""
        source = self.model.proto
        proto = onnx.ModelProto()
        proto.ir_version = source.ir_version
        proto.opset_import.extend(source.opset_import)
        proto.functions.extend(source.functions)
        graph = proto.graph
        graph.name = source.graph.name
        graph.input.extend(source.graph.input)
        graph.sparse_initializer.extend(source.graph.sparse_initializer)
        for node in self.flat.nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            if node.domain == DOMAIN:
                copy.op_type, copy.domain = "Identity", ""
            elif node.op_type == "Constant" and node.output[0] in weights:
                copy.CopyFrom(_constant(weights[node.output[0]], node.output[0]))
        for name, tensor in self.flat.tensors.items():
            if self.flat.tensor_places[name][1] == "initializer":
                graph.initializer.add().CopyFrom(_tensor(weights[name], name) if name in weights else tensor)
                graph.initializer[-1].name = name
        return proto

    def _closed(self, weights: Mapping[str, Array]) -> onnx.ModelProto:
        """Copy the model as it is, bodies and all."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        containers = bodies(proto) if weights else []
        for name, array in weights.items():
            container, kind, k = self.flat.tensor_places[name]
            body = containers[container][0]
            if kind == "constant":
                body.node[k].CopyFrom(_constant(array, body.node[k].output[0]))
            elif isinstance(body, onnx.GraphProto):
                body.initializer[k].CopyFrom(_tensor(array, body.initializer[k].name))
        return proto

    def _tap(self, proto: onnx.ModelProto, node: int, name: str) -> str:
        """Give a node's first output, which it leaves out, a name, and pass that out."""
        place = self.flat.places[node]
        if self.is_laid_open or place is None:
            proto.graph.node[node].output[0] = name
            return name
        container, index = place
        bodies(proto)[container][0].node[index].output[0] = name
        return self._passed_out(proto, container, name, TensorProto.FLOAT, 4)

    def _lift(self, proto: onnx.ModelProto, name: str) -> str:
        container, own = self._defined[name]
        shape, elem_type = self._known.sizes.get(name), self._known.types.get(name, TensorProto.FLOAT)
        return self._passed_out(proto, container, own, elem_type, len(shape or (0,)))

    def _passed_out(self, proto: onnx.ModelProto, container: int, name: str, elem_type: int, rank: int) -> str:
        """Pass a value out of the branches of If it lies in; give the name it has in the main graph."""
        containers = bodies(proto) if container else []
        while container:
            home = self._homes[container]
            around = containers[home.parent][0].node[home.node]
            passed = f"{_LIFTED}/{container}/{name}"
            for attribute in around.attribute:
                if attribute.type != onnx.AttributeProto.GRAPH:
                    continue
                branch, inner = attribute.g, f"{passed}/{attribute.name}"
                if attribute.name == home.attribute:
                    branch.node.add().CopyFrom(helper.make_node("Identity", [name], [inner]))
                else:
                    empty = helper.make_tensor("", elem_type, [0] * max(1, rank), b"", raw=True)
                    branch.node.add().CopyFrom(helper.make_node("Constant", [], [inner], value=empty))
                branch.output.add().CopyFrom(helper.make_tensor_value_info(inner, elem_type, None))
            around.output.append(passed)
            container, name = home.parent, passed
        return name


def _tensor(array: Array, name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def _constant(array: Array, output: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=_tensor(array, output))


def _keep_only(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Make `outputs` the graph's outputs, and drop the nodes and initializers that none of them needs."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_read_by(node))
            kept.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(kept)]
    tensors = [t for t in graph.initializer if t.name in needed]
    if len(copies) != len(graph.node):
        del graph.node[:]
        graph.node.extend(copies)
    if len(tensors) != len(graph.initializer):
        tensors = [TensorProto.FromString(t.SerializeToString()) for t in tensors]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
    del graph.output[:], graph.value_info[:], graph.quantization_annotation[:]
    for name in outputs:
        # onnxruntime infers the type of an output that states none.
        graph.output.add(name=name)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Give all names that a node reads, those its bodies take from around them included."""
    yield from (n for n in node.input if n)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            yield from (o.name for o in body.output)
            for inner in body.node:
                yield from _read_by(inner)
