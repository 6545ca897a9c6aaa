"""What the matcher asks of a graph, indexed once: who reads a value, where a node stands, what leaves the graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import ModelError, OptionError

if TYPE_CHECKING:
    from typing import Any, Protocol

    class HasGraph(Protocol):
        """Anything that holds a graphsurgeon graph as `.graph`."""

        graph: gs.Graph


Source: TypeAlias = Union[gs.Graph, onnx.ModelProto, str, "os.PathLike[str]", "HasGraph"]


def as_graph(source: Source) -> gs.Graph:
    """Give the graphsurgeon graph of a model, a path or an object that holds one; files are read without their weights.

    Raises `ModelError` for a file that is no model and `OptionError` for anything else.
    """
    if isinstance(source, gs.Graph):
        return source
    if isinstance(source, (str, os.PathLike)):
        source = _read(Path(source))
    if isinstance(source, onnx.ModelProto):
        return gs.import_onnx(source)
    graph: Any = getattr(source, "graph", None)
    if isinstance(graph, gs.Graph):
        return graph
    raise OptionError(
        "match takes a graphsurgeon Graph, an onnx.ModelProto, a path or an object with such a graph as `.graph`, "
        f"not {type(source).__name__}"
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ModelError(f"cannot read {path} as an ONNX model: {error}") from error


class GraphView:
    """The nodes of a graph and of the bodies of its If, Loop and Scan nodes, read only.

    A body stands right before the node that holds it. Values are told apart by identity, as graphsurgeon shares them;
    local functions are not looked into, since their weights are arguments.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.nodes: list[gs.Node] = []
        self.output_ids: set[int] = set()
        self.by_operator: dict[str, list[gs.Node]] = {}
        self._position: dict[int, int] = {}
        self._readers: dict[int, dict[int, tuple[gs.Node, list[int]]]] = {}
        todo: list[gs.Graph | gs.Node] = [graph]
        while todo:
            item = todo.pop()
            if isinstance(item, gs.Graph):
                self.output_ids.update(id(value) for value in item.outputs)
                for node in reversed(item.nodes):
                    todo.append(node)
                    todo.extend(reversed([body for body in node.attrs.values() if isinstance(body, gs.Graph)]))
            else:
                self._add(item)

    def _add(self, node: gs.Node) -> None:
        self._position[id(node)] = len(self.nodes)
        self.nodes.append(node)
        self.by_operator.setdefault(operator_name(node), []).append(node)
        for slot, value in enumerate(node.inputs):
            if not value.is_empty():
                self._readers.setdefault(id(value), {}).setdefault(id(node), (node, []))[1].append(slot)

    def position(self, node: gs.Node) -> int:
        """Give the place of `node` in graph order."""
        return self._position[id(node)]

    def readers(self, value: gs.Tensor) -> list[tuple[gs.Node, list[int]]]:
        """List the nodes that read `value`, in graph order, each with the input slots it reads it by."""
        return list(self._readers.get(id(value), {}).values())

    def slots(self, value: gs.Tensor, node: gs.Node) -> list[int]:
        """List the input slots by which `node` reads `value`."""
        return self._readers.get(id(value), {}).get(id(node), (node, []))[1]


def operator_name(node: gs.Node) -> str:
    """Give `Conv` for an operator of ONNX and `domain::Op` for any other."""
    domain = node.domain or ""
    return node.op if domain in ("", "ai.onnx") else f"{domain}::{node.op}"
