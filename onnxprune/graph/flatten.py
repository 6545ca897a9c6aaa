"""One flat list of nodes out of a model with bodies: If, Loop, Scan and model-local functions are laid open.

Analysis reads the flat graph. Values keep their names where those are unique in the whole model; the rest take the
name of the node whose body they lie in. Where a body meets its surroundings, nodes of the domain "onnxprune" say how:

    Join(a, b)       one of the two, or both in turn: the branches of If, the rounds of Loop and Scan
    Enter(a)         a value carried into the first round
    Stack(a)         one value per round, stacked along a new axis
    Unstack(a)       the slice of one round
    Counter()        a number that changes with every round
    Read(a, ...)     conditions and counts that control flow reads

Every flat node remembers its place, so that an edit finds the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from ..errors import ModelError
from .structure import running_order

DOMAIN = "onnxprune"
MAX_DEPTH = 32
Place = tuple[int, int]
Names = Mapping[str, str]
Container = onnx.GraphProto | onnx.FunctionProto


@dataclass
class Flat:
    """The flat nodes of a model and where they come from.

    `places[i]` is (container, index) of flat node i, None for a node that only says how values meet. `tensors` are the
    initializers and Constant values of all graphs by flat name, with `tensor_places` (container, "initializer" |
    "constant", index). `varying` holds values whose sizes may change from round to round. `captured` are names that
    bodies which stay closed read. `function_bodies` are the containers that are bodies of functions, or lie in one.
    `flat_names[container]` gives the flat name of every name of a body.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    tensor_places: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    value_info: list[onnx.ValueInfoProto] = field(default_factory=list)
    varying: set[str] = field(default_factory=set)
    captured: set[str] = field(default_factory=set)
    function_bodies: set[int] = field(default_factory=set)
    flat_names: list[dict[str, str]] = field(default_factory=list)


