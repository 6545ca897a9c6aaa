"""Models on their way to a file: tensors one by one, their data copied by the kernel where it is as it was."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import onnx
from onnx import external_data_helper

from .sizes import tensors_of
from .store import LOCATION
from .wire import filled

if TYPE_CHECKING:
    from .model import Model
    from .payload import Payload

# Smaller tensors stay in the model's file; a page holds the beginning of every other.
INLINE_BELOW = 1024
ALIGNMENT = 4096


def write_outside(model: Model, sink: IO[bytes], location: str) -> onnx.ModelProto:
    """Write the data of all but small tensors to `sink`, and give the proto that refers to it as `location`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    for tensor in tensors_of(proto.graph):
        payload = model.payload(tensor)
        length = len(payload) if payload is not None else len(tensor.raw_data)
        if length < INLINE_BELOW:
            if payload is not None:
                bring_in(tensor, payload)
            continue
        offset = -(-sink.tell() // ALIGNMENT) * ALIGNMENT
        sink.seek(offset)
        if payload is not None:
            payload.copy_to(sink)
        else:
            sink.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    return proto


def write_inline(model: Model, sink: IO[bytes]) -> None:
    """Write one file with all data in it."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    store = model.store.copy()
    for tensor in tensors_of(proto.graph):
        if external_data_helper.uses_external_data(tensor) and not store.holds(tensor):
            payload = model.payload(tensor)
            assert payload is not None
            if len(payload) < INLINE_BELOW:
                bring_in(tensor, payload)
            else:
                store.hold(tensor, payload)
    for piece in filled(proto.SerializeToString(deterministic=True), LOCATION.encode(), store.payload):
        if isinstance(piece, bytes):
            sink.write(piece)
        else:
            piece.copy_to(sink)


def bring_in(tensor: onnx.TensorProto, payload: Payload) -> None:
    """Take the data of a tensor into the proto."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(payload.read())
