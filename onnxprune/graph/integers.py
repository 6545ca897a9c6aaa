"""Integer tensors that carry sizes: what each element is made of.

A Reshape target may be a constant, or come out of Shape → Gather → Mul → Concat. Every element of such a tensor is an
`Expr` over literals and dimensions of other values, with the number it has at the sizes of this analysis. Rewriting
evaluates the same expressions at the pruned sizes and corrects only what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_ELEMENTS = 256
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Expr:
    """One element: `op` is "lit", "dim" or the name of the ONNX operator that computed it from `args`.

    `value` is the number at the sizes of the analysis; a "dim" names the value and the axis it measures.
    """

    op: str
    value: int | float
    args: tuple[Expr, ...] = ()
    dim: tuple[str, int] | None = None

    def parts(self) -> list[Expr]:
        """List the expressions it is made of, each once and after its own parts; arithmetic may share them freely."""
        found: dict[int, Expr] = {}
        waiting = [(self, False)]
        while waiting:
            e, visited = waiting.pop()
            if visited:
                found.setdefault(id(e), e)
            elif id(e) not in found:
                waiting.append((e, True))
                waiting += [(a, False) for a in e.args if id(a) not in found]
        return list(found.values())

    def dims(self) -> set[tuple[str, int]]:
        """Collect the (value, axis) pairs it depends on."""
        return {e.dim for e in self.parts() if e.dim is not None}

    def evaluate(self, size: Callable[[str, int], int]) -> int | float:
        """Compute it with other sizes: `size(value, axis)`."""
        values: dict[int, int | float] = {}
        for e in self.parts():
            if e.dim is not None:
                values[id(e)] = size(*e.dim)
            elif not e.args:
                values[id(e)] = e.value
            else:
                values[id(e)] = _number(_COMPUTE[e.op](*(np.asarray(values[id(a)]) for a in e.args)))
        return values[id(self)]

    def is_product(self) -> bool:
        """Say whether it is a product of sizes and literals: scaling it keeps it right at every dynamic size."""
        return all(not e.args or e.op in ("Mul", "ReduceProd") for e in self.parts())


def literal(value: float) -> Expr:
    """Make a number that is written in the graph."""
    return Expr("lit", value)


@dataclass(frozen=True, slots=True)
class IntTensor:
    """A small tensor known element by element, in row-major order."""

    shape: tuple[int, ...]
    items: tuple[Expr, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The numbers at the sizes of the analysis."""
        return tuple(int(e.value) for e in self.items)

    @property
    def depends(self) -> bool:
        """Say whether any element depends on the size of a value."""
        return any(e.op != "lit" for e in self.items)


def from_array(array: np.ndarray[Any, Any]) -> IntTensor:
    """Wrap a constant."""
    return IntTensor(array.shape, tuple(literal(_plain(v)) for v in array.ravel().tolist()))


def _number(v: Any) -> int | float:
    return _plain(np.asarray(v)[()].item())


def _plain(v: float) -> int | float:
    if isinstance(v, float) and not (v.is_integer() and abs(v) < 2**62):
        return v
    if not -_LARGEST <= v < _LARGEST:
        raise OverflowError("no size is that large")
    return int(v)


def _divide(a: Any, b: Any) -> Any:
    if float(b) == 0:
        raise ArithmeticError("division by zero")
    if float(a).is_integer() and float(b).is_integer() and float(a) % float(b) == 0:
        return a // b
    return np.trunc(a / b) if a.dtype.kind == b.dtype.kind == "i" else a / b


