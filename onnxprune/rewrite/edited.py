"""A copy of a proto that is edited in place: nodes, tensors and declarations, in every body.

Edits are small: a tensor's content, an input's name, an attribute, a node inserted before another. A function that
comes out differently for two of its calls is written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..graph.flatten import Container, Place, bodies
from ..graph.model import Model
from ..graph.payload import Cut, Keep
from ..graph.store import TAKEN_FROM, whole_bytes

FIRST_IR_WITH_PRIVATE_INITIALIZERS = 4
Array = np.ndarray[Any, Any]


class Edited:
    """The copy, with its bodies numbered as `Model.flat` numbers them. Call `finish` once, after all other edits."""

    def __init__(self, model: Model) -> None:
        self.source = model
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.skeleton)
        self.store = model.store.copy()
        self._sites = bodies(self.proto)
        self._originals = {(f.domain, f.name): _content(f) for f in model.skeleton.functions}
        self._fill_references()
        self._tensors = {name: self._find(name) for name in model.flat.tensors}
        self._before: dict[Place, list[onnx.NodeProto]] = {}
        self._dropped: list[tuple[int, str]] = []
        self._removed: set[Place] = set()
        self._taken = set(model.flat.tensors) | {o for n in model.flat.nodes for o in n.output}
        self._taken |= {v.name for v in model.skeleton.graph.input}

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

    def local(self, name: str) -> str:
        """Give the name that the body holding a tensor knows it by."""
        container, kind, k = self.source.flat.tensor_places[name]
        return str(self._tensors[name].name if kind == "initializer" else self.body(container).node[k].output[0])

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
        self._put(name, result, numpy_helper.from_array(np.asarray(array, order="C"), result))

    def cut(self, name: str, result: str, keeps: Mapping[int, Keep]) -> None:
        """Write the tensor `result`: what stays of `name`, by axis. Large ones are cut when they are read or saved."""
        old = self._tensors[name]
        source, width = self.source.payload(old), whole_bytes(old.data_type)
        if source is not None and width is not None:
            data = Cut(source, width, tuple(old.dims), dict(keeps))
            if len(data) >= TAKEN_FROM:
                new = onnx.TensorProto(name=result, data_type=old.data_type, dims=data.shape)
                self.store.hold(new, data)
                self._put(name, result, new)
                return
        array = self.source.array(name)
        for axis, keep in keeps.items():
            array = np.compress(keep, array, axis=axis)
        self.write(name, result, array)

    def _put(self, name: str, result: str, new: onnx.TensorProto) -> None:
        old = self._tensors.get(name)
        if old is not None:
            if old.HasField("doc_string"):
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

        It is an initializer of the main graph, which all bodies see; inside a function it is a Constant node.
        """
        name = self.fresh(f"{near}.onnxprune.1")
        tensor = numpy_helper.from_array(array, name)
        if place[0] in self.source.flat.function_bodies:
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

    def add(self, tensor: onnx.TensorProto, near: str | None = None) -> None:
        """Add an initializer to the body that holds the tensor `near`, or to the main graph; its name must be free."""
        body = self.body(0 if near is None else self.source.flat.tensor_places[near][0])
        assert isinstance(body, onnx.GraphProto)
        body.initializer.append(tensor)

    def open_with(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Have nodes run first of all, in the main graph."""
        self._before.setdefault((0, 0), []).extend(nodes)

    def compute(self, name: str, nodes: list[onnx.NodeProto]) -> None:
        """Have nodes compute the tensor `name`, in the body that held it; the last one gives it, under its own name.

        Its readers stay as they are. A Constant node becomes the last of `nodes`, an initializer goes.
        """
        container, kind, k = self.source.flat.tensor_places[name]
        if kind == "constant":
            self._before.setdefault((container, k), []).extend(nodes[:-1])
            label, doc = self.node((container, k)).name, self.node((container, k)).doc_string
            self.node((container, k)).CopyFrom(nodes[-1])
            self.node((container, k)).name, self.node((container, k)).doc_string = label, doc
        else:
            self._before.setdefault((container, 0), []).extend(nodes)
            self._dropped.append((container, self.local(name)))

    def derive(self, name: str, nodes: list[onnx.NodeProto]) -> None:
        """Have nodes compute something from the tensor `name`; its readers read the last one's output from then on."""
        container, kind, k = self.source.flat.tensor_places[name]
        _redirect(self.body(container), self.local(name), nodes[-1].output[0])
        self._before.setdefault((container, k + 1 if kind == "constant" else 0), []).extend(nodes)

    def underive(self, place: Place, name: str) -> None:
        """Have the readers of what the node at `place` gives read the tensor `name` of its body; the node goes."""
        _redirect(self.body(place[0]), self.node(place).output[0], self.local(name))
        self._removed.add(place)

    def hold(self, place: Place, array: Array, like: onnx.TensorProto) -> None:
        """Have an initializer hold what the node at `place` gives, under its name; the node goes.

        It gets the doc string and the metadata of `like`.
        """
        body = self.body(place[0])
        assert isinstance(body, onnx.GraphProto)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), self.node(place).output[0])
        if like.HasField("doc_string"):
            tensor.doc_string = like.doc_string
        tensor.metadata_props.extend(like.metadata_props)
        body.initializer.append(tensor)
        self._removed.add(place)

    def remove(self, place: Place) -> None:
        """Take out the node at `place`, which nothing reads any more."""
        self._removed.add(place)

    def drop(self, name: str) -> None:
        """Take out the tensor `name`, which nothing reads any more."""
        container, kind, k = self.source.flat.tensor_places[name]
        if kind == "constant":
            self._removed.add((container, k))
        else:
            self._dropped.append((container, self.local(name)))

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

    def _fill_references(self) -> None:
        """Give attributes that refer to one of the call its value, so that they can be read and edited."""
        for body, given in self._calls():
            for attribute in _references(body.node):
                if attribute.ref_attr_name in given:
                    attribute.MergeFrom(_bare(given[attribute.ref_attr_name]))

    def _restore_references(self) -> None:
        """Take the values back out of references; one that was edited is no reference any more."""
        for body, given in reversed(list(self._calls())):
            for attribute in _references(body.node):
                value, reference = given.get(attribute.ref_attr_name), attribute.ref_attr_name
                if _bare(attribute) == (onnx.AttributeProto(type=attribute.type) if value is None else _bare(value)):
                    name, kind, doc = attribute.name, attribute.type, attribute.doc_string
                    attribute.Clear()
                    attribute.name, attribute.type, attribute.ref_attr_name = name, kind, reference
                    if doc:
                        attribute.doc_string = doc
                else:
                    attribute.ClearField("ref_attr_name")

    def _calls(self) -> Iterator[tuple[onnx.FunctionProto, dict[str, onnx.AttributeProto]]]:
        """List the bodies of calls, outer before inner, with the attributes each is given."""
        for body, caller in self._sites:
            if isinstance(body, onnx.FunctionProto) and caller is not None:
                yield body, {a.name: a for a in [*body.attribute_proto, *caller.attribute]}

    # --- finishing ---

    def finish(self) -> Model:
        """Insert nodes, write functions back, and give the model."""
        self._restore_references()
        self._insert_nodes()
        self._drop()
        self._write_functions()
        graph = self.proto.graph
        if self.proto.ir_version < FIRST_IR_WITH_PRIVATE_INITIALIZERS:
            declared = {v.name for v in graph.input}
            for t in graph.initializer:
                if t.name not in declared:
                    graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        outside = self.source.has_external_data or self.source.prefers_external_data
        return Model(self.proto, self.source.path, prefers_external_data=outside, store=self.store)

    def _insert_nodes(self) -> None:
        # From the back, so that places stay what they were.
        for container, index in sorted({*self._before, *self._removed}, reverse=True):
            if (container, index) in self._removed:
                del self.body(container).node[index]
            for node in reversed(self._before.get((container, index), [])):
                self.body(container).node.insert(index, node)

    def _drop(self) -> None:
        """Take out initializers that nodes compute now."""
        for container in sorted({c for c, _ in self._dropped}):
            body = self.body(container)
            assert isinstance(body, onnx.GraphProto)
            gone = {name for c, name in self._dropped if c == container}
            for held in (body.initializer, body.input):
                for k in reversed([k for k, v in enumerate(held) if v.name in gone]):
                    del held[k]

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


def _redirect(body: Container, old: str, new: str) -> None:
    """Have the nodes of a body, and of bodies inside it, read `new` for `old`."""
    for node in body.node:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = new
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for graph in inner:
                defined = {v.name for v in [*graph.input, *graph.initializer]} | {
                    o for n in graph.node for o in n.output
                }
                if old not in defined:
                    _redirect(graph, old, new)
                    for output in graph.output:
                        if output.name == old:
                            output.name = new


def _references(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    """List the attributes of nodes, and of nodes inside them, that refer to one of the call."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                yield attribute
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _references(attribute.g.node)


def _bare(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """Copy the type and value of an attribute, without its name."""
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    for field in ("name", "ref_attr_name", "doc_string"):
        copy.ClearField(field)
    return copy


def _content(function: onnx.FunctionProto) -> bytes:
    return bytes(function.SerializeToString(deterministic=True))
