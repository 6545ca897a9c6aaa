"""The numeric probe: what an operator without a rule does with its axes, asked of onnxruntime.

A node is taken out of the graph, alone and at the sizes of the analysis, and tried on random inputs: see `trials`. What
holds in every trial is stated as relations, as a rule would; everything else is frozen, with what the trials showed.
Only relations that a node cannot carry sizes for come out: axes that lose the same indices, and sums.

A node is tried when all its varying inputs are numbers of few enough elements. Integers wider than eight bits are
indices or sizes to most operators, so they must be constants of the graph, and small.

The trials run in another process, so that an operator that crashes or never ends freezes itself and nothing else.
Models whose operators all have rules start no process. `ONNXPRUNE_PROBE=off` in the environment, or
`analyze(probe=False)`, turns the probe off.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..graph.model import Model
from ..graph.shapes import Shapes
from .op import Op, Role
from .relations import Axis
from .trials import Facts, Question, Spot, Tensor, nothing

# Elements of one node's inputs and outputs, and of all nodes that are tried: some seconds, and at most a minute.
MAX_ELEMENTS = 1 << 21
MAX_WORK = 1 << 24
MAX_INTEGERS = 64
PATIENCE_SECONDS = 900
_VARIED = {1: "float32", 10: "float16", 11: "float64", 2: "uint8", 3: "int8", 9: "bool"}
_FUNCTIONAL = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_START = "from onnxprune.axes.trials import main; main()"

Array = np.ndarray[Any, Any]

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("probe", default=True)
_known: dict[Question, Facts] = {}


@dataclass(frozen=True)
class Unasked:
    """A node that is not tried, and why."""

    why: str


@contextlib.contextmanager
def probing(wanted: bool) -> Iterator[None]:
    """Turn the probe on or off for the analyses made inside."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_wanted() -> bool:
    """Say whether operators without a rule are tried."""
    return _wanted.get() and os.environ.get("ONNXPRUNE_PROBE", "on").lower() not in ("off", "0", "no", "false")


def probe(model: Model, shapes: Shapes, nodes: Sequence[onnx.NodeProto]) -> list[Facts | Unasked]:
    """Try nodes without a rule, each kind once: a kind is an operator with attributes, shapes and types.

    What was found for a kind is remembered for as long as the process lives.
    """
    return _asked([_question(model, shapes, node) for node in nodes])


def measure(model: Model, shapes: Shapes, nodes: Sequence[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    """Run nodes without a rule to see the shapes of their outputs; those that do not run are left out.

    A shape seen at one size of a dynamic axis says nothing about others: the caller asks for fixed sizes only.
    """
    found = []
    for node, facts in zip(nodes, _asked([_question(model, shapes, n, measures=True) for n in nodes]), strict=True):
        for y in facts.outputs if isinstance(facts, Facts) else ():
            elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(y.dtype))
            found.append(onnx.helper.make_tensor_value_info(node.output[y.slot], elem, y.shape))
    return found


def _asked(asked: Sequence[Question | Unasked]) -> list[Facts | Unasked]:
    """Have the distinct questions answered, up to a bound that depends on them alone and not on any clock."""
    kinds = list(dict.fromkeys(q for q in asked if isinstance(q, Question)))
    work = np.cumsum([_elements(q.inputs) + _elements(q.outputs) for q in kinds])
    taken = kinds[: int(np.count_nonzero(work <= MAX_WORK))]
    late = frozenset(kinds[len(taken) :])
    _answer([q for q in taken if q not in _known])
    return [
        q if isinstance(q, Unasked) else Unasked("the probe has tried enough others") if q in late else _known[q]
        for q in asked
    ]


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(t.shape) for t in tensors)


# --- questions ---


def _question(model: Model, shapes: Shapes, node: onnx.NodeProto, *, measures: bool = False) -> Question | Unasked:
    """Make a one-node model whose varying inputs have open axes; small constants are kept as they are.

    With `measures` the outputs' shapes are what is asked for.
    """
    if any(a.type in _FUNCTIONAL for a in node.attribute):
        return Unasked("it has bodies of its own")
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = copy.doc_string = ""
    copy.ClearField("metadata_props")
    graph = onnx.GraphProto(name="probe")
    inputs: list[Tensor] = []
    taken: dict[str, str] = {}
    for k, name in enumerate(node.input):
        if not name:
            continue
        again = name in taken
        copy.input[k] = taken.setdefault(name, f"x{k}")
        if again:
            continue
        fixed = _constant(model, shapes, name)
        shape, elem = shapes.sizes.get(name), _type(model, shapes, name)
        if fixed is not None:
            graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(fixed, taken[name]))
        elif shape is None:
            return Unasked(f"the shape of {name!r} is unknown")
        elif elem not in _VARIED:
            return Unasked(f"its input {name!r} is of type {_spell(elem)}, which is not varied")
        else:
            graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(taken[name], elem, [None] * len(shape)))
            inputs.append(Tensor(k, taken[name], shape, _VARIED[elem]))
    outputs: list[Tensor] = []
    for k, name in enumerate(node.output):
        shape = shapes.sizes.get(name) if name else None
        copy.output[k] = f"y{k}" if name else ""
        if name and shape is None and not measures:
            return Unasked(f"the shape of {name!r} is unknown")
        if name:
            graph.output.add(name=f"y{k}")
            outputs.append(Tensor(k, f"y{k}", () if shape is None or measures else shape))
    elements = _elements([*inputs, *outputs])
    if not inputs:
        return Unasked("it takes constants alone")
    if elements > MAX_ELEMENTS:
        return Unasked(f"it has {elements:,} elements, more than the probe takes; try smaller input shapes")
    graph.node.append(copy)
    content = _alone(model, graph).SerializeToString(deterministic=True)
    return Question(content, tuple(inputs), tuple(outputs), measures)


