"""Facts: the constants of a model, run through it node by node without any input.

A zeroed row with a bias is a constant channel; so is whatever elementwise operators, pools, reshapes and per-channel
normalizations make of one. What a node has no transfer for is unknown behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx

from ..axes.analysis import Analysis
from ..axes.collect import rule_name
from ..axes.op import Op, Value
from ..errors import ModelError, RuleDefect
from ..registry import Registry
from .kernels import Kernels, dtype_of
from .known import Array, CanStretch, Known, Mask, known_or_none, nothing
from .moving import Moving, followers

Found = Known | None | list[Known | None]
Transfer = Callable[["Step"], Found]
transfers: Registry[Transfer] = Registry("transfer")


def transfer(*op_types: str, domain: str = "") -> Callable[[Transfer], Transfer]:
    """Register what operators make of what is known of their inputs: a function from `Step` to one `Known` or None.

    A list gives one for each output.
    """
    return transfers.register(*(rule_name(domain, t) for t in op_types))


class Step:
    """One node as its transfer sees it: `x(slot)` is what is known of an input, None for nothing."""

    def __init__(self, facts: Facts, op: Op, node: onnx.NodeProto, first: Known | None = None) -> None:
        self.facts = facts
        self.op = op
        self.node = node
        self._first = first

    def seeing(self, first: Known) -> Step:
        """Give the same step with something else for the first input; what runs along its axes is not said."""
        return Step(self.facts, self.op, self.node, first)

    def x(self, slot: int = 0) -> Known | None:
        """Give what is known of an input."""
        if slot == 0 and self._first is not None:
            return self._first
        value = self.op.inputs[slot] if slot < len(self.op.inputs) else None
        return None if value is None else self.facts.known(value.name)

    def constant(self, slot: int) -> Array | None:
        """Give an input that is a constant of the model, None where it is computed from the graph's inputs."""
        if not self.op.given(slot) or not self.op.x(slot).constant:
            return None
        known = self.x(slot)
        return known.value if known is not None and known.complete else None

    def shape(self, slot: int = 0) -> tuple[int, ...]:
        """Give the full shape of an input."""
        return self.op.x(slot).shape

    def blank(self, slot: int) -> Known | None:
        """Give what is known of an input as a `Known` in any case; None only where its type is none of numpy's."""
        known = self.x(slot)
        if known is not None:
            return known
        dtype = self.facts.dtype(self.op.x(slot).name) or self.facts.usual_dtype
        return None if dtype is None else nothing(self.op.x(slot).ndim, dtype)

    def can_stretch(self, slot: int = 0) -> CanStretch:
        """Say which axes of an input have the same size at every run."""
        fixed, first = partial(self.facts.is_fixed, self.op.x(slot).name), self._first
        return fixed if slot or first is None else lambda axis: first.shape[axis] > 1 and fixed(axis)

    def counts(self, axis: int, slot: int = 0) -> bool:
        """Say whether indices of an input's axis may be counted: one stored in full has to be as long always."""
        known = self.x(slot)
        return known is None or known.shape[axis] == 1 or self.can_stretch(slot)(axis)

    def known(self) -> list[Known | None]:
        """Give what is known of the outputs, by the transfer of the operator; nothing where it has none."""
        rule = transfers.get(rule_name(self.op.node.domain, self.op.node.op))
        found = rule(self) if rule is not None else []
        return found if isinstance(found, list) else [found]

    def run(self, arrays: Sequence[Array | None]) -> Array | None:
        """Run the node on arrays."""
        result = self.facts.kernels.run(self.node, arrays)
        return None if result is None else result[0]


