"""The masked twin: the original model with every removed slice zeroed in place, all shapes unchanged.

It is what a pruned model must compute, built without any of the code that prunes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from ..errors import PlanError
from ..graph.codes import ZERO_POINT_SLOT
from ..graph.model import Model
from ..graph.payload import InMemory
from ..graph.store import whole_bytes
from ..planfile import ROLES, Plan, PlanSlice
from .absence import Meaning, code_reader, meaning
from .sharing import Readers, assign_results
from .tensors import CODE_TYPES, FLOAT_TYPES, Array, Held, Use, held_tensors, same_bits, to_array, uses_by_name


def masked_twin(
    model: Model, plan: Plan, pruned: Model | None = None, *, recovered: bool = False, unread: bool = False
) -> onnx.ModelProto:
    """Build the masked twin of `model` under `plan` as a whole proto: see `twin_model`."""
    return twin_model(model, plan, pruned, recovered=recovered, unread=unread).proto


def twin_model(
    model: Model, plan: Plan, pruned: Model | None = None, *, recovered: bool = False, unread: bool = False
) -> Model:
    """Build the masked twin of `model` under `plan`. What is not zeroed stays where the model has it.

    Zeros are exact, never a product with a mask; quantized weights go to their zero point. Divisors, exponents,
    variances, quantization parameters and integers that are no weights stay, see `absence`. An initializer whose uses
    differ in the plan (several `result` names) is given a copy per use; `pruned` says which use reads which.
    With `recovered` the kept entries are those of `pruned`, so that repaired weights can be checked as well. With
    `unread` only the columns that read removed units are zeroed: the units themselves are made as before.

    Raises `PlanError` when the plan names tensors or indices the model lacks, or when uses cannot be told apart.
    """
    rows = rows_by_initializer(plan, model)
    edit = _Edit(model, pruned if recovered else None, ("input",) if unread else ROLES)
    readers = Readers(pruned) if pruned is not None else None
    for name, versions in rows.items():
        edit.tensor(name, versions, readers)
    if recovered:
        edit.unlisted(set(rows))
    return Model(edit.twin, model.path, store=edit.store)


def mask(model: Model, plan: Plan, pruned: Model | None = None) -> Model:
    """Give the masked twin as a model; `pruned` is needed only where uses of a shared initializer differ.

    Raises `PlanError` as `twin_model` does.
    """
    return twin_model(model, plan, pruned)


def rows_by_initializer(plan: Plan, model: Model) -> dict[str, dict[str, list[PlanSlice]]]:
    """Group the plan's slices by initializer, then by result; raises `PlanError` for what the model lacks."""
    held = held_tensors(model.skeleton)
    rows: defaultdict[str, dict[str, list[PlanSlice]]] = defaultdict(dict)
    for row in plan.slices:
        if row.initializer not in held:
            raise PlanError(f"the plan slices {row.initializer!r}, which {model.label} lacks; was it made for it?")
        dims = held[row.initializer].tensor.dims
        if not 0 <= row.axis < len(dims):
            raise PlanError(f"the plan slices axis {row.axis} of {row.initializer!r}, which has {len(dims)} axes")
        if row.removed and row.removed[-1] >= dims[row.axis]:
            raise PlanError(
                f"the plan removes index {row.removed[-1]} of axis {row.axis} of {row.initializer!r}, "
                f"which has {dims[row.axis]}"
            )
        rows[row.initializer].setdefault(row.result, []).append(row)
    return dict(rows)


