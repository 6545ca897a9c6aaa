"""Arrays to torch and back, element types by their ONNX numbers, and integers out of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

Tensor = Any
Array = np.ndarray[Any, Any]

# Floats of any width are computed in 32 bits: gradients of fewer do not carry far.
_TYPES: dict[int, Any] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def dtype_of(elem_type: int) -> Any:
    """Give the torch type that holds an ONNX element type; raises `KeyError` where there is none."""
    return _TYPES[elem_type]


def to_tensor(array: Array) -> Tensor:
    """Copy an array into a tensor, floats of 16 bits as 32; raises `TypeError` for what torch cannot hold."""
    array = np.asarray(array)
    if array.dtype.itemsize == 2 and array.dtype.kind in "fV":
        array = array.astype(np.float32)
    return torch.tensor(array)


def integers(value: Any) -> list[int]:
    """Read a tensor, a list or a number as a list of ints."""
    if isinstance(value, torch.Tensor):
        return [int(v) for v in value.reshape(-1).tolist()]
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]


def axes_of(call: Any, given: Tensor | None, rank: int) -> list[int]:
    """Read the axes of a node, from its input or, in older opsets, its attribute: never negative, none when unsaid."""
    axes = call.get("axes") if given is None else given
    return [] if axes is None else [a % rank if rank else 0 for a in integers(axes)]


@contextmanager
def limited_threads(n: int | None) -> Iterator[None]:
    """Have torch work on `n` threads, None for as many as it likes; with one, sums come out the same every time."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
