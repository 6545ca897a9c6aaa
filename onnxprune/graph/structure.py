"""What the nodes of a model must say for it to be a graph at all.

onnx's checker knows what every operator takes; it is run on a copy without weights, in which nothing is left that
onnxruntime does not mind: nodes in another order, operators that onnxruntime knows and onnx does not, initializers that
old versions wanted to be inputs. What it does not look at comes before: cycles, functions that call themselves, bodies
that do not fit the node they lie in, names that are no text.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import defs, external_data_helper

from ..errors import ModelError
from .sizes import Body, bodies_of, field_entries, graphs_in, is_known_type, n_elements, tensors_in

MAX_NODES = 1_000_000
MAX_DEPTH = 32
MAX_VERSION = 1_000_000
_STANDARD = ("", "ai.onnx")
_SMALL = 64
_STRANGE = "onnxprune.strange"
Function = tuple[str, str, str]


def refuse_broken(proto: onnx.ModelProto, label: str) -> None:
    """Raise `ModelError` with the reason why onnxruntime could not run a model either."""
    try:
        _bounded(proto)
        _names_are_text(proto)
        _calls_end(proto)
        for body, _ in bodies_of(proto):
            for node in body.node:
                _gives_something(node)
                _numbers_fit(node)
                _equation_reads(node)
                _body_fits(node)
        _types_known(proto.graph)
        bare = _bare(proto)
        for body, _ in bodies_of(bare):
            _put_in_order(body)
        onnx.checker.check_model(bare.SerializeToString())
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from None
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise ModelError(f"{label}: is not valid: {_first_line(error)}") from error


def _bounded(proto: onnx.ModelProto) -> None:
    for opset in (o for holder in (proto, *proto.functions) for o in holder.opset_import):
        if not 0 < opset.version <= MAX_VERSION:
            raise ModelError(f"imports version {opset.version} of the operator set {opset.domain!r}")
    n_nodes = 0
    for body, depth in bodies_of(proto):
        n_nodes += len(body.node)
        if depth > MAX_DEPTH:
            raise ModelError(f"graphs inside nodes are nested more than {MAX_DEPTH} deep")
        if n_nodes > MAX_NODES:
            raise ModelError(f"holds more than {MAX_NODES} nodes")


def _names_are_text(proto: onnx.ModelProto) -> None:
    """Refuse names that are not UTF-8, which protobuf hands over as bytes."""
    names: list[str] = [name for o in proto.opset_import for name in (o.domain,)]
    names += [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    for body, _ in bodies_of(proto):
        names.append(body.name)
        if isinstance(body, onnx.GraphProto):
            names += [value.name for value in (*body.input, *body.output, *body.value_info)]
            names += [tensor.name for tensor in body.initializer]
            names += [name for s in body.sparse_initializer for name in (s.values.name, s.indices.name)]
            names += [name for value in (*body.input, *body.output, *body.value_info) for name in _symbols(value.type)]
        else:
            names += [body.domain, body.overload, *body.input, *body.output, *body.attribute]
        for node in body.node:
            names += [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
            for attribute in node.attribute:
                names += [attribute.name, attribute.ref_attr_name, *(t.name for t in tensors_in(attribute))]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"the name {name!r} is not UTF-8 text")
        if "\0" in name:
            raise ModelError(f"the name {name!r} holds a zero character")


def _symbols(kind: onnx.TypeProto) -> Iterator[str]:
    return (dim.dim_param for tensor in _tensor_types(kind) for dim in tensor.shape.dim)


def _tensor_types(kind: onnx.TypeProto) -> Iterator[onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor]:
    """List the tensor types inside a type."""
    waiting = [kind]
    while waiting:
        t = waiting.pop()
        which = t.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            yield getattr(t, which)
        elif which == "map_type":
            waiting.append(t.map_type.value_type)
        elif which in ("sequence_type", "optional_type"):
            waiting.append(getattr(t, which).elem_type)


def _types_known(graph: onnx.GraphProto) -> None:
    """Refuse inputs and outputs of no known type."""
    for value in (*graph.input, *graph.output):
        for tensor in _tensor_types(value.type):
            if not is_known_type(tensor.elem_type):
                raise ModelError(f"{value.name!r} has the unknown type {tensor.elem_type}")


# --- functions and bodies ---


def _key(node: onnx.NodeProto) -> Function:
    return node.domain, node.op_type, node.overload


def _calls_end(proto: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, and calls that come to more nodes than any model has when laid open."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise ModelError("two functions have the same name")
    for f in proto.functions:
        missing = set(f.output) - set(f.input) - {name for node in f.node for name in node.output}
        if missing:
            raise ModelError(f"function {f.name!r} does not give its output {min(missing)!r}")
    calls = {key: [c for c in _called(f) if c in functions] for key, f in functions.items()}
    own = {key: sum(1 for _ in _called(f)) for key, f in functions.items()}
    size: dict[Function, int] = {}
    depth: dict[Function, int] = {}
    for key in _callees_first(calls):
        size[key] = own[key] + sum(size[c] for c in calls[key])
        depth[key] = 1 + max((depth[c] for c in calls[key]), default=0)
    total = sum(size.get(key, 1) for key in _called(proto.graph))
    if max([total, *size.values()]) > MAX_NODES:
        raise ModelError(f"its functions come to more than {MAX_NODES} nodes when laid open")
    if max(depth.values(), default=0) > MAX_DEPTH:
        raise ModelError(f"its functions call each other more than {MAX_DEPTH} deep")


def _called(body: Body) -> Iterator[Function]:
    """Give what every node of a body, and of the bodies inside it, would call."""
    waiting: list[Body] = [body]
    while waiting:
        for node in waiting.pop().node:
            yield _key(node)
            waiting += [graph for attribute in node.attribute for graph in graphs_in(attribute)]


def _callees_first(calls: dict[Function, list[Function]]) -> list[Function]:
    """Order functions so that each comes after those it calls. Source: Kahn's algorithm."""
    waits = {key: set(callees) for key, callees in calls.items()}
    callers: dict[Function, list[Function]] = {key: [] for key in calls}
    for key, callees in waits.items():
        for callee in callees:
            callers[callee].append(key)
    ready = [key for key, callees in waits.items() if not callees]
    ordered: list[Function] = []
    while ready:
        done = ready.pop()
        ordered.append(done)
        for caller in callers[done]:
            waits[caller].discard(done)
            if not waits[caller]:
                ready.append(caller)
    if len(ordered) != len(calls):
        stuck = sorted(key[1] for key in calls if key not in ordered)
        raise ModelError(f"function {stuck[0]!r} calls itself")
    return ordered


