"""`Network`: an ONNX model whose nodes are torch functions, so that its outputs can be differentiated by its weights.

Floats of 16 bits are computed in 32. Branches of If run as the condition says; Loop and Scan are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx
import onnx.inliner
import torch
from onnx import numpy_helper

from ..errors import ModelError
from ..graph.model import Model
from . import ops
from .call import Call, Run, Tensor, UnsupportedError, call_of, key, torch_functions
from .tensors import to_tensor

Step = tuple[Call, Run, list[str], list[str]]
assert ops


@dataclass
class _Body:
    """A graph ready to run: tensors that stay as they are, names of weights, and what makes the outputs of them."""

    outputs: list[str]
    fixed: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


class Network:
    """A model in torch. `weights` are the tensors by flat name that gradients are taken by: those `tuned` that it has.

    Raises `ModelError` that names every operator without a torch function.
    """

    def __init__(self, model: Model, tuned: Collection[str] = ()) -> None:
        self._model = model
        proto = onnx.inliner.inline_local_functions(model.proto) if model.proto.functions else model.proto
        self._opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
        _refuse_unknown(proto.graph, model.label)
        self.inputs = [v.name for v in proto.graph.input]
        self.outputs = [o.name for o in proto.graph.output]
        self.weights: dict[str, Tensor] = {}
        # Bodies of a model whose functions were put in place are not those that its flat names are of.
        flat_names: list[dict[str, str]] = [{}] if model.proto.functions else model.flat.flat_names
        self._top = self._prepare(proto.graph, iter(flat_names), tuned)
        self._last = _last_uses(self._top.steps, self.outputs)

    def _prepare(self, graph: onnx.GraphProto, names: Iterator[Mapping[str, str]], tuned: Collection[str]) -> _Body:
        """Read a graph; `names` has the flat names of it and of the bodies in it, in the order of `flatten`.

        Of a graph that `names` does not know nothing is tuned.
        """
        body, known = _Body([o.name for o in graph.output]), next(names, None)
        flat = {} if known is None else known

        def hold(name: str, value: Tensor) -> None:
            known_as = flat.get(name, name)
            if known is not None and known_as in tuned and value.is_floating_point():
                self.weights[known_as] = value.clone().requires_grad_()
                body.weights[name] = known_as
            else:
                body.fixed[name] = value

        for tensor in graph.initializer:
            found = None if known is None else self._model.tensors.get(flat.get(tensor.name, tensor.name))
            hold(tensor.name, to_tensor(numpy_helper.to_array(tensor) if found is None else self._model.read(found)))
        for node in graph.node:
            call = call_of(node, self._opsets)
            inputs, outputs = list(node.input), list(node.output)
            if call.op == "If":
                branches = {a.name: self._prepare(a.g, names, tuned) for a in node.attribute}
                body.steps.append((call, partial(self._branch, branches), inputs, outputs))
                continue
            function = torch_functions[key(call.domain, call.op)]
            if all(n in body.fixed for n in inputs if n):
                with torch.no_grad():
                    for name, value in zip(outputs, self._run(call, function, inputs, body.fixed), strict=False):
                        hold(name, value)
            else:
                body.steps.append((call, function, inputs, outputs))
        return body

    def _values(self, body: _Body) -> dict[str, Tensor]:
        return {**body.fixed, **{name: self.weights[known_as] for name, known_as in body.weights.items()}}

    def __call__(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """Give the outputs for one feed of tensors by input name."""
        values = {**self._values(self._top), **feed}
        for k, (call, function, inputs, outputs) in enumerate(self._top.steps):
            values.update(zip(outputs, self._run(call, function, inputs, values), strict=False))
            for name in self._last[k]:
                values.pop(name, None)
        return [values[n] for n in self.outputs]

    def _run(self, call: Call, function: Run, inputs: list[str], values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = [values[n] if n else None for n in inputs]
        while given and given[-1] is None:
            given.pop()
        try:
            found = function(call, *given, values) if call.op == "If" else function(call, *given)
        except UnsupportedError as error:
            raise ModelError(
                f"{self._model.label}: {call.label} cannot be differentiated: {error} has no torch counterpart here. "
                "Repair without gradients (--recover lstsq)"
            ) from error
        except (RuntimeError, TypeError, IndexError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"{self._model.label}: {call.label} does not run in torch: {first}") from error
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def _branch(
        self, branches: Mapping[str, _Body], _: Call, condition: Tensor, around: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Run one branch of an If; it sees the values around it."""
        body = branches["then_branch" if bool(condition.item()) else "else_branch"]
        values = {**around, **self._values(body)}
        for call, function, inputs, outputs in body.steps:
            values.update(zip(outputs, self._run(call, function, inputs, values), strict=False))
        return tuple(values[name] for name in body.outputs)


def _refuse_unknown(graph: onnx.GraphProto, label: str) -> None:
    unknown: dict[str, str] = {}
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            name = key(node.domain, node.op_type)
            if node.op_type == "If" and node.domain in ("", "ai.onnx"):
                waiting += [a.g for a in node.attribute]
            elif name not in torch_functions:
                unknown.setdefault(name, node.name or node.output[0])
    if unknown:
        which = ", ".join(f"{op} (node {node!r})" for op, node in sorted(unknown.items()))
        raise ModelError(
            f"{label}: gradients need a torch counterpart of every operator, and there is none of {which}. "
            "Repair without gradients (--recover lstsq)"
        )


def _last_uses(steps: Sequence[Step], outputs: Sequence[str]) -> list[list[str]]:
    """List for every step the values that nothing reads after it."""
    last: dict[str, int] = {}
    for k, (call, _, inputs, made) in enumerate(steps):
        for name in (*inputs, *made, *_captured(call)):
            last[name] = k
    found: list[list[str]] = [[] for _ in steps]
    for name, k in last.items():
        if name and name not in outputs:
            found[k].append(name)
    return found


def _captured(call: Call) -> set[str]:
    names: set[str] = set()
    waiting: list[Any] = [v for v in call.attributes.values() if isinstance(v, onnx.GraphProto)]
    while waiting:
        body = waiting.pop()
        names.update(o.name for o in body.output)
        for node in body.node:
            names.update(node.input)
            waiting += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return names
