"""What must hold of a pruned model before it is run: valid, same interface, same weights where kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from ..errors import ModelError
from ..graph.model import Model, serialize
from ..graph.sizes import tensor_nbytes
from ..planfile import Plan, PlanSlice
from ..watch import watched
from .tensors import CODE_TYPES, FLOAT_TYPES, Held, held_tensors, same_bits, skeleton, to_array
from .twin import rows_by_initializer


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `detail` says what is wrong, or what the check did not cover."""

    name: str
    ok: bool
    detail: str = ""


def check_valid(original: Model, pruned: Model) -> Check:
    """Run onnx.checker, which the pruned model must pass if the original does."""
    name = "checker"
    problem = _invalid(pruned)
    if problem is None:
        return Check(name, True)
    if _invalid(original) is not None:
        return Check(name, True, f"the original does not pass either: {problem}")
    return Check(name, False, problem)


def _invalid(model: Model) -> str | None:
    """Say what onnx.checker finds; it does not look at the data of large tensors, whose size is checked here."""
    try:
        for key, held in held_tensors(model.skeleton).items():
            payload = model.payload(held.tensor)
            n = len(payload) if payload is not None else len(held.tensor.raw_data)
            if n and n != tensor_nbytes(held.tensor):
                return f"tensor {key!r} holds {n} bytes, which do not fit its shape"
        onnx.checker.check_model(serialize(skeleton(model.skeleton, keep_dims=False)))
    except (onnx.checker.ValidationError, EncodeError, ModelError, ValueError) as error:
        return _first_line(error)
    return None


def check_shapes(original: Model, pruned: Model) -> Check:
    """Run strict shape inference, which the pruned model must pass if the original does."""
    name = "shape inference"
    problem = _strict_inference(pruned)
    if problem is None:
        return Check(name, True)
    before = _strict_inference(original)
    if before is not None:
        return Check(name, True, f"not passed, as by the original ({before})")
    return Check(name, False, problem)


def _strict_inference(model: Model) -> str | None:
    try:
        bare = skeleton(model.skeleton, keep_dims=True)
        with watched("onnx has been inferring shapes"):
            onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except Exception as error:  # noqa: BLE001 - C++ raises many types
        return _first_line(error)
    return None


def check_interface(original: Model, pruned: Model) -> Check:
    """Compare names, order, types and shapes of the graph inputs that are fed and of the outputs."""
    for what, before, after in (
        ("input", _fed(original), _fed(pruned)),
        ("output", list(original.skeleton.graph.output), list(pruned.skeleton.graph.output)),
    ):
        names = [v.name for v in before], [v.name for v in after]
        if names[0] != names[1]:
            return Check("interface", False, f"{what}s are {', '.join(names[1])}; were {', '.join(names[0])}")
        for old, new in zip(before, after, strict=True):
            if old.type.SerializeToString(deterministic=True) != new.type.SerializeToString(deterministic=True):
                return Check("interface", False, f"{what} {old.name!r} is {_type(new)}; was {_type(old)}")
    return Check("interface", True)


def _fed(model: Model) -> list[onnx.ValueInfoProto]:
    given = {t.name for t in model.skeleton.graph.initializer}
    return [value for value in model.skeleton.graph.input if value.name not in given]


def _type(value: onnx.ValueInfoProto) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        return str(value.type.WhichOneof("value"))
    tensor = value.type.tensor_type
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{', '.join(dims)}]"


def check_slices(original: Model, pruned: Model, plan: Plan, *, recovered: bool) -> Check:
    """Compare each result with the original indexed by what the plan keeps: bit for bit, or by shape if recovered."""
    before, after = held_tensors(original.skeleton), held_tensors(pruned.skeleton)
    wrong = []
    n = 0
    for name, versions in rows_by_initializer(plan, original).items():
        for result, rows in versions.items():
            n += 1
            problem = _slice_problem(original, pruned, before[name], after.get(result), rows, recovered=recovered)
            if problem:
                wrong.append(f"{result!r} {problem}")
    detail = f"shapes of {n} tensors; their values were recovered" if recovered else f"{n} tensors, bit for bit"
    return Check("slices", not wrong, _some(wrong) or detail)


def _slice_problem(
    original: Model, pruned: Model, held: Held, result: Held | None, rows: Sequence[PlanSlice], *, recovered: bool
) -> str | None:
    if result is None:
        return "is missing from the pruned model"
    removed: dict[int, set[int]] = {}
    for row in rows:
        removed.setdefault(row.axis, set()).update(row.removed)
    shape = tuple(size - len(removed.get(axis, ())) for axis, size in enumerate(held.tensor.dims))
    found = tuple(result.tensor.dims)
    if found != shape:
        return f"has shape {list(found)}; the plan keeps {list(shape)}"
    if result.tensor.data_type != held.tensor.data_type:
        return "has another type than the original"
    if recovered:
        return None
    array = to_array(original, held.tensor)
    for axis, indices in removed.items():
        array = np.delete(array, sorted(indices), axis=axis)
    if not same_bits(array, to_array(pruned, result.tensor)):
        return "is not the original indexed by what the plan keeps"
    return None


def check_unlisted(original: Model, pruned: Model, plan: Plan, *, recovered: bool) -> Check:
    """Compare weights that the plan does not list; recovery may change their values, not their shapes."""
    before, after = held_tensors(original.skeleton), held_tensors(pruned.skeleton)
    listed = {row.result for row in plan.slices}
    sliced = {row.initializer for row in plan.slices}
    wrong = []
    for name, held in before.items():
        if name in listed or held.tensor.data_type not in FLOAT_TYPES | CODE_TYPES:
            continue
        found = after.get(name)
        # Constants of the integer types may be sizes that had to follow; only weights are promised.
        if held.tensor.data_type in CODE_TYPES and (found is None or not _is_weight(held)):
            continue
        if found is None:
            if name not in sliced:
                wrong.append(f"{name!r} is missing")
        elif list(found.tensor.dims) != list(held.tensor.dims):
            wrong.append(f"{name!r} changed its shape to {list(found.tensor.dims)}")
        elif not recovered and not same_bits(to_array(original, held.tensor), to_array(pruned, found.tensor)):
            wrong.append(f"{name!r} changed its values")
    wrong += _unequal_copies(original, pruned, before, after, listed) if not recovered else []
    return Check("unlisted weights", not wrong, _some(wrong))


def _is_weight(held: Held) -> bool:
    return held.tensor.data_type != onnx.TensorProto.INT32 and len(held.tensor.dims) > 1


def _unequal_copies(
    original: Model, pruned: Model, before: Mapping[str, Held], after: Mapping[str, Held], listed: set[str]
) -> list[str]:
    """Find copies `NAME.onnxprune.K` that the plan does not list and that are not the original."""
    wrong = []
    for name, held in after.items():
        source, mark, _ = name.rpartition(".onnxprune.")
        if not mark or name in listed or source not in before or before[source].tensor.data_type not in FLOAT_TYPES:
            continue
        if not same_bits(to_array(original, before[source].tensor), to_array(pruned, held.tensor)):
            wrong.append(f"{name!r} differs from {source!r}, and the plan does not list it")
    return wrong


def _some(problems: Sequence[str], limit: int = 3) -> str:
    rest = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + rest


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