class _Edit:
    """Writes zeros for `roles` into a copy of the model; with `source` the kept entries come from that pruned model."""

    def __init__(self, model: Model, source: Model | None, roles: Sequence[str]) -> None:
        self.model, self.source, self.roles = model, source, roles
        self.twin = onnx.ModelProto()
        self.twin.CopyFrom(model.skeleton)
        self.store = model.store.copy()
        self.held, self.uses = held_tensors(self.twin), uses_by_name(self.twin)
        self.originals = held_tensors(model.skeleton)
        self.values = held_tensors(source.skeleton) if source is not None else {}

    def tensor(self, name: str, versions: Mapping[str, list[PlanSlice]], readers: Readers | None) -> None:
        """Zero a tensor in place, and give uses that see other zeros a Constant of their own."""
        held, uses = self.held[name], self.uses.get(name, [])
        original = to_array(self.model, held.tensor)
        groups: dict[Any, list[tuple[Use, str]]] = {}
        for use, result in zip(uses, assign_results(original, name, versions, uses, readers), strict=True):
            rows = self._zeroed(held, use, versions.get(result, []))
            zeros = tuple((row.axis, row.removed) for row in rows)
            key = (zeros, self._zero_point(use) if zeros else "", result if self.source is not None else "")
            groups.setdefault(key, []).append((use, result))
        for k, ((zeros, _, result), users) in enumerate(groups.items()):
            kept = self._kept(original, result, versions)
            array = _zero(kept, zeros, self._absent(original, users[0][0]))
            if k == 0:
                self._put(held.tensor, array)
                continue
            copy = f"{name}.onnxprune.twin.{k}"
            constant = onnx.helper.make_node("Constant", [], [copy], value=numpy_helper.from_array(array))
            for use, _ in users:
                use.site.input[use.slot] = copy
            held.graph.node.insert(0, constant)

    def unlisted(self, listed: set[str]) -> None:
        """Take over values that recovery changed in tensors no slice touches."""
        assert self.source is not None
        for name, held in self.held.items():
            other = self.values.get(name)
            if name in listed or other is None or held.tensor.data_type not in FLOAT_TYPES:
                continue
            if list(other.tensor.dims) == list(held.tensor.dims):
                array = to_array(self.source, other.tensor)
                if not same_bits(array, to_array(self.model, held.tensor)):
                    self._put(held.tensor, array)

    def _put(self, tensor: onnx.TensorProto, array: Array) -> None:
        """Give a tensor of the twin another content, outside the proto where the original has it there."""
        if external_data_helper.uses_external_data(tensor) and whole_bytes(tensor.data_type) is not None:
            self.store.hold(tensor, InMemory(array))
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def _zeroed(self, held: Held, use: Use, rows: Sequence[PlanSlice]) -> list[PlanSlice]:
        """Keep the slices that may be zeroed for this use."""
        rows = [row for row in rows if row.role in self.roles]
        kind = held.tensor.data_type
        if kind not in FLOAT_TYPES and (kind not in CODE_TYPES or code_reader(use, self.uses) is None):
            return []
        match meaning(use, self.uses):
            case Meaning.NEEDED:
                return []
            case Meaning.NORM:
                return [row for row in rows if row.role == "input"]
            case Meaning.ABSENT:
                return rows

    def _kept(self, original: Array, result: str, versions: Mapping[str, list[PlanSlice]]) -> Array:
        """Give the original, its kept entries as the pruned model has them when that is asked for."""
        array: Array = original.copy()
        if self.source is None or result not in self.values:
            return array
        keep = [np.ones(size, dtype=bool) for size in original.shape]
        for row in versions.get(result, []):
            keep[row.axis][list(row.removed)] = False
        kept = to_array(self.source, self.values[result].tensor)
        if kept.shape == tuple(int(k.sum()) for k in keep):
            array[np.ix_(*keep)] = kept
        return array

    def _zero_point(self, use: Use) -> str:
        reader = code_reader(use, self.uses)
        slot = ZERO_POINT_SLOT[reader.node.op_type, reader.slot] if reader is not None else None
        if reader is None or slot is None or len(reader.node.input) <= slot:
            return ""
        return str(reader.node.input[slot])

    def _absent(self, original: Array, use: Use) -> Array:
        """Give, for every entry, the value that stands for nothing: zero, or a quantized weight's zero point."""
        zero = np.zeros((), dtype=original.dtype)
        name = self._zero_point(use)
        if name not in self.originals:
            return np.broadcast_to(zero, original.shape)
        point = to_array(self.model, self.originals[name].tensor)
        if point.size == 1:
            return np.broadcast_to(point.reshape(()).astype(original.dtype), original.shape)
        if use.node.op_type == "DynamicQuantizeLSTM":
            # One zero point per direction, or per direction and gate row. Source: com.microsoft.DynamicQuantizeLSTM.
            return np.broadcast_to(point.reshape(point.shape[0], 1, -1), original.shape)
        axis = _channel_axis(use, original.ndim)
        if point.ndim == 1:
            shape = [1] * original.ndim
            shape[axis] = point.size
            return np.broadcast_to(point.reshape(shape), original.shape)
        # Blocked: one zero point per block along the axis. Source: DequantizeLinear-21, block_size.
        block = next((a.i for a in use.node.attribute if a.name == "block_size"), 0)
        block = block or -(-original.shape[axis] // point.shape[axis])
        spread = np.repeat(point, block, axis=axis)
        return np.take(spread, range(original.shape[axis]), axis=axis)


def _zero(array: Array, zeros: Sequence[tuple[int, tuple[int, ...]]], absent: Array) -> Array:
    for axis, removed in zeros:
        array.swapaxes(0, axis)[list(removed)] = absent.swapaxes(0, axis)[list(removed)]
    return array


def _channel_axis(use: Use, rank: int) -> int:
    """Axis of a 1-D zero point: the attribute, else DequantizeLinear's 1, a convolution's 0, a product's free axis."""
    attributes = {a.name: a.i for a in use.node.attribute}
    if "axis" in attributes:
        return int(attributes["axis"]) % rank
    if use.node.op_type == "DequantizeLinear":
        return 1 % rank
    if "Conv" in use.node.op_type or attributes.get("transB"):
        return 0
    return max(rank - 2, 0) if use.slot == 0 else rank - 1
