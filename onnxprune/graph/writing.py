"""Models on their way to a file: tensors one by one, their data copied by the kernel where it is as it was."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

import onnx
from onnx import external_data_helper

from ..ordered import in_order, threads_for
from .payload import Payload, write_at
from .sizes import tensors_of
from .store import LOCATION
from .wire import filled

if TYPE_CHECKING:
    from .model import Model

# Where it goes in the file, and what.
Piece: TypeAlias = tuple[int, bytes | Payload]

# Smaller tensors stay in the model's file; a page holds the beginning of every other.
INLINE_BELOW = 1024
ALIGNMENT = 4096


def write_outside(model: Model, sink: int, location: str) -> onnx.ModelProto:
    """Write the data of all but small tensors to an open file, and give the proto that refers to it as `location`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.skeleton)
    pieces: list[Piece] = []
    end = 0
    for tensor in tensors_of(proto.graph):
        payload = model.payload(tensor)
        length = len(payload) if payload is not None else len(tensor.raw_data)
        if length < INLINE_BELOW:
            if payload is not None:
                bring_in(tensor, payload)
            continue
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        end = offset + length
        pieces.append((offset, payload if payload is not None else tensor.raw_data))
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    _write(sink, pieces)
    return proto


def write_inline(model: Model, sink: int) -> None:
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
    pieces = list(filled(proto.SerializeToString(deterministic=True), LOCATION.encode(), store.payload))
    ends = itertools.accumulate(map(len, pieces), initial=0)
    _write(sink, list(zip(ends, pieces, strict=False)))


def _write(sink: int, pieces: list[Piece]) -> None:
    """Write pieces to their places in an open file; more than a thread's worth of them at once."""

    def write(piece: Piece) -> None:
        at, content = piece
        if isinstance(content, bytes):
            write_at(sink, content, at)
        else:
            content.copy_to(sink, at)

    for _ in in_order(write, pieces, threads_for(sum(len(content) for _, content in pieces))):
        pass


def bring_in(tensor: onnx.TensorProto, payload: Payload) -> None:
    """Take the data of a tensor into the proto."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(payload.read())