class Facts:
    """What is known of every value of an analyzed model; `uses` are the (operator, slot) pairs reading it."""

    def __init__(self, analysis: Analysis) -> None:
        from . import histories, transfer_linear, transfer_move, transfer_point, transfer_state  # noqa: F401  register

        self.analysis = analysis
        self.kernels = Kernels(analysis.model)
        collection = analysis.collection
        self._nodes = {o: n for n in analysis.model.flat.nodes for o in n.output if o}
        self._producer = {y.name: op for op in collection.ops for y in op.outputs if y is not None}
        self._weight_leaves = {leaf for v in collection.parameters for a in v.axes for leaf in self._leaves(a.id)}
        self.uses: dict[str, list[tuple[Op, int]]] = {}
        for op in collection.ops:
            for slot, value in enumerate(op.inputs):
                if value is not None:
                    self.uses.setdefault(value.name, []).append((op, slot))
        self._known: dict[str, Known | None] = {}
        self._moving: dict[str, Moving] = {}
        # Of recurrent layers, by operator: the units whose states are known, and these (hidden, moments).
        self.states: dict[int, tuple[Mask, Array]] = {}
        weights = [t.data_type for t in analysis.model.tensors.values() if len(t.dims) > 1]
        self.usual_dtype = next((d for d in map(dtype_of, weights) if d is not None and d.kind == "f"), None)
        for op in collection.ops:
            if op.node.op != "Constant" and not all(y is None or y.constant for y in op.outputs):
                self._pass(op)

    def known(self, name: str) -> Known | None:
        """Give what is known of a value, None for nothing; constants are computed when first asked for."""
        if name in self._known:
            return self._known[name]
        model = self.analysis.model
        if name in model.tensors:
            # Not remembered: the model holds the weights already.
            return Known.constant(model.array(name))
        op = self._producer.get(name)
        value = self.analysis.collection.values.get(name)
        if op is not None and value is not None and value.constant:
            self._fold(op)
        return self._known.setdefault(name, None)

    def moving(self, name: str) -> Moving | None:
        """Give what is known of a value up to signals, None for nothing."""
        return self._moving.get(name)

    def before_expand(self, value: Value) -> Value:
        """Give what a value repeats along some of its axes, or the value itself."""
        op = self._producer.get(value.name)
        return self.before_expand(op.x()) if op is not None and op.node.op == "Expand" else value

    def before_rounding(self, value: Value) -> Value:
        """Give what was quantized by its own range into a value, or the value itself: both are zero together."""
        op = self._producer.get(value.name)
        return op.x() if op is not None and op.node.op == "DynamicQuantizeLinear" else value

    def n_uses(self, name: str) -> int:
        """Count where a constant is read, behind the nodes that only turn it into another constant."""
        found = 0
        for op, _ in self.uses.get(name, ()):
            made = [y for y in op.outputs if y is not None]
            found += sum(self.n_uses(y.name) for y in made) if made and all(y.constant for y in made) else 1
        return found

    def assume(self, name: str, known: Known) -> None:
        """Take something for known that does not follow from the model; nothing else is derived from it."""
        self._known[name] = known

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Give the type of a value, None where it is unknown or none of numpy's."""
        if name in self.analysis.model.tensors:
            return dtype_of(self.analysis.model.tensors[name].data_type)
        return dtype_of(self.analysis.collection.shapes.types.get(name))

    def is_fixed(self, name: str, axis: int) -> bool:
        """Say whether an axis has the same size at every run: as declared, or since a weight runs along it."""
        if not self.analysis.collection.shapes.is_dynamic(name, axis):
            return True
        value = self.analysis.collection.values.get(name)
        leaves = self._leaves(value.axes[axis].id) if value is not None and axis < value.ndim else ()
        return bool(leaves) and self._weight_leaves.issuperset(leaves)

    def _leaves(self, axis: int) -> tuple[int, ...]:
        factors = self.analysis.factors
        return factors.leaves.get(factors.class_of[axis], ())

    def proto(self, op: Op) -> onnx.NodeProto:
        """Give the node of an operator."""
        made = next((y.name for y in op.outputs if y is not None), "")
        node = self._nodes.get(made)
        if node is None:
            raise ModelError(f"{self.analysis.collection.node_label(op.index)} has no output that could be followed")
        return node

    def _pass(self, op: Op) -> None:
        if not any(y is not None for y in op.outputs) or not is_understood(op):
            return
        if any(v is not None and 0 in v.shape for v in (*op.inputs, *op.outputs)):
            return
        try:
            self._derive(op)
        except (ArithmeticError, IndexError, ValueError, KeyError, TypeError) as error:
            raise RuleDefect(f"the transfer of {op.node.op} fails on node {op.node.name!r}: {error!r}") from error

    def _derive(self, op: Op) -> None:
        step = Step(self, op, self.proto(op))
        for y, known in zip(op.outputs, step.known(), strict=False):
            if y is not None and known is not None:
                self._known[y.name] = _checked(known, y.shape, op)
        follow = followers.get(rule_name(op.node.domain, op.node.op))
        for y, moving in zip(op.outputs, follow(step) if follow is not None else (), strict=False):
            if y is not None and moving is not None:
                _checked(Known(moving.mask, moving.mask), y.shape, op)
                self._moving[y.name] = moving

    def _fold(self, op: Op) -> None:
        """Compute a node whose inputs are constants of the model."""
        arrays: list[Array | None] = []
        for t, value in zip(op.node.inputs, op.inputs, strict=True):
            known = self.known(value.name) if value is not None else None
            if t.name and (known is None or not known.complete):
                return
            arrays.append(known.value if known is not None else None)
        results = self.kernels.run(self.proto(op), arrays, outputs=len(op.outputs)) or []
        for y, array in zip(op.outputs, results, strict=False):
            if y is not None and array.shape == y.shape:
                self._known[y.name] = Known.constant(array)


def is_understood(op: Op) -> bool:
    """Say whether the shapes of all inputs are known, and nothing is without elements."""
    given = zip(op.node.inputs, op.inputs, strict=True)
    values = (v for v in (*op.inputs, *op.outputs) if v is not None)
    return not any(t.name and v is None for t, v in given) and not any(0 in v.shape for v in values)


def _checked(known: Known, shape: tuple[int, ...], op: Op) -> Known | None:
    """Refuse a transfer that contradicts the shapes: a defect of ours, not of the model."""
    fits = len(known.shape) == len(shape) and all(n in (1, d) for n, d in zip(known.shape, shape, strict=True))
    if not fits:
        raise RuleDefect(f"the transfer of {op.node.op} gives {known.shape} for a value of shape {shape}")
    return known_or_none(known.mask, known.value)