def _gives_something(node: onnx.NodeProto) -> None:
    if not any(node.output):
        raise ModelError(f"node {node.name!r} ({node.op_type}) gives nothing")


_FLAGS = frozenset({"keepdims", "noop_with_empty_axes", "allowzero", "select_last_index"})
_COUNTS = frozenset({"group", "num_groups", "num_heads", "hidden_size", "blocksize", "num_outputs"})
_WIDE = frozenset({"value_int", "start", "end", "seed"})


def _numbers_fit(node: onnx.NodeProto) -> None:
    """Refuse integers that readers understand differently: beyond 32 bits, flags beside 0 and 1, counts below 1."""
    if node.domain not in _STANDARD:
        return
    for attribute in node.attribute:
        if attribute.type != onnx.AttributeProto.INT or attribute.ref_attr_name:
            continue
        name, i = attribute.name, attribute.i
        strange = (name in _FLAGS and i not in (0, 1)) or (name in _COUNTS and i < 1)
        if strange or (name not in _WIDE and not -(2**31) <= i < 2**31):
            raise ModelError(f"{attribute.name} of node {node.name!r} ({node.op_type}) is {attribute.i}")


_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def _equation_reads(node: onnx.NodeProto) -> None:
    """Refuse an Einsum whose terms hold more than letters and one ellipsis: onnx never comes to an end of them.

    Source: Einsum, opset 12.
    """
    if node.domain not in _STANDARD or node.op_type != "Einsum":
        return
    for attribute in node.attribute:
        if attribute.name == "equation" and not attribute.ref_attr_name:
            equation = attribute.s.decode(errors="replace")
            terms = re.split("->|,", equation.replace(" ", ""))
            if not all(map(_TERM.fullmatch, terms)):
                raise ModelError(
                    f"the equation of node {node.name!r} (Einsum) is {equation!r}: letters and '...' are read"
                )


