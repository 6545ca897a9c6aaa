"""What a model takes: names, types and shapes of its inputs, and whether an array fits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..errors import DataError, ModelError
from ..graph.model import Model

Array = np.ndarray[Any, Any]
Dim = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """One input. `shape` is None for an unknown rank; an axis is a size, a symbol or None (unnamed, dynamic).

    `of` is "" for a tensor, "sequence" for a list of tensors and "optional" for a tensor that may be None; type and
    shape are then those of the tensors inside.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    of: str = ""

    def __str__(self) -> str:
        shape = "any rank" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name!r} ({self.of}{' of ' if self.of else ''}{self.dtype.name}, [{shape}])"


def input_specs(model: Model) -> list[InputSpec]:
    """Give the inputs a caller feeds, in graph order; inputs that are also initializers have a value already.

    Raises `ModelError` for an input that is no tensor, no sequence of tensors and no optional tensor.
    """
    given = {t.name for t in model.skeleton.graph.initializer}
    given |= {t.values.name for t in model.skeleton.graph.sparse_initializer}
    return [_spec(model, value) for value in model.skeleton.graph.input if value.name not in given]


def _spec(model: Model, value: onnx.ValueInfoProto) -> InputSpec:
    kind = str(value.type.WhichOneof("value")).removesuffix("_type")
    inner = value.type
    if kind in ("sequence", "optional"):
        inner = (inner.sequence_type if kind == "sequence" else inner.optional_type).elem_type
    if inner.WhichOneof("value") != "tensor_type":
        raise ModelError(f"{model.label}: input {value.name!r} is a {kind}, which no data can be given for")
    tensor, of = inner.tensor_type, "" if kind == "tensor" else kind
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None, of)
    return InputSpec(value.name, dtype, tuple(_dim(d) for d in tensor.shape.dim), of)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or None


def check_names(names: Iterable[str], specs: Sequence[InputSpec], where: str) -> None:
    """Raise `DataError` for a name that is no input of the model, or an input that has no data."""
    known = [spec.name for spec in specs]
    given = list(names)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Its inputs: {', '.join(map(str, specs))}"
            raise DataError(f"{where}: the model has no input {name!r}. {hint}")
    missing = [str(spec) for spec in specs if spec.name not in given]
    if missing:
        raise DataError(f"{where}: nothing for input {', '.join(missing)}; the model needs data for every input")


def check_shape(shape: Sequence[int], spec: InputSpec, where: str, skip_axis: int | None = None) -> None:
    """Raise `DataError` when `shape` does not fit the input; the size of `skip_axis` is not looked at."""
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise DataError(f"{where}: {_brackets(shape)} has {len(shape)} axes; input {spec} takes {len(spec.shape)}")
    for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim and axis != skip_axis:
            raise DataError(
                f"{where}: {_brackets(shape)} does not fit input {spec}: axis {axis} is {size} and must be {dim}"
            )


def _brackets(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_dtype(dtype: np.dtype[Any], spec: InputSpec, where: str) -> None:
    """Raise `DataError` unless the type is the input's, or one of the same kind that can be converted to it.

    Integers are not taken for float inputs: raw pixels where normalized ones belong would go unnoticed.
    """
    if _kind(dtype) == _kind(spec.dtype):
        return
    raise DataError(
        f"{where}: has type {dtype.name}, input {spec} takes {spec.dtype.name}; "
        "give the values the model sees, after the preprocessing it was trained with"
    )


def _kind(dtype: np.dtype[Any]) -> str:
    name = dtype.name
    if name.startswith(("float", "bfloat")):
        return "float"
    if name.startswith(("int", "uint")):
        return "integer"
    return "text" if dtype.kind in "OUST" else dtype.kind


def convert(array: Array, spec: InputSpec, where: str) -> Array:
    """Give `array` in the input's type; raises `DataError` when the kind differs or an integer does not fit."""
    check_dtype(array.dtype, spec, where)
    if array.dtype == spec.dtype:
        return array
    if _kind(spec.dtype) == "integer" and array.size:
        info = np.iinfo(spec.dtype)
        low, high = int(array.min()), int(array.max())
        if low < info.min or high > info.max:
            raise DataError(f"{where}: values from {low} to {high} do not fit {spec.dtype.name} of input {spec}")
    return array.astype(spec.dtype)


def fit_feed(feed: Mapping[str, Any], specs: Sequence[InputSpec], where: str) -> list[dict[str, Array]]:
    """Check one feed and give it in the model's types, split along axis 0 where the model takes one sample at a time.

    Raises `DataError` for unknown or missing inputs, types of another kind and shapes that do not fit.
    """
    check_names(feed, specs, where)
    others = {spec.name: _inside(feed[spec.name], spec, f"{where}[{spec.name!r}]") for spec in specs if spec.of}
    if others:
        # A list belongs to one run as a whole, so nothing is split.
        plain = [spec for spec in specs if not spec.of]
        arrays = {spec.name: convert(np.asarray(feed[spec.name]), spec, f"{where}[{spec.name!r}]") for spec in plain}
        for spec in plain:
            check_shape(arrays[spec.name].shape, spec, f"{where}[{spec.name!r}]")
        return [arrays | others]
    arrays = {spec.name: convert(np.asarray(feed[spec.name]), spec, f"{where}[{spec.name!r}]") for spec in specs}
    single = [s.name for s in specs if s.shape and s.shape[0] == 1 and arrays[s.name].ndim == len(s.shape)]
    counts = {arrays[name].shape[0] for name in single}
    split = len(counts) == 1 and counts != {1}
    for spec in specs:
        skip = 0 if split and spec.name in single else None
        check_shape(arrays[spec.name].shape, spec, f"{where}[{spec.name!r}]", skip)
    if not split:
        return [arrays]
    return [
        {name: array[k : k + 1] if name in single else array for name, array in arrays.items()}
        for k in range(counts.pop())
    ]


def _inside(given: Any, spec: InputSpec, where: str) -> Any:
    """Check the tensors of a sequence, or the one that an optional holds, and give them in the input's type."""
    if spec.of == "optional":
        return None if given is None else _inside([given], InputSpec(spec.name, spec.dtype, spec.shape), where)[0]
    if not isinstance(given, (list, tuple)):
        raise DataError(f"{where}: input {spec} takes a list of arrays, not a {type(given).__name__}")
    arrays = [convert(np.asarray(array), spec, where) for array in given]
    for array in arrays:
        check_shape(array.shape, spec, where)
    return arrays
