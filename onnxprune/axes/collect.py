"""Run the rules: from a graph to relations between its axes.

Every value gets its axes, every node's rule states its relations, and whatever is left unsaid is frozen: an axis that
a rule does not mention, everything around an operator without a rule, and the graph's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from ..errors import RuleDefect
from ..graph.flatten import DOMAIN
from ..graph.model import Model
from ..graph.shapes import LENGTHS, Shapes, concrete_shapes, disbelieve
from ..graph.view import View, skeleton, view
from ..registry import Registry
from .op import Op, Unruly, Value
from .probe import Unasked, is_wanted, measure, probe, state
from .relations import Axis, Binding, Codes, Freeze, Relation
from .trials import Facts

Rule = Callable[[Op], None]
GRAPH = -1
MAX_MEASURES = 8
KEEPS_VALUES = frozenset(
    ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
)

op_rules: Registry[Rule] = Registry("operator rule")


def op_rule(*op_types: str, domain: str = "", replace: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators: a function of one `Op` that states relations between its axes.

    `domain` is the operators' domain ("" for the standard one). A user's rule for a registered operator needs
    `replace=True`.
    """
    return op_rules.register(*(rule_name(domain, t) for t in op_types), replace=replace)


def rule_name(domain: str | None, op_type: str) -> str:
    """Spell an operator with its domain, as the registry keeps it."""
    return op_type if domain in (None, "", "ai.onnx") else f"{domain}::{op_type}"