def _body_fits(node: onnx.NodeProto) -> None:
    """Compare what If, Loop and Scan give their bodies with what these take."""
    if node.domain not in _STANDARD or node.op_type not in ("If", "Loop", "Scan"):
        return
    where = f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"
    graphs = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}
    if node.op_type == "If":
        if set(graphs) != {"then_branch", "else_branch"}:
            raise ModelError(f"{where}: has no two branches")
        fits = all(not g.input and len(g.output) == len(node.output) for g in graphs.values())
        fits = fits and len(node.input) == 1
    else:
        body = graphs.get("body")
        if body is None:
            raise ModelError(f"{where}: has no body")
        more = 1 if node.op_type == "Loop" else 0
        fits = len(body.input) == len(node.input) and len(body.output) == len(node.output) + more
        fits = fits and (len(node.input) >= 2 if more else _scans_fit(node))
    if not fits:
        raise ModelError(f"{where}: what it gives and takes does not fit its body")


def _scans_fit(node: onnx.NodeProto) -> bool:
    found = {a.name: a for a in node.attribute}
    if "num_scan_inputs" not in found or found["num_scan_inputs"].type != onnx.AttributeProto.INT:
        return False
    n = found["num_scan_inputs"].i
    if not 1 <= n <= len(node.input):
        return False
    n_states = len(node.input) - n
    wanted = {"scan_input": n, "scan_output": len(node.output) - n_states}
    lists = {f"{name}_{what}": size for name, size in wanted.items() for what in ("axes", "directions")}
    return all(name not in found or len(found[name].ints) == size for name, size in lists.items())


# --- order ---


def _put_in_order(body: Body) -> None:
    """Sort the nodes of a copy so that each comes after what it reads."""
    order = running_order(body.node)
    if order is not None:
        nodes = [onnx.NodeProto.FromString(body.node[k].SerializeToString()) for k in order]
        del body.node[:]
        body.node.extend(nodes)


def running_order(nodes: Sequence[onnx.NodeProto]) -> list[int] | None:
    """Give an order in which each node comes after what it reads, None where they are in one already.

    Raises `ModelError` for a value that two nodes give, and for a node that waits for its own result.
    """
    made_by = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    if len(made_by) < sum(1 for node in nodes for name in node.output if name):
        twice = next(n for k, node in enumerate(nodes) for n in node.output if n and made_by[n] != k)
        raise ModelError(f"the value {twice!r} is given by two nodes")
    waits = [{made_by[name] for name in _reads(node) if name in made_by} for node in nodes]
    if all(not w or max(w) < k for k, w in enumerate(waits)):
        return None
    readers: list[list[int]] = [[] for _ in waits]
    for k, makers in enumerate(waits):
        for maker in makers:
            readers[maker].append(k)
    ready = [k for k, makers in enumerate(waits) if not makers]
    order: list[int] = []
    while ready:
        k = heapq.heappop(ready)
        order.append(k)
        for reader in readers[k]:
            waits[reader].discard(k)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) != len(waits):
        done = set(order)
        stuck = next(node for k, node in enumerate(nodes) if k not in done)
        raise ModelError(f"node {stuck.name or list(stuck.output)!r} waits for its own result")
    return order


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node, or a body inside it, reads."""
    names = {name for name in node.input if name}
    waiting = [graph for attribute in node.attribute for graph in graphs_in(attribute)]
    while waiting:
        graph = waiting.pop()
        names.update(value.name for value in graph.output)
        for inner in graph.node:
            names.update(name for name in inner.input if name)
            waiting += [g for attribute in inner.attribute for g in graphs_in(attribute)]
    return names


# --- the copy that is checked ---


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without weights, and without what the checker refuses and onnxruntime runs."""
    bare = onnx.ModelProto()
    # Before version 4 an initializer had to be an input as well; no runtime insists.
    bare.ir_version = max(proto.ir_version, 4) if proto.ir_version else 0
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    bare.metadata_props.extend(proto.metadata_props)
    _copy_graph(bare.graph, proto.graph)
    own = {(f.domain, f.name) for f in bare.functions}
    for body, _ in bodies_of(bare):
        imports = body.opset_import if isinstance(body, onnx.FunctionProto) and body.opset_import else bare.opset_import
        versions = {o.domain: o.version for o in imports}
        if isinstance(body, onnx.GraphProto):
            _outputs_made(body)
            _emptied(body.initializer)
        for node in body.node:
            for attribute in node.attribute:
                _emptied(tensors_in(attribute))
            if (node.domain, node.op_type) not in own and not _is_known(node, versions):
                node.domain = _STRANGE
    bare.opset_import.add(domain=_STRANGE, version=1)
    for function in bare.functions:
        function.opset_import.add(domain=_STRANGE, version=1)
    return bare


