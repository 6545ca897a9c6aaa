"""A copy of a proto that is edited in place: nodes, tensors and declarations, in every body.

Edits are small: a tensor's content, an input's name, an attribute, a node inserted before another. A function that
comes out differently for two of its calls is written twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..graph.flatten import Container, Place, bodies
from ..graph.model import Model

FIRST_IR_WITH_PRIVATE_INITIALIZERS = 4
Array = np.ndarray[Any, Any]


class Edited:
    """The copy, with its bodies numbered as `Model.flat` numbers them. Call `finish` once, after all other edits."""

    def __init__(self, model: Model) -> None:
        self.source = model
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.proto)
        self._sites = bodies(self.proto)
        self._originals = {(f.domain, f.name): _content(f) for f in model.proto.functions}
        self._tensors = {name: self._find(name) for name in model.flat.tensors}
        self._before: dict[Place, list[onnx.NodeProto]] = {}
        self._taken = set(model.flat.tensors) | {o for n in model.flat.nodes for o in n.output}

    # --- reading ---

    def body(self, container: int) -> Container:
        """Give the graph or function body of a number."""
        return self._sites[container][0]

    def node(self, place: Place) -> onnx.NodeProto:
        """Give the node at a place."""
        node: onnx.NodeProto = self.body(place[0]).node[place[1]]
        return node

    def holds(self, name: str) -> bool:
        """Say whether `name` is a tensor that can be written."""
        return name in self._tensors

    def _find(self, name: str) -> onnx.TensorProto:
        container, kind, k = self.source.flat.tensor_places[name]
        body = self.body(container)
        tensor: onnx.TensorProto
        if kind == "initializer":
            assert isinstance(body, onnx.GraphProto)
            tensor = body.initializer[k]
        else:
            tensor = next(a.t for a in body.node[k].attribute if a.name == "value")
        return tensor

    # --- editing ---

    def write(self, name: str, result: str, array: Array) -> None:
        """Write the tensor `result`, cut from `name`: in place under its own name, as a new initializer otherwise."""
        old = self._tensors.get(name)
        new = numpy_helper.from_array(np.asarray(array, order="C"), result)
        if old is not None:
            new.doc_string = old.doc_string
            new.metadata_props.extend(old.metadata_props)
        if old is not None and name == result:
            new.name = old.name
            old.CopyFrom(new)
        else:
            self.proto.graph.initializer.append(new)
            self._tensors[result] = self.proto.graph.initializer[-1]
            self._taken.add(result)

    def constant(self, place: Place, near: str, array: Array) -> str:
        """Add a constant for the node at `place` and give its name, made from `near`.

        It is an initializer of the main graph, which all bodies see; a function gets a Constant node.
        """
        name = self.fresh(f"{near}.onnxprune.1")
        tensor = numpy_helper.from_array(array, name)
        if isinstance(self.body(place[0]), onnx.FunctionProto):
            node = onnx.helper.make_node("Constant", [], [name], name=name, value=tensor)
            self._before.setdefault(place, []).append(node)
        else:
            self.proto.graph.initializer.append(tensor)
        return name

    def insert(self, place: Place, op: str, near: str, inputs: list[str]) -> str:
        """Add a node before the one at `place` and give its output's name, made from `near`."""
        output = self.fresh(f"{near}.onnxprune.{op}")
        self._before.setdefault(place, []).append(onnx.helper.make_node(op, inputs, [output], name=output))
        return output

    def fresh(self, name: str) -> str:
        """Give `name`, or `name.2` and so on when it is taken."""
        k, unique = 2, name
        while unique in self._taken:
            unique, k = f"{name}.{k}", k + 1
        self._taken.add(unique)
        return unique

    def declarations(self) -> Iterator[tuple[str, onnx.ValueInfoProto]]:
        """List the declared shapes that may be edited, by flat name; the graph's own inputs and outputs stay."""
        initializers = {t.name for t in self.proto.graph.initializer}
        for container, names in enumerate(self.source.flat.flat_names):
            body = self.body(container)
            infos = list(body.value_info)
            if isinstance(body, onnx.GraphProto):
                if container:
                    infos += [*body.input, *body.output]
                else:
                    infos += [v for v in body.input if v.name in initializers]
            for info in infos:
                if info.name in names and info.type.tensor_type.HasField("shape"):
                    yield names[info.name], info

    def dims(self, name: str) -> list[int] | None:
        """Give the dimensions a tensor has now, None where `name` is no tensor."""
        tensor = self._tensors.get(name)
        return list(tensor.dims) if tensor is not None else None

    # --- finishing ---

    def finish(self) -> onnx.ModelProto:
        """Insert nodes, write functions back, and give the proto."""
        self._insert_nodes()
        self._write_functions()
        graph = self.proto.graph
        if self.proto.ir_version < FIRST_IR_WITH_PRIVATE_INITIALIZERS:
            declared = {v.name for v in graph.input}
            for t in graph.initializer:
                if t.name not in declared:
                    graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        return self.proto

    def _insert_nodes(self) -> None:
        # Inner bodies first: taking a node apart would detach the bodies inside it.
        for container in sorted({c for c, _ in self._before}, reverse=True):
            body = self.body(container)
            nodes = [n for k, node in enumerate(body.node) for n in [*self._before.get((container, k), ()), node]]
            copies = [onnx.NodeProto.FromString(n.SerializeToString(deterministic=True)) for n in nodes]
            del body.node[:]
            body.node.extend(copies)
            self._reattach_callers(container)

    def _reattach_callers(self, container: int) -> None:
        """Find the calls of a body again after its nodes were replaced."""
        body = self.body(container)
        by_output = {n.output[0]: n for n in body.node if n.output}
        for k, (inner, caller) in enumerate(self._sites):
            if (
                caller is not None
                and caller.output
                and by_output.get(caller.output[0], caller).op_type == caller.op_type
            ):
                self._sites[k] = (inner, by_output.get(caller.output[0], caller))

    def _write_functions(self) -> None:
        """Write the bodies of calls back into the functions; a second version is called `NAME.onnxprune.K`."""
        sites: dict[tuple[str, str], list[tuple[onnx.FunctionProto, onnx.NodeProto]]] = {}
        for body, caller in reversed(self._sites):
            if isinstance(body, onnx.FunctionProto) and caller is not None:
                sites.setdefault((body.domain, body.name), []).append((body, caller))
        functions = {(f.domain, f.name): f for f in self.proto.functions}
        for key, calls in sites.items():
            contents = [_content(body) for body, _ in calls]
            unchanged = self._originals[key]
            names = {unchanged: key[1]} if unchanged in contents else {}
            for (body, caller), content in zip(calls, contents, strict=True):
                if content not in names:
                    names[content] = key[1] if not names else f"{key[1]}.onnxprune.{len(names)}"
                    if names[content] == key[1]:
                        functions[key].CopyFrom(body)
                    else:
                        self.proto.functions.append(body)
                        self.proto.functions[-1].name = names[content]
                caller.op_type = names[content]


def _content(function: onnx.FunctionProto) -> bytes:
    return bytes(function.SerializeToString(deterministic=True))