class Collection:
    """Everything the nodes of one graph say about its axes.

    `sizes[i]` is the size of axis i; `owner[i]` the value and position it belongs to, None for a local axis.
    Relations are kept in node order; node index -1 stands for the graph itself. `pins` are inputs (node, slot) that
    read a size as a plain number, such as an attention's scale, and keep its present value. `probed` are nodes without
    a rule whose relations were found by trying them. `positions` are values that hold positions along an axis, by name,
    `followed` the inputs (node, slot) whose rule has the axis they are used along follow. `least` are (axis, count): so
    many indices of it stay.
    """

    def __init__(
        self,
        model: Model,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        lengths: Sequence[int | None] = (None, *LENGTHS),
    ) -> None:
        self.model = model
        bare = skeleton(model.skeleton, model.flat)
        disbelieve(model.flat, bare, input_shapes)
        self.view: View = view(model, bare)
        self.shapes: Shapes = concrete_shapes(model.flat, bare, input_shapes, lengths)
        self._measure_outputs(bare, input_shapes)
        self.opset = max((o.version for o in model.skeleton.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.sizes: list[int] = []
        self.owner: list[tuple[Value, int] | None] = []
        self.values: dict[str, Value | None] = {}
        self.parameters: list[Value] = []
        self.relations: list[Relation] = []
        self.bindings: list[Binding] = []
        self.size_slots: set[tuple[int, int]] = set()
        self.pins: list[tuple[int, int]] = []
        self.roles: dict[int, str] = {}
        self.hints: dict[int, list[tuple[str, int]]] = {}
        self.least: list[tuple[int, int]] = []
        self.zero_modes: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.macs: list[tuple[int, tuple[int, ...]]] = []
        self.codes: dict[str, Codes] = {}
        self.ops: list[Op] = []
        self.without_rule: dict[str, int] = {}
        self.probed: dict[int, Facts] = {}
        self.positions: dict[str, Axis] = {}
        self.followed: set[tuple[int, int]] = set()
        self._uses: dict[str, int] = {}
        self.captured = model.flat.captured | {o.name for o in model.skeleton.graph.output}
        self._run()

    # --- used by Op ---

    def add(self, relation: Relation) -> None:
        """File a relation."""
        self.relations.append(relation)

    def bind(self, binding: Binding) -> None:
        """File a binding; an input slot that is bound is understood to carry sizes."""
        self.bindings.append(binding)
        if isinstance(binding.where, int):
            self.size_slots.add((binding.node, binding.where))

    def new_axes(self, sizes: Sequence[int]) -> list[Axis]:
        """Number new axes that belong to no value."""
        axes = [Axis(len(self.sizes) + k, d) for k, d in enumerate(sizes)]
        self.sizes.extend(sizes)
        self.owner.extend([None] * len(sizes))
        return axes

    # --- values ---

    def _value(self, name: str, constant: bool, initializer: bool) -> Value | None:
        shape = self.shapes.sizes.get(name)
        if shape is None:
            return None
        value = Value(name, shape, len(self.sizes), initializer, constant)
        self.sizes.extend(shape)
        self.owner.extend((value, k) for k in range(len(shape)))
        if initializer:
            self.parameters.append(value)
        return value

    def _is_weight(self, tensor: gs.Tensor) -> bool:
        return isinstance(tensor, gs.Constant) or tensor.name in self.model.tensors

    def _input(self, tensor: gs.Tensor, node: int, slot: int) -> Value | None:
        name = tensor.name
        if self._is_weight(tensor):
            shape = self.shapes.sizes.get(name) or ()
            if self._uses.get(name, 0) > 1 and sum(d > 1 for d in shape) <= 1 and name not in self._one_value:
                value = self._weight(name)
                if value is not None:
                    value.use = (node, slot)
                return value
            if name not in self.values:
                self.values[name] = self._weight(name)
        elif name not in self.values:
            made_here = not tensor.inputs or tensor.inputs[0].op == "Constant"
            self.values[name] = self._value(name, made_here, False)
            self._freeze_value(self.values[name], "a constant that cannot be cut", GRAPH)
        return self.values[name]

    def _weight(self, name: str) -> Value | None:
        value = self._value(name, True, name in self.model.tensors)
        if name not in self.model.tensors:
            self._freeze_value(value, "a sparse constant, which cannot be cut", GRAPH)
        return value

    # --- running ---

    def _run(self) -> None:
        graph = self.view.graph
        for node in graph.nodes:
            for t in node.inputs:
                if self._is_weight(t):
                    self._uses[t.name] = self._uses.get(t.name, 0) + 1
        self._one_value = self.captured | self._read_in_functions()
        for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
            for t in tensors:
                if t.name not in self.values:
                    is_weight = self._is_weight(t)
                    self.values[t.name] = self._value(t.name, is_weight, is_weight)
                self._freeze_value(self.values[t.name], f"graph {what} {t.name!r}", GRAPH)
        stacks = [n for n in graph.nodes if n.op == "Stack" and n.domain == DOMAIN]
        self._rounds_are_guessed = not all(map(self._knows_rounds, stacks))
        self._tried = self._try_nodes_without_rule()
        for index, node in enumerate(graph.nodes):
            self._run_node(index, node)
        for name in sorted(self.captured):
            self._freeze_value(self.values.get(name), "read inside the body of a control-flow operator", GRAPH)
        self._freeze_leaked_sizes()
        self._freeze_positions()

    def _read_in_functions(self) -> set[str]:
        """Names that functions or places without a node read: their uses cannot be told apart by renaming an input."""
        inside = self.model.flat.function_bodies
        pairs = zip(self.view.graph.nodes, self.view.places, strict=True)
        return {t.name for node, place in pairs if place is None or place[0] in inside for t in node.inputs}

    def _run_node(self, index: int, node: gs.Node) -> None:
        inputs = [self._input(t, index, k) if t.name else None for k, t in enumerate(node.inputs)]
        constant = all(self._is_weight(t) or not t.name or self._is_constant(t.name) for t in node.inputs)
        outputs: list[Value | None] = []
        for t in node.outputs if node.op != "Constant" else ():
            value = self.values.get(t.name) if t.name else None
            if t.name and value is None:
                value = self.values[t.name] = self._value(t.name, constant and bool(node.inputs), False)
            outputs.append(value)
        op = Op(self, index, node, inputs, outputs)
        self.ops.append(op)
        if node.op == "Constant":
            return
        name = rule_name(node.domain, node.op)
        rule = op_rules.get(name)
        unknown = [t.name for t, v in self._paired(node, op) if t.name and v is None]
        if rule is None:
            self.without_rule[name] = self.without_rule.get(name, 0) + 1
            self._follow_trial(op, name)
        elif unknown:
            self._freeze_node(op, self._why_unknown(op, unknown[0]))
        elif any(0 in v.shape and v.ndim > 1 for v in [*inputs, *outputs] if v is not None):
            self._freeze_node(op, "a tensor without elements")
        else:
            mark = len(self.relations), len(self.bindings)
            try:
                rule(op)
            except Unruly as reason:
                del self.relations[mark[0] :], self.bindings[mark[1] :]
                self._freeze_node(op, str(reason))
            except (RuleDefect, ArithmeticError, IndexError, ValueError, KeyError, TypeError) as error:
                excuse = self._excuse(index)
                if excuse is None:
                    if isinstance(error, RuleDefect):
                        raise
                    raise RuleDefect(f"the rule for {name!r} fails on node {node.name!r}: {error!r}") from error
                del self.relations[mark[0] :], self.bindings[mark[1] :]
                self._freeze_node(op, f"sizes contradict each other: {excuse}")
            else:
                self._freeze_unmentioned(op)
                self._carry_positions(op)

    def _try_nodes_without_rule(self) -> dict[int, Facts | Unasked]:
        """Try the nodes that no rule covers, all before any is described: they share one process."""
        lone = self._nodes_to_try()
        return dict(zip(lone, probe(self.model, self.shapes, list(lone.values())), strict=True)) if lone else {}

    def _nodes_to_try(self) -> dict[int, onnx.NodeProto]:
        """Give the nodes that no rule covers, by index; none where they are not to be tried."""
        nodes = self.view.graph.nodes
        lone = [k for k, n in enumerate(nodes) if n.op != "Constant" and rule_name(n.domain, n.op) not in op_rules]
        if not lone or not is_wanted():
            return {}
        makes = {name: node for node in self.model.flat.nodes for name in node.output if name}
        return {k: makes[next(t.name for t in nodes[k].outputs if t.name)] for k in lone}

    def _measure_outputs(self, bare: onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None) -> None:
        """Run nodes without a rule whose outputs' shapes nothing tells, in a model whose inputs have fixed sizes.

        What lies behind one of them gets its shape from it, so the next one may be run after that.
        """
        sizes, known = self.shapes.sizes, []
        for _ in range(MAX_MEASURES if not self.shapes.input_shapes and not self.model.flat.varying else 0):
            blind = [n for n in self._nodes_to_try().values() if any(o and sizes.get(o) is None for o in n.output)]
            ready = [n for n in blind if all(sizes.get(i) is not None for i in n.input if i)]
            found = measure(self.model, self.shapes, ready) if ready else []
            if not found:
                return
            known += found
            disbelieve(self.model.flat, bare, input_shapes, known)
            self.shapes = concrete_shapes(self.model.flat, bare, input_shapes)
            sizes = self.shapes.sizes

    def _follow_trial(self, op: Op, name: str) -> None:
        """State what trying a node without a rule showed; without a trial, freeze it."""
        tried = self._tried.get(op.index)
        if isinstance(tried, Facts):
            if tried.ties or tried.sums:
                self.probed[op.index] = tried
            state(op, tried, name)
            self._freeze_unmentioned(op)
        else:
            self._freeze_node(op, f"no rule for {name!r}" + (f"; not tried, {tried.why}" if tried is not None else ""))

    def _excuse(self, index: int) -> str | None:
        """Say why a model may run though the sizes at a node contradict each other, None where it cannot."""
        if self._rounds_are_guessed:
            return "how often a loop runs shows at run time only"
        place = self.view.places[index]
        return "it lies in a body that need not run" if place is not None and place[0] else None

    def _knows_rounds(self, stack: gs.Node) -> bool:
        """Say whether a scanned input or a constant says how many values are stacked."""
        trips = self.shapes.integers.get(str(stack.attrs.get("trips", "")))
        return "along" in stack.attrs or (trips is not None and not trips.depends)

    def _why_unknown(self, op: Op, name: str) -> str:
        sides = [v.shape for v in op.inputs if v is not None]
        if op.node.domain == DOMAIN and len(set(sides)) > 1:
            return f"its sides meet in different shapes, {' and '.join(str(list(s)) for s in dict.fromkeys(sides))}"
        return f"the shape of {name!r} is unknown"

    @staticmethod
    def _paired(node: gs.Node, op: Op) -> list[tuple[gs.Tensor, Value | None]]:
        return [*zip(node.inputs, op.inputs, strict=True), *zip(node.outputs, op.outputs, strict=True)]

    def _is_constant(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and value.constant

    def _freeze_value(self, value: Value | None, why: str, node: int) -> None:
        for axis in value.axes if value is not None else ():
            if axis.size > 1:
                self.add(Freeze(axis.id, why, node))

    def _freeze_node(self, op: Op, why: str) -> None:
        for value in [*op.inputs, *op.outputs]:
            self._freeze_value(value, why, op.index)

    def _freeze_unmentioned(self, op: Op) -> None:
        for value in [*op.inputs, *op.outputs]:
            for axis in value.axes if value is not None else ():
                if axis.size > 1 and axis.id not in op.mentioned:
                    self.add(Freeze(axis.id, op.otherwise, op.index))

    def _freeze_leaked_sizes(self) -> None:
        """Pin sizes that flow into other arithmetic to their present value; freeze those known only at run time."""
        integers = self.shapes.integers
        for op in self.ops:
            if op.node.outputs and all(t.name in integers for t in op.node.outputs):
                continue
            for slot, t in enumerate(op.node.inputs):
                known = integers.get(t.name)
                if known is None or not known.depends or (op.index, slot) in self.size_slots:
                    continue
                runtime = any(self.shapes.is_dynamic(*d) for e in known.items for d in e.dims())
                if not runtime and self.view.places[op.index] is not None:
                    self.pins.append((op.index, slot))
                    continue
                self.freeze_dims(t.name, f"its size is used in arithmetic by {op.node.op} {op.node.name!r}", op.index)
        for t in self.view.graph.outputs:
            if t.name in integers:
                self.freeze_dims(t.name, f"its size is the graph output {t.name!r}", GRAPH)

    def _carry_positions(self, op: Op) -> None:
        """Follow positions through operators that move values and keep them."""
        axis = self.positions.get(op.node.inputs[0].name) if op.node.inputs else None
        if axis is not None and op.node.op in KEEPS_VALUES:
            self.followed.add((op.index, 0))
            self.positions.update((t.name, axis) for t in op.node.outputs if t.name)

    def _freeze_positions(self) -> None:
        """Freeze the axes whose positions someone reads who does not follow them: these would be renumbered.

        These freezes come first, since they are the reason to give where others hold some of an axis.
        """
        given_away = self.captured | {t.name for t in self.view.graph.outputs}
        found = [
            Freeze(self.positions[name].id, f"positions along it are given away as {name!r}", GRAPH)
            for name in sorted(self.positions.keys() & given_away)
        ]
        for op in self.ops if self.positions else ():
            for slot, t in enumerate(op.node.inputs):
                axis = self.positions.get(t.name)
                if axis is not None and (op.index, slot) not in self.followed:
                    found.append(Freeze(axis.id, f"{op.node.op} reads positions along it", op.index))
        self.relations[:0] = found

    def freeze_dims(self, name: str, why: str, node: int, item: int | None = None) -> None:
        """Freeze every axis that a size-carrying tensor, or one element of it, measures."""
        known = self.shapes.integers.get(name)
        items = () if known is None else known.items if item is None else known.items[item : item + 1]
        for dim, k in sorted({d for e in items for d in e.dims()}):
            value = self.values.get(dim)
            if value is not None and value.shape[k] > 1:
                self.add(Freeze(value.axes[k].id, why, node))

    def node_label(self, index: int) -> str:
        """Name a node in messages."""
        if index == GRAPH:
            return "the graph"
        node = self.ops[index].node
        made = next((t.name for t in node.outputs if t.name), "")
        return f"{node.op} {node.name!r}" if node.name else f"{node.op} -> {made!r}"

    def nodes_without_rule(self) -> dict[str, list[str]]:
        """List the operators that no rule covers, with the names of their nodes."""
        ops = ((op, rule_name(op.node.domain, op.node.op)) for op in self.ops)
        return _named((op, name) for op, name in ops if name in self.without_rule)

    def nodes_probed(self) -> dict[str, list[str]]:
        """List those of them of which trials told something."""
        ops = (self.ops[index] for index in self.probed)
        return _named((op, rule_name(op.node.domain, op.node.op)) for op in ops)

    def axis_value(self, axis: int) -> tuple[Value, int] | None:
        """Give the value and position an axis belongs to; None for a local axis."""
        return self.owner[axis]


def _named(ops: Iterable[tuple[Op, str]]) -> dict[str, list[str]]:
    """File nodes under their operators, by name or by what they make."""
    found: dict[str, list[str]] = {}
    for op, name in ops:
        made = next((t.name for t in op.node.outputs if t.name), "?")
        found.setdefault(name, []).append(op.node.name or f"-> {made}")
    return found