def _copy_graph(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Copy a graph, of its weights no more than names and types."""
    graph.name = source.name or "graph"
    for part in ("node", "input", "output", "value_info"):
        getattr(graph, part).extend(getattr(source, part))
    for value in (*graph.input, *graph.output):
        for kind in _tensor_types(value.type):
            kind.shape.SetInParent()  # of any rank
    for tensor in source.initializer:
        if _is_small(tensor):
            graph.initializer.append(tensor)
        else:
            _declare(graph.initializer.add(), tensor.name, tensor.data_type)
    for sparse in source.sparse_initializer:
        if _is_small(sparse.values) and _is_small(sparse.indices):
            graph.sparse_initializer.append(sparse)
        else:
            _declare(graph.initializer.add(), sparse.values.name, sparse.values.data_type)


def _outputs_made(graph: onnx.GraphProto) -> None:
    """Have a node make every output, where a graph passes on what it was given."""
    made = {name for node in graph.node for name in node.output}
    for k, value in enumerate(graph.output):
        if value.name not in made:
            graph.node.add(op_type="Pass", domain=_STRANGE, input=[value.name], output=[f"{value.name}/{k}/passed"])
            value.name = graph.node[-1].output[0]


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Say whether a tensor is small, and has its data."""
    if external_data_helper.uses_external_data(tensor) or n_elements(tensor) > _SMALL:
        return False
    return tensor.HasField("raw_data") or len(getattr(tensor, field_entries(tensor)[0])) > 0


def _emptied(tensors: Iterable[onnx.TensorProto]) -> None:
    for tensor in tensors:
        if not _is_small(tensor):
            name, kind = tensor.name, tensor.data_type
            tensor.Clear()
            _declare(tensor, name, kind)


def _declare(tensor: onnx.TensorProto, name: str, data_type: int) -> None:
    """Make a tensor without elements."""
    tensor.name, tensor.data_type = name, data_type
    tensor.dims.append(0)
    if data_type != onnx.TensorProto.STRING:
        tensor.raw_data = b""


def _is_known(node: onnx.NodeProto, versions: dict[str, int]) -> bool:
    """Say whether onnx has a schema for a node's operator at the version that is imported, and stands by it.

    The checker refuses what is deprecated, such as GroupNormalization of version 18, and onnxruntime runs it.
    """
    domain = "" if node.domain in _STANDARD else node.domain
    version = versions.get(domain, versions.get("ai.onnx", 0) if not domain else 0)
    if version <= 0 or not _is_onnx_domain(domain):
        return True
    return defs.has(node.op_type, version, domain) and not defs.get_schema(node.op_type, version, domain).deprecated


def _is_onnx_domain(domain: str) -> bool:
    return domain in ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview")


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