_COMPUTE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Mod": np.mod,
    "Max": lambda *a: max(int(x) if float(x).is_integer() else float(x) for x in a),
    "Min": lambda *a: min(int(x) if float(x).is_integer() else float(x) for x in a),
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda a: 1.0 / a,
    "Pow": lambda a, b: float(a) ** float(b),
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Where": lambda c, a, b: a if c else b,
    "ReduceProd": lambda *a: math.prod(int(x) for x in a),
    "ReduceSum": lambda *a: sum(int(x) for x in a),
    "ReduceMax": lambda *a: max(int(x) for x in a),
    "ReduceMin": lambda *a: min(int(x) for x in a),
}
_REDUCTIONS = {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"}


def combine(op: str, *args: Expr) -> Expr:
    """Apply an operator to elements; two literals give a literal."""
    if op == "Where" and not args[0].dims():
        return args[1] if args[0].value else args[2]
    value = _number(_COMPUTE[op](*(np.asarray(a.value) for a in args)))
    if all(a.op == "lit" for a in args):
        return literal(value)
    return Expr(op, value, tuple(args))


def evaluate(
    op: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[IntTensor | None],
    names: Sequence[str],
    shape_of: Callable[[str], tuple[int, ...] | None],
) -> IntTensor | None:
    """Follow one node on size-carrying tensors; None when the result is unknown, too large or no such tensor.

    `inputs` and `names` are per input slot; `shape_of` gives the shape of a value, for Shape and Size.
    """
    try:
        if op == "Shape":
            return _shape(attributes, names[0], shape_of(names[0]))
        if op == "Size":
            shape = shape_of(names[0])
            if not shape:
                return None
            items = tuple(Expr("dim", d, dim=(names[0], k)) for k, d in enumerate(shape))
            return IntTensor((), (combine("ReduceProd", *items),))
        if not inputs or any(i is None for i, n in zip(inputs, names, strict=True) if n):
            return None
        result = _follow(op, attributes, list(inputs))
    except (ArithmeticError, IndexError, ValueError, KeyError):
        return None
    return result if result is not None and len(result.items) <= MAX_ELEMENTS else None


def _shape(attributes: Mapping[str, Any], name: str, shape: tuple[int, ...] | None) -> IntTensor | None:
    if shape is None:
        return None
    ks = range(len(shape))[slice(attributes.get("start", 0), attributes.get("end"))]
    return IntTensor((len(ks),), tuple(Expr("dim", shape[k], dim=(name, k)) for k in ks))


Tensors = list[IntTensor | None]


def _follow(op: str, attributes: Mapping[str, Any], inputs: Tensors) -> IntTensor | None:  # noqa: PLR0911  one per kind
    """Apply one operator to known tensors."""
    x = inputs[0]
    if x is None:
        return None
    if op in _PICKS:
        where = _PICKS[op](np.arange(len(x.items)).reshape(x.shape), attributes, inputs)
        return IntTensor(where.shape, tuple(x.items[i] for i in where.ravel()))
    if op == "Concat":
        if any(i is None or len(i.shape) != 1 for i in inputs):
            return None
        items = tuple(e for i in inputs if i is not None for e in i.items)
        return IntTensor((len(items),), items)
    if op == "ConstantOfShape":
        return _filled(attributes, x)
    if op == "Range":
        if any(i is None or i.depends for i in inputs):
            return None
        return _ranged(*(i.items[0].value for i in inputs if i is not None))
    if op in _REDUCTIONS:
        if _axes(attributes, inputs) not in (None, (), (0,), (-1,)) or len(x.shape) > 1:
            return None
        return IntTensor((1,) if attributes.get("keepdims", 1) else (), (combine(op, *x.items),))
    return _elementwise(op, [i for i in inputs if i is not None]) if op in _COMPUTE else None


def _filled(attributes: Mapping[str, Any], sizes: IntTensor) -> IntTensor | None:
    n = math.prod(sizes.values)
    if n > MAX_ELEMENTS:
        return None
    value = attributes.get("value")
    fill = 0 if value is None else _number(np.asarray(value).ravel()[0])
    return IntTensor(sizes.values, (literal(fill),) * n)


def _ranged(start: float, limit: float, delta: float) -> IntTensor | None:
    if not delta or (limit - start) / delta > MAX_ELEMENTS:
        return None
    return from_array(np.arange(start, limit, delta))


def _elementwise(op: str, known: list[IntTensor]) -> IntTensor | None:
    if math.prod(np.broadcast_shapes(*(i.shape for i in known))) > MAX_ELEMENTS:
        return None
    grids = np.broadcast_arrays(*(np.arange(len(i.items)).reshape(i.shape) for i in known))
    rows = zip(*(g.ravel() for g in grids), strict=True)
    items = tuple(combine(op, *(t.items[k] for t, k in zip(known, row, strict=True))) for row in rows)
    return IntTensor(grids[0].shape, items)


Positions = np.ndarray[Any, np.dtype[np.int64]]


def _known(inputs: Tensors, slot: int) -> IntTensor:
    value = inputs[slot] if slot < len(inputs) else None
    if value is None:
        raise ValueError(f"input {slot} is missing")
    return value


def _sliced(index: Positions, attributes: Mapping[str, Any], inputs: Tensors) -> Positions:
    starts, ends = _known(inputs, 1).values, _known(inputs, 2).values
    axes = _axes(attributes, [None, inputs[3] if len(inputs) > 3 else None]) or tuple(range(len(starts)))
    steps = _known(inputs, 4).values if len(inputs) > 4 else (1,) * len(starts)
    cut = [slice(None)] * index.ndim
    for a, s, e, t in zip(axes, starts, ends, steps, strict=True):
        cut[a] = slice(s, None if e < -(2**31) else e, t)
    return index[tuple(cut)]


def _expanded(index: Positions, sizes: Sequence[int]) -> Positions:
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError("more elements than carry sizes")
    return index * np.ones(sizes, dtype=np.int64)


def _gathered(index: Positions, attributes: Mapping[str, Any], inputs: Tensors) -> Positions:
    where = _known(inputs, 1)
    return np.take(index, np.array(where.values, dtype=np.int64).reshape(where.shape), axis=attributes.get("axis", 0))


# Operators that only rearrange elements: given each element's position, which position lands where.
_PICKS: dict[str, Callable[[Positions, Mapping[str, Any], Tensors], Positions]] = {
    "Identity": lambda index, _, __: index,
    "Cast": lambda index, _, __: index,
    "Squeeze": lambda index, attributes, inputs: np.squeeze(index, _axes(attributes, inputs)),
    "Unsqueeze": lambda index, attributes, inputs: np.expand_dims(index, _axes(attributes, inputs) or ()),
    "Reshape": lambda index, _, inputs: index.reshape(_known(inputs, 1).values),
    "Transpose": lambda index, attributes, _: np.transpose(index, attributes.get("perm")),
    "Expand": lambda index, _, inputs: _expanded(index, _known(inputs, 1).values),
    "Gather": _gathered,
    "Slice": _sliced,
}


def _axes(attributes: Mapping[str, Any], inputs: Sequence[IntTensor | None]) -> tuple[int, ...] | None:
    if "axes" in attributes:
        return tuple(int(a) for a in attributes["axes"])
    second = inputs[1] if len(inputs) > 1 else None
    return second.values if second is not None else None
