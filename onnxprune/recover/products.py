"""Products: every place where data is multiplied by a constant weight, y = W x + b, as plain matrices.

Whatever the operator stores, a product is seen as matrices (groups, outputs, features), whose features are in the order
of the statistics that calibration gathers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.groups import Group
from ..axes.labels import Labels
from ..axes.op import Op, Value
from ..axes.relations import Axis

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
BIAS_SLOT: Mapping[str, int] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "GemmFastGelu", "Attention"), 2),
    **dict.fromkeys(GATES, 3),
}
STATE_SLOT = 5
FLOATS = frozenset((1, 10, 11))


@dataclass(frozen=True)
class Bias:
    """Where a constant can be added to the sums of a product.

    `sign` is -1 for the mean that a normalization subtracts. `half` is the part of a recurrent layer's B, None for an
    array that has one number per output and is otherwise of ones in its shape.
    """

    name: str
    sign: float = 1.0
    half: int | None = None

    def shifted(self, array: Array, shift: Floats) -> Array:
        """Give the array with `shift`, one number per sum, added to the sums."""
        new = array.astype(np.float64)
        if self.half is None:
            new += self.sign * shift.reshape(array.shape)
        else:
            rows = new.shape[1] // 2
            new[:, self.half * rows : (self.half + 1) * rows] += shift.reshape(len(new), rows)
        return new.astype(array.dtype)


@dataclass(frozen=True)
class Product:
    """One product: flat node `node` multiplies the data in `slot` with initializer `weight`.

    `inputs` are the axes that are summed away, one for each group or one for all groups after another; `outputs` the
    axes of the sums. `taps` counts the places of a window: features are (inputs of a group, taps), row-major.
    `shape` is (groups, outputs, features). `scale` multiplies the stored weight. With `axis` the features are the
    indices of that axis of the data, and every output is told apart by tap: see `by_channel`.
    """

    node: int
    slot: int
    name: str
    op: str
    weight: str
    bias: Bias | None
    shape: tuple[int, int, int]
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    taps: int
    scale: float
    axis: int | None
    arrange: Callable[[Array], Array] = field(repr=False, compare=False)
    restore: Callable[[Array, tuple[int, ...]], Array] = field(repr=False, compare=False)

    def matrices(self, array: Array) -> Floats:
        """View the stored weight as (groups, outputs, features), float64."""
        return np.asarray(self.arrange(array.astype(np.float64)) * self.scale)

    def stored(self, matrices: Floats, like: Array) -> Array:
        """Bring matrices back to the shape and type that are stored."""
        return np.ascontiguousarray(self.restore(matrices / self.scale, like.shape).astype(like.dtype))

    def kept_features(self, analysis: Analysis, alive: Keep) -> Keep:
        """Give which features stay: (groups, features)."""
        keep = np.concatenate([analysis.keep(a.id, alive) for a in self.inputs])
        return self._spread(keep)

    def kept_outputs(self, analysis: Analysis, alive: Keep) -> Keep:
        """Give which sums stay: (groups, outputs)."""
        keep = np.concatenate([analysis.keep(a.id, alive) for a in self.outputs])
        return np.repeat(keep, self.repeats).reshape(self.shape[:2])

    def units(self, analysis: Analysis, group: Group) -> Labels:
        """Give which unit of `group` a feature belongs to, -1 for none: (groups, features)."""
        return self._spread(_units_on(analysis, group, self.inputs))

    def output_units(self, analysis: Analysis, group: Group) -> Labels:
        """Give which unit of `group` a sum belongs to, -1 for none: (groups, outputs)."""
        return np.repeat(_units_on(analysis, group, self.outputs), self.repeats).reshape(self.shape[:2])

    @property
    def repeats(self) -> int:
        """Count how many sums one index of `outputs` stands for: one, or one per tap."""
        return self.shape[0] * self.shape[1] // sum(a.size for a in self.outputs)

    def per_bias(self, shift: Floats) -> Floats:
        """Bring shifts of the sums (groups, outputs) to one number per index of `outputs`."""
        return np.asarray(shift.reshape(-1, self.repeats).sum(axis=1))

    @property
    def reads_state(self) -> bool:
        """Say whether the data is the hidden state that a recurrent layer makes itself."""
        return self.op in GATES and self.slot == STATE_SLOT

    def by_channel(self) -> Product:
        """See a convolution without groups as one product per tap of the window, all of the same data.

        Features are channels alone then: coarser, and taps**2 times smaller in moments.
        """
        if self.axis is not None or self.taps == 1 or self.shape[0] != 1:
            return self
        taps, n_outputs, n_channels = self.taps, self.shape[1], self.shape[2] // self.taps
        arrange, restore = self.arrange, self.restore

        def spread(array: Array) -> Array:
            whole = arrange(array).reshape(n_outputs, n_channels, taps)
            return np.asarray(whole.transpose(0, 2, 1).reshape(1, n_outputs * taps, n_channels))

        def gathered(matrices: Array, shape: tuple[int, ...]) -> Array:
            whole = matrices.reshape(n_outputs, taps, n_channels).transpose(0, 2, 1)
            return restore(whole.reshape(1, n_outputs, -1), shape)

        shape = (1, n_outputs * taps, n_channels)
        return replace(self, shape=shape, taps=1, axis=1, arrange=spread, restore=gathered)

    def _spread(self, per_input: Array) -> Array:
        groups, _, features = self.shape
        whole = np.repeat(per_input, self.taps)
        return np.broadcast_to(whole.reshape(-1, features), (groups, features))


def _units_on(analysis: Analysis, group: Group, axes: tuple[Axis, ...]) -> Labels:
    """Give the units of a group along axes, one after another, -1 for none."""
    unit_of = np.full(len(analysis.labeling.root), -1, dtype=np.int64)
    unit_of[group.roots] = np.arange(group.size)
    parts = []
    for axis in axes:
        unit = np.full(axis.size, -1, dtype=np.int64)
        for roots in analysis.roots(axis.id):
            found = np.where(roots >= 0, unit_of[np.maximum(roots, 0)], -1)
            unit = np.where(found >= 0, found, unit)
        parts.append(unit)
    return np.concatenate(parts)


class Refusal(NamedTuple):
    """A node with a weight that is no plain product, and why."""

    node: str
    weight: str
    reason: str


def find_products(analysis: Analysis) -> tuple[list[Product], list[Refusal]]:
    """List the products of a model in the order of its nodes, and the nodes left out with reasons."""
    return _Finder(analysis).run()


class _Finder:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        flat = analysis.model.flat
        self.number = {out: k for k, node in enumerate(flat.nodes) for out in node.output if out}
        self.readers = Counter(n for node in flat.nodes for n in node.input if n)
        self.readers.update(o.name for o in analysis.model.skeleton.graph.output)
        self.by_data: dict[str, list[Op]] = {}
        for op in analysis.collection.ops:
            for t in op.node.inputs:
                self.by_data.setdefault(t.name, []).append(op)
        self.found: list[Product] = []
        self.refused: list[Refusal] = []

    def run(self) -> tuple[list[Product], list[Refusal]]:
        for op in self.analysis.collection.ops:
            make = _KINDS.get(op.node.op)
            if make is None or op.node.domain not in (None, "", "ai.onnx", "com.microsoft"):
                continue
            for row in make(op):
                self._row(op, row)
        self.found.sort(key=lambda p: (p.node, p.slot))
        return self.found, self.refused

    def _row(self, op: Op, row: _Row) -> None:
        weight = op.x(row.weight_slot)
        label = op.node.name or next(t.name for t in op.node.outputs if t.name)
        reason = self._refused(weight)
        if reason:
            self.refused.append(Refusal(label, weight.name, reason))
            return
        array_shape = self.analysis.model.tensors[weight.name].dims
        shape = row.arrange(np.empty(tuple(array_shape), dtype=np.bool_)).shape
        output = next(t.name for t in op.node.outputs if t.name)
        self.found.append(
            Product(
                self.number[output], row.slot, label, op.node.op, weight.name, self._bias(op, row, shape),
                (shape[0], shape[1], shape[2]), row.inputs, row.outputs, row.taps, row.scale, None, row.arrange,
                row.restore,
            )
        )  # fmt: skip

    def _refused(self, weight: Value) -> str:
        name = weight.name
        if not weight.initializer:
            return "its weight is computed, as from quantized codes" if weight.constant else ""
        if self.analysis.model.tensors[name].data_type not in FLOATS:
            return "its weight is stored in integers or in a narrow type"
        if self.readers[name] > 1:
            return "its weight is read by several nodes, which would have to agree"
        return ""

    def _bias(self, op: Op, row: _Row, shape: tuple[int, ...]) -> Bias | None:
        slot = BIAS_SLOT.get(op.node.op)
        if slot is not None and op.given(slot):
            value = op.x(slot)
            if not self._own(value):
                return None
            if op.node.op in GATES:
                return Bias(value.name, half=row.half)
            is_row = math.prod(value.shape) == shape[0] * shape[1] and float(op.attr("beta", 1.0)) == 1.0
            return Bias(value.name) if is_row else None
        return self._bias_behind(op, row, shape[0] * shape[1])

    def _bias_behind(self, op: Op, row: _Row, n: int) -> Bias | None:
        """Find a bias in the only node that reads the sums: an Add, or the mean of a BatchNormalization."""
        out = next((y for y in op.outputs if y is not None), None)
        if out is None or op.node.op in GATES or self.readers[out.name] != 1 or len(row.outputs) != 1:
            return None
        (reader,) = self.by_data.get(out.name, [None])
        if reader is None:
            return None
        if reader.node.op == "BatchNormalization" and self._own(reader.x(3)) and reader.x(3).shape == (n,):
            return Bias(reader.x(3).name, sign=-1.0)
        if reader.node.op != "Add":
            return None
        other = next((x for x in reader.inputs if x is not None and x.name != out.name), None)
        at = next((k - out.ndim for k, a in enumerate(out.axes) if a.id == row.outputs[0].id), None)
        if other is None or at is None or not self._own(other) or other.ndim < -at or other.shape[at] != n:
            return None
        return Bias(other.name) if math.prod(other.shape) == n else None

    def _own(self, value: Value) -> bool:
        """Say whether a value is an initializer of floats that one node alone reads."""
        tensor = self.analysis.model.tensors.get(value.name)
        return value.initializer and tensor is not None and tensor.data_type in FLOATS and self.readers[value.name] == 1


class _Row(NamedTuple):
    """How one operator stores one product."""

    slot: int
    weight_slot: int
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    arrange: Callable[[Array], Array]
    restore: Callable[[Array, tuple[int, ...]], Array]
    taps: int = 1
    scale: float = 1.0
    half: int = 0


def _is_data(op: Op, slot: int) -> bool:
    return op.given(slot) and not op.x(slot).constant


def _turned(array: Array) -> Array:
    return np.asarray(array.T[None])


def _plain(array: Array) -> Array:
    return np.asarray(array[None])


def _turned_back(matrices: Array, _: tuple[int, ...]) -> Array:
    return np.asarray(matrices[0].T)


def _plain_back(matrices: Array, _: tuple[int, ...]) -> Array:
    return np.asarray(matrices[0])


def _matmul(op: Op) -> Iterator[_Row]:
    if any(op.attr(n, 0) for n in ("transA", "transBatchA", "transBatchB")) or not (op.given(0) and op.given(1)):
        return
    left, right, scale = op.x(0), op.x(1), float(op.attr("alpha", 1.0))
    if _is_data(op, 0) and right.constant and right.ndim == 2:
        ways = (_plain, _plain_back) if op.attr("transB", 0) else (_turned, _turned_back)
        yield _Row(0, 1, (left[-1],), (op.y()[-1],), *ways, scale=scale)
    elif _is_data(op, 1) and left.constant and left.ndim == 2 and right.ndim > 1 and not op.attr("transB", 0):
        yield _Row(1, 0, (right[-2],), (op.y()[-2],), _plain, _plain_back, scale=scale)


def _gemm(op: Op) -> Iterator[_Row]:
    if _is_data(op, 0) and op.given(1) and op.x(1).constant:
        ways = (_plain, _plain_back) if op.attr("transB", 0) else (_turned, _turned_back)
        axis = op.x(0)[0 if op.attr("transA", 0) else 1]
        yield _Row(0, 1, (axis,), (op.y()[1],), *ways, scale=float(op.attr("alpha", 1.0)))


def _conv(op: Op) -> Iterator[_Row]:
    if not _is_data(op, 0) or not op.x(1).constant:
        return
    groups = int(op.attr("group", 1))
    taps = math.prod(op.x(1).shape[2:])

    def arrange(array: Array) -> Array:
        return array.reshape(groups, array.shape[0] // groups, -1)

    def restore(matrices: Array, shape: tuple[int, ...]) -> Array:
        return matrices.reshape(shape)

    yield _Row(0, 1, (op.x(0)[1],), (op.y()[1],), arrange, restore, taps)


def _conv_transpose(op: Op) -> Iterator[_Row]:
    if not _is_data(op, 0) or not op.x(1).constant:
        return
    groups = int(op.attr("group", 1))
    taps = math.prod(op.x(1).shape[2:])

    def arrange(array: Array) -> Array:
        by_group = array.reshape(groups, array.shape[0] // groups, array.shape[1], taps)
        return np.asarray(by_group.transpose(0, 2, 1, 3).reshape(groups, array.shape[1], -1))

    def restore(matrices: Array, shape: tuple[int, ...]) -> Array:
        by_group = matrices.reshape(groups, shape[1], shape[0] // groups, taps)
        return np.asarray(by_group.transpose(0, 2, 1, 3).reshape(shape))

    yield _Row(0, 1, (op.x(0)[1],), (op.y()[1],), arrange, restore, taps)


def _recurrent(op: Op) -> Iterator[_Row]:
    w = op.x(1)
    if _is_data(op, 0) and w.constant:

        def arrange(array: Array) -> Array:
            return array.reshape(1, -1, array.shape[2])

        def restore(matrices: Array, shape: tuple[int, ...]) -> Array:
            return matrices.reshape(shape)

        yield _Row(0, 1, (w[2],), (w[1],) * w.shape[0], arrange, restore)
    r = op.x(2)
    # A GRU may reset the state before the product: then it is not the state that its R multiplies.
    resets = op.node.op == "GRU" and not op.attr("linear_before_reset", 0)
    if r.constant and not resets:
        same = (lambda array: array), (lambda matrices, _: matrices)
        yield _Row(STATE_SLOT, 2, (r[2],), (r[1],) * r.shape[0], *same, half=1 if op.node.op == "GRU" else 0)


def _attention(op: Op) -> Iterator[_Row]:
    if op.node.domain == "com.microsoft" and _is_data(op, 0) and op.x(1).constant:
        yield _Row(0, 1, (op.x(0)[2],), (op.x(1)[1],), _turned, _turned_back)


_KINDS: Mapping[str, Callable[[Op], Iterator[_Row]]] = {
    **dict.fromkeys(("MatMul", "FusedMatMul"), _matmul),
    **dict.fromkeys(("Gemm", "FusedGemm", "GemmFastGelu"), _gemm),
    **dict.fromkeys(("Conv", "FusedConv"), _conv),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(GATES, _recurrent),
    "Attention": _attention,
}