def _alone(model: Model, graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap a graph of one node in a model with the operator sets and functions of the one it comes from."""
    alone = onnx.ModelProto(ir_version=model.skeleton.ir_version, graph=graph)
    alone.opset_import.extend(model.skeleton.opset_import)
    node = graph.node[0]
    if any((f.domain, f.name) == (node.domain, node.op_type) for f in model.skeleton.functions):
        alone.functions.extend(model.skeleton.functions)
    elif node.domain not in {o.domain for o in alone.opset_import}:
        alone.opset_import.add(domain=node.domain, version=1)
    return alone


def _constant(model: Model, shapes: Shapes, name: str) -> Array | None:
    """Give a constant that is read as one number or as a few integers; weights are varied instead."""
    elem = _type(model, shapes, name)
    is_integer = elem in (6, 7, 9)
    tensor = model.tensors.get(name)
    if tensor is not None:
        few = math.prod(tensor.dims) <= (MAX_INTEGERS if is_integer else 1)
        return model.array(name) if few else None
    known = shapes.integers.get(name)
    if known is None or (not is_integer and (known.depends or len(known.items) > 1)):
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem) if elem else np.int64
    return np.array([e.value for e in known.items], dtype=dtype).reshape(known.shape)


def _type(model: Model, shapes: Shapes, name: str) -> int:
    tensor = model.tensors.get(name)
    return tensor.data_type if tensor is not None else shapes.types.get(name, 0)


def _spell(elem: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem)).lower() if elem else "unknown"


# --- answers ---


def _answer(questions: Sequence[Question]) -> None:
    """Have all questions answered; one that ends the process is answered by that, and the rest is asked again."""
    waiting = list(questions)
    while waiting:
        answers, end = _ask(waiting)
        _known.update(zip(waiting, answers, strict=False))
        del waiting[: len(answers)]
        if waiting:
            culprit = waiting.pop(0)
            _known[culprit] = nothing(culprit, end)


def _ask(questions: Sequence[Question]) -> tuple[list[Facts], str]:
    """Run the trials in a new process: the answers it gave, and how it ended where some are missing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    end = "onnxruntime crashed on it"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", _START],
            input=pickle.dumps(list(questions)),
            capture_output=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            env=environment,
        )
        content = done.stdout
    except subprocess.TimeoutExpired as late:
        content, end = late.stdout or b"", f"onnxruntime ran it for more than {PATIENCE_SECONDS} seconds"
    except OSError as error:
        return [], f"no process could be started: {error}"
    answers: list[Facts] = []
    stream = io.BytesIO(content)
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while len(answers) < len(questions):
            answers.append(pickle.load(stream))  # noqa: S301 - our own child wrote it
    return answers, end


# --- statements ---


def state(op: Op, facts: Facts, name: str) -> None:
    """State what was found of a node as a rule would; `name` spells its operator."""
    op.otherwise = f"no rule for {name!r}"
    for tie in facts.ties:
        first, *others = (_axis(op, spot) for spot in tie)
        for other in others:
            op.tie(first, other)
    for axes in facts.sums:
        first, *others = (_axis(op, spot) for spot in axes)
        if not others:
            op.contract(first)
        for other in others:
            op.contract(first, other)
    _state_roles(op, facts)
    for spot, why in facts.frozen:
        op.freeze(_axis(op, spot), f"no rule for {name!r}; tried, {why}")
    if facts.zeros is not None:
        mode, slots = facts.zeros
        op.zeros("any" if mode == "any" else "all", *slots)
    if any(len(axes) > 1 for axes in facts.sums):
        _state_cost(op, facts)


def _state_roles(op: Op, facts: Facts) -> None:
    """Name the axes of constants: those of a weight that is summed over produce and consume, others are parameters."""
    summed = {spot.slot for axes in facts.sums for spot in axes}
    rows: list[tuple[Spot, Role]] = [(spot, "input") for axes in facts.sums for spot in axes]
    rows += [(spot, "output" if spot.slot in summed else "parameter") for tie in facts.ties for spot in tie]
    for spot, role in rows:
        if spot.side == "x" and op.x(spot.slot).constant:
            op.role(_axis(op, spot), role)
            if role == "output":
                op.hint(_axis(op, spot), "features")


def _state_cost(op: Op, facts: Facts) -> None:
    """Count a product per output element and term; what else a weight has, such as a window, multiplies it."""
    y = next(y for y in op.outputs if y is not None)
    told = {spot for axes in (*facts.ties, *facts.sums) for spot in axes}
    weights = {s.slot for axes in facts.sums for s in axes if op.x(s.slot).constant}
    windows = [spot for spot, _ in facts.frozen if spot.side == "x" and spot.slot in weights and spot not in told]
    op.macs(*y.axes, *(_axis(op, spot) for spot in [*(axes[0] for axes in facts.sums), *windows]))


def _axis(op: Op, spot: Spot) -> Axis:
    return (op.x if spot.side == "x" else op.y)(spot.slot)[spot.axis]
