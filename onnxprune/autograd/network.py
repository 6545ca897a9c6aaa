"""`Network`: an ONNX model whose nodes are torch functions, so that its outputs can be differentiated by its weights.

Floats of 16 bits are computed in 32. Branches of If run as the condition says; Loop and Scan are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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


class Network:
    """A model in torch. `weights` are the tensors by name that gradients are taken by: those asked for that it has.

    Raises `ModelError` that names every operator without a torch function.
    """

    def __init__(self, model: Model, tuned: Collection[str] = ()) -> None:
        self._label = model.label
        proto = onnx.inliner.inline_local_functions(model.proto) if model.proto.functions else model.proto
        self._opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
        _refuse_unknown(proto.graph, model.label)
        self.inputs = [v.name for v in proto.graph.input]
        self.outputs = [o.name for o in proto.graph.output]
        self.weights: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        for tensor in proto.graph.initializer:
            array = model.array(tensor.name) if tensor.name in model.tensors else numpy_helper.to_array(tensor)
            self._hold(tensor.name, to_tensor(array), tuned)
        self._steps: list[Step] = []
        for step in self._read(proto.graph.node):
            call, function, inputs, outputs = step
            if all(n in self._fixed for n in inputs if n) and call.op != "If":
                with torch.no_grad():
                    for name, value in zip(outputs, self._run(call, function, inputs, self._fixed), strict=False):
                        self._hold(name, value, tuned)
            else:
                self._steps.append(step)
        self._last = _last_uses(self._steps, self.outputs)

    def _hold(self, name: str, value: Tensor, tuned: Collection[str]) -> None:
        if name in tuned and value.is_floating_point():
            self.weights[name] = value.clone().requires_grad_()
        else:
            self._fixed[name] = value

    def _read(self, nodes: Iterable[onnx.NodeProto]) -> list[Step]:
        steps = []
        for node in nodes:
            call = call_of(node, self._opsets)
            function = self._branch if call.op == "If" else torch_functions[key(call.domain, call.op)]
            steps.append((call, function, list(node.input), list(node.output)))
        return steps

    def __call__(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """Give the outputs for one feed of tensors by input name."""
        values = {**self._fixed, **self.weights, **feed}
        for k, (call, function, inputs, outputs) in enumerate(self._steps):
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
                f"{self._label}: {call.label} cannot be differentiated: {error} has no torch counterpart here. "
                "Repair without gradients (--recover lstsq)"
            ) from error
        except (RuntimeError, TypeError, IndexError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"{self._label}: {call.label} does not run in torch: {first}") from error
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def _branch(self, call: Call, condition: Tensor, around: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run one branch of an If; it sees the values around it."""
        body = call.get("then_branch" if bool(condition.item()) else "else_branch")
        values = {**around, **{t.name: to_tensor(numpy_helper.to_array(t)) for t in body.initializer}}
        for inner, function, inputs, outputs in self._read(body.node):
            values.update(zip(outputs, self._run(inner, function, inputs, values), strict=False))
        return tuple(values[o.name] for o in body.output)


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