def bodies(proto: onnx.ModelProto) -> list[tuple[Container, onnx.NodeProto | None]]:
    """List the graphs and function bodies of a model as `flatten` numbers them, each with the node that calls it.

    Every call of a function has a body of its own here: a copy, to be edited apart from the others. Graphs have no
    calling node.
    """
    functions = {(f.domain, f.name): f for f in proto.functions}
    found: list[tuple[Container, onnx.NodeProto | None]] = []

    def walk(body: Container, caller: onnx.NodeProto | None, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ModelError(f"bodies of control-flow operators are nested more than {MAX_DEPTH} deep")
        found.append((body, caller))
        for node in body.node:
            function = functions.get((node.domain, node.op_type))
            if function is not None and opens(function, proto):
                copy = onnx.FunctionProto()
                copy.CopyFrom(function)
                walk(copy, node, depth + 1)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH and is_open(node):
                    walk(attribute.g, None, depth + 1)

    walk(proto.graph, None, 0)
    return found


def opens(function: onnx.FunctionProto, proto: onnx.ModelProto) -> bool:
    """Say whether a function's body can be laid open: it uses the model's own operator sets."""
    versions = {o.domain: o.version for o in proto.opset_import}
    return all(versions.get(o.domain, o.version) == o.version for o in function.opset_import)


def is_open(node: onnx.NodeProto) -> bool:
    """Say whether the bodies of a node are laid open."""
    return node.domain in ("", "ai.onnx") and node.op_type in ("If", "Loop", "Scan")


def flatten(proto: onnx.ModelProto) -> Flat:
    """Lay open all bodies of a model, each node after what it reads.

    Raises `ModelError` when they are nested too deep.
    """
    bodies(proto)
    flat = _Flattener(proto).flat
    order = running_order(flat.nodes)
    if order is not None:
        flat.nodes = [flat.nodes[k] for k in order]
        flat.places = [flat.places[k] for k in order]
    return flat


class _Flattener:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.flat = Flat()
        self.functions = {(f.domain, f.name): f for f in proto.functions if opens(f, proto)}
        self.taken: set[str] = set()
        self.loops = 0
        self.next = 0
        self.attributes: Mapping[str, onnx.AttributeProto] | None = None
        self._graph(proto.graph, {}, "", is_main=True)

    # --- names ---

    def _define(self, names: dict[str, str], name: str, scope: str) -> str:
        """Give a value defined in a body its flat name."""
        flat, k = name, 1
        while flat in self.taken:
            flat = f"{scope}/{name}" if k == 1 else f"{scope}/{name}.{k}"
            k += 1
        self.taken.add(flat)
        names[name] = flat
        if self.loops:
            self.flat.varying.add(flat)
        return flat

    def _emit(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | str) -> None:
        node = onnx.helper.make_node(op, list(inputs), list(outputs), outputs[0], domain=DOMAIN)
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
        self.flat.nodes.append(node)
        self.flat.places.append(None)

    # --- bodies ---

    def _graph(self, graph: onnx.GraphProto, outer: Names, scope: str, *, is_main: bool = False) -> dict[str, str]:
        """Lay open one graph and give its names; the inputs of a body are named in `outer` already."""
        container = self._enter_container()
        if self.attributes is not None:
            self.flat.function_bodies.add(container)
        names = dict(outer)
        declared = {v.name for v in graph.input} if is_main else set()
        self.taken |= declared
        names.update((n, n) for n in declared)
        for k, tensor in enumerate(graph.initializer):
            flat = tensor.name if tensor.name in declared else self._define(names, tensor.name, scope)
            if self.attributes is not None:
                # Another call of the function may need it otherwise, and a function's tensors have no version per call.
                self.flat.nodes.append(onnx.helper.make_node("Constant", [], [flat], flat, value=tensor))
                self.flat.places.append(None)
                continue
            self.flat.tensors[flat] = tensor
            self.flat.tensor_places[flat] = (container, "initializer", k)
        self._nodes(graph.node, container, names, scope)
        for info in graph.value_info:
            if info.name in names:
                self._declare(info, names[info.name])
        self.flat.flat_names[container] = names
        return names

    def _enter_container(self) -> int:
        container, self.next = self.next, self.next + 1
        self.flat.flat_names.append({})
        return container

    def _declare(self, info: onnx.ValueInfoProto, flat: str) -> None:
        if flat == info.name:
            self.flat.value_info.append(info)
        else:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(info)
            copy.name = flat
            self.flat.value_info.append(copy)

    def _nodes(
        self,
        nodes: Sequence[onnx.NodeProto],
        container: int,
        names: dict[str, str],
        scope: str,
    ) -> None:
        for index, node in enumerate(nodes):
            inner = f"{scope}/{node.name or node.output[0]}" if scope else node.name or next(iter(node.output), "")
            if is_open(node):
                getattr(self, f"_{node.op_type.lower()}")(node, names, inner, scope)
            elif (node.domain, node.op_type) in self.functions:
                self._call(node, names, inner, scope)
            else:
                self._node(node, (container, index), names, scope)

    def _node(
        self,
        node: onnx.NodeProto,
        place: Place,
        names: dict[str, str],
        scope: str,
    ) -> None:
        inputs = [names.get(n, n) for n in node.input]
        outputs = [self._define(names, n, scope) if n else "" for n in node.output]
        refers = any(a.ref_attr_name for a in node.attribute)
        if refers or inputs != list(node.input) or outputs != list(node.output):
            node = _renamed(node, inputs, outputs, self.attributes or {})
        self.flat.nodes.append(node)
        self.flat.places.append(place)
        for body in _closed_bodies(node):
            self.flat.captured |= {names.get(n, n) for n in _reads(body)}
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                is_value = attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR
                if is_value and self.attributes is None:
                    self.flat.tensors[outputs[0]] = attribute.t
                    self.flat.tensor_places[outputs[0]] = (place[0], "constant", place[1])

    def _if(self, node: onnx.NodeProto, names: dict[str, str], inner: str, scope: str) -> None:
        self._emit("Read", [names.get(node.input[0], node.input[0])], [self._define({}, f"{inner}/reads", scope)])
        results = []
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                body = self._graph(attribute.g, names, f"{inner}/{attribute.name}")
                results.append([body.get(o.name, o.name) for o in attribute.g.output])
        for k, name in enumerate(node.output):
            if name:
                self._emit("Join", [r[k] for r in results], [self._define(names, name, scope)])

    def _loop(self, node: onnx.NodeProto, names: dict[str, str], inner: str, scope: str) -> None:
        given = [names.get(n, n) for n in node.input]
        body = next(a.g for a in node.attribute if a.name == "body")
        self._emit("Read", [n for n in given[:2] if n], [self._define({}, f"{inner}/reads", scope)])
        self.loops += 1
        inside = dict(names)
        counters = [self._define(inside, v.name, inner) for v in body.input[:2]]
        self._emit("Counter", [], counters[:1], elem_type=onnx.TensorProto.INT64)
        self._emit("Counter", [], counters[1:], elem_type=onnx.TensorProto.BOOL)
        for value, start in zip(body.input[2:], given[2:], strict=False):
            self._emit("Enter", [start], [self._define(inside, value.name, inner)])
        made = self._graph(body, inside, inner)
        outs = [made.get(o.name, o.name) for o in body.output][1:]
        self._leave(node, names, scope, outs, given[2:], [0] * len(outs), trips=given[0])
        self.loops -= 1

    def _scan(self, node: onnx.NodeProto, names: dict[str, str], inner: str, scope: str) -> None:
        given = [names.get(n, n) for n in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        body = attributes["body"]
        n_states = len(given) - attributes["num_scan_inputs"]
        axes = attributes.get("scan_input_axes", [0] * attributes["num_scan_inputs"])
        self.loops += 1
        inside = dict(names)
        for k, value in enumerate(body.input):
            flat = self._define(inside, value.name, inner)
            if k < n_states:
                self._emit("Enter", [given[k]], [flat])
            else:
                self._emit("Unstack", [given[k]], [flat], axis=axes[k - n_states])
        made = self._graph(body, inside, inner)
        outs = [made.get(o.name, o.name) for o in body.output]
        out_axes = attributes.get("scan_output_axes", [0] * len(outs))
        rounds = {"along": given[n_states], "along_axis": axes[0]}
        self._leave(node, names, scope, outs, given[:n_states], [0] * n_states + list(out_axes), **rounds)
        self.loops -= 1

    def _leave(
        self,
        node: onnx.NodeProto,
        names: dict[str, str],
        scope: str,
        outs: Sequence[str],
        starts: Sequence[str],
        axes: Sequence[int],
        **rounds: int | str,
    ) -> None:
        """Join carried values with what they started from, and stack the rest; `rounds` says how many there are."""
        for k, out in enumerate(outs):
            name = node.output[k] if k < len(node.output) else ""
            flat = self._define(names, name, scope) if name else self._define({}, f"{node.name}/unused{k}", scope)
            if k < len(starts):
                self._emit("Join", [out, starts[k]], [flat])
            else:
                self._emit("Stack", [out], [flat], axis=axes[k], **rounds)

    def _call(self, node: onnx.NodeProto, names: dict[str, str], inner: str, scope: str) -> None:
        function = self.functions[(node.domain, node.op_type)]
        container = self._enter_container()
        self.flat.function_bodies.add(container)
        inside = {n: names.get(v, v) for n, v in zip(function.input, node.input, strict=False)}
        inside |= dict.fromkeys(function.input[len(node.input) :], "")
        attributes = {a.name: a for a in function.attribute_proto} | {a.name: a for a in node.attribute}
        produced = {o for n in function.node for o in n.output}
        for name, inner_name in zip(node.output, function.output, strict=False):
            if inner_name in produced and name:
                inside[inner_name] = self._define(names, name, scope)
        before, self.attributes = self.attributes, attributes
        self._function_nodes(function, container, inside, inner)
        self.attributes = before
        for name, inner_name in zip(node.output, function.output, strict=False):
            if name and inner_name not in produced:
                self._emit("Join", [inside[inner_name]], [self._define(names, name, scope)])
        self.flat.flat_names[container] = inside

    def _function_nodes(
        self,
        function: onnx.FunctionProto,
        container: int,
        inside: dict[str, str],
        inner: str,
    ) -> None:
        """Lay open a function's nodes; outputs of the call have their names already."""
        known = dict(inside)
        for index, node in enumerate(function.node):
            nested = f"{inner}/{node.name or node.output[0]}"
            if is_open(node) or (node.domain, node.op_type) in self.functions:
                if is_open(node):
                    getattr(self, f"_{node.op_type.lower()}")(node, inside, nested, inner)
                else:
                    self._call(node, inside, nested, inner)
                for name in node.output:
                    if name in known:
                        self._emit("Join", [inside[name]], [known[name]])
                        inside[name] = known[name]
                continue
            inputs = [inside.get(n, n) for n in node.input]
            outputs = [known[n] if n in known else self._define(inside, n, inner) if n else "" for n in node.output]
            self.flat.nodes.append(_renamed(node, inputs, outputs, self.attributes or {}))
            self.flat.places.append((container, index))
            for body in _closed_bodies(node):
                self.flat.captured |= {inside.get(n, n) for n in _reads(body)}


def _renamed(
    node: onnx.NodeProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, onnx.AttributeProto],
) -> onnx.NodeProto:
    """Copy a node with other value names, and with the attributes of the call that it refers to."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    references = [a for a in copy.attribute if a.ref_attr_name]
    if references:
        kept = [a for a in copy.attribute if not a.ref_attr_name]
        for reference in references:
            value = attributes.get(reference.ref_attr_name)
            if value is not None:
                filled = onnx.AttributeProto()
                filled.CopyFrom(value)
                filled.name = reference.name
                kept.append(filled)
        rows = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del copy.attribute[:]
        copy.attribute.extend(rows)
    return copy


def _closed_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _reads(graph: onnx.GraphProto) -> set[str]:
    """Names that a body, or a body inside it, reads or gives back."""
    names = {o.name for o in graph.output}
    stack = [graph]
    while stack:
        body = stack.pop()
        for node in body.node:
            names.update(node.input)
            for inner in _closed_bodies(node):
                names.update(o.name for o in inner.output)
                stack.append(inner)
    return names
