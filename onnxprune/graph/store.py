"""Tensors whose data is not in the proto: what stands for it, and where it is found.

Such a tensor refers to its store as to external data, under a location that no file can hold: it begins with a NUL,
which is refused in files, and is drawn anew by every process. No reference is ever written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from ..errors import ModelError
from .payload import CODES, Array, Payload, Span
from .sizes import tensor_nbytes
from .wire import hollow

# The view reads tensors of up to 1,024 elements; whoever reads sizes reads fewer.
TAKEN_FROM = 1 << 14
LOCATION = "\0" + os.urandom(16).hex()
_PACKED = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)
)


class Store:
    """The data of a model's tensors that lies outside its skeleton. It is false when there is none."""

    def __init__(self, payloads: Iterable[Payload] = ()) -> None:
        self._payloads = list(payloads)

    def __bool__(self) -> bool:
        return bool(self._payloads)

    def copy(self) -> Store:
        """Give a store that finds the same data, for a copy of the proto."""
        return Store(self._payloads)

    def hold(self, tensor: onnx.TensorProto, payload: Payload) -> None:
        """Have a tensor without data refer to a payload."""
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=LOCATION)
        tensor.external_data.add(key="offset", value=str(len(self._payloads)))
        self._payloads.append(payload)

    def holds(self, tensor: onnx.TensorProto) -> bool:
        """Say whether the data of a tensor is found here."""
        return len(tensor.external_data) > 0 and tensor.external_data[0].value == LOCATION

    def payload(self, tensor: onnx.TensorProto) -> Payload | None:
        """Give the data of a tensor, None where it is not found here."""
        return self._payloads[int(tensor.external_data[1].value)] if self.holds(tensor) else None

    @staticmethod
    def array(tensor: onnx.TensorProto, payload: Payload) -> Array:
        """Give the data of a tensor as an array: a view where its elements are whole bytes."""
        if whole_bytes(tensor.data_type) is None:
            held = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(payload.read()))
            return np.asarray(numpy_helper.to_array(held))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(payload.read(), np.uint8).view(dtype).reshape(tuple(tensor.dims))


def open_hollow(path: Path, store: Store) -> onnx.ModelProto:
    """Read a model without its large tensors, which the store finds in the file; raises `DecodeError` for no model."""

    def take(tensor: onnx.TensorProto, offset: int, length: int) -> onnx.TensorProto | None:
        try:
            if tensor_nbytes(tensor) != length or external_data_helper.uses_external_data(tensor):
                return None
        except ModelError:
            return None
        store.hold(tensor, Span(path.absolute(), offset, length))
        return tensor

    with open(path, "rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        skeleton = hollow(content, take, TAKEN_FROM)
    proto = onnx.ModelProto()
    proto.ParseFromString(skeleton)
    return proto


def external_span(tensor: onnx.TensorProto, path: Path | None) -> Span:
    """Give where the data of a tensor lies that a file keeps outside; raises `ModelError` for no such place."""
    entries = {e.key: e.value for e in tensor.external_data}
    if path is None or not entries.get("location"):
        raise ModelError(f"tensor {tensor.name!r} says that its data lies outside, but not where")
    return Span(path.parent / entries["location"], int(entries.get("offset", 0)), tensor_nbytes(tensor))


def whole_bytes(data_type: int) -> int | None:
    """Give the bytes of one element of a type, None where elements are not whole bytes."""
    if data_type in _PACKED or data_type == onnx.TensorProto.STRING:
        return None
    width = int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    return width if width in CODES else None
