"""`match`: the places of a graph where a chain of nodes occurs.

1. Every edge is followed, also where a value has several readers: a match says that these nodes form the chain, not
   that they are alone in it. `exclusive` asks for the latter: no value inside the match is read outside of it.
2. An Optional or repeated step at either end of a chain takes what it can: a match that another one extends only by
   such steps is left out. Matches may overlap otherwise.
3. The work from one start node is bounded (`walk.LIMIT`), and nothing recurses over the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from onnxprune.errors import OptionError

from .graphview import GraphView, Source, as_graph
from .pattern import Part, Pattern, Step
from .program import compile_pattern, first_operators
from .registry import named_patterns, named_step
from .walk import Walk, walks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_graphsurgeon as gs

#: What `match` looks for: a registered name, a tuple of steps, a `Pattern` or `Part`, or a collection of names.
Wanted: TypeAlias = str | Pattern | Part | tuple[Step, ...] | Collection[str]


@dataclass(frozen=True, eq=False)
class Capture:
    """A named part of a chain (`conv`, `activation`, `activation.silu`) and the nodes that it matched."""

    part: str
    nodes: tuple[gs.Node, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Match:
    """One place where a chain occurs.

    `nodes` are in path order, with the transparent nodes (casts, quantization) that stand between steps; `steps` has
    for every step of the pattern the nodes that it matched, `captures` every named part in path order, outer ones
    first. Matches are equal when they carry the same name and the same nodes of the same graph object.
    """

    name: str
    nodes: tuple[gs.Node, ...]
    steps: tuple[tuple[gs.Node, ...], ...]
    captures: tuple[Capture, ...]

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes; an unnamed node goes by its first output."""
        return tuple(node.name or node.outputs[0].name for node in self.nodes)

    def captured(self, part: str) -> tuple[Capture, ...]:
        """Give the captures of `part`, a class (`activation`) or a variant of one (`activation.silu`)."""
        return tuple(c for c in self.captures if c.part == part or c.part.startswith(f"{part}."))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Match) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return (self.name, *(id(node) for node in self.nodes))

    def __repr__(self) -> str:
        return f"{self.name}: {' -> '.join(self.node_names)}"


def match(graph: Source, pattern: Wanted, *, exclusive: bool | None = None) -> list[Match]:
    """Find every place where `pattern` occurs, in graph order.

    `graph` is a graphsurgeon graph, an onnx.ModelProto, a path, or an object with such a graph as `.graph`; bodies of
    If, Loop and Scan are searched too. `pattern` is a registered name, `"default"`, a tuple of steps, a `Pattern`, or a
    list or set of names. `exclusive`, unless None, overrides the pattern's own setting.
    Raises `UnknownNameError` for a name that nothing is registered under, `OptionError` for a malformed pattern, and
    `ModelError` for a path that holds no model.
    """
    view = GraphView(as_graph(graph))
    found: dict[tuple[str, frozenset[int]], Match] = {}
    for one in _patterns(pattern):
        alone = one.exclusive if exclusive is None else exclusive
        for walk in _search(view, one):
            if not alone or _is_exclusive(view, walk):
                hit = _as_match(one, walk)
                found.setdefault((hit.name, frozenset(map(id, hit.nodes))), hit)
    return sorted(found.values(), key=lambda hit: (sorted(map(view.position, hit.nodes)), hit.name))


def _patterns(wanted: Wanted) -> Iterable[Pattern]:
    if isinstance(wanted, Pattern):
        return (wanted,)
    if isinstance(wanted, str):
        return named_patterns(wanted)
    if isinstance(wanted, Part):
        return (Pattern((wanted,), name=wanted.name),)
    if isinstance(wanted, tuple):
        return (Pattern(wanted),)
    if isinstance(wanted, (set, frozenset, list)):
        return [pattern for name in sorted(set(wanted)) for pattern in named_patterns(name)]
    raise OptionError(f"a pattern is a name, a tuple of steps, a Pattern or a set of names, not {wanted!r}")


def _search(view: GraphView, pattern: Pattern) -> list[Walk]:
    program = compile_pattern(pattern, named_step)
    operators = first_operators(program)
    if operators is None:
        starts = view.nodes
    else:
        starts = sorted((n for name in operators for n in view.by_operator.get(name, ())), key=view.position)
    found: dict[frozenset[int], Walk] = {}
    for start in starts:
        for walk in walks(view, program, start, pattern.through, pattern.name):
            found.setdefault(frozenset(map(id, walk.nodes)), walk)
    return _longest(found)


def _longest(found: dict[frozenset[int], Walk]) -> list[Walk]:
    """Leave out walks that another extends only by nodes of optional steps."""
    by_core: dict[frozenset[int], list[frozenset[int]]] = {}
    for nodes, walk in found.items():
        core = frozenset(id(walk.nodes[index]) for index in walk.core)
        by_core.setdefault(core or nodes, []).append(nodes)
    return [found[nodes] for same in by_core.values() for nodes in same if not any(nodes < other for other in same)]


def _is_exclusive(view: GraphView, walk: Walk) -> bool:
    inside = {id(node) for node in walk.nodes}
    return all(
        id(value) not in view.output_ids and all(id(reader) in inside for reader, _ in view.readers(value))
        for node in walk.nodes[:-1]
        for value in node.outputs
    )


def _as_match(pattern: Pattern, walk: Walk) -> Match:
    steps: list[tuple[gs.Node, ...]] = [()] * len(pattern.steps)
    captures: list[Capture] = []
    name = pattern.name
    for label, first, last in sorted(walk.spans, key=lambda span: (span[1], -span[2])):
        own = tuple(walk.nodes[index] for index in range(first, last) if index not in walk.skipped)
        if isinstance(label, int):
            steps[label] = own
            continue
        captures.append(Capture(label, own))
        kind, _, variant = label.partition(".")
        name = name.replace(f"{{{kind}}}", variant) if variant else name
    return Match(name, walk.nodes, tuple(steps), tuple(captures))
