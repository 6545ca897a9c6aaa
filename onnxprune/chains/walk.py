"""Follow one compiled pattern through a graph, from one start node."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx_graphsurgeon as gs

from onnxprune.errors import OptionError

from .graphview import GraphView, operator_name
from .program import AtOutput, Close, Done, Fan, Fork, Instruction, Open, PathEnd, Take

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Steps walked from one start node before a pattern is refused as too loose.
LIMIT = 100_000


class End(NamedTuple):
    """Values of which one has to enter the next node, by input `slot` unless that is None."""

    values: tuple[gs.Tensor, ...]
    slot: int | None = None


class Pending(NamedTuple):
    """A `Fan` being walked: where it starts, which paths are left, and where those already walked have ended."""

    fan: Fan
    origin: gs.Tensor
    path: int
    ends: tuple[End, ...]


class State(NamedTuple):
    """How far a walk has come; `front` is None before the first node."""

    at: Instruction
    front: tuple[End, ...] | None
    nodes: tuple[gs.Node, ...] = ()
    skipped: frozenset[int] = frozenset()
    core: tuple[int, ...] = ()
    opened: tuple[tuple[str | int, int], ...] = ()
    spans: tuple[tuple[str | int, int, int], ...] = ()
    pending: tuple[Pending, ...] = ()


class Walk(NamedTuple):
    """One way to match: nodes in path order, and what is known about their positions.

    `skipped` belong to no step, `core` to steps that are not optional; `spans` are (label, first, after last).
    """

    nodes: tuple[gs.Node, ...]
    skipped: frozenset[int]
    core: tuple[int, ...]
    spans: tuple[tuple[str | int, int, int], ...]


def walks(view: GraphView, program: Instruction, start: gs.Node, through: tuple[str, ...], name: str) -> Iterator[Walk]:
    """Give every way in which `program` matches with `start` as its first node, or as one its first value leads to.

    Depth first with an explicit stack, in graph order. Raises `OptionError` after `LIMIT` steps.
    """
    stack = [State(program, None)]
    for _ in range(LIMIT):
        if not stack:
            return
        state = stack.pop()
        if isinstance(state.at, Done):
            if state.nodes:
                yield Walk(state.nodes, state.skipped, state.core, state.spans)
            continue
        stack.extend(reversed(list(_next(view, state, start, through))))
    where = start.name or start.op
    raise OptionError(
        f"the pattern {name!r} has more than {LIMIT} ways to go on from node {where!r}; "
        "lower the max of its Any or Repeat steps, or name an operator"
    )


def _next(view: GraphView, state: State, start: gs.Node, through: tuple[str, ...]) -> Iterator[State]:
    match state.at:
        case Take() as take:
            yield from _taken(view, state, start, take)
            yield from _skipping(view, state, through)
        case Fork(ways=ways, needs=needs):
            readers = _reading_operators(view, state, through)
            for way, need in zip(ways, needs, strict=True):
                if readers is None or all(not readers.isdisjoint(names) for names in need):
                    yield state._replace(at=way)
        case Open(label=label, then=then):
            yield state._replace(at=then, opened=(*state.opened, (label, len(state.nodes))))
        case Close(then=then):
            label, first = state.opened[-1]
            span = (label, first, len(state.nodes))
            yield state._replace(at=then, opened=state.opened[:-1], spans=(*state.spans, span))
        case AtOutput(then=then):
            values = [value for end in state.front or () for value in end.values]
            if any(id(value) in view.output_ids for value in values):
                yield state._replace(at=then)
            yield from _skipping(view, state, through)
        case Fan() as fan:
            yield from _skipping(view, state, through)
            for origin in _origins(state, start):
                begun = Pending(fan, origin, 0, ())
                yield state._replace(at=fan.paths[0], front=(End((origin,)),), pending=(*state.pending, begun))
        case PathEnd():
            yield _path_ended(state)


def _reading_operators(view: GraphView, state: State, through: tuple[str, ...]) -> frozenset[str] | None:
    """List the operators that the next node can have; None where nothing is walked yet."""
    if state.front is None:
        return None
    names: set[str] = set()
    todo = list(state.front[0].values)
    while todo:
        for node, _ in view.readers(todo.pop()):
            names.add(operator_name(node))
            if operator_name(node) in through:
                todo.extend(node.outputs)
    return frozenset(names)


def _origins(state: State, start: gs.Node) -> list[gs.Tensor]:
    """Values that a Fan may start from: outputs of the last node, or at the very start what `start` reads."""
    if state.front is None:
        values = [value for value in start.inputs if isinstance(value, gs.Variable) and not value.is_empty()]
        return list({id(value): value for value in values}.values())
    return list(state.front[0].values) if len(state.front) == 1 else []


def _path_ended(state: State) -> State:
    fan, origin, path, ends = state.pending[-1]
    slot = path if fan.ordered else None
    ends = (*ends, *(end._replace(slot=slot) for end in state.front or ()))
    path += 1
    if path == len(fan.paths):
        return state._replace(at=fan.then, front=ends, pending=state.pending[:-1])
    pending = (*state.pending[:-1], Pending(fan, origin, path, ends))
    return state._replace(at=fan.paths[path], front=(End((origin,)),), pending=pending)


def _taken(view: GraphView, state: State, start: gs.Node, take: Take) -> Iterator[State]:
    op = take.op
    for node in [start] if state.front is None else _meeting(view, state.front):
        if op is not None and operator_name(node) not in op.names:
            continue
        if any(node is taken for taken in state.nodes):
            continue
        wanted = None if op is None else op.input
        if not (_starts_at(node, wanted) if state.front is None else _enter(view, state.front, node, wanted)):
            continue
        if op is not None and op.where is not None and not op.where(node):
            continue
        outputs = tuple(node.outputs)
        if op is not None and op.output is not None:
            outputs = outputs[op.output : op.output + 1]
        marked = (*state.core, len(state.nodes)) if take.core else state.core
        yield state._replace(at=take.then, front=(End(outputs),), nodes=(*state.nodes, node), core=marked)


def _skipping(view: GraphView, state: State, through: tuple[str, ...]) -> Iterator[State]:
    """Let one end of the front pass a node that leaves every axis in place."""
    front = (state.front or ()) if state.nodes and through else ()
    for index, end in enumerate(front):
        for node in _meeting(view, (end,)):
            if operator_name(node) in through and not any(node is taken for taken in state.nodes):
                if not any(0 in view.slots(value, node) for value in end.values):
                    continue
                moved = (*front[:index], End(tuple(node.outputs), end.slot), *front[index + 1 :])
                skipped = state.skipped | {len(state.nodes)}
                yield state._replace(front=moved, nodes=(*state.nodes, node), skipped=skipped)


def _meeting(view: GraphView, front: tuple[End, ...]) -> list[gs.Node]:
    """Nodes that read the first end of the front, in graph order."""
    nodes = {id(node): node for value in front[0].values for node, _ in view.readers(value)}
    return sorted(nodes.values(), key=view.position)


def _starts_at(node: gs.Node, wanted: int | None) -> bool:
    return wanted is None or (len(node.inputs) > wanted and isinstance(node.inputs[wanted], gs.Variable))


def _enter(view: GraphView, front: tuple[End, ...], node: gs.Node, wanted: int | None) -> bool:
    """Say whether every end of the front enters `node` by an input of its own, the first one by `wanted`."""
    taken: list[tuple[int, ...]] = [()]
    for index, end in enumerate(front):
        required = end.slot if end.slot is not None else wanted if index == 0 else None
        slots = [slot for value in end.values for slot in view.slots(value, node)]
        slots = [slot for slot in slots if required is None or slot == required]
        taken = [(*used, slot) for used in taken for slot in slots if slot not in used]
    return bool(taken)
